/* open_model: from the options to an open model: folder, tokenizer, chat template, sequence rules
 * and the engine on top. Shared by run, bench, doctor and tokenize, so that all of them read a
 * model folder the same way. */
#ifndef TRANCHE_WORKER_OPEN_MODEL_H
#define TRANCHE_WORKER_OPEN_MODEL_H

#include "engine/chat_template.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "worker/config/config.h"

enum { ENGINES_MAX = 16 }; /* of one process */

struct model_opts {
    const char *dir;           /* model folder; may be NULL for ENGINE_SIM */
    const char *chat_template; /* file that overrides the folder's template, or NULL */
    bool plain_content;        /* message contents are encoded as plain text (--plain-content) */
    bool device_auto; /* --device auto chose a GPU: the CPU stands in where it does not fit */
    struct engine_opts engine;    /* model and rules are filled in by loaded_model_open */
    int32_t devices[ENGINES_MAX]; /* of --device, in its order */
    int n_devices;                /* 0 counts as 1: engine.device */
};
/* From --model, --chat-template, --engine, --slots, ... Text is borrowed from `config`. E_USAGE
 * when the engine needs a folder and none was given. */
int model_opts_from_config(struct model_opts *out, const struct config *config,
                           struct err *err) TR_MUSTCHECK;
/* The same for a command that can do without a folder: out->dir may be NULL. */
int engine_opts_from_config(struct model_opts *out, const struct config *config,
                            struct err *err) TR_MUSTCHECK;

struct loaded_model {
    struct model *model;                   /* NULL for ENGINE_SIM */
    struct tokenizer *tokenizer;           /* NULL: ENGINE_SIM on a folder without one */
    struct chat_template *chat_template;   /* NULL: the folder has none, chat jobs are invalid */
    struct sequence_rules rules;           /* eos union, think ids; points into this struct */
    struct generation_defaults generation; /* all absent where there is no model */
    int32_t eos_ids[EOS_IDS_MAX + 1];
    bool device_auto;             /* as in model_opts */
    struct engine_opts engine;    /* as given, model and rules filled in */
    int32_t devices[ENGINES_MAX]; /* as in model_opts */
    int n_devices;
    char name[128]; /* last part of the folder's path that says something; "sim" */
};
/* Opens folder, tokenizer and template and fills the rules. ENGINE_SIM takes tokenizer and template
 * where the folder has them and needs nothing else of it. Each phase is logged with path, bytes and
 * seconds. Do not move *out afterwards: rules points into it. Errors: as the parts' own (E_FATAL:
 * exit 65). Nothing stays open on error. */
int loaded_model_open(struct loaded_model *out, const struct model_opts *opts,
                      struct err *err) TR_MUSTCHECK;
void loaded_model_close(struct loaded_model *m); /* NULL and zeroed are legal; engines first */

/* engine_open with loaded->engine. E_USAGE or E_FATAL as there. Owned by the caller. */
int loaded_model_engine(struct engine **out, const struct loaded_model *loaded,
                        struct err *err) TR_MUSTCHECK;
/* One engine for each of loaded->devices, opened side by side, in their order. The same request
 * must give the same bytes on each of them, so cards of two kinds are E_USAGE with both names.
 * Nothing stays open on error. */
int loaded_model_engines(struct engine *out[ENGINES_MAX], int *n, const struct loaded_model *loaded,
                         struct err *err) TR_MUSTCHECK;

#endif
