/* intake: the worker's answers reach the source in the worker's order. The source is a fake that
 * holds its thread in a claim, as a slow poll does, until the answers have piled up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <stdio.h>

#include "worker/worker_impl.h"

enum { PARTITION = 255 };

struct fake {
    struct source source;
    atomic_bool in_claim, go_on;
    bool ours;       /* the partition has not been given back */
    int64_t counted; /* acks that move the group's offset */
    char said[32];   /* a: ack, r: release, f: flushed, s: start */
    bool changes;    /* the partition comes and goes before the first claim */
    int n_jobs;      /* for that claim */
};

static void say(struct fake *f, char what, size_t n)
{
    size_t at = strlen(f->said);
    for (size_t i = 0; i < n && at + 1 < sizeof f->said; i++)
        f->said[at++] = what;
}

static int claim(struct source *s, const struct source_budget *budget, struct job **out, int cap,
                 int64_t timeout_ns, bool *drained, struct err *err)
{
    struct fake *f = (struct fake *)s;
    (void)budget, (void)cap, (void)timeout_ns, (void)err;
    atomic_store(&f->in_claim, true);
    while (!atomic_load(&f->go_on))
        clock_sleep_ns(clock_system(), 1000000);
    *drained = true;
    for (int i = 0; i < f->n_jobs; i++) {
        out[i] = job_open(0);
        out[i]->partition = PARTITION;
    }
    return f->n_jobs;
}

static int service(struct source *s, struct source_service *news, struct err *err)
{
    struct fake *f = (struct fake *)s;
    (void)err;
    *news = (struct source_service){.revoked = {PARTITION}, .lost = {PARTITION}};
    news->assigned[0] = PARTITION;
    news->n_revoked = news->n_lost = news->n_assigned = f->changes;
    f->changes = false;
    return E_OK;
}

static int ack(struct source *s, struct job *const *jobs, size_t n, struct err *err)
{
    struct fake *f = (struct fake *)s;
    (void)jobs, (void)err;
    f->counted += f->ours ? (int64_t)n : 0;
    say(f, 'a', n);
    return E_OK;
}

static int release(struct source *s, struct job *const *jobs, size_t n, struct err *err)
{
    (void)jobs, (void)err;
    say((struct fake *)s, 'r', n);
    return E_OK;
}

static int start(struct source *s, int32_t partition, int64_t position, struct err *err)
{
    (void)partition, (void)position, (void)err;
    say((struct fake *)s, 's', 1);
    return E_OK;
}

static int flushed(struct source *s, struct err *err)
{
    (void)err;
    ((struct fake *)s)->ours = false;
    say((struct fake *)s, 'f', 1);
    return E_OK;
}

static void lag(const struct source *s, struct source_lag *out)
{
    (void)s;
    *out = (struct source_lag){.messages = -1};
}

static const struct source_ops ops = {.name = "fake",
                                      .claim = claim,
                                      .service = service,
                                      .ack = ack,
                                      .release = release,
                                      .start = start,
                                      .flushed = flushed,
                                      .lag = lag};

struct rig {
    struct fake fake;
    struct queue *tasks, *returns, *events;
    struct intake *intake;
};

static void open_rig(struct rig *r)
{
    struct err err = {0};
    r->fake.source.ops = &ops;
    r->fake.ours = true;
    assert_int_equal(queue_open(&r->tasks, 16, &err), E_OK);
    assert_int_equal(queue_open(&r->returns, 16, &err), E_OK);
    assert_int_equal(queue_open(&r->events, 16, &err), E_OK);
    struct intake_opts opts = {.source = &r->fake.source,
                               .tasks = r->tasks,
                               .returns = r->returns,
                               .events = r->events,
                               .rows = 100,
                               .bytes = 1 << 20};
    assert_int_equal(intake_open(&r->intake, &opts, &err), E_OK);
    while (!atomic_load(&r->fake.in_claim))
        clock_sleep_ns(clock_system(), 1000000);
}

static void close_rig(struct rig *r)
{
    atomic_store(&r->fake.go_on, true);
    queue_shut(r->returns);
    intake_close(r->intake);
    queue_close(r->tasks);
    queue_close(r->returns);
    queue_close(r->events);
}

static struct item give(int kind)
{
    return (struct item){kind, job_open(0)};
}

/* A revoked partition's last watermark is stored with the flush. What ends behind it is no part of
 * that watermark, so its ack must not move the offset that the source commits as it gives back. */
static void an_ack_behind_a_flush_comes_behind_it(void **state)
{
    static struct rig r;
    (void)state;
    open_rig(&r);
    struct start *at = mem_alloc(1, sizeof *at);
    assert_non_null(at);
    struct item items[] = {give(TASK_RELEASE), give(TASK_ACK), {TASK_FLUSHED, NULL},
                           give(TASK_ACK),     give(TASK_ACK), {TASK_START, at},
                           give(TASK_ACK)};
    assert_true(queue_push(r.returns, items, TR_COUNT(items)));
    close_rig(&r);
    assert_string_equal(r.fake.said, "arfaasa");
    assert_int_equal(r.fake.counted, 1);
}

/* Taken back, lost before the worker could flush it, and given again: its next job must be in the
 * worker's list, else its row is acknowledged and no watermark ever counts it. */
static void a_job_has_the_epoch_of_its_partition(void **state)
{
    static struct rig r;
    static struct worker w; /* as large as its arrays */
    struct item event, task;
    (void)state;
    r.fake.changes = true;
    r.fake.n_jobs = 1;
    open_rig(&r);
    w.returns = r.returns;
    static const int kinds[] = {EVENT_REVOKED, EVENT_LOST, EVENT_ASSIGNED};
    for (size_t i = 0; i < TR_COUNT(kinds); i++) {
        assert_int_equal(queue_pop(r.events, &event, 1, -1), 1);
        assert_int_equal(event.kind, kinds[i]);
        assert_int_equal(item_partition(&event), PARTITION);
        worker_partition_event(&w, &event);
    }
    worker_partition_flush(&w);
    assert_true(w.out.partitions[PARTITION].wants_start);
    atomic_store(&r.fake.go_on, true);
    assert_int_equal(queue_pop(r.tasks, &task, 1, -1), 1);
    struct job *job = task.ptr;
    assert_int_equal(w.out.partitions[PARTITION].epoch, job->epoch);
    job_close(job);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_ack_behind_a_flush_comes_behind_it),
                                       cmocka_unit_test(a_job_has_the_epoch_of_its_partition)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
