/* stop: see stop.h. The handlers call only what POSIX lists as async-signal-safe. */
#include "worker/stop.h"

#include <signal.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "handlers share these with the threads");

static const int64_t SAME_NS = 100000000;

static atomic_int working, count, first_number; /* lock-free, as a handler needs them */
static int64_t last_ns;                         /* the handler's */
static struct itimerspec allowance;
static timer_t timer;
static bool has_timer;
static struct sigaction old_int, old_term, old_alarm;

static void on_alarm(int number)
{
    static const char text[] = "tranche: the grace period is over\n";
    (void)number;
    if (write(2, text, sizeof text - 1) < 0) {
        /* Nobody listens; the exit code says it too. */
    }
    _exit(128 + (int)first_number);
}

static void on_signal(int number)
{
    struct timespec ts;
    if (!working)
        _exit(128 + number);
    clock_gettime(CLOCK_MONOTONIC, &ts);
    int64_t now = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
    if (count == 0) {
        first_number = number;
        if (has_timer)
            timer_settime(timer, 0, &allowance, NULL);
    } else if (now - last_ns < SAME_NS) {
        return;
    }
    if (count >= 2)
        _exit(128 + number);
    last_ns = now;
    atomic_fetch_add(&count, 1);
}

void stop_catch(void)
{
    struct sigaction action = {.sa_handler = on_signal}, alarm_action = {.sa_handler = on_alarm};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    sigaddset(&action.sa_mask, SIGINT);
    sigaddset(&action.sa_mask, SIGTERM);
    atomic_store(&working, 0);
    atomic_store(&count, 0);
    atomic_store(&first_number, 0);
    sigaction(SIGALRM, &alarm_action, &old_alarm);
    has_timer = timer_create(CLOCK_MONOTONIC, &event, &timer) == 0;
    sigaction(SIGINT, &action, &old_int);
    sigaction(SIGTERM, &action, &old_term);
}

void stop_begin(int64_t exit_ns)
{
    allowance = (struct itimerspec){
        .it_value = {(time_t)(exit_ns / 1000000000), (long)(exit_ns % 1000000000)}};
    working = 1;
}

void stop_release(void)
{
    sigaction(SIGINT, &old_int, NULL);
    sigaction(SIGTERM, &old_term, NULL);
    if (has_timer)
        timer_delete(timer);
    has_timer = false;
    sigaction(SIGALRM, &old_alarm, NULL);
}

const atomic_int *stop_count(void)
{
    return &count;
}

int stop_number(void)
{
    return (int)first_number;
}
