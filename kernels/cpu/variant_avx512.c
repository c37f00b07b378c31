/* variant_avx512: the inner loops for AVX-512 (F, BW, DQ, VL). */
#include "kernels/cpu/attention_inner.h"
#include "kernels/cpu/linear_inner.h"
#include "kernels/cpu/rows_inner.h"
#include "kernels/cpu/sample_inner.h"

const struct cpu_ops cpu_ops_avx512 = {
    .linear_block = linear_block,
    .rmsnorm_row = rmsnorm_row,
    .swiglu_row = swiglu_row,
    .rope_head = rope_head,
    .store_row = store_row,
    .attention_run = attention_run,
    .sample_max = sample_max,
    .sample_sum = sample_sum,
    .sample_weights = sample_weights,
    .sample_find = sample_find,
    .sample_tally = sample_tally,
    .sample_range = sample_range,
    .sample_keep = sample_keep,
    .sample_draw = sample_draw,
    .sample_best = sample_best,
    .log = log_of,
    .map = map_lanes,
    .philox = philox_lanes,
};
