/* config_watch: see config_watch.h. */
#include "worker/config_watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "engine/log.h"
#include "worker/job/config_folder.h"
#include "worker/monitor/metrics.h"
#include "worker/threads.h"

static const int64_t EVERY_NS = 1000000000;

struct config_watch {
    struct config_watch_opts opts;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards `stop` */
    pthread_cond_t stopped;
    bool stop;
    struct text seen, done; /* marks: at the last look; of what was last loaded or refused */
    bool settled;           /* `done` says something */
    char offered[REVISION_CAP];
};

/* False: to be tried again at the next look. */
static bool load(struct config_watch *w)
{
    const struct job_config_base *base = w->opts.base;
    struct job_config *made = NULL;
    struct err err = {0};
    int rc = job_config_load(&made, base, &err);
    if (rc == E_RETRY) {
        LOG(LOG_INFO, "config_again", LOG_S("path", base->dir), LOG_S("error", err.msg));
        return false;
    }
    metric_set(METRIC_CONFIG_REFUSED, 0, rc < 0);
    if (rc < 0) {
        metric_add(METRIC_CONFIG_RELOADS, CONFIG_REFUSED, 1);
        LOG(LOG_ERROR, "config_refused", LOG_S("path", base->dir), LOG_S("error", err.msg),
            LOG_S("kept", w->offered));
    } else if (strcmp(made->revision, w->offered) == 0) {
        job_config_release(made);
    } else {
        struct item item = {EVENT_CONFIG, made};
        snprintf(w->offered, sizeof w->offered, "%s", made->revision);
        queue_push(w->opts.events, &item, 1);
    }
    return true;
}

/* A plain directory is edited file by file: it is read once two looks have found it the same. */
static void look(struct config_watch *w)
{
    struct text now = {0};
    bool linked;
    config_folder_mark(&now, w->opts.base->dir, &linked);
    bool same = w->settled && str_eq(text_view(&now), text_view(&w->done));
    bool still = str_eq(text_view(&now), text_view(&w->seen));
    if (!now.failed && !same && (linked || still) && load(w)) {
        text_reset(&w->done);
        text_add(&w->done, text_view(&now));
        w->settled = !w->done.failed;
    }
    text_close(&w->seen);
    w->seen = now;
}

static void *watch_main(void *arg)
{
    struct config_watch *w = arg;
    int64_t every = w->opts.every_ns ? w->opts.every_ns : EVERY_NS;
    pthread_mutex_lock(&w->mutex);
    while (!w->stop) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        int64_t ns = until.tv_nsec + every;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = ns % 1000000000;
        while (!w->stop && pthread_cond_timedwait(&w->stopped, &w->mutex, &until) == 0)
            continue;
        if (w->stop)
            break;
        pthread_mutex_unlock(&w->mutex);
        look(w);
        pthread_mutex_lock(&w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

int config_watch_open(struct config_watch **out, const struct config_watch_opts *opts,
                      struct err *err)
{
    struct config_watch *w = mem_alloc(1, sizeof *w);
    pthread_condattr_t attr;
    if (!w)
        return err_set(err, E_FATAL, "config watch: no memory");
    w->opts = *opts;
    snprintf(w->offered, sizeof w->offered, "%s", opts->revision);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->stopped, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&w->thread, NULL, watch_main, w) != 0) {
        pthread_mutex_destroy(&w->mutex);
        pthread_cond_destroy(&w->stopped);
        mem_free(w);
        return err_set(err, E_FATAL, "config watch: cannot start");
    }
    *out = w;
    return E_OK;
}

void config_watch_close(struct config_watch *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->stop = true;
    pthread_cond_signal(&w->stopped);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->stopped);
    text_close(&w->seen);
    text_close(&w->done);
    mem_free(w);
}
