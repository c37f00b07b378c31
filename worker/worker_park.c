/* worker_park: sequences between two workers. A drain takes jobs off the engines; what they have
 * generated goes to `parked`, their attempt is given back, and their messages go to whoever is
 * next, in this order. A worker that is handed a message with parked states reads them between the
 * count of the attempt and the ready queue. The drain's clock is in worker_drain.c. */
#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/worker_impl.h"

static const size_t PARK_BYTES_MAX = 4 << 20; /* of one transaction; one job may pass it */

static const char *revision_of(const struct worker *w, const struct job *job)
{
    return job->config ? job->config->revision : w->opts.result->config_revision;
}

void worker_park_close(struct worker *w)
{
    text_close(&w->parking.text);
}

static struct parked_shape shape_of(const struct worker *w, const struct job_choice *c)
{
    const struct job *job = c->job;
    struct parked_shape s = {.n_top = c->sampling.params.n_top,
                             .prompt_top = c->sampling.prompt_logprobs,
                             .n_prompt = job->prompts[c->prompt].n};
    memcpy(s.request_sha256, job->sha256, sizeof s.request_sha256);
    parked_engine_sha256(w->opts.result->fingerprint, revision_of(w, job), w->opts.result->weights,
                         s.engine_sha256);
    return s;
}

static struct key key_of(const struct job *job)
{
    return (struct key){job->run, job->batch_id, job->custom_id};
}

/* ---- out ---- */

void worker_undone(struct worker *w, struct job *job)
{
    w->with_engine--;
    w->output_bytes -= (int64_t)job->output_bytes;
    if (!worker_canary_gone(w, job))
        list_add(&w->parking.undone, job);
}

/* What the choice has cost, over all its lives. */
static struct parked_life life_of(const struct worker *w, const struct job_choice *c)
{
    const struct finished *f = &c->finished;
    struct parked_life life = c->before;
    life.device_ns += f->device_ns;
    if (c->n_resumed == 0) {
        life.n_cached = f->n_cached;
        life.started_ns = f->started_ns > 0 ? f->started_ns + w->opts.result->mono_to_wall_ns : 0;
    }
    return life;
}

/* The state of one choice; what is on record already is not written again. Ended choices of a job
 * that has not ended park too. The bytes' place is filled in when all are there. */
static void add_state(struct worker *w, struct job *job, int32_t choice)
{
    struct parking *p = &w->parking;
    struct job_choice *c = &job->choices[choice];
    bool failed = c->finished.end.reason == FINISH_FAILED;
    if (c->out.n <= c->n_resumed || failed)
        return;
    struct parked_shape shape = shape_of(w, c);
    struct parked_life life = life_of(w, c);
    size_t bytes = parked_state_write(&p->text, &shape, &life, &c->out);
    if (bytes == 0) {
        LOG(LOG_WARN, "park_failed", LOG_STR("custom_id", job->custom_id),
            LOG_S("error", "no memory"));
        text_reset(&p->text);
        p->n_states = 0; /* the jobs of this batch run again from their beginning */
        return;
    }
    p->states[p->n_states++] = (struct parked){.key = key_of(job),
                                               .choice = choice,
                                               .n = c->out.n,
                                               .state = {NULL, bytes},
                                               .config_revision = str_of(revision_of(w, job)),
                                               .worker = str_of(w->opts.result->worker),
                                               .parked_ns = clock_wall_ns(w->opts.clock)};
}

/* The next jobs off the list: their states, and their keys for the count. */
static void next_batch(struct worker *w)
{
    struct parking *p = &w->parking;
    size_t at = 0;
    text_reset(&p->text);
    p->n_jobs = p->n_states = 0;
    while (p->n_jobs < PARK_JOBS_MAX && p->undone.first && p->text.len < PARK_BYTES_MAX &&
           p->n_states + (size_t)p->undone.first->n_choices <= PARK_STATES_MAX) {
        struct job *job = list_take(&p->undone);
        p->keys[p->n_jobs] = key_of(job);
        p->jobs[p->n_jobs++] = job;
        /* An orphan's next owner has begun it already. */
        for (int32_t i = 0; i < job->n_choices && !outstanding_orphaned(&w->out, job); i++)
            add_state(w, job, i);
    }
    for (size_t i = 0; i < p->n_states; i++) {
        p->states[i].state.ptr = p->text.ptr + at;
        at += p->states[i].state.len;
    }
}

static void send_back(struct worker *w)
{
    struct parking *p = &w->parking;
    FAILPOINT("drain.before_back");
    p->back.keys = p->keys;
    p->back.n = p->n_jobs;
    p->back.delta = COUNT_BACK;
    worker_call_sink(w, &p->back, SINK_COUNT);
}

static void give_to_source(struct worker *w, struct job *job)
{
    for (const struct job *twin = job; twin; twin = twin->same) {
        outstanding_hold(&w->out, twin);
        w->parking.released++;
    }
    worker_release(w, job);
}

/* What has not been counted goes back as it is. */
static void release_waiting(struct worker *w)
{
    struct job *job;
    while ((job = job_heap_pop(&w->out.waiting)) || (job = suspects_take(&w->suspects)) ||
           (job = list_take(&w->to_look_up)) || (job = list_take(&w->configuring.to_pin)))
        give_to_source(w, job);
}

static void after_park(struct worker *w, const struct sink_call *c)
{
    struct parking *p = &w->parking;
    int64_t tokens = 0;
    FAILPOINT("drain.after_park");
    for (size_t i = 0; i < p->n_states; i++)
        tokens += p->states[i].n;
    if (c->rc < 0) {
        LOG(LOG_WARN, "park_failed", LOG_I("sequences", p->n_states), LOG_S("error", c->err.msg));
    } else {
        w->summary->parked += (int64_t)p->n_states;
        w->summary->parked_tokens += tokens;
        LOG(LOG_INFO, "parked", LOG_I("sequences", p->n_states), LOG_I("tokens", tokens),
            LOG_I("bytes", p->text.len));
    }
    send_back(w);
}

/* Their messages are the source's again whatever became of the call: an attempt too many makes
 * nobody dead. Where the time is over they stay ours until the end, which asks once more. */
static void after_back(struct worker *w, const struct sink_call *c)
{
    struct parking *p = &w->parking;
    bool once_more = c->rc == E_RETRY && w->gave_up;
    if (c->rc < 0 && !once_more)
        LOG(LOG_WARN, "attempts_not_returned", LOG_I("jobs", p->n_jobs),
            LOG_S("error", c->err.msg));
    for (size_t i = 0; i < p->n_jobs && !once_more; i++)
        give_to_source(w, p->jobs[i]);
    p->n_jobs = 0;
}

/* ---- in ---- */

/* On the sink's thread; nobody else looks at a job that is being unparked. */
static void take_state(void *ctx, size_t at, const struct parked *state)
{
    struct worker *w = ctx;
    struct job *job = w->parking.unparking[at];
    struct err err = {0};
    if (state->choice < 0 || state->choice >= job->n_choices)
        return;
    struct job_choice *c = &job->choices[state->choice];
    struct parked_shape shape = shape_of(w, c);
    if (parked_state_read(state->state, &shape, &c->before, &c->out, &err) < 0) {
        c->before = (struct parked_life){0};
        LOG(LOG_WARN, "parked_refused", LOG_STR("custom_id", job->custom_id),
            LOG_I("choice", state->choice), LOG_I("tokens", state->n), LOG_S("reason", err.type),
            LOG_STR("config_revision", state->config_revision),
            LOG_STR("parked_by", state->worker));
    }
    c->n_resumed = c->out.n;
}

static void send_unparks(struct worker *w)
{
    struct parking *p = &w->parking;
    size_t n = 0;
    for (struct job *job; n < UNPARK_MAX && (job = list_take(&p->to_unpark)); n++) {
        p->unparking[n] = job;
        p->unpark_keys[n] = key_of(job);
    }
    if (n == 0)
        return;
    p->unpark.keys = p->unpark_keys;
    p->unpark.n = n;
    p->unpark.take = take_state;
    p->unpark.take_ctx = w;
    FAILPOINT("s5.before_unpark");
    worker_call_sink(w, &p->unpark, SINK_UNPARK);
}

static void after_unpark(struct worker *w, const struct sink_call *c)
{
    struct parking *p = &w->parking;
    int64_t sequences = 0, tokens = 0;
    for (size_t k = 0; k < c->n; k++)
        for (int32_t i = 0; i < p->unparking[k]->n_choices; i++) {
            const struct job_choice *choice = &p->unparking[k]->choices[i];
            sequences += choice->n_resumed > 0;
            tokens += choice->n_resumed;
        }
    if (c->rc < 0)
        LOG(LOG_WARN, "unpark_failed", LOG_I("jobs", c->n), LOG_S("error", c->err.msg));
    if (w->draining) {
        for (size_t k = 0; k < c->n; k++)
            worker_undone(w, p->unparking[k]);
        return;
    }
    w->summary->resumed += sequences;
    w->summary->resumed_tokens += tokens;
    LOG(LOG_INFO, "resumed", LOG_I("jobs", c->n), LOG_I("sequences", sequences),
        LOG_I("tokens", tokens));
    ready_queue_push(w->ready, p->unparking, c->n);
}

void worker_to_engine(struct worker *w, struct job *const *jobs, size_t n)
{
    struct job *ready[COUNT_MAX];
    size_t n_ready = 0;
    CHECK(n <= COUNT_MAX);
    for (size_t i = 0; i < n; i++)
        if (w->draining)
            worker_undone(w, jobs[i]);
        else if (jobs[i]->parked)
            list_add(&w->parking.to_unpark, jobs[i]);
        else
            ready[n_ready++] = jobs[i];
    ready_queue_push(w->ready, ready, n_ready);
}

/* ---- the worker's hooks ---- */

static bool everyone(const struct job *job)
{
    (void)job;
    return true;
}

void worker_park_step(struct worker *w)
{
    struct parking *p = &w->parking;
    if (!w->draining) {
        if (!p->unpark.busy)
            send_unparks(w);
        return;
    }
    worker_breaker_drain(w);
    release_waiting(w);
    for (struct job *job; (job = list_take(&p->to_unpark));)
        worker_undone(w, job);
    size_t n = ready_queue_take(w->ready, everyone, w->cancelling.taken);
    for (size_t i = 0; i < n; i++)
        worker_undone(w, w->cancelling.taken[i]);
    if (p->park.busy || p->back.busy || p->undone.n == 0)
        return;
    next_batch(w);
    if (p->n_states == 0) {
        send_back(w);
        return;
    }
    p->park.parked = p->states;
    p->park.n = p->n_states;
    FAILPOINT("drain.before_park");
    worker_call_sink(w, &p->park, SINK_PARK);
}

bool worker_park_answer(struct worker *w, struct sink_call *c)
{
    struct parking *p = &w->parking;
    if (c == &p->park)
        after_park(w, c);
    else if (c == &p->back)
        after_back(w, c);
    else if (c == &p->unpark && (c->rc == E_OK || w->draining))
        after_unpark(w, c);
    else
        return false;
    return true;
}

bool worker_park_busy(const struct worker *w)
{
    const struct parking *p = &w->parking;
    return p->park.busy || p->back.busy || p->unpark.busy;
}

bool worker_park_empty(const struct worker *w)
{
    return w->parking.undone.n == 0 && w->parking.to_unpark.n == 0 && worker_config_empty(w);
}
