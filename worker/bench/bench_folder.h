/* bench_folder: a model folder with random weights, made where a benchmark needs one: Qwen2's
 * architecture in bf16, weights as of a freshly initialised model (uniform, standard deviation
 * 0.02; biases 0.002; norms 1). No tokenizer. */
#ifndef TRANCHE_WORKER_BENCH_BENCH_FOLDER_H
#define TRANCHE_WORKER_BENCH_BENCH_FOLDER_H

#include "engine/base.h"

struct bench_shape {
    int32_t layers, hidden, inner, heads, kv_heads, head_dim, vocab;
};
/* DeepSeek-R1-Distill-Qwen-1.5B with its published values: 3.55 GB. */
extern const struct bench_shape bench_shape_r1;

/* Makes a fresh folder below $TMPDIR (or /tmp) and writes its path to `path`. At most 28 layers.
 * E_USAGE with both numbers when there is no room, E_FATAL when it cannot be written; nothing is
 * left behind then. */
int bench_folder_make(char *path, size_t cap, const struct bench_shape *shape,
                      struct err *err) TR_MUSTCHECK;
/* Removes it; files that are open stay readable. */
void bench_folder_remove(const char *path);

#endif
