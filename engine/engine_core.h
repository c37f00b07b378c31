/* engine_core: the inside of an engine: sequences, slots, the step loop. It drives a net, the
 * narrow seam under which a model on a backend, the simulation and the tests' own functions stand.
 * Private to engine_*.c and tests. */
#ifndef TRANCHE_ENGINE_ENGINE_CORE_H
#define TRANCHE_ENGINE_ENGINE_CORE_H

#include "engine/backend.h"
#include "engine/engine.h"
#include "engine/kv.h"
#include "engine/schedule.h"

/* What turns a step into tokens.
 *
 * lag 0: forward returns when the step is done; tokens [step->n_logits] are those of this step.
 * lag 1: forward enqueues the step and returns the tokens of the step before it, in that step's
 * order of logits; the first call returns none. A step with rows.n == 0 enqueues nothing and only
 * returns what is outstanding. What a net with lag 1 must do:
 *  - take what it needs of *step before forward returns: all arrays are reused at once;
 *  - put the token that the slot sampled last where tokens[] says STEP_TOKEN_LAST;
 *  - read sample.output only up to n_output - 1 where the last one is such a token (the host does
 *    not know it yet; n_output counts it, so the RNG's counter and min_tokens are right), and count
 *    it among the penalties' ids itself;
 *  - run steps in order: a page let go in one step may be written by another sequence in the next;
 *  - expect rows of a sequence that has ended in the step before: their tokens are dropped. */
struct engine_net {
    void *ctx;
    int lag; /* 0 or 1 */
    int64_t vocab_size;
    char fingerprint[160];
    int (*forward)(void *ctx, const struct step *step, struct sample_token *tokens,
                   struct err *err);
    /* A request takes a slot, anew or after an eviction. NULL: not wanted. */
    void (*slot_open)(void *ctx, int32_t slot, const struct request *r);
    int64_t (*bytes)(void *ctx, const char *what); /* as backend_ops.bytes; NULL: takes none */
    /* engine_stats.busy_ns and idle_ns; NULL: not measured */
    void (*times)(void *ctx, int64_t *busy_ns, int64_t *idle_ns);
    /* Rows that a step of so many is computed as, at least as many; NULL: none is added. */
    int32_t (*padded)(int32_t rows);
    void (*close)(void *ctx); /* NULL: nothing to close */
};

/* Opens an engine over a net; every number of opts is chosen already (none is 0). The net is the
 * engine's on success only. */
int engine_core_open(struct engine **out, const struct engine_opts *opts,
                     const struct engine_net *net, int32_t n_pages, struct err *err) TR_MUSTCHECK;
/* The nets of engine_open. */
int engine_cpu_open(struct engine **out, const struct engine_opts *opts,
                    struct err *err) TR_MUSTCHECK;
int engine_cuda_open(struct engine **out, const struct engine_opts *opts,
                     struct err *err) TR_MUSTCHECK;
/* Raised with every change after which a GPU may give other bits from the same model, card and
 * libraries: a parked sequence must not go on with mixed ones, and rows tell who made them. */
enum { CUDA_ARITHMETIC = 3 };
struct cuda_build { /* what a GPU's bits hang on beside that */
    const char *device, *family;
    size_t cublas_lt; /* as cublasLtGetVersion and cudaRuntimeGetVersion count */
    int runtime;
};
void engine_cuda_fingerprint(char *out, size_t cap, const struct cuda_build *b);
/* engine_warm.c: a CUDA net's first use of everything, before the first request: GEMM plans of
 * every step size, kernels, graphs. */
enum { ENGINE_CUDA_LOGITS = 1408 }; /* logit rows at once */
struct network;
int engine_cuda_warm(struct backend *b, struct network *n, const struct engine_opts *o,
                     struct err *err) TR_MUSTCHECK;
int engine_sim_open(struct engine **out, const struct engine_opts *opts,
                    struct err *err) TR_MUSTCHECK;

enum seq_state { SEQ_FREE, SEQ_WAITING, SEQ_RUNNING, SEQ_DONE };

/* One request in the engine. */
struct seq {
    enum seq_state state;
    int32_t slot, n_pages;    /* running: its row of the block table and the pages in it */
    int32_t n_computed;       /* ids whose KV stands in pages */
    int32_t n_pending;        /* ids sampled on the device and not known here yet: 0 or 1 */
    uint32_t serial;          /* tells results of this run in a slot from older ones */
    int32_t next;             /* in its bucket of the tag table, or of the free sequences */
    bool prompt_logprobs_due; /* they are still to be computed */
    bool started;
    int32_t n_cached;
    int64_t device_ns, started_ns, first_ns;
    struct kv_wait wait;
    struct request req; /* sampling.max_tokens cut to the room */
    struct sequence_end end;
    struct sequence_state st;
    struct err err;
};

/* Where a token of an outstanding step goes. */
struct flight_row {
    int32_t seq;
    uint32_t serial;
    int32_t prompt_pos; /* prompt_logprobs of this id, or -1: sampled */
};
struct flight {
    struct flight_row *rows; /* [step_tokens] */
    int32_t n;
};

struct engine {
    struct engine_opts opts;
    struct engine_net net;
    const struct clock *clock;
    struct kv *kv;
    int32_t n_pages, pages_per_slot, cap; /* cap: sequences at once, slots + queue */
    struct seq *seqs;                     /* [cap] */
    int32_t *tag_heads;                   /* [n_buckets] */
    uint32_t n_buckets;
    int32_t free_seq;
    int32_t *line, n_line;            /* [cap] waiting and running, in the order of submission */
    int32_t *done, done_head, n_done; /* [cap] ring of those to report */
    int32_t *free_slots, n_free_slots;
    int32_t n_waiting;
    struct engine_stats stats;

    /* One step's working memory. */
    int32_t *running; /* [slots] */
    struct schedule_seq *sched;
    struct schedule_plan plan;
    int32_t *block_table; /* [slots, pages_per_slot] */
    int32_t *tokens, *position, *slot;
    struct step_logit *logits;
    struct step_copy *copies;
    int32_t *banned; /* [slots, EOS_IDS_MAX + STOP_IDS_MAX] */
    struct sample_token *results;
    struct flight flights[2];
    int flight_now;
    struct step step;
    int64_t memory; /* bytes of the arrays above */
};

enum { BANNED_MAX = 16 + STOP_IDS_MAX };

static inline int32_t *engine_table(struct engine *e, int32_t slot)
{
    return e->block_table + (int64_t)slot * e->pages_per_slot;
}
static inline struct kv_ids seq_ids(const struct seq *s)
{
    return (struct kv_ids){s->req.prompt, s->req.out->ids, s->req.n_prompt,
                           s->req.n_prompt + s->req.out->n};
}
/* Takes a running sequence out of its slot; its state is the caller's to set. */
void engine_leave_slot(struct engine *e, struct seq *s, bool forget);
/* Ends a waiting or running sequence: it will be reported. */
void engine_finish(struct engine *e, int32_t seq, struct sequence_end end);
/* Gives a sequence's place back. */
void engine_forget(struct engine *e, int32_t seq);
void engine_tag_remove(struct engine *e, int32_t seq);

#endif
