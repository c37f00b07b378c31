/* sampling: what a request may ask of the sampler, in vLLM's names, and the pure rules that need no
 * logits: when a sequence ends, what is banned, when thinking is closed by force.
 *
 * sequence_state is a pure function of (prompt, generated ids, sampling): a parked or evicted
 * sequence is replayed token by token and stands where it stood. */
#ifndef TRANCHE_ENGINE_SAMPLING_H
#define TRANCHE_ENGINE_SAMPLING_H

#include "engine/tokenizer.h"
#include "kernels/kernels.h"

enum {
    STOP_STRINGS_MAX = 16,
    STOP_STRING_BYTES_MAX = 256,
    STOP_IDS_MAX = 64,
    LOGIT_BIAS_MAX = 1024,
    LOOP_PERIOD_MAX = 128,
    THINK_CLOSE_MAX = 8,
};

struct sampling {
    struct sample_params params; /* its pointers are borrowed until the request has finished */
    int32_t max_tokens, min_tokens;
    bool ignore_eos;
    bool include_stop_str;
    int32_t n_stop_ids, n_stop_strings;
    const int32_t *stop_ids;
    const struct str *stop_strings;
    int32_t prompt_logprobs; /* -1: none; 0..20 */
    /* Generated ids inside <think> before think_close is forced: -1: no limit; 0: at once. A block
     * that the model opens anew has the budget anew, and at least one id. */
    int32_t max_thinking_tokens;
    int32_t loop_tokens; /* 0: off; stop when the last loop_tokens generated ids repeat with
                            one period <= min(128, loop_tokens / 4) */
};
/* Greedy, no limit but max_tokens = 16, everything else off. */
void sampling_init(struct sampling *s);

struct sequence_rules;
/* Ranges as vLLM and OpenAI have them. E_JOB "bad_params" names the field, its value and what is
 * allowed; E_JOB "unsupported" where the model or tokenizer lacks what a field needs. */
int sampling_check(const struct sampling *s, const struct sequence_rules *rules, int64_t vocab_size,
                   struct err *err) TR_MUSTCHECK;

enum finish_reason {
    FINISH_NONE,
    FINISH_STOP, /* EOS, stop id or stop string */
    FINISH_LENGTH,
    FINISH_LOOP,
    FINISH_CANCELLED,
    FINISH_FAILED, /* the engine could not run this row; finished.err says why */
};
const char *finish_reason_name(enum finish_reason); /* "stop", "length", "loop", ... */

/* Facts of the model that the rules need; borrowed by every sequence_state. */
struct sequence_rules {
    const struct tokenizer *tokenizer; /* NULL: stop strings are refused at submit */
    const int32_t *eos_ids;
    int32_t n_eos_ids;
    int32_t think_open_id, think_close_id; /* -1: the model does not think */
    int32_t
        think_close[THINK_CLOSE_MAX]; /* ids forced when the budget is spent, e.g. "</think>\n\n" */
    int32_t n_think_close;
};

struct sequence_state {
    bool thinking;      /* inside <think> ... </think> */
    int32_t n_thinking; /* generated ids inside the last such block */
    int32_t n_forced;   /* of think_close already emitted */
    /* The end of the text, kept only where stop strings are asked for: bytes of the generated ids,
     * special tokens skipped. */
    char tail[STOP_STRING_BYTES_MAX * 2 + TOKENIZER_TOKEN_BYTES_MAX];
    int32_t tail_len;
    int32_t runs[LOOP_PERIOD_MAX + 1]; /* runs[p]: newest ids equal to those p earlier */
};
struct sequence_end {
    enum finish_reason reason; /* FINISH_NONE: goes on */
    int32_t stop_id;           /* the stop id or EOS that ended it, or -1 */
    int32_t stop_string;       /* index of the stop string, or -1 */
    /* Valid when stop_string >= 0: bytes to keep of the generated ids' own bytes
     * (tokenizer_token_bytes, special tokens skipped), before any of them is repaired. */
    size_t raw_bytes;
};

/* State behind the prompt, nothing generated yet: thinking when the last think marker of the prompt
 * opens one. */
void sequence_begin(struct sequence_state *st, const struct sequence_rules *rules,
                    const int32_t *prompt, int32_t n_prompt);
/* Takes generated id number `n` (0-based, ids[n] is the new one) and says whether the sequence
 * ends. */
struct sequence_end sequence_advance(struct sequence_state *st, const struct sequence_rules *rules,
                                     const struct sampling *s, const int32_t *ids, int32_t n);
/* The id to force as the next one, or -1. */
int32_t sequence_forced(const struct sequence_state *st, const struct sequence_rules *rules,
                        const struct sampling *s);
/* True when sequence_forced after one more token depends on which token that is. */
bool sequence_forced_depends(const struct sequence_state *st, const struct sampling *s);
/* Ids banned for the next token (min_tokens: EOS and stop ids); writes at most cap, returns count.
 */
int32_t sequence_banned(const struct sequence_rules *rules, const struct sampling *s,
                        int32_t n_generated, int32_t *out, int32_t cap);

#endif
