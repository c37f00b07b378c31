/* engine_sim: a net without a model. A completion is a pure function of the prompt and the sampling
 * (rng_key and choice included); it runs through the same slots, pages, rules and step loop as a
 * model's, so whatever holds for the job path with it holds with a model. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine/engine_core.h"

enum {
    SIM_VOCAB = 32768, /* without a tokenizer */
    SIM_LEN = 32768,
    SIM_SLOTS = 64,
    SIM_PAGES_MAX = 1 << 16,
    SIM_TOKENS_MEAN = 32,
    SIM_BUCKET = 16, /* rows, as a GPU's narrowest products have */
};

struct sim_slot {
    uint64_t key;
    int32_t length;   /* generated ids, the end of sequence included */
    int32_t close_at; /* position of </think>, or -1 */
    bool fails;
};
struct sim {
    struct engine_opts opts;
    const struct clock *clock;
    struct sim_slot *slots;
    int32_t *ids; /* ids that completions are made of */
    int32_t n_ids, vocab_size;
    int64_t steps;
};

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* Everything of the sampling that may change a real engine's draw. */
static uint64_t sampling_hash(const struct sample_params *p, uint64_t seed)
{
    const float f[] = {p->temperature,       p->top_p,           p->min_p, p->repetition_penalty,
                       p->frequency_penalty, p->presence_penalty};
    uint64_t h = hash_bytes(f, sizeof f, seed ^ (uint64_t)(uint32_t)p->top_k);
    if (p->n_bias > 0) {
        h = hash_bytes(p->bias_ids, (size_t)p->n_bias * sizeof *p->bias_ids, h);
        h = hash_bytes(p->bias, (size_t)p->n_bias * sizeof *p->bias, h);
    }
    return mix(h ^ mix(p->rng_key + 1)) + mix(p->choice + 1);
}

/* A page of its own, not NULL: sanitizers stop a write through that before the machine does. */
static void write_where_none_may(void)
{
    char *volatile page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page != MAP_FAILED)
        *page = 1;
}

/* Touches what it takes, as a runaway computation would: slowly enough to be noticed. */
static void take_all_memory(const struct clock *clock)
{
    enum { PIECE = 16 << 20, PIECES = 128 };
    for (int i = 0; i < PIECES; i++) {
        char *piece = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece == MAP_FAILED)
            break;
        memset(piece, i + 1, PIECE);
        clock_sleep_ns(clock, 5000000);
    }
    abort();
}

static void take_poison(const struct sim *sim, int32_t id)
{
    const struct sim_opts *o = &sim->opts.sim;
    int32_t last = o->poison == SIM_POISON_EACH ? SIM_POISON_MEMORY : 0;
    int kind = o->poison == SIM_POISON_EACH ? id - o->poison_id : (int)o->poison;
    if (id < o->poison_id || id > o->poison_id + last)
        return;
    fprintf(stderr, "simulated engine: poison id %d in the prompt\n", id);
    if (kind == SIM_POISON_SEGFAULT)
        write_where_none_may();
    while (kind == SIM_POISON_HANG)
        clock_sleep_ns(clock_system(), 1000000000);
    if (kind == SIM_POISON_MEMORY)
        take_all_memory(clock_system());
    abort();
}

static void sim_slot_open(void *ctx, int32_t slot, const struct request *r)
{
    struct sim *sim = ctx;
    struct sim_slot *s = &sim->slots[slot];
    const struct sim_opts *o = &sim->opts.sim;
    const struct sequence_rules *rules = &sim->opts.rules;
    for (int32_t i = 0; o->poison_id >= 0 && i < r->n_prompt; i++)
        take_poison(sim, r->prompt[i]);
    uint64_t prompt = hash_bytes(r->prompt, (size_t)r->n_prompt * sizeof *r->prompt, 1);
    s->key = sampling_hash(&r->sampling.params, prompt);
    s->length = 1 + (int32_t)(mix(s->key + 2) % (2 * (uint64_t)o->tokens_mean - 1));
    double u = (double)(mix(r->sampling.params.rng_key + 3) >> 11) * 0x1p-53;
    s->fails = u < o->fail_share;
    struct sequence_state st;
    sequence_begin(&st, rules, r->prompt, r->n_prompt);
    s->close_at = st.thinking ? s->length / 2 : -1;
}

static bool in(int32_t id, const int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] == id)
            return true;
    }
    return false;
}

static int32_t sim_draw(const struct sim *sim, const struct sim_slot *s,
                        const struct sample_row *row, uint64_t h)
{
    int32_t n = row->n_output, eos = sim->opts.rules.eos_ids[0];
    if (row->forced >= 0)
        return row->forced;
    if (s->fails && n >= s->length / 2)
        return -1;
    bool ends = n == s->length - 1 || (n >= s->length && h % 4 == 0);
    if (ends && !in(eos, row->banned, row->n_banned))
        return eos;
    if (n == s->close_at)
        return sim->opts.rules.think_close_id;
    uint64_t i = (h >> 8) % (uint64_t)sim->n_ids;
    while (in(sim->ids[i], row->banned, row->n_banned))
        i = (i + 1) % (uint64_t)sim->n_ids;
    return sim->ids[i];
}

static void sim_logprobs(const struct sim *sim, struct sample_token *t, uint64_t h, int32_t n_top)
{
    t->logprob = -(float)(h & 0xFFFF) / 8192;
    t->n_top = TR_MAX(n_top, 0);
    for (int32_t k = 0; k < t->n_top; k++) {
        t->top_ids[k] = (TR_MAX(t->id, 0) + k) % sim->vocab_size;
        t->top_logprobs[k] = t->logprob - (float)k / 4;
    }
}

static int sim_forward(void *ctx, const struct step *step, struct sample_token *tokens,
                       struct err *err)
{
    struct sim *sim = ctx;
    sim->steps++;
    if (sim->opts.device == 0 && sim->opts.sim.fault_after_steps > 0 &&
        sim->steps >= sim->opts.sim.fault_after_steps)
        return err_set(err, E_FATAL, "simulated engine: the device was lost at step %lld",
                       (long long)sim->steps);
    if (sim->opts.sim.crash_after_steps > 0 && sim->steps >= sim->opts.sim.crash_after_steps)
        raise(SIGKILL);
    if (sim->opts.sim.step_ns > 0)
        clock_sleep_ns(sim->clock, sim->opts.sim.step_ns);
    for (int32_t i = 0; i < step->n_logits; i++) {
        const struct step_logit *l = &step->logits[i];
        const struct sim_slot *s = &sim->slots[l->slot];
        uint64_t at = (uint64_t)step->rows.position[l->row];
        bool sampled = l->kind == STEP_SAMPLE;
        uint64_t h = mix(s->key + (sampled ? (uint64_t)l->sample.n_output << 20 : at << 42) + 7);
        tokens[i].id = sampled ? sim_draw(sim, s, &l->sample, h) : l->target;
        sim_logprobs(sim, &tokens[i], h, sampled ? l->sample.params->n_top : l->n_top);
    }
    return E_OK;
}

static int32_t sim_padded(int32_t rows)
{
    return (rows + SIM_BUCKET - 1) / SIM_BUCKET * SIM_BUCKET;
}

static void sim_close(void *ctx)
{
    struct sim *sim = ctx;
    if (!sim)
        return;
    mem_free(sim->slots);
    mem_free(sim->ids);
    mem_free(sim);
}

/* Ids whose text can be read: printable ASCII, or a whole character of any script. */
static bool readable(const struct tokenizer *t, int32_t id)
{
    struct str s = tokenizer_token_bytes(t, id);
    if (s.len == 0 || tokenizer_is_special(t, id))
        return false;
    bool changed;
    char buf[TOKENIZER_TOKEN_BYTES_MAX * 3];
    utf8_repair(s, buf, sizeof buf, &changed);
    for (size_t i = 0; i < s.len && !changed; i++)
        changed = (unsigned char)s.ptr[i] < 0x20 || s.ptr[i] == 0x7F;
    return !changed;
}

static int sim_vocabulary(struct sim *sim, struct err *err)
{
    const struct tokenizer *t = sim->opts.rules.tokenizer;
    const struct sequence_rules *rules = &sim->opts.rules;
    sim->vocab_size = sim->opts.sim.vocab_size;
    if (sim->vocab_size == 0)
        sim->vocab_size = t ? tokenizer_vocab_size(t) : SIM_VOCAB;
    sim->ids = mem_alloc((size_t)sim->vocab_size, sizeof *sim->ids);
    if (!sim->ids)
        return err_set(err, E_FATAL, "no memory for %d simulated ids", sim->vocab_size);
    for (int32_t id = 0; id < sim->vocab_size; id++) {
        bool marker = id == rules->think_open_id || id == rules->think_close_id ||
                      in(id, rules->eos_ids, rules->n_eos_ids);
        if (!marker && (!t || readable(t, id)))
            sim->ids[sim->n_ids++] = id;
    }
    /* More than a request can ban. */
    if (sim->n_ids <= BANNED_MAX)
        return err_set(err, E_USAGE, "the simulated engine has %d ids to draw, needs more than %d",
                       sim->n_ids, BANNED_MAX);
    return E_OK;
}

static int check_sim(const struct sim_opts *o, struct err *err)
{
    if (o->fail_share < 0 || o->fail_share > 1)
        return err_set(err, E_USAGE, "simulated failure share is %g, must be from 0 to 1",
                       o->fail_share);
    if (o->tokens_mean < 0 || o->tokens_mean > SIM_LEN)
        return err_set(err, E_USAGE, "simulated mean length is %d, must be from 1 to %d",
                       o->tokens_mean, SIM_LEN);
    if (o->vocab_size < 0 || o->step_ns < 0 || o->crash_after_steps < 0 || o->fault_after_steps < 0)
        return err_set(err, E_USAGE,
                       "simulated vocabulary, step time, crash and fault step must be >= 0");
    return E_OK;
}

int engine_sim_open(struct engine **out, const struct engine_opts *opts, struct err *err)
{
    static const int32_t eos_zero[] = {0};
    int rc = check_sim(&opts->sim, err);
    if (rc < 0)
        return rc;
    struct sim *sim = mem_alloc(1, sizeof *sim);
    if (!sim)
        return err_set(err, E_FATAL, "no memory for the simulated engine");
    struct engine_opts *o = &sim->opts;
    *o = *opts;
    sim->clock = o->clock ? o->clock : clock_system();
    if (o->rules.n_eos_ids == 0) {
        o->rules.eos_ids = eos_zero;
        o->rules.n_eos_ids = 1;
    }
    o->sim.tokens_mean = o->sim.tokens_mean > 0 ? o->sim.tokens_mean : SIM_TOKENS_MEAN;
    o->slots = o->slots > 0 ? o->slots : SIM_SLOTS;
    o->queue_cap = o->queue_cap > 0 ? o->queue_cap : o->slots;
    o->step_tokens = o->step_tokens > 0 ? o->step_tokens : TR_MAX(16384, o->slots);
    o->chunk_tokens = o->chunk_tokens > 0 ? o->chunk_tokens : o->step_tokens;
    o->max_model_len = o->max_model_len > 0 ? o->max_model_len : SIM_LEN;
    int64_t pages = (int64_t)o->slots * kv_pages_of(o->max_model_len);
    pages = TR_MIN(pages, TR_MAX((int64_t)SIM_PAGES_MAX, kv_pages_of(o->max_model_len)));
    struct engine_net net = {.ctx = sim,
                             .fingerprint = "simulated",
                             .forward = sim_forward,
                             .slot_open = sim_slot_open,
                             .padded = sim_padded,
                             .close = sim_close};
    sim->slots = mem_alloc((size_t)o->slots, sizeof *sim->slots);
    rc = sim->slots ? sim_vocabulary(sim, err)
                    : err_set(err, E_FATAL, "no memory for %d simulated slots", o->slots);
    net.vocab_size = sim->vocab_size;
    if (rc == E_OK)
        rc = engine_core_open(out, o, &net, (int32_t)pages, err);
    if (rc < 0)
        sim_close(sim);
    return rc;
}
