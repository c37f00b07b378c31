/* health: see health.h. */
#include "worker/monitor/health.h"

#include <stdatomic.h>

#include "worker/monitor/metrics.h"
#include "worker/open_model.h"

static const char *const wants[HEALTH_WANTS] = {
    [HEALTH_START] = "start: the model and both ends are not open yet",
    [HEALTH_SOURCE] = "source: not joined, or lost",
    [HEALTH_SINK] = "database: did not answer the last call",
    [HEALTH_BREAKER] = "breaker: open",
    [HEALTH_ENGINE] = "engine: lost",
    [HEALTH_PROOF] = "engine: its first tokens are not there yet",
    [HEALTH_STOPPING] = "worker: stopping",
};
static atomic_bool held[HEALTH_WANTS];
static atomic_llong limit_ns, loop_ns, engines_ns[ENGINES_MAX]; /* mono; 0: not in a loop */

static void note_ready(void)
{
    bool ready = true;
    for (int i = 0; i < HEALTH_WANTS; i++)
        ready = ready && !atomic_load(&held[i]);
    metric_set(METRIC_READY, 0, ready);
}

void health_begin(int64_t watchdog_ns)
{
    atomic_store(&limit_ns, watchdog_ns);
    health_rest();
    for (int i = 0; i < HEALTH_WANTS; i++)
        atomic_store(&held[i], i == HEALTH_START);
    note_ready();
}

void health_set(enum health_want want, bool holds)
{
    atomic_store(&held[want], holds);
    note_ready();
}

void health_beat(int64_t now_ns)
{
    atomic_store(&loop_ns, now_ns);
}

void health_engine(int engine, int64_t since_ns)
{
    atomic_store(&engines_ns[engine], since_ns);
}

void health_rest(void)
{
    atomic_store(&loop_ns, 0);
    for (int i = 0; i < ENGINES_MAX; i++)
        atomic_store(&engines_ns[i], 0);
}

static bool silent(const char *what, int64_t since_ns, int64_t now_ns, struct text *why)
{
    int64_t limit = atomic_load(&limit_ns);
    if (limit <= 0 || since_ns == 0 || now_ns - since_ns <= limit)
        return false;
    text_f(why, "%s: stood still for %.1f s, want at most %.1f s\n", what,
           (double)(now_ns - since_ns) / 1e9, (double)limit / 1e9);
    return true;
}

bool health_alive(int64_t now_ns, struct text *why)
{
    bool alive = !silent("worker loop", atomic_load(&loop_ns), now_ns, why);
    for (int i = 0; i < ENGINES_MAX; i++)
        alive = !silent("engine loop", atomic_load(&engines_ns[i]), now_ns, why) && alive;
    return alive;
}

bool health_ready(struct text *why)
{
    bool ready = true;
    for (int i = 0; i < HEALTH_WANTS; i++)
        if (atomic_load(&held[i])) {
            text_f(why, "%s\n", wants[i]);
            ready = false;
        }
    return ready;
}
