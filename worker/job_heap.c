/* job_heap: see job_heap.h. */
#include "worker/job_heap.h"

int job_heap_open(struct job_heap *h, size_t cap, struct err *err)
{
    *h = (struct job_heap){.jobs = mem_alloc(cap, sizeof *h->jobs), .cap = cap};
    return h->jobs ? E_OK : err_set(err, E_FATAL, "worker: no memory for %zu jobs that wait", cap);
}

void job_heap_close(struct job_heap *h)
{
    mem_free(h->jobs);
    *h = (struct job_heap){0};
}

/* Whether a goes before b. */
static bool sooner(const struct job *a, const struct job *b)
{
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
}

void job_heap_push(struct job_heap *h, struct job *job)
{
    CHECK(h->n < h->cap);
    size_t at = h->n++;
    for (; at > 0 && sooner(job, h->jobs[(at - 1) / 2]); at = (at - 1) / 2)
        h->jobs[at] = h->jobs[(at - 1) / 2];
    h->jobs[at] = job;
}

/* Puts `moved` in at `at` or below it. */
static void sink_down(struct job_heap *h, size_t at, struct job *moved)
{
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= h->n)
            break;
        if (child + 1 < h->n && sooner(h->jobs[child + 1], h->jobs[child]))
            child++;
        if (!sooner(h->jobs[child], moved))
            break;
        h->jobs[at] = h->jobs[child];
        at = child;
    }
    h->jobs[at] = moved;
}

struct job *job_heap_pop(struct job_heap *h)
{
    if (h->n == 0)
        return NULL;
    struct job *top = h->jobs[0], *last = h->jobs[--h->n];
    if (h->n)
        sink_down(h, 0, last);
    return top;
}

size_t job_heap_take(struct job_heap *h, bool (*wanted)(const struct job *), struct job **out)
{
    size_t kept = 0, taken = 0;
    for (size_t i = 0; i < h->n; i++)
        if (wanted(h->jobs[i]))
            out[taken++] = h->jobs[i];
        else
            h->jobs[kept++] = h->jobs[i];
    h->n = kept;
    for (size_t at = kept / 2; taken && at-- > 0;)
        sink_down(h, at, h->jobs[at]);
    return taken;
}
