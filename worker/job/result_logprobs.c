/* result_logprobs: see result_logprobs.h. */
#include "worker/job/result_logprobs.h"

/* A token's text, lossy: it may be half a character. NULs stay, escaped by the JSON string. */
static void add_token(struct text *t, const struct loaded_model *model, int32_t id,
                      struct text *scratch)
{
    char one;
    bool changed;
    struct str raw = result_token_bytes(model, id, &one);
    text_reset(scratch);
    char *at = text_room(scratch, raw.len * 3 + 1);
    if (at)
        scratch->len = utf8_repair(raw, at, raw.len * 3 + 1, &changed);
    t->failed = t->failed || scratch->failed;
    text_json_str(t, text_view(scratch));
}

/* -9999.0 is OpenAI's "very unlikely"; JSON has no infinity. */
static void add_logprob(struct text *t, float logprob)
{
    text_json_float(t, logprob > -9999.0f ? logprob : -9999.0f);
}

/* Entries that a row has: the rest are -1. */
static int32_t top_given(const int32_t *ids, size_t row, int32_t n)
{
    int32_t given = 0;
    while (given < n && ids[row + (size_t)given] >= 0)
        given++;
    return given;
}

static void add_chat_token(struct text *t, const struct loaded_model *model, int32_t id,
                           float logprob, struct text *scratch)
{
    char one;
    struct str raw = result_token_bytes(model, id, &one);
    text_add(t, STR("{\"token\":"));
    add_token(t, model, id, scratch);
    text_add(t, STR(",\"logprob\":"));
    add_logprob(t, logprob);
    text_add(t, STR(",\"bytes\":["));
    for (size_t i = 0; i < raw.len; i++)
        text_f(t, i ? ",%d" : "%d", (unsigned char)raw.ptr[i]);
    text_char(t, ']');
}

static void add_chat(struct text *t, const struct job_choice *c, const struct loaded_model *model,
                     struct result_scratch *s)
{
    struct text *scratch = &s->repaired;
    const struct generated *g = &c->out;
    int32_t top = c->sampling.params.n_top;
    text_add(t, STR("{\"content\":["));
    for (int32_t i = 0; i < g->n && t->len <= s->bytes_max; i++) {
        if (i)
            text_char(t, ',');
        add_chat_token(t, model, g->ids[i], g->logprobs[i], scratch);
        text_add(t, STR(",\"top_logprobs\":["));
        size_t row = (size_t)i * (size_t)TR_MAX(top, 0);
        int32_t given = top_given(g->top_ids, row, top);
        for (int32_t k = 0; k < given; k++) {
            if (k)
                text_char(t, ',');
            add_chat_token(t, model, g->top_ids[row + (size_t)k], g->top_logprobs[row + (size_t)k],
                           scratch);
            text_char(t, '}');
        }
        text_add(t, STR("]}"));
    }
    text_add(t, STR("],\"refusal\":null}"));
}

/* {"text": logprob, ...} of the best, the sampled one always among them. Two ids may have one text
 * (halves of characters): the better one stays. */
static void add_top_of_completion(struct text *t, const struct job_choice *c, int32_t i,
                                  const struct loaded_model *model, struct text *scratch)
{
    const struct generated *g = &c->out;
    int32_t wanted = TR_MAX(c->sampling.params.n_top, 0), n = 0;
    size_t row = (size_t)i * (size_t)wanted, keys_at[2 * SAMPLE_TOP_MAX + 2];
    int32_t top = top_given(g->top_ids, row, wanted);
    bool sampled = false;
    text_char(t, '{');
    for (int32_t k = 0; k <= top; k++) {
        if (k == top && sampled)
            break;
        int32_t id = k < top ? g->top_ids[row + (size_t)k] : g->ids[i];
        sampled = sampled || id == g->ids[i];
        size_t back = t->len;
        if (n)
            text_char(t, ',');
        size_t from = t->len;
        add_token(t, model, id, scratch);
        bool twice = false;
        for (int32_t m = 0; m < n; m++)
            twice = twice || (keys_at[2 * m + 1] == t->len - from && !t->failed &&
                              memcmp(t->ptr + keys_at[2 * m], t->ptr + from, t->len - from) == 0);
        if (twice) {
            t->len = back;
            continue;
        }
        keys_at[2 * n] = from;
        keys_at[2 * n++ + 1] = t->len - from;
        text_char(t, ':');
        add_logprob(t, k < top ? g->top_logprobs[row + (size_t)k] : g->logprobs[i]);
    }
    text_char(t, '}');
}

static size_t characters(struct str s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++)
        n += ((unsigned char)s.ptr[i] & 0xC0) != 0x80;
    return n;
}

static void add_completion(struct text *t, const struct job_choice *c,
                           const struct loaded_model *model, struct result_scratch *s)
{
    const struct generated *g = &c->out;
    text_add(t, STR("{\"tokens\":["));
    for (int32_t i = 0; i < g->n; i++) {
        if (i)
            text_char(t, ',');
        add_token(t, model, g->ids[i], &s->repaired);
    }
    text_add(t, STR("],\"token_logprobs\":["));
    for (int32_t i = 0; i < g->n; i++) {
        if (i)
            text_char(t, ',');
        add_logprob(t, g->logprobs[i]);
    }
    text_add(t, STR("],\"top_logprobs\":["));
    for (int32_t i = 0; i < g->n && t->len <= s->bytes_max; i++) {
        if (i)
            text_char(t, ',');
        add_top_of_completion(t, c, i, model, &s->repaired);
    }
    text_add(t, STR("],\"text_offset\":["));
    size_t chars = 0;
    for (int32_t i = 0; i < g->n; i++) {
        text_f(t, i ? ",%zu" : "%zu", chars);
        chars += characters((struct str){s->raw.ptr ? s->raw.ptr + s->offsets[i] : "",
                                         s->offsets[i + 1] - s->offsets[i]});
    }
    text_add(t, STR("]}"));
}

void logprobs_add(struct text *t, const struct job_choice *c, const struct loaded_model *model,
                  struct result_scratch *s)
{
    if (c->job->kind == JOB_CHAT)
        add_chat(t, c, model, s);
    else
        add_completion(t, c, model, s);
}

static void add_prompt_token(struct text *t, const struct loaded_model *model, int32_t id,
                             float logprob, struct text *scratch)
{
    text_f(t, "\"%d\":{\"logprob\":", id);
    add_logprob(t, logprob);
    text_add(t, STR(",\"decoded_token\":"));
    add_token(t, model, id, scratch);
    text_char(t, '}');
}

static void add_prompt(struct text *t, const struct job *job, const struct job_choice *c,
                       const struct loaded_model *model, struct result_scratch *s)
{
    struct text *scratch = &s->repaired;
    const struct job_prompt *p = &job->prompts[c->prompt];
    const struct generated *g = &c->out;
    int32_t top = c->sampling.prompt_logprobs;
    text_add(t, STR("[null"));
    for (int32_t i = 1; i < p->n && t->len <= s->bytes_max; i++) {
        text_add(t, STR(",{"));
        add_prompt_token(t, model, p->ids[i], g->prompt_logprobs[i], scratch);
        size_t row = (size_t)i * (size_t)TR_MAX(top, 0);
        int32_t given = top_given(g->prompt_top_ids, row, top);
        for (int32_t k = 0; k < given; k++) {
            size_t at = row + (size_t)k;
            if (g->prompt_top_ids[at] == p->ids[i])
                continue;
            text_char(t, ',');
            add_prompt_token(t, model, g->prompt_top_ids[at], g->prompt_top_logprobs[at], scratch);
        }
        text_char(t, '}');
    }
    text_char(t, ']');
}

void prompt_logprobs_add(struct text *t, const struct job *job, const struct loaded_model *model,
                         struct result_scratch *s)
{
    for (int32_t i = 0; i < job->n_prompts && t->len <= s->bytes_max; i++) {
        text_char(t, i ? ',' : '[');
        add_prompt(t, job, &job->choices[i * job->params.n], model, s);
    }
    text_char(t, ']');
}
