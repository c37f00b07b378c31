/* worker: the protocol. It joins a source, an engine and a sink, and it alone decides when a
 * message is acknowledged: after the transaction with its row has been committed, never before.
 *
 *   source ─ intake ─► pool (prepare) ─► worker ─► sink: lookup ─► waiting ─► sink: count attempt
 *     ▲                                                                             │ ready queue
 *     └── ack ◄── worker ◄── sink: commit ◄── worker ◄── pool (render) ◄── engine ◄─┘
 *
 * Admission is one budget of rows and bytes, spent at the claim and returned at the ack; every
 * queue between is large enough for all of it, so nothing else ever waits for room. */
#ifndef TRANCHE_WORKER_WORKER_H
#define TRANCHE_WORKER_WORKER_H

#include <stdatomic.h>

#include "worker/job/prepare.h"
#include "worker/monitor/progress.h"
#include "worker/sink/spool.h"
#include "worker/source/source.h"
#include "worker/supervisor/supervisor.h"

struct worker_opts {
    struct source *source;
    struct engine *const *engines; /* [n_engines], one thread each, fed from one queue */
    int n_engines;
    struct sink *sink;
    struct spool *spool; /* rows go there while the sink is away; NULL: they wait in memory */
    const struct prepare_context *prepare;
    const struct job_config_base *configs; /* where prepare->configs is; dir set: it is watched */
    const struct result_context *result;
    const struct clock *clock;
    const char *group; /* partition_progress.consumer_group: "file" */
    int prepare_threads;
    int64_t claim_rows, claim_bytes;
    int32_t flush_rows;
    int64_t flush_ns, grace_ns;
    int64_t cancel_ns;               /* between looks for cancellations; 0: 5 s */
    int64_t render_ns;               /* how long memory may be refused to a row; 0: 60 s */
    const atomic_int *stop_signal;   /* how many: 1: drain, more: at once; NULL: never */
    bool self_test;                  /* a canary goes first: ready once it has ended well */
    double breaker;                  /* share of failures that stops intake; 0: never */
    struct progress_meter *progress; /* NULL: none */
    bool tell_stop;                  /* say there what a stop signal does */
    struct supervised *self;         /* NULL: nobody watches */
};
struct worker_summary {
    int64_t rows[RESULT_STATUSES]; /* committed by this run of the worker */
    int64_t present;               /* messages whose row was there: repeated, or done before */
    int64_t repeated;              /* messages that met their twin in flight */
    int64_t passed_over;           /* beyond this run's share (prepare->share) */
    int64_t dead_letters;          /* new ones */
    int64_t prompt_tokens, completion_tokens;
    double seconds, device_seconds;
    struct engine_stats engine;
    struct totals totals; /* over all rows of the batches touched, also those there before */
    int64_t spooled;      /* rows that stand in the spool and not yet in the database */
    bool work_left;       /* stopped before the end */
    int64_t left;         /* messages that were claimed and have no row of ours */
    bool unread;          /* where opts.tell_stop: and the source had more */
    int64_t parked, parked_tokens;   /* sequences that a drain took off, their generated ids */
    int64_t resumed, resumed_tokens; /* sequences that went on where another worker had parked */
};
/* How a grace period is spent, from its beginning on: running sequences may finish until work_ns,
 * then the rest is parked; what has not reached the database by sink_ns is left; a statement
 * without an answer at answer_ns is cut, and rows go to the spool; until back_ns starts are given
 * back; the process is gone by exit_ns. A quarter of it, 30 s at most, is kept for what comes
 * behind the work. */
struct drain_budget {
    int64_t work_ns, sink_ns, answer_ns, back_ns, exit_ns;
};
struct drain_budget drain_budget_of(int64_t grace_ns);

/* Runs until the source is drained and everything is settled, or a stop signal's drain is over.
 * Returns E_OK (summary->work_left tells of a stop), or what ended it: E_USAGE (input), E_FATAL
 * (engine, sink). Everything finished by then has been committed and acknowledged where the sink
 * still could. */
int worker_run(const struct worker_opts *opts, struct worker_summary *summary,
               struct err *err) TR_MUSTCHECK;

#endif
