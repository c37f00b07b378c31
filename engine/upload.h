/* upload: matrices from safetensors files to a backend, in blocks: some threads read ahead while
 * the caller's thread hands finished blocks to the backend, in order. */
#ifndef TRANCHE_ENGINE_UPLOAD_H
#define TRANCHE_ENGINE_UPLOAD_H

#include "engine/backend.h"
#include "engine/weights.h"

/* Rows row0 .. row0+n-1 of `into` are the tensor's rows. */
struct upload_part {
    struct weights_tensor from;
    struct weight *into;
    int64_t row0;
};
/* Copies every part; logs progress and the end as events with path, bytes and seconds. */
int upload_run(struct backend *b, const struct upload_part *parts, size_t n_parts, const char *path,
               struct err *err) TR_MUSTCHECK;

/* A vector of any of the three float dtypes as fp32 [from->n]. */
int upload_vector(const struct weights_tensor *from, float *into, struct err *err) TR_MUSTCHECK;

#endif
