/* worker_canary: a few tokens that no job asked for, to tell a broken engine from a bad job.
 * Suspects run only in a process whose engine has ended something well: where it always dies, for a
 * driver's or a card's fault, the canary dies first, with nothing counted, and nobody is convicted.
 * Where probes ask (self_test) one goes first of all, so that a worker is ready once a token came.
 * And where all that a breaker holds has failed, the canary says whether the model is to blame. */
#include "engine/log.h"
#include "worker/worker_impl.h"

enum { CANARY_TOKENS = 4 };
static const int64_t AGAIN_NS = 5000000000;

static struct job *canary_open(struct worker *w)
{
    struct err err = {0};
    struct job *job = job_open(0);
    int32_t *id = job ? job_alloc(job, sizeof *id) : NULL;
    job = id ? job : (job_close(job), NULL);
    if (!job || !(job->prompts = job_alloc(job, sizeof *job->prompts))) {
        job_close(job);
        return NULL;
    }
    *id = w->opts.prepare->params.vocab_size / 3;
    *job->prompts = (struct job_prompt){.ids = id, .n = 1};
    job->n_prompts = job->params.n = 1;
    job->run = job->batch_id = job->custom_id = job->request = job->origin = STR("canary");
    job->kind = JOB_COMPLETION;
    job->params.top_logprobs = -1;
    sampling_init(&job->params.sampling);
    job->params.sampling.max_tokens = CANARY_TOKENS;
    job->params.sampling.params.rng_key = ++w->canaries;
    if (prepare_choices(job, &err) == E_OK)
        return job;
    job_close(job);
    return NULL;
}

bool worker_canary_send(struct worker *w)
{
    int64_t now = clock_mono_ns(w->opts.clock);
    if (w->canary || now < w->canary_ns || !(w->canary = canary_open(w)))
        return false;
    w->canary_ns = now + AGAIN_NS;
    w->with_engine++;
    w->output_bytes += (int64_t)w->canary->output_bytes;
    ready_queue_push(w->ready, &w->canary, 1);
    return true;
}

void worker_canary_first(struct worker *w)
{
    if (w->opts.self_test && !w->proven && !w->draining)
        (void)worker_canary_send(w);
}

bool worker_canary_gone(struct worker *w, struct job *job)
{
    if (job != w->canary)
        return false;
    if (job->result && job->result->status != RESULT_OK)
        LOG(LOG_ERROR, "canary_failed", LOG_STR("error", job->result->error_detail));
    job_close(job);
    w->canary = NULL;
    return true;
}
