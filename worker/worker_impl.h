/* worker_impl: what the worker's files share: its state. worker.c holds the flow of a job and the
 * events, worker_commit.c the transaction and the ack, worker_spool.c the time without a database,
 * worker_open.c threads and ends. Nobody else includes this. */
#ifndef TRANCHE_WORKER_WORKER_IMPL_H
#define TRANCHE_WORKER_WORKER_IMPL_H

#include "worker/breaker.h"
#include "worker/config_watch.h"
#include "worker/outstanding.h"
#include "worker/suspects.h"
#include "worker/threads.h"
#include "worker/worker.h"

enum stage {
    STAGE_NEW,
    STAGE_LOOKUP,
    STAGE_WAITING,
    STAGE_COUNTED,
    STAGE_DONE,
    STAGE_COMMITTING,
    STAGE_SPOOLED
};
enum { LOOKUP_MAX = 2048, COUNT_MAX = 1024, EVENT_MAX = 256, CALLS = 12 };
enum { PARK_JOBS_MAX = 128, PARK_STATES_MAX = 512, UNPARK_MAX = 64 };

struct list {
    struct job *first, *last;
    size_t n;
};

/* worker_park.c: a drain's, and of jobs that were parked before. */
struct parking {
    struct sink_call park, back, unpark;
    struct list undone; /* off the engine, or never on it: to be parked, uncounted, released */
    struct job *jobs[PARK_JOBS_MAX];
    struct key keys[PARK_JOBS_MAX]; /* of `park` and `back` */
    size_t n_jobs;
    struct parked states[PARK_STATES_MAX];
    size_t n_states;
    struct text text;      /* the states' bytes */
    struct list to_unpark; /* counted; their states are to be read */
    struct list aside;     /* the sweep's, empty between two */
    struct job *unparking[UNPARK_MAX];
    struct key unpark_keys[UNPARK_MAX];
    int64_t work_until_ns, sink_until_ns; /* mono, once it drains */
    int64_t back_until_ns;                /* mono, once a signal came */
    bool hurried;
    int64_t released; /* messages that went back without a row */
};
/* worker_config.c */
enum { KNOWN_CONFIGS = 8 };
struct known_config {
    char revision[REVISION_CAP];
    struct job_config *config; /* held; NULL: not to be had */
};
struct configuring {
    struct sink_call write, read;
    struct job_config *next, *writing; /* held: offered; on its way into the database */
    struct list to_pin;                /* looked up; the revision of their first start is unknown */
    char reading[REVISION_CAP];
    struct text text; /* what `read` finds */
    struct known_config known[KNOWN_CONFIGS];
    size_t next_known;
    int64_t again; /* jobs that are prepared once more */
};
/* worker_cancel.c */
struct cancelling {
    struct sink_call call;
    struct text text; /* copies of the keys: their jobs may have gone when the answer comes */
    struct key *keys; /* [out.cap] */
    bool *answers;
    struct job **taken;  /* [out.cap] */
    size_t n;            /* cut since the last sweep */
    int64_t ask_ns;      /* mono: when to ask next */
    int64_t deadline_ns; /* wall: the earliest of those that run or wait; INT64_MAX: none */
};

struct worker {
    struct worker_opts opts;
    struct worker_summary *summary;
    struct outstanding out;
    struct queue *tasks, *events, *returns, *calls;
    struct ready_queue *ready;
    struct pool *pool;
    struct intake *intake;
    struct engine_group *engine;
    struct sink_thread *sink;
    struct config_watch *watch;

    struct list to_look_up, to_commit; /* rendered or dead, in order of arrival here */
    struct list present, passing;      /* their rows were there; of these, those of `commit` */
    int64_t oldest_ns;                 /* when to_commit became non-empty (mono) */
    struct sink_call lookup, count, commit, totals;
    struct job *looked_up[LOOKUP_MAX], *counted[COUNT_MAX];
    struct lookup lookups[LOOKUP_MAX];
    struct key keys[COUNT_MAX];
    struct str revisions[COUNT_MAX];
    int32_t attempts[COUNT_MAX];
    struct job **committing; /* [commit_max] */
    const struct result **results;
    bool *conflicts; /* [commit_max] of `results` */
    struct dead_letter *dead;
    size_t commit_max, n_committing;
    struct progress progress[SOURCE_PARTITIONS_MAX];
    int64_t progress_ns; /* since when progress has moved without a row to commit; 0: it has not */
    enum { FLUSH_NONE, FLUSH_ASKED, FLUSH_SENT } flush; /* partitions are being taken away */
    struct sink_call start;
    struct progress starts[SOURCE_PARTITIONS_MAX]; /* of `start`, or collected for it */
    size_t n_starts;
    struct lost_range gaps[SOURCE_GAPS_MAX], sent_gaps[SOURCE_GAPS_MAX]; /* for the next commit */
    size_t n_gaps;

    struct list spooled;  /* their rows stand in the spool, not yet in the database */
    struct list replayed; /* they have left the spool: to be looked up, whose rows are there */
    enum sink_state sink_state;
    bool gave_up;

    int64_t ready_cap, rendered, with_engine; /* handed to the engine; of them come back */
    int64_t wave;                             /* jobs that a death may find in flight */
    struct suspects suspects;
    bool suspects_next, group; /* worker_suspects.c: whose turn it is; a group goes in */
    bool settle;               /* rows are waited for: commit as soon as all are rendered */
    int64_t turn_ns;
    struct breaker breaker;
    struct job *probe;  /* the job that it tries */
    struct job *canary; /* the one that is out; not among the outstanding */
    uint64_t canaries;
    int64_t canary_ns;        /* mono: when the next may go */
    bool proven;              /* an engine has ended something well in this process */
    struct list failed, held; /* while it was open: start not yet given back; given back */
    int64_t output_bytes;     /* of jobs with the engine: 0 where it has none */
    bool short_of_memory;     /* a job waits because its output found none */
    struct parking parking;
    struct cancelling cancelling;
    struct configuring configuring;
    int64_t start_ns, begun_ns, drain_ns; /* begun: the first start was counted; 0: none yet */
    int64_t present_bytes;                /* of the source, of messages whose row was there */
    int64_t metrics_ns, beats[ENGINES_MAX], beats_ns[ENGINES_MAX]; /* worker_metrics.c */
    bool drained, draining, cut_short, engine_gone, engine_failed, stop;
    int rc;
    struct err *err;
};

void list_add(struct list *l, struct job *job);
struct job *list_take(struct list *l);
void worker_call_sink(struct worker *w, struct sink_call *c, enum sink_call_kind kind);
void worker_loop(struct worker *w);

/* Nobody waits for it here any more: back to the source without a row. */
void worker_release(struct worker *w, struct job *job);
/* The job's result (or its dead letter, where it has none) goes into the next transaction. */
void worker_to_commit(struct worker *w, struct job *job);
/* No result: it and its twins become dead letters, because the id belongs to another request. */
void worker_conflict(struct worker *w, struct job *job);
/* The commit met rows of other requests and wrote nothing: it is sent again without those jobs. */
void worker_after_conflict(struct worker *w);
/* The job's row is there already: its ack waits for the transaction that stores a watermark behind
 * it, so that no broker's position is ever ahead of the stored one. */
void worker_present(struct worker *w, struct job *job);
void worker_send_commit(struct worker *w); /* when it is time to */
void worker_after_commit(struct worker *w);
/* Takes jobs off to_commit into w->commit: the rows, not the progress. */
void worker_fill_commit(struct worker *w);
void worker_tally(struct worker *w, const struct job *job); /* into the summary */

void worker_refuse(struct worker *w, struct job *job, enum result_status status, const char *code,
                   const char *detail);

/* What its lookup allows, once it is prepared under the right revision: its row, or its turn. */
void worker_go_on(struct worker *w, struct job *job);

/* worker_drain.c, worker_park.c: drains; a job leaves this worker without a row, or comes with
 * parked states. */
void worker_start_drain(struct worker *w); /* again is harmless */
void worker_mind_signals(struct worker *w);
void worker_undone(struct worker *w, struct job *job); /* counted, and will not end here */
void worker_to_engine(struct worker *w, struct job *const *jobs, size_t n); /* counted just now */
void worker_park_step(struct worker *w);
/* An answer of its calls, failed ones too. False: the call is not one of its own. */
bool worker_park_answer(struct worker *w, struct sink_call *c);
bool worker_park_busy(const struct worker *w);  /* a call is with the sink */
bool worker_park_empty(const struct worker *w); /* nothing is left to be parked or released */
void worker_park_close(struct worker *w);

/* worker_config.c. Takes next, which the database is to keep before it is adopted. */
void worker_config_offer(struct worker *w, struct job_config *next);
/* True: another revision is the job's, and it is to be prepared again; worker_go_on follows. */
bool worker_pin(struct worker *w, struct job *job, const struct lookup *l);
void worker_prepare_again(struct worker *w, struct job *job);
void worker_prepared_again(struct worker *w, struct job *job); /* and it goes on */
void worker_config_step(struct worker *w);
bool worker_config_answer(struct worker *w, const struct sink_call *c); /* one that went well */
bool worker_config_busy(const struct worker *w);
bool worker_config_empty(const struct worker *w);
void worker_config_close(struct worker *w);

/* worker_cancel.c: cancellations and deadlines of jobs that wait or run. */
int worker_cancel_open(struct worker *w, struct err *err) TR_MUSTCHECK;
void worker_cancel_close(struct worker *w);
void worker_cancel_watch(struct worker *w, const struct job *job); /* it waits from here on */
void worker_cancel_step(struct worker *w);
bool worker_cancel_answer(struct worker *w, struct sink_call *c); /* as worker_park_answer */
/* Ends the job before its end: now where it waits, at the next step where it runs, behind its
 * lookup where that is on its way. */
void worker_cut(struct worker *w, struct job *job, enum job_cut why);
void worker_take_back(struct worker *w, struct job *tombstone);             /* and settles it */
bool worker_deadline_passed(const struct worker *w, const struct job *job); /* and the slack */
void worker_refuse_cut(struct worker *w, struct job *job); /* the row of one that did not run */

/* worker_suspects.c: who may be counted next. */
void worker_wait(struct worker *w, struct job *job); /* its lookup found nothing: it is to run */
bool worker_settled(const struct worker *w);         /* nothing is in flight, all of it rows */
/* Jobs that may be counted now; then worker_next gives them. */
int64_t worker_room(struct worker *w);
struct job *worker_next(struct worker *w);               /* NULL: none */
int worker_count_kind(struct worker *w, size_t counted); /* of what worker_next gave */
bool worker_none_waits(const struct worker *w);
bool worker_none_left(const struct worker *w); /* the same, and the breaker holds none */
/* The job becomes a dead letter too; `why` for its row. */
void worker_convict(struct job *job, const struct lookup *l, char *why, size_t cap);

/* worker_breaker.c. An engine has ended this job: true where it is kept to be run again. */
bool worker_hold(struct worker *w, struct job *job);
int64_t worker_breaker_room(struct worker *w); /* jobs that it lets through now */
void worker_breaker_counted(struct worker *w, struct job *first);
void worker_breaker_refused(struct worker *w, const struct job *job); /* without an engine */
bool worker_give_back(struct worker *w);     /* true: a call is on its way */
void worker_gave_back(struct worker *w);     /* it has come back */
void worker_breaker_drain(struct worker *w); /* what it holds goes the way of the others */

/* worker_canary.c. False: none was sent, or one is out. */
bool worker_canary_send(struct worker *w);
void worker_canary_first(struct worker *w); /* self_test: until something has ended well */
bool worker_canary_gone(struct worker *w, struct job *job); /* true: it was that, and is closed */

/* worker_partitions.c: partitions that come and go. */
void worker_partition_event(struct worker *w, const struct item *item);
void worker_partition_starts(struct worker *w);       /* asks the sink for them */
void worker_partition_first(struct worker *w);        /* once: of a broker that assigns none */
void worker_partition_after_starts(struct worker *w); /* the sink has answered */
void worker_partition_flush(struct worker *w);        /* tells the source once all is committed */
struct progress worker_progress_of(const struct worker *w, int32_t partition);
/* worker_spool.c: while the sink is away. */
void worker_sink_state(struct worker *w, enum sink_state state);
void worker_after_spool(struct worker *w);  /* the commit is in the spool, its jobs wait */
void worker_after_replay(struct worker *w); /* and now it is in the database */
/* What the lookup of a replayed job says: acknowledged, or a dead letter. */
void worker_found_replayed(struct worker *w, struct job *job, enum lookup_state state);
void worker_give_up(struct worker *w);         /* the grace is over: the sink gets no more time */
bool worker_rows_owed(const struct worker *w); /* wait for the sink before the end */
void worker_spool_rest(struct worker *w);      /* last of all, without threads: what is finished */
/* worker_progress.c: what the operator is told, where there is a meter. */
void worker_show_progress(struct worker *w); /* when it is time to */
void worker_tell_stop(struct worker *w);     /* a drain has begun */
/* worker_metrics.c: for probes and Prometheus. */
void worker_metrics_row(const struct worker *w, const struct result *r); /* finished */
void worker_metrics_step(struct worker *w);                              /* each round */
void worker_metrics_end(struct worker *w);                               /* the loop has ended */
/* Nothing but the rows to commit is left, so that waiting for more would be waiting for the clock.
 */
bool worker_last_rows(const struct worker *w);

#endif
