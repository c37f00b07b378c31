/* result_logprobs: logprobs as JSON. Chat: OpenAI's {content, refusal}; completions: OpenAI's
 * {tokens, token_logprobs, top_logprobs, text_offset}; prompts: vLLM's list of {id: {...}}. */
#ifndef TRANCHE_WORKER_JOB_RESULT_LOGPROBS_H
#define TRANCHE_WORKER_JOB_RESULT_LOGPROBS_H

#include "worker/job/result.h"

/* Appends the object of one choice; s->raw and s->offsets hold its bytes. These two end early, and
 * the JSON is not whole, where *t passes s->bytes_max. */
void logprobs_add(struct text *t, const struct job_choice *c, const struct loaded_model *model,
                  struct result_scratch *s);
/* Appends an array with one list for each prompt. */
void prompt_logprobs_add(struct text *t, const struct job *job, const struct loaded_model *model,
                         struct result_scratch *s);

/* The bytes of one id; `one` is room for one where there is no tokenizer. */
struct str result_token_bytes(const struct loaded_model *model, int32_t id, char *one);

#endif
