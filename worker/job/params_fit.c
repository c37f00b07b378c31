/* params_fit: what can only be said once the prompts are counted: the token limits, and the
 * parameters in effect as the row's `params`. See job.h. */
#include "worker/job/job.h"

static void write_params(const struct job *job, struct text *t)
{
    const struct job_params *p = &job->params;
    const struct sampling *s = &p->sampling;
    text_f(t, "{\"n\":%d,\"max_tokens\":%d,\"temperature\":", p->n, s->max_tokens);
    text_json_float(t, s->params.temperature);
    text_add(t, STR(",\"top_p\":"));
    text_json_float(t, s->params.top_p);
    text_f(t, ",\"top_k\":%d,\"min_p\":", s->params.top_k);
    text_json_float(t, s->params.min_p);
    text_add(t, STR(",\"repetition_penalty\":"));
    text_json_float(t, s->params.repetition_penalty);
    text_add(t, STR(",\"frequency_penalty\":"));
    text_json_float(t, s->params.frequency_penalty);
    text_add(t, STR(",\"presence_penalty\":"));
    text_json_float(t, s->params.presence_penalty);
    text_f(t, ",\"min_tokens\":%d,\"ignore_eos\":%s", s->min_tokens,
           s->ignore_eos ? "true" : "false");
    for (int32_t i = 0; i < s->n_stop_strings; i++) {
        text_add(t, i ? STR(",") : STR(",\"stop\":["));
        text_json_str(t, s->stop_strings[i]);
    }
    text_add(t, s->n_stop_strings ? STR("]") : STR(""));
    for (int32_t i = 0; i < s->n_stop_ids; i++)
        text_f(t, "%s%d", i ? "," : ",\"stop_token_ids\":[", s->stop_ids[i]);
    text_add(t, s->n_stop_ids ? STR("]") : STR(""));
    if (s->params.n_bias)
        text_f(t, ",\"logit_bias_ids\":%d", s->params.n_bias);
    if (p->logprobs_given)
        text_f(t, ",\"top_logprobs\":%d", TR_MAX(p->top_logprobs, 0));
    if (s->prompt_logprobs >= 0)
        text_f(t, ",\"prompt_logprobs\":%d", s->prompt_logprobs);
    if (s->max_thinking_tokens >= 0)
        text_f(t, ",\"max_thinking_tokens\":%d", s->max_thinking_tokens);
    if (s->loop_tokens)
        text_f(t, ",\"loop_tokens\":%d", s->loop_tokens);
    text_char(t, '}');
}

void params_fit(struct job *job, const struct params_context *ctx, struct text *scratch)
{
    struct sampling *s = &job->params.sampling;
    int32_t longest = 0;
    for (int32_t i = 0; i < job->n_prompts; i++)
        longest = TR_MAX(longest, job->prompts[i].n);
    int32_t room = ctx->max_model_len - longest;
    if (room < 1)
        job_fail(job, "prompt_too_long",
                 "the prompt has %d tokens, the context %d: want at most %d", longest,
                 ctx->max_model_len, ctx->max_model_len - 1);
    else if (s->max_tokens > room && job->params.max_tokens_given)
        job_fail(job, "prompt_too_long",
                 "the prompt's %d tokens and max_tokens %d need %lld, the context has %d", longest,
                 s->max_tokens, (long long)longest + s->max_tokens, ctx->max_model_len);
    else if (s->max_tokens > room)
        s->max_tokens = room;
    if (s->min_tokens > s->max_tokens)
        job_fail(job, "bad_value", "min_tokens: want at most max_tokens %d, got %d", s->max_tokens,
                 s->min_tokens);
    text_reset(scratch);
    write_params(job, scratch);
    job->params_json = job_str(job, text_view(scratch));
}
