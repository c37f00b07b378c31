/* gpu_watch: see gpu_watch.h. */
#include "worker/monitor/gpu_watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "engine/log.h"
#include "worker/monitor/metrics.h"
#include "worker/monitor/nvml.h"

enum { EVERY_S = 2 };
static const int64_t LEAVE_NS = 1000000000;
_Static_assert((int)NVML_DEVICES_MAX <= (int)METRIC_LABELS_MAX, "a label for each device");

struct gpu_watch {
    struct nvml *nvml;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
};

static int64_t known(int64_t v, int64_t per)
{
    return v < 0 ? METRIC_UNKNOWN : v * per;
}

/* Foreign processes are told apart from ours by their ids. Where our own is on no card, either we
 * compute on none or the driver's ids are of another namespace, as in most pods: only a card
 * without any process has a sure number then. */
static void read_all(const struct nvml *n)
{
    struct nvml_reading all[NVML_DEVICES_MAX];
    bool seen = false;
    for (int i = 0; i < nvml_devices(n); i++) {
        nvml_read(n, i, &all[i]);
        seen = seen || all[i].ours;
    }
    for (int i = 0; i < nvml_devices(n); i++) {
        const struct nvml_reading *r = &all[i];
        int64_t foreign = r->processes < 0 ? -1 : r->processes - r->ours;
        metric_set(METRIC_GPU_MEMORY, i, known(r->memory, 1));
        metric_set(METRIC_GPU_MEMORY_USED, i, known(r->memory_used, 1));
        metric_set(METRIC_GPU_BUSY, i, known(r->gpu_percent, 10000));
        metric_set(METRIC_GPU_CONTROLLER, i, known(r->controller_percent, 10000));
        metric_set(METRIC_GPU_CELSIUS, i, known(r->celsius, 1));
        metric_set(METRIC_GPU_FOREIGN, i,
                   seen || foreign == 0 ? known(foreign, 1) : METRIC_UNKNOWN);
    }
}

static void *watch(void *arg)
{
    struct gpu_watch *g = arg;
    struct timespec until;
    pthread_mutex_lock(&g->lock);
    while (!g->stop) {
        pthread_mutex_unlock(&g->lock);
        read_all(g->nvml);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += EVERY_S;
        pthread_mutex_lock(&g->lock);
        if (!g->stop)
            pthread_cond_timedwait(&g->wake, &g->lock, &until);
    }
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

struct gpu_watch *gpu_watch_open(void)
{
    struct err why = {0};
    struct gpu_watch *g = mem_alloc(1, sizeof *g);
    for (int i = 0; i < METRIC_LABELS_MAX; i++)
        for (int m = METRIC_GPU_MEMORY; m <= METRIC_GPU_FOREIGN; m++)
            metric_set((enum metric)m, i, METRIC_UNKNOWN);
    if (!g)
        return NULL;
    *g = (struct gpu_watch){.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
    if (nvml_open(&g->nvml, &why) < 0 || pthread_create(&g->thread, NULL, watch, g) != 0) {
        LOG(LOG_DEBUG, "no_gpu_metrics", LOG_S("why", why.msg));
        nvml_close(g->nvml);
        mem_free(g);
        return NULL;
    }
    return g;
}

/* A thread that the driver does not let go is left behind: the process is about to end. */
void gpu_watch_close(struct gpu_watch *g)
{
    struct timespec until;
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    g->stop = true;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->lock);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LEAVE_NS / 1000000000;
    if (pthread_timedjoin_np(g->thread, NULL, &until) != 0) {
        LOG(LOG_WARN, "gpu_driver_silent");
        return;
    }
    nvml_close(g->nvml);
    mem_free(g);
}
