/* engine_thread: submit, step, hand on. See threads.h. The engine belongs to this thread; several
 * of them (engine_group.c) take from one ready queue. */
#include "worker/engine_thread_impl.h"

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/job/prepare.h"

enum { FINISHED_BATCH = 256 };
static const int64_t IDLE_WAIT_NS = 50000000, STATS_EVERY_NS = 50000000;

void engine_thread_hand_on(struct engine_thread *et, struct job *job)
{
    struct item item = {TASK_RENDER, job};
    engine_thread_leave(et, job);
    atomic_fetch_sub(&et->opts.team->members[et->opts.member].held, 1);
    job->finished_ns = clock_wall_ns(et->opts.clock);
    queue_push(et->opts.tasks, &item, 1);
    atomic_fetch_add(&et->finished, 1);
}

/* A choice that the engine refused counts as one that ended at once; the row is invalid. */
static void refuse(struct engine_thread *et, struct job_choice *c, const struct err *err)
{
    c->finished = (struct finished){
        .end = {.reason = FINISH_FAILED, .stop_id = -1, .stop_string = -1}, .err = *err};
    if (c->job->err.code == 0)
        c->job->err = *err;
    if (--c->job->n_left == 0)
        engine_thread_hand_on(et, c->job);
}

/* Whether the next ready job is this thread's to take: it holds less than its share, or nobody else
 * has room. One that holds nothing always may, so the queue never waits for a thread that waits. */
static bool may_take(const struct engine_thread *et)
{
    struct engine_team *team = et->opts.team;
    long long mine = atomic_load(&team->members[et->opts.member].held), all = 0;
    int alive = 0, with_room = 0;
    if (team->n == 1 || mine == 0)
        return true;
    for (int i = 0; i < team->n; i++) {
        if (atomic_load(&team->members[i].gone))
            continue;
        alive++;
        with_room += i != et->opts.member && !atomic_load(&team->members[i].full);
        all += atomic_load(&team->members[i].held);
    }
    all += (long long)ready_queue_length(et->opts.ready);
    return with_room == 0 || mine * alive < all;
}

/* Fills the engine. False: it failed. */
static bool submit(struct engine_thread *et, int64_t wait_ns)
{
    atomic_bool *full = &et->opts.team->members[et->opts.member].full;
    for (;;) {
        if (!et->current) {
            struct job *next = may_take(et) ? ready_queue_pop(et->opts.ready, wait_ns) : NULL;
            if (!next)
                return true;
            atomic_fetch_add(&et->opts.team->members[et->opts.member].held, 1);
            wait_ns = 0;
            et->current = next;
            et->next_choice = 0;
            engine_thread_enter(et, next);
        }
        struct job *job = et->current;
        if (atomic_load(&job->cut)) {
            et->current = NULL;
            engine_drain_end_rest(et, job, et->next_choice);
            continue;
        }
        struct job_choice *c = &job->choices[et->next_choice];
        struct request r = {.tag = (uint64_t)(uintptr_t)c,
                            .prompt = job->prompts[c->prompt].ids,
                            .n_prompt = job->prompts[c->prompt].n,
                            .sampling = c->sampling,
                            .out = &c->out};
        struct err err = {0};
        FAILPOINT("s6.before_submit");
        int rc = engine_submit(et->opts.engine, &r, &err);
        atomic_store(full, rc == ENGINE_FULL);
        if (rc == ENGINE_FULL)
            return true;
        if (rc < 0 && rc != E_JOB) {
            et->err = err;
            return false;
        }
        c->in_engine = rc == ENGINE_ACCEPTED;
        job->submitted = true;
        FAILPOINT("s6.after_submit");
        bool last = ++et->next_choice == job->n_choices;
        if (last)
            et->current = NULL;
        if (rc == E_JOB)
            refuse(et, c, &err); /* the job may be gone behind this */
    }
}

static void note_stats(struct engine_thread *et)
{
    int64_t now = clock_mono_ns(et->opts.clock);
    if (now - et->stats_ns < STATS_EVERY_NS)
        return;
    et->stats_ns = now;
    pthread_mutex_lock(&et->mutex);
    engine_stats(et->opts.engine, &et->stats);
    pthread_mutex_unlock(&et->mutex);
}

static void take_finished(struct engine_thread *et, const struct finished *finished, int n)
{
    for (int i = 0; i < n; i++) {
        struct job_choice *c = (struct job_choice *)(uintptr_t)finished[i].tag;
        c->finished = finished[i];
        c->in_engine = false;
        engine_drain_note_end(et, c);
        if (--c->job->n_left == 0)
            engine_thread_hand_on(et, c->job);
    }
}

static int run(struct engine_thread *et, struct finished *finished)
{
    while (!atomic_load(&et->stop)) {
        supervised_beat(et->opts.self, et->opts.member);
        int64_t until_ns = atomic_load(&et->drain_until_ns);
        engine_drain_mind_cuts(et);
        if (until_ns != INT64_MAX)
            engine_drain_pass(et, until_ns);
        bool idle = engine_idle(et->opts.engine);
        if (until_ns != INT64_MAX && idle && !et->running)
            return EVENT_ENGINE_IDLE;
        bool hold = atomic_load(&et->hold);
        if (until_ns == INT64_MAX && !hold && !submit(et, idle ? IDLE_WAIT_NS : 0))
            return EVENT_ENGINE_FAILED;
        if (idle && hold)
            clock_sleep_ns(et->opts.clock, IDLE_WAIT_NS);
        FAILPOINT("s6.before_step");
        int n = engine_step(et->opts.engine, finished, FINISHED_BATCH, &et->err);
        if (n < 0)
            return EVENT_ENGINE_FAILED;
        if (n > 0)
            FAILPOINT("s6.after_finish");
        engine_drain_note_step(et);
        take_finished(et, finished, n);
        note_stats(et);
    }
    return EVENT_ENGINE_IDLE;
}

static void *engine_main(void *arg)
{
    struct engine_thread *et = arg;
    struct finished *finished = mem_alloc(FINISHED_BATCH, sizeof *finished);
    struct item failed = {EVENT_ENGINE_FAILED, NULL}, idle = {EVENT_ENGINE_IDLE, NULL};
    int end = EVENT_ENGINE_FAILED;
    supervised_arm(et->opts.self, et->opts.member, true);
    if (finished)
        end = run(et, finished);
    else
        err_set(&et->err, E_FATAL, "engine thread: no memory");
    supervised_arm(et->opts.self, et->opts.member, false);
    mem_free(finished);
    et->stats_ns = INT64_MIN / 2;
    note_stats(et);
    LOG(LOG_INFO, "engine_left", LOG_I("engine", et->opts.member),
        LOG_I("jobs", atomic_load(&et->finished)), LOG_I("steps", et->stats.steps),
        LOG_S("error", et->err.msg));
    atomic_store(&et->opts.team->members[et->opts.member].gone, true);
    if (end == EVENT_ENGINE_FAILED)
        queue_push(et->opts.events, &failed, 1);
    if (atomic_fetch_sub(&et->opts.team->alive, 1) == 1)
        queue_push(et->opts.events, &idle, 1);
    return NULL;
}

int engine_thread_open(struct engine_thread **out, const struct engine_thread_opts *opts,
                       struct err *err)
{
    struct engine_thread *et = mem_alloc(1, sizeof *et);
    if (!et)
        return err_set(err, E_FATAL, "engine thread: no memory");
    et->opts = *opts;
    et->stats_ns = INT64_MIN / 2;
    atomic_store(&et->drain_until_ns, INT64_MAX);
    pthread_mutex_init(&et->mutex, NULL);
    engine_stats(opts->engine, &et->stats);
    if (pthread_create(&et->thread, NULL, engine_main, et) != 0) {
        pthread_mutex_destroy(&et->mutex);
        mem_free(et);
        return err_set(err, E_FATAL, "engine thread: cannot start");
    }
    *out = et;
    return E_OK;
}

void engine_thread_drain(struct engine_thread *et, int64_t until_ns)
{
    atomic_store(&et->drain_until_ns, until_ns);
}

void engine_thread_cut(struct engine_thread *et)
{
    atomic_fetch_add(&et->cuts, 1);
}

void engine_thread_stop(struct engine_thread *et)
{
    atomic_store(&et->stop, true);
}

void engine_thread_hold(struct engine_thread *et, bool hold)
{
    atomic_store(&et->hold, hold);
}

int64_t engine_thread_finished(struct engine_thread *et)
{
    return atomic_load(&et->finished);
}

void engine_thread_stats(struct engine_thread *et, struct engine_stats *out)
{
    pthread_mutex_lock(&et->mutex);
    *out = et->stats;
    pthread_mutex_unlock(&et->mutex);
}

const struct err *engine_thread_error(const struct engine_thread *et)
{
    return &et->err;
}

void engine_thread_close(struct engine_thread *et)
{
    if (!et)
        return;
    engine_thread_stop(et);
    pthread_join(et->thread, NULL);
    pthread_mutex_destroy(&et->mutex);
    mem_free(et);
}
