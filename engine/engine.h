/* engine: runs token sequences. submit -> step -> finished. No callbacks, no I/O after open, no
 * clock of its own, one owner thread. A fixed set of slots is refilled the moment a sequence ends.
 *
 * Row independence: the ids and logprobs of a request depend on its prompt, its sampling and the
 * model alone: not on batch, slot, order, chunk, prefix sharing, eviction, parking or thread count.
 *
 * Everything is taken at engine_open and printed by engine_memory; nothing grows afterwards. */
#ifndef TRANCHE_ENGINE_ENGINE_H
#define TRANCHE_ENGINE_ENGINE_H

#include "engine/sampling.h"

struct engine;
struct model;

enum engine_kind { ENGINE_CPU, ENGINE_CUDA, ENGINE_SIM };

/* How a poisoned prompt ends the process. SIM_POISON_EACH: poison_id aborts, the ids behind it do
 * the others, in this order. */
enum sim_poison {
    SIM_POISON_ABORT,
    SIM_POISON_SEGFAULT,
    SIM_POISON_HANG,   /* the step never ends; the process has to be killed */
    SIM_POISON_MEMORY, /* takes memory until somebody ends it; from 2 GiB on it aborts */
    SIM_POISON_EACH
};

/* The simulated engine: completion = a pure function of the prompt, the sampling and the seed. */
struct sim_opts {
    int64_t step_ns;           /* slept on opts.clock each step; 0: none */
    int32_t tokens_mean;       /* mean completion length, drawn from the request's rng_key */
    int32_t vocab_size;        /* ids are drawn below it; 0: from the tokenizer, printable ones */
    double fail_share;         /* share of requests (by rng_key) that end FINISH_FAILED */
    int32_t poison_id;         /* a prompt holding this id ends the process; -1: none */
    enum sim_poison poison;    /* how */
    int64_t crash_after_steps; /* SIGKILL to itself at that step; 0: never */
    int64_t fault_after_steps; /* device 0 is lost at that step, as a GPU is (E_FATAL); 0: never */
};

struct engine_opts {
    enum engine_kind kind;
    const struct model *model; /* borrowed; opened by model_open. NULL for ENGINE_SIM */
    struct sequence_rules rules;
    int32_t slots;         /* sequences at once; 0: chosen (64 on CPU) */
    int32_t queue_cap;     /* accepted requests waiting beyond the free slots; 0: = slots */
    int32_t step_tokens;   /* token budget of a step; 0: chosen (256 on CPU) */
    int32_t chunk_tokens;  /* longest prefill chunk of one sequence in a step; 0: the budget */
    int32_t max_model_len; /* longest prompt + output; 0: the model's, cut to what memory holds */
    int64_t kv_bytes;      /* 0: chosen; at least one sequence of max_model_len must fit */
    int32_t device;        /* ENGINE_CUDA: index of the GPU; else of the engine beside others */
    int32_t sharers;       /* engines on the same CPUs and memory, this one included; 0: alone */
    int32_t threads;       /* 0: the CPUs this process may run on, of its control group */
    int32_t isa;           /* enum cpu_isa, or -1: best */
    bool no_prefix_sharing;
    bool no_graphs;        /* ENGINE_CUDA: launch a step's kernels one by one */
    const char *cache_dir; /* where what is found out at open is kept; NULL: nowhere. Borrowed */
    const struct clock *clock; /* measures device time; NULL: clock_system() */
    struct sim_opts sim;
};

/* Opens an engine and takes all memory. Errors: E_USAGE for an impossible option (message names the
 * option and both values), E_FATAL otherwise. */
int engine_open(struct engine **out, const struct engine_opts *opts, struct err *err) TR_MUSTCHECK;
void engine_close(struct engine *e); /* NULL is legal; unfinished requests are forgotten */

/* Where a request's output goes: caller's memory, which must stay until the request is reported
 * finished or parked. n > 0 at submit: a parked sequence that goes on behind its n ids as if it had
 * never stopped. After park, exactly these fields are the state to store. */
struct generated {
    int32_t n, cap;          /* ids so far; room, at least max_tokens (cut to max_model_len) */
    int32_t *ids;            /* [cap] */
    float *logprobs;         /* [cap], or NULL when params.n_top < 0 */
    int32_t *top_ids;        /* [cap, n_top], or NULL; -1 behind a row's last finite logit */
    float *top_logprobs;     /* [cap, n_top], or NULL */
    float *prompt_logprobs;  /* [n_prompt], the first is 0 and means nothing; NULL unless asked */
    int32_t *prompt_top_ids; /* [n_prompt, prompt_logprobs], or NULL */
    float *prompt_top_logprobs;
};

struct request {
    uint64_t tag;          /* the caller's name for it; unique among those in the engine */
    const int32_t *prompt; /* borrowed until finished or parked */
    int32_t n_prompt;      /* >= 1 */
    struct sampling sampling;
    struct generated *out;
};

enum { ENGINE_ACCEPTED = 0, ENGINE_FULL = 1 };
/* ENGINE_ACCEPTED, ENGINE_FULL (call engine_step, then try again), or E_JOB with a type:
 * "prompt_too_long", "bad_params", "unsupported". max_tokens is cut to the room that max_model_len
 * leaves behind the prompt (FINISH_LENGTH). Nothing of *r but what it points to is kept. With
 * out->n > 0, prompt_logprobs are complete already and left alone. Requests start in the order of
 * submission, but for followers of a shared prefix that wait for it to be computed. */
int engine_submit(struct engine *e, const struct request *r, struct err *err) TR_MUSTCHECK;

struct finished {
    uint64_t tag;
    struct sequence_end end;
    int32_t n_cached;   /* prompt tokens taken from a shared prefix: depends on what ran before */
    int64_t device_ns;  /* this request's share of the steps it was in, split by tokens */
    int64_t started_ns; /* clock when it first got a slot (mono); 0: never */
    int64_t first_ns;   /* clock when its first token of this engine was known (mono); 0: none */
    struct err err;     /* for FINISH_FAILED: type "bad_logits" */
};
/* Runs one step and reports up to cap finished requests. Returns their number (0 .. cap); finished
 * ones beyond cap are reported by the next call. With nothing to do it returns 0 at once
 * (engine_idle). The step may lag one behind the device. Errors: E_FATAL (engine lost; exit 70). */
int engine_step(struct engine *e, struct finished *out, int cap, struct err *err) TR_MUSTCHECK;
bool engine_idle(const struct engine *e); /* nothing waiting, running or unreported */

/* Ends a request; it is reported as FINISH_CANCELLED by a later engine_step. False: tag unknown. */
bool engine_cancel(struct engine *e, uint64_t tag);
/* What a request has cost so far: n_cached, device_ns and the times of *out, the rest of it as for
 * one that has not ended. False: tag unknown, *out is zeroed. */
bool engine_cost(struct engine *e, uint64_t tag, struct finished *out);
/* Stops a request at once and forgets it; out->n ids with their logprobs are the whole state.
 * False: tag unknown (finished already). */
bool engine_park(struct engine *e, uint64_t tag);

struct engine_stats {
    int64_t steps, rows, prefill_rows, decode_rows, cached_rows, sampled, evictions;
    int64_t padding_rows; /* computed beside `rows` and unused: a GPU's products run in buckets of
                             rows. 0 on the CPU; the simulated engine has buckets of 16 */
    int64_t slot_steps;   /* sum over steps of running sequences: occupancy = / steps / slots */
    int64_t device_ns;    /* sum over steps; equals the sum over requests */
    int64_t busy_ns, idle_ns; /* as the device measured them: in steps, and between a step's end and
                                 the next one's start; 0: it does not measure */
    int32_t slots, running, waiting, pages, pages_used, pages_peak;
    int32_t step_tokens; /* most rows of a step */
};
void engine_stats(const struct engine *e, struct engine_stats *out);
/* *sum of engines beside each other: counts add up; steps become the mean over slots, so that
 * slot_steps / steps / slots stays the occupancy. */
void engine_stats_add(struct engine_stats *sum, const struct engine_stats *one);

enum { ENGINE_PLAN_LINES = 4 };
struct memory_line {
    const char *what; /* "weights", "kv pages", "activations", ... */
    int64_t bytes;
};
/* The table of everything taken at open. Returns its number of lines (at most cap are written). */
int engine_memory(const struct engine *e, struct memory_line *out, int cap);
/* What engine_open would choose and take on the CPU, without the weights and the pages: *chosen has
 * no number 0, *out the lines of engine_memory but "weights". Errors: as engine_open. */
int engine_plan_cpu(struct engine_opts *chosen, struct memory_line out[ENGINE_PLAN_LINES],
                    const struct engine_opts *opts, struct err *err) TR_MUSTCHECK;
int32_t engine_max_model_len(const struct engine *e);
/* Names what the bytes depend on: build, device, kernels ("cpu-fma-v1 ..."). Borrowed until close.
 */
const char *engine_fingerprint(const struct engine *e);

#endif
