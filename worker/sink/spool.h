/* spool: rows on this machine's disk while their database is away. A folder of numbered segments
 * (spool_record.h), written in order, never changed, removed once their rows are committed.
 *
 * It is no second database: nothing that stands in it is acknowledged, so losing it costs
 * computing time and never a row. It saves what the engine has finished from the death of the
 * process, and takes it out of memory. Replaying it twice, or for jobs that another worker has
 * done meanwhile, changes nothing: a key's first row stays. It holds no watermark: partitions may
 * have gone to others.
 *
 * One process at a time (flock on the file `lock`), one thread at a time. */
#ifndef TRANCHE_WORKER_SINK_SPOOL_H
#define TRANCHE_WORKER_SINK_SPOOL_H

#include "worker/sink/spool_record.h"

struct spool_opts {
    const char *dir; /* made where it does not exist; only its owner may read it */
    int64_t bytes;   /* of all segments at most */
    struct spool_owner owner;
};
struct spool;
/* E_USAGE naming the folder: another process has it, it cannot be made, or it holds rows of another
 * run, database, schema or format (both values are told). */
int spool_open(struct spool **out, const struct spool_opts *opts, struct err *err) TR_MUSTCHECK;
void spool_close(struct spool *s); /* NULL is legal; rows stay for the next one */
/* NULL is empty. */
bool spool_empty(const struct spool *s);
int64_t spool_bytes(const struct spool *s);
int64_t spool_limit(const struct spool *s); /* spool_opts.bytes; 0 for NULL */

/* Results, dead letters and lost ranges of c; not its progress. E_OK: all are on the disk (fsync).
 * E_RETRY: none counts: the bytes are spent ("spool_full"), or the disk would not take them
 * ("spool_disk"). */
int spool_append(struct spool *s, const struct commit *c, struct err *err) TR_MUSTCHECK;

struct spool_replayed {
    int64_t rows, damaged, torn_bytes; /* damaged: places where a record could not be read */
    struct commit_counts counts;
};
/* Commits everything, oldest first, and adds to *done. E_OK: the spool is empty, and every row that
 * this process has put into it is committed. E_RETRY, E_FATAL: the sink's, or rows of this process
 * could not be read back ("spool_damaged"): their jobs must not be acknowledged; the rest is
 * committed. Damage is logged, and those rows left out. */
int spool_replay(struct spool *s, struct sink *sink, struct spool_replayed *done,
                 struct err *err) TR_MUSTCHECK;

#endif
