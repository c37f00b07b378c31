/* sink: where rows go. The sink's database is the only arbiter of what is done: a job is
 * acknowledged to its source only after the transaction with its terminal row has been committed.
 *
 * Every function is called by one thread, the sink's. All are idempotent: on E_RETRY the caller
 * sends the same again, also when the outcome of a COMMIT is not known. E_FATAL: the database will
 * not take it however often it is sent (schema, permissions); E_RETRY: it is down or busy. */
#ifndef TRANCHE_WORKER_SINK_SINK_H
#define TRANCHE_WORKER_SINK_SINK_H

#include <stdatomic.h>

#include "worker/job/text.h"
#include "worker/supervisor/death.h"

struct key {
    struct str run, batch_id, custom_id;
};

enum result_status {
    RESULT_OK,
    RESULT_FAILED,  /* the engine or the sink could not */
    RESULT_INVALID, /* the request cannot be run as it stands */
    RESULT_EXPIRED,
    RESULT_CANCELLED,
    RESULT_DEAD, /* given up after crashes that it caused */
    RESULT_STATUSES
};
const char *result_status_name(enum result_status status);

/* One row of `results`. ptr NULL is SQL NULL. Everything is borrowed until commit returns. */
struct result {
    struct key key;
    enum result_status status;
    struct str answer, reasoning, finish_reason;
    int correct; /* 1, 0, or -1: NULL */
    int32_t prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens;
    struct str logprobs, prompt_logprobs, choices; /* JSON */
    struct str error_code, error_detail;
    bool sanitized;
    struct str raw;
    struct str model, model_sha256, fingerprint, config_revision, params;
    bool has_seed;
    int64_t seed;
    struct str request, source; /* source: JSON, where the message came from and its metadata */
    uint8_t request_sha256[32];
    uint8_t output_sha256[32]; /* over (custom_id, status, choices); summed up in `batches` */
    int32_t attempts;
    struct str worker;
    double device_seconds;
    int64_t queued_ns, started_ns, finished_ns; /* wall clock; started 0: NULL */
    int64_t first_ns; /* first token (wall); 0: none, or it was begun elsewhere. In no column */
};

struct dead_letter {
    struct str source_key; /* names the message for ever: see dead_letters in schemas/ */
    struct key key;
    struct str reason, detail, payload, source;
    struct str message_key; /* Kafka's; ptr NULL: none */
    uint8_t sha256[32];
    int32_t attempts;
    int64_t seen_ns;
    struct str worker;
};

enum lookup_state {
    LOOKUP_ABSENT,
    LOOKUP_SAME,     /* a row with this key and this request hash */
    LOOKUP_CONFLICT, /* a row with this key and another hash */
    LOOKUP_CANCELLED /* no row, and a cancellation asks for none to be computed */
};
enum { REVISION_CAP = 17 }; /* a config revision: 16 hex digits and a NUL */
struct lookup {
    struct key key;                     /* in */
    const uint8_t *sha256;              /* in */
    enum lookup_state state;            /* out */
    int32_t attempts;                   /* out: starts counted so far */
    int32_t deaths;                     /* out: of these, ended by a death of its own while alone */
    enum death_cause cause;             /* out: of the newest death on record */
    bool parked;                        /* out: sequences of it are parked; only where ABSENT */
    char config_revision[REVISION_CAP]; /* out: of its first counted start; "": none is on record */
};
enum { COUNT_BACK = -1, COUNT_START = 1, COUNT_ALONE = 2 }; /* count_attempts: what happens */

/* How far a source has come: everything before `position` has its row. */
struct progress {
    struct str run, group, source;
    int32_t partition;
    int64_t position, messages;
};

/* Messages that their broker dropped before anybody read them: positions from..to-1. */
struct lost_range {
    struct str run, group, source, reason;
    int32_t partition;
    int64_t from, to;
};

struct commit {
    const struct result *const *results;
    size_t n_results;
    const struct dead_letter *dead_letters;
    size_t n_dead_letters;
    const struct progress *progress;
    size_t n_progress;
    const struct lost_range *lost_ranges; /* a range that is on record already stays as it is */
    size_t n_lost_ranges;
    int64_t now_ns;  /* wall clock, for the columns */
    bool *conflicts; /* [n_results] out, see SINK_CONFLICT; NULL: not asked, the first row stays */
};
/* What commit returns where another worker has written, under the key of a result here, the row of
 * another request: conflicts[i] says which. The transaction is undone; the same again without these
 * results, and with a dead letter for each, is for the caller to send. */
enum { SINK_CONFLICT = 2 };
struct commit_counts {
    int64_t inserted, already; /* results; `already`: a row was there, ours was dropped */
    int64_t dead_letters;      /* new ones */
};

/* A sequence taken off the engine between two tokens: with the request it goes on anywhere. */
struct parked {
    struct key key;
    int32_t choice, n;
    struct str state; /* ids and logprobs, as worker and engine agree */
    struct str config_revision, worker;
    int64_t parked_ns;
};

/* Rows by status and the sum of their output hashes, over the batches that this sink has been asked
 * for since it was opened: what was there before counts too. */
struct totals {
    int64_t rows[RESULT_STATUSES];
    int64_t dead_letters;
    uint8_t outputs_sha256[32]; /* sum of output_sha256 as 256-bit numbers: order plays no part */
};

/* Gets the parked states of keys[at], one call each; memory of the sink until it returns. */
typedef void unpark_take(void *ctx, size_t at, const struct parked *p);

struct sink;
struct sink_ops {
    const char *name;
    int (*lookup)(struct sink *, struct lookup *, size_t n, struct err *);
    /* Counts and commits. COUNT_START: about to reach the engine; COUNT_ALONE: the same, with
     * nothing else in flight in this process; COUNT_BACK: came back unharmed. attempts[i] gets the
     * count behind it. A start carries sink->process until the row is written, it is given back or
     * another process counts one. revisions[i], where there are any, is kept with the first start
     * that is counted and stays until the row is written. */
    int (*count_attempts)(struct sink *, const struct key *, const struct str *revisions, size_t n,
                          int what, int32_t *attempts, struct err *);
    /* Keeps the content that a config revision names; one that is there stays. */
    int (*config_write)(struct sink *, struct str revision, struct str content, struct err *);
    /* Fills `out` with it; empty: there is none. */
    int (*config_read)(struct sink *, struct str revision, struct text *out, struct err *);
    /* A process is dead, and commits what that means for the starts that carry its name. Outside:
     * they are given back. Its own: they stay, and a start that was alone is charged. Twice is
     * once: the starts lose the name. */
    int (*record_death)(struct sink *, struct death *, struct err *);
    /* One transaction: results and dead letters (ON CONFLICT: the first row stays), the attempts of
     * these results forgotten, progress. */
    int (*commit)(struct sink *, const struct commit *, struct commit_counts *, struct err *);
    /* Forgets the starts of jobs whose row is there: a process that lost a job to another, counted
     * it behind that one's row and died would leave them for ever. Then (n may be 0)
     * fills in position and messages of what commit wrote for run, group, source and partition;
     * position -1: nothing yet. Of a broker's partition the highest one counts: commit never takes
     * it back. (A file's, group "file", may go back: it can be another file.) */
    int (*progress_read)(struct sink *, struct progress *, size_t n, struct err *);
    /* One transaction. A state of the same choice is replaced; of a job that has its row nothing is
     * kept. */
    int (*park)(struct sink *, const struct parked *, size_t n, struct err *);
    /* Hands every parked state of these keys to `take`; after E_RETRY and another call, again. The
     * rows stay until the result is committed, and go in its transaction. */
    int (*unpark)(struct sink *, const struct key *, size_t n, unpark_take *take, void *ctx,
                  struct err *);
    /* out[i]: a cancellation names the job or its whole batch. */
    int (*cancelled)(struct sink *, const struct key *, size_t n, bool *out, struct err *);
    int (*totals)(struct sink *, struct totals *, struct err *);
    void (*close)(struct sink *);
};
struct sink {
    const struct sink_ops *ops;
    int32_t schema;     /* version of its tables */
    char database[80];  /* "postgres:llm", "sqlite:rows.db": whose rows a spool holds */
    int64_t retry_ns;   /* behind E_RETRY: how long to wait before the same call; 0: as you like */
    struct str queue;   /* topic, stream or file that dead letters come from; ptr NULL: not known */
    struct str process; /* who counts: unlike that of any other process ever; ptr NULL: nobody */
    /* No call waits for a server's answer beyond it (mono); 0: as long as that takes. Another
     * thread may set it during a call, which then ends with E_RETRY, a second later at most. */
    atomic_llong until_ns;
};
static inline void sink_close(struct sink *s)
{
    if (s)
        s->ops->close(s);
}

struct sqlite_opts {
    const char *path;
    /* true: synchronous=FULL, an acknowledged row survives a power cut. false: NORMAL, it survives
     * the death of the process but the last transactions may be missing after a power cut (never
     * torn): enough where the source keeps its messages, as a file does. */
    bool full_sync;
    int64_t busy_ns; /* how long a call waits for another writer before E_RETRY; 0: 10 s */
};
/* Opens or creates the file and brings its schema up to this build's. Errors: E_FATAL naming the
 * file: no database, not ours, made by a newer build; E_RETRY: locked. */
int sink_sqlite_open(struct sink **out, const struct sqlite_opts *opts,
                     struct err *err) TR_MUSTCHECK;

/* Wall clock as "2026-01-31T12:00:00.000Z"; out has room for 32 bytes. */
void wall_text(int64_t wall_ns, char out[32]);

#endif
