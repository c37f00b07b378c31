/* backend_cuda: the op table on an NVIDIA GPU of compute capability 8.0 or higher, bf16. Its steps
 * lag: step_end hands out the tokens of the step before, while the GPU runs this one. */
#ifndef TRANCHE_ENGINE_BACKEND_CUDA_H
#define TRANCHE_ENGINE_BACKEND_CUDA_H

#include "engine/backend.h"

/* Opens device `device` and takes its context; buffers and weights follow through the ops.
 * Errors: E_USAGE when the device, its compute capability, the dtype or the head size does not fit
 * (named with both values), E_FATAL otherwise. */
int backend_cuda_open(struct backend **out, const struct backend_opts *opts, int device,
                      struct err *err) TR_MUSTCHECK;
/* Hands out the tokens of the newest step when no further one is to run (engine_net: rows.n == 0).
 */
int backend_cuda_drain(struct backend *b, struct sample_token *tokens,
                       struct err *err) TR_MUSTCHECK;
/* Another request took the slot: its penalty history starts anew. */
void backend_cuda_slot_open(struct backend *b, int32_t slot);
/* Whether steps run as CUDA graphs from here on (off after open), and the folder that keeps GEMM
 * plans from one start to the next (NULL: none; borrowed; before the first step). */
void backend_cuda_graphs(struct backend *b, bool on);
void backend_cuda_plan_cache(struct backend *b, const char *folder);
/* Writes the plans made since open; a file that cannot be written is logged. */
void backend_cuda_plans_keep(struct backend *b);
/* Sums over the steps that have ended: their time on the device, and the time between a step's end
 * and the start of the next one while there was one. */
void backend_cuda_times(const struct backend *b, int64_t *busy_ns, int64_t *idle_ns);
/* The greatest number of rows below m whose products run in a narrower bucket; 0: there is none. */
int32_t backend_cuda_rows_below(int32_t m);
/* For benchmarks: the stream of all ops (cudaStream_t) and layer 0 of the KV arena. */
void *backend_cuda_stream(struct backend *b);
void *backend_cuda_kv(struct backend *b);
/* For tests: shared prefixes go to the tile kernel where a step shares at least so many rows x
 * splits of 128 keys; 0: the default. It changes speed alone. Of the process. */
void backend_cuda_share_from(int32_t row_splits);
/* For tests: decode attention has one CTA a multiprocessor, not two, where two had so many keys a
 * warp; 0: the default. It changes speed alone. Of the process. */
void backend_cuda_deep_from(int32_t keys);
/* For tests: backends opened from here on run the kernels that other cards run, on Hopper too. The
 * same bytes. Of the process. */
void backend_cuda_portable(bool on);
/* For tests: decode rows of the newest step whose prefix went there. */
int32_t backend_cuda_shared_rows(const struct backend *b);
/* Bytes free on the device now, for sizing the KV pages. E_USAGE when there is no such device, or
 * no CUDA in this build. */
int backend_cuda_free_bytes(int device, int64_t *out, struct err *err) TR_MUSTCHECK;
/* Name of the device ("NVIDIA H200"), "" when there is none. Borrowed for the process's life. */
const char *backend_cuda_device_name(int device);
/* Versions of cuBLASLt and of the CUDA runtime as loaded; 0 in a build without CUDA. */
void backend_cuda_libraries(size_t *cublas_lt, int *runtime);

#endif
