/* bench_json: the benchmark's JSON document: device, driver, date, commit, model, ceilings
 * {copy_TBps, bf16_TFLOPs, gemms}, runs [{workload, precision, sampling, requests, out_tok_s,
 * out_tok_s_steady, r_seq_tok_s, share_r_seq, share_r_seq_whole, gpu_idle_share, peak_bytes,
 * outputs_sha256, ...}], and on a GPU steps, attention, slots. */
#ifndef TRANCHE_WORKER_BENCH_BENCH_JSON_H
#define TRANCHE_WORKER_BENCH_BENCH_JSON_H

#include <jansson.h>

#include "engine/cuda_measure.h"
#include "worker/bench/bench_workload.h"

/* A document with its head; `driver` may be "". */
json_t *bench_document(const char *device, const char *driver, const char *model);
const char *bench_precision(enum dtype d);
/* One workload's run. */
json_t *bench_run_json(const struct workload *w, const struct workload_run *run, enum dtype dtype,
                       int64_t peak_bytes);
json_t *bench_product_json(const struct cuda_product *p);
/* A step by op: name, seconds, host_seconds, ops {name: seconds}. */
json_t *bench_step_json(const struct cuda_step_shape *shape, const struct cuda_step_times *t);
/* What decode attention of a decode-only step reached of the copy ceiling: between two marks in
 * each layer of a step (ms, share_copy), and one layer's behind another's (row_ms, row_share_copy).
 */
json_t *bench_attention_json(const struct cuda_step_shape *shape, const struct cuda_step_times *t,
                             double row_seconds, const struct roofline *r);
/* Appends to the array under `key`, which is made where it is missing. */
void bench_append(json_t *doc, const char *key, json_t *value);
/* The figure `key` of the member of array `list` whose `name` is `value`; 0: it has none. */
double bench_earlier(const json_t *doc, const char *list, const char *name, const char *value,
                     const char *key);

#endif
