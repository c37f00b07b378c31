/* bench: what `tranche bench` measures; times are wall clock of one run on one machine. */
#ifndef TRANCHE_WORKER_BENCH_BENCH_H
#define TRANCHE_WORKER_BENCH_BENCH_H

#include "kernels/kernels.h"
#include "worker/open_model.h"

enum { BENCH_SEQS_MAX = 16, BENCH_DECODE_TOKENS = 64, BENCH_DECODE_PROMPT = 16 };
enum { BENCH_PREFILL_PROMPT = 512 };

/* A buffer that no cache holds and the threads that sum it: the read-only stream. E_FATAL when
 * memory or a thread is refused. The caller closes it; closing NULL is nothing. */
struct bench_stream;
int bench_stream_open(struct bench_stream **out, int threads, enum cpu_isa isa,
                      struct err *err) TR_MUSTCHECK;
void bench_stream_close(struct bench_stream *s);
/* One pass over the buffer; bytes a second. */
double bench_stream_read(struct bench_stream *s);

struct bench_ceilings {
    double read_GBps;   /* all threads summing a buffer that no cache holds, best pass */
    double copy_GBps;   /* bytes read and written */
    double fp32_GFLOPs; /* our own GEMM, [256,1024] x [1024,1024] */
};
/* `seconds` at least for each. E_FATAL when memory is refused. */
int bench_ceilings(struct bench_ceilings *out, struct bench_stream *s, double seconds,
                   struct err *err) TR_MUSTCHECK;

struct bench_result {
    int requests;
    double out_tok_s;        /* generated tokens over the whole run */
    double out_tok_s_steady; /* those after the last prompt was computed */
    double in_tok_s;         /* prompt tokens over the whole run */
    /* What the stream reads in the time of one steady step: the median over steps, each beside a
     * pass of its own, for the memory's speed changes by half within seconds on a shared machine.
     * 0: no stream was read. */
    double stream_bytes_step;
    char outputs_sha256[65]; /* of the first round's ids; order plays no part */
};
/* Rounds of `n` requests of BENCH_DECODE_TOKENS greedy tokens each, for at least `seconds`, with a
 * pass of `stream` behind each steady step that counts for none of the rates. */
int bench_decode(struct bench_result *out, struct engine *e, struct bench_stream *stream,
                 const struct model_config *c, int n, double seconds, struct err *err) TR_MUSTCHECK;
/* Prompts of `length` tokens, one generated token each. */
int bench_prefill(struct bench_result *out, struct engine *e, const struct model_config *c,
                  int length, double seconds, struct err *err) TR_MUSTCHECK;

/* Bytes of `path` (NULL: a text made from the vocabulary) a second on one thread, and the text's
 * tokens. */
struct bench_text {
    double MBps, bytes_per_token;
    int64_t bytes;
};
int bench_tokenizer(struct bench_text *out, const struct tokenizer *t, const char *path,
                    double seconds, struct err *err) TR_MUSTCHECK;

#endif
