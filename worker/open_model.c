/* open_model: see open_model.h. */
#include "worker/open_model.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/backend_cuda.h"
#include "engine/log.h"
#include "worker/cache_folder.h"

/* "cuda:0,cuda:1" or "cpu,cpu": an engine each. */
static int devices_parse(struct model_opts *out, const char *text, struct err *err)
{
    const char *at = text;
    int n = 0;
    for (;; at++) {
        int length = 0, device = n;
        bool cpu = strncmp(at, "cpu", 3) == 0;
        if (cpu)
            length = 3;
        else if (sscanf(at, "cuda:%d%n", &device, &length) != 1 || device < 0) {
            n = 0;
            break;
        }
        enum engine_kind kind = cpu ? ENGINE_CPU : ENGINE_CUDA;
        at += length;
        if (n == ENGINES_MAX)
            return err_set(err, E_USAGE, "--device: want at most %d devices, found \"%s\"",
                           ENGINES_MAX, text);
        for (int i = 0; i < n; i++)
            if (kind != out->engine.kind || out->devices[i] == device)
                return err_set(err, E_USAGE,
                               "--device: want each GPU once and nothing but GPUs beside it, found "
                               "\"%s\"",
                               text);
        out->engine.kind = kind;
        out->devices[n++] = device;
        if (*at != ',')
            break;
    }
    out->n_devices = n;
    if (n == 0 || *at != '\0')
        return err_set(err, E_USAGE,
                       "--device: want auto, cpu, cuda:N or a list as in cuda:0,cuda:1, found "
                       "\"%s\"",
                       text);
    return E_OK;
}

/* "auto" -> ENGINE_CUDA with device_auto where a GPU can be seen; loaded_model_engine falls back.
 */
static int device_of(struct model_opts *out, const struct config *config, struct err *err)
{
    const char *text = config_text(config, "device");
    struct engine_opts *e = &out->engine;
    bool sim = strcmp(config_text(config, "engine"), "sim") == 0;
    out->n_devices = 1;
    if (strcmp(text, "auto") == 0) {
        struct err none = {0};
        int64_t bytes;
        out->device_auto = !sim && backend_cuda_free_bytes(0, &bytes, &none) == E_OK && bytes > 0;
        e->kind = sim ? ENGINE_SIM : out->device_auto ? ENGINE_CUDA : ENGINE_CPU;
        return E_OK;
    }
    int rc = devices_parse(out, text, err);
    if (rc == E_OK && sim)
        e->kind = ENGINE_SIM;
    e->device = out->devices[0];
    return rc;
}

static struct sim_opts sim_opts_of(const struct config *config)
{
    return (struct sim_opts){
        .step_ns = config_int(config, "sim-step"),
        .tokens_mean = (int32_t)config_int(config, "sim-tokens"),
        .fail_share = config_real(config, "sim-fail-share"),
        .poison_id = (int32_t)config_int(config, "sim-poison-id"),
        .poison = (enum sim_poison)config_choice(config, "sim-poison"),
        .crash_after_steps = config_int(config, "sim-crash-after"),
        .fault_after_steps = config_int(config, "sim-fault-after"),
    };
}

int engine_opts_from_config(struct model_opts *out, const struct config *config, struct err *err)
{
    /* "auto" is the first choice; the others follow enum cpu_isa. */
    int32_t isa = config_choice(config, "isa") - 1;
    *out = (struct model_opts){
        .dir = config_text(config, "model"),
        .chat_template = config_text(config, "chat-template"),
        .plain_content = config_flag(config, "plain-content"),
        .engine = {.slots = (int32_t)config_int(config, "slots"),
                   .step_tokens = (int32_t)config_int(config, "step-tokens"),
                   .chunk_tokens = (int32_t)config_int(config, "chunk-tokens"),
                   .max_model_len = (int32_t)config_int(config, "max-model-len"),
                   .kv_bytes = config_int(config, "kv-bytes"),
                   .threads = (int32_t)config_int(config, "threads"),
                   .isa = isa,
                   .no_prefix_sharing = !config_flag(config, "prefix-sharing"),
                   .no_graphs = !config_flag(config, "graphs"),
                   .cache_dir = cache_folder(),
                   .sim = sim_opts_of(config)},
    };
    int rc = device_of(out, config, err);
    if (rc < 0)
        return rc;
    if (isa > (int32_t)cpu_isa_best())
        return err_set(err, E_USAGE, "--isa: want one that this CPU has (best: %s), found %s",
                       cpu_isa_name(cpu_isa_best()), config_text(config, "isa"));
    return E_OK;
}

int model_opts_from_config(struct model_opts *out, const struct config *config, struct err *err)
{
    int rc = engine_opts_from_config(out, config, err);
    if (rc == E_OK && !out->dir && out->engine.kind != ENGINE_SIM)
        return err_set(err, E_USAGE, "--model: want a model folder, found none%s",
                       (config->command->id & (COMMAND_RUN | COMMAND_WORKER | COMMAND_DOCTOR))
                           ? " (only --engine=sim runs without one)"
                           : "");
    return rc;
}

/* A hub cache's last part is a hash: "models--org--name/snapshots/<hash>" says more two steps up.
 */
static void name_from_dir(char *name, size_t cap, const char *dir)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", dir);
    const char *hub = strstr(path, "models--");
    if (hub) {
        size_t n = strcspn(hub, "/"), to = 0;
        for (size_t i = strlen("models--"); i < n && to + 1 < cap; i++) {
            bool dashes = hub[i] == '-' && i + 1 < n && hub[i + 1] == '-';
            name[to++] = dashes ? '/' : hub[i];
            i += dashes;
        }
        name[to] = '\0';
        return;
    }
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
        path[n - 1] = '\0';
    const char *slash = strrchr(path, '/');
    snprintf(name, cap, "%.*s", (int)cap - 1, slash ? slash + 1 : path);
}

static void add_eos(struct loaded_model *m, int32_t id)
{
    for (int32_t i = 0; i < m->rules.n_eos_ids; i++)
        if (m->eos_ids[i] == id)
            return;
    if (id >= 0 && (size_t)m->rules.n_eos_ids < TR_COUNT(m->eos_ids))
        m->eos_ids[m->rules.n_eos_ids++] = id;
}

/* The ids forced when a thinking budget is spent: the marker on its own line, as R1 and Qwen3 write
 * it themselves, then the blank line before the answer. */
static int fill_think_close(struct loaded_model *m, struct err *err)
{
    struct tokenizer_scratch *scratch = tokenizer_scratch_open(m->tokenizer);
    if (!scratch)
        return err_set(err, E_FATAL, "tokenizer: no memory for a thread's scratch");
    int64_t n = tokenizer_encode(m->tokenizer, scratch, STR("\n</think>\n\n"), 0,
                                 m->rules.think_close, THINK_CLOSE_MAX, err);
    tokenizer_scratch_close(scratch);
    if (n < 0)
        return (int)n;
    if (n > THINK_CLOSE_MAX)
        return err_set(err, E_FATAL,
                       "tokenizer.json: \"\\n</think>\\n\\n\": want at most %d ids, found %lld",
                       THINK_CLOSE_MAX, (long long)n);
    m->rules.n_think_close = (int32_t)n;
    return E_OK;
}

static int fill_rules(struct loaded_model *m, struct err *err)
{
    m->rules = (struct sequence_rules){.tokenizer = m->tokenizer,
                                       .eos_ids = m->eos_ids,
                                       .think_open_id = -1,
                                       .think_close_id = -1};
    if (m->model) {
        const struct model_config *c = model_config(m->model);
        for (int32_t i = 0; i < c->n_eos_ids; i++)
            add_eos(m, c->eos_ids[i]);
    }
    if (!m->tokenizer)
        return E_OK;
    add_eos(m, tokenizer_eos_id(m->tokenizer));
    m->rules.think_open_id = tokenizer_token_id(m->tokenizer, STR("<think>"));
    m->rules.think_close_id = tokenizer_token_id(m->tokenizer, STR("</think>"));
    if (m->rules.think_open_id < 0 || m->rules.think_close_id < 0) {
        m->rules.think_open_id = m->rules.think_close_id = -1;
        return E_OK;
    }
    return fill_think_close(m, err);
}

static double seconds_since(int64_t start_ns)
{
    return (double)(clock_mono_ns(clock_system()) - start_ns) / 1e9;
}

/* A tokenizer with more ids than the embedding has rows would index past it. */
static int check_vocab(const struct loaded_model *m, struct err *err)
{
    int64_t rows = m->model ? model_config(m->model)->vocab_size : INT64_MAX;
    int32_t ids = tokenizer_vocab_size(m->tokenizer);
    if (ids <= rows)
        return E_OK;
    return err_set(err, E_FATAL,
                   "tokenizer.json: want ids below config.json's vocab_size %lld, found id %d",
                   (long long)rows, ids - 1);
}

static int open_template(struct loaded_model *m, const char *dir, const char *override_path,
                         struct err *err)
{
    int64_t start = clock_mono_ns(clock_system());
    int rc = chat_template_open(&m->chat_template, dir, override_path, err);
    if (rc != E_OK || !m->chat_template)
        return rc;
    const char *name = chat_template_name(m->chat_template);
    const char *missing = chat_template_missing_token(m->chat_template, m->tokenizer);
    LOG(LOG_INFO, "chat_template_loaded", LOG_S("path", name),
        LOG_I("bytes", chat_template_bytes(m->chat_template)),
        LOG_S("sha256", chat_template_sha256(m->chat_template)),
        LOG_F("seconds", seconds_since(start)));
    if (missing)
        LOG(LOG_WARN, "chat_template_token_absent", LOG_S("path", name), LOG_S("token", missing),
            LOG_S("effect", "it renders as nothing; tokenizer_config.json names none"));
    return rc;
}

static int open_text_parts(struct loaded_model *m, const char *dir, const char *template_path,
                           struct err *err)
{
    char path[PATH_MAX];
    struct stat st = {0};
    int64_t start = clock_mono_ns(clock_system());
    int rc = tokenizer_open(&m->tokenizer, dir, err);
    if (rc != E_OK)
        return rc;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (stat(path, &st) != 0)
        st.st_size = 0; /* gone since it was read */
    LOG(LOG_INFO, "tokenizer_loaded", LOG_S("path", path), LOG_I("bytes", st.st_size),
        LOG_I("ids", tokenizer_vocab_size(m->tokenizer)), LOG_F("seconds", seconds_since(start)));
    rc = check_vocab(m, err);
    return rc == E_OK ? open_template(m, dir, template_path, err) : rc;
}

static bool has_tokenizer(const char *dir)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    return n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0;
}

int loaded_model_open(struct loaded_model *out, const struct model_opts *opts, struct err *err)
{
    *out = (struct loaded_model){
        .engine = opts->engine, .device_auto = opts->device_auto, .n_devices = opts->n_devices};
    memcpy(out->devices, opts->devices, sizeof out->devices);
    bool sim = opts->engine.kind == ENGINE_SIM;
    const char *dir = opts->dir;
    int rc = E_OK;
    snprintf(out->name, sizeof out->name, "sim");
    if (dir)
        name_from_dir(out->name, sizeof out->name, dir);
    if (!sim) {
        rc = model_open(&out->model, dir, err);
        if (rc != E_OK)
            goto out;
        dir = model_dir(out->model);
        out->generation = *model_generation(out->model);
    }
    if (dir && (!sim || has_tokenizer(dir)))
        rc = open_text_parts(out, dir, opts->chat_template, err);
    if (rc == E_OK)
        rc = fill_rules(out, err);
out:
    if (rc != E_OK)
        loaded_model_close(out);
    out->engine.model = out->model;
    out->engine.rules = out->rules;
    return rc;
}

void loaded_model_close(struct loaded_model *m)
{
    if (!m)
        return;
    chat_template_close(m->chat_template);
    tokenizer_close(m->tokenizer);
    model_close(m->model);
    *m = (struct loaded_model){0};
}

int loaded_model_engine(struct engine **out, const struct loaded_model *loaded, struct err *err)
{
    if (!loaded->device_auto)
        return engine_open(out, &loaded->engine, err);
    struct err why = {0};
    if (engine_open(out, &loaded->engine, &why) == E_OK)
        return E_OK;
    LOG(LOG_WARN, "device_fallback", LOG_S("to", "cpu"), LOG_S("why", why.msg));
    struct engine_opts cpu = loaded->engine;
    cpu.kind = ENGINE_CPU;
    return engine_open(out, &cpu, err);
}

struct opening {
    struct engine_opts opts;
    struct engine *engine;
    struct err err;
    pthread_t thread;
    int rc;
    bool started;
};

static void *open_one(void *arg)
{
    struct opening *o = arg;
    o->rc = engine_open(&o->engine, &o->opts, &o->err);
    return NULL;
}

/* The first failure, or cards of two kinds. */
static int check_opened(const struct opening *all, int n, struct err *err)
{
    for (int i = 0; i < n; i++)
        if (all[i].rc < 0)
            return err_set(err, all[i].err.code, "%s", all[i].err.msg);
    for (int i = 1; i < n; i++) {
        const char *first = engine_fingerprint(all[0].engine),
                   *other = engine_fingerprint(all[i].engine);
        if (strcmp(first, other) != 0)
            return err_set(err, E_USAGE,
                           "--device: want GPUs of one kind, which give the same bytes, found "
                           "\"%s\" and \"%s\"",
                           first, other);
    }
    return E_OK;
}

int loaded_model_engines(struct engine *out[ENGINES_MAX], int *n, const struct loaded_model *loaded,
                         struct err *err)
{
    struct opening all[ENGINES_MAX] = {0};
    const int count = TR_MAX(loaded->n_devices, 1);
    *n = 0;
    if (count == 1) {
        int rc = loaded_model_engine(out, loaded, err);
        *n = rc == E_OK;
        return rc;
    }
    for (int i = 0; i < count; i++) {
        all[i].opts = loaded->engine;
        all[i].opts.device = loaded->devices[i];
        all[i].opts.sharers = count;
        all[i].started = pthread_create(&all[i].thread, NULL, open_one, &all[i]) == 0;
        if (!all[i].started)
            open_one(&all[i]);
    }
    for (int i = 0; i < count; i++)
        if (all[i].started)
            pthread_join(all[i].thread, NULL);
    int rc = check_opened(all, count, err);
    for (int i = 0; i < count && rc < 0; i++)
        engine_close(all[i].engine);
    for (int i = 0; i < count && rc == E_OK; i++)
        out[i] = all[i].engine;
    *n = rc == E_OK ? count : 0;
    return rc;
}
