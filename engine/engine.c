/* engine: see engine.h. Opening: options are checked here, chosen by the kind of engine. */
#include "engine/engine.h"

#include "engine/engine_core.h"
#include "engine/model.h"

static int check_int(const char *option, int64_t v, int64_t low, int64_t high, struct err *err)
{
    if (v >= low && v <= high)
        return E_OK;
    return err_set(err, E_USAGE, "%s is %lld, must be from %lld to %lld", option, (long long)v,
                   (long long)low, (long long)high);
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
