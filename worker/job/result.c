/* result: see result.h. The logprobs' JSON is in result_logprobs.c, what an answer is in
 * result_answer.c, the thread's buffers are result_scratch.c's. */
#include "worker/job/result.h"

#include <stdio.h>

#include "worker/job/job_config.h"
#include "worker/job/result_logprobs.h"

/* Appends bytes as valid UTF-8 without NULs; *changed says whether anything was replaced. */
static void add_clean(struct text *out, struct str raw, bool *changed)
{
    bool broken = false;
    size_t from = out->len;
    if (raw.len == 0)
        return;
    char *at = text_room(out, raw.len * 3);
    if (!at)
        return;
    size_t n = utf8_repair(raw, at, raw.len * 3, &broken);
    CHECK(n <= raw.len * 3);
    out->len += n;
    *changed = *changed || broken;
    size_t nuls = 0;
    for (size_t i = from; i < out->len; i++)
        nuls += out->ptr[i] == '\0';
    if (!nuls || !text_room(out, 2 * nuls))
        return;
    *changed = true;
    for (size_t i = out->len, to = out->len + 2 * nuls; i-- > from;) {
        if (out->ptr[i] == '\0')
            memcpy(out->ptr + (to -= 3), "\xEF\xBF\xBD", 3);
        else
            out->ptr[--to] = out->ptr[i];
    }
    out->len += 2 * nuls;
}

/* Copies in the job's memory. *ok becomes false where one is refused, or the text is not whole: a
 * row without it would be taken for all that there was. */
static struct str kept(struct job *job, struct str s, bool *ok)
{
    struct str copy = job_str(job, s);
    *ok = *ok && copy.ptr;
    return copy;
}

static struct str kept_text(struct job *job, const struct text *t, bool *ok)
{
    *ok = *ok && !t->failed;
    return kept(job, text_view(t), ok);
}

/* As valid UTF-8 without NULs. */
static struct str kept_clean(struct job *job, struct str s, struct text *scratch, bool *ok)
{
    bool ignored = false;
    text_reset(scratch);
    add_clean(scratch, s, &ignored);
    return kept_text(job, scratch, ok);
}

struct str result_token_bytes(const struct loaded_model *model, int32_t id, char *one)
{
    if (model->tokenizer)
        return tokenizer_token_bytes(model->tokenizer, id);
    *one = (char)(' ' + id % 95); /* the simulated engine without a folder writes ASCII */
    return (struct str){one, 1};
}

/* A choice's parts, as spans of s->raw, and the same as clean text. */
struct parts {
    struct str raw;               /* all of it, cut at a stop string */
    bool split;                   /* reasoning is apart from the answer */
    bool answered;                /* an answer was reached */
    struct str reasoning, answer; /* within raw, trimmed where split */
    int32_t reasoning_tokens;
    bool sanitized;
};

/* Bytes of all ids in s->raw, with each id's offset. */
static bool concatenate(const struct job_choice *c, const struct loaded_model *model,
                        struct result_scratch *s)
{
    const struct generated *g = &c->out;
    size_t n = (size_t)g->n;
    if (n + 1 > s->offsets_cap) {
        size_t cap = TR_MAX(n + 1, s->offsets_cap * 2);
        mem_free(s->offsets);
        s->offsets = mem_alloc(cap, sizeof *s->offsets);
        s->offsets_cap = s->offsets ? cap : 0;
        if (!s->offsets)
            return false;
    }
    int32_t stop_id = c->finished.end.stop_id;
    text_reset(&s->raw);
    for (size_t i = 0; i < n; i++) {
        char one;
        s->offsets[i] = s->raw.len;
        bool stop =
            i + 1 == n && stop_id >= 0 && g->ids[i] == stop_id && !c->sampling.include_stop_str;
        if (!stop && !(model->tokenizer && tokenizer_is_special(model->tokenizer, g->ids[i])))
            text_add(&s->raw, result_token_bytes(model, g->ids[i], &one));
    }
    s->offsets[n] = s->raw.len;
    return !s->raw.failed;
}

static struct str span(const struct result_scratch *s, size_t from, size_t to, size_t cut)
{
    from = TR_MIN(from, cut);
    to = TR_MIN(to, cut);
    return (struct str){s->raw.ptr ? s->raw.ptr + from : "", to - from};
}

static void take_parts(struct parts *p, const struct job_choice *c,
                       const struct loaded_model *model, const struct result_scratch *s)
{
    const struct generated *g = &c->out;
    const struct sequence_rules *rules = &model->rules;
    const struct sequence_end *end = &c->finished.end;
    size_t n = (size_t)g->n, cut = s->raw.len, close_at = n;
    if (end->stop_string >= 0)
        cut = TR_MIN(cut, end->raw_bytes);
    bool opens = n > 0 && rules->think_open_id >= 0 && g->ids[0] == rules->think_open_id;
    *p = (struct parts){.raw = span(s, 0, cut, cut), .answered = true};
    p->answer = p->raw;
    p->split = opens || c->job->prompts[c->prompt].thinking;
    if (!p->split)
        return;
    for (size_t i = 0; i < n && close_at == n; i++)
        if (g->ids[i] == rules->think_close_id)
            close_at = i;
    struct str whole = span(s, opens ? s->offsets[1] : 0, cut, cut);
    p->reasoning_tokens = (int32_t)TR_MIN(close_at + 1, n);
    if (close_at < n) {
        p->reasoning = span(s, opens ? s->offsets[1] : 0, s->offsets[close_at], cut);
        p->answer = span(s, s->offsets[close_at + 1], cut, cut);
    } else if (split_reasoning(whole, &p->reasoning, &p->answer)) {
        size_t behind = cut - p->answer.len; /* written with ordinary tokens: count up to there */
        for (size_t i = n; i > 0 && s->offsets[i] >= behind; i--)
            p->reasoning_tokens = (int32_t)i;
    } else {
        p->reasoning = whole;
        p->answer = (struct str){NULL, 0};
        p->answered = false;
    }
    p->reasoning = str_trim(p->reasoning);
    p->answer = p->answered ? str_trim(p->answer) : p->answer;
}

static void add_clean_json(struct text *json, struct str raw, struct text *scratch, bool *changed)
{
    text_reset(scratch);
    add_clean(scratch, raw, changed);
    json->failed = json->failed || scratch->failed;
    text_json_str(json, text_view(scratch));
}

static void add_stop_reason(struct text *t, const struct job_choice *c)
{
    const struct sequence_end *end = &c->finished.end;
    bool asked = false; /* a stop id of the request, not the model's own end */
    for (int32_t i = 0; i < c->sampling.n_stop_ids; i++)
        asked = asked || c->sampling.stop_ids[i] == end->stop_id;
    if (end->stop_string >= 0 && end->stop_string < c->sampling.n_stop_strings)
        text_json_str(t, c->sampling.stop_strings[end->stop_string]);
    else if (end->stop_id >= 0 && asked)
        text_f(t, "%d", end->stop_id);
    else
        text_add(t, STR("null"));
}

/* One OpenAI choice. */
static void add_choice(struct text *t, const struct job_choice *c, struct parts *p, int32_t index,
                       struct result_scratch *s)
{
    bool ignored = false;
    if (c->job->kind == JOB_CHAT) {
        text_f(t, "{\"index\":%d,\"message\":{\"role\":\"assistant\",\"content\":", index);
        if (p->answered)
            add_clean_json(t, p->answer, &s->text, &ignored);
        else
            text_add(t, STR("null"));
        if (p->split) {
            text_add(t, STR(",\"reasoning_content\":"));
            add_clean_json(t, p->reasoning, &s->text, &ignored);
        }
        text_add(t, STR(",\"refusal\":null}"));
    } else {
        text_f(t, "{\"index\":%d,\"text\":", index);
        add_clean_json(t, p->raw, &s->text, &ignored);
    }
    /* The null is where an export puts the logprobs; it stands there for readers that want it. */
    text_f(t, ",\"logprobs\":null,\"finish_reason\":\"%s\",\"stop_reason\":",
           finish_reason_name(c->finished.end.reason));
    add_stop_reason(t, c);
    /* What the columns cannot hold: exact bytes of a later choice. */
    text_reset(&s->text);
    add_clean(&s->text, p->raw, &p->sanitized);
    t->failed = t->failed || s->text.failed;
    if (p->sanitized && index > 0) {
        text_add(t, STR(",\"raw_hex\":\""));
        for (size_t i = 0; i < p->raw.len; i++)
            text_f(t, "%02x", (unsigned char)p->raw.ptr[i]);
        text_char(t, '"');
    }
    text_char(t, '}');
}

static struct str source_json(struct job *job, const struct result_context *ctx, struct text *t,
                              bool *ok)
{
    text_reset(t);
    text_add(t, STR("{\"source\":"));
    text_json_str(t, ctx->source_label);
    text_char(t, ',');
    text_add(t, job->place);
    text_f(t, ",\"position\":%lld", (long long)job->position);
    if (job->priority)
        text_f(t, ",\"priority\":%d", job->priority);
    if (job->metadata.ptr) {
        text_add(t, STR(",\"metadata\":"));
        text_add(t, job->metadata);
    }
    text_char(t, '}');
    return kept_text(job, t, ok);
}

/* What every row has that takes no memory; it is job->result from here on. */
static struct result *begin_result(struct job *job, const struct result_context *ctx,
                                   enum result_status status)
{
    job_mark_result(job);
    struct result *r = job->result = &job->row;
    const char *sha = ctx->model_sha256 ? ctx->model_sha256(ctx->sha_ctx) : NULL;
    *r = (struct result){.key = {job->run, job->batch_id, job->custom_id},
                         .status = status,
                         .correct = -1,
                         .model = job->model.ptr ? job->model : str_of(ctx->model->name),
                         .model_sha256 = str_of(sha),
                         .fingerprint = str_of(ctx->fingerprint),
                         .config_revision =
                             str_of(job->config ? job->config->revision : ctx->config_revision),
                         .params = job->params_json,
                         .has_seed = job->params.sampling.params.rng_key != 0,
                         .seed = job->params.seed,
                         .attempts = job->attempts,
                         .worker = str_of(ctx->worker),
                         .queued_ns = job->queued_ns};
    memcpy(r->request_sha256, job->sha256, sizeof job->sha256);
    return r;
}

static void take_request(struct job *job, const struct result_context *ctx, struct text *scratch,
                         bool *ok)
{
    job->result->source = source_json(job, ctx, scratch, ok);
    job->result->request = kept_clean(job, job->request, scratch, ok);
}

/* SHA-256 over the id's length, the id, the status and the SHA-256 of `choices`. */
void result_hash_output(struct result *r)
{
    uint8_t bytes[8 + JOB_ID_BYTES_MAX + JOB_ORIGIN_MAX + 16 + 32];
    const char *status = result_status_name(r->status);
    size_t at = 8, n = TR_MIN(r->key.custom_id.len, (size_t)JOB_ID_BYTES_MAX + JOB_ORIGIN_MAX);
    uint64_t len = r->key.custom_id.len;
    memcpy(bytes, &len, 8);
    memcpy(bytes + at, r->key.custom_id.ptr, n);
    at += n;
    memcpy(bytes + at, status, strlen(status) + 1);
    at += strlen(status) + 1;
    sha256_of(r->choices, bytes + at);
    sha256_of((struct str){(const char *)bytes, at + 32}, r->output_sha256);
}

void result_unstorable(struct result *out, const struct result *r, struct str detail)
{
    *out = *r;
    out->answer = out->reasoning = out->finish_reason = out->logprobs = out->choices =
        out->prompt_logprobs = out->raw = out->model = out->params = out->request = out->source =
            (struct str){NULL, 0};
    out->status = RESULT_FAILED;
    out->correct = -1;
    out->sanitized = false;
    out->error_code = STR("unstorable");
    out->error_detail = detail;
    result_hash_output(out);
}

static void take_first_choice(struct job *job, struct result *r, const struct parts *p,
                              struct result_scratch *s, bool *ok)
{
    if (p->answered)
        r->answer = kept_clean(job, p->answer, &s->text, ok);
    if (p->split)
        r->reasoning = kept_clean(job, p->reasoning, &s->text, ok);
    if (job->expected.ptr)
        r->correct = p->answered && answer_is_correct(r->answer, job->expected);
    r->sanitized = p->sanitized;
    if (p->sanitized)
        r->raw = kept(job, p->raw, ok);
}

/* Counts, times and the failure of a choice. */
static void take_numbers(const struct job *job, struct result *r, const struct result_context *ctx)
{
    int64_t started = INT64_MAX, first = INT64_MAX, device = 0;
    for (int32_t i = 0; i < job->n_choices; i++) {
        const struct job_choice *c = &job->choices[i];
        const struct finished *f = &c->finished;
        r->completion_tokens += c->out.n;
        device += f->device_ns + c->before.device_ns;
        if (c->index == 0) /* of its first start, where it was parked since */
            r->cached_tokens += c->n_resumed ? c->before.n_cached : f->n_cached;
        if (c->before.started_ns > 0)
            started = TR_MIN(started, c->before.started_ns);
        else if (f->started_ns > 0)
            started = TR_MIN(started, f->started_ns + ctx->mono_to_wall_ns);
        if (c->before.started_ns > 0)
            first = 0;
        else if (f->first_ns > 0)
            first = TR_MIN(first, f->first_ns + ctx->mono_to_wall_ns);
        if (f->end.reason == FINISH_FAILED && r->status == RESULT_OK) {
            r->status = job->err.code == E_JOB ? RESULT_INVALID : RESULT_FAILED;
            r->error_code = f->err.type[0] ? str_of(f->err.type) : STR("engine");
            r->error_detail = str_of(f->err.msg);
        } else if (f->end.reason == FINISH_CANCELLED && r->status == RESULT_OK) {
            bool expired = atomic_load(&job->cut) == CUT_EXPIRED;
            r->status = expired ? RESULT_EXPIRED : RESULT_CANCELLED;
            r->error_code = str_of(result_status_name(r->status));
            r->error_detail = expired ? STR("its deadline passed before it had ended")
                                      : STR("a cancellation was asked for");
        }
    }
    for (int32_t i = 0; i < job->n_prompts; i++)
        r->prompt_tokens += job->prompts[i].n;
    r->device_seconds = (double)device / 1e9;
    r->started_ns = started == INT64_MAX ? 0 : started;
    r->finished_ns = job->finished_ns;
    r->first_ns = first == INT64_MAX ? 0 : first;
    if (r->status != RESULT_CANCELLED && r->status != RESULT_EXPIRED)
        r->finish_reason = str_of(finish_reason_name(job->choices[0].finished.end.reason));
}

/* Bytes of the row's texts so far, those that still stand in *s among them. */
static size_t row_bytes(const struct result *r, const struct result_scratch *s)
{
    return r->request.len + r->params.len + r->source.len + r->answer.len + r->reasoning.len +
           r->raw.len + s->json.len + s->logprobs.len + s->raw.len;
}

/* Choices and their logprobs into s->json and s->logprobs, the prompts' into s->raw; up to where
 * they are too large. False: no memory. */
static bool render_choices(struct job *job, struct result *r, const struct result_context *ctx,
                           struct result_scratch *s)
{
    bool ok = true, logprobs = job->params.logprobs_given;
    text_reset(&s->raw);
    text_reset(&s->json);
    text_reset(&s->logprobs);
    for (int32_t i = 0; i < job->n_choices && row_bytes(r, s) <= s->bytes_max; i++) {
        struct parts p;
        const struct job_choice *c = &job->choices[i];
        if (!concatenate(c, ctx->model, s))
            return false;
        take_parts(&p, c, ctx->model, s);
        text_char(&s->json, i ? ',' : '[');
        add_choice(&s->json, c, &p, i, s);
        r->reasoning_tokens += p.reasoning_tokens;
        if (i == 0)
            take_first_choice(job, r, &p, s, &ok);
        r->sanitized = r->sanitized || p.sanitized;
        if (logprobs) {
            text_char(&s->logprobs, i ? ',' : '[');
            logprobs_add(&s->logprobs, c, ctx->model, s);
        }
        text_reset(&s->raw);
    }
    text_char(&s->json, ']');
    if (logprobs)
        text_char(&s->logprobs, ']');
    if (job->params.sampling.prompt_logprobs >= 0 && row_bytes(r, s) <= s->bytes_max)
        prompt_logprobs_add(&s->raw, job, ctx->model, s);
    return ok;
}

/* The row fails, without its texts: no database would hold them. False: no memory. */
static bool refuse_size(struct job *job, struct result *r, const struct result_scratch *s)
{
    size_t bytes = row_bytes(r, s);
    r->status = RESULT_FAILED;
    r->error_code = STR("too_large");
    r->answer = r->reasoning = r->raw = (struct str){NULL, 0};
    r->reasoning_tokens = 0;
    r->correct = -1;
    r->sanitized = false;
    return job_printf(job, &r->error_detail,
                      "the row would have %zu bytes or more, the limit is %zu; fewer choices, "
                      "tokens or logprobs make it smaller",
                      bytes, s->bytes_max) >= 0;
}

/* job->result of choices that have all ended. False: no memory. */
static bool render(struct job *job, const struct result_context *ctx, struct result_scratch *s)
{
    bool ok = true;
    struct result *r = begin_result(job, ctx, RESULT_OK);
    take_request(job, ctx, &s->text, &ok);
    if (!ok)
        return false;
    take_numbers(job, r, ctx);
    if (r->status != RESULT_OK) {
        r->error_detail = kept_clean(job, r->error_detail, &s->text, &ok);
    } else if (!render_choices(job, r, ctx, s)) {
        return false;
    } else if (row_bytes(r, s) > s->bytes_max) {
        ok = refuse_size(job, r, s);
    } else {
        r->choices = kept_text(job, &s->json, &ok);
        if (job->params.logprobs_given)
            r->logprobs = kept_text(job, &s->logprobs, &ok);
        if (job->params.sampling.prompt_logprobs >= 0)
            r->prompt_logprobs = kept_text(job, &s->raw, &ok);
    }
    if (ok)
        result_hash_output(r);
    return ok;
}

bool result_render(struct job *job, const struct result_context *ctx, struct result_scratch *s)
{
    s->bytes_max = ctx->row_bytes_max ? ctx->row_bytes_max : RESULT_BYTES_MAX;
    bool made = render(job, ctx, s);
    if (!made)
        job_drop_result(job); /* the next try needs the room */
    result_scratch_trim(s);
    return made;
}

bool result_refuse(struct job *job, const struct result_context *ctx, enum result_status status,
                   const char *code, const char *detail, int64_t now_wall_ns)
{
    struct text scratch = {0};
    bool ok = true;
    result_refuse_bare(job, ctx, status, code, now_wall_ns);
    take_request(job, ctx, &scratch, &ok);
    job->result->error_code = kept(job, str_of(code), &ok);
    job->result->error_detail = kept_clean(job, str_of(detail), &scratch, &ok);
    if (!ok)
        job_drop_result(job);
    text_close(&scratch);
    return ok;
}

static const char bare_detail[] = "memory was refused for the rest of its row";

void result_refuse_bare(struct job *job, const struct result_context *ctx,
                        enum result_status status, const char *code, int64_t now_wall_ns)
{
    struct result *r = begin_result(job, ctx, status);
    r->error_code = str_of(code);
    r->error_detail = str_of(bare_detail);
    r->finished_ns = now_wall_ns;
    for (int32_t i = 0; i < job->n_prompts; i++)
        r->prompt_tokens += job->prompts[i].n;
    result_hash_output(r);
}

void result_render_bare(struct job *job, const struct result_context *ctx)
{
    struct result *r = begin_result(job, ctx, RESULT_OK);
    take_numbers(job, r, ctx);
    if (r->status == RESULT_OK) {
        r->status = RESULT_FAILED;
        r->error_code = STR("no_memory");
        r->finish_reason = (struct str){NULL, 0};
    }
    r->error_detail = str_of(bare_detail);
    result_hash_output(r);
}
