/* engine_submit: requests in, and out again by cancel and park. */
#include "engine/engine_core.h"

static int32_t *tag_bucket(struct engine *e, uint64_t tag)
{
    return &e->tag_heads[hash_bytes(&tag, sizeof tag, 0) & (e->n_buckets - 1)];
}

static int32_t tag_find(struct engine *e, uint64_t tag)
{
    int32_t i = *tag_bucket(e, tag);
    while (i >= 0 && e->seqs[i].req.tag != tag)
        i = e->seqs[i].next;
    return i;
}

static int bad(struct err *err, const char *what, int64_t value, const char *must)
{
    return err_typed(err, E_JOB, "bad_params", "%s is %lld, must be %s", what, (long long)value,
                     must);
}

static int check_ids(const struct engine *e, const char *what, const int32_t *ids, int32_t n,
                     struct err *err)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= e->net.vocab_size)
            return err_typed(err, E_JOB, "bad_params",
                             "%s id %d at %d, but the vocabulary has %lld ids", what, ids[i], i,
                             (long long)e->net.vocab_size);
    }
    return E_OK;
}

static int check_output(const struct generated *out, const struct sampling *s, struct err *err)
{
    if (!out || !out->ids)
        return bad(err, "room for generated ids", 0, "given");
    if (out->cap < s->max_tokens)
        return bad(err, "room for generated ids", out->cap, "at least max_tokens");
    if (out->n < 0 || out->n > out->cap)
        return bad(err, "number of ids generated already", out->n, "from 0 to the room for them");
    if (s->params.n_top >= 0 && !out->logprobs)
        return bad(err, "room for logprobs", 0, "given");
    if (s->params.n_top > 0 && (!out->top_ids || !out->top_logprobs))
        return bad(err, "room for top_logprobs", 0, "given");
    if (s->prompt_logprobs >= 0 && !out->prompt_logprobs)
        return bad(err, "room for prompt_logprobs", 0, "given");
    if (s->prompt_logprobs > 0 && (!out->prompt_top_ids || !out->prompt_top_logprobs))
        return bad(err, "room for the prompt's top_logprobs", 0, "given");
    return E_OK;
}

/* Checks *r, whose max_tokens is then cut to the room left. */
static int check_request(struct engine *e, struct request *r, struct err *err)
{
    int32_t room = e->opts.max_model_len;
    if (r->n_prompt < 1 || !r->prompt)
        return bad(err, "number of prompt ids", r->n_prompt, "at least 1");
    if (r->n_prompt >= room)
        return err_typed(err, E_JOB, "prompt_too_long",
                         "the prompt has %d ids, but max_model_len is %d and leaves room for %d",
                         r->n_prompt, room, room - 1);
    if (sampling_check(&r->sampling, &e->opts.rules, e->net.vocab_size, err) < 0)
        return E_JOB;
    r->sampling.max_tokens = TR_MIN(r->sampling.max_tokens, room - r->n_prompt);
    if (check_output(r->out, &r->sampling, err) < 0 ||
        check_ids(e, "prompt", r->prompt, r->n_prompt, err) < 0 ||
        check_ids(e, "generated", r->out->ids, r->out->n, err) < 0)
        return E_JOB;
    if (tag_find(e, r->tag) >= 0)
        return err_typed(err, E_JOB, "bad_params", "tag %llu is in the engine already",
                         (unsigned long long)r->tag);
    return E_OK;
}

/* Walks a parked sequence to where it stood. It may turn out to have ended there. */
static struct sequence_end replay(struct engine *e, struct seq *s)
{
    const struct request *r = &s->req;
    struct sequence_end end = {.reason = FINISH_NONE, .stop_id = -1, .stop_string = -1};
    sequence_begin(&s->st, &e->opts.rules, r->prompt, r->n_prompt);
    for (int32_t i = 0; i < r->out->n && end.reason == FINISH_NONE; i++) {
        end = sequence_advance(&s->st, &e->opts.rules, &r->sampling, r->out->ids, i);
        if (end.reason != FINISH_NONE)
            r->out->n = i + 1;
    }
    return end;
}

int engine_submit(struct engine *e, const struct request *r, struct err *err)
{
    struct request checked = *r;
    if (check_request(e, &checked, err) < 0)
        return E_JOB;
    if (e->free_seq < 0 || e->n_waiting >= e->opts.queue_cap + e->n_free_slots)
        return ENGINE_FULL;
    int32_t i = e->free_seq;
    struct seq *s = &e->seqs[i];
    e->free_seq = s->next;
    s->state = SEQ_WAITING;
    s->slot = s->wait.page = -1;
    s->n_pages = s->n_computed = s->n_pending = s->n_cached = 0;
    s->started = false;
    s->device_ns = s->started_ns = s->first_ns = 0;
    s->err.code = 0;
    s->req = checked;
    int32_t *bucket = tag_bucket(e, r->tag);
    s->next = *bucket;
    *bucket = i;
    e->n_waiting++;
    struct sequence_end end = replay(e, s);
    s->prompt_logprobs_due = r->sampling.prompt_logprobs >= 0 && r->out->n == 0;
    if (s->prompt_logprobs_due)
        r->out->prompt_logprobs[0] = 0;
    if (end.reason != FINISH_NONE)
        engine_finish(e, i, end);
    else
        e->line[e->n_line++] = i;
    return ENGINE_ACCEPTED;
}

/* Takes a sequence out of the line of waiting and running ones. */
static void line_remove(struct engine *e, int32_t seq)
{
    int32_t i = 0;
    while (e->line[i] != seq)
        i++;
    e->n_line--;
    memmove(e->line + i, e->line + i + 1, (size_t)(e->n_line - i) * sizeof *e->line);
}

bool engine_cancel(struct engine *e, uint64_t tag)
{
    int32_t i = tag_find(e, tag);
    if (i < 0)
        return false;
    line_remove(e, i);
    engine_finish(
        e, i, (struct sequence_end){.reason = FINISH_CANCELLED, .stop_id = -1, .stop_string = -1});
    return true;
}

bool engine_cost(struct engine *e, uint64_t tag, struct finished *out)
{
    int32_t i = tag_find(e, tag);
    *out = (struct finished){.tag = tag, .end = {.stop_id = -1, .stop_string = -1}};
    if (i < 0)
        return false;
    out->n_cached = e->seqs[i].n_cached;
    out->device_ns = e->seqs[i].device_ns;
    out->started_ns = e->seqs[i].started_ns;
    out->first_ns = e->seqs[i].first_ns;
    return true;
}

bool engine_park(struct engine *e, uint64_t tag)
{
    int32_t i = tag_find(e, tag);
    if (i < 0)
        return false;
    struct seq *s = &e->seqs[i];
    line_remove(e, i);
    if (s->state == SEQ_RUNNING)
        engine_leave_slot(e, s, false);
    else
        e->n_waiting--;
    engine_tag_remove(e, i);
    engine_forget(e, i);
    return true;
}
