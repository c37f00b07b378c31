/* sampling: see sampling.h. The rules that need no logits. */
#include "engine/sampling.h"

#include <math.h>

void sampling_init(struct sampling *s)
{
    memset(s, 0, sizeof *s);
    s->params.top_p = 1;
    s->params.repetition_penalty = 1;
    s->params.n_top = -1;
    s->max_tokens = 16;
    s->prompt_logprobs = -1;
    s->max_thinking_tokens = -1;
}

const char *finish_reason_name(enum finish_reason reason)
{
    switch (reason) {
    case FINISH_NONE:
        return "none";
    case FINISH_STOP:
        return "stop";
    case FINISH_LENGTH:
        return "length";
    case FINISH_LOOP:
        return "loop";
    case FINISH_CANCELLED:
        return "cancelled";
    case FINISH_FAILED:
        return "failed";
    }
    return "unknown";
}

/* NaN fails every comparison, so it is refused here as well. */
static int check_range(const char *name, double v, double low, double high, struct err *err)
{
    if (v >= low && v <= high)
        return E_OK;
    return err_typed(err, E_JOB, "bad_params", "%s is %g, must be from %g to %g", name, v, low,
                     high);
}

static int check_params(const struct sample_params *p, int64_t vocab_size, struct err *err)
{
    if (check_range("temperature", (double)p->temperature, 0, 1e6, err) < 0 ||
        check_range("top_p", (double)p->top_p, 1e-9, 1, err) < 0 ||
        check_range("min_p", (double)p->min_p, 0, 1, err) < 0 ||
        check_range("repetition_penalty", (double)p->repetition_penalty, 1e-6, 1e6, err) < 0 ||
        check_range("frequency_penalty", (double)p->frequency_penalty, -2, 2, err) < 0 ||
        check_range("presence_penalty", (double)p->presence_penalty, -2, 2, err) < 0 ||
        check_range("top_k", p->top_k, -1, INT32_MAX, err) < 0 ||
        check_range("top_logprobs", p->n_top, -1, SAMPLE_TOP_MAX, err) < 0 ||
        check_range("number of logit_bias ids", p->n_bias, 0, LOGIT_BIAS_MAX, err) < 0)
        return E_JOB;
    for (int32_t i = 0; i < p->n_bias; i++) {
        if (check_range("logit_bias id", p->bias_ids[i], 0, (double)(vocab_size - 1), err) < 0 ||
            check_range("logit_bias value", (double)p->bias[i], -100, 100, err) < 0)
            return E_JOB;
    }
    return E_OK;
}

int sampling_check(const struct sampling *s, const struct sequence_rules *rules, int64_t vocab_size,
                   struct err *err)
{
    if (check_params(&s->params, vocab_size, err) < 0 ||
        check_range("max_tokens", s->max_tokens, 1, INT32_MAX, err) < 0 ||
        check_range("min_tokens", s->min_tokens, 0, s->max_tokens, err) < 0 ||
        check_range("number of stop_token_ids", s->n_stop_ids, 0, STOP_IDS_MAX, err) < 0 ||
        check_range("number of stop strings", s->n_stop_strings, 0, STOP_STRINGS_MAX, err) < 0 ||
        check_range("prompt_logprobs", s->prompt_logprobs, -1, SAMPLE_TOP_MAX, err) < 0 ||
        check_range("max_thinking_tokens", s->max_thinking_tokens, -1, INT32_MAX, err) < 0 ||
        check_range("loop_tokens", s->loop_tokens, 0, INT32_MAX, err) < 0)
        return E_JOB;
    for (int32_t i = 0; i < s->n_stop_ids; i++) {
        if (check_range("stop_token_ids entry", s->stop_ids[i], 0, (double)(vocab_size - 1), err) <
            0)
            return E_JOB;
    }
    for (int32_t i = 0; i < s->n_stop_strings; i++) {
        if (check_range("bytes of a stop string", (double)s->stop_strings[i].len, 1,
                        STOP_STRING_BYTES_MAX, err) < 0)
            return E_JOB;
    }
    if (s->loop_tokens > 0 && s->loop_tokens < 4)
        return err_typed(err, E_JOB, "bad_params", "loop_tokens is %d, must be 0 or at least 4",
                         s->loop_tokens);
    if (s->n_stop_strings > 0 && !rules->tokenizer)
        return err_typed(err, E_JOB, "unsupported", "stop strings need a tokenizer");
    if (s->max_thinking_tokens >= 0 && rules->think_close_id < 0)
        return err_typed(err, E_JOB, "unsupported",
                         "max_thinking_tokens is %d, but the model has no </think> token",
                         s->max_thinking_tokens);
    return E_OK;
}

void sequence_begin(struct sequence_state *st, const struct sequence_rules *rules,
                    const int32_t *prompt, int32_t n_prompt)
{
    st->thinking = false;
    st->n_thinking = 0;
    st->n_forced = 0;
    st->tail_len = 0;
    memset(st->runs, 0, sizeof st->runs);
    if (rules->think_open_id < 0 || rules->think_close_id < 0)
        return;
    for (int32_t i = n_prompt - 1; i >= 0; i--) {
        if (prompt[i] == rules->think_open_id || prompt[i] == rules->think_close_id) {
            st->thinking = prompt[i] == rules->think_open_id;
            return;
        }
    }
}

int32_t sequence_forced(const struct sequence_state *st, const struct sequence_rules *rules,
                        const struct sampling *s)
{
    if (s->max_thinking_tokens < 0 || rules->think_close_id < 0)
        return -1;
    if (st->n_forced == 0 && !(st->thinking && st->n_thinking >= s->max_thinking_tokens))
        return -1;
    return rules->n_think_close > 0 ? rules->think_close[st->n_forced] : rules->think_close_id;
}

bool sequence_forced_depends(const struct sequence_state *st, const struct sampling *s)
{
    return s->max_thinking_tokens >= 0 &&
           (st->n_forced > 0 || (st->thinking && st->n_thinking + 1 >= s->max_thinking_tokens));
}

int32_t sequence_banned(const struct sequence_rules *rules, const struct sampling *s,
                        int32_t n_generated, int32_t *out, int32_t cap)
{
    if (n_generated >= s->min_tokens)
        return 0;
    int32_t n = 0;
    for (int32_t i = 0; i < rules->n_eos_ids && n < cap; i++)
        out[n++] = rules->eos_ids[i];
    for (int32_t i = 0; i < s->n_stop_ids && n < cap; i++)
        out[n++] = s->stop_ids[i];
    return n;
}

/* At least one token long, so that an opened block never changes what the very next token may be:
 * a net that lags one step behind the host relies on it. */
static void open_again(struct sequence_state *st, const struct sampling *s)
{
    st->thinking = true;
    st->n_thinking = s->max_thinking_tokens == 0 ? -1 : 0;
}

static void advance_thinking(struct sequence_state *st, const struct sequence_rules *rules,
                             const struct sampling *s, int32_t id)
{
    if (sequence_forced(st, rules, s) >= 0) {
        if (++st->n_forced >= TR_MAX(rules->n_think_close, 1)) {
            st->n_forced = 0;
            st->thinking = false;
        }
        return;
    }
    if (rules->think_close_id < 0)
        return;
    if (id == rules->think_close_id)
        st->thinking = false;
    else if (id == rules->think_open_id)
        open_again(st, s);
    else if (st->thinking)
        st->n_thinking++;
}

/* The last L ids have period p when the newest L - p of them equal those p earlier. */
static bool advance_loop(struct sequence_state *st, const struct sampling *s, const int32_t *ids,
                         int32_t n)
{
    int32_t period_max = TR_MIN((int32_t)LOOP_PERIOD_MAX, s->loop_tokens / 4);
    bool loop = false;
    for (int32_t p = 1; p <= period_max && p <= n; p++) {
        st->runs[p] = ids[n] == ids[n - p] ? st->runs[p] + 1 : 0;
        loop = loop || st->runs[p] >= s->loop_tokens - p;
    }
    return loop;
}

static size_t raw_bytes(const struct tokenizer *t, const int32_t *ids, int32_t n)
{
    size_t raw = 0;
    for (int32_t i = 0; i < n; i++)
        raw += tokenizer_is_special(t, ids[i]) ? 0 : tokenizer_token_bytes(t, ids[i]).len;
    return raw;
}

/* Appends the text of `id` to the tail; returns how many bytes are new. */
static size_t tail_append(struct sequence_state *st, const struct tokenizer *t, int32_t id)
{
    if (tokenizer_is_special(t, id))
        return 0;
    struct str bytes = tokenizer_token_bytes(t, id);
    if (bytes.len == 0)
        return 0;
    CHECK(bytes.len <= TOKENIZER_TOKEN_BYTES_MAX);
    if ((size_t)st->tail_len + bytes.len > sizeof st->tail) {
        memmove(st->tail, st->tail + st->tail_len - STOP_STRING_BYTES_MAX, STOP_STRING_BYTES_MAX);
        st->tail_len = STOP_STRING_BYTES_MAX;
    }
    memcpy(st->tail + st->tail_len, bytes.ptr, bytes.len);
    st->tail_len += (int32_t)bytes.len;
    return bytes.len;
}

/* A match must end inside the newest bytes; the order of the list decides among several. */
static bool find_stop_string(const struct sequence_state *st, const struct sampling *s,
                             size_t n_new, int32_t *which, size_t *from_end)
{
    size_t len = (size_t)st->tail_len;
    for (int32_t i = 0; i < s->n_stop_strings; i++) {
        struct str stop = s->stop_strings[i];
        size_t window = TR_MIN(len, n_new + stop.len - 1);
        const char *hit = memmem(st->tail + len - window, window, stop.ptr, stop.len);
        if (hit) {
            size_t at = (size_t)(hit - st->tail) + (s->include_stop_str ? stop.len : 0);
            *which = i;
            *from_end = len - at;
            return true;
        }
    }
    return false;
}

static bool id_in(int32_t id, const int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] == id)
            return true;
    }
    return false;
}

struct sequence_end sequence_advance(struct sequence_state *st, const struct sequence_rules *rules,
                                     const struct sampling *s, const int32_t *ids, int32_t n)
{
    struct sequence_end end = {.reason = FINISH_NONE, .stop_id = -1, .stop_string = -1};
    int32_t id = ids[n], n_generated = n + 1;
    advance_thinking(st, rules, s, id);
    bool loop = s->loop_tokens > 0 && advance_loop(st, s, ids, n);
    bool may_stop = n_generated >= s->min_tokens;
    if (may_stop && ((!s->ignore_eos && id_in(id, rules->eos_ids, rules->n_eos_ids)) ||
                     id_in(id, s->stop_ids, s->n_stop_ids))) {
        end.reason = FINISH_STOP;
        end.stop_id = id;
        return end;
    }
    if (s->n_stop_strings > 0) {
        size_t n_new = tail_append(st, rules->tokenizer, id), from_end = 0;
        if (n_new > 0 && n_generated > s->min_tokens &&
            find_stop_string(st, s, n_new, &end.stop_string, &from_end)) {
            end.reason = FINISH_STOP;
            end.raw_bytes = raw_bytes(rules->tokenizer, ids, n_generated) - from_end;
            return end;
        }
    }
    if (loop && may_stop)
        end.reason = FINISH_LOOP;
    else if (n_generated >= s->max_tokens)
        end.reason = FINISH_LENGTH;
    return end;
}
