/* engine_net_fake: a net whose pages hold tokens: every result is a pure function of the tokens
 * that it finds there, so a wrong page, copy, position or token shows in the output. Lag 0 or 1.
 * For tests of the engine; include it in one file of a test only, behind cmocka.h. */
#ifndef TRANCHE_TESTS_ENGINE_NET_FAKE_H
#define TRANCHE_TESTS_ENGINE_NET_FAKE_H

#include "engine/engine_core.h"
#include "tests/unit/tokenizer_fake.h"

enum { VOCAB = 60, EOS = 0, OPEN = 1, CLOSE = 2, BROKEN = 59, LEN = 400, SLOTS = 32, TOP = 3 };
static const char *tokens_text[VOCAB];
static const struct tokenizer fake = {.tokens = tokens_text, .n = VOCAB, .first_special = 1000};
static const int32_t eos_ids[] = {EOS};
static const struct sequence_rules rules = {.tokenizer = &fake,
                                            .eos_ids = eos_ids,
                                            .n_eos_ids = 1,
                                            .think_open_id = OPEN,
                                            .think_close_id = CLOSE,
                                            .think_close = {CLOSE, 3},
                                            .n_think_close = 2};

static uint64_t rng;
static int32_t below(int32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((rng >> 33) % (uint64_t)n);
}

/* ---- the function: tokens 0 .. n-1 give the next one ---- */
static void draw(const int32_t *ids, int32_t n, const struct sample_row *row,
                 struct sample_token *out)
{
    const struct sample_params *p = row->params;
    uint64_t h = hash_bytes(ids, (size_t)n * sizeof *ids, p->rng_key * 31 + p->choice);
    h = hash_bytes(&row->n_output, sizeof row->n_output, h);
    out->logprob = -(float)(h >> 40) / 65536;
    out->id = (int32_t)(h % VOCAB);
    if (p->rng_key % 5 == 0 && row->n_output % 40 > 10)
        out->id = 20 + row->n_output % 2; /* for the loop stop */
    for (int32_t i = 0; i < row->n_banned; i++) {
        while (row->banned[i] == out->id)
            out->id = (out->id + 7) % VOCAB;
    }
    if (out->id == BROKEN)
        out->id = p->rng_key % 8 == 0 ? -1 : 5;
    if (row->forced >= 0)
        out->id = row->forced;
    out->n_top = TOP;
    for (int32_t k = 0; k < TOP; k++) {
        out->top_ids[k] = (int32_t)(h >> (8 + k)) % VOCAB;
        out->top_logprobs[k] = out->logprob - (float)k;
    }
}

static void draw_prompt(const int32_t *ids, int32_t n, int32_t target, struct sample_token *out)
{
    uint64_t h = hash_bytes(ids, (size_t)n * sizeof *ids, (uint64_t)target);
    out->id = target;
    out->logprob = -(float)(h >> 40) / 65536;
    out->n_top = TOP;
    for (int32_t k = 0; k < TOP; k++) {
        out->top_ids[k] = (int32_t)(h >> (8 + k)) % VOCAB;
        out->top_logprobs[k] = out->logprob - (float)k;
    }
}

/* ---- the net: pages hold tokens ---- */
struct net {
    int32_t (*pages)[KV_PAGE_TOKENS];
    int32_t last[SLOTS], rows_most, lag;
    const struct sample_token *instead[2]; /* by kind: what such a row gives, or NULL */
    struct sample_token *kept;
    int32_t n_kept;
    int64_t now;
};

static void net_write(struct net *n, const struct step *s)
{
    for (int32_t i = 0; i < s->n_copies; i++)
        memcpy(n->pages[s->copies[i].page_to], n->pages[s->copies[i].page_from],
               (size_t)s->copies[i].n_tokens * sizeof(int32_t));
    for (int32_t r = 0; r < s->rows.n; r++) {
        int32_t p = s->rows.position[r], slot = s->rows.slot[r];
        int32_t id = s->tokens[r] == STEP_TOKEN_LAST ? n->last[slot] : s->tokens[r];
        if (n->lag == 0)
            assert_true(s->tokens[r] >= 0);
        int32_t page = s->rows.block_table[slot * s->rows.block_table_stride + p / KV_PAGE_TOKENS];
        n->pages[page][p % KV_PAGE_TOKENS] = id;
        if (r > 0 && s->rows.slot[r - 1] == slot)
            assert_int_equal(s->rows.position[r - 1], p - 1);
    }
}

static void net_logit(struct net *n, const struct step *s, const struct step_logit *l,
                      struct sample_token *out)
{
    int32_t ids[LEN], p = s->rows.position[l->row];
    assert_int_equal(s->rows.slot[l->row], l->slot);
    for (int32_t i = 0; i <= p; i++)
        ids[i] =
            n->pages[s->rows.block_table[l->slot * s->rows.block_table_stride + i / KV_PAGE_TOKENS]]
                    [i % KV_PAGE_TOKENS];
    if (n->instead[l->kind]) {
        *out = *n->instead[l->kind];
        return;
    }
    if (l->kind == STEP_PROMPT_LOGPROB) {
        draw_prompt(ids, p + 1, l->target, out);
        return;
    }
    const struct sample_row *row = &l->sample;
    assert_int_equal(row->n_prompt + row->n_output, p + 1);
    for (int32_t i = 0; i < row->n_output - n->lag; i++)
        assert_int_equal(row->output[i], ids[row->n_prompt + i]);
    draw(ids, p + 1, row, out);
    n->last[l->slot] = out->id < 0 ? 0 : out->id;
}

static int net_forward(void *ctx, const struct step *s, struct sample_token *tokens,
                       struct err *err)
{
    struct net *n = ctx;
    (void)err;
    static struct sample_token fresh[512];
    assert_true(s->rows.n <= n->rows_most);
    n->now += 1000 + 7 * s->rows.n;
    net_write(n, s);
    for (int32_t i = 0; i < s->n_logits; i++)
        net_logit(n, s, &s->logits[i], n->lag ? &fresh[i] : &tokens[i]);
    if (n->lag) {
        memcpy(tokens, n->kept, (size_t)n->n_kept * sizeof *tokens);
        memcpy(n->kept, fresh, (size_t)s->n_logits * sizeof *fresh);
        n->n_kept = s->n_logits;
    }
    return E_OK;
}

static int64_t net_now(void *ctx)
{
    return ((struct net *)ctx)->now;
}

static void net_close(void *ctx)
{
    struct net *n = ctx;
    free(n->pages);
    free(n->kept);
    free(n);
}

struct rig {
    struct engine *e;
    struct net *net;
    struct clock clock;
};

static void rig_open(struct rig *g, struct engine_opts o, int32_t n_pages, int lag)
{
    struct err err = {0};
    g->net = calloc(1, sizeof *g->net);
    g->net->pages = calloc((size_t)n_pages, sizeof *g->net->pages);
    g->net->kept = calloc(512, sizeof *g->net->kept);
    g->net->lag = lag;
    g->net->rows_most = o.step_tokens;
    g->clock = (struct clock){.mono_ns = net_now, .ctx = g->net};
    o.rules = rules;
    o.clock = &g->clock;
    const struct engine_net net = {.ctx = g->net,
                                   .lag = lag,
                                   .vocab_size = VOCAB,
                                   .fingerprint = "fake",
                                   .forward = net_forward,
                                   .close = net_close};
    assert_int_equal(engine_core_open(&g->e, &o, &net, n_pages, &err), E_OK);
}

/* ---- requests ---- */
struct job {
    int32_t prompt[LEN], ids[LEN], top_ids[LEN * TOP], prompt_top_ids[LEN * TOP];
    float logprobs[LEN], top_logprobs[LEN * TOP], prompt_logprobs[LEN];
    float prompt_top_logprobs[LEN * TOP];
    struct generated out;
    struct request r;
    struct finished end;
    int times; /* reported */
};

static void job_init(struct job *j, uint64_t tag)
{
    memset(j, 0, sizeof *j);
    j->out = (struct generated){.cap = LEN,
                                .ids = j->ids,
                                .logprobs = j->logprobs,
                                .top_ids = j->top_ids,
                                .top_logprobs = j->top_logprobs,
                                .prompt_logprobs = j->prompt_logprobs,
                                .prompt_top_ids = j->prompt_top_ids,
                                .prompt_top_logprobs = j->prompt_top_logprobs};
    j->r = (struct request){.tag = tag, .prompt = j->prompt, .n_prompt = 1, .out = &j->out};
    sampling_init(&j->r.sampling);
    j->r.sampling.max_tokens = 30;
    j->r.sampling.params.n_top = TOP;
    j->r.sampling.params.rng_key = tag;
}

static int collect(struct rig *g, struct job *jobs)
{
    struct finished f[3];
    struct err err = {0};
    int n = engine_step(g->e, f, 1 + below(3), &err);
    assert_true(n >= 0);
    for (int i = 0; i < n; i++) {
        jobs[f[i].tag].end = f[i];
        jobs[f[i].tag].times++;
    }
    kv_check(g->e->kv);
    return n;
}

static void run_all(struct rig *g, struct job *jobs, int n)
{
    struct err err = {0};
    int sent = 0, done = 0;
    for (int i = 0; done < n; i++) {
        assert_true(i < 100000);
        while (sent < n && engine_submit(g->e, &jobs[sent].r, &err) == ENGINE_ACCEPTED)
            sent++;
        done += collect(g, jobs);
    }
}

#endif
