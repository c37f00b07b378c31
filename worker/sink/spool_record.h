/* spool_record: rows as the bytes of a spool segment, and back. Pure: no file, no clock; fuzzed.
 *
 * A segment is the magic "TRSPOOL1", then records. A record, integers little-endian:
 *   0 "TRr1" | 4 u8 kind, 3 zero bytes | 8 u32 length of the body | 12 zero | 16 the first 8 bytes
 *   of SHA-256 over bytes 0..15 | 24 SHA-256 over bytes 0..15 and the body | 56 the body.
 * So a head that is whole tells where the next record begins even where its body is not, and no
 * flipped bit passes for a row. A body is the row's fields in order; a text is u32 length and
 * bytes, the length 0xFFFFFFFF for NULL. The first record says whose rows these are. */
#ifndef TRANCHE_WORKER_SINK_SPOOL_RECORD_H
#define TRANCHE_WORKER_SINK_SPOOL_RECORD_H

#include "worker/job/text.h"
#include "worker/sink/sink.h"

enum { SPOOL_MAGIC_BYTES = 8, SPOOL_HEAD_BYTES = 56, SPOOL_BODY_MAX = 1 << 30 };
extern const char spool_magic[SPOOL_MAGIC_BYTES + 1];

enum spool_kind { SPOOL_OWNER = 1, SPOOL_RESULT, SPOOL_DEAD_LETTER, SPOOL_LOST_RANGE };
/* A spool is only replayed for who wrote it. */
struct spool_owner {
    int32_t schema;      /* of the sink */
    struct str database; /* "postgres:llm": where its rows belong */
    struct str run;
};
struct spool_row {
    enum spool_kind kind;
    union { /* borrowed from the segment's bytes */
        struct spool_owner owner;
        struct result result;
        struct dead_letter dead_letter;
        struct lost_range lost_range;
    };
};

/* Append one record each; t->failed: no memory, or a row over SPOOL_BODY_MAX. */
void spool_put_owner(struct text *t, const struct spool_owner *o);
void spool_put_result(struct text *t, const struct result *r);
void spool_put_dead_letter(struct text *t, const struct dead_letter *d);
void spool_put_lost_range(struct text *t, const struct lost_range *l);

enum spool_found {
    SPOOL_END,     /* nothing more */
    SPOOL_ROW,     /* *row; *at behind it */
    SPOOL_DAMAGED, /* *at moves over bytes that hold no whole record; another one follows */
    SPOOL_TORN,    /* what is left holds none, nor does anything follow: a write that was cut off */
};
/* The record at *at of a segment (behind its magic). Never reads outside bytes. */
enum spool_found spool_next(struct str bytes, size_t *at, struct spool_row *row);

#endif
