/* result: generated ids -> the row: text, reasoning and answer, choices and logprobs as JSON,
 * `correct`, the counts. A pure function of the job and what the engine reported.
 *
 * Text: the bytes of the ids, special tokens left out, cut at a stop string, every NUL and every
 * maximal invalid UTF-8 part replaced by U+FFFD (then `sanitized`, and the exact bytes are kept).
 *
 * Reasoning: where the prompt ends inside <think>, or the output begins with it, everything up to
 * the first </think> is reasoning, the rest is the answer; both without the whitespace around them,
 * as DeepSeek's API gives them. Without a </think> all of it is reasoning and the answer is NULL.
 * Elsewhere the answer is the text as it is. In `choices` a chat message carries both
 * (reasoning_content, content); a completion's text stays whole. */
#ifndef TRANCHE_WORKER_JOB_RESULT_H
#define TRANCHE_WORKER_JOB_RESULT_H

#include "worker/job/job.h"
#include "worker/open_model.h"

/* Texts of one row at most: what every sink holds with room to spare (PostgreSQL takes 1 GiB in a
 * message, SQLite 10^9 bytes in a row, the spool 1 GiB in a record). On its way to a commit a row
 * is in memory several times, here and in the server. */
enum { RESULT_BYTES_MAX = 256 << 20 };
/* Bytes of a scratch's text that may outlive the row they were taken for. */
enum { RESULT_SCRATCH_MAX = 16 << 20 };

struct result_context {
    const struct loaded_model *model;
    const char *fingerprint, *config_revision, *worker;
    const char *weights; /* tells checkpoints apart, see model_mark; NULL: there are none */
    const char *(*model_sha256)(void *ctx); /* NULL result: not known yet; NULL: never */
    void *sha_ctx;
    struct str source_label;
    int64_t mono_to_wall_ns; /* wall = mono + this */
    size_t row_bytes_max;    /* 0: RESULT_BYTES_MAX */
};
struct result_scratch {
    struct text raw, text, json, logprobs, repaired;
    size_t *offsets; /* of each generated id in raw */
    size_t offsets_cap;
    size_t bytes_max; /* of the row at hand */
};
void result_scratch_close(struct result_scratch *s);
/* Gives texts above RESULT_SCRATCH_MAX back: threads that each kept hundreds of MiB for a next
 * large row would starve one another. */
void result_scratch_trim(struct result_scratch *s);

/* job->result from finished choices; status ok, or failed when one of them failed, or when its
 * texts pass the limit ("too_large"; they are not made to their end then). Memory is the job's.
 * False when memory is refused, for whatever part of it (try again): job->result is NULL. Either
 * way *s is trimmed. */
bool result_render(struct job *job, const struct result_context *ctx, struct result_scratch *s);
/* job->result of a job that never ran: invalid (job->err says why), expired or cancelled. False as
 * above. */
bool result_refuse(struct job *job, const struct result_context *ctx, enum result_status status,
                   const char *code, const char *detail, int64_t now_wall_ns);
/* The same where memory stays refused: these take none, and the row has its key, hash, status,
 * code, counts and times, but neither text nor request nor source. What would have been ok is
 * failed (no_memory). `code` lives as long as the job. */
void result_render_bare(struct job *job, const struct result_context *ctx);
void result_refuse_bare(struct job *job, const struct result_context *ctx,
                        enum result_status status, const char *code, int64_t now_wall_ns);

/* *out: r as a failed row without anything that came from the request or the model, for a sink that
 * cannot hold it; its hash is filled in. detail is borrowed, as all of r. */
void result_unstorable(struct result *out, const struct result *r, struct str detail);

/* Fills output_sha256, over custom_id, status and choices. */
void result_hash_output(struct result *r);

/* Pure parts, for the tests. answer against expected: exact after trimming; where the answer holds
 * \boxed{...}, the content of its last one stands for it. */
bool answer_is_correct(struct str answer, struct str expected);

/* Splits text at the first "</think>". False: there is none. */
bool split_reasoning(struct str text, struct str *reasoning, struct str *answer);
struct str str_trim(struct str s);

#endif
