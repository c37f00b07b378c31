/* engine: see engine.h. Opening: options are checked here, chosen by the kind of engine. */
#include "engine/engine.h"

#include "engine/engine_core.h"
#include "engine/log.h"
#include "engine/model.h"
#include "kernels/kernels.h"

#include <stdio.h>

static int check_int(const char *option, int64_t v, int64_t low, int64_t high, struct err *err)
{
    if (v >= low && v <= high)
        return E_OK;
    return err_set(err, E_USAGE, "%s is %lld, must be from %lld to %lld", option, (long long)v,
                   (long long)low, (long long)high);
}

static int open_kind(struct engine **out, const struct engine_opts *opts, struct err *err)
{
    switch (opts->kind) {
    case ENGINE_SIM:
        return engine_sim_open(out, opts, err);
    case ENGINE_CPU:
        return engine_cpu_open(out, opts, err);
    case ENGINE_CUDA:
        return engine_cuda_open(out, opts, err);
    }
    return err_set(err, E_USAGE, "engine kind %d is not known", (int)opts->kind);
}

/* What was chosen where the options said 0. */
static void log_opened(const struct engine *e, int64_t start_ns)
{
    const struct engine_opts *o = &e->opts;
    char device[16] = "sim";
    if (o->kind == ENGINE_CUDA)
        snprintf(device, sizeof device, "cuda:%d", o->device);
    else if (o->kind == ENGINE_CPU)
        snprintf(device, sizeof device, "cpu");
    enum cpu_isa isa = o->isa < 0 ? cpu_isa_best() : (enum cpu_isa)o->isa;
    LOG(LOG_INFO, "engine_opened", LOG_S("device", device), LOG_S("isa", cpu_isa_name(isa)),
        LOG_I("threads", o->threads), LOG_I("slots", o->slots),
        LOG_I("max_model_len", o->max_model_len), LOG_I("step_tokens", o->step_tokens),
        LOG_I("chunk_tokens", o->chunk_tokens), LOG_I("kv_pages", e->n_pages),
        LOG_I("kv_bytes", e->net.bytes ? e->net.bytes(e->net.ctx, "kv pages") : 0),
        LOG_S("fingerprint", e->net.fingerprint),
        LOG_F("seconds", (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9));
}

int engine_open(struct engine **out, const struct engine_opts *opts, struct err *err)
{
    if (check_int("slots", opts->slots, 0, 65536, err) < 0 ||
        check_int("queue_cap", opts->queue_cap, 0, 1 << 20, err) < 0 ||
        check_int("step_tokens", opts->step_tokens, 0, 1 << 20, err) < 0 ||
        check_int("chunk_tokens", opts->chunk_tokens, 0, 1 << 20, err) < 0 ||
        check_int("max_model_len", opts->max_model_len, 0, 1 << 24, err) < 0 ||
        check_int("kv_bytes", opts->kv_bytes, 0, INT64_MAX, err) < 0 ||
        check_int("threads", opts->threads, 0, 1024, err) < 0 ||
        check_int("isa", opts->isa, -1, CPU_ISA_AVX512, err) < 0 ||
        check_int("number of end-of-sequence ids", opts->rules.n_eos_ids, 0, EOS_IDS_MAX, err) <
            0 ||
        check_int("number of think_close ids", opts->rules.n_think_close, 0, THINK_CLOSE_MAX, err) <
            0)
        return E_USAGE;
    if (opts->max_model_len == 1)
        return err_set(err, E_USAGE, "max_model_len is 1, must be at least 2: one id in, one out");
    const int64_t start_ns = clock_mono_ns(clock_system());
    int rc = open_kind(out, opts, err);
    if (rc == E_OK)
        log_opened(*out, start_ns);
    return rc;
}
