/* job: one message from a source, and everything known of it until it is acknowledged. Here: its
 * memory, its JSON, its key and hash, its typed errors, its parameters. It knows no queue, sink or
 * engine state beyond the fields that the worker keeps in it.
 *
 * Two shapes are read. The OpenAI batch line:
 *   {"custom_id","method":"POST","url":"/v1/chat/completions"|"/v1/completions","body":{...}}
 * and the short form: {"id", "prompt"|"messages", ...parameters of the body}.
 * Both may carry batch_id, run, deadline, priority, metadata, expected at the top.
 *
 * Key: (run, batch_id, custom_id). A line without a readable id takes its origin ("jobs:17").
 * request_sha256 = SHA-256 of `request`: the body as canonical JSON (sorted keys, no spaces,
 * shortest reals); of the short form the object without id, batch_id, run, deadline, priority,
 * metadata and expected; of a line that is no JSON object its bytes. So equal bodies hash alike
 * whatever their spacing, before any default of ours. */
#ifndef TRANCHE_WORKER_JOB_JOB_H
#define TRANCHE_WORKER_JOB_JOB_H

#include <stdatomic.h>

#include "engine/engine.h"
#include "engine/json.h"
#include "worker/job/parked_state.h"
#include "worker/job/text.h"
#include "worker/sink/sink.h"

enum {
    JOB_BYTES_MAX = 4 << 20, /* a longer message is one invalid row */
    JOB_PROMPT_BYTES_MAX = 2 << 20,
    JOB_KEYS_MAX = 256,     /* of one object */
    JOB_ID_BYTES_MAX = 512, /* custom_id, batch_id, run */
    JOB_CHOICES_MAX = 128,  /* prompts x n */
    JOB_MESSAGES_MAX = 4096,
    JOB_ORIGIN_MAX = 300,
};

enum job_kind { JOB_CHAT, JOB_COMPLETION };

struct job_chunk;  /* a piece of a job's own memory */
struct job_config; /* job_config.h */

/* One prompt of a job: a chat has one, /v1/completions may bring several. */
struct job_prompt {
    const int32_t *ids;
    int32_t n;
    bool thinking; /* ends inside <think> */
};
/* One engine request. */
struct job_choice {
    struct job *job;
    int32_t prompt, index; /* prompt number; choice number within the prompt */
    struct generated out;
    struct sampling sampling;
    struct finished finished;
    bool in_engine;            /* the engine thread's */
    int32_t n_resumed;         /* ids that came out of `parked`; 0: it starts anew */
    struct parked_life before; /* what these have cost; zero when it starts anew */
};
/* Why a job ends before its end. */
enum job_cut { CUT_NONE, CUT_CANCELLED, CUT_EXPIRED };

struct job_params {
    struct sampling sampling; /* of choice 0; pointers into the job's memory */
    int32_t n;
    bool max_tokens_given, seed_given, logprobs_given;
    bool add_special, continue_final;
    int32_t top_logprobs;          /* -1: not given */
    int64_t seed;                  /* given, or derived */
    const json_t *template_kwargs; /* in doc */
};

struct job {
    /* From the source. */
    struct str message;     /* as received, in the job's memory */
    size_t message_full;    /* bytes that it had; more than message.len: cut, and invalid */
    struct str origin;      /* "jobs:17", "topic/3/1042" */
    struct str message_key; /* Kafka's; ptr NULL: none */
    struct str header_id,
        header_deadline; /* beside the message, for one that names none; or NULL */
    struct str place;    /* the same as members of a JSON object: "line":17 */
    bool unread;         /* memory was refused in the parse: it is as the source gave it */
    bool passed_over;    /* beyond this run's share: acknowledged without a row */
    bool tombstone;      /* no job: it takes back those of its partition with its message_key */
    int32_t partition;
    int64_t sequence;  /* 0, 1, 2, ... in each partition, in the source's order */
    int64_t position;  /* the source's position right behind this message */
    int64_t queued_ns; /* wall clock */

    /* From job_parse. */
    struct str run, batch_id, custom_id;
    uint8_t sha256[32];
    struct str request; /* what sha256 covers */
    enum job_kind kind;
    struct str model, metadata, expected; /* ptr NULL: absent */
    int64_t deadline_ns;                  /* wall clock; 0: none */
    int32_t priority;
    struct err err;     /* code != 0: the row is `invalid`, type is its error_code */
    json_t *doc, *body; /* body is borrowed from doc; gone after prepare */

    /* From params_parse and prepare. */
    struct job_config *config; /* that it is prepared under, held; NULL: the contexts' settings */
    struct job_params params;
    struct str params_json;
    struct job_prompt *prompts;
    int32_t n_prompts;

    /* The worker's: see worker.c. */
    int stage;
    int64_t arrival;       /* 0, 1, 2, ... over all partitions */
    int64_t from_position; /* the source's position before it; a source with `start` sets it */
    int32_t epoch;         /* how often its partition had been taken away before */
    int32_t attempts;
    char pinned[REVISION_CAP]; /* the config revision of its first admission; "": none yet */
    bool parked;               /* the sink has states of it */
    int64_t refused_ns;        /* mono: when memory was refused as it was prepared; 0: it was not */
    atomic_int cut; /* enum job_cut; the worker sets it, once, the engine's thread reads it */
    struct job *running_before, *running_behind; /* jobs with the engine; its thread's */
    struct job_choice *choices;                  /* [n_choices], from prepare_choices */
    int32_t n_choices, n_left;
    bool submitted; /* an engine has had one of them */
    void *output;   /* where the choices' ids and logprobs go; freed once they are text */
    size_t output_bytes;
    int64_t unrendered_ns;       /* mono: when memory was refused to its row; 0: it was not */
    int64_t finished_ns;         /* wall clock, when the last choice ended */
    struct result *result;       /* from result.c: NULL, or */
    struct result row;           /* which no job lacks the memory for */
    struct job *same;            /* duplicates in flight, acknowledged with this one */
    struct job *before, *behind; /* outstanding jobs of a partition, in the source's order */
    struct job *bucket;          /* chain of the table of keys in flight */
    struct job *next;            /* link of the one list that it stands in */
    uint64_t key_hash;

    struct job_chunk *chunks, *before_result; /* newest first; those that came with the result */
    size_t bytes;                             /* taken from the system for this job */
};

/* A job that holds `len` bytes of message (NUL behind them; the caller fills them in). NULL when
 * memory is refused. */
struct job *job_open(size_t len);
void job_close(struct job *job); /* NULL is legal; frees everything that belongs to it */
/* Zeroed, 16-byte aligned memory that lives as long as the job; NULL when refused. */
void *job_alloc(struct job *job, size_t size);
/* Copies bytes and adds a NUL; ptr is NULL when refused. */
struct str job_str(struct job *job, struct str s);
/* The result begins here; and: it is kept elsewhere now, so its memory may go. What was allocated
 * before it stays. */
void job_mark_result(struct job *job);
void job_drop_result(struct job *job);
/* Frees the chunks that came behind `mark`, which job->chunks was. */
void job_drop_chunks(struct job *job, const struct job_chunk *mark);
/* Never cut, however long it is. E_RETRY, and a NULL ptr, when refused. */
int job_printf(struct job *job, struct str *out, const char *fmt, ...) TR_PRINTF(3, 4);

struct job_defaults {
    struct str run, batch_id; /* of messages that name none */
};
/* Message -> key, hash, body. Never fails as a whole: what is wrong with the message stands in
 * job->err, and key and hash are always set. `scratch` is the calling thread's. */
void job_parse(struct job *job, const struct job_defaults *defaults, struct text *scratch);

/* The body once more, for another config revision: key, hash and request stay untouched, so that
 * other threads may read them meanwhile. */
void job_parse_again(struct job *job);

uint64_t job_key_hash(const struct key *key); /* job->key_hash */
/* Where a message of this shape has its id: "custom_id" or "id". Pure. */
const char *job_id_field(const json_t *doc);
/* The header tranche-deadline as a message's field has it: a new number or string, which need be no
 * time; NULL: no UTF-8, or no memory. */
json_t *job_header_deadline(struct str given);

/* What params_parse leans on; all borrowed. */
struct params_context {
    const struct generation_defaults *generation; /* NULL: none, or told to ignore it */
    int32_t default_max_tokens;
    const json_t *defaults; /* fields of a body that stand in where it names none; or NULL */
    int32_t vocab_size, max_model_len;
    bool thinks; /* the model has think ids */
};
/* Body -> job->params, ranges checked, unknown fields refused with the nearest name. Sets job->err
 * on bad input. The token limits that need the prompt's length are params_fit's. */
void params_parse(struct job *job, const struct params_context *ctx);
/* For a body of which it is not known whether it is a chat or a completion: fails job at a field
 * that neither has. */
void params_refuse_unknown(struct job *job);
/* Whether a request has a field of this name; dashes may stand for underscores. */
bool params_is_field(struct str name);
/* Once the prompts are counted: cuts a default max_tokens to the context, refuses one that was
 * asked for and does not fit; then writes params_json and the rng key. */
void params_fit(struct job *job, const struct params_context *ctx, struct text *scratch);

/* Error types that a row can carry in error_code, besides those of json.h and chat_template.h:
 * bad_json, too_large, bad_field, bad_value, unknown_field, unsupported_field, unsupported_content,
 * unsupported_url, missing_field, prompt_too_long, bad_params. */
int job_fail(struct job *job, const char *type, const char *fmt, ...) TR_PRINTF(3, 4);

#endif
