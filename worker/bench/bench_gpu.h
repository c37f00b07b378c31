/* bench_gpu: `tranche bench` on a GPU: ceilings, steps by op, whole workloads, beside their
 * roofline, as one JSON document (bench_json.h) and as a table. */
#ifndef TRANCHE_WORKER_BENCH_BENCH_GPU_H
#define TRANCHE_WORKER_BENCH_BENCH_GPU_H

#include <jansson.h>

#include "worker/open_model.h"

/* Fills *doc (the caller's from then on, also on an error: what was measured until then). */
int bench_gpu(json_t **doc, const struct model_opts *opts, const struct config *config,
              struct err *err) TR_MUSTCHECK;
/* Prints it; figures that `old` (or NULL) has under the same name stand beside, with their ratio.
 */
void bench_gpu_print(const json_t *doc, const json_t *old);

#endif
