/* config_fields: typed reads of one JSON object of a model's configuration. Every failure names
 * file, field, what is wanted and what the file has. Shared by model_config.c and rope_config.c. */
#ifndef TRANCHE_ENGINE_CONFIG_FIELDS_H
#define TRANCHE_ENGINE_CONFIG_FIELDS_H

#include "engine/json.h"
#include "engine/model.h"

enum { FIELD_SHOWN = 64, POSITIONS_MAX = 1 << 24 };

struct fields {
    const char *where; /* "config.json: " or "config.json: rope_scaling." */
    const json_t *object;
    struct err *err;
};

/* NULL when the field is absent or null. */
json_t *field_get(const struct fields *f, const char *name);
/* A value as text for a message: short ones as they stand, others by type. Returns `text`. */
const char *field_shown(const json_t *value, char text[static FIELD_SHOWN]);
/* E_FATAL: "<where><name>: want <want>, file has <value>". */
int field_wrong(const struct fields *f, const char *name, const char *want);

/* A number from min to max, integer or real in the file. Absent or null gives `fallback`; NAN as
 * fallback: the field is required. E_FATAL otherwise. */
int field_f64(const struct fields *f, const char *name, double min, double max, double fallback,
              double *out) TR_MUSTCHECK;
/* The same for a whole number; 4096.0 is one. INT64_MIN as fallback: required. */
int field_i64(const struct fields *f, const char *name, int64_t min, int64_t max, int64_t fallback,
              int64_t *out) TR_MUSTCHECK;
int field_i32(const struct fields *f, const char *name, int32_t min, int32_t max, int64_t fallback,
              int32_t *out) TR_MUSTCHECK;
int field_bool(const struct fields *f, const char *name, bool fallback, bool *out) TR_MUSTCHECK;

bool json_text_is(const json_t *value, const char *text);
bool name_listed(const char *name, const char *const *list, size_t n);

/* rope_scaling, rope_parameters and rope_theta of config.json into c->rope. c->max_positions must
 * be set. */
int rope_config_parse(struct model_config *c, const struct fields *f) TR_MUSTCHECK;

#endif
