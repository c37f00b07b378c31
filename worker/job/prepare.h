/* prepare: what stands between a claimed message and an engine request: parse, check, render the
 * chat template, tokenize, count. A pure function of the message and the open model, run by a pool
 * of threads, each with a scratch of its own. The same pool turns generated ids back into rows
 * (result.h), so that neither the engine's nor the sink's thread waits for text work. */
#ifndef TRANCHE_WORKER_JOB_PREPARE_H
#define TRANCHE_WORKER_JOB_PREPARE_H

#include "worker/job/job_config.h"
#include "worker/job/result.h"
#include "worker/open_model.h"
#include "worker/queue.h"

struct prepare_context {
    const struct loaded_model *model;
    struct params_context params;
    struct job_defaults defaults;
    bool plain_content;              /* special tokens in message contents are plain text */
    double share;                    /* of the jobs, by share_takes; 0: all of them */
    struct job_config_slot *configs; /* what new jobs are prepared under; NULL: params and model */
};
struct prepare_scratch {
    struct text text, joined;
    struct tokenizer_scratch *tokenizer; /* NULL: bytes stand in for tokens */
    int32_t *ids;
    size_t ids_cap;
};
int prepare_scratch_open(struct prepare_scratch *s, const struct loaded_model *model,
                         struct err *err) TR_MUSTCHECK;
void prepare_scratch_close(struct prepare_scratch *s);

/* Message -> prompts of ids and sampling, or job->err; E_RETRY: memory was refused, prepare_again
 * may find it. Where it was refused earlier than that, job->unread is set and nothing else: it may
 * come here again. The JSON document is gone afterwards. */
void prepare_job(struct job *job, const struct prepare_context *ctx, struct prepare_scratch *s);

/* Once more, under job->config, which may be another one now. */
void prepare_again(struct job *job, const struct prepare_context *ctx, struct prepare_scratch *s);

/* One engine request for each choice, with room for its output, before the job goes to the engine.
 * E_RETRY when memory is refused. Choice i of prompt p is number p * n + i. */
int prepare_choices(struct job *job, struct err *err) TR_MUSTCHECK;

/* ---- the pool ---- */
enum { TASK_PREPARE = 1, TASK_RENDER = 2, TASK_PREPARE_AGAIN = 3, POOL_TASKS };

struct pool;
struct pool_opts {
    int threads;
    struct queue *tasks; /* items of TASK_*: jobs; shut it to end the pool */
    struct queue *out;   /* gets the same jobs with kinds done[TASK_*] */
    int done[POOL_TASKS];
    const struct prepare_context *prepare;
    const struct result_context *result;
    int64_t render_ns; /* how long memory may be refused to a row; 0: 60 s */
};
int pool_open(struct pool **out, const struct pool_opts *opts, struct err *err) TR_MUSTCHECK;
/* Rows that memory was refused to and that are tried again. */
int64_t pool_unrendered(const struct pool *pool);
void pool_close(struct pool *pool); /* waits for the threads; NULL is legal */

#endif
