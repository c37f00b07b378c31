/* engine_core: opening and closing, the state of sequences, what engine.h tells about an engine.
 * Submitting stands in engine_submit.c, the step loop in engine_step.c. */
#include "engine/engine_core.h"

static void *take(struct engine *e, int64_t count, size_t size)
{
    void *p = mem_alloc((size_t)count, size);
    e->memory += p ? count * (int64_t)size : 0;
    return p;
}

static bool take_sequences(struct engine *e)
{
    e->seqs = take(e, e->cap, sizeof *e->seqs);
    e->tag_heads = take(e, e->n_buckets, sizeof *e->tag_heads);
    e->line = take(e, e->cap, sizeof *e->line);
    e->done = take(e, e->cap, sizeof *e->done);
    if (!e->seqs || !e->tag_heads || !e->line || !e->done)
        return false;
    for (int32_t i = 0; i < e->cap; i++)
        e->seqs[i].next = i + 1 < e->cap ? i + 1 : -1;
    for (uint32_t i = 0; i < e->n_buckets; i++)
        e->tag_heads[i] = -1;
    return true;
}

static bool take_step(struct engine *e)
{
    int64_t slots = e->opts.slots, rows = e->opts.step_tokens;
    e->free_slots = take(e, slots, sizeof *e->free_slots);
    e->running = take(e, slots, sizeof *e->running);
    e->sched = take(e, slots, sizeof *e->sched);
    e->plan.picks = take(e, slots, sizeof *e->plan.picks);
    e->block_table = take(e, slots * e->pages_per_slot, sizeof *e->block_table);
    e->copies = take(e, slots, sizeof *e->copies);
    e->banned = take(e, slots * BANNED_MAX, sizeof *e->banned);
    e->tokens = take(e, rows, sizeof *e->tokens);
    e->position = take(e, rows, sizeof *e->position);
    e->slot = take(e, rows, sizeof *e->slot);
    e->logits = take(e, rows, sizeof *e->logits);
    e->results = take(e, rows, sizeof *e->results);
    e->flights[0].rows = take(e, rows, sizeof *e->flights[0].rows);
    e->flights[1].rows = take(e, rows, sizeof *e->flights[1].rows);
    if (!e->free_slots || !e->running || !e->sched || !e->plan.picks || !e->block_table ||
        !e->copies || !e->banned || !e->tokens || !e->position || !e->slot || !e->logits ||
        !e->results || !e->flights[0].rows || !e->flights[1].rows)
        return false;
    for (int32_t i = 0; i < e->opts.slots; i++)
        e->free_slots[i] = e->opts.slots - 1 - i;
    e->n_free_slots = e->opts.slots;
    return true;
}

int engine_core_open(struct engine **out, const struct engine_opts *opts,
                     const struct engine_net *net, int32_t n_pages, struct err *err)
{
    CHECK(opts->slots > 0 && opts->queue_cap > 0 && opts->step_tokens > 0);
    CHECK(opts->chunk_tokens > 0 && opts->max_model_len > 1);
    CHECK(n_pages >= kv_pages_of(opts->max_model_len));
    struct engine *e = mem_alloc(1, sizeof *e);
    if (!e)
        return err_set(err, E_FATAL, "no memory for the engine");
    e->opts = *opts;
    e->clock = opts->clock ? opts->clock : clock_system();
    e->n_pages = n_pages;
    e->pages_per_slot = kv_pages_of(opts->max_model_len);
    e->cap = opts->slots + opts->queue_cap;
    for (e->n_buckets = 64; e->n_buckets < (uint32_t)e->cap;)
        e->n_buckets *= 2;
    int rc = E_OK;
    if (!take_sequences(e) || !take_step(e))
        rc =
            err_set(err, E_FATAL,
                    "no memory for the engine's tables: slots %d, step_tokens %d, max_model_len %d",
                    opts->slots, opts->step_tokens, opts->max_model_len);
    if (rc == E_OK)
        rc = kv_open(&e->kv, n_pages, !opts->no_prefix_sharing, err);
    if (rc < 0) {
        engine_close(e);
        return rc;
    }
    e->net = *net;
    *out = e;
    return E_OK;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    if (e->net.close)
        e->net.close(e->net.ctx);
    kv_close(e->kv);
    void *arrays[] = {
        e->seqs,  e->tag_heads, e->line,     e->done,    e->free_slots,      e->running,
        e->sched, e->copies,    e->banned,   e->tokens,  e->plan.picks,      e->block_table,
        e->slot,  e->logits,    e->position, e->results, e->flights[0].rows, e->flights[1].rows};
    for (size_t i = 0; i < TR_COUNT(arrays); i++)
        mem_free(arrays[i]);
    mem_free(e);
}

void engine_leave_slot(struct engine *e, struct seq *s, bool forget)
{
    CHECK(s->state == SEQ_RUNNING);
    int32_t owner = (int32_t)(s - e->seqs);
    kv_release(e->kv, engine_table(e, s->slot), s->n_pages, owner, forget);
    e->free_slots[e->n_free_slots++] = s->slot;
    s->slot = -1;
    s->n_pages = s->n_computed = s->n_pending = 0;
    s->serial++;
}

void engine_tag_remove(struct engine *e, int32_t seq)
{
    uint64_t tag = e->seqs[seq].req.tag;
    int32_t *link = &e->tag_heads[hash_bytes(&tag, sizeof tag, 0) & (e->n_buckets - 1)];
    while (*link != seq)
        link = &e->seqs[*link].next;
    *link = e->seqs[seq].next;
}

void engine_finish(struct engine *e, int32_t seq, struct sequence_end end)
{
    struct seq *s = &e->seqs[seq];
    if (s->state == SEQ_RUNNING)
        engine_leave_slot(e, s, end.reason == FINISH_FAILED);
    else
        e->n_waiting--;
    s->state = SEQ_DONE;
    s->end = end;
    engine_tag_remove(e, seq);
    e->done[(e->done_head + e->n_done++) % e->cap] = seq;
}

void engine_forget(struct engine *e, int32_t seq)
{
    struct seq *s = &e->seqs[seq];
    s->state = SEQ_FREE;
    s->serial++;
    s->next = e->free_seq;
    e->free_seq = seq;
}

bool engine_idle(const struct engine *e)
{
    return e->n_done == 0 && e->n_waiting == 0 && e->n_free_slots == e->opts.slots;
}

void engine_stats(const struct engine *e, struct engine_stats *out)
{
    *out = e->stats;
    if (e->net.times)
        e->net.times(e->net.ctx, &out->busy_ns, &out->idle_ns);
    out->slots = e->opts.slots;
    out->step_tokens = e->opts.step_tokens;
    out->running = e->opts.slots - e->n_free_slots;
    out->waiting = e->n_waiting;
    out->pages = e->n_pages;
    out->pages_used = e->n_pages - kv_available(e->kv);
}

void engine_stats_add(struct engine_stats *sum, const struct engine_stats *one)
{
    const int64_t slots = (int64_t)sum->slots + one->slots;
    if (slots > 0)
        sum->steps = (int64_t)(((__int128)sum->steps * sum->slots +
                                (__int128)one->steps * one->slots + slots / 2) /
                               slots);
    sum->rows += one->rows;
    sum->padding_rows += one->padding_rows;
    sum->prefill_rows += one->prefill_rows;
    sum->decode_rows += one->decode_rows;
    sum->cached_rows += one->cached_rows;
    sum->sampled += one->sampled;
    sum->evictions += one->evictions;
    sum->slot_steps += one->slot_steps;
    sum->device_ns += one->device_ns;
    sum->busy_ns += one->busy_ns;
    sum->idle_ns += one->idle_ns;
    sum->slots += one->slots;
    sum->running += one->running;
    sum->waiting += one->waiting;
    sum->pages += one->pages;
    sum->pages_used += one->pages_used;
    sum->pages_peak += one->pages_peak;
}

int engine_memory(const struct engine *e, struct memory_line *out, int cap)
{
    static const char *const of_net[] = {"weights", "kv pages", "activations"};
    int n = 0;
    for (size_t i = 0; i < TR_COUNT(of_net) && e->net.bytes; i++, n++) {
        if (n < cap)
            out[n] = (struct memory_line){of_net[i], e->net.bytes(e->net.ctx, of_net[i])};
    }
    if (n < cap)
        out[n] = (struct memory_line){"kv page table", kv_bytes(e->kv)};
    n++;
    if (n < cap)
        out[n] = (struct memory_line){"sequences and step", e->memory + (int64_t)sizeof *e};
    return n + 1;
}

int32_t engine_max_model_len(const struct engine *e)
{
    return e->opts.max_model_len;
}

const char *engine_fingerprint(const struct engine *e)
{
    return e->net.fingerprint;
}
