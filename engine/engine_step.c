/* engine_step: the step loop: plan, build, forward, take the tokens, report.
 *
 * The host may run one step ahead of the net (net.lag 1): a sequence whose token is still on the
 * device counts it in n_pending and decodes on behind it (STEP_TOKEN_LAST), unless its next rule
 * depends on which token it is: then it is held for one step. */
#include <math.h>

#include "engine/engine_core.h"

/* ---- plan ---- */
static bool held(const struct seq *s)
{
    if (s->n_pending == 0)
        return false;
    return s->req.out->n + s->n_pending >= s->req.sampling.max_tokens ||
           sequence_forced_depends(&s->st, &s->req.sampling);
}

static int32_t list_running(struct engine *e)
{
    int32_t n = 0, left = e->opts.slots - e->n_free_slots;
    for (int32_t i = 0; n < left; i++) {
        struct seq *s = &e->seqs[e->line[i]];
        if (s->state != SEQ_RUNNING)
            continue;
        e->sched[n] = (struct schedule_seq){
            .n_tokens = s->req.n_prompt + s->req.out->n + s->n_pending,
            .n_computed = s->n_computed,
            .n_pages = s->n_pages,
            .held = held(s),
        };
        e->running[n++] = e->line[i];
    }
    return n;
}

static void evict(struct engine *e, struct seq *s)
{
    engine_leave_slot(e, s, false);
    s->state = SEQ_WAITING;
    s->wait.page = -1;
    /* With a token generated they are complete already. */
    s->prompt_logprobs_due = s->prompt_logprobs_due && s->req.out->n == 0;
    e->n_waiting++;
    e->stats.evictions++;
}

static void enter_slot(struct engine *e, struct seq *s, const struct kv_match *match)
{
    int32_t owner = (int32_t)(s - e->seqs);
    struct kv_ids ids = seq_ids(s);
    s->slot = e->free_slots[--e->n_free_slots];
    s->state = SEQ_RUNNING;
    e->n_waiting--;
    int32_t *table = engine_table(e, s->slot);
    kv_take(e->kv, &ids, match, owner, table);
    s->n_pages = kv_pages_of(ids.n);
    s->n_computed = match->n_known;
    if (match->n_copy > 0)
        e->copies[e->step.n_copies++] =
            (struct step_copy){match->copy_from, table[match->n_shared], match->n_copy};
    e->stats.cached_rows += match->n_known;
    if (!s->started) {
        s->started = true;
        s->started_ns = clock_mono_ns(e->clock);
        s->n_cached = TR_MIN(match->n_known, s->req.n_prompt);
    }
    if (e->net.slot_open)
        e->net.slot_open(e->net.ctx, s->slot, &s->req);
}

/* What the sequence can take over; false while it must wait for it. */
static bool match_prefix(struct engine *e, struct seq *s, struct kv_match *match)
{
    struct kv_ids ids = seq_ids(s);
    if (s->wait.page >= 0 && !kv_wait_over(e->kv, &s->wait))
        return false;
    if (s->prompt_logprobs_due)
        kv_match_none(&ids, match);
    else
        kv_match(e->kv, &ids, match, engine_table(e, e->free_slots[e->n_free_slots - 1]));
    s->wait = match->wait;
    return s->wait.page < 0;
}

static bool admit_one(struct engine *e, const struct schedule_limits *limits, struct seq *s,
                      struct kv_match *match)
{
    int32_t n = seq_ids(s).n;
    if (schedule_admit(&e->plan, limits, n, match->n_known, match->n_pages) > 0)
        return true;
    if (match->n_copy == 0)
        return false;
    kv_match_no_copy(e->kv, match);
    return schedule_admit(&e->plan, limits, n, match->n_known, match->n_pages) > 0;
}

/* Oldest first. One that waits for a prefix is passed over; one that lacks pages is not. */
static void admit(struct engine *e, const struct schedule_limits *limits)
{
    int32_t waiting = e->n_waiting;
    for (int32_t i = 0; waiting > 0 && schedule_room(&e->plan, limits); i++) {
        struct seq *s = &e->seqs[e->line[i]];
        struct kv_match match;
        if (s->state != SEQ_WAITING)
            continue;
        waiting--;
        if (!match_prefix(e, s, &match))
            continue;
        int32_t n = e->plan.n_running;
        if (!admit_one(e, limits, s, &match))
            return;
        enter_slot(e, s, &match);
        e->running[n] = e->line[i];
    }
}

static void make_plan(struct engine *e)
{
    struct schedule_limits limits = {e->opts.step_tokens, e->opts.chunk_tokens, e->opts.slots,
                                     e->n_pages};
    e->step.n_copies = 0;
    for (;;) {
        int32_t n = list_running(e);
        int32_t victim = schedule_running(e->sched, n, &limits, kv_available(e->kv), &e->plan);
        if (victim < 0)
            break;
        evict(e, &e->seqs[e->running[victim]]);
    }
    admit(e, &limits);
}

/* ---- build ---- */
static struct step_logit *add_logit(struct engine *e, struct flight *f, int32_t seq, int32_t row,
                                    int32_t prompt_pos)
{
    const struct seq *s = &e->seqs[seq];
    f->rows[f->n++] = (struct flight_row){seq, s->serial, prompt_pos};
    struct step_logit *l = &e->logits[e->step.n_logits++];
    l->row = row;
    l->slot = s->slot;
    return l;
}

static void add_prompt_logprob(struct engine *e, struct flight *f, int32_t seq, int32_t row,
                               int32_t pos)
{
    const struct request *r = &e->seqs[seq].req;
    struct step_logit *l = add_logit(e, f, seq, row, pos);
    l->kind = STEP_PROMPT_LOGPROB;
    l->target = r->prompt[pos];
    l->n_top = r->sampling.prompt_logprobs;
}

static void add_sample(struct engine *e, struct flight *f, int32_t seq, int32_t row)
{
    struct seq *s = &e->seqs[seq];
    const struct sampling *sampling = &s->req.sampling;
    int32_t n = s->req.out->n + s->n_pending;
    int32_t *banned = e->banned + (int64_t)s->slot * BANNED_MAX;
    struct step_logit *l = add_logit(e, f, seq, row, -1);
    l->kind = STEP_SAMPLE;
    l->sample = (struct sample_row){
        .params = &sampling->params,
        .prompt = s->req.prompt,
        .n_prompt = s->req.n_prompt,
        .output = s->req.out->ids,
        .n_output = n,
        .banned = banned,
        .n_banned = sequence_banned(&e->opts.rules, sampling, n, banned, BANNED_MAX),
        .forced = sequence_forced(&s->st, &e->opts.rules, sampling),
    };
    s->n_pending++;
}

static void build_pick(struct engine *e, struct flight *f, const struct schedule_pick *pick)
{
    int32_t seq = e->running[pick->seq], row = e->step.rows.n;
    struct seq *s = &e->seqs[seq];
    struct kv_ids ids = seq_ids(s);
    int32_t n_tokens = ids.n + s->n_pending, end = pick->start + pick->count;
    CHECK(pick->start == s->n_computed && end <= n_tokens);
    if (pick->new_page) {
        engine_table(e, s->slot)[s->n_pages] = kv_grow(e->kv);
        s->n_pages++;
    }
    CHECK(end <= s->n_pages * KV_PAGE_TOKENS);
    for (int32_t p = pick->start; p < end; p++, row++) {
        e->tokens[row] = p < ids.n ? kv_id(&ids, p) : STEP_TOKEN_LAST;
        e->position[row] = p;
        e->slot[row] = s->slot;
        if (s->prompt_logprobs_due && p + 1 < ids.n_prompt)
            add_prompt_logprob(e, f, seq, row, p + 1);
    }
    if (end == n_tokens)
        add_sample(e, f, seq, row - 1);
    if (pick->count > 1 || end <= s->req.n_prompt)
        e->stats.prefill_rows += pick->count;
    else
        e->stats.decode_rows++;
    e->step.rows.n = row;
    s->n_computed = end;
}

static void build(struct engine *e, struct flight *f)
{
    e->step.rows = (struct kv_rows){.position = e->position,
                                    .slot = e->slot,
                                    .block_table = e->block_table,
                                    .block_table_stride = e->pages_per_slot};
    e->step.tokens = e->tokens;
    e->step.logits = e->logits;
    e->step.copies = e->copies;
    e->step.n_logits = 0;
    f->n = 0;
    for (int32_t i = 0; i < e->plan.n_picks; i++)
        build_pick(e, f, &e->plan.picks[i]);
    CHECK(e->step.rows.n == e->plan.n_rows && e->step.rows.n <= e->opts.step_tokens);
    int32_t used = e->n_pages - kv_available(e->kv);
    e->stats.pages_peak = TR_MAX(e->stats.pages_peak, used);
}

/* ---- after the forward pass ---- */
static int64_t share(int64_t total, int32_t from, int32_t to, int32_t n)
{
    return (int64_t)((__int128)total * to / n - (__int128)total * from / n);
}

/* Splits the step's time over its rows, so that the shares add up exactly. Every sequence of the
 * step is still there; a step without rows waited for the one before it. */
static void charge(struct engine *e, const struct flight *waited, int64_t ns)
{
    int32_t n = e->step.rows.n, at = 0;
    if (n > 0) {
        for (int32_t i = 0; i < e->plan.n_picks; i++) {
            const struct schedule_pick *pick = &e->plan.picks[i];
            e->seqs[e->running[pick->seq]].device_ns += share(ns, at, at + pick->count, n);
            at += pick->count;
        }
        e->stats.device_ns += ns;
        return;
    }
    for (int32_t i = 0; i < waited->n; i++)
        n += e->seqs[waited->rows[i].seq].serial == waited->rows[i].serial;
    for (int32_t i = 0; i < waited->n; i++) {
        struct seq *s = &e->seqs[waited->rows[i].seq];
        if (s->serial == waited->rows[i].serial) {
            s->device_ns += share(ns, at, at + 1, n);
            at++;
        }
    }
    e->stats.device_ns += n > 0 ? ns : 0;
}

static void fail(struct engine *e, int32_t seq, const char *what, int32_t at)
{
    struct seq *s = &e->seqs[seq];
    err_typed(&s->err, E_JOB, "bad_logits", "the logits of %s token %d are not numbers", what, at);
    engine_finish(e, seq,
                  (struct sequence_end){.reason = FINISH_FAILED, .stop_id = -1, .stop_string = -1});
}

/* What a row lacks (fewer finite logits than were asked for) is id -1: *t holds another's there. */
static void take_top(int32_t *ids, float *logprobs, int32_t n_top, const struct sample_token *t)
{
    for (int32_t k = 0; k < n_top; k++) {
        ids[k] = k < t->n_top ? t->top_ids[k] : -1;
        logprobs[k] = k < t->n_top ? t->top_logprobs[k] : -INFINITY;
    }
}

static void take_prompt_logprob(struct engine *e, int32_t seq, int32_t pos,
                                const struct sample_token *t)
{
    const struct request *r = &e->seqs[seq].req;
    int32_t n_top = r->sampling.prompt_logprobs;
    if (t->id < 0) {
        fail(e, seq, "prompt", pos);
        return;
    }
    r->out->prompt_logprobs[pos] = t->logprob;
    if (n_top > 0)
        take_top(r->out->prompt_top_ids + (int64_t)pos * n_top,
                 r->out->prompt_top_logprobs + (int64_t)pos * n_top, n_top, t);
}

static void take_sample(struct engine *e, int32_t seq, const struct sample_token *t)
{
    struct seq *s = &e->seqs[seq];
    struct generated *out = s->req.out;
    int32_t n = out->n, n_top = s->req.sampling.params.n_top;
    s->n_pending--;
    if (t->id < 0 || t->id >= e->net.vocab_size) {
        fail(e, seq, "generated", n);
        return;
    }
    out->ids[n] = t->id;
    if (n_top >= 0)
        out->logprobs[n] = t->logprob;
    if (n_top > 0)
        take_top(out->top_ids + (int64_t)n * n_top, out->top_logprobs + (int64_t)n * n_top, n_top,
                 t);
    out->n = n + 1;
    e->stats.sampled++;
    if (s->first_ns == 0)
        s->first_ns = clock_mono_ns(e->clock);
    struct sequence_end end =
        sequence_advance(&s->st, &e->opts.rules, &s->req.sampling, out->ids, n);
    if (end.reason != FINISH_NONE)
        engine_finish(e, seq, end);
}

static void take_results(struct engine *e, const struct flight *f)
{
    for (int32_t i = 0; i < f->n; i++) {
        const struct flight_row *row = &f->rows[i];
        if (e->seqs[row->seq].serial != row->serial)
            continue; /* ended, evicted or parked since */
        if (row->prompt_pos >= 0)
            take_prompt_logprob(e, row->seq, row->prompt_pos, &e->results[i]);
        else
            take_sample(e, row->seq, &e->results[i]);
    }
    int32_t n = 0;
    for (int32_t i = 0; i < e->n_line; i++) {
        enum seq_state state = e->seqs[e->line[i]].state;
        if (state == SEQ_WAITING || state == SEQ_RUNNING)
            e->line[n++] = e->line[i];
    }
    e->n_line = n;
}

static int run_step(struct engine *e, struct err *err)
{
    struct flight *now = &e->flights[e->flight_now];
    struct flight *taken = e->net.lag > 0 ? &e->flights[1 - e->flight_now] : now;
    make_plan(e);
    build(e, now);
    if (e->step.rows.n == 0 && taken->n == 0) {
        CHECK(e->n_line == 0); /* what waits has someone to wait for */
        return E_OK;
    }
    int64_t before = clock_mono_ns(e->clock);
    int rc = e->net.forward(e->net.ctx, &e->step, e->results, err);
    if (rc < 0)
        return rc;
    charge(e, taken, clock_mono_ns(e->clock) - before);
    e->stats.steps++;
    e->stats.rows += e->step.rows.n;
    if (e->net.padded)
        e->stats.padding_rows += e->net.padded(e->step.rows.n) - e->step.rows.n;
    e->stats.slot_steps += e->plan.n_running;
    for (int32_t i = 0; i < e->plan.n_picks; i++) {
        const struct schedule_pick *pick = &e->plan.picks[i];
        int32_t seq = e->running[pick->seq];
        kv_computed(e->kv, engine_table(e, e->seqs[seq].slot), seq, pick->start,
                    pick->start + pick->count);
    }
    for (int32_t i = 0; i < e->step.n_copies; i++)
        kv_unpin(e->kv, e->step.copies[i].page_from);
    take_results(e, taken);
    taken->n = 0;
    if (e->net.lag > 0)
        e->flight_now = 1 - e->flight_now;
    return E_OK;
}

int engine_step(struct engine *e, struct finished *out, int cap, struct err *err)
{
    if (e->n_done < cap || cap == 0) {
        int rc = run_step(e, err);
        if (rc < 0)
            return rc;
    }
    int n = 0;
    for (; n < cap && e->n_done > 0; n++) {
        int32_t seq = e->done[e->done_head];
        const struct seq *s = &e->seqs[seq];
        e->done_head = (e->done_head + 1) % e->cap;
        e->n_done--;
        out[n] = (struct finished){.tag = s->req.tag,
                                   .end = s->end,
                                   .n_cached = s->n_cached,
                                   .device_ns = s->device_ns,
                                   .started_ns = s->started_ns,
                                   .first_ns = s->first_ns,
                                   .err = s->err};
        engine_forget(e, seq);
    }
    return n;
}
