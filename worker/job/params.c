/* params: the body of a job -> sampling. One table names every field of the two endpoints that we
 * know: read, accepted without effect, or refused as unsupported; anything else is unknown.
 *
 * Names, order and defaults as vLLM's: request > generation_config.json > OpenAI's default. JSON
 * null means absent, as at OpenAI. */
#include "engine/model.h"
#include "worker/job/job.h"

#include <math.h>
#include <stdlib.h>

enum { CHAT = 1, TEXT = 2, BOTH = 3, COMPLETION_MAX_TOKENS = 16, N_MAX = JOB_CHOICES_MAX };

struct field;
typedef void field_reader(struct job *, const struct params_context *, const struct field *,
                          const json_t *);
struct field {
    const char *name;
    int kinds;
    field_reader *read; /* NULL: accepted, no effect on the output */
    double min, max;
    size_t offset; /* of the float or int32 within struct job_params */
};

static void read_float(struct job *job, const struct params_context *ctx, const struct field *f,
                       const json_t *v)
{
    (void)ctx;
    double value = json_number_value(v);
    if (!json_is_number(v))
        job_fail(job, "bad_field", "%s: want a number, got %s", f->name, json_type_name(v));
    else if (!(value >= f->min && value <= f->max))
        job_fail(job, "bad_value", "%s: want %g to %g, got %g", f->name, f->min, f->max, value);
    else
        *(float *)(void *)((char *)&job->params + f->offset) = (float)value;
}

/* False with job->err set when v is no integer of [min, max]. */
static bool take_int(struct job *job, const char *name, const json_t *v, double min, double max,
                     int64_t *out)
{
    double value = json_number_value(v);
    if (!json_is_number(v) || value != trunc(value))
        job_fail(job, "bad_field", "%s: want an integer, got %s", name, json_type_name(v));
    else if (!(value >= min && value <= max))
        job_fail(job, "bad_value", "%s: want %.0f to %.0f, got %.0f", name, min, max, value);
    else
        *out = json_is_integer(v) ? (int64_t)json_integer_value(v) : (int64_t)value;
    return job->err.code == 0;
}

static void read_int(struct job *job, const struct params_context *ctx, const struct field *f,
                     const json_t *v)
{
    (void)ctx;
    int64_t value = 0;
    if (take_int(job, f->name, v, f->min, f->max, &value))
        *(int32_t *)(void *)((char *)&job->params + f->offset) = (int32_t)value;
}

static void read_bool(struct job *job, const struct params_context *ctx, const struct field *f,
                      const json_t *v)
{
    (void)ctx;
    if (!json_is_boolean(v))
        job_fail(job, "bad_field", "%s: want true or false, got %s", f->name, json_type_name(v));
    else
        *(bool *)((char *)&job->params + f->offset) = json_is_true(v);
}

static void read_max_tokens(struct job *job, const struct params_context *ctx,
                            const struct field *f, const json_t *v)
{
    /* max_completion_tokens supersedes max_tokens; the table reads it last. */
    read_int(job, ctx, f, v);
    job->params.max_tokens_given = true;
}

static void read_seed(struct job *job, const struct params_context *ctx, const struct field *f,
                      const json_t *v)
{
    (void)ctx;
    if (!json_is_integer(v)) {
        job_fail(job, "bad_field", "%s: want an integer of 64 bits, got %s", f->name,
                 json_type_name(v));
        return;
    }
    job->params.seed = (int64_t)json_integer_value(v);
    job->params.seed_given = true;
}

static void read_stop(struct job *job, const struct params_context *ctx, const struct field *f,
                      const json_t *v)
{
    (void)ctx;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    struct str *strings = job_alloc(job, TR_MAX(n, (size_t)1) * sizeof *strings);
    if (n > STOP_STRINGS_MAX || !strings) {
        job_fail(job, "bad_value", "%s: want at most %d strings, got %zu", f->name,
                 STOP_STRINGS_MAX, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;
        struct str s = json_str(one);
        if (!json_is_string(one))
            job_fail(job, "bad_field", "%s: want a string, got %s", f->name, json_type_name(one));
        else if (s.len < 1 || s.len > STOP_STRING_BYTES_MAX)
            job_fail(job, "bad_value", "%s: want 1 to %d bytes, got %zu", f->name,
                     STOP_STRING_BYTES_MAX, s.len);
        else
            strings[i] = job_str(job, s);
    }
    job->params.sampling.stop_strings = strings;
    job->params.sampling.n_stop_strings = (int32_t)n;
}

static void read_stop_ids(struct job *job, const struct params_context *ctx, const struct field *f,
                          const json_t *v)
{
    size_t n = json_array_size(v);
    int32_t *ids = n <= STOP_IDS_MAX ? job_alloc(job, (n + 1) * sizeof *ids) : NULL;
    if (!json_is_array(v)) {
        job_fail(job, "bad_field", "%s: want an array of ids, got %s", f->name, json_type_name(v));
    } else if (!ids) {
        job_fail(job, "bad_value", "%s: want at most %d ids, got %zu", f->name, STOP_IDS_MAX, n);
    } else {
        int64_t id = 0;
        for (size_t i = 0; i < n; i++)
            if (take_int(job, f->name, json_array_get(v, i), 0, ctx->vocab_size - 1, &id))
                ids[i] = (int32_t)id;
        job->params.sampling.stop_ids = ids;
        job->params.sampling.n_stop_ids = (int32_t)n;
    }
}

/* {"<id>": bias}: JSON has no integer keys. One spelling an id, so that no id has two values. */
static void read_logit_bias(struct job *job, const struct params_context *ctx,
                            const struct field *f, const json_t *v)
{
    size_t n = json_object_size(v), i = 0;
    int32_t *ids = n <= LOGIT_BIAS_MAX ? job_alloc(job, (n + 1) * sizeof *ids) : NULL;
    float *bias = n <= LOGIT_BIAS_MAX ? job_alloc(job, (n + 1) * sizeof *bias) : NULL;
    if (!json_is_object(v)) {
        job_fail(job, "bad_field", "%s: want an object, got %s", f->name, json_type_name(v));
        return;
    }
    if (!ids || !bias) {
        job_fail(job, "bad_value", "%s: want at most %d ids, got %zu", f->name, LOGIT_BIAS_MAX, n);
        return;
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)v, key, value)
    {
        char *end;
        long id = strtol(key, &end, 10);
        double b = json_number_value(value);
        if (*key < '0' || *key > '9' || *end || id >= ctx->vocab_size)
            job_fail(job, "bad_value", "%s: want token ids below %d, got \"%.40s\"", f->name,
                     ctx->vocab_size, key);
        else if (*key == '0' && key[1])
            job_fail(job, "bad_value", "%s: want token ids without leading zeros, got \"%.40s\"",
                     f->name, key);
        else if (!json_is_number(value) || !(b >= -100 && b <= 100))
            job_fail(job, "bad_value", "%s: token %ld: want -100 to 100, got %g", f->name, id, b);
        else
            ids[i] = (int32_t)id, bias[i++] = (float)b;
    }
    struct sample_params *s = &job->params.sampling.params;
    s->bias_ids = ids;
    s->bias = bias;
    s->n_bias = (int32_t)i;
}

static void read_logprobs(struct job *job, const struct params_context *ctx, const struct field *f,
                          const json_t *v)
{
    int64_t value = 0;
    if (job->kind == JOB_CHAT)
        read_bool(job, ctx, f, v);
    else if (take_int(job, f->name, v, 0, SAMPLE_TOP_MAX, &value))
        job->params.top_logprobs = (int32_t)value;
    if (job->kind == JOB_COMPLETION)
        job->params.logprobs_given = true;
}

static void read_kwargs(struct job *job, const struct params_context *ctx, const struct field *f,
                        const json_t *v)
{
    (void)ctx;
    if (!json_is_object(v))
        job_fail(job, "bad_field", "%s: want an object, got %s", f->name, json_type_name(v));
    else
        job->params.template_kwargs = v;
}

/* Fields with one legal value, which changes nothing. */
static void read_only_value(struct job *job, const struct params_context *ctx,
                            const struct field *f, const json_t *v)
{
    (void)ctx;
    struct str s = json_str(v);
    struct str type = json_str(json_object_get(v, "type"));
    bool fits = f->max != 0 ? json_is_number(v) && json_number_value(v) == f->min
                            : json_is_boolean(v) && json_is_true(v) == (f->min != 0);
    if (strcmp(f->name, "response_format") == 0)
        fits = str_eq(type, STR("text"));
    else if (strcmp(f->name, "service_tier") == 0)
        fits = str_eq(s, STR("auto")) || str_eq(s, STR("default"));
    if (!fits)
        job_fail(job, "unsupported_field", "%s: this value is not supported; leave the field out",
                 f->name);
}

static void read_unsupported(struct job *job, const struct params_context *ctx,
                             const struct field *f, const json_t *v)
{
    (void)ctx;
    if (!(json_is_array(v) && json_array_size(v) == 0))
        job_fail(job, "unsupported_field", "%s: known, but not supported", f->name);
}

#define AT(member)     offsetof(struct job_params, member)
#define SAMPLE(member) offsetof(struct job_params, sampling.params.member)
#define UNSUPPORTED(name, kinds)                                                                   \
    {                                                                                              \
        name, kinds, read_unsupported, 0, 0, 0                                                     \
    }

static const struct field fields[] = {
    {"model", BOTH, NULL, 0, 0, 0},
    {"messages", CHAT, NULL, 0, 0, 0},
    {"prompt", TEXT, NULL, 0, 0, 0},
    {"user", BOTH, NULL, 0, 0, 0},
    {"store", BOTH, NULL, 0, 0, 0},
    {"metadata", BOTH, NULL, 0, 0, 0},
    {"safety_identifier", BOTH, NULL, 0, 0, 0},
    {"prompt_cache_key", BOTH, NULL, 0, 0, 0},
    {"stream", BOTH, read_only_value, 0, 0, 0},
    {"echo", TEXT, read_only_value, 0, 0, 0},
    {"skip_special_tokens", BOTH, read_only_value, 1, 0, 0},
    {"parallel_tool_calls", CHAT, read_only_value, 1, 0, 0},
    {"best_of", TEXT, read_only_value, 1, 1, 0},
    {"response_format", BOTH, read_only_value, 0, 0, 0},
    {"service_tier", BOTH, read_only_value, 0, 0, 0},
    {"temperature", BOTH, read_float, 0, 2, SAMPLE(temperature)},
    {"top_p", BOTH, read_float, 0, 1, SAMPLE(top_p)},
    {"min_p", BOTH, read_float, 0, 1, SAMPLE(min_p)},
    {"top_k", BOTH, read_int, -1, INT32_MAX, SAMPLE(top_k)},
    {"repetition_penalty", BOTH, read_float, 0.01, 10, SAMPLE(repetition_penalty)},
    {"frequency_penalty", BOTH, read_float, -2, 2, SAMPLE(frequency_penalty)},
    {"presence_penalty", BOTH, read_float, -2, 2, SAMPLE(presence_penalty)},
    {"n", BOTH, read_int, 1, N_MAX, AT(n)},
    {"seed", BOTH, read_seed, 0, 0, 0},
    {"stop", BOTH, read_stop, 0, 0, 0},
    {"stop_token_ids", BOTH, read_stop_ids, 0, 0, 0},
    {"include_stop_str_in_output", BOTH, read_bool, 0, 0, AT(sampling.include_stop_str)},
    {"max_tokens", BOTH, read_max_tokens, 1, INT32_MAX, AT(sampling.max_tokens)},
    {"max_completion_tokens", CHAT, read_max_tokens, 1, INT32_MAX, AT(sampling.max_tokens)},
    {"min_tokens", BOTH, read_int, 0, INT32_MAX, AT(sampling.min_tokens)},
    {"ignore_eos", BOTH, read_bool, 0, 0, AT(sampling.ignore_eos)},
    {"logit_bias", BOTH, read_logit_bias, 0, 0, 0},
    {"logprobs", BOTH, read_logprobs, 0, 0, AT(logprobs_given)},
    {"top_logprobs", CHAT, read_int, 0, SAMPLE_TOP_MAX, AT(top_logprobs)},
    {"prompt_logprobs", BOTH, read_int, 0, SAMPLE_TOP_MAX, AT(sampling.prompt_logprobs)},
    {"max_thinking_tokens", BOTH, read_int, 0, INT32_MAX, AT(sampling.max_thinking_tokens)},
    {"loop_tokens", BOTH, read_int, 0, 65536, AT(sampling.loop_tokens)},
    {"add_special_tokens", BOTH, read_bool, 0, 0, AT(add_special)},
    {"continue_final_message", CHAT, read_bool, 0, 0, AT(continue_final)},
    {"chat_template_kwargs", CHAT, read_kwargs, 0, 0, 0},
    UNSUPPORTED("tools", CHAT),
    UNSUPPORTED("tool_choice", CHAT),
    UNSUPPORTED("functions", CHAT),
    UNSUPPORTED("function_call", CHAT),
    UNSUPPORTED("audio", CHAT),
    UNSUPPORTED("modalities", CHAT),
    UNSUPPORTED("prediction", CHAT),
    UNSUPPORTED("reasoning_effort", CHAT),
    UNSUPPORTED("verbosity", CHAT),
    UNSUPPORTED("web_search_options", CHAT),
    UNSUPPORTED("stream_options", BOTH),
    UNSUPPORTED("suffix", TEXT),
    UNSUPPORTED("use_beam_search", BOTH),
    UNSUPPORTED("length_penalty", BOTH),
    UNSUPPORTED("bad_words", BOTH),
    UNSUPPORTED("allowed_token_ids", BOTH),
    UNSUPPORTED("truncate_prompt_tokens", BOTH),
    UNSUPPORTED("spaces_between_special_tokens", BOTH),
    UNSUPPORTED("guided_json", BOTH),
    UNSUPPORTED("guided_regex", BOTH),
    UNSUPPORTED("guided_choice", BOTH),
    UNSUPPORTED("guided_grammar", BOTH),
    UNSUPPORTED("structured_outputs", BOTH),
    UNSUPPORTED("chat_template", CHAT),
    UNSUPPORTED("documents", CHAT),
    UNSUPPORTED("priority", BOTH),
    {"add_generation_prompt", CHAT, read_only_value, 1, 0, 0},
};

/* `kinds`: whose fields may be meant. */
static void unknown_field(struct job *job, const char *name, int kinds)
{
    const char *names[TR_COUNT(fields)];
    size_t n = 0;
    for (size_t i = 0; i < TR_COUNT(fields); i++) {
        if (strcmp(fields[i].name, name) == 0) {
            job_fail(job, "unknown_field", "%s: no field of %s", name,
                     kinds == CHAT ? "/v1/chat/completions" : "/v1/completions");
            return;
        }
        if (fields[i].kinds & kinds && fields[i].read != read_unsupported)
            names[n++] = fields[i].name;
    }
    const char *near = nearest_name(str_of(name), names, n);
    job_fail(job, "unknown_field", "%.60s: unknown field%s%s%s", name, near ? "; do you mean " : "",
             near ? near : "", near ? "?" : "");
}

bool params_is_field(struct str name)
{
    for (size_t i = 0; i < TR_COUNT(fields); i++) {
        const char *have = fields[i].name;
        size_t at = 0;
        while (at < name.len && have[at] &&
               (name.ptr[at] == have[at] || (name.ptr[at] == '-' && have[at] == '_')))
            at++;
        if (at == name.len && !have[at])
            return true;
    }
    return false;
}

void params_refuse_unknown(struct job *job)
{
    const char *key;
    json_t *value;
    json_object_foreach(job->body, key, value)
    {
        if (!params_is_field(str_of(key)))
            unknown_field(job, key, BOTH);
    }
}

static void take_defaults(struct job *job, const struct params_context *ctx)
{
    struct job_params *p = &job->params;
    struct sampling *s = &p->sampling;
    const struct generation_defaults *g = ctx->generation;
    sampling_init(s);
    s->params.temperature = g && g->has_temperature ? g->temperature : 1;
    s->params.top_p = g && g->has_top_p ? g->top_p : 1;
    s->params.min_p = g && g->has_min_p ? g->min_p : 0;
    s->params.top_k = g && g->has_top_k ? g->top_k : -1;
    s->params.repetition_penalty = g && g->has_repetition_penalty ? g->repetition_penalty : 1;
    s->max_tokens = job->kind == JOB_COMPLETION ? COMPLETION_MAX_TOKENS : ctx->default_max_tokens;
    if (g && g->has_max_new_tokens && job->kind == JOB_CHAT)
        s->max_tokens = g->max_new_tokens;
    s->prompt_logprobs = -1;
    s->max_thinking_tokens = -1;
    p->n = 1;
    p->top_logprobs = -1;
    p->add_special = job->kind == JOB_COMPLETION;
}

/* What the operator's defaults name is read as if the request had named it; but a limit that nobody
 * asked for is cut to the context. */
static void take_given_defaults(struct job *job, const struct params_context *ctx, int kind)
{
    for (size_t i = 0; i < TR_COUNT(fields) && job->err.code == 0; i++) {
        const json_t *v = json_object_get(ctx->defaults, fields[i].name);
        bool limit = strcmp(fields[i].name, "max_tokens") == 0;
        if (v && fields[i].read && fields[i].kinds & kind && !(limit && kind == TEXT))
            fields[i].read(job, ctx, &fields[i], v);
    }
    job->params.max_tokens_given = false;
}

/* Rules between fields. */
static void check_together(struct job *job, const struct params_context *ctx)
{
    struct job_params *p = &job->params;
    struct sampling *s = &p->sampling;
    if (p->top_logprobs >= 0 && !p->logprobs_given)
        job_fail(job, "bad_value", "top_logprobs: want logprobs true beside it");
    if (s->max_thinking_tokens >= 0 && !ctx->thinks)
        job_fail(job, "unsupported_field",
                 "max_thinking_tokens: this model has no <think> and </think> tokens");
    if (p->max_tokens_given && s->min_tokens > s->max_tokens)
        job_fail(job, "bad_value", "min_tokens: want at most max_tokens %d, got %d", s->max_tokens,
                 s->min_tokens);
    /* vLLM raises what is neither greedy nor a usable divisor. */
    if (s->params.temperature > 0 && s->params.temperature < 0.01f)
        s->params.temperature = 0.01f;
    if (s->params.top_k < 0)
        s->params.top_k = 0;
    if (s->params.top_p < 1e-6f) /* OpenAI takes 0, which keeps the best token as this does */
        s->params.top_p = 1e-6f;
    if (s->loop_tokens > 0 && s->loop_tokens < 4)
        job_fail(job, "bad_value", "loop_tokens: want 0 or 4 to 65536, got %d", s->loop_tokens);
    s->params.n_top = p->logprobs_given ? TR_MAX(p->top_logprobs, 0) : -1;
}

/* The key of the counter-based RNG: from the body (its seed is part of it) and, where no seed was
 * asked for, from the id: equal bodies under different ids then draw differently. The seed column
 * gets the number either way. */
static void derive_seed(struct job *job)
{
    struct job_params *p = &job->params;
    uint8_t digest[32], bytes[32 + JOB_ORIGIN_MAX + JOB_ID_BYTES_MAX];
    size_t n = TR_MIN(job->custom_id.len, sizeof bytes - 32);
    memcpy(bytes, job->sha256, 32);
    if (!p->seed_given) {
        memcpy(bytes + 32, job->custom_id.ptr, n);
        sha256_of((struct str){(const char *)bytes, 32 + n}, digest);
        memcpy(&p->seed, digest, sizeof p->seed);
        p->seed &= INT64_MAX;
    }
    memcpy(bytes + 32, &p->seed, sizeof p->seed);
    sha256_of((struct str){(const char *)bytes, 32 + sizeof p->seed}, digest);
    memcpy(&p->sampling.params.rng_key, digest, sizeof p->sampling.params.rng_key);
}

void params_parse(struct job *job, const struct params_context *ctx)
{
    int kind = job->kind == JOB_CHAT ? CHAT : TEXT;
    CHECK(job->body);
    take_defaults(job, ctx);
    take_given_defaults(job, ctx, kind);
    for (size_t i = 0; i < TR_COUNT(fields) && job->err.code == 0; i++) {
        const json_t *v = json_object_get(job->body, fields[i].name);
        if (v && !json_is_null(v) && fields[i].read && fields[i].kinds & kind)
            fields[i].read(job, ctx, &fields[i], v);
    }
    const char *key;
    json_t *value;
    json_object_foreach(job->body, key, value)
    {
        size_t i = 0;
        while (i < TR_COUNT(fields) &&
               !(fields[i].kinds & kind && strcmp(key, fields[i].name) == 0))
            i++;
        if (i == TR_COUNT(fields) && job->err.code == 0)
            unknown_field(job, key, kind);
    }
    if (job->model.ptr && memchr(job->model.ptr, 0, job->model.len))
        job_fail(job, "bad_value", "model: holds a NUL character");
    if (job->err.code == 0)
        check_together(job, ctx);
    derive_seed(job);
}
