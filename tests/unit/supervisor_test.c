/* supervisor: real children that die in every way. child_main never returns here: a child that came
 * back into the test program would run the other tests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/config/config.h"
#include "worker/supervisor/supervisor.h"
#include "worker/supervisor/supervisor_memory.h"

enum { CHILDREN = 40 };
/* What each child does, and what it saw: shared with them. */
struct script {
    int n;
    struct {
        enum child_task task;
        int n_deaths;
        enum death_cause newest;
        char process[PROCESS_BYTES], blames[PROCESS_BYTES];
    } seen[CHILDREN];
    int deaths_at_first; /* children that die of `how` before one that ends well */
    int how;             /* a signal; 0: a hang; -1: memory; -70: exit 70; -71: 70 before it ran */
    bool leave_unrecorded, rows, outside, slow_end, arms;
    int code, interrupts;
};
static struct script *script;

static void swell(struct supervised *self)
{
    for (;;) {
        supervised_beat(self, 3);
        char *at = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(at, 1, 4 << 20);
        usleep(20000);
    }
}

static void die(struct supervised *self, int how)
{
    if (how == -71)
        _exit(EXIT_ENGINE);
    supervised_arm(self, 3, true);
    if (how == -70)
        _exit(EXIT_ENGINE);
    while (how == 0)
        usleep(1000);
    if (how == -1)
        swell(self);
    if (script->outside) {
        if (fork() == 0) {
            kill(getppid(), how);
            _exit(0);
        }
        for (;;)
            pause();
    }
    if (how == SIGABRT)
        abort();
    if (how == SIGSEGV) {
        char *volatile page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *page = 1;
    }
    kill(getpid(), how);
    for (;;)
        pause();
}

static int child(void *ctx, struct supervised *self, enum child_task task)
{
    static const int handled[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS};
    int i = script->n++;
    (void)ctx;
    for (size_t k = 0; k < TR_COUNT(handled); k++) /* cmocka's would go on with the other tests */
        signal(handled[k], SIG_DFL);
    supervised_begin(self, "name");
    script->seen[i].task = task;
    script->seen[i].n_deaths = self->n_deaths;
    memcpy(script->seen[i].process, self->process, sizeof self->process);
    if (self->n_deaths) {
        script->seen[i].newest = self->deaths[self->n_deaths - 1].cause;
        memcpy(script->seen[i].blames, self->deaths[self->n_deaths - 1].process, PROCESS_BYTES);
    }
    if (!script->leave_unrecorded || task == CHILD_RECORD)
        atomic_store(&self->recorded, self->n_deaths);
    if (task == CHILD_RECORD)
        _exit(0);
    if (script->rows)
        atomic_store(&self->rows, 5);
    if (i < script->deaths_at_first)
        die(self, script->how);
    if (script->arms && i == 0)
        supervised_arm(self, 3, false);
    while (script->slow_end)
        usleep(1000);
    _exit(script->code);
}

static int run(int deaths, int how, int32_t restarts)
{
    struct supervisor_opts o = {.watchdog_ns = how == -1 ? 0 : 400000000, /* it swells slowly */
                                .memory = 256 << 20,
                                .restarts = restarts,
                                .clock = clock_system()};
    script->deaths_at_first = deaths;
    script->how = how;
    return supervisor_run(&o, child, NULL);
}

static int set_up(void **state)
{
    (void)state;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    script = mmap(NULL, sizeof *script, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return script == MAP_FAILED;
}

static int tear_down(void **state)
{
    (void)state;
    sigset_t now;
    munmap(script, sizeof *script);
    sigprocmask(SIG_SETMASK, NULL, &now);
    return sigismember(&now, SIGTERM); /* as it was */
}

static void an_end_of_its_own_is_passed_on(void **state)
{
    (void)state;
    static const int codes[] = {EXIT_WELL,        EXIT_STRICT,      EXIT_USAGE,     EXIT_MODEL,
                                EXIT_UNREACHABLE, EXIT_INTERRUPTED, EXIT_TERMINATED};
    for (size_t i = 0; i < TR_COUNT(codes); i++) {
        script->n = 0;
        script->code = codes[i];
        assert_int_equal(run(0, 0, 20), codes[i]);
        assert_int_equal(script->n, 1);
    }
}

static void each_cause_is_told_to_the_next_child(void **state)
{
    (void)state;
    static const struct {
        int how;
        enum death_cause cause;
    } cases[] = {{SIGABRT, DEATH_SIGABRT}, {SIGSEGV, DEATH_SIGSEGV}, {SIGBUS, DEATH_SIGBUS},
                 {SIGFPE, DEATH_SIGFPE},   {SIGILL, DEATH_SIGILL},   {SIGKILL, DEATH_OUTSIDE},
                 {SIGPIPE, DEATH_OUTSIDE}, {0, DEATH_HANG},          {-1, DEATH_MEMORY}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        memset(script, 0, sizeof *script);
        script->code = 3;
        assert_int_equal(run(1, cases[i].how, 20), 3);
        assert_int_equal(script->n, 2);
        assert_int_equal(script->seen[0].n_deaths, 0);
        assert_int_equal(script->seen[1].n_deaths, 1);
        assert_int_equal(script->seen[1].newest, cases[i].cause);
        assert_string_equal(script->seen[1].blames, script->seen[0].process);
        assert_string_not_equal(script->seen[1].process, script->seen[0].process);
        assert_memory_equal(script->seen[0].process, "name/", 5);
    }
}

static void a_fatal_signal_that_was_sent_is_from_outside(void **state)
{
    (void)state;
    static const int signals[] = {SIGSEGV, SIGABRT, SIGILL};
    for (size_t i = 0; i < TR_COUNT(signals); i++) {
        memset(script, 0, sizeof *script);
        script->outside = true;
        assert_int_equal(run(1, signals[i], 20), 0);
        assert_int_equal(script->n, 2);
        assert_int_equal(script->seen[1].newest, DEATH_OUTSIDE);
    }
}

static void what_is_not_recorded_is_told_again(void **state)
{
    (void)state;
    script->leave_unrecorded = script->rows = true; /* rows: no growing pauses */
    assert_int_equal(run(DEATHS_MAX + 2, SIGABRT, 20), 0);
    assert_int_equal(script->n, DEATHS_MAX + 4); /* and one that only records */
    for (int i = 0; i < DEATHS_MAX + 4; i++)
        assert_int_equal(script->seen[i].n_deaths, TR_MIN(i, DEATHS_MAX));
    assert_int_equal(script->seen[DEATHS_MAX + 3].task, CHILD_RECORD);
}

static void without_rows_it_gives_up_and_still_records(void **state)
{
    (void)state;
    assert_int_equal(run(CHILDREN, SIGSEGV, 2), EXIT_ENGINE);
    assert_int_equal(script->n, 4);
    assert_int_equal(script->seen[3].task, CHILD_RECORD);
    assert_int_equal(script->seen[3].newest, DEATH_SIGSEGV);
    memset(script, 0, sizeof *script);
    assert_int_equal(run(CHILDREN, SIGSEGV, 0), EXIT_ENGINE);
    assert_int_equal(script->n, 2);
    assert_int_equal(script->seen[1].task, CHILD_RECORD);
    memset(script, 0, sizeof *script);
    script->rows = true;
    assert_int_equal(run(6, SIGSEGV, 2), 0);
    assert_int_equal(script->n, 7);
}

static void a_lost_device_is_tried_again_unless_it_was_never_there(void **state)
{
    (void)state;
    assert_int_equal(run(2, -70, 20), 0);
    assert_int_equal(script->n, 3);
    assert_int_equal(script->seen[2].n_deaths, 0); /* the worker has answered for it itself */
    memset(script, 0, sizeof *script);
    assert_int_equal(run(2, -71, 20), EXIT_ENGINE);
    assert_int_equal(script->n, 1);
}

/* Signals from another process, while the supervisor is in one of its own. */
static int stopped_by(int number, int how)
{
    pid_t parent = fork();
    if (parent == 0) {
        script->slow_end = how == 0;
        _exit(run(how ? CHILDREN : 0, how, 20));
    }
    for (int i = 0; i < 5000 && script->n == 0; i++)
        usleep(1000);
    usleep(50000);
    assert_int_equal(kill(parent, number), 0);
    int status = 0;
    assert_int_equal(waitpid(parent, &status, 0), parent);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void a_stop_is_passed_on_and_ends_the_restarts(void **state)
{
    (void)state;
    assert_int_equal(stopped_by(SIGTERM, 0), EXIT_TERMINATED);
    assert_int_equal(script->n, 1);
    memset(script, 0, sizeof *script);
    assert_int_equal(stopped_by(SIGINT, 0), EXIT_INTERRUPTED);
    memset(script, 0, sizeof *script);
    assert_int_equal(stopped_by(SIGTERM, SIGABRT), EXIT_TERMINATED); /* in a pause, or beside one */
    assert_int_equal(script->seen[script->n - 1].task, CHILD_RECORD);
}

/* A stop may come before the worker has its handlers: it ends by that signal, and nobody is told of
 * a death. */
static void a_stop_before_the_handlers_is_no_death(void **state)
{
    (void)state;
    static const int how[] = {0, SIGABRT};
    for (size_t i = 0; i < TR_COUNT(how); i++) {
        char text[8192] = "";
        FILE *told = tmpfile();
        assert_non_null(told);
        log_setup(LOG_INFO, LOG_LOGFMT, fileno(told));
        memset(script, 0, sizeof *script);
        assert_int_equal(stopped_by(SIGTERM, how[i]), EXIT_TERMINATED);
        rewind(told);
        text[fread(text, 1, sizeof text - 1, told)] = 0;
        assert_int_equal(strstr(text, "worker_died") != NULL, how[i] != 0);
        fclose(told);
    }
}

/* nohup: neither the parent nor the child is to take notice. */
static void an_ignored_hangup_stays_ignored(void **state)
{
    (void)state;
    script->slow_end = true;
    pid_t parent = fork();
    if (parent == 0) {
        signal(SIGHUP, SIG_IGN);
        _exit(run(0, 0, 20));
    }
    for (int i = 0; i < 5000 && script->n == 0; i++)
        usleep(1000);
    assert_int_equal(kill(parent, SIGHUP), 0);
    usleep(300000);
    script->slow_end = false;
    int status = 0;
    assert_int_equal(waitpid(parent, &status, 0), parent);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(script->n, 1);
}

static int end_of(pid_t parent)
{
    int status = 0;
    for (int i = 0; i < 30000; i++, usleep(1000))
        if (waitpid(parent, &status, WNOHANG) == parent)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    kill(parent, SIGKILL); /* its child goes with it */
    waitpid(parent, &status, 0);
    fail_msg("it has not ended");
    return -1;
}

/* Whoever started it may have had it ignored: the kernel then keeps no child's end. */
static void an_ignored_sigchld_hides_no_end(void **state)
{
    (void)state;
    for (int deaths = 0; deaths < 2; deaths++) {
        memset(script, 0, sizeof *script);
        script->code = 3;
        pid_t parent = fork();
        if (parent == 0) {
            signal(SIGCHLD, SIG_IGN);
            _exit(run(deaths, SIGSEGV, 20));
        }
        assert_int_equal(end_of(parent), 3);
        assert_int_equal(script->n, deaths + 1);
    }
}

static void *ignore_later(void *arg)
{
    while (script->n == 0)
        usleep(1000);
    signal(SIGCHLD, SIG_IGN);
    script->slow_end = false;
    return arg;
}

/* Somebody else took it. The next child is waited for again. */
static void an_end_that_is_lost_is_an_end(void **state)
{
    (void)state;
    for (int deaths = 0; deaths < 2; deaths++) {
        memset(script, 0, sizeof *script);
        script->slow_end = true;
        script->arms = deaths;
        pid_t parent = fork();
        if (parent == 0) {
            pthread_t thread;
            sigset_t chld;
            sigemptyset(&chld);
            sigaddset(&chld, SIGCHLD);
            sigprocmask(SIG_BLOCK, &chld, NULL);
            pthread_create(&thread, NULL, ignore_later, NULL);
            _exit(run(0, 0, 20));
        }
        assert_int_equal(end_of(parent), deaths ? EXIT_WELL : EXIT_ENGINE);
        assert_int_equal(script->n, deaths + 1);
    }
}

/* ---- Ctrl-C, which a terminal sends to the whole group and the parent passes on to nobody ---- */
static int terminal;
static bool press_before, press_behind;

static void press(bool now)
{
    sigset_t pending;
    if (!now || write(terminal, "\x03", 1) != 1)
        return;
    do
        sigpending(&pending);
    while (!sigismember(&pending, SIGINT));
}

static void before_fork(void)
{
    press(press_before);
}

static void behind_fork(void)
{
    press(press_behind);
}

static void count_interrupt(int number)
{
    script->interrupts += number == SIGINT;
    script->slow_end = false;
}

/* In a terminal of its own; what happens at the supervisor's fork is pressed there. */
static void in_terminal(bool before_run)
{
    setsid();
    terminal = posix_openpt(O_RDWR | O_NOCTTY);
    if (grantpt(terminal) != 0 || unlockpt(terminal) != 0 ||
        open(ptsname(terminal), O_RDWR) < 0) /* the leader's first: it controls the session */
        _exit(100);
    if (before_run) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGINT);
        sigprocmask(SIG_BLOCK, &set, NULL);
        press(true);
    }
    pthread_atfork(before_fork, behind_fork, NULL);
    _exit(run(0, 0, 20));
}

static void an_interrupt_before_the_start_starts_nothing(void **state)
{
    (void)state;
    script->slow_end = true;
    pid_t parent = fork();
    if (parent == 0)
        in_terminal(true);
    assert_int_equal(end_of(parent), EXIT_INTERRUPTED);
    assert_int_equal(script->n, 0);
}

static void an_interrupt_at_the_fork_reaches_the_child(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        memset(script, 0, sizeof *script);
        script->slow_end = true;
        script->code = 3;
        pid_t parent = fork();
        if (parent == 0) {
            press_before = i % 2 == 0;
            press_behind = i % 2 == 1;
            signal(SIGINT, i < 2 ? SIG_DFL : count_interrupt);
            in_terminal(false);
        }
        assert_int_equal(end_of(parent), i < 2 ? EXIT_INTERRUPTED : 3);
        if (i >= 2)
            assert_true(script->interrupts >= 1);
    }
}

static void wait_statuses_are_read_well(void **state)
{
    (void)state;
    struct supervised s = {0};
    assert_int_equal(supervisor_cause(SIGKILL, &s, DEATH_NONE, true), DEATH_MEMORY);
    assert_int_equal(supervisor_cause(SIGKILL, &s, DEATH_HANG, true), DEATH_HANG);
    assert_int_equal(supervisor_cause(SIGTERM, &s, DEATH_NONE, false), DEATH_OUTSIDE);
    /* Died of a fault while the parent's SIGKILL was on its way. */
    assert_int_equal(supervisor_cause(SIGSEGV, &s, DEATH_HANG, false), DEATH_SIGSEGV);
    assert_int_equal(supervisor_cause(1 << 8, &s, DEATH_NONE, false), DEATH_NONE);
    s.fatal = SIGSEGV; /* a sanitizer's handler exits */
    assert_int_equal(supervisor_cause(1 << 8, &s, DEATH_NONE, false), DEATH_SIGSEGV);
    s.fatal_sent = true;
    assert_int_equal(supervisor_cause(SIGSEGV, &s, DEATH_NONE, false), DEATH_OUTSIDE);
    assert_int_equal(supervisor_cause(SIGABRT, &s, DEATH_NONE, false), DEATH_SIGABRT);
}

static void memory_is_known(void **state)
{
    (void)state;
    assert_true(memory_resident(getpid()) > 1 << 20);
    assert_int_equal(memory_resident(-1), 0);
}

int main(void)
{
#define WITH_SCRIPT(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_SCRIPT(an_end_of_its_own_is_passed_on),
        WITH_SCRIPT(each_cause_is_told_to_the_next_child),
        WITH_SCRIPT(a_fatal_signal_that_was_sent_is_from_outside),
        WITH_SCRIPT(what_is_not_recorded_is_told_again),
        WITH_SCRIPT(without_rows_it_gives_up_and_still_records),
        WITH_SCRIPT(a_lost_device_is_tried_again_unless_it_was_never_there),
        WITH_SCRIPT(a_stop_is_passed_on_and_ends_the_restarts),
        WITH_SCRIPT(a_stop_before_the_handlers_is_no_death),
        WITH_SCRIPT(an_ignored_hangup_stays_ignored),
        WITH_SCRIPT(an_ignored_sigchld_hides_no_end),
        WITH_SCRIPT(an_end_that_is_lost_is_an_end),
        WITH_SCRIPT(an_interrupt_before_the_start_starts_nothing),
        WITH_SCRIPT(an_interrupt_at_the_fork_reaches_the_child),
        cmocka_unit_test(wait_statuses_are_read_well),
        cmocka_unit_test(memory_is_known),
    };
    return cmocka_run_group_tests_name("supervisor", tests, NULL, NULL);
}
