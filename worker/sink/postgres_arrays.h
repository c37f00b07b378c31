/* postgres_arrays: the columns of many rows as PostgreSQL arrays in binary form, one parameter a
 * column, for `SELECT .. FROM unnest($1, .., $n)`. Layout: array_send in the server's
 * utils/adt/arrayfuncs.c: int32 dimensions, has-null flag, element type, then length and lower
 * bound of the dimension, then each element with its int32 length (-1: NULL); all big-endian. */
#ifndef TRANCHE_WORKER_SINK_POSTGRES_ARRAYS_H
#define TRANCHE_WORKER_SINK_POSTGRES_ARRAYS_H

#include "worker/job/text.h"

/* Bytes of a statement's values at most. The server refuses messages, and values in its memory, of
 * 1 GiB: a message by closing the link, so that nothing would tell it from an outage. */
enum { ARRAYS_MAX = 40, ARRAYS_BYTES_MAX = 960 << 20 };
enum array_type { /* letters of a layout string, one a column */
                  ARRAY_TEXT = 't',
                  ARRAY_INT = 'i',    /* int4 */
                  ARRAY_BIGINT = 'l', /* int8 */
                  ARRAY_REAL = 'd',   /* float8 */
                  ARRAY_BYTES = 'b',  /* bytea */
                  ARRAY_TIME = 'w',   /* timestamptz from wall clock ns; 0 and less: NULL */
};
struct postgres_arrays {
    struct text columns[ARRAYS_MAX];
    const char *layout;
    int n_columns, at;
    int32_t rows;
    size_t bytes;     /* of all columns */
    size_t bytes_max; /* 0: ARRAYS_BYTES_MAX */
    bool too_large;   /* values were left out */
};

/* Begins anew; buffers are kept. layout: "ttil", borrowed. */
void arrays_begin(struct postgres_arrays *a, const char *layout);
/* One value each, column after column, row after row. Text and bytes: ptr NULL is NULL. */
void arrays_str(struct postgres_arrays *a, struct str v);
void arrays_int(struct postgres_arrays *a, int64_t v);
void arrays_real(struct postgres_arrays *a, double v);
void arrays_time(struct postgres_arrays *a, int64_t wall_ns);
void arrays_hash(struct postgres_arrays *a, const uint8_t sha256[32]); /* as 64 hex digits */
void arrays_null(struct postgres_arrays *a);

/* Fills libpq's parallel parameter arrays. E_FATAL: memory was refused; E_JOB: the values pass
 * bytes_max. */
int arrays_end(struct postgres_arrays *a, const char **values, int *lengths, int *formats,
               unsigned *types, struct err *err) TR_MUSTCHECK;
void arrays_close(struct postgres_arrays *a);

#endif
