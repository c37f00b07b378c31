/* supervisor: the small parent of a worker's process. It opens no model, database or queue, so that
 * what kills the child leaves it standing: it passes signals on, starts the child again, and keeps
 * why it died until that is in the database. As PID 1 of a container it reaps what is left to it.
 *
 * Which cause counts as the child's own (death.h): a fatal signal that nobody sent (the child's
 * handler notes the sender), a loop of the engine that stood still for `watchdog`, more memory than
 * `memory`, a SIGKILL with which the count of out-of-memory kills of the control group grew. All
 * else was somebody's else doing. The next child records it before it takes a job; where none
 * follows, a child that does nothing else does. */
#ifndef TRANCHE_WORKER_SUPERVISOR_SUPERVISOR_H
#define TRANCHE_WORKER_SUPERVISOR_SUPERVISOR_H

#include <stdatomic.h>
#include <sys/types.h>

#include "worker/open_model.h"
#include "worker/supervisor/death.h"

enum { DEATHS_MAX = 8, PROCESS_BYTES = 320 };

struct pending_death {
    char process[PROCESS_BYTES];
    enum death_cause cause;
};
/* One page that parent and child share; in a process without a parent its own. */
struct supervised {
    /* The parent's; the child reads them. */
    struct pending_death deaths[DEATHS_MAX];
    int n_deaths;
    pid_t pid;      /* the parent's, which stays: names the worker where nothing else does */
    char nonce[17]; /* makes `process` unlike that of any other process ever */
    /* The child's. */
    char process[PROCESS_BYTES]; /* supervised_begin makes it: name and nonce */
    atomic_int recorded;         /* of deaths, so many are in the database */
    struct {
        atomic_llong beats; /* rounds of an engine's loop, watched while */
        atomic_bool armed;  /* it is in it */
    } engines[ENGINES_MAX];
    atomic_bool ran;   /* one of them has been */
    atomic_llong rows; /* written by this child */
    atomic_int fatal;  /* the fatal signal that its handler saw, and who sent it */
    atomic_bool fatal_sent;
};
static inline void supervised_beat(struct supervised *s, int engine)
{
    if (s)
        atomic_fetch_add_explicit(&s->engines[engine].beats, 1, memory_order_relaxed);
}
/* An engine's loop begins or ends. NULL is legal. */
static inline void supervised_arm(struct supervised *s, int engine, bool on)
{
    if (!s)
        return;
    atomic_store(&s->engines[engine].armed, on);
    atomic_store(&s->ran, true);
}

enum child_task {
    CHILD_WORK,
    CHILD_RECORD /* write down `deaths` and leave */
};
struct supervisor_opts {
    bool off;            /* no parent: child_main runs in this process */
    int64_t watchdog_ns; /* 0: none */
    int64_t memory;      /* bytes resident; 0: no limit */
    int32_t restarts;    /* new starts in a row without a row before it gives up */
    const struct clock *clock;
};
/* Returns an enum exit_code. */
typedef int child_main(void *ctx, struct supervised *self, enum child_task task);

/* Returns the exit code: in the child child_main's, in the parent the last child's, or what DESIGN
 * says of a process that died (EXIT_ENGINE; EXIT_INTERRUPTED or EXIT_TERMINATED once a stop was
 * asked for). To be called before any thread is started. */
int supervisor_run(const struct supervisor_opts *opts, child_main *main, void *ctx);

/* supervised.c, in the child: names the process and has fatal signals noted. */
void supervised_begin(struct supervised *self, const char *name);
void supervised_end(void); /* puts the handlers back */
void supervised_nonce(struct supervised *self);

struct sink;
/* Why the processes before this one died, before this one takes up what they had in flight: into
 * the sink, E_RETRY for timeout_ns at most. */
int deaths_record(struct supervised *self, struct sink *sink, int64_t timeout_ns,
                  struct err *err) TR_MUSTCHECK;

/* Pure part, for the tests: what a wait status says. `killed`: what the parent itself killed it
 * for, or DEATH_NONE; `starved`: the control group's out-of-memory kills grew. DEATH_NONE: it ended
 * by itself, or nothing can be told. */
enum death_cause supervisor_cause(int status, const struct supervised *self,
                                  enum death_cause killed, bool starved);

#endif
