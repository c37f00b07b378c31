/* worker_cancel: cancellations and deadlines that come while a job waits or runs. The sink is asked
 * every few seconds, in one call about everything that is here; its lookup has told of earlier
 * ones. A deadline is passed a minute after its time: clocks differ between machines. */
#include "engine/log.h"
#include "worker/worker_impl.h"

static const int64_t ASK_NS = 5000000000, SLACK_NS = 60000000000;

int worker_cancel_open(struct worker *w, struct err *err)
{
    struct cancelling *c = &w->cancelling;
    size_t cap = w->out.cap;
    c->deadline_ns = INT64_MAX;
    c->keys = mem_alloc(cap, sizeof *c->keys);
    c->answers = mem_alloc(cap, sizeof *c->answers);
    c->taken = mem_alloc(cap, sizeof *c->taken);
    if (c->keys && c->answers && c->taken)
        return E_OK;
    return err_set(err, E_FATAL, "worker: no memory for %zu cancellations", cap);
}

void worker_cancel_close(struct worker *w)
{
    struct cancelling *c = &w->cancelling;
    text_close(&c->text);
    mem_free(c->keys);
    mem_free(c->answers);
    mem_free((void *)c->taken);
}

/* ---- cutting ---- */

static bool is_cut(const struct job *job)
{
    return atomic_load(&job->cut) != CUT_NONE;
}

void worker_refuse_cut(struct worker *w, struct job *job)
{
    if (atomic_load(&job->cut) == CUT_EXPIRED)
        worker_refuse(w, job, RESULT_EXPIRED, "expired", "its deadline passed before it had ended");
    else
        worker_refuse(w, job, RESULT_CANCELLED, "cancelled", "a cancellation was asked for");
}

void worker_cut(struct worker *w, struct job *job, enum job_cut why)
{
    if (is_cut(job))
        return;
    atomic_store(&job->cut, (int)why);
    LOG(LOG_DEBUG, "job_cut", LOG_STR("custom_id", job->custom_id),
        LOG_S("why", why == CUT_EXPIRED ? "expired" : "cancelled"));
    w->cancelling.n++;
}

/* Those that were cut since the last sweep: rows for what waits, word to the engines. */
static void sweep(struct worker *w)
{
    struct cancelling *c = &w->cancelling;
    c->n = 0;
    size_t n = job_heap_take(&w->out.waiting, is_cut, c->taken);
    for (int64_t left = w->suspects.n; left > 0; left--) {
        struct job *job = suspects_take(&w->suspects);
        if (is_cut(job))
            c->taken[n++] = job;
        else
            list_add(&w->parking.aside, job);
    }
    for (struct job *job; (job = list_take(&w->parking.aside));)
        suspects_add(&w->suspects, job);
    for (size_t i = 0; i < n; i++)
        worker_refuse_cut(w, c->taken[i]);
    n = ready_queue_take(w->ready, is_cut, c->taken);
    for (size_t i = 0; i < n; i++) {
        w->with_engine--;
        w->output_bytes -= (int64_t)c->taken[i]->output_bytes;
        worker_refuse_cut(w, c->taken[i]);
    }
    engine_group_cut(w->engine);
}

/* The job waits or runs here under its key; a repeated message goes with it. */
static bool at_work(const struct worker *w, const struct job *job)
{
    return (job->stage == STAGE_WAITING || job->stage == STAGE_COUNTED) &&
           outstanding_find(&w->out, job) == job;
}

/* ---- deadlines ---- */

void worker_cancel_watch(struct worker *w, const struct job *job)
{
    if (job->deadline_ns)
        w->cancelling.deadline_ns = TR_MIN(w->cancelling.deadline_ns, job->deadline_ns);
}

bool worker_deadline_passed(const struct worker *w, const struct job *job)
{
    return job->deadline_ns && clock_wall_ns(w->opts.clock) - SLACK_NS > job->deadline_ns;
}

static void mind_deadline(void *ctx, struct job *job)
{
    struct worker *w = ctx;
    if (!job->deadline_ns || !at_work(w, job))
        return;
    if (worker_deadline_passed(w, job))
        worker_cut(w, job, CUT_EXPIRED);
    else
        worker_cancel_watch(w, job);
}

/* ---- cancellations ---- */

static struct str next_str(const struct text *t, size_t *at, size_t len)
{
    struct str s = {t->ptr + *at, len};
    *at += len;
    return s;
}

static void collect(void *ctx, struct job *job)
{
    struct worker *w = ctx;
    struct cancelling *c = &w->cancelling;
    if (!at_work(w, job) || is_cut(job))
        return;
    text_add(&c->text, job->run);
    text_add(&c->text, job->batch_id);
    text_add(&c->text, job->custom_id);
    c->keys[c->call.n++] =
        (struct key){{NULL, job->run.len}, {NULL, job->batch_id.len}, {NULL, job->custom_id.len}};
}

static void ask(struct worker *w)
{
    struct cancelling *c = &w->cancelling;
    size_t at = 0;
    text_reset(&c->text);
    c->call.n = 0;
    outstanding_each(&w->out, collect, w);
    if (c->text.failed) {
        LOG(LOG_WARN, "cancellations_not_asked", LOG_S("error", "no memory"));
        return;
    }
    for (size_t i = 0; i < c->call.n; i++) {
        struct key *k = &c->keys[i];
        k->run = next_str(&c->text, &at, k->run.len);
        k->batch_id = next_str(&c->text, &at, k->batch_id.len);
        k->custom_id = next_str(&c->text, &at, k->custom_id.len);
    }
    c->call.keys = c->keys;
    c->call.cancelled = c->answers;
    if (c->call.n)
        worker_call_sink(w, &c->call, SINK_CANCELLED);
}

/* Messages of one key are in one partition, in order: what it takes back has come before it, and
 * after a restart both come again. What has its row already stays as it is. */
void worker_take_back(struct worker *w, struct job *tombstone)
{
    const struct partition *p = &w->out.partitions[tombstone->partition];
    for (struct job *job = p->first; job; job = job->behind) {
        bool named = !job->tombstone && job->message_key.ptr &&
                     str_eq(job->message_key, tombstone->message_key);
        struct job *keyed = named ? outstanding_find(&w->out, job) : NULL;
        if (keyed && (keyed->stage == STAGE_LOOKUP || at_work(w, keyed)))
            worker_cut(w, keyed, CUT_CANCELLED);
    }
    worker_present(w, tombstone);
}

bool worker_cancel_answer(struct worker *w, struct sink_call *c)
{
    if (c != &w->cancelling.call || c->rc < 0)
        return false;
    for (size_t i = 0; i < c->n; i++) {
        if (!c->cancelled[i])
            continue;
        struct job *job = outstanding_find_key(&w->out, &c->keys[i]);
        if (job && at_work(w, job))
            worker_cut(w, job, CUT_CANCELLED);
    }
    return true;
}

void worker_cancel_step(struct worker *w)
{
    struct cancelling *c = &w->cancelling;
    int64_t now = clock_mono_ns(w->opts.clock);
    if (w->draining)
        return;
    if (c->deadline_ns < clock_wall_ns(w->opts.clock) - SLACK_NS) {
        c->deadline_ns = INT64_MAX;
        outstanding_each(&w->out, mind_deadline, w);
    }
    if (!c->call.busy && now >= c->ask_ns) {
        if (c->ask_ns)
            ask(w);
        c->ask_ns = now + (w->opts.cancel_ns > 0 ? w->opts.cancel_ns : ASK_NS);
    }
    if (c->n)
        sweep(w);
}
