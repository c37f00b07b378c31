/* supervisor: see supervisor.h. One thread; signals are blocked and waited for, so that nothing
 * here runs in a handler. */
#include "worker/supervisor/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/config/config.h"
#include "worker/supervisor/supervisor_memory.h"

static const int64_t TICK_NS = 100000000, PAUSE_MIN_NS = 100000000, PAUSE_MAX_NS = 5000000000,
                     RECORD_NS = 30000000000;
static const int passed_on[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};

struct supervisor {
    struct supervisor_opts opts;
    struct supervised *shared;
    struct pending_death deaths[DEATHS_MAX]; /* not yet in the database */
    int n_deaths;
    sigset_t set, before;
    pid_t child;
    bool alive, stopped; /* stopped: by a signal, as a debugger does */
    bool fresh;          /* what is pending may be from before the fork */
    int status;          /* once it is not alive */
    int stop;            /* the first signal that asks for an end; 0: none */
    enum death_cause killed;
    int64_t started_ns, tick_ns, starved;
    int64_t beats[ENGINES_MAX], silent_ns[ENGINES_MAX];
    int32_t fruitless; /* deaths in a row without a row */
};

enum death_cause supervisor_cause(int status, const struct supervised *self,
                                  enum death_cause killed, bool starved)
{
    int noted = atomic_load(&self->fatal);
    bool sent = atomic_load(&self->fatal_sent);
    if (WIFSIGNALED(status)) {
        int number = WTERMSIG(status);
        if (killed != DEATH_NONE && number == SIGKILL)
            return killed;
        if (number == SIGKILL && starved)
            return DEATH_MEMORY;
        return noted == number && sent ? DEATH_OUTSIDE : death_cause_of_signal(number);
    }
    /* A handler that was there before ours, a sanitizer's, may turn a fault into an exit. */
    if (WIFEXITED(status) && noted && !sent)
        return death_cause_of_signal(noted);
    return DEATH_NONE;
}

/* ---- the child ---- */

static void reap(struct supervisor *v)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED)) > 0) {
        if (pid != v->child)
            continue; /* as PID 1: somebody's orphan */
        if (WIFSTOPPED(status) || WIFCONTINUED(status)) {
            v->stopped = WIFSTOPPED(status);
            continue;
        }
        v->status = status;
        v->alive = false;
    }
    if (pid < 0 && errno == ECHILD && v->alive) { /* its number may be another process's by now */
        LOG(LOG_ERROR, "worker_end_unknown", LOG_S("process", v->shared->process));
        v->status = EXIT_ENGINE << 8;
        v->alive = false;
    }
}

/* What a terminal sends goes to the child too, without us: to one that is there already. The child
 * takes two that come together for one. */
static void on_signal(struct supervisor *v, const siginfo_t *info)
{
    if (info->si_signo == SIGCHLD)
        return;
    if (!v->stop)
        v->stop = info->si_signo;
    if (v->alive && (v->fresh || info->si_code != SI_KERNEL))
        kill(v->child, info->si_signo);
}

/* Sleeps until a signal or the time is over: false. An end need not come with a signal. */
static bool wait_signal(struct supervisor *v, int64_t ns)
{
    struct timespec timeout = {ns / 1000000000, ns % 1000000000};
    siginfo_t info;
    bool came = sigtimedwait(&v->set, &info, &timeout) > 0;
    if (came)
        on_signal(v, &info);
    reap(v);
    return came;
}

static void take_pending(struct supervisor *v)
{
    while (wait_signal(v, 0))
        ;
}

static void end_child(struct supervisor *v, enum death_cause cause)
{
    if (v->killed != DEATH_NONE)
        return;
    v->killed = cause;
    LOG(LOG_ERROR, "worker_killed", LOG_S("cause", death_cause_name(cause)),
        LOG_S("process", v->shared->process));
    kill(v->child, SIGKILL);
}

/* A tick that came late counts as two at most: when the machine was paused, so was the child. */
static void watch(struct supervisor *v)
{
    int64_t now = clock_mono_ns(v->opts.clock), passed = now - v->tick_ns;
    if (passed < TICK_NS)
        return;
    v->tick_ns = now;
    for (int i = 0; i < ENGINES_MAX; i++) {
        int64_t beats = atomic_load(&v->shared->engines[i].beats);
        if (beats != v->beats[i] || v->stopped || !atomic_load(&v->shared->engines[i].armed))
            v->silent_ns[i] = 0;
        else
            v->silent_ns[i] += TR_MIN(passed, 2 * TICK_NS);
        v->beats[i] = beats;
        if (v->opts.watchdog_ns > 0 && v->silent_ns[i] > v->opts.watchdog_ns)
            end_child(v, DEATH_HANG);
    }
    if (v->opts.memory > 0 && memory_resident(v->child) > v->opts.memory)
        end_child(v, DEATH_MEMORY);
}

/* False in the child. */
static bool start_child(struct supervisor *v)
{
    struct supervised *s = v->shared;
    pid_t parent = getpid();
    memset(s, 0, sizeof *s);
    memcpy(s->deaths, v->deaths, sizeof s->deaths);
    s->n_deaths = v->n_deaths;
    s->pid = parent;
    supervised_nonce(s);
    v->killed = DEATH_NONE;
    v->stopped = false;
    memset(v->silent_ns, 0, sizeof v->silent_ns);
    v->starved = memory_kills();
    v->started_ns = v->tick_ns = clock_mono_ns(v->opts.clock);
    fflush(NULL);
    signal(SIGCHLD, SIG_DFL); /* where it is ignored, as it may be from before us, no end is told */
    v->child = fork();
    v->alive = v->child > 0;
    if (v->child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* never two workers where one was meant */
        if (getppid() != parent)
            _exit(EXIT_ENGINE);
        sigprocmask(SIG_SETMASK, &v->before, NULL);
        return false;
    }
    if (v->child < 0) {
        LOG(LOG_ERROR, "worker_not_started", LOG_S("error", strerror(errno)));
        v->status = EXIT_ENGINE << 8;
    }
    v->fresh = true;
    take_pending(v);
    v->fresh = false;
    return true;
}

/* ---- after its end ---- */

/* What the child has recorded goes from the list; its own death joins it. */
static void take_stock(struct supervisor *v, enum death_cause cause)
{
    int done = TR_MIN(TR_MAX(atomic_load(&v->shared->recorded), 0), v->n_deaths);
    v->n_deaths -= done;
    memmove(v->deaths, v->deaths + done, (size_t)v->n_deaths * sizeof *v->deaths);
    if (cause == DEATH_NONE || !atomic_load(&v->shared->ran))
        return;                      /* it had nothing in flight */
    if (v->n_deaths == DEATHS_MAX) { /* the oldest goes unanswered: it convicts nobody */
        memmove(v->deaths, v->deaths + 1, (DEATHS_MAX - 1) * sizeof *v->deaths);
        v->n_deaths--;
    }
    struct pending_death *d = &v->deaths[v->n_deaths++];
    snprintf(d->process, sizeof d->process, "%.*s", PROCESS_BYTES - 1, v->shared->process);
    d->cause = cause;
}

/* Whether a new process may do better than one that ended so. */
static bool worth_another(const struct supervisor *v)
{
    if (v->stop || v->child < 0)
        return false;
    if (!WIFEXITED(v->status))
        return true;
    /* A device that was lost while it ran; at open it would be lost again. */
    return WEXITSTATUS(v->status) == EXIT_ENGINE ? atomic_load(&v->shared->ran)
                                                 : atomic_load(&v->shared->fatal) != 0;
}

static int exit_code(const struct supervisor *v)
{
    if (v->child && WIFEXITED(v->status) && !atomic_load(&v->shared->fatal))
        return WEXITSTATUS(v->status);
    return v->stop == SIGINT ? EXIT_INTERRUPTED : v->stop ? EXIT_TERMINATED : EXIT_ENGINE;
}

static void wait_child(struct supervisor *v, int64_t limit_ns)
{
    int64_t until = limit_ns ? clock_mono_ns(v->opts.clock) + limit_ns : INT64_MAX;
    while (v->alive) {
        wait_signal(v, TICK_NS);
        if (!v->alive)
            break;
        if (!limit_ns)
            watch(v);
        else if (clock_mono_ns(v->opts.clock) > until)
            kill(v->child, SIGKILL);
    }
}

static void log_death(const struct supervisor *v, enum death_cause cause)
{
    int number = WIFSIGNALED(v->status) ? WTERMSIG(v->status) : 0;
    LOG(LOG_ERROR, "worker_died", LOG_S("process", v->shared->process),
        LOG_S("cause", cause == DEATH_NONE ? "unknown" : death_cause_name(cause)),
        LOG_I("signal", number), LOG_I("exit", number ? -1 : WEXITSTATUS(v->status)),
        LOG_I("rows", atomic_load(&v->shared->rows)), LOG_I("without_rows", v->fruitless),
        LOG_F("seconds", (double)(clock_mono_ns(v->opts.clock) - v->started_ns) / 1e9));
}

/* Growing pauses while nothing comes of it; a stop ends them. */
static void pause_before_next(struct supervisor *v)
{
    int64_t ns = PAUSE_MIN_NS << TR_MIN(TR_MAX(v->fruitless - 1, 0), 10);
    int64_t until = clock_mono_ns(v->opts.clock) + TR_MIN(ns, PAUSE_MAX_NS), left;
    while (!v->stop && (left = until - clock_mono_ns(v->opts.clock)) > 0)
        wait_signal(v, left);
}

/* A stop that came before the worker had its handlers: no death, nothing had begun. */
static bool stopped_early(const struct supervisor *v)
{
    return v->stop && WIFSIGNALED(v->status) && WTERMSIG(v->status) == v->stop;
}

/* One child from start to end. True: another one is to follow. False, *child: this is the child. */
static bool one_child(struct supervisor *v, bool *child)
{
    *child = false;
    take_pending(v);
    if (v->stop)
        return false;
    *child = !start_child(v);
    if (*child)
        return false;
    wait_child(v, 0);
    enum death_cause cause =
        supervisor_cause(v->status, v->shared, v->killed, memory_kills() > v->starved);
    take_stock(v, cause);
    if ((!WIFEXITED(v->status) && !stopped_early(v)) || worth_another(v)) {
        v->fruitless = atomic_load(&v->shared->rows) > 0 ? 0 : v->fruitless + 1;
        log_death(v, cause);
    }
    if (!worth_another(v))
        return false;
    if (v->fruitless > v->opts.restarts || v->opts.restarts == 0) {
        LOG(LOG_ERROR, "worker_given_up", LOG_I("deaths_without_a_row", v->fruitless));
        return false;
    }
    pause_before_next(v);
    return !v->stop;
}

static int supervise(struct supervisor *v, child_main *main, void *ctx)
{
    bool child;
    while (one_child(v, &child))
        ;
    if (child)
        return main(ctx, v->shared, CHILD_WORK);
    take_pending(v); /* not for the one that only records */
    int code = exit_code(v);
    if (v->n_deaths == 0)
        return code;
    if (!start_child(v))
        return main(ctx, v->shared, CHILD_RECORD);
    wait_child(v, RECORD_NS);
    take_stock(v, DEATH_NONE);
    if (v->n_deaths)
        LOG(LOG_ERROR, "death_not_recorded", LOG_S("process", v->deaths[0].process),
            LOG_S("cause", death_cause_name(v->deaths[0].cause)));
    return code;
}

static int unsupervised(child_main *main, void *ctx)
{
    static struct supervised self;
    memset(&self, 0, sizeof self);
    self.pid = getpid();
    supervised_nonce(&self);
    return main(ctx, &self, CHILD_WORK);
}

int supervisor_run(const struct supervisor_opts *opts, child_main *main, void *ctx)
{
    if (opts->off)
        return unsupervised(main, ctx);
    struct supervisor v = {.opts = *opts};
    v.shared =
        mmap(NULL, sizeof *v.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (v.shared == MAP_FAILED)
        return unsupervised(main, ctx);
    sigemptyset(&v.set);
    sigaddset(&v.set, SIGCHLD);
    for (size_t i = 0; i < TR_COUNT(passed_on); i++) {
        struct sigaction now;
        bool hangup = passed_on[i] == SIGHUP || passed_on[i] == SIGQUIT; /* nohup ignores it */
        if (!hangup || sigaction(passed_on[i], NULL, &now) != 0 || now.sa_handler != SIG_IGN)
            sigaddset(&v.set, passed_on[i]);
    }
    sigprocmask(SIG_BLOCK, &v.set, &v.before);
    pid_t parent = getpid();
    int code = supervise(&v, main, ctx);
    if (getpid() == parent)
        sigprocmask(SIG_SETMASK, &v.before, NULL);
    munmap(v.shared, sizeof *v.shared);
    return code;
}
