/* outbox: copies of dead letters into a dead-letter queue. The row of `dead_letters` is the record
 * and comes first, in the worker's transaction; the copy follows, at least once: a row whose
 * copied_at is NULL still owes one. A thread with a connection and a producer of its own, so that
 * no ack ever waits for it.
 *
 * A worker copies what it wrote itself, and what others left open for longer than a minute; rows in
 * the hands of a peer are skipped (SKIP LOCKED). Only rows of its own queue, so that two queues of
 * one database can have a dead-letter queue each. The copy: key and value as they were, and headers
 * tranche.source_key (equal in every copy of one letter), .reason, .detail, .job_id, .run, .batch,
 * .queue, .source, .attempts, .first_seen, .last_seen, .worker, .version, .sha256, .copies; of
 * one that the broker finds too large less and less (.payload and .message_key say what is left
 * out). A message that has been a copy three times is not copied again. */
#ifndef TRANCHE_WORKER_SINK_OUTBOX_H
#define TRANCHE_WORKER_SINK_OUTBOX_H

#include "worker/sink/postgres_connection.h"
#include "worker/source/producer.h"

struct outbox_opts {
    struct postgres_opts postgres;
    struct source_opts to;  /* the dead-letter queue */
    const char *source_url; /* where the worker's jobs come from */
    struct str queue;       /* dead_letters.queue */
    const char *worker;     /* dead_letters.worker */
    const struct clock *clock;
};
struct outbox;
/* Strings are borrowed until close. E_USAGE, E_FATAL: the URL, the options, or a queue that does
 * not exist. A broker or database that does not answer is waited for, in the thread. */
int outbox_open(struct outbox **out, const struct outbox_opts *opts, struct err *err) TR_MUSTCHECK;
/* Copies once more what there is, within limit_ns; what is left is another worker's. NULL is legal.
 */
void outbox_close(struct outbox *o, int64_t limit_ns);

/* How often the message of a letter was a copy itself, from dead_letters.source; pure. */
int outbox_copies(struct str source_json);

#endif
