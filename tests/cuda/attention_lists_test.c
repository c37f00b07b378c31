/* The attention kernels' work lists (engine/cuda_attention.c), without a GPU: over random steps
 * every key of every row is done exactly once, by a span or by the tile of a prefix that the row
 * really shares; states have places of their own; no warp and no CTA has much more than its share.
 * A plain program: tests/cuda/lint.sh builds and runs it. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/backend_cuda_impl.h"

enum { ROWS = 700, SLOTS = 400, STRIDE = 96, PAGES = SLOTS * STRIDE, SMS = 132, BLOCK = 512 };

static int failed;
#define EXPECT(what, ...)                                                                          \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            printf("FAIL %s:%d: %s: ", __FILE__, __LINE__, #what);                                 \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
            failed++;                                                                              \
        }                                                                                          \
    } while (0)

static uint64_t state = 88172645463325252u;
static int32_t below(int32_t n)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (int32_t)((state >> 11) % (uint64_t)n);
}

struct rig {
    struct cuda_backend b;
    struct step_block h;
    struct kv_rows rows;
    int32_t position[ROWS], slot[ROWS], table[SLOTS * STRIDE];
    int8_t *done;   /* [row][head][split]: times */
    int32_t *owner; /* of a partial: row + 1, or 0 */
};

static void rig_open(struct rig *r, int heads, int kv_heads)
{
    struct err err = {0};
    memset(r, 0, sizeof *r);
    r->b.opts = (struct backend_opts){.rows_cap = ROWS,
                                      .slots = SLOTS,
                                      .n_pages = PAGES,
                                      .pages_per_slot = STRIDE,
                                      .n_heads = heads,
                                      .n_kv_heads = kv_heads,
                                      .head_dim = 128};
    r->b.n_sms = SMS;
    r->b.spans_cap = (int64_t)ROWS * kv_heads + cuda_decode_workers(&r->b);
    if (cuda_attention_open(&r->b, &err) < 0)
        exit(1);
    r->h = (struct step_block){
        .decode = calloc(2 * (size_t)r->b.spans_cap, sizeof(int4)),
        .merges = calloc((size_t)r->b.spans_cap, sizeof(int4)),
        .tiles = calloc(2 * (size_t)cuda_tiles_cap(&r->b.opts), sizeof(int4)),
        .tile_rows = calloc(ROWS, 4),
        .tile_starts = calloc(SMS + 1, 4),
        .decode_starts = calloc((size_t)cuda_decode_workers(&r->b) + 1, 4),
    };
    r->done = calloc((size_t)ROWS * (size_t)heads * STRIDE, 1);
    r->owner = calloc(PARTIALS_MAX, sizeof *r->owner);
}

static void rig_close(struct rig *r)
{
    cuda_attention_close(&r->b);
    free(r->h.decode), free(r->h.merges), free(r->h.tiles), free(r->h.tile_rows);
    free(r->h.tile_starts), free(r->h.decode_starts), free(r->done), free(r->owner);
}

/* Decode rows of up to 5 families with prefixes of their own, and some prefills between them. */
static void rig_step(struct rig *r, int n_slots, int families, int longest)
{
    int32_t n = 0, family_pages[8];
    for (int f = 0; f < families; f++)
        family_pages[f] = below(TR_MIN(longest / KV_PAGE_TOKENS, STRIDE - 2) + 1);
    for (int s = 0; s < n_slots && n < ROWS - 100; s++) {
        const int f = families > 0 ? below(families + 1) : 0;
        const int shared = f < families ? family_pages[f] : 0;
        for (int p = 0; p < STRIDE; p++)
            r->table[s * STRIDE + p] = (p < shared ? f : s) * STRIDE + p;
        const int rows = below(12) == 0 ? 2 + below(TR_MIN(90, longest - 3)) : 1,
                  first = below(longest - rows);
        for (int k = 0; k < rows; k++, n++)
            r->position[n] = first + k, r->slot[n] = s;
    }
    r->rows = (struct kv_rows){n, r->position, r->slot, r->table, STRIDE};
    memset(r->done, 0, (size_t)ROWS * (size_t)r->b.opts.n_heads * STRIDE);
    memset(r->owner, 0, PARTIALS_MAX * sizeof *r->owner);
}

static int8_t *done_at(struct rig *r, int32_t row, int32_t head, int32_t split)
{
    return &r->done[((int64_t)row * r->b.opts.n_heads + head) * STRIDE + split];
}

static void own(struct rig *r, int32_t partial, int32_t row)
{
    EXPECT(partial >= 0 && partial < PARTIALS_MAX, "partial %d of row %d", partial, row);
    EXPECT(r->owner[partial] == 0, "partial %d: rows %d and %d", partial, r->owner[partial] - 1,
           row);
    r->owner[partial] = row + 1;
}

static void check_tile(struct rig *r, const int4 place, const int4 keys)
{
    const int32_t group = r->b.opts.n_heads / r->b.opts.n_kv_heads, packed = place.z & 0xff;
    const int32_t first = place.z >> 8, end = (keys.x + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    EXPECT(packed > 0 && packed <= TILE_ROWS && first < end, "rows %d, splits %d..%d", packed,
           first, end);
    for (int32_t i = 0; i < packed; i++) {
        const int32_t token = (place.y + i) / group;
        const int32_t row = keys.z >= 0 ? r->h.tile_rows[place.x + token] : place.x + token;
        const int32_t *mine = r->table + r->slot[row] * STRIDE, *its = r->table + keys.y * STRIDE;
        for (int32_t split = first; split < end; split++) {
            for (int32_t p = 2 * split; p < 2 * split + 2 && p * KV_PAGE_TOKENS < keys.x; p++)
                EXPECT(mine[p] == its[p], "row %d page %d: %d, the tile's %d", row, p, mine[p],
                       its[p]);
            if (split * ATTENTION_SPLIT <= r->position[row])
                ++*done_at(r, row, place.w * group + (place.y + i) % group, split);
        }
        if (keys.z >= 0 && i % group == 0) {
            EXPECT(keys.x <= r->position[row] && keys.x % ATTENTION_SPLIT == 0, "%d of %d keys",
                   keys.x, r->position[row] + 1);
            own(r, keys.z + token * keys.w, row);
        }
    }
}

static void check_span(struct rig *r, const int4 place, const int4 keys)
{
    const int32_t group = r->b.opts.n_heads / r->b.opts.n_kv_heads;
    EXPECT(keys.x == r->position[place.x] + 1 && keys.y == r->slot[place.x], "row %d", place.x);
    for (int32_t split = place.z; split < place.w; split++)
        for (int32_t h = 0; h < group; h++)
            ++*done_at(r, place.x, place.y * group + h, split);
    if (keys.w >= 0) /* the prefix's states are this row's */
        for (int32_t k = 0; k * BLOCK < place.z * ATTENTION_SPLIT; k++)
            EXPECT(r->owner[keys.w + k] == place.x + 1, "row %d reads partial %d of row %d",
                   place.x, keys.w + k, r->owner[keys.w + k] - 1);
    EXPECT(keys.w != -1 || place.z == 0, "row %d begins at split %d", place.x, place.z);
    if (keys.z < 0)
        return;
    /* A first span leaves its whole blocks and the one it begins; a later one each split of a block
     * that was begun before it, then one state a block. */
    int32_t at = keys.z;
    if (keys.w >= -1) {
        if (place.w >= 4)
            own(r, at++, place.x);
        if (place.w % 4 > 0)
            own(r, at, place.x);
        return;
    }
    for (int32_t split = place.z; split < place.w; split++)
        if (split / 4 * 4 < place.z || split % 4 == 0)
            own(r, at++, place.x);
}

static void check_merges(struct rig *r)
{
    for (int32_t i = 0; i < r->b.n_merges; i++) {
        const int4 m = r->h.merges[i];
        EXPECT(m.w > 1 && (m.z + m.w == PARTIALS_MAX || r->owner[m.z + m.w] != m.x + 1 ||
                           r->h.merges[i + 1].z == m.z + m.w),
               "row %d merges %d", m.x, m.w);
        for (int32_t k = 0; k < m.w; k++)
            EXPECT(r->owner[m.z + k] == m.x + 1, "row %d merges partial %d of row %d", m.x, m.z + k,
                   r->owner[m.z + k] - 1);
    }
}

static void check_all_done(struct rig *r)
{
    for (int32_t row = 0; row < r->rows.n; row++)
        for (int32_t head = 0; head < r->b.opts.n_heads; head++)
            for (int32_t split = 0; split < STRIDE; split++) {
                const int want = split * ATTENTION_SPLIT <= r->position[row];
                const int got = *done_at(r, row, head, split);
                EXPECT(got == want, "row %d head %d split %d: done %d times of %d", row, head,
                       split, got, want);
            }
}

static int64_t worker_load(const struct rig *r, int32_t w)
{
    int64_t load = 0;
    for (int32_t i = r->h.decode_starts[w]; i < r->h.decode_starts[w + 1]; i++)
        load += TR_MIN(r->h.decode[2 * i].w * ATTENTION_SPLIT, r->h.decode[2 * i + 1].x) -
                r->h.decode[2 * i].z * ATTENTION_SPLIT;
    return load;
}

/* No warp has more than its share and one block more, no CTA more than its share and one tile. */
static void check_shares(struct rig *r)
{
    const int32_t workers = DECODE_WARPS * r->b.lists.decode_ctas;
    int64_t all = 0, most = 0;
    for (int32_t w = 0; w < workers; w++) {
        const int64_t load =
            worker_load(r, w) + 64 * (r->h.decode_starts[w + 1] - r->h.decode_starts[w]);
        all += load;
        most = TR_MAX(most, load);
    }
    EXPECT(most <= all / workers + BLOCK + 2 * 64, "a warp has %lld keys of %lld", (long long)most,
           (long long)all);
    EXPECT(r->h.decode_starts[workers] == r->b.n_spans, "%d spans", r->b.n_spans);
    int32_t cost = 0, longest = 0, fullest = 0;
    for (int32_t c = 0; c < SMS; c++) {
        int32_t load = 0;
        for (int32_t i = r->h.tile_starts[c]; i < r->h.tile_starts[c + 1]; i++) {
            const int4 place = r->h.tiles[2 * i], keys = r->h.tiles[2 * i + 1];
            const int32_t splits =
                (keys.x + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT - (place.z >> 8) + 1;
            load += splits, longest = TR_MAX(longest, splits);
        }
        cost += load, fullest = TR_MAX(fullest, load);
    }
    EXPECT(fullest <= cost / SMS + longest, "a CTA has %d splits of %d", fullest, cost);
    EXPECT(r->h.tile_starts[SMS] == r->b.lists.n_tiles, "%d tiles", r->b.lists.n_tiles);
}

static int32_t check_step(struct rig *r, int n_slots, int families, int longest)
{
    rig_step(r, n_slots, families, longest);
    cuda_attention_lists(&r->b, &r->rows, &r->h);
    for (int32_t i = 0; i < r->b.lists.n_tiles; i++)
        check_tile(r, r->h.tiles[2 * i], r->h.tiles[2 * i + 1]);
    for (int32_t i = 0; i < r->b.n_spans; i++)
        check_span(r, r->h.decode[2 * i], r->h.decode[2 * i + 1]);
    check_merges(r);
    check_all_done(r);
    check_shares(r);
    return r->b.lists.n_rows;
}

/* Rows of equal length, uncut: no multiprocessor has two rows more than another one. */
static void check_level(struct rig *r, int32_t n, int32_t keys)
{
    for (int32_t s = 0; s < n; s++) {
        for (int p = 0; p < STRIDE; p++)
            r->table[s * STRIDE + p] = s * STRIDE + p;
        r->position[s] = keys - 1, r->slot[s] = s;
    }
    r->rows = (struct kv_rows){n, r->position, r->slot, r->table, STRIDE};
    backend_cuda_deep_from(0);
    cuda_attention_lists(&r->b, &r->rows, &r->h);
    int64_t least = INT64_MAX, most = 0;
    for (int32_t sm = 0; sm < SMS; sm++) {
        int64_t load = 0;
        for (int32_t w = sm; w < DECODE_WARPS * r->b.lists.decode_ctas; w += SMS)
            load += worker_load(r, w);
        least = TR_MIN(least, load), most = TR_MAX(most, load);
    }
    EXPECT(r->b.n_merges == 0, "%d rows of %d keys: %d are cut", n, keys, r->b.n_merges);
    EXPECT(most - least <= 2 * keys, "%d rows of %d keys: a multiprocessor has %lld, another %lld",
           n, keys, (long long)most, (long long)least);
}

int main(void)
{
    static const int heads[][2] = {{12, 2}, {14, 2}, {8, 8}, {32, 4}};
    static const int longest[] = {40, 200, 700, 1300, 6000};
    static struct rig r;
    int32_t steps = 0, shared = 0, deep = 0;
    for (size_t k = 0; k < TR_COUNT(heads); k++) {
        rig_open(&r, heads[k][0], heads[k][1]);
        for (size_t i = 0; i < TR_COUNT(longest); i++)
            for (int families = 0; families < 6; families++)
                for (int n = 1; n <= SLOTS; n = n * 3 + below(3), steps++) {
                    backend_cuda_share_from(families % 2 ? 1 : 0);
                    backend_cuda_deep_from(n % 2 ? 1 : 1000);
                    r.b.hopper = n % 4 < 2;
                    const int32_t in = check_step(&r, n, families, longest[i]);
                    EXPECT(families > 0 || in == 0, "%d rows share nothing", in);
                    shared += in > 0;
                    deep += r.b.lists.decode_ctas == SMS;
                }
        if (heads[k][1] > 2)
            for (int32_t n = 150; n <= SLOTS; n += 125)
                check_level(&r, n, 192);
        rig_close(&r);
    }
    EXPECT(shared > steps / 10, "%d of %d steps have groups", shared, steps);
    EXPECT(deep > steps / 10 && deep < steps * 9 / 10, "%d of %d steps are deep", deep, steps);
    printf("attention lists: %d steps, %d with groups, %d deep, %d faults\n", steps, shared, deep,
           failed);
    return failed != 0;
}
