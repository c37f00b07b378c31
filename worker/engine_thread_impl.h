/* engine_thread_impl: what the engine thread's files share: engine_thread.c submits and steps,
 * engine_drain.c takes jobs off again. Nobody else includes this. */
#ifndef TRANCHE_WORKER_ENGINE_THREAD_IMPL_H
#define TRANCHE_WORKER_ENGINE_THREAD_IMPL_H

#include <pthread.h>

#include "worker/job/job.h"
#include "worker/threads.h"

struct engine_thread {
    struct engine_thread_opts opts;
    pthread_t thread;
    atomic_bool stop, hold;
    atomic_llong drain_until_ns; /* INT64_MAX: no drain */
    atomic_uint cuts;            /* times that a job was cut */
    unsigned cuts_seen;
    atomic_llong finished;
    struct job *current; /* partly submitted; also in `running` from its first choice on */
    int32_t next_choice;
    struct job *running; /* with a choice in the engine; linked by job->running_* */
    int64_t drain_pass_ns;
    int64_t step_ns, step_end_ns;       /* smoothed time from step to step; when the last ended */
    int64_t sequences, sequence_tokens; /* that have ended, and their ids: how long one is */
    int64_t stats_ns;
    pthread_mutex_t mutex; /* guards stats */
    struct engine_stats stats;
    struct err err;
};

/* A job whose last choice has ended: to the pool. */
void engine_thread_hand_on(struct engine_thread *et, struct job *job);
void engine_thread_enter(struct engine_thread *et, struct job *job); /* into `running` */
void engine_thread_leave(struct engine_thread *et, struct job *job);
/* Note a step's end, and a sequence's: what the drain's estimates stand on. */
void engine_drain_note_step(struct engine_thread *et);
void engine_drain_note_end(struct engine_thread *et, const struct job_choice *c);

/* Ends what was cut since the last call: its choices are reported by a later step. */
void engine_drain_mind_cuts(struct engine_thread *et);
/* The choices of a cut job that the engine has not seen end here and now. */
void engine_drain_end_rest(struct engine_thread *et, struct job *job, int32_t from);
/* One look of a drain: jobs that will not end by until_ns are parked and given back; behind it,
 * all. */
void engine_drain_pass(struct engine_thread *et, int64_t until_ns);

#endif
