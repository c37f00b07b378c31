/* threads: the worker's three helpers, each the owner of one thing that blocks: the source, the
 * engine, the sink. They decide nothing; they hand items to the worker's event queue. */
#ifndef TRANCHE_WORKER_THREADS_H
#define TRANCHE_WORKER_THREADS_H

#include <stdatomic.h>

#include "worker/open_model.h"
#include "worker/queue.h"
#include "worker/ready_queue.h"
#include "worker/sink/sink.h"
#include "worker/sink/spool.h"
#include "worker/source/source.h"
#include "worker/supervisor/supervisor.h"

/* What arrives in the worker's event queue. */
enum event {
    EVENT_PREPARED = 1,   /* job: parsed and tokenized, or refused */
    EVENT_PREPARED_AGAIN, /* job: the same under the revision of its first admission */
    EVENT_CONFIG,         /* struct job_config, held: a new revision, checked */
    EVENT_RENDERED,       /* job: its result is made */
    EVENT_UNDONE,         /* job: a drain took it off the engine before its end */
    EVENT_ASSIGNED,       /* partition: wants its start */
    EVENT_REVOKED,        /* partition: commit what is finished of it, then forget it */
    EVENT_LOST,           /* partition: forget it */
    EVENT_GAP,            /* struct source_gap, the worker's from here on */
    EVENT_STARTED,        /* struct source_start, the worker's from here on */
    EVENT_DRAINED,        /* the source has given its last message */
    EVENT_SOURCE_FAILED,  /* intake_error says why */
    EVENT_SINK_DONE,      /* struct sink_call */
    EVENT_SINK_STATE,     /* enum sink_state */
    EVENT_SINK_FAILED,    /* sink_thread_error says why */
    EVENT_SPOOL_REPLAYED, /* every commit that came back as SINK_SPOOLED is committed now */
    EVENT_ENGINE_IDLE,    /* every engine's thread has left: nothing runs any more */
    EVENT_ENGINE_FAILED,  /* one engine is lost: engine_group_error says why; the others go on */
};

/* ---- intake: the source's thread ---- */
enum { TASK_ACK = 1, TASK_RELEASE, TASK_START, TASK_FLUSHED };
struct start { /* of TASK_START; mem_alloc'd, the intake's from there on */
    int32_t partition;
    int64_t position;
};
/* A partition as an item's pointer, and its epoch: the one that its next jobs carry. */
static inline void *partition_item(int32_t partition, int32_t epoch)
{
    return (void *)((intptr_t)epoch * SOURCE_PARTITIONS_MAX + partition);
}
static inline int32_t item_partition(const struct item *item)
{
    return (int32_t)((intptr_t)item->ptr % SOURCE_PARTITIONS_MAX);
}
static inline int32_t item_epoch(const struct item *item)
{
    return (int32_t)((intptr_t)item->ptr / SOURCE_PARTITIONS_MAX);
}

struct intake;
struct intake_opts {
    struct source *source;
    struct queue *tasks;   /* claimed jobs go here as TASK_PREPARE */
    struct queue *returns; /* TASK_ACK, TASK_RELEASE: jobs, which the intake frees; shut: it ends */
    struct queue *events;
    int64_t rows, bytes; /* admission budget */
    bool hold;           /* begin on hold */
};
int intake_open(struct intake **out, const struct intake_opts *opts, struct err *err) TR_MUSTCHECK;
void intake_stop(struct intake *in); /* claim nothing more; EVENT_DRAINED follows */
/* Claims nothing while on hold; polls, renewals and acks go on. */
void intake_hold(struct intake *in, bool hold);
int64_t intake_claimed(struct intake *in); /* messages so far; final after EVENT_DRAINED */
void intake_lag(struct intake *in, struct source_lag *out);
const struct err *intake_error(const struct intake *in);
void intake_close(struct intake *in); /* waits until `returns`, shut, is empty; NULL is legal */

/* ---- engines: one thread each, all of them fed from one queue ---- */
/* What the threads of one worker know of each other, so that the last jobs of a batch are shared
 * out evenly: a thread takes no more jobs than its share of all that are taken or ready, unless the
 * others have no room. */
struct engine_team {
    int n;            /* threads at the start */
    atomic_int alive; /* of them have not left */
    struct {
        atomic_llong held; /* jobs taken and not handed on */
        atomic_bool full;  /* its engine took no more at the last try */
        atomic_bool gone;
    } members[ENGINES_MAX];
};

struct engine_thread;
struct engine_thread_opts {
    struct engine *engine;
    struct engine_team *team;
    int member;                /* its place in the team */
    struct ready_queue *ready; /* jobs with choices */
    struct queue *tasks;       /* finished jobs go here as TASK_RENDER */
    struct queue *events;
    const struct clock *clock;
    struct supervised *self; /* its loop beats there; NULL: nobody watches */
};
int engine_thread_open(struct engine_thread **out, const struct engine_thread_opts *opts,
                       struct err *err) TR_MUSTCHECK;
/* Submit nothing more and leave when idle: what will not end by until_ns (mono) is parked, behind
 * it everything, and comes back as EVENT_UNDONE. May be called again with another time. */
void engine_thread_drain(struct engine_thread *et, int64_t until_ns);
void engine_thread_cut(struct engine_thread *et); /* a job that it may have has job->cut set */
void engine_thread_stop(
    struct engine_thread *et); /* leave after this step; the rest stays undone */
/* Submits nothing while on hold; what runs goes on. */
void engine_thread_hold(struct engine_thread *et, bool hold);
int64_t engine_thread_finished(struct engine_thread *et); /* jobs handed to `tasks` so far */
void engine_thread_stats(struct engine_thread *et, struct engine_stats *out);
const struct err *engine_thread_error(const struct engine_thread *et);
void engine_thread_close(struct engine_thread *et); /* stops and waits; NULL is legal */

/* All engines of a worker as one. The first failure is told by EVENT_ENGINE_FAILED at once;
 * EVENT_ENGINE_IDLE follows when the last thread has left. */
struct engine_group;
struct engine_group_opts {
    struct engine *const *engines; /* [n], borrowed */
    int n;                         /* 1 .. ENGINES_MAX */
    struct ready_queue *ready;
    struct queue *tasks, *events;
    const struct clock *clock;
    struct supervised *self; /* NULL: nobody watches */
};
int engine_group_open(struct engine_group **out, const struct engine_group_opts *opts,
                      struct err *err) TR_MUSTCHECK;
void engine_group_drain(struct engine_group *g, int64_t until_ns); /* each as engine_thread_drain */
void engine_group_cut(struct engine_group *g);
void engine_group_stop(struct engine_group *g);
void engine_group_hold(struct engine_group *g, bool hold);
int64_t engine_group_finished(struct engine_group *g);                     /* jobs of all */
void engine_group_stats(struct engine_group *g, struct engine_stats *out); /* engine_stats_add */
const struct err *engine_group_error(const struct engine_group *g); /* of the first that failed */
void engine_group_close(struct engine_group *g);                    /* NULL is legal */

/* ---- sink ---- */
enum sink_call_kind {
    SINK_LOOKUP,
    SINK_COUNT,
    SINK_COMMIT,
    SINK_TOTALS,
    SINK_PROGRESS,
    SINK_PARK,
    SINK_UNPARK,
    SINK_CANCELLED,
    SINK_CONFIG_WRITE,
    SINK_CONFIG_READ
};
struct sink_call {
    enum sink_call_kind kind;
    bool busy; /* the worker's: sent and not yet back */
    size_t n;
    struct lookup *lookups;
    const struct key *keys;
    const struct str *revisions; /* [n] of SINK_COUNT, see count_attempts */
    int delta;
    int32_t *attempts;
    struct commit commit;
    struct commit_counts counts;
    struct totals totals;
    struct progress *progress;   /* [n] of SINK_PROGRESS */
    const struct parked *parked; /* [n] of SINK_PARK */
    unpark_take *take;           /* of SINK_UNPARK; called on the sink's thread */
    void *take_ctx;
    bool *cancelled;             /* [n] of SINK_CANCELLED */
    struct str revision, config; /* of SINK_CONFIG_WRITE; of SINK_CONFIG_READ the name */
    struct text *found;          /* of SINK_CONFIG_READ */
    int rc;                      /* out */
    struct err err;
};
enum { SINK_SPOOLED = 1 }; /* rc of a commit whose rows are in the spool: no ack yet */
enum sink_state {
    SINK_WELL,
    SINK_AWAY,      /* a call answered E_RETRY and has not gone through since; or a spool waits */
    SINK_AWAY_FULL, /* and the spool takes no more */
};
struct sink_thread;
struct sink_thread_opts {
    struct sink *sink;
    struct spool *spool; /* NULL: none. This thread's from here on */
    struct queue *calls, *events;
    const struct clock *clock;
};
/* Calls are answered in order; one that answers E_RETRY waits, and those behind it, and is sent
 * again with growing pauses until it goes through or sink_thread_give_up. A commit does not wait
 * where the spool takes it. Each comes back as EVENT_SINK_DONE. */
int sink_thread_open(struct sink_thread **out, const struct sink_thread_opts *opts,
                     struct err *err) TR_MUSTCHECK;
void sink_thread_give_up(struct sink_thread *st); /* E_RETRY is final from here on */
/* What replays have committed since the last question. */
void sink_thread_replayed(struct sink_thread *st, struct commit_counts *out);
void sink_thread_error(struct sink_thread *st, struct err *out);
void sink_thread_close(struct sink_thread *st); /* waits until `calls`, shut, is empty */

#endif
