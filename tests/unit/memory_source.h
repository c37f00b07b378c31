/* memory_source: a source whose messages are lines in memory, for tests of the worker. What must
 * hold when something is acknowledged or given back is the test's, by hooks. Includes of cmocka
 * come before this. */
#ifndef TRANCHE_TESTS_MEMORY_SOURCE_H
#define TRANCHE_TESTS_MEMORY_SOURCE_H

#include <string.h>

#include "worker/source/source.h"

struct memory_source {
    struct source source;
    const char *const *lines;
    int n, next;
    atomic_int *stop_at_end; /* set as the last line is handed out; NULL: none */
    int stall_at;            /* no more lines from this one on, and no end; 0: none such */
    int acked, released;
    void (*on_ack)(const struct job *);
    void (*on_acked)(void); /* behind the last of a call */
    void (*on_release)(const struct job *);
};

static int memory_claim(struct source *source, const struct source_budget *budget, struct job **out,
                        int cap, int64_t timeout_ns, bool *drained, struct err *err)
{
    struct memory_source *m = (struct memory_source *)source;
    int n = 0, end = m->stall_at ? m->stall_at : m->n;
    (void)err;
    while (n < cap && n < budget->rows && m->next < end) {
        const char *line = m->lines[m->next];
        struct job *job = job_open(strlen(line));
        memcpy((char *)(uintptr_t)job->message.ptr, line, strlen(line));
        job_printf(job, &job->origin, "b:%d", m->next + 1);
        job_printf(job, &job->place, "\"line\":%d", m->next + 1);
        job->sequence = m->next++;
        job->position = job->sequence + 1;
        out[n++] = job;
    }
    *drained = m->next == m->n;
    if (*drained && m->stop_at_end)
        *m->stop_at_end = 1;
    if (n == 0 && !*drained)
        clock_sleep_ns(clock_system(), TR_MIN(timeout_ns, (int64_t)5000000));
    return n;
}

static int memory_service(struct source *s, struct source_service *out, struct err *err)
{
    (void)s;
    (void)err;
    *out = (struct source_service){0};
    return E_OK;
}

static int memory_ack(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    struct memory_source *m = (struct memory_source *)source;
    (void)err;
    m->acked += (int)n;
    for (size_t i = 0; m->on_ack && i < n; i++)
        m->on_ack(jobs[i]);
    if (m->on_acked)
        m->on_acked();
    return E_OK;
}

static int memory_release(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    struct memory_source *m = (struct memory_source *)source;
    (void)err;
    m->released += (int)n;
    for (size_t i = 0; m->on_release && i < n; i++)
        m->on_release(jobs[i]);
    return E_OK;
}

static int64_t memory_position(const struct source *s, int32_t partition)
{
    (void)partition;
    return ((const struct memory_source *)s)->next;
}

static void memory_lag(const struct source *s, struct source_lag *out)
{
    (void)s;
    *out = (struct source_lag){
        .messages = -1, .bytes = -1, .bytes_total = -1, .pending = -1, .joined = true};
}

static void memory_close(struct source *s)
{
    (void)s;
}

/* Nothing is taken yet: the whole of it is the caller's to overwrite. */
static struct memory_source memory_source_of(const char *const *lines, int n)
{
    static const struct source_ops ops = {.name = "memory",
                                          .claim = memory_claim,
                                          .service = memory_service,
                                          .ack = memory_ack,
                                          .release = memory_release,
                                          .position = memory_position,
                                          .lag = memory_lag,
                                          .close = memory_close};
    return (struct memory_source){.source = {&ops, "b.jsonl", "b"}, .lines = lines, .n = n};
}

#endif
