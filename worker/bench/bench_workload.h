/* bench_workload: one workload through one engine: requests of random ids that end by length, as
 * many at once as the engine takes, until all have ended. */
#ifndef TRANCHE_WORKER_BENCH_BENCH_WORKLOAD_H
#define TRANCHE_WORKER_BENCH_BENCH_WORKLOAD_H

#include "engine/engine.h"
#include "worker/bench/bench_roofline.h"

struct workload {
    const char *name;
    int32_t shared, own; /* prompt tokens: the same for all, and each request's own */
    int32_t out;         /* tokens out; 0: lognormal, mean 1024, sigma 0.8, at most 8192 */
    int32_t requests;
    bool greedy; /* else T 0.6, top_p 0.95 */
};
/* W1: 128 in, 128 out; W2: 512 in, lognormal out; W3: 1000 shared and 100 own in, 64 out; requests
 * as in the runs of vLLM that we compare with. NULL: no such name. */
const struct workload *workload_find(const char *name);

struct workload_run {
    struct run_moments moments;
    struct run_shares shares;
    struct engine_stats before, after;
    int64_t tokens;
    char outputs_sha256[65]; /* sum of the hashes of (request, its ids): order plays no part */
};
/* E_USAGE when the longest request does not fit the engine; E_FATAL as engine_step, or when a
 * request does not end by its length. */
int workload_run(struct workload_run *out, struct engine *e, const struct workload *w,
                 const struct roofline *r, int64_t vocab, struct err *err) TR_MUSTCHECK;

#endif
