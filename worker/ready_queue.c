/* ready_queue: see ready_queue.h. One mutex; waits use the monotonic clock. */
#include "worker/ready_queue.h"

#include <pthread.h>
#include <time.h>

struct ready_queue {
    pthread_mutex_t mutex;
    pthread_cond_t has_jobs;
    int poppers; /* waiting: a signal is a system call, so it is sent only to someone */
    struct job_heap heap;
};

int ready_queue_open(struct ready_queue **out, size_t cap, struct err *err)
{
    struct ready_queue *q = mem_alloc(1, sizeof *q);
    if (!q)
        return err_set(err, E_FATAL, "ready queue: no memory");
    int rc = job_heap_open(&q->heap, cap, err);
    if (rc < 0) {
        mem_free(q);
        return rc;
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->mutex, NULL);
    pthread_cond_init(&q->has_jobs, &attr);
    pthread_condattr_destroy(&attr);
    *out = q;
    return E_OK;
}

void ready_queue_close(struct ready_queue *q)
{
    if (!q)
        return;
    pthread_cond_destroy(&q->has_jobs);
    pthread_mutex_destroy(&q->mutex);
    job_heap_close(&q->heap);
    mem_free(q);
}

void ready_queue_push(struct ready_queue *q, struct job *const *jobs, size_t n)
{
    pthread_mutex_lock(&q->mutex);
    for (size_t i = 0; i < n; i++)
        job_heap_push(&q->heap, jobs[i]);
    if (n && q->poppers)
        pthread_cond_signal(&q->has_jobs);
    pthread_mutex_unlock(&q->mutex);
}

struct job *ready_queue_pop(struct ready_queue *q, int64_t timeout_ns)
{
    pthread_mutex_lock(&q->mutex);
    if (q->heap.n == 0 && timeout_ns > 0) {
        struct timespec until;
        int rc = 0;
        clock_gettime(CLOCK_MONOTONIC, &until);
        int64_t sum = until.tv_nsec + timeout_ns % 1000000000;
        until.tv_sec += (time_t)(timeout_ns / 1000000000 + sum / 1000000000);
        until.tv_nsec = sum % 1000000000;
        q->poppers++;
        while (q->heap.n == 0 && rc == 0)
            rc = pthread_cond_timedwait(&q->has_jobs, &q->mutex, &until);
        q->poppers--;
    }
    struct job *job = job_heap_pop(&q->heap);
    if (q->heap.n && q->poppers)
        pthread_cond_signal(&q->has_jobs);
    pthread_mutex_unlock(&q->mutex);
    return job;
}

size_t ready_queue_take(struct ready_queue *q, bool (*wanted)(const struct job *), struct job **out)
{
    pthread_mutex_lock(&q->mutex);
    size_t n = job_heap_take(&q->heap, wanted, out);
    pthread_mutex_unlock(&q->mutex);
    return n;
}

size_t ready_queue_length(struct ready_queue *q)
{
    pthread_mutex_lock(&q->mutex);
    size_t n = q->heap.n;
    pthread_mutex_unlock(&q->mutex);
    return n;
}
