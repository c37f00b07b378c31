/* linear_inner: the matrix product over packed panels, for one vector unit.
 *
 * A tile is `rows` rows times `lanes` vectors of 16 outputs held in registers; every output is one
 * chain of fused multiply-adds over k. Tiles differ in shape from call to call, chains never do.
 * Between two K blocks the fp32 accumulators rest in scratch, which rounds nothing. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#if VEC_REGISTERS == 32
#define TILE_ROWS        6 /* 24 accumulators, 4 weights, 1 input of 32 registers */
#define TILE_LANES(rows) 4
#elif VEC_REGISTERS == 16
#define TILE_ROWS        6 /* 12 accumulators (two halves each), 2 weights, 1 input of 16 registers */
#define TILE_LANES(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#else
#define TILE_ROWS        4
#define TILE_LANES(rows) 1
#endif
enum { TILE_PREFETCH = 4096 }; /* bytes ahead in the weight stream; Zen 4: 2048 gives 6 % less */

struct tile {
    const float *x; /* [rows][x_stride], at the first k */
    int64_t x_stride;
    const char *w; /* the panel at the first k */
    int64_t k;     /* inputs of this K block */
    bool first, last;
    float *partial;               /* [rows][LINEAR_PANEL] */
    float *out;                   /* [rows][n] at the panel's first output */
    const float *bias, *residual; /* likewise; may be NULL */
    int64_t n, width;             /* row length; outputs of this panel that exist */
    enum dtype round;
};

/* Vector `lane` (0..3) of a panel's line of 64 weights at one k. */
VEC_INLINE v16 tile_weight(const char *line, int lane, enum dtype dtype)
{
    if (dtype == DTYPE_F32)
        return v16_load((const float *)(const void *)line + 16 * lane);
    const uint16_t *half = (const uint16_t *)(const void *)line;
    if (dtype == DTYPE_F16)
        return v16_load_f16(half + 16 * lane);
    return lane & 1 ? v16_pair_hi(half + 32 * (lane / 2)) : v16_pair_lo(half + 32 * (lane / 2));
}

VEC_INLINE void tile_finish(const struct tile *t, v16 sum, int row, int lane)
{
    int64_t at = 16 * lane, left = t->width - at;
    if (left <= 0)
        return;
    if (t->bias)
        sum = v16_add(sum, v16_load_some(t->bias + at, left));
    if (t->residual)
        sum = v16_add(sum, v16_load_some(t->residual + row * t->n + at, left));
    v16_store_some(t->out + row * t->n + at, v16_round(sum, t->round), left);
}

/* clang unrolls by a number only after it has given up keeping arrays in registers. */
#if VEC_REGISTERS == 0
#define TILE_UNROLL
#elif defined(__clang__)
#define TILE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TILE_UNROLL _Pragma("GCC unroll 8")
#endif

/* The formatter takes the marks for statements. */
/* clang-format off */
VEC_INLINE void tile_run(const struct tile *t, int rows, int lanes, int lane0, enum dtype dtype)
{
    v16 sum[TILE_ROWS][4];
    const int64_t line = LINEAR_PANEL * (int64_t)dtype_size(dtype);
    TILE_UNROLL
    for (int r = 0; r < rows; r++)
        TILE_UNROLL
        for (int v = 0; v < lanes; v++)
            sum[r][v] = t->first ? v16_set1(0.0f)
                                 : v16_load(t->partial + r * LINEAR_PANEL + 16 * (lane0 + v));
    const float *x = t->x;
    const char *w = t->w;
    const int64_t stride = t->x_stride;
    for (int64_t k = 0; k < t->k; k++, w += line) {
        v16 weight[4];
        __builtin_prefetch(w + TILE_PREFETCH);
        if (dtype == DTYPE_F32) {
            __builtin_prefetch(w + TILE_PREFETCH + 64);
            __builtin_prefetch(w + TILE_PREFETCH + 128);
            __builtin_prefetch(w + TILE_PREFETCH + 192);
        } else {
            __builtin_prefetch(w + TILE_PREFETCH + 64);
        }
        TILE_UNROLL
        for (int v = 0; v < lanes; v++)
            weight[v] = tile_weight(w, lane0 + v, dtype);
        TILE_UNROLL
        for (int r = 0; r < rows; r++) {
            v16 in = v16_set1(x[r * stride + k]);
            TILE_UNROLL
            for (int v = 0; v < lanes; v++)
                sum[r][v] = v16_fma(in, weight[v], sum[r][v]);
        }
    }
    TILE_UNROLL
    for (int r = 0; r < rows; r++)
        TILE_UNROLL
        for (int v = 0; v < lanes; v++) {
            if (t->last)
                tile_finish(t, sum[r][v], r, lane0 + v);
            else
                v16_store(t->partial + r * LINEAR_PANEL + 16 * (lane0 + v), sum[r][v]);
        }
}
/* clang-format on */

/* One function for each number of rows and weight type, so that all loops above unroll. */
#define TILE_FUNCTION(rows, name, dtype)                                                           \
    static void tile_##name##_##rows(const struct tile *t)                                         \
    {                                                                                              \
        for (int lane = 0; lane < 4; lane += TILE_LANES(rows))                                     \
            tile_run(t, rows, TILE_LANES(rows), lane, dtype);                                      \
    }
#define TILE_FUNCTIONS(name, dtype)                                                                \
    TILE_FUNCTION(1, name, dtype)                                                                  \
    TILE_FUNCTION(2, name, dtype)                                                                  \
    TILE_FUNCTION(3, name, dtype)                                                                  \
    TILE_FUNCTION(4, name, dtype)
TILE_FUNCTIONS(f32, DTYPE_F32)
TILE_FUNCTIONS(bf16, DTYPE_BF16)
TILE_FUNCTIONS(f16, DTYPE_F16)
#if TILE_ROWS == 6
TILE_FUNCTION(5, f32, DTYPE_F32)
TILE_FUNCTION(6, f32, DTYPE_F32)
TILE_FUNCTION(5, bf16, DTYPE_BF16)
TILE_FUNCTION(6, bf16, DTYPE_BF16)
TILE_FUNCTION(5, f16, DTYPE_F16)
TILE_FUNCTION(6, f16, DTYPE_F16)
#define TILE_MORE(name) , tile_##name##_5, tile_##name##_6
#else
#define TILE_MORE(name)
#endif
#define TILE_ROW_OF(name)                                                                          \
    {                                                                                              \
        tile_##name##_1, tile_##name##_2, tile_##name##_3, tile_##name##_4 TILE_MORE(name)         \
    }
static void (*const tile_of[3][TILE_ROWS])(const struct tile *) = {[DTYPE_F32] = TILE_ROW_OF(f32),
                                                                   [DTYPE_BF16] = TILE_ROW_OF(bf16),
                                                                   [DTYPE_F16] = TILE_ROW_OF(f16)};

/* All rows of one panel and one K block. x points at row0 and the block's first k. */
static void panel_run(const struct linear_job *job, struct tile *t, int64_t panel, int64_t row0,
                      int64_t row1)
{
    const float *x = t->x;
    float *partial = t->partial;
    int64_t blocks = (row1 - row0 + TILE_ROWS - 1) / TILE_ROWS, row = row0;
    t->n = job->w->n;
    t->width = t->n - panel * LINEAR_PANEL;
    t->bias = job->bias ? job->bias + panel * LINEAR_PANEL : NULL;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t rows = (row1 - row + blocks - b - 1) / (blocks - b);
        int64_t at = row * t->n + panel * LINEAR_PANEL;
        t->x = x + (row - row0) * t->x_stride;
        t->partial = partial + (row - row0) * LINEAR_PANEL;
        t->out = job->out + at;
        t->residual = job->residual ? job->residual + at : NULL;
        tile_of[job->w->dtype][rows - 1](t);
        row += rows;
    }
}

static void linear_block(const struct linear_job *job, int64_t panel0, int64_t panel1, int64_t row0,
                         int64_t row1, struct linear_scratch *scratch)
{
    const int64_t k = job->w->k, rows = row1 - row0;
    const int64_t size = (int64_t)dtype_size(job->w->dtype) * LINEAR_PANEL;
    /* One tile of rows reads each weight once: no K blocks. Few rows stay in cache as they are. */
    const int64_t step = rows <= TILE_ROWS ? k : LINEAR_K_BLOCK;
    const bool copy = rows > 4 * TILE_ROWS;
    for (int64_t k0 = 0; k0 < k; k0 += step) {
        int64_t count = k - k0 < step ? k - k0 : step;
        for (int64_t r = 0; copy && r < rows; r++)
            memcpy(scratch->x + r * LINEAR_X_STRIDE, job->x + (row0 + r) * k + k0,
                   (size_t)count * sizeof(float));
        for (int64_t p = panel0; p < panel1; p++) {
            struct tile t = {
                .x = copy ? scratch->x : job->x + row0 * k + k0,
                .x_stride = copy ? LINEAR_X_STRIDE : k,
                .w = (const char *)job->w->data + (p * k + k0) * size,
                .k = count,
                .first = k0 == 0,
                .last = k0 + count == k,
                .partial = scratch->partial + (p - panel0) * LINEAR_ROWS * LINEAR_PANEL,
                .round = job->round,
            };
            panel_run(job, &t, p, row0, row1);
        }
    }
}
