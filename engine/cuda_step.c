/* cuda_step: what the device is told of a step, and the tokens it hands back. */
#include "engine/backend_cuda_impl.h"

static int32_t history_cap(const struct cuda_backend *b)
{
    return TR_MAX(b->opts.pages_per_slot * KV_PAGE_TOKENS, HISTORY_IDS);
}

void cuda_block_layout(struct step_block *s, const struct cuda_backend *b, unsigned char *base)
{
    const size_t rows = (size_t)b->opts.rows_cap, slots = (size_t)b->opts.slots;
    size_t at = 0;
#define PART(field, count)                                                                         \
    do {                                                                                           \
        s->field = (void *)(base + at);                                                            \
        at = (at + (count) * sizeof *s->field + 255) / 256 * 256;                                  \
    } while (0)
    s->base = base;
    PART(tile_starts, (size_t)b->n_sms + 1);
    PART(decode_starts, (size_t)cuda_decode_workers(b) + 1);
    PART(tokens, rows);
    PART(position, rows);
    PART(slot, rows);
    PART(logit_rows, rows);
    PART(deltas, (size_t)b->deltas_cap);
    PART(copies, slots);
    PART(samples, rows);
    PART(decode, 2 * (size_t)b->spans_cap);
    PART(merges, (size_t)b->spans_cap);
    PART(tiles, 2 * (size_t)cuda_tiles_cap(&b->opts));
    PART(tile_rows, rows);
    PART(ids, slots * SAMPLE_IDS_MAX);
    PART(bias, slots * SAMPLE_IDS_MAX);
    PART(history, (size_t)history_cap(b));
    PART(histories, slots);
#undef PART
    s->bytes = at;
}

/* Entries of the block table that changed since the device last saw them. */
static int pack_block_table(struct cuda_backend *b, const struct step *s, struct step_block *h)
{
    const int32_t stride = s->rows.block_table_stride;
    int n = 0;
    for (int r = 0; r < s->rows.n; r++) {
        if (r + 1 < s->rows.n && s->rows.slot[r + 1] == s->rows.slot[r])
            continue; /* the last row of a sequence covers the others */
        const int64_t at = (int64_t)s->rows.slot[r] * stride;
        for (int p = 0; p <= s->rows.position[r] / KV_PAGE_TOKENS; p++) {
            if (b->block_table_shadow[at + p] == s->rows.block_table[at + p])
                continue;
            CHECK(n < b->deltas_cap);
            b->block_table_shadow[at + p] = s->rows.block_table[at + p];
            h->deltas[n++] = INT2((int)(at + p), s->rows.block_table[at + p]);
        }
    }
    return n;
}

/* A page may be copied from in the step that copies into it; the device makes all copies at once,
 * so each comes from the first page of its chain. */
static void pack_copies(const struct step *s, struct step_block *h)
{
    for (int32_t i = 0; i < s->n_copies; i++) {
        const struct step_copy *c = &s->copies[i];
        int32_t from = c->page_from, k = i - 1;
        while (k >= 0 && h->copies[k].y != from)
            k--;
        if (k >= 0) {
            CHECK(c->n_tokens <= h->copies[k].z);
            from = h->copies[k].x;
        }
        h->copies[i] = INT4(from, c->page_to, c->n_tokens, 0);
    }
}

/* Uploads [field, field + bytes) of the flight's block: nobody reads it any more, because the step
 * before the last has ended. */
static cudaError_t upload(struct cuda_backend *b, struct flight *f, const void *field, size_t bytes)
{
    const size_t at = (size_t)((const unsigned char *)field - f->host.base);
    return bytes == 0
               ? cudaSuccess
               : cudaMemcpyAsync(f->device.base + at, field, bytes, cudaMemcpyHostToDevice, b->up);
}

static cudaError_t history_upload(struct cuda_backend *b, struct flight *f)
{
    cudaError_t e = upload(b, f, f->host.history, (size_t)b->n_history * 4);
    return e == cudaSuccess
               ? upload(b, f, f->host.histories, (size_t)b->n_histories * sizeof *f->host.histories)
               : e;
}

static cudaError_t history_count(struct cuda_backend *b, struct flight *f)
{
    return b->n_histories == 0
               ? cudaSuccess
               : (cudaError_t)counts_cuda(b->counts, (int)b->opts.vocab_size, f->device.histories,
                                          b->n_histories, b->stream);
}

/* More histories begin in this step than the block holds: those so far are counted first. */
static cudaError_t history_now(struct cuda_backend *b, struct flight *f)
{
    cudaError_t e = history_upload(b, f);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(b->up);
    if (e == cudaSuccess)
        e = history_count(b, f);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(b->stream);
    b->n_history = b->n_histories = 0;
    return e;
}

/* The slot's counts stand for this row's history, or are rebuilt: a new or resumed sequence. */
static int history_follow(struct cuda_backend *b, const struct step_logit *l, struct flight *f,
                          struct err *err)
{
    const struct sample_row *row = &l->sample;
    struct slot_history *h = &b->history[l->slot];
    const bool same =
        h->prompt == row->prompt && h->output == row->output && row->n_output == h->n_output + 1;
    h->n_output = row->n_output;
    if (same)
        return E_OK;
    h->prompt = row->prompt;
    h->output = row->output;
    const int32_t n = row->n_prompt + row->n_output;
    CHECK(n <= history_cap(b));
    cudaError_t e = cudaSuccess;
    if (b->n_history + n > history_cap(b) || b->n_histories == b->opts.slots)
        e = history_now(b, f);
    int32_t *ids = f->host.history + b->n_history;
    memcpy(ids, row->prompt, (size_t)row->n_prompt * 4);
    if (row->n_output > 0)
        memcpy(ids + row->n_prompt, row->output, (size_t)row->n_output * 4);
    f->host.histories[b->n_histories++] = (struct counts_cuda){
        f->device.history + b->n_history, row->n_prompt, row->n_output, l->slot};
    b->n_history += n;
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "penalty counts");
}

static bool has_penalties(const struct sample_params *p)
{
    return p->repetition_penalty != 1.f || p->frequency_penalty != 0.f ||
           p->presence_penalty != 0.f;
}

static int pack_sample(struct cuda_backend *b, const struct step_logit *l, struct flight *f, int i,
                       int *n_ids, struct err *err)
{
    struct step_block *h = &f->host;
    struct sample_cuda *out = &h->samples[i];
    h->logit_rows[i] = l->row;
    if (l->kind == STEP_PROMPT_LOGPROB) {
        *out = (struct sample_cuda){
            .forced = l->target, .n_top = l->n_top, .slot = -1, .counts_row = -1};
        return E_OK;
    }
    const struct sample_row *row = &l->sample;
    const struct sample_params *p = row->params;
    CHECK(row->n_banned + p->n_bias <= SAMPLE_IDS_MAX);
    *out = (struct sample_cuda){
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition_penalty = p->repetition_penalty,
        .frequency_penalty = p->frequency_penalty,
        .presence_penalty = p->presence_penalty,
        .top_k = p->top_k,
        .n_output = row->n_output,
        .forced = row->forced,
        .n_top = p->n_top,
        .slot = l->slot,
        .counts_row = has_penalties(p) ? l->slot : -1,
        .n_banned = row->n_banned,
        .n_bias = p->n_bias,
        .ids = f->device.ids + *n_ids,
        .bias = f->device.bias + *n_ids,
        .rng_key = p->rng_key,
        .choice = p->choice,
    };
    for (int k = 0; k < row->n_banned; k++)
        h->ids[*n_ids + k] = row->banned[k];
    for (int k = 0; k < p->n_bias; k++) {
        h->ids[*n_ids + row->n_banned + k] = p->bias_ids[k];
        h->bias[*n_ids + k] = p->bias[k];
    }
    *n_ids += row->n_banned + p->n_bias;
    return has_penalties(p) ? history_follow(b, l, f, err) : E_OK;
}

static struct step_clock *clock_of(struct cuda_backend *b, int64_t step)
{
    return &b->clocks[step % STEPS_TIMED];
}

/* The stream goes on behind the upload; then what must be done before the forward pass. */
static cudaError_t enqueue_start(struct cuda_backend *b, const struct step *s, struct flight *f,
                                 int n_deltas)
{
    struct step_clock *clock = clock_of(b, b->step_count);
    clock->step = b->step_count;
    cudaError_t e = cudaEventRecord(f->uploaded, b->up);
    if (e == cudaSuccess)
        e = cudaStreamWaitEvent(b->stream, f->uploaded, 0);
    if (e == cudaSuccess)
        e = cudaEventRecord(clock->begin, b->stream);
    if (e == cudaSuccess)
        e = history_count(b, f);
    if (e == cudaSuccess && n_deltas > 0)
        e = (cudaError_t)scatter_cuda(b->block_table, f->device.deltas, n_deltas, b->stream);
    if (e == cudaSuccess && s->n_copies > 0)
        e = (cudaError_t)kv_copy_cuda(b->kv, b->kv_layer_elements, b->opts.n_layers,
                                      b->opts.n_kv_heads, b->opts.head_dim, f->device.copies,
                                      s->n_copies, b->stream);
    return e == cudaSuccess ? cuda_graph_begin(b) : e;
}

int cuda_step_begin(struct backend *base, const struct step *s, struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    struct flight *f = &b->flights[b->step_count % STEPS_IN_FLIGHT];
    struct step_block *h = &f->host;
    CHECK(s->rows.n <= b->opts.rows_cap && s->n_logits <= b->opts.rows_cap);
    CHECK(s->rows.block_table_stride == b->opts.pages_per_slot);
    cudaSetDevice(b->device); /* a thread's own choice, and the engine's thread did not open it */
    b->step = s;
    b->now = f;
    b->launch_error = 0;
    f->n_logits = s->n_logits;
    f->used = true;
    const size_t n = (size_t)s->rows.n;
    memcpy(h->tokens, s->tokens, n * 4);
    memcpy(h->position, s->rows.position, n * 4);
    memcpy(h->slot, s->rows.slot, n * 4);
    b->n_history = b->n_histories = 0;
    const int n_deltas = pack_block_table(b, s, h);
    int n_ids = 0, rc = E_OK;
    for (int i = 0; i < s->n_logits && rc == E_OK; i++)
        rc = pack_sample(b, &s->logits[i], f, i, &n_ids, err);
    if (rc < 0)
        return rc;
    pack_copies(s, h);
    cuda_attention_lists(b, &s->rows, h);
    /* tile_starts .. logit_rows stand together; the lists behind them go up as far as they are
     * filled. */
    const size_t head = (size_t)((unsigned char *)h->deltas - h->base);
    cudaError_t e = cudaMemcpyAsync(f->device.base, h->base, head, cudaMemcpyHostToDevice, b->up);
    if (e == cudaSuccess)
        e = upload(b, f, h->deltas, (size_t)n_deltas * sizeof *h->deltas);
    if (e == cudaSuccess)
        e = upload(b, f, h->copies, (size_t)s->n_copies * sizeof *h->copies);
    if (e == cudaSuccess)
        e = upload(b, f, h->samples, (size_t)s->n_logits * sizeof *h->samples);
    if (e == cudaSuccess)
        e = upload(b, f, h->decode, 2 * (size_t)b->n_spans * sizeof *h->decode);
    if (e == cudaSuccess)
        e = upload(b, f, h->merges, (size_t)b->n_merges * sizeof *h->merges);
    if (e == cudaSuccess)
        e = upload(b, f, h->tiles, 2 * (size_t)b->lists.n_tiles * sizeof *h->tiles);
    if (e == cudaSuccess)
        e = upload(b, f, h->tile_rows, (size_t)b->lists.n_rows * sizeof *h->tile_rows);
    if (e == cudaSuccess)
        e = upload(b, f, h->ids, (size_t)n_ids * 4);
    if (e == cudaSuccess)
        e = upload(b, f, h->bias, (size_t)n_ids * 4);
    if (e == cudaSuccess)
        e = history_upload(b, f);
    if (e == cudaSuccess)
        e = enqueue_start(b, s, f, n_deltas);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "step upload");
}

/* Adds an ended step to the device's times; the pause before it only where it followed a step. */
static cudaError_t take_times(struct cuda_backend *b, int64_t step)
{
    const struct step_clock *now = clock_of(b, step), *before = clock_of(b, step + STEPS_TIMED - 1);
    float busy = 0, idle = 0;
    cudaError_t e = cudaEventElapsedTime(&busy, now->begin, now->end);
    if (e == cudaSuccess && step > 0 && before->step == step - 1)
        e = cudaEventElapsedTime(&idle, before->end, now->begin);
    b->busy_ns += (int64_t)(busy * 1e6f);
    b->idle_ns += (int64_t)(idle * 1e6f);
    return e;
}

/* Tokens of the step before the newest one; zero rows when there is none. */
static cudaError_t take_previous(struct cuda_backend *b, struct sample_token *tokens)
{
    struct flight *f = &b->flights[b->step_count % STEPS_IN_FLIGHT];
    const int64_t step = b->step_count - STEPS_IN_FLIGHT;
    if (!f->used)
        return cudaSuccess;
    const int64_t before_ns = clock_mono_ns(clock_system());
    cudaError_t e = cudaEventSynchronize(clock_of(b, step)->end);
    b->waited_ns += clock_mono_ns(clock_system()) - before_ns;
    if (e == cudaSuccess)
        e = take_times(b, step);
    if (e == cudaSuccess)
        memcpy(tokens, f->tokens_host, (size_t)f->n_logits * sizeof *tokens);
    f->used = false;
    return e;
}

void backend_cuda_times(const struct backend *base, int64_t *busy_ns, int64_t *idle_ns)
{
    const struct cuda_backend *b = cuda_self(base);
    *busy_ns = b->busy_ns;
    *idle_ns = b->idle_ns;
}

int backend_cuda_drain(struct backend *base, struct sample_token *tokens, struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    cudaSetDevice(b->device);
    b->step_count++;
    cudaError_t e = take_previous(b, tokens);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "step");
}

void backend_cuda_slot_open(struct backend *base, int32_t slot)
{
    struct cuda_backend *b = cuda_self(base);
    CHECK(slot >= 0 && slot < b->opts.slots);
    b->history[slot] = (struct slot_history){0};
}

int cuda_step_end(struct backend *base, struct sample_token *tokens, struct err *err)
{
    struct cuda_backend *b = cuda_self(base);
    struct flight *f = b->now;
    cudaError_t e = cuda_graph_end(b);
    if (e == cudaSuccess && f->n_logits > 0)
        e = cudaMemcpyAsync(f->tokens_host, f->tokens_device, (size_t)f->n_logits * sizeof *tokens,
                            cudaMemcpyDeviceToHost, b->stream);
    if (e == cudaSuccess)
        e = cudaEventRecord(clock_of(b, b->step_count)->end, b->stream);
    b->step_count++;
    if (e == cudaSuccess)
        e = take_previous(b, tokens);
    return e == cudaSuccess ? E_OK : cuda_fail(err, e, "step");
}
