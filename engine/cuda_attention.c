/* cuda_attention: the work lists of the attention kernels: which rows of a step decode, which
 * prefill, which share a prefix, and who does what. They are about speed alone: every kernel gives
 * a row the same bits, and so do all ways to cut the work. */
#include <stdlib.h>

#include "engine/backend_cuda_impl.h"

enum {
    SPAN_COST = 64,   /* keys that a span's start costs a warp, about */
    CUT_WORTH = 32,   /* keys a warp must gain for states of splits to pay */
    LEVEL_WORTH = 16, /* keys of the fullest warp above the mean, from which on to level */
    MERGE_COST = 64,  /* keys that a launch of the merge costs a warp, about */
    DEEP_FROM = 1536, /* keys a warp of two CTAs a multiprocessor, from which on one is better */
    SHARE_SPLITS = 2, /* the shortest prefix worth a group */
    SHARE_ROWS = 3,   /* and the fewest rows */
    SHARE_FROM = 256, /* rows x splits that a step must share to pay for the states */
    SHARED_TILES_MAX = 4096,
    PAGES_A_SPLIT = ATTENTION_SPLIT / KV_PAGE_TOKENS,
    SPLITS_A_BLOCK = ATTENTION_BLOCK / ATTENTION_SPLIT,
};
static int32_t share_from = SHARE_FROM, deep_from = DEEP_FROM;

void backend_cuda_share_from(int32_t row_splits)
{
    share_from = row_splits > 0 ? row_splits : SHARE_FROM;
}

void backend_cuda_deep_from(int32_t keys)
{
    deep_from = keys > 0 ? keys : DEEP_FROM;
}

int64_t cuda_tiles_cap(const struct backend_opts *o)
{
    const int64_t packed = (int64_t)o->rows_cap * (o->n_heads / o->n_kv_heads);
    return (packed / TILE_ROWS + o->slots + 1) * o->n_kv_heads + SHARED_TILES_MAX;
}

int cuda_attention_open(struct cuda_backend *b, struct err *err)
{
    struct attention_lists *l = &b->lists;
    const size_t rows = (size_t)b->opts.rows_cap, pages = (size_t)b->opts.n_pages;
    l->tiles_cap = (int32_t)cuda_tiles_cap(&b->opts);
    l->shared = mem_alloc(rows, sizeof *l->shared);
    l->members = mem_alloc(rows, sizeof *l->members);
    l->next = mem_alloc(rows, sizeof *l->next);
    l->first = mem_alloc(pages, sizeof *l->first);
    l->with = mem_alloc((size_t)b->opts.pages_per_slot + 1, sizeof *l->with);
    l->tiles = mem_alloc((size_t)l->tiles_cap, sizeof *l->tiles);
    l->loads = mem_alloc((size_t)b->n_sms, sizeof *l->loads);
    if (!l->shared || !l->members || !l->next || !l->first || !l->with || !l->tiles || !l->loads)
        return err_set(err, E_FATAL, "cuda: no host memory for the attention lists of %zu rows",
                       rows);
    for (size_t i = 0; i < pages; i++)
        l->first[i] = -1;
    return E_OK;
}

void cuda_attention_close(struct cuda_backend *b)
{
    struct attention_lists *l = &b->lists;
    mem_free(l->shared);
    mem_free(l->members);
    mem_free(l->next);
    mem_free(l->first);
    mem_free(l->with);
    mem_free(l->tiles);
    mem_free(l->loads);
}

static int32_t splits_of(int32_t keys)
{
    return (keys + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
}

/* A sequence with one row decodes; one with more prefills. */
static bool decodes(const struct kv_rows *rows, int32_t r)
{
    return (r == 0 || rows->slot[r - 1] != rows->slot[r]) &&
           (r + 1 == rows->n || rows->slot[r + 1] != rows->slot[r]);
}

/* ---- tiles ---- */

static void tile_add(struct attention_lists *l, int4 place, int4 keys)
{
    CHECK(l->n_tiles < l->tiles_cap);
    const int32_t splits = splits_of(keys.x) - (place.z >> 8); /* >= 1 */
    l->tiles[l->n_tiles++] = (struct attention_tile){place, keys, splits + 1, 0};
}

static void list_prefill(struct cuda_backend *b, const struct kv_rows *rows)
{
    const int32_t group = b->opts.n_heads / b->opts.n_kv_heads;
    for (int32_t r = 0; r < rows->n;) {
        int32_t end = r + 1;
        while (end < rows->n && rows->slot[end] == rows->slot[r])
            end++;
        const int32_t packed = end - r > 1 ? (end - r) * group : 0;
        for (int32_t head = 0; head < b->opts.n_kv_heads; head++)
            for (int32_t p = 0; p < packed; p += TILE_ROWS) {
                const int32_t n = TR_MIN(TILE_ROWS, packed - p);
                const int32_t last = r + (p + n - 1) / group;
                tile_add(&b->lists, INT4(r, p, n, head),
                         INT4(rows->position[last] + 1, rows->slot[r], -1, 0));
            }
        r = end;
    }
}

static int by_cost(const void *a, const void *b)
{
    const struct attention_tile *x = a, *y = b;
    return x->cost != y->cost ? y->cost - x->cost
                              : (x->keys.z > y->keys.z) - (x->keys.z < y->keys.z);
}

/* The least loaded CTA stands at the top of the heap. */
static void heap_sink(struct attention_load *heap, int32_t n)
{
    for (int32_t at = 0;;) {
        int32_t least = at;
        for (int32_t child = 2 * at + 1; child <= 2 * at + 2 && child < n; child++)
            if (heap[child].load < heap[least].load)
                least = child;
        if (least == at)
            return;
        const struct attention_load swap = heap[at];
        heap[at] = heap[least];
        heap[least] = swap;
        at = least;
    }
}

/* The longest tile left goes to the CTA that has least. */
static void deal_tiles(struct cuda_backend *b, struct step_block *h)
{
    struct attention_lists *l = &b->lists;
    memset(h->tile_starts, 0, ((size_t)b->n_sms + 1) * sizeof *h->tile_starts);
    for (int32_t c = 0; c < b->n_sms; c++)
        l->loads[c] = (struct attention_load){0, c};
    qsort(l->tiles, (size_t)l->n_tiles, sizeof *l->tiles, by_cost);
    for (int32_t i = 0; i < l->n_tiles; i++) {
        l->tiles[i].cta = l->loads[0].cta;
        l->loads[0].load += l->tiles[i].cost;
        h->tile_starts[l->tiles[i].cta + 1]++;
        heap_sink(l->loads, b->n_sms);
    }
    for (int32_t c = 0; c < b->n_sms; c++) {
        h->tile_starts[c + 1] += h->tile_starts[c];
        l->loads[c] = (struct attention_load){h->tile_starts[c], c};
    }
    for (int32_t i = 0; i < l->n_tiles; i++) {
        const int32_t at = l->loads[l->tiles[i].cta].load++;
        h->tiles[2 * at] = l->tiles[i].place;
        h->tiles[2 * at + 1] = l->tiles[i].keys;
    }
}

/* ---- shared prefixes ---- */

/* Leading splits whose pages rows x and y have in common and that both see whole, with at least one
 * key behind them. */
static int32_t common_splits(const struct kv_rows *rows, int32_t x, int32_t y)
{
    const int32_t *a = rows->block_table + (int64_t)rows->slot[x] * rows->block_table_stride;
    const int32_t *b = rows->block_table + (int64_t)rows->slot[y] * rows->block_table_stride;
    const int32_t most = TR_MIN(rows->position[x], rows->position[y]) / ATTENTION_SPLIT;
    int32_t page = 0;
    while (page < most * PAGES_A_SPLIT && a[page] == b[page])
        page++;
    return page / PAGES_A_SPLIT;
}

/* The first n members share `splits`: their tiles, one a block of keys, and where the states go. */
static void group_add(struct cuda_backend *b, const struct kv_rows *rows, struct step_block *h,
                      int32_t n, int32_t splits)
{
    struct attention_lists *l = &b->lists;
    const int32_t heads = b->opts.n_kv_heads, group = b->opts.n_heads / heads;
    const int32_t a_tile = TILE_ROWS / group;
    const int32_t blocks = (splits + SPLITS_A_BLOCK - 1) / SPLITS_A_BLOCK, a_row = heads * blocks;
    const int32_t base = l->n_partials, slot = rows->slot[l->members[0]];
    const int64_t tiles = (int64_t)(n + a_tile - 1) / a_tile * a_row;
    if (base + (int64_t)n * a_row > PARTIALS_MAX || l->n_shared_tiles + tiles > SHARED_TILES_MAX)
        return;
    for (int32_t m = 0; m < n; m += a_tile)
        for (int32_t head = 0; head < heads; head++)
            for (int32_t k = 0; k < blocks; k++) {
                const int32_t split = k * SPLITS_A_BLOCK;
                const int32_t keys = TR_MIN(splits, split + SPLITS_A_BLOCK) * ATTENTION_SPLIT;
                tile_add(l,
                         INT4(l->n_rows + m, 0, TR_MIN(a_tile, n - m) * group | split << 8, head),
                         INT4(keys, slot, base + m * a_row + head * blocks + k, a_row));
            }
    for (int32_t m = 0; m < n; m++) {
        h->tile_rows[l->n_rows + m] = l->members[m];
        l->shared[l->members[m]] = (struct shared_prefix){splits, base + m * a_row, blocks};
    }
    l->n_rows += n;
    l->n_partials += n * a_row;
    l->n_shared_tiles += (int32_t)tiles;
    l->row_splits += n * splits;
}

/* Out of n members the group with the first that saves most; the others stay, in front. Returns how
 * many. */
static int32_t group_take(struct cuda_backend *b, const struct kv_rows *rows, struct step_block *h,
                          int32_t n)
{
    struct attention_lists *l = &b->lists;
    int32_t splits = 0, in = 0, most = 0, longest = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t common = common_splits(rows, l->members[0], l->members[i]);
        l->next[l->members[i]] = common;
        l->with[common]++;
        longest = TR_MAX(longest, common);
    }
    for (int32_t k = longest, with = 0; k >= 0; k--) {
        with += l->with[k];
        l->with[k] = 0;
        if (k >= SHARE_SPLITS && with >= SHARE_ROWS && with * k > most)
            most = with * k, splits = k;
    }
    for (int32_t i = 0; i < n && splits > 0; i++)
        if (l->next[l->members[i]] >= splits) {
            const int32_t swap = l->members[in];
            l->members[in++] = l->members[i];
            l->members[i] = swap;
        }
    if (splits > 0)
        group_add(b, rows, h, in, splits);
    in = TR_MAX(in, 1); /* the first had its turn */
    memmove(l->members, l->members + in, (size_t)(n - in) * sizeof *l->members);
    return n - in;
}

static int32_t key_page(const struct kv_rows *rows, int32_t r)
{
    return rows->block_table[(int64_t)rows->slot[r] * rows->block_table_stride +
                             SHARE_SPLITS * PAGES_A_SPLIT - 1];
}

/* Rows with the last page of the shortest prefix in common are chained, then grouped. */
static void list_shared(struct cuda_backend *b, const struct kv_rows *rows, struct step_block *h)
{
    struct attention_lists *l = &b->lists;
    for (int32_t r = rows->n - 1; r >= 0; r--) {
        l->shared[r] = (struct shared_prefix){0};
        if (rows->position[r] < SHARE_SPLITS * ATTENTION_SPLIT || !decodes(rows, r))
            continue;
        const int32_t page = key_page(rows, r);
        l->next[r] = l->first[page];
        l->first[page] = r;
    }
    for (int32_t r = 0; r < rows->n; r++) {
        if (rows->position[r] < SHARE_SPLITS * ATTENTION_SPLIT || !decodes(rows, r))
            continue;
        int32_t n = 0, *first = &l->first[key_page(rows, r)];
        for (int32_t at = *first; at >= 0; at = l->next[at])
            l->members[n++] = at;
        *first = -1;
        while (n >= SHARE_ROWS)
            n = group_take(b, rows, h, n);
    }
    if (l->row_splits >= share_from)
        return;
    for (int32_t i = 0; i < l->n_rows; i++)
        l->shared[h->tile_rows[i]] = (struct shared_prefix){0};
    l->n_tiles = l->n_rows = l->n_partials = 0;
}

/* ---- spans ---- */

/* The splits of all decode rows in order, dealt to the warps as runs of neighbours: a warp takes
 * them until the next would go beyond the capacity. Rows are cut at multiples of `unit` splits. */
struct deal {
    int64_t capacity, load, most; /* most: the load of the fullest warp */
    int64_t low;                  /* the capacity of warps from `full` on */
    int32_t worker, unit, full;
    bool cut; /* a row */
};

static int64_t deal_capacity(const struct deal *d)
{
    return d->worker < d->full ? d->capacity : d->low;
}

/* The end of the span of splits that begins at `at`, in whoever has room for its first. */
static int32_t deal_span(struct deal *d, int32_t keys, int32_t at)
{
    const int32_t splits = splits_of(keys), begin = at * ATTENTION_SPLIT;
    const int32_t least = TR_MIN((at / d->unit + 1) * d->unit, splits);
    const int64_t cost = TR_MIN(keys, least * ATTENTION_SPLIT) - begin + SPAN_COST;
    if (d->load > 0 && d->load + cost > deal_capacity(d)) {
        d->worker++;
        d->load = 0;
    }
    const int64_t room = TR_MAX(deal_capacity(d) - d->load - SPAN_COST, 0) + begin;
    int32_t end = splits;
    if (keys > room)
        end = TR_MAX((int32_t)(room / ATTENTION_SPLIT) / d->unit * d->unit, least);
    d->load += TR_MIN(keys, end * ATTENTION_SPLIT) - begin + SPAN_COST;
    d->most = TR_MAX(d->most, d->load);
    d->cut = d->cut || end < splits;
    return end;
}

static struct deal deal_all(const struct cuda_backend *b, const struct kv_rows *rows, struct deal d)
{
    for (int32_t r = 0; r < rows->n; r++) {
        if (!decodes(rows, r))
            continue;
        const int32_t keys = rows->position[r] + 1;
        for (int32_t head = 0; head < b->opts.n_kv_heads; head++)
            for (int32_t at = b->lists.shared[r].splits; at < splits_of(keys);)
                at = deal_span(&d, keys, at);
    }
    return d;
}

static int32_t workers_now(const struct cuda_backend *b)
{
    return DECODE_WARPS * b->lists.decode_ctas;
}

/* Keys that all workers read, and what their spans' starts cost. */
static int64_t decode_cost(const struct cuda_backend *b, const struct kv_rows *rows)
{
    int64_t cost = 0;
    for (int32_t r = 0; r < rows->n; r++)
        if (decodes(rows, r))
            cost += (int64_t)b->opts.n_kv_heads * (rows->position[r] + 1 + SPAN_COST -
                                                   b->lists.shared[r].splits * ATTENTION_SPLIT);
    return cost;
}

static struct deal deal_even(const struct cuda_backend *b, const struct kv_rows *rows,
                             int64_t capacity, int32_t unit)
{
    return deal_all(b, rows, (struct deal){.capacity = capacity, .unit = unit, .full = INT32_MAX});
}

/* With the least capacity, about, with which the workers do: then they end together. */
static struct deal deal_least(const struct cuda_backend *b, const struct kv_rows *rows,
                              int32_t unit)
{
    const int32_t workers = workers_now(b);
    const int64_t cost = decode_cost(b, rows);
    int64_t low = cost / workers, high = low + unit * ATTENTION_SPLIT + SPAN_COST;
    struct deal best = deal_even(b, rows, high, unit);
    while (best.worker >= workers) {
        low = high, high += ATTENTION_SPLIT;
        best = deal_even(b, rows, high, unit);
    }
    while (high - low > 8) {
        const int64_t middle = (low + high) / 2;
        const struct deal d = deal_even(b, rows, middle, unit);
        if (d.worker < workers)
            high = middle, best = d;
        else
            low = middle;
    }
    return best;
}

/* Rows that no cut makes fit (all of 192 keys, say, 2.7 a warp) fill the first warps and leave the
 * last ones without any: whole warps of a multiprocessor then bring nothing. So the first ones get
 * what the fullest must have, and as many as can be do with as much less than the mean. Warps are
 * numbered across the multiprocessors, so each of these has some of both. */
static struct deal deal_level(const struct cuda_backend *b, const struct kv_rows *rows,
                              const struct deal *least)
{
    const int32_t workers = workers_now(b);
    const int64_t mean = decode_cost(b, rows) / workers;
    struct deal d = {.capacity = least->capacity, .unit = least->unit, .full = INT32_MAX};
    if (least->most - mean < LEVEL_WORTH)
        return d;
    int32_t too_few = 0, enough = workers;
    d.low = 2 * mean - least->most;
    while (enough - too_few > 1) {
        d.full = (too_few + enough) / 2;
        if (deal_all(b, rows, d).worker < workers)
            enough = d.full;
        else
            too_few = d.full;
    }
    d.full = enough;
    return d;
}

/* Cuts between blocks, which cost one state each, or between any two splits, where that is worth
 * its states and, when there are no others, the launch that merges them. */
static struct deal deal_open(const struct cuda_backend *b, const struct kv_rows *rows)
{
    const struct deal blocks = deal_least(b, rows, SPLITS_A_BLOCK);
    const struct deal splits = deal_least(b, rows, 1);
    const int64_t worth = blocks.cut ? CUT_WORTH : CUT_WORTH + MERGE_COST;
    return deal_level(b, rows, blocks.most - splits.most < worth ? &blocks : &splits);
}

/* States that a span of a cut row leaves: see struct attention_cuda. */
static int32_t states_of(int32_t begin, int32_t end, bool first)
{
    if (first)
        return (end >= SPLITS_A_BLOCK) + (end % SPLITS_A_BLOCK != 0);
    const int32_t block = (begin + SPLITS_A_BLOCK - 1) / SPLITS_A_BLOCK * SPLITS_A_BLOCK;
    if (end <= block)
        return end - begin;
    return block - begin + (end - block + SPLITS_A_BLOCK - 1) / SPLITS_A_BLOCK;
}

static void span_add(struct cuda_backend *b, struct step_block *h, int32_t worker, int4 place,
                     int4 keys)
{
    CHECK(b->n_spans < b->spans_cap);
    h->decode[2 * b->n_spans] = place;
    h->decode[2 * b->n_spans + 1] = keys;
    h->decode_starts[worker + 1]++;
    b->n_spans++;
}

/* One row and kv head: its spans, and where its partials meet when it is cut. */
static void list_row(struct cuda_backend *b, const struct kv_rows *rows, struct step_block *h,
                     struct deal *d, int32_t r, int32_t head)
{
    struct attention_lists *l = &b->lists;
    const struct shared_prefix *p = &l->shared[r];
    const int32_t keys = rows->position[r] + 1, splits = splits_of(keys), n0 = b->n_spans;
    const bool may_cut = l->n_partials + splits - p->splits + 2 <= PARTIALS_MAX;
    const int32_t prefix = p->splits > 0 ? p->partial + head * p->blocks : -1;
    int32_t n_states = 0;
    for (int32_t at = p->splits; at < splits;) {
        const int32_t begin = at;
        at = deal_span(d, keys, at);
        const bool first = b->n_spans == n0;
        if (!first && !may_cut) {
            h->decode[2 * n0].w = at;
            continue;
        }
        span_add(b, h, TR_MIN(d->worker, workers_now(b) - 1), INT4(r, head, begin, at),
                 INT4(keys, rows->slot[r], l->n_partials + n_states, first ? prefix : -2));
        n_states += states_of(begin, at, first);
    }
    if (b->n_spans - n0 == 1) {
        h->decode[2 * n0 + 1].z = -1;
        return;
    }
    h->merges[b->n_merges++] = INT4(r, head, l->n_partials, n_states);
    l->n_partials += n_states;
}

static void list_decode(struct cuda_backend *b, const struct kv_rows *rows, struct step_block *h)
{
    const int32_t most = cuda_decode_workers(b);
    const bool deep = b->hopper && decode_cost(b, rows) >= (int64_t)deep_from * most;
    b->lists.decode_ctas = deep ? b->n_sms : 2 * b->n_sms;
    const int32_t workers = workers_now(b);
    struct deal d = deal_open(b, rows);
    memset(h->decode_starts, 0, ((size_t)workers + 1) * sizeof *h->decode_starts);
    for (int32_t r = 0; r < rows->n; r++)
        for (int32_t head = 0; head < b->opts.n_kv_heads && decodes(rows, r); head++)
            list_row(b, rows, h, &d, r, head);
    for (int32_t w = 0; w < workers; w++)
        h->decode_starts[w + 1] += h->decode_starts[w];
}

void cuda_attention_lists(struct cuda_backend *b, const struct kv_rows *rows, struct step_block *h)
{
    struct attention_lists *l = &b->lists;
    l->n_tiles = l->n_shared_tiles = l->n_rows = l->n_partials = l->row_splits = 0;
    b->n_spans = b->n_merges = 0;
    list_shared(b, rows, h);
    list_prefill(b, rows);
    deal_tiles(b, h);
    list_decode(b, rows, h);
}
