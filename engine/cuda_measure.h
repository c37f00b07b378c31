/* cuda_measure: what `tranche bench` measures on a GPU below an engine: the card's ceilings, this
 * model's products, and steps of a given make-up, whole and op by op. Times are of the device, by
 * events, medians of several runs on random data. A build without CUDA has stand-ins that say so
 * (backend_cuda_none.c). */
#ifndef TRANCHE_ENGINE_MEASURE_H
#define TRANCHE_ENGINE_MEASURE_H

#include "engine/model.h"

struct cuda_ceilings {
    double copy_Bps;   /* device to device, 4 GiB, bytes read and written */
    double gemm_flops; /* bf16 8192^3 by cuBLASLt, its first choice */
};
/* Takes 9 GiB of the device for a second. E_USAGE: no such device or no CUDA; E_FATAL. */
int cuda_measure_ceilings(struct cuda_ceilings *out, int device, struct err *err) TR_MUSTCHECK;
/* Bytes of the device in use by all programs, and there at all. */
int cuda_measure_memory(int device, int64_t *used, int64_t *total, struct err *err) TR_MUSTCHECK;
/* "580.159.04", or the CUDA version where the driver's own is not told. */
void cuda_measure_driver(char *out, size_t cap);

/* A model on a backend of its own, without an engine. */
struct cuda_meter;
struct cuda_meter_opts {
    int device;
    int32_t rows_cap, logits_cap, slots, n_pages, max_model_len;
    bool no_graphs;
};
int cuda_meter_open(struct cuda_meter **out, const struct model *m,
                    const struct cuda_meter_opts *opts, struct err *err) TR_MUSTCHECK;
void cuda_meter_close(struct cuda_meter *m); /* NULL is legal */

/* One product of the model at `rows` rows, weights out of the cache. */
struct cuda_product {
    const char *name; /* "qkv", "o", "gate_up", "down", "head" */
    int64_t rows, n, k;
    double seconds;
};
enum { CUDA_PRODUCTS = 5 };
int cuda_meter_products(struct cuda_meter *m, int64_t rows, struct cuda_product out[CUDA_PRODUCTS],
                        struct err *err) TR_MUSTCHECK;

/* What a step is made of: decode rows with `context` keys each, and prompts of which `prompt` rows
 * are computed behind `before` keys; the first `shared_pages` pages of all are the same. */
struct cuda_step_shape {
    const char *name;
    int32_t decodes, context, prompts, prompt, before, shared_pages;
};
enum { CUDA_OPS_MAX = 24 };
struct cuda_step_times {
    double seconds;      /* a step among many, as in a run */
    double host_seconds; /* of the calling thread a step, without its waits for the device */
    int n_ops;
    struct {
        const char *name;
        double seconds; /* in a step that runs op by op */
    } ops[CUDA_OPS_MAX];
};
/* Sampled at T 0.6, top_p 0.95. E_USAGE when the shape is larger than the meter. */
int cuda_meter_step(struct cuda_meter *m, const struct cuda_step_shape *shape,
                    struct cuda_step_times *out, struct err *err) TR_MUSTCHECK;
/* Seconds of the shape's attention over all layers, each with keys and values of its own, launched
 * one behind the other with nothing between: what cuda_meter_step's marks cost is not in it. */
int cuda_meter_attention(struct cuda_meter *m, const struct cuda_step_shape *shape, double *seconds,
                         struct err *err) TR_MUSTCHECK;

#endif
