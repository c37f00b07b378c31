/* kafka_watermark: which messages of one partition are done, when they finish in any order. It
 * knows offsets, and that the log has gaps: compaction and transaction markers leave numbers that
 * no message has. Pure but for the memory of its ring. */
#ifndef TRANCHE_WORKER_SOURCE_KAFKA_WATERMARK_H
#define TRANCHE_WORKER_SOURCE_KAFKA_WATERMARK_H

#include "engine/base.h"

struct kafka_watermark {
    int64_t *ring; /* [cap], a power of two: offset * 2 + done, ascending */
    size_t cap, first, n;
    size_t open;      /* of the n: not done */
    int64_t position; /* the next offset to be read */
};

/* Forgets everything; reading goes on at `position`. Zeroed memory is a legal watermark. */
void kafka_watermark_start(struct kafka_watermark *w, int64_t position);
void kafka_watermark_close(struct kafka_watermark *w);
/* A message was handed out. Returns 1; 0: its offset lies before the position, it was handed out
 * before; E_FATAL: no memory. */
int kafka_watermark_deliver(struct kafka_watermark *w, int64_t offset,
                            struct err *err) TR_MUSTCHECK;
/* A message is done; false when it is not one that was handed out since the start. */
bool kafka_watermark_done(struct kafka_watermark *w, int64_t offset);
/* The log's end stands at `offset` and everything before it was handed out. */
void kafka_watermark_end(struct kafka_watermark *w, int64_t offset);
/* The offset before which everything is done: what may be committed. */
int64_t kafka_watermark_value(const struct kafka_watermark *w);

#endif
