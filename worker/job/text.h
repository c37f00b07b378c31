/* text: a growing byte buffer and the JSON that is written into it. One buffer serves a thread for
 * its whole life, so it grows a few times and then never again. A refused allocation is remembered
 * (`failed`) and asked for once, at the end. Parsing is engine/json.h's. */
#ifndef TRANCHE_WORKER_JOB_TEXT_H
#define TRANCHE_WORKER_JOB_TEXT_H

#include "engine/json.h"

struct text {
    char *ptr;
    size_t len, cap;
    bool failed; /* memory was refused: the content is not whole */
};
void text_close(struct text *t); /* NULL and zeroed are legal */
static inline void text_reset(struct text *t)
{
    t->len = 0;
    t->failed = false;
}
static inline struct str text_view(const struct text *t)
{
    return (struct str){t->ptr, t->len};
}
/* Room for n more bytes; their start, or NULL (failed is set). text_grow then takes them. */
char *text_room(struct text *t, size_t n);
void text_add(struct text *t, struct str s);
void text_char(struct text *t, char c);
void text_f(struct text *t, const char *fmt, ...) TR_PRINTF(2, 3);

/* A JSON string of valid UTF-8, quotes included; NUL and controls escaped, the rest as it is. */
void text_json_str(struct text *t, struct str s);
/* The shortest decimal that reads back as the same double (float); never NaN or Inf. */
void text_json_real(struct text *t, double v);
void text_json_float(struct text *t, float v);
/* One value: objects with sorted keys, no spaces, shortest reals: equal values give equal bytes. */
void text_json_canonical(struct text *t, const json_t *value);

/* Digest as 64 hex digits and a NUL. */
void sha256_hex(const uint8_t sha256[32], char out[65]);
void sha256_of(struct str bytes, uint8_t out[32]);

/* The candidate within two edits of `name` (a third of its length at most), or NULL. */
const char *nearest_name(struct str name, const char *const *candidates, size_t n);

#endif
