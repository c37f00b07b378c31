/* pool: the prepare threads. See prepare.h. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/job/prepare.h"
#include "worker/monitor/metrics.h"

enum { POOL_BATCH = 32 };
static const int64_t TELL_NS = 10000000000, RENDER_NS = 60000000000;

struct pool_thread {
    struct pool *pool;
    pthread_t thread;
    struct prepare_scratch prepare;
    struct result_scratch result;
    int64_t wait_ns, told_ns; /* when memory is refused; told: mono, in the log */
};
struct pool {
    struct pool_opts opts;
    int started;
    _Atomic int64_t unrendered;
    struct pool_thread threads[];
};

/* Memory is refused: not so fast. Renders, which free some, come between two tries. */
static void pace(struct pool_thread *t, const struct job *job)
{
    int64_t now = clock_mono_ns(clock_system());
    if (!t->told_ns || now - t->told_ns >= TELL_NS) {
        LOG(LOG_WARN, "memory_refused", LOG_I("sequence", job->sequence));
        t->told_ns = now;
    }
    t->wait_ns = TR_MIN(TR_MAX(t->wait_ns * 2, (int64_t)1000000), (int64_t)100000000);
    clock_sleep_ns(clock_system(), t->wait_ns);
}

/* False: it could not be read, and stands in the queue again. */
static bool prepare(struct pool_thread *t, struct item *item)
{
    const struct pool_opts *o = &t->pool->opts;
    struct job *job = item->ptr;
    if (item->kind == TASK_PREPARE_AGAIN) {
        prepare_again(job, o->prepare, &t->prepare);
    } else {
        FAILPOINT("s3.before_prepare");
        if (o->prepare->configs)
            job->config = job_config_current(o->prepare->configs);
        prepare_job(job, o->prepare, &t->prepare);
        FAILPOINT("s3.after_prepare");
    }
    if (!job->unread && job->err.code != E_RETRY) {
        t->wait_ns = 0;
        return true;
    }
    pace(t, job);
    if (!job->unread)
        return true;
    job_config_release(job->config);
    job->config = NULL;
    return !queue_push(o->tasks, item, 1);
}

/* A job that the breaker holds is rendered again, much later. */
static void rendered(struct pool *p, struct job *job)
{
    if (job->unrendered_ns)
        atomic_fetch_sub(&p->unrendered, 1);
    job->unrendered_ns = 0;
}

/* False: memory was refused, and it stands in the queue again, behind others that may find some.
 * Not for ever: a row may be too large for what there is. */
static bool render(struct pool_thread *t, struct item *item)
{
    const struct pool_opts *o = &t->pool->opts;
    struct job *job = item->ptr;
    if (result_render(job, o->result, &t->result)) {
        t->wait_ns = 0;
        rendered(t->pool, job);
        return true;
    }
    int64_t now = clock_mono_ns(clock_system());
    if (!job->unrendered_ns) {
        job->unrendered_ns = now;
        atomic_fetch_add(&t->pool->unrendered, 1);
    }
    if (now - job->unrendered_ns < (o->render_ns ? o->render_ns : RENDER_NS)) {
        pace(t, job);
        return !queue_push(o->tasks, item, 1);
    }
    LOG(LOG_ERROR, "row_without_texts", LOG_I("sequence", job->sequence));
    rendered(t->pool, job);
    result_render_bare(job, o->result);
    return true;
}

/* False: it is not done. */
static bool run_task(struct pool_thread *t, struct item *item)
{
    const struct pool_opts *o = &t->pool->opts;
    int64_t began_ns = clock_mono_ns(clock_system());
    bool prepares = item->kind != TASK_RENDER;
    if (queue_is_shut(o->tasks)) {
        /* Stopped: nobody will look at it. */
    } else if (prepares) {
        if (!prepare(t, item))
            return false;
    } else {
        FAILPOINT("s6.before_render");
        if (!render(t, item))
            return false;
        FAILPOINT("s6.after_render");
    }
    metric_observe(METRIC_STAGE, prepares ? METRIC_STAGE_PREPARE : METRIC_STAGE_RENDER,
                   clock_mono_ns(clock_system()) - began_ns);
    item->kind = o->done[item->kind];
    return true;
}

static void *pool_main(void *arg)
{
    struct pool_thread *t = arg;
    struct item items[POOL_BATCH];
    size_t n;
    while ((n = queue_pop(t->pool->opts.tasks, items, POOL_BATCH, -1)) > 0) {
        size_t done = 0;
        for (size_t i = 0; i < n; i++)
            if (run_task(t, &items[i]))
                items[done++] = items[i];
        queue_push(t->pool->opts.out, items, done);
    }
    return NULL;
}

int pool_open(struct pool **out, const struct pool_opts *opts, struct err *err)
{
    size_t n = (size_t)opts->threads;
    struct pool *p = mem_alloc(1, sizeof *p + n * sizeof p->threads[0]);
    if (!p)
        return err_set(err, E_FATAL, "prepare threads: no memory");
    p->opts = *opts;
    int rc = E_OK;
    for (size_t i = 0; rc == E_OK && i < n; i++) {
        struct pool_thread *t = &p->threads[i];
        t->pool = p;
        rc = prepare_scratch_open(&t->prepare, opts->prepare->model, err);
        if (rc == E_OK && pthread_create(&t->thread, NULL, pool_main, t) != 0)
            rc = err_set(err, E_FATAL, "prepare threads: cannot start thread %zu of %zu", i + 1, n);
        if (rc == E_OK)
            p->started++;
        else
            prepare_scratch_close(&t->prepare);
    }
    if (rc != E_OK) {
        queue_shut(opts->tasks);
        pool_close(p);
        return rc;
    }
    *out = p;
    return E_OK;
}

int64_t pool_unrendered(const struct pool *pool)
{
    return atomic_load(&pool->unrendered);
}

void pool_close(struct pool *pool)
{
    if (!pool)
        return;
    for (int i = 0; i < pool->started; i++) {
        pthread_join(pool->threads[i].thread, NULL);
        prepare_scratch_close(&pool->threads[i].prepare);
        result_scratch_close(&pool->threads[i].result);
    }
    mem_free(pool);
}
