/* engine_cpu: a model on the CPU backend as a net: sizes chosen from the model and the memory. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/control_group.h"
#include "engine/engine_core.h"
#include "engine/model.h"

enum {
    CPU_SLOTS = 64,
    CPU_STEP_TOKENS = 256,
    CPU_LOGITS = 64,      /* logit rows at once: 64 x 151,936 floats are 39 MB */
    CPU_MEAN_LEN = 4096,  /* ids of a sequence that the chosen KV memory counts with */
    KV_SHARE_PERCENT = 60 /* of the memory left, at most, for KV pages */
};

struct cpu_net {
    struct backend *backend;
    struct network *network;
};

static int cpu_forward(void *ctx, const struct step *step, struct sample_token *tokens,
                       struct err *err)
{
    struct cpu_net *n = ctx;
    return network_forward(n->network, step, tokens, err);
}

static int64_t cpu_bytes(void *ctx, const char *what)
{
    struct cpu_net *n = ctx;
    return n->backend->ops->bytes(n->backend, what);
}

static void cpu_net_close(void *ctx)
{
    struct cpu_net *n = ctx;
    network_close(n->network);
    if (n->backend)
        n->backend->ops->close(n->backend);
    mem_free(n);
}

/* What this process may still take: of the machine and of its control groups. */
static int64_t memory_left(void)
{
    int64_t left = INT64_C(4) << 30;
    char line[128];
    struct control_group group;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "MemAvailable:", 13) == 0)
            left = strtoll(line + 13, NULL, 10) * 1024;
    if (f)
        fclose(f);
    control_group_read(&group, "");
    return group.memory_left < 0 ? left : TR_MIN(left, group.memory_left);
}

static int32_t cpus_allowed(void)
{
    cpu_set_t set;
    struct control_group group;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    control_group_read(&group, "");
    return control_group_threads(&group, TR_MAX(CPU_COUNT(&set), 1));
}

static int64_t page_bytes(const struct model_config *c)
{
    return (int64_t)c->n_layers * c->n_kv_heads * 2 * KV_PAGE_TOKENS * c->head_dim *
           (int64_t)dtype_size(c->dtype);
}

/* Pages that the options and the memory allow. */
static int64_t choose_pages(const struct engine_opts *o, const struct model *m)
{
    const struct model_config *c = model_config(m);
    int64_t most = (int64_t)o->slots * kv_pages_of(o->max_model_len);
    if (o->kv_bytes > 0)
        return TR_MIN(o->kv_bytes / page_bytes(c), most);
    int64_t mean = (int64_t)o->slots * kv_pages_of(TR_MIN(o->max_model_len, CPU_MEAN_LEN));
    int64_t want = TR_MAX(mean, (int64_t)kv_pages_of(o->max_model_len));
    int64_t left = TR_MAX(memory_left() / TR_MAX(o->sharers, 1) - model_weight_bytes(m), 0);
    return TR_MIN(want, left / 100 * KV_SHARE_PERCENT / page_bytes(c));
}

/* What config.json may say and attention_cpu has no room for. */
static int check_heads(const struct model *m, struct err *err)
{
    const struct model_config *c = model_config(m);
    if (c->head_dim > ATTENTION_HEAD_DIM)
        return err_set(err, E_FATAL,
                       "config.json: head_dim: want at most %d on the CPU, file has %d",
                       ATTENTION_HEAD_DIM, c->head_dim);
    if (c->n_heads / c->n_kv_heads > ATTENTION_QUERIES)
        return err_set(err, E_FATAL,
                       "config.json: num_attention_heads: want at most %d for each of "
                       "num_key_value_heads on the CPU, file has %d for %d",
                       ATTENTION_QUERIES, c->n_heads, c->n_kv_heads);
    return E_OK;
}

static int choose(struct engine_opts *o, int32_t *n_pages, struct err *err)
{
    const struct model_config *c = model_config(o->model);
    int rc = check_heads(o->model, err);
    if (rc < 0)
        return rc;
    bool len_given = o->max_model_len > 0;
    o->slots = o->slots > 0 ? o->slots : CPU_SLOTS;
    o->queue_cap = o->queue_cap > 0 ? o->queue_cap : o->slots;
    o->step_tokens = o->step_tokens > 0 ? o->step_tokens : TR_MAX(CPU_STEP_TOKENS, o->slots);
    o->chunk_tokens = o->chunk_tokens > 0 ? o->chunk_tokens : o->step_tokens;
    if (o->threads == 0)
        o->threads = TR_MAX(cpus_allowed() / TR_MAX(o->sharers, 1), 1);
    if (o->max_model_len > c->max_positions)
        return err_set(err, E_USAGE, "max_model_len is %d, but the model has %d positions",
                       o->max_model_len, c->max_positions);
    o->max_model_len = len_given ? o->max_model_len : c->max_positions;
    int64_t pages = choose_pages(o, o->model);
    if (pages < kv_pages_of(o->max_model_len) && (len_given || pages < 1))
        return err_set(err, E_USAGE,
                       "kv_bytes: %lld bytes of KV pages hold %lld tokens, but one sequence of "
                       "max_model_len has %d",
                       (long long)(pages * page_bytes(c)), (long long)(pages * KV_PAGE_TOKENS),
                       o->max_model_len);
    if (pages < kv_pages_of(o->max_model_len))
        o->max_model_len = (int32_t)pages * KV_PAGE_TOKENS;
    *n_pages = (int32_t)TR_MIN(pages, INT32_MAX);
    return E_OK;
}

static int backend_of(struct backend **out, const struct engine_opts *o, int32_t n_pages,
                      struct err *err)
{
    const struct model_config *c = model_config(o->model);
    const struct backend_opts b = {.threads = o->threads,
                                   .isa = o->isa,
                                   .rows_cap = o->step_tokens,
                                   .logits_cap = TR_MIN(o->step_tokens, CPU_LOGITS),
                                   .n_layers = c->n_layers,
                                   .n_pages = n_pages,
                                   .slots = o->slots,
                                   .pages_per_slot = kv_pages_of(o->max_model_len),
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .vocab_size = c->vocab_size,
                                   .dtype = c->dtype};
    return backend_cpu_open(out, &b, err);
}

static int net_open(struct cpu_net *n, const struct engine_opts *o, int32_t n_pages,
                    struct err *err)
{
    int rc = backend_of(&n->backend, o, n_pages, err);
    if (rc < 0)
        return rc;
    return network_open(&n->network, o->model, n->backend, o->step_tokens, o->max_model_len, err);
}

int engine_plan_cpu(struct engine_opts *chosen, struct memory_line out[ENGINE_PLAN_LINES],
                    const struct engine_opts *opts, struct err *err)
{
    const struct model_config *c = model_config(opts->model);
    const struct engine_net none = {.vocab_size = c->vocab_size};
    struct backend *b = NULL;
    struct engine *e = NULL;
    int32_t n_pages = 0;
    *chosen = *opts;
    int rc = choose(chosen, &n_pages, err);
    if (rc == E_OK)
        rc = backend_of(&b, chosen, 1, err);
    if (rc == E_OK)
        rc = network_plan(c, b, chosen->step_tokens, err);
    if (rc == E_OK)
        rc = engine_core_open(&e, chosen, &none, n_pages, err);
    if (rc == E_OK) {
        out[0] = (struct memory_line){"kv pages", n_pages * page_bytes(c)};
        out[1] = (struct memory_line){"activations", b->ops->bytes(b, "activations")};
        CHECK(engine_memory(e, out + 2, 2) == 2); /* page table, sequences and step */
    }
    engine_close(e);
    if (b)
        b->ops->close(b);
    return rc;
}

int engine_cpu_open(struct engine **out, const struct engine_opts *opts, struct err *err)
{
    static const char *const dtypes[] = {"fp32", "bf16", "fp16"};
    struct engine_opts o = *opts;
    int32_t n_pages = 0;
    if (!o.model)
        return err_set(err, E_USAGE, "the CPU engine needs a model");
    if (o.isa > (int32_t)cpu_isa_best())
        return err_set(err, E_USAGE, "isa is %s, but this machine has no more than %s",
                       cpu_isa_name((enum cpu_isa)o.isa), cpu_isa_name(cpu_isa_best()));
    int rc = choose(&o, &n_pages, err);
    if (rc < 0)
        return rc;
    struct cpu_net *n = mem_alloc(1, sizeof *n);
    if (!n)
        return err_set(err, E_FATAL, "no memory for the CPU engine");
    const struct model_config *c = model_config(o.model);
    struct engine_net net = {.ctx = n,
                             .vocab_size = c->vocab_size,
                             .forward = cpu_forward,
                             .bytes = cpu_bytes,
                             .close = cpu_net_close};
    snprintf(net.fingerprint, sizeof net.fingerprint, "cpu-fma-v1 %s %s", c->family,
             dtypes[c->dtype]);
    rc = net_open(n, &o, n_pages, err);
    net.lag = n->backend ? n->backend->ops->lag : 0;
    if (rc == E_OK)
        rc = engine_core_open(out, &o, &net, n_pages, err);
    if (rc < 0)
        cpu_net_close(n);
    return rc;
}
