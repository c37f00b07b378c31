/* engine_warm: what a CUDA engine does once before it is ready, so that no step of a run makes a
 * plan, loads a kernel or takes memory: every step size through one layer (that makes, proves and
 * times the GEMM plans, or takes them from the cache), then whole steps of each make-up, as graphs.
 */
#include "engine/backend_cuda.h"
#include "engine/engine_core.h"
#include "engine/log.h"
#include "engine/model.h"

enum { KINDS = 6, DECODES = 12, PROMPT = 12 };

/* Room for a step that stands for nothing: all pages are page 0, whose content no sequence reads
 * before it has written it. */
struct room {
    const struct engine_opts *opts;
    int32_t *ids, *position, *slot, *table; /* table [slots, pages a slot], zero */
    struct step_logit *logits;
    struct sample_token *tokens;
    int32_t stride, n, n_logits, logits_cap;
    int64_t vocab;
};

static void add_row(struct room *r, int32_t slot, int32_t position)
{
    r->ids[r->n] = (int32_t)((uint32_t)r->n * 2654435761u % (uint32_t)r->vocab);
    r->position[r->n] = position;
    r->slot[r->n++] = slot;
}

/* The row added last is sampled, in one of the ways that have code of their own; 0: greedy. */
static void add_logit(struct room *r, int32_t kind)
{
    static const int32_t prompt[] = {1};
    static const struct sample_params kinds[KINDS] = {
        {.repetition_penalty = 1, .n_top = -1},
        {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_top = -1},
        {.temperature = 0.6f, .top_p = 0.95f, .repetition_penalty = 1, .n_top = -1},
        {.temperature = 1, .top_p = 0.9f, .top_k = 50, .repetition_penalty = 1, .n_top = 2},
        {.temperature = 1, .top_p = 1, .min_p = 0.05f, .repetition_penalty = 1, .n_top = 0},
        {.temperature = 0.7f,
         .top_p = 1,
         .repetition_penalty = 1.1f,
         .frequency_penalty = 0.5f,
         .n_top = -1}};
    const int32_t slot = r->slot[r->n - 1];
    if (r->n_logits == r->logits_cap)
        return;
    r->logits[r->n_logits] = (struct step_logit){.row = r->n - 1,
                                                 .slot = slot,
                                                 .kind = STEP_SAMPLE,
                                                 .sample = {.params = &kinds[kind % KINDS],
                                                            .prompt = prompt,
                                                            .n_prompt = 1,
                                                            .output = prompt,
                                                            .forced = -1}};
    r->n_logits++;
}

static struct step step_of(const struct room *r)
{
    return (struct step){.rows = {r->n, r->position, r->slot, r->table, r->stride},
                         .tokens = r->ids,
                         .logits = r->logits,
                         .n_logits = r->n_logits};
}

/* m rows of as many prompts as it takes, each of them sampled as far as logits go at once. */
static int one_size(struct room *r, struct network *n, int32_t m, struct err *err)
{
    r->n = r->n_logits = 0;
    for (int32_t i = 0; i < m; i++) {
        add_row(r, i / r->opts->max_model_len, i % r->opts->max_model_len);
        add_logit(r, 0);
    }
    const struct step step = step_of(r);
    return network_warm(n, &step, r->tokens, err);
}

/* Decode rows, one of them long where `cut`, and a prompt where `prompt` rows. */
static int one_kind(struct room *r, struct network *n, int32_t decodes, bool cut, int32_t prompt,
                    struct err *err)
{
    const struct engine_opts *o = r->opts;
    r->n = r->n_logits = 0;
    decodes = TR_MIN(decodes, TR_MIN(o->slots - (prompt > 0), o->step_tokens));
    prompt = TR_MIN(prompt, TR_MIN(o->max_model_len, o->step_tokens - decodes));
    for (int32_t i = 0; i < decodes; i++) {
        add_row(r, i, i == 0 && cut ? o->max_model_len - 1 : TR_MIN(i, o->max_model_len - 1));
        add_logit(r, i);
    }
    for (int32_t i = 0; i < prompt; i++)
        add_row(r, o->slots - 1, i);
    if (prompt > 0)
        add_logit(r, 0);
    const struct step step = step_of(r);
    return step.rows.n > 0 ? network_forward(n, &step, r->tokens, err) : E_OK;
}

static int kinds(struct room *r, struct network *n, struct err *err)
{
    static const struct {
        int32_t decodes, prompt;
        bool cut;
    } all[] = {{DECODES, 0, true},       {DECODES, 0, false}, {DECODES, PROMPT, true},
               {DECODES, PROMPT, false}, {0, PROMPT, false},  {1, 0, true}};
    int rc = E_OK;
    for (size_t i = 0; i < TR_COUNT(all) && rc == E_OK; i++)
        rc = one_kind(r, n, all[i].decodes, all[i].cut, all[i].prompt, err);
    return rc;
}

static int room_open(struct room *r, const struct engine_opts *o, struct err *err)
{
    const int64_t rows = o->step_tokens;
    *r = (struct room){.opts = o,
                       .stride = kv_pages_of(o->max_model_len),
                       .logits_cap = TR_MIN(o->step_tokens, ENGINE_CUDA_LOGITS),
                       .vocab = model_config(o->model)->vocab_size};
    const int64_t table = (int64_t)o->slots * r->stride;
    r->ids = mem_alloc((size_t)(3 * rows + table), sizeof *r->ids);
    r->position = r->ids + rows;
    r->slot = r->ids + 2 * rows;
    r->table = r->ids + 3 * rows;
    r->logits = mem_alloc((size_t)r->logits_cap, sizeof *r->logits);
    r->tokens = mem_alloc((size_t)r->logits_cap, sizeof *r->tokens);
    return r->ids && r->logits && r->tokens ? E_OK : err_set(err, E_FATAL, "cuda: no host memory");
}

int engine_cuda_warm(struct backend *b, struct network *n, const struct engine_opts *o,
                     struct err *err)
{
    const int64_t start_ns = clock_mono_ns(clock_system());
    const int64_t most = (int64_t)o->slots * o->max_model_len;
    struct room r;
    int32_t sizes = 0;
    int rc = room_open(&r, o, err);
    backend_cuda_plan_cache(b, o->cache_dir);
    for (int32_t m = o->step_tokens; rc == E_OK && m > 0; m = backend_cuda_rows_below(m)) {
        if (m <= most)
            rc = one_size(&r, n, m, err), sizes++;
    }
    if (rc == E_OK)
        rc = backend_cuda_drain(b, r.tokens, err);
    backend_cuda_plans_keep(b);
    const int64_t sized_ns = clock_mono_ns(clock_system());
    backend_cuda_graphs(b, !o->no_graphs);
    if (rc == E_OK)
        rc = kinds(&r, n, err);
    if (rc == E_OK)
        rc = backend_cuda_drain(b, r.tokens, err);
    for (int32_t i = 0; i < o->slots && rc == E_OK; i++)
        backend_cuda_slot_open(b, i);
    if (rc == E_OK)
        LOG(LOG_INFO, "cuda_warm", LOG_I("sizes", sizes),
            LOG_F("sizes_seconds", (double)(sized_ns - start_ns) * 1e-9),
            LOG_F("kinds_seconds", (double)(clock_mono_ns(clock_system()) - sized_ns) * 1e-9));
    mem_free(r.ids);
    mem_free(r.logits);
    mem_free(r.tokens);
    return rc;
}
