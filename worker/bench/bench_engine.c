/* bench_engine: decode, prefill and tokenizer rates. Prompts are ids drawn by a hash, no two alike,
 * so that nothing is shared and every run does the same work. */
#include <openssl/sha.h>
#include <stdlib.h>

#include "worker/bench/bench.h"

enum { TEXT_BYTES = 4 << 20, ENCODE_BYTES = 1 << 16, WORDS_MAX = 4096, PREFILL_AT_ONCE = 4 };
enum { PAIRS_MAX = 4096 };

struct bench_seq {
    struct request request;
    struct generated out;
    int32_t prompt[BENCH_PREFILL_PROMPT];
    int32_t ids[BENCH_DECODE_TOKENS];
};
struct round {
    struct bench_seq seqs[BENCH_SEQS_MAX];
    int n;
    int64_t out_tokens, in_tokens, steady_tokens;
    double seconds, steady_seconds, pass_seconds;
    uint8_t sha256[32];
    struct bench_stream *stream; /* NULL: no pairs */
    double pairs[PAIRS_MAX];     /* bytes that the stream reads in a step's time */
    int n_pairs;
};

static double now_seconds(void)
{
    return (double)clock_mono_ns(clock_system()) / 1e9;
}

static void seq_prepare(struct bench_seq *s, uint64_t tag, int n_prompt, int n_output,
                        const struct model_config *c)
{
    for (int32_t i = 0; i < n_prompt; i++)
        s->prompt[i] = (int32_t)(hash_bytes(&i, sizeof i, tag + 1) % (uint64_t)c->vocab_size);
    s->out = (struct generated){.cap = n_output, .ids = s->ids};
    s->request =
        (struct request){.tag = tag, .prompt = s->prompt, .n_prompt = n_prompt, .out = &s->out};
    sampling_init(&s->request.sampling);
    s->request.sampling.max_tokens = n_output;
    s->request.sampling.ignore_eos = true;
}

/* Adds one output's hash to the sum, as 256-bit little-endian numbers. */
static void add_output(struct round *r, const struct bench_seq *s)
{
    uint8_t one[32];
    unsigned carry = 0;
    SHA256((const unsigned char *)s->ids, (size_t)s->out.n * sizeof *s->ids, one);
    for (int i = 0; i < 32; i++) {
        carry += (unsigned)r->sha256[i] + one[i];
        r->sha256[i] = (uint8_t)carry;
        carry >>= 8;
    }
}

static int submit_all(struct engine *e, struct round *r, struct err *err)
{
    for (int i = 0; i < r->n; i++) {
        int rc = engine_submit(e, &r->seqs[i].request, err);
        if (rc == ENGINE_FULL)
            return err_set(err, E_FATAL, "engine: want room for %d requests, found %d", r->n, i);
        if (rc < 0)
            return rc;
    }
    return E_OK;
}

static int take_finished(struct round *r, const struct finished *f, struct err *err)
{
    if (f->end.reason == FINISH_FAILED)
        return err_set(err, E_FATAL, "engine: a request failed: %s", f->err.msg);
    for (int i = 0; i < r->n; i++)
        if (r->seqs[i].request.tag == f->tag)
            add_output(r, &r->seqs[i]);
    return E_OK;
}

/* The step just made, and a pass of the stream while the memory is as fast or slow as it was. The
 * passes take no longer than the steps do: a small model makes a hundred in the time of one pass.
 */
static void add_pair(struct round *r, double step_seconds)
{
    if (!r->stream || r->n_pairs == PAIRS_MAX || r->pass_seconds > r->steady_seconds)
        return;
    double start = now_seconds();
    r->pairs[r->n_pairs++] = bench_stream_read(r->stream) * step_seconds;
    r->pass_seconds += now_seconds() - start;
}

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One round: all requests at once, until the last has ended. "Steady" begins when every prompt has
 * been computed. */
static int round_run(struct engine *e, struct round *r, struct err *err)
{
    struct finished done[BENCH_SEQS_MAX];
    struct engine_stats first, before, at;
    double start = now_seconds();
    int64_t in_tokens = 0;
    int rc = submit_all(e, r, err);
    if (rc != E_OK)
        return rc;
    r->seconds += now_seconds() - start;
    for (int i = 0; i < r->n; i++)
        in_tokens += r->seqs[i].request.n_prompt;
    engine_stats(e, &first);
    for (before = first; !engine_idle(e); before = at) {
        bool steady = before.prefill_rows - first.prefill_rows >= in_tokens;
        start = now_seconds();
        int n = engine_step(e, done, BENCH_SEQS_MAX, err);
        for (int i = 0; i < n && rc == E_OK; i++)
            rc = take_finished(r, &done[i], err);
        if (n < 0 || rc != E_OK)
            return n < 0 ? n : rc;
        double seconds = now_seconds() - start;
        engine_stats(e, &at);
        r->seconds += seconds;
        if (steady) {
            r->steady_seconds += seconds;
            r->steady_tokens += at.sampled - before.sampled;
            add_pair(r, seconds);
        }
    }
    r->in_tokens += in_tokens;
    r->out_tokens += at.sampled - first.sampled;
    return E_OK;
}

static void rates(struct bench_result *out, struct round *r)
{
    out->out_tok_s = (double)r->out_tokens / r->seconds;
    out->in_tok_s = (double)r->in_tokens / r->seconds;
    if (r->steady_seconds > 0)
        out->out_tok_s_steady = (double)r->steady_tokens / r->steady_seconds;
    qsort(r->pairs, (size_t)r->n_pairs, sizeof *r->pairs, rising);
    if (r->n_pairs)
        out->stream_bytes_step = r->pairs[r->n_pairs / 2];
}

static int rounds_run(struct bench_result *out, struct engine *e, struct bench_stream *stream,
                      const struct model_config *c, int n, int n_prompt, int n_output,
                      double seconds, struct err *err)
{
    struct round *r = mem_alloc(1, sizeof *r);
    int rc = r ? E_OK : err_set(err, E_FATAL, "bench: no memory for %zu bytes", sizeof *r);
    *out = (struct bench_result){0};
    for (uint64_t round = 0; rc == E_OK && (round == 0 || r->seconds < seconds); round++) {
        r->n = n;
        r->stream = stream;
        for (int i = 0; i < n; i++)
            seq_prepare(&r->seqs[i], round * BENCH_SEQS_MAX + (uint64_t)i, n_prompt, n_output, c);
        rc = round_run(e, r, err);
        out->requests += n;
        for (int i = 0; i < 32 && round == 0; i++)
            snprintf(out->outputs_sha256 + 2 * i, 3, "%02x", r->sha256[31 - i]);
    }
    if (rc == E_OK)
        rates(out, r);
    mem_free(r);
    return rc;
}

int bench_decode(struct bench_result *out, struct engine *e, struct bench_stream *stream,
                 const struct model_config *c, int n, double seconds, struct err *err)
{
    CHECK(n >= 1 && n <= BENCH_SEQS_MAX);
    return rounds_run(out, e, stream, c, n, BENCH_DECODE_PROMPT, BENCH_DECODE_TOKENS, seconds, err);
}

int bench_prefill(struct bench_result *out, struct engine *e, const struct model_config *c,
                  int length, double seconds, struct err *err)
{
    CHECK(length >= 1 && length <= BENCH_PREFILL_PROMPT);
    return rounds_run(out, e, NULL, c, PREFILL_AT_ONCE, length, 1, seconds, err);
}

/* A vocabulary word with its space in front; byte-level vocabularies are ordered by how common. */
static bool is_word(struct str s)
{
    if (s.len < 3 || s.len > 16 || s.ptr[0] != ' ')
        return false;
    for (size_t i = 1; i < s.len; i++)
        if (s.ptr[i] < 'a' || s.ptr[i] > 'z')
            return false;
    return true;
}

/* Words drawn with probability ~ 1 / rank (Zipf), a full stop now and then. */
static size_t make_text(char *text, size_t cap, const struct tokenizer *t)
{
    struct str words[WORDS_MAX];
    size_t n_words = 0, n = 0;
    for (int32_t id = 0; id < tokenizer_vocab_size(t) && n_words < WORDS_MAX; id++) {
        struct str s = tokenizer_token_bytes(t, id);
        if (is_word(s))
            words[n_words++] = s;
    }
    if (n_words == 0)
        words[n_words++] = STR(" word");
    for (uint64_t i = 0; n + 20 < cap; i++) {
        uint64_t h = hash_bytes(&i, sizeof i, 3);
        double u = (double)(h >> 11) * 0x1p-53, rank = 1;
        while (rank * 2 <= (double)n_words && u < 0.85) {
            rank *= 2;
            u /= 0.85;
        }
        struct str w = words[((size_t)rank - 1 + h % (uint64_t)rank) % n_words];
        memcpy(text + n, w.ptr, w.len);
        n += w.len;
        if (h % 13 == 0)
            text[n++] = '.';
        if (h % 101 == 0)
            text[n++] = '\n';
    }
    return n;
}

static int read_text(char *text, size_t cap, size_t *n, const char *path, struct err *err)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return err_errno(err, E_USAGE, "--text %s", path);
    *n = fread(text, 1, cap, f);
    fclose(f);
    if (*n == 0)
        return err_set(err, E_USAGE, "--text %s: want a text, found an empty file", path);
    return E_OK;
}

/* Length of the next piece: about ENCODE_BYTES, ended behind a character. */
static size_t piece_length(const char *text, size_t left)
{
    size_t n = TR_MIN(left, ENCODE_BYTES);
    while (n > 0 && n < left && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--;
    return n;
}

int bench_tokenizer(struct bench_text *out, const struct tokenizer *t, const char *path,
                    double seconds, struct err *err)
{
    struct tokenizer_scratch *scratch = tokenizer_scratch_open(t);
    char *text = mem_alloc(TEXT_BYTES, 1);
    int32_t *ids = mem_alloc(ENCODE_BYTES, sizeof *ids);
    size_t n = 0;
    int64_t bytes = 0, tokens = 0;
    double start, spent = 0;
    int rc = E_OK;
    if (!scratch || !text || !ids) {
        rc = err_set(err, E_FATAL, "bench: no memory for the tokenizer's text");
        goto out;
    }
    if (path)
        rc = read_text(text, TEXT_BYTES, &n, path, err);
    else
        n = make_text(text, TEXT_BYTES, t);
    start = now_seconds();
    while (rc == E_OK && spent < seconds) {
        for (size_t at = 0; at < n && rc == E_OK;) {
            size_t piece = piece_length(text + at, n - at);
            int64_t got = tokenizer_encode(t, scratch, (struct str){text + at, piece}, 0, ids,
                                           ENCODE_BYTES, err);
            rc = got < 0 ? (int)got : E_OK;
            tokens += got;
            bytes += (int64_t)piece;
            at += piece;
        }
        spent = now_seconds() - start;
    }
    if (rc == E_OK)
        *out = (struct bench_text){.MBps = (double)bytes / spent / 1e6,
                                   .bytes_per_token = (double)bytes / (double)tokens,
                                   .bytes = bytes};
out:
    tokenizer_scratch_close(scratch);
    mem_free(text);
    mem_free(ids);
    return rc;
}
