/* json: Jansson behind the limits that hostile input needs. One way into JSON for the whole
 * program: job lines, config.json, tokenizer.json, safetensors headers.
 *
 * Jansson already refuses (RFC 8259): text behind the document, duplicate keys (flag), invalid
 * UTF-8, lone surrogates, NUL in a key, reals that overflow; it keeps 64-bit integers exact and
 * strings with their length, NULs included. json_parse adds a nesting and a size limit. */
#ifndef TRANCHE_ENGINE_JSON_H
#define TRANCHE_ENGINE_JSON_H

#include <jansson.h>

#include "engine/base.h"

struct json_limits {
    size_t bytes_max;
    int depth_max;
    bool wide_integers; /* integers beyond 64 bits become reals; else they are an error */
};
extern const struct json_limits json_limits_job;  /* 4 MiB, depth 64 */
extern const struct json_limits json_limits_file; /* 64 MiB, depth 64: files of a model folder */

/* Parses exactly one document. `name` stands first in the error message ("config.json").
 * On success *out is a new reference (json_decref). Errors: E_JOB with type "bad_json". */
int json_parse(json_t **out, struct str text, const char *name, const struct json_limits *limits,
               struct err *err) TR_MUSTCHECK;

/* Reads a whole file (bounded by limits->bytes_max) and parses it. E_FATAL when it cannot be read.
 */
int json_parse_file(json_t **out, const char *path, const struct json_limits *limits,
                    struct err *err) TR_MUSTCHECK;

/* The string value with its length (it may hold NULs); {NULL,0} when `value` is no string. */
static inline struct str json_str(const json_t *value)
{
    return json_is_string(value) ? (struct str){json_string_value(value), json_string_length(value)}
                                 : (struct str){NULL, 0};
}

/* "object", "array", "string", "integer", "real", "true", "false", "null", "absent": for messages.
 */
const char *json_type_name(const json_t *value);

#endif
