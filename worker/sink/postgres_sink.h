/* postgres_sink: what the files of the PostgreSQL sink share: sink_postgres.c (open, lookup,
 * attempts, totals), postgres_parked.c (parking, cancellations), postgres_commit.c (the transaction
 * with the rows), postgres_bisect.c (what to do when it fails). */
#ifndef TRANCHE_WORKER_SINK_POSTGRES_SINK_H
#define TRANCHE_WORKER_SINK_POSTGRES_SINK_H

#include "worker/sink/sink_postgres.h"

enum { PIECE_ROWS_MAX = 1000, TOUCHED_MAX = 1024 };
static const size_t PIECE_BYTES_MAX = 16 << 20;

/* A row on its way, in order of key: all writers lock in one order, so none can deadlock. */
struct outgoing {
    const struct result *result; /* the caller's, or `spare` */
    size_t at;                   /* place in the caller's list */
    bool inserted;
};
/* What one transaction adds to one row of `batches`. */
struct batch_tally {
    struct str run, batch_id, source, config_revision;
    size_t first, newest; /* places of the rows that gave source and config_revision, + 1 */
    int64_t rows[RESULT_STATUSES], dead_letters;
    uint8_t outputs[32];
};
struct touched_batch {
    char *run, *batch_id;
};
enum commit_stage { STAGE_BEGIN, STAGE_RESULTS, STAGE_DEAD_LETTERS, STAGE_REST, STAGE_COMMIT };

/* A part of a commit that goes into one transaction. */
struct commit_part {
    struct outgoing *rows;
    size_t n_rows;
    const struct dead_letter *const *dead_letters; /* in order of source_key */
    size_t n_dead_letters;
    const struct progress *progress;
    size_t n_progress;
    const struct lost_range *lost_ranges;
    size_t n_lost_ranges;
    int64_t now_ns;
    /* out */
    enum commit_stage stage; /* where it failed */
    int64_t fresh_dead_letters;
};

struct sink_postgres {
    struct sink sink;
    struct postgres pg;
    struct sql_policy policy;
    struct postgres_arrays arrays;
    struct touched_batch touched[TOUCHED_MAX];
    size_t n_touched, newest_touched;
    struct batch_tally *tallies; /* grow to the most of one transaction */
    size_t n_tallies, tallies_cap;
    struct outgoing *outgoing;
    size_t outgoing_cap;
    bool *conflicts; /* the caller's of the commit at hand, or NULL */
    const struct dead_letter **dead_letters;
    size_t dead_letters_cap;
};

/* A column of a row that came in text form. */
struct str postgres_cell(const PGresult *r, int row, int column);
/* Notes that a batch was asked for. */
void postgres_touch(struct sink_postgres *s, const struct key *key);
/* What a failure asks for, logged. E_OK: send the same again now, *bisect: after finding the row;
 * else E_RETRY with sink.retry_ns, or E_FATAL. The transaction is undone. */
int postgres_failed(struct sink_postgres *s, const char *what, const struct postgres_failure *f,
                    bool *bisect, struct err *err);
void postgres_succeeded(struct sink_postgres *s);
/* One statement with s->arrays in a transaction of its own, until it goes through or the world is
 * down (E_RETRY, E_FATAL). binary: the answer's form. */
int postgres_transact(struct sink_postgres *s, const char *what, const char *sql, bool binary,
                      PGresult **out, struct err *err);

/* postgres_parked.c */
int postgres_park(struct sink *sink, const struct parked *parked, size_t n, struct err *err);
int postgres_unpark(struct sink *sink, const struct key *keys, size_t n, unpark_take *take,
                    void *ctx, struct err *err);
int postgres_cancelled(struct sink *sink, const struct key *keys, size_t n, bool *out,
                       struct err *err);

/* postgres_config.c */
int postgres_config_write(struct sink *sink, struct str revision, struct str content,
                          struct err *err);
int postgres_config_read(struct sink *sink, struct str revision, struct text *out, struct err *err);

/* postgres_deaths.c */
int postgres_record_death(struct sink *sink, struct death *death, struct err *err);
int postgres_forget_settled(struct sink_postgres *s, struct err *err);

/* postgres_commit.c: one transaction; E_OK or E_RETRY with *f. */
int postgres_commit_part(struct sink_postgres *s, struct commit_part *part,
                         struct postgres_failure *f) TR_MUSTCHECK;
/* The statement that writes results, its columns, and one row's values: the benchmark's too. */
extern const char postgres_results_sql[], postgres_results_layout[];
void postgres_put_result(struct postgres_arrays *a, const struct result *r);
/* Room for n elements; false: no memory. */
bool postgres_room(void **array, size_t *cap, size_t n, size_t size);
int postgres_key_compare(const struct key *a, const struct key *b);

/* postgres_bisect.c: the sink's commit. */
int postgres_commit(struct sink *sink, const struct commit *c, struct commit_counts *counts,
                    struct err *err);

#endif
