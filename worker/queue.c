/* queue: see queue.h. A ring under one mutex; waits use the monotonic clock. */
#include "worker/queue.h"

#include <pthread.h>
#include <time.h>

struct queue {
    pthread_mutex_t mutex;
    pthread_cond_t has_items, has_room;
    size_t cap, head, n;
    int poppers, pushers; /* waiting: a signal is a system call, so it is sent only to someone */
    bool shut;
    struct item ring[];
};

int queue_open(struct queue **out, size_t cap, struct err *err)
{
    CHECK(cap > 0);
    struct queue *q =
        cap < SIZE_MAX / 64 ? mem_alloc(1, sizeof *q + cap * sizeof q->ring[0]) : NULL;
    if (!q)
        return err_set(err, E_FATAL, "queue: cannot take room for %zu items", cap);
    q->cap = cap;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->mutex, NULL);
    pthread_cond_init(&q->has_items, &attr);
    pthread_cond_init(&q->has_room, &attr);
    pthread_condattr_destroy(&attr);
    *out = q;
    return E_OK;
}

void queue_close(struct queue *q)
{
    if (!q)
        return;
    pthread_cond_destroy(&q->has_items);
    pthread_cond_destroy(&q->has_room);
    pthread_mutex_destroy(&q->mutex);
    mem_free(q);
}

bool queue_push(struct queue *q, const struct item *items, size_t n)
{
    pthread_mutex_lock(&q->mutex);
    for (size_t i = 0; i < n && !q->shut;) {
        if (q->n == q->cap) {
            q->pushers++;
            pthread_cond_wait(&q->has_room, &q->mutex);
            q->pushers--;
            continue;
        }
        q->ring[(q->head + q->n++) % q->cap] = items[i++];
        if (i == n || q->n == q->cap) {
            if (q->poppers)
                pthread_cond_signal(&q->has_items);
            if (i == n) {
                pthread_mutex_unlock(&q->mutex);
                return true;
            }
        }
    }
    bool shut = q->shut;
    pthread_mutex_unlock(&q->mutex);
    return !shut;
}

static struct timespec deadline_in(int64_t ns)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    int64_t sum = ts.tv_nsec + ns % 1000000000;
    ts.tv_sec += (time_t)(ns / 1000000000 + sum / 1000000000);
    ts.tv_nsec = sum % 1000000000;
    return ts;
}

size_t queue_pop(struct queue *q, struct item *items, size_t cap, int64_t timeout_ns)
{
    pthread_mutex_lock(&q->mutex);
    if (q->n == 0 && !q->shut && timeout_ns != 0) {
        struct timespec until = timeout_ns > 0 ? deadline_in(timeout_ns) : (struct timespec){0};
        int rc = 0;
        q->poppers++;
        while (q->n == 0 && !q->shut && rc == 0)
            rc = timeout_ns > 0 ? pthread_cond_timedwait(&q->has_items, &q->mutex, &until)
                                : pthread_cond_wait(&q->has_items, &q->mutex);
        q->poppers--;
    }
    size_t n = TR_MIN(q->n, cap);
    for (size_t i = 0; i < n; i++)
        items[i] = q->ring[(q->head + i) % q->cap];
    q->head = (q->head + n) % q->cap;
    q->n -= n;
    if (n && q->pushers)
        pthread_cond_broadcast(&q->has_room);
    if (q->n && q->poppers)
        pthread_cond_signal(&q->has_items);
    pthread_mutex_unlock(&q->mutex);
    return n;
}

void queue_shut(struct queue *q)
{
    pthread_mutex_lock(&q->mutex);
    q->shut = true;
    pthread_cond_broadcast(&q->has_items);
    pthread_cond_broadcast(&q->has_room);
    pthread_mutex_unlock(&q->mutex);
}

bool queue_is_shut(struct queue *q)
{
    pthread_mutex_lock(&q->mutex);
    bool shut = q->shut;
    pthread_mutex_unlock(&q->mutex);
    return shut;
}

size_t queue_length(struct queue *q)
{
    pthread_mutex_lock(&q->mutex);
    size_t n = q->n;
    pthread_mutex_unlock(&q->mutex);
    return n;
}
