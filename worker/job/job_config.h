/* job_config: what a prompt and its parameters depend on besides the job and the model folder: the
 * default limit, defaults of other fields, the chat template where it is not the folder's, system
 * prompts. One struct is one revision: immutable, shared by every job that was prepared under it,
 * gone with the last of them.
 *
 * A revision is named by the first 16 hex digits of the SHA-256 of its content, one JSON object:
 *   {"base": hash of what cannot change while a worker runs (folder, flags),
 *    "max_tokens": of --default-max-tokens, "defaults": {...}, "chat_template": "...",
 *    "system": {"": "for every chat", "BATCH": "for those of this batch"}}
 * The content is kept in the database before the first job is counted under it, so that any worker
 * can give a job that comes again the revision of its first admission. */
#ifndef TRANCHE_WORKER_JOB_JOB_CONFIG_H
#define TRANCHE_WORKER_JOB_JOB_CONFIG_H

#include <pthread.h>

#include "worker/job/job.h"
#include "worker/open_model.h"

struct prepare_context;

struct job_config {
    char revision[REVISION_CAP];
    struct text content;                 /* canonical JSON */
    struct params_context params;        /* `defaults` points into doc */
    struct chat_template *chat_template; /* NULL: there is none */
    json_t *doc;
    atomic_int holders;
};

/* What the revisions of one process have in common. All borrowed. */
struct job_config_base {
    const struct prepare_context
        *prepare;              /* model, limits, job defaults; its `configs` is unused */
    const char *model_dir;     /* whose template stands where none is given; or NULL */
    const char *template_path; /* --chat-template, or NULL */
    const char *dir;           /* --job-config, or NULL: nothing changes */
    char sha256[65];           /* of the folder's text files and the flags */
};
/* Fills sha256 from the folder's files and flags. */
void job_config_base_hash(struct job_config_base *base, bool generation_config);

/* Reads --chat-template and the directory, makes a revision of them and checks it: every part is
 * parsed, and a chat for each system prompt is rendered, tokenized and fitted to the context. Held
 * once, by the caller. E_USAGE: names file and fault; E_RETRY: the directory changed meanwhile, or
 * no memory. */
int job_config_load(struct job_config **out, const struct job_config_base *base,
                    struct err *err) TR_MUSTCHECK;
/* The same of a content that a database kept. E_FATAL with type "base" (of another model folder or
 * other flags) or "damaged" (not what `revision` names). */
int job_config_open(struct job_config **out, const struct job_config_base *base,
                    const char *revision, struct str content, struct err *err) TR_MUSTCHECK;

struct job_config *job_config_hold(struct job_config *c);
void job_config_release(struct job_config *c); /* NULL is legal */

/* The system prompt of a chat of this batch that brings none; ptr NULL: none. */
struct str job_config_system(const struct job_config *c, struct str batch_id);

/* The revision that new jobs get: swapped whole, between two jobs. */
struct job_config_slot {
    pthread_mutex_t mutex;
    struct job_config *current;
};
void job_config_slot_open(struct job_config_slot *slot, struct job_config *first); /* takes it */
void job_config_slot_close(struct job_config_slot *slot);            /* a zeroed one is legal */
struct job_config *job_config_current(struct job_config_slot *slot); /* held */
void job_config_adopt(struct job_config_slot *slot, struct job_config *next); /* takes it */

#endif
