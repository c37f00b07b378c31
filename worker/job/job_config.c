/* job_config: see job_config.h. */
#include "worker/job/job_config.h"

#include <limits.h>
#include <stdio.h>

#include "worker/job/config_folder.h"
#include "worker/job/prepare.h"

/* ---- the base ---- */

static bool read_whole(struct text *out, const char *path)
{
    FILE *f = fopen(path, "re");
    char *at;
    while (f && (at = text_room(out, 65536)) && !feof(f) && !ferror(f))
        out->len += fread(at, 1, 65536, f);
    bool fine = f && !ferror(f) && !out->failed;
    if (f)
        fclose(f);
    return fine;
}

/* A file of the model folder; an absent one counts as empty. */
static void fold_file(struct text *all, const char *dir, const char *name)
{
    char path[PATH_MAX], hex[65];
    uint8_t sha[32];
    struct text content = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    (void)read_whole(&content, path);
    sha256_of(text_view(&content), sha);
    sha256_hex(sha, hex);
    text_f(all, "%s %s\n", name, hex);
    text_close(&content);
}

void job_config_base_hash(struct job_config_base *base, bool generation_config)
{
    static const char *const files[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "chat_template.jinja"};
    struct text all = {0};
    uint8_t sha[32];
    for (size_t i = 0; base->model_dir && i < TR_COUNT(files); i++)
        fold_file(&all, base->model_dir, files[i]);
    text_f(&all, "generation_config %d\nplain_content %d\n", generation_config,
           base->prepare->plain_content);
    sha256_of(text_view(&all), sha);
    sha256_hex(sha, base->sha256);
    text_close(&all);
}

/* ---- one revision ---- */

static void name_content(struct str content, char revision[REVISION_CAP])
{
    char hex[65];
    uint8_t sha[32];
    sha256_of(content, sha);
    sha256_hex(sha, hex);
    snprintf(revision, REVISION_CAP, "%.16s", hex);
}

/* From c->doc, which came from our own hand or from the database under its hash. */
static int fill(struct job_config *c, const struct job_config_base *base, struct err *err)
{
    struct str text = json_str(json_object_get(c->doc, "chat_template"));
    c->params = base->prepare->params;
    c->params.default_max_tokens =
        (int32_t)json_integer_value(json_object_get(c->doc, "max_tokens"));
    c->params.defaults = json_object_get(c->doc, "defaults");
    text_json_canonical(&c->content, c->doc);
    if (c->content.failed)
        return err_set(err, E_RETRY, "job config: no memory");
    name_content(text_view(&c->content), c->revision);
    if (text.ptr && base->prepare->model->tokenizer)
        return chat_template_compile(&c->chat_template, text, "chat_template.jinja", err);
    if (base->model_dir && base->prepare->model->tokenizer)
        return chat_template_open(&c->chat_template, base->model_dir, NULL, err);
    return E_OK;
}

/* Takes doc. */
static int make(struct job_config **out, json_t *doc, const struct job_config_base *base,
                struct err *err)
{
    struct job_config *c = mem_alloc(1, sizeof *c);
    if (!c || !doc) {
        json_decref(doc);
        mem_free(c);
        return err_set(err, E_RETRY, "job config: no memory");
    }
    c->doc = doc;
    atomic_init(&c->holders, 1);
    int rc = fill(c, base, err);
    if (rc < 0)
        job_config_release(c);
    else
        *out = c;
    return rc;
}

int job_config_open(struct job_config **out, const struct job_config_base *base,
                    const char *revision, struct str content, struct err *err)
{
    char found[REVISION_CAP];
    struct err why = {0};
    json_t *doc = NULL;
    name_content(content, found);
    if (strcmp(found, revision) != 0 ||
        json_parse(&doc, content, "config_revisions", &json_limits_job, &why) < 0)
        return err_typed(err, E_FATAL, "damaged", "want the content of %s, found that of %s",
                         revision, found);
    if (!str_eq(json_str(json_object_get(doc, "base")), str_of(base->sha256))) {
        json_decref(doc);
        return err_typed(err, E_FATAL, "base", "it is of another model folder, or other flags");
    }
    return make(out, doc, base, err);
}

struct job_config *job_config_hold(struct job_config *c)
{
    atomic_fetch_add(&c->holders, 1);
    return c;
}

void job_config_release(struct job_config *c)
{
    if (!c || atomic_fetch_sub(&c->holders, 1) != 1)
        return;
    chat_template_close(c->chat_template);
    json_decref(c->doc);
    text_close(&c->content);
    mem_free(c);
}

struct str job_config_system(const struct job_config *c, struct str batch_id)
{
    char key[JOB_ID_BYTES_MAX + 1];
    const json_t *all = json_object_get(c->doc, "system"), *own = NULL;
    if (!all)
        return (struct str){NULL, 0};
    if (batch_id.len > 0 && batch_id.len < sizeof key) {
        snprintf(key, sizeof key, STR_FMT, STR_ARG(batch_id));
        own = json_object_get(all, key);
    }
    return json_str(own ? own : json_object_get(all, ""));
}

/* ---- loading and checking ---- */

/* Prepares a chat of this batch as if it had come; E_USAGE with what became of it. */
static int try_chat(struct job_config *c, const struct job_config_base *base,
                    struct prepare_scratch *scratch, const char *batch, struct err *err)
{
    struct text line = {0};
    text_add(&line, STR("{\"id\":\"check\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"));
    if (*batch) {
        text_add(&line, STR(",\"batch_id\":"));
        text_json_str(&line, str_of(batch));
    }
    text_char(&line, '}');
    struct job *job = line.failed ? NULL : job_open(line.len);
    int rc = job ? E_OK : err_set(err, E_RETRY, "job config: no memory");
    if (job) {
        memcpy((char *)(uintptr_t)job->message.ptr, line.ptr, line.len);
        job->config = job_config_hold(c);
        prepare_job(job, base->prepare, scratch);
        bool plain = strcmp(job->err.type, "no_chat_template") == 0;
        if (job->unread || job->err.code == E_RETRY)
            rc = err_set(err, E_RETRY, "job config: no memory to check it");
        else if (job->err.code && !plain)
            rc = err_set(err, E_USAGE, "%s: a chat%s%s fails under it: %s",
                         base->dir ? base->dir : "settings", *batch ? " of batch " : "", batch,
                         job->err.msg);
    }
    job_close(job);
    text_close(&line);
    return rc;
}

static int check(struct job_config *c, const struct job_config_base *base, struct err *err)
{
    struct prepare_scratch scratch;
    const char *batch;
    json_t *value;
    int rc = prepare_scratch_open(&scratch, base->prepare->model, err);
    if (rc >= 0)
        rc = try_chat(c, base, &scratch, "", err);
    json_object_foreach(json_object_get(c->doc, "system"), batch, value)
    {
        if (rc >= 0 && *batch)
            rc = try_chat(c, base, &scratch, batch, err);
    }
    prepare_scratch_close(&scratch);
    return rc;
}

/* What the options say, under what the directory says. */
static int collect(json_t **out, const struct job_config_base *base, struct err *err)
{
    json_t *doc = base->dir ? NULL : json_object();
    struct text text = {0};
    int rc = base->dir ? config_folder_read(&doc, base->dir, err) : E_OK;
    if (rc >= 0 && base->template_path && !json_object_get(doc, "chat_template")) {
        bool there = read_whole(&text, base->template_path);
        json_t *value = there ? json_stringn(text.ptr ? text.ptr : "", text.len) : NULL;
        rc = value
                 ? json_object_set_new(doc, "chat_template", value)
                 : err_set(err, E_USAGE, "%s: want a readable file of UTF-8", base->template_path);
    }
    text_close(&text);
    if (rc >= 0) {
        json_object_set_new(doc, "base", json_string(base->sha256));
        json_object_set_new(doc, "max_tokens",
                            json_integer(base->prepare->params.default_max_tokens));
        *out = doc;
    } else {
        json_decref(doc);
    }
    return rc;
}

int job_config_load(struct job_config **out, const struct job_config_base *base, struct err *err)
{
    struct job_config *made = NULL;
    struct err why = {0};
    json_t *doc = NULL;
    int rc = collect(&doc, base, &why);
    if (rc >= 0)
        rc = make(&made, doc, base, &why);
    if (rc >= 0)
        rc = check(made, base, &why);
    if (rc < 0) {
        job_config_release(made);
        /* A template that does not compile is the operator's here, not the folder's. */
        bool ours = rc == E_FATAL && base->dir;
        return err_typed(err, ours ? E_USAGE : rc, why.type, "%s%s%s", ours ? base->dir : "",
                         ours ? "/" : "", why.msg);
    }
    *out = made;
    return E_OK;
}

/* ---- the slot ---- */

void job_config_slot_open(struct job_config_slot *slot, struct job_config *first)
{
    pthread_mutex_init(&slot->mutex, NULL);
    slot->current = first;
}

void job_config_slot_close(struct job_config_slot *slot)
{
    job_config_release(slot->current);
    slot->current = NULL;
}

struct job_config *job_config_current(struct job_config_slot *slot)
{
    pthread_mutex_lock(&slot->mutex);
    struct job_config *c = job_config_hold(slot->current);
    pthread_mutex_unlock(&slot->mutex);
    return c;
}

void job_config_adopt(struct job_config_slot *slot, struct job_config *next)
{
    pthread_mutex_lock(&slot->mutex);
    struct job_config *old = slot->current;
    slot->current = next;
    pthread_mutex_unlock(&slot->mutex);
    job_config_release(old);
}
