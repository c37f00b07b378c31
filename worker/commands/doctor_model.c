/* doctor_model: the model folder's side of the doctor: each part opened on its own, so that one
 * fault does not hide the next, and memory against what a run will take. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/weights.h"
#include "worker/commands/doctor.h"

enum { USEFUL_TOKENS = 4096, PARKED_ID = 3 }; /* an id's bytes in parked_state.h */

static const char mend_folder[] =
    "give the folder that holds config.json, tokenizer.json and *.safetensors";
static const char mend_fetch[] = "fetch the folder again, whole, from where it came from";

static bool check_folder(struct doctor *d)
{
    struct stat st;
    if (stat(d->opts.dir, &st) != 0)
        doctor_report(d, VERDICT_FAULT, "folder", mend_folder, "%s: %s", d->opts.dir,
                      strerror(errno));
    else if (!S_ISDIR(st.st_mode))
        doctor_report(d, VERDICT_FAULT, "folder", mend_folder, "%s: is a file, no folder",
                      d->opts.dir);
    else if (access(d->opts.dir, R_OK | X_OK) != 0)
        doctor_report(d, VERDICT_FAULT, "folder",
                      "chown or chmod it on the volume (fsGroup does nothing on NFS and hostPath)",
                      "%s: user %d of group %d may not read it: owner %d, group %d, mode %03o",
                      d->opts.dir, (int)geteuid(), (int)getegid(), (int)st.st_uid, (int)st.st_gid,
                      (unsigned)(st.st_mode & 07777));
    else
        return true;
    return false;
}

/* The weights' files by themselves, where no configuration says which tensors must be there. */
static void check_files(struct doctor *d, const char *dir)
{
    struct err err = {0};
    struct weights *w = NULL;
    if (weights_open(&w, dir, &err) < 0)
        doctor_report(d, VERDICT_FAULT, "weights", mend_fetch, "%s", err.msg);
    else
        doctor_report(d, VERDICT_OK, "weights", NULL,
                      "%zu files, each whole; not held against a configuration",
                      (size_t)weights_n_files(w));
    weights_close(w);
}

/* Opens config and weights; NULL behind the fault that says why not. */
static struct model *check_weights(struct doctor *d, const char *dir)
{
    static const char *const dtypes[] = {"fp32", "bf16", "fp16"};
    struct err err = {0};
    struct model *m = NULL;
    if (model_open(&m, d->opts.dir, &err) < 0) {
        bool config = strstr(err.msg, "config.json") != NULL;
        bool generation = strstr(err.msg, "generation_config.json") != NULL;
        doctor_report(d, VERDICT_FAULT, config ? "config" : "weights",
                      generation ? "mend generation_config.json, or remove it: none is needed"
                      : config   ? "take a model of a family and with settings as the README lists "
                                   "them"
                                 : mend_fetch,
                      "%s", err.msg);
        if (config)
            check_files(d, dir);
        return NULL;
    }
    const struct model_config *c = model_config(m);
    doctor_report(d, VERDICT_OK, "config", NULL,
                  "%s: %d layers, width %d, %d heads on %d, vocabulary %lld, %d positions",
                  c->family, c->n_layers, c->hidden, c->n_heads, c->n_kv_heads,
                  (long long)c->vocab_size, c->max_positions);
    doctor_report(d, VERDICT_OK, "weights", NULL, "complete: %.1f MiB of %s in %s",
                  (double)model_weight_bytes(m) / 1048576, dtypes[c->dtype], model_dir(m));
    if (c->n_eos_ids == 0)
        doctor_report(d, VERDICT_WARN, "config", "add \"eos_token_id\" to generation_config.json",
                      "names no end-of-sequence id: only max_tokens and stop texts end a row");
    return m;
}

static struct tokenizer *check_tokenizer(struct doctor *d, const struct model *m, const char *dir)
{
    struct err err = {0};
    struct tokenizer *t = NULL;
    if (tokenizer_open(&t, dir, &err) < 0) {
        doctor_report(d, VERDICT_FAULT, "tokenizer", mend_fetch, "%s", err.msg);
        return NULL;
    }
    int64_t rows = m ? model_config(m)->vocab_size : INT64_MAX;
    if (tokenizer_vocab_size(t) > rows)
        doctor_report(d, VERDICT_FAULT, "tokenizer", "take weights and tokenizer of one model",
                      "tokenizer.json: want ids below config.json's vocab_size %lld, found id %d",
                      (long long)rows, tokenizer_vocab_size(t) - 1);
    else
        doctor_report(d, VERDICT_OK, "tokenizer", NULL, "%d ids", tokenizer_vocab_size(t));
    return t;
}

/* Compiles the template and renders one message, as a chat job would. */
static void check_template(struct doctor *d, const struct tokenizer *t, const char *dir)
{
    struct err err = {0};
    struct chat_template *template = NULL;
    struct chat_template_output out = {0};
    if (chat_template_open(&template, dir, d->opts.chat_template, &err) < 0) {
        doctor_report(d, VERDICT_FAULT, "template", "give a template with --chat-template FILE",
                      "%s", err.msg);
        return;
    }
    if (!template) {
        doctor_report(d, VERDICT_WARN, "template", "give one with --chat-template FILE",
                      "the folder has none: chat jobs will be invalid, prompts run");
        return;
    }
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "2 + 2?");
    struct chat_template_input in = {
        .messages = messages, .add_generation_prompt = true, .tokenizer = t};
    if (chat_template_render(template, &in, &out, &err) < 0)
        doctor_report(d, VERDICT_FAULT, "template", "give a template with --chat-template FILE",
                      "one user message: %s", err.msg);
    else if (t && chat_template_missing_token(template, t))
        doctor_report(d, VERDICT_WARN, "template",
                      "add it to tokenizer_config.json, as the model's folder has it",
                      "%s names %s, which the tokenizer lacks: it renders as nothing",
                      chat_template_name(template), chat_template_missing_token(template, t));
    else
        doctor_report(d, VERDICT_OK, "template", NULL, "understood, sha256 %.12s...",
                      chat_template_sha256(template));
    chat_template_output_free(&out);
    json_decref(messages);
    chat_template_close(template);
}

static int64_t kv_token_bytes(const struct model_config *c)
{
    return (int64_t)2 * c->n_layers * c->n_kv_heads * c->head_dim * (int64_t)dtype_size(c->dtype);
}

/* What the CPU's engine would choose and take; what fits a GPU, it alone knows. `row` is of the
 * longest row's keys and values. */
static int plan_lines(struct doctor *d, const struct model *m, int64_t row, int64_t length,
                      struct err *err)
{
    struct memory_line lines[ENGINE_PLAN_LINES];
    struct engine_opts asked = d->opts.engine, chosen = asked;
    char full[64];
    int rc = E_OK;
    asked.model = m;
    if (asked.kind == ENGINE_CPU)
        rc = engine_plan_cpu(&chosen, lines, &asked, err);
    if (rc == E_OK) /* an id and, where asked for, its logprob */
        d->park_bytes = (int64_t)chosen.slots * length * (PARKED_ID + (int64_t)sizeof(float));
    snprintf(full, sizeof full, "keys and values, %d slots full", chosen.slots);
    if (chosen.slots > 0)
        doctor_memory_line(d, full, row * chosen.slots);
    for (int i = 0; rc == E_OK && asked.kind == ENGINE_CPU && i < ENGINE_PLAN_LINES; i++)
        doctor_memory_line(d, lines[i].what, lines[i].bytes);
    return rc;
}

static void check_memory(struct doctor *d, const struct model *m)
{
    struct err err = {0};
    const struct model_config *c = model_config(m);
    int64_t available = memory_available(), weights = model_weight_bytes(m);
    int64_t per_token = kv_token_bytes(c), asked = config_int(d->config, "kv-bytes");
    int64_t length = d->opts.engine.max_model_len ? d->opts.engine.max_model_len : c->max_positions;
    int64_t fits = available < 0 ? 0 : (available - weights - asked) / per_token;
    doctor_memory_line(d, "available to this process", available);
    doctor_memory_line(d, "weights", weights);
    doctor_memory_line(d, "keys and values, one token", per_token);
    doctor_memory_line(d, "keys and values, one longest row", per_token * length);
    int rc = plan_lines(d, m, per_token * length, length, &err);
    if (asked)
        doctor_memory_line(d, "keys and values, as --kv-bytes asks", asked);
    if (available < 0)
        doctor_report(d, VERDICT_WARN, "memory", NULL, "the system does not say what is free");
    else if (weights + asked > available)
        doctor_report(d, VERDICT_FAULT, "memory",
                      asked ? "lower --kv-bytes, or run where more memory is free"
                            : "run where more memory is free, or take a smaller model",
                      "want %.1f MiB for weights%s, found %.1f MiB free",
                      (double)(weights + asked) / 1048576, asked ? " and --kv-bytes" : "",
                      (double)available / 1048576);
    else if (rc < 0)
        doctor_report(d, VERDICT_FAULT, "memory",
                      asked ? "raise --kv-bytes, or lower --max-model-len"
                            : "free memory, or lower --max-model-len or --slots",
                      "%s", err.msg);
    else if (!asked && fits < TR_MIN(length, USEFUL_TOKENS))
        doctor_report(d, VERDICT_WARN, "memory", "free memory, or set --max-model-len lower",
                      "beside the weights only %lld tokens of keys and values fit",
                      (long long)fits);
    else
        doctor_report(d, VERDICT_OK, "memory", NULL,
                      "weights fit; %lld tokens of keys and values fit beside them",
                      (long long)(asked ? asked / per_token : fits));
}

void doctor_model(struct doctor *d)
{
    if (!check_folder(d))
        return;
    char found[PATH_MAX];
    struct err ignored = {0};
    const char *dir = model_find(found, d->opts.dir, &ignored) == E_OK ? found : d->opts.dir;
    struct model *m = d->opts.engine.kind == ENGINE_SIM ? NULL : check_weights(d, dir);
    struct tokenizer *t = check_tokenizer(d, m, dir);
    check_template(d, t, dir);
    if (m)
        check_memory(d, m);
    tokenizer_close(t);
    model_close(m);
}
