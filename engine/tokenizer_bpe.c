/* tokenizer_bpe: merges the symbols of one piece, lowest rank first, leftmost among equals
 * (Sennrich et al. 2016). Short pieces are scanned, long ones go through a heap: O(n log n) on any
 * input. */
#include "engine/tokenizer_impl.h"

#define LINK_NONE UINT32_MAX
/* One symbol of a long piece. */
struct link {
    uint32_t prev, next; /* LINK_NONE at the ends */
    uint64_t pair; /* rank << 32 | id of this symbol with the next one; UINT64_MAX: no merge */
};

/* Symbols of a piece before any merge. Returns the count. `ids` has room for one a byte. */
static size_t symbols(const struct tokenizer *t, struct str piece, int32_t *ids)
{
    const unsigned char *p = (const unsigned char *)piece.ptr;
    size_t n = 0, len;
    if (t->byte_level) {
        for (size_t i = 0; i < piece.len; i++)
            ids[i] = t->byte_id[p[i]];
        return piece.len;
    }
    for (size_t i = 0; i < piece.len; i += len) {
        utf8_get(p + i, &len);
        int32_t id = tokenizer_find(t, (struct str){piece.ptr + i, len}, false);
        if (id >= 0)
            ids[n++] = id;
        for (size_t b = 0; id < 0 && b < len; b++)
            ids[n++] = t->byte_id[p[i + b]];
    }
    return n;
}

int bpe_build(struct tokenizer *t, struct err *err)
{
    if (!t->byte_level)
        return E_OK;
    t->byte_pair = mem_alloc(256 * 256, sizeof *t->byte_pair);
    if (!t->byte_pair)
        return err_set(err, E_FATAL, "tokenizer.json: no memory for the pairs of bytes");
    for (size_t a = 0; a < 256; a++)
        for (size_t b = 0; b < 256; b++)
            t->byte_pair[a << 8 | b] = tokenizer_pair(t, t->byte_id[a], t->byte_id[b]);
    return E_OK;
}

/* The piece's symbols are in ids[0..n), n <= BPE_SHORT_MAX. Returns how many are left. */
static size_t merge_short(const struct tokenizer *t, const unsigned char *piece, int32_t *ids,
                          size_t n)
{
    uint64_t pair[BPE_SHORT_MAX];
    if (t->byte_level) /* half of all look-ups, in a table whose rows of letters stay cached */
        for (size_t i = 0; i + 1 < n; i++)
            pair[i] = t->byte_pair[(size_t)piece[i] << 8 | piece[i + 1]];
    else
        for (size_t i = 0; i + 1 < n; i++)
            pair[i] = tokenizer_pair(t, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) /* equal ranks are equal pairs: the leftmost stays */
            best = pair[i] < pair[best] ? i : best;
        if (pair[best] == UINT64_MAX)
            break;
        ids[best] = (int32_t)(uint32_t)pair[best];
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(pair + best + 1, pair + best + 2, (n - best - 2) * sizeof *pair);
            pair[best] = tokenizer_pair(t, ids[best], ids[best + 1]);
        }
        if (best > 0)
            pair[best - 1] = tokenizer_pair(t, ids[best - 1], ids[best]);
    }
    return n;
}

/* ---- long pieces: a heap of rank << 32 | position with four children a node: half the levels of a
 * binary one, and a node's children share a cache line ---- */

static void heap_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t item = heap[i];
    for (size_t child; (child = 4 * i + 1) < n; i = child) {
        size_t end = TR_MIN(child + 4, n);
        for (size_t k = child + 1; k < end; k++)
            child = heap[k] < heap[child] ? k : child;
        if (heap[child] >= item)
            break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t item)
{
    size_t i = (*n)++;
    while (i > 0 && heap[(i - 1) / 4] > item) {
        heap[i] = heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    heap[i] = item;
}

static inline uint64_t heap_item(uint64_t pair, size_t at)
{
    return (pair & 0xFFFFFFFF00000000u) | (uint32_t)at;
}

/* Sets the pair that begins at `at` and, where it merges, pushes it. */
static void link_pair(const struct tokenizer *t, const int32_t *ids, struct link *links,
                      uint32_t at, uint64_t *heap, size_t *n_heap)
{
    uint32_t next = links[at].next;
    links[at].pair = next == LINK_NONE ? UINT64_MAX : tokenizer_pair(t, ids[at], ids[next]);
    if (links[at].pair != UINT64_MAX)
        heap_push(heap, n_heap, heap_item(links[at].pair, at));
}

static int64_t merge_long(const struct tokenizer *t, struct tokenizer_scratch *s, int32_t *ids,
                          size_t n)
{
    struct link *links = grow_reserve(&s->links, n, sizeof *links);
    /* every merge takes one item out and puts at most two in */
    uint64_t *heap = grow_reserve(&s->heap, 2 * n, sizeof *heap);
    if (!links || !heap)
        return -1;
    size_t n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        links[i].prev = i ? (uint32_t)i - 1 : LINK_NONE;
        links[i].next = i + 1 < n ? (uint32_t)i + 1 : LINK_NONE;
        links[i].pair = i + 1 < n ? tokenizer_pair(t, ids[i], ids[i + 1]) : UINT64_MAX;
        if (links[i].pair != UINT64_MAX)
            heap[n_heap++] = heap_item(links[i].pair, i);
    }
    for (size_t i = n_heap / 4 + 1; i-- > 0;)
        if (i < n_heap)
            heap_down(heap, n_heap, i);
    while (n_heap > 0) {
        uint64_t item = heap[0];
        heap[0] = heap[--n_heap];
        if (n_heap)
            heap_down(heap, n_heap, 0);
        uint32_t at = (uint32_t)item;
        if (heap_item(links[at].pair, at) != item || links[at].pair == UINT64_MAX)
            continue; /* one of the two was merged otherwise meanwhile */
        uint32_t gone = links[at].next;
        ids[at] = (int32_t)(uint32_t)links[at].pair;
        links[at].next = links[gone].next;
        links[gone].pair = UINT64_MAX;
        if (links[at].next != LINK_NONE)
            links[links[at].next].prev = at;
        link_pair(t, ids, links, at, heap, &n_heap);
        if (links[at].prev != LINK_NONE)
            link_pair(t, ids, links, links[at].prev, heap, &n_heap);
    }
    size_t out = 0;
    for (uint32_t i = 0; i != LINK_NONE; i = links[i].next)
        ids[out++] = ids[i];
    return (int64_t)out;
}

int64_t bpe_piece(const struct tokenizer *t, struct tokenizer_scratch *s, struct str piece)
{
    int32_t *ids = grow_reserve(&s->ids, piece.len, sizeof *ids);
    if (!ids)
        return -1;
    int32_t whole = piece.len <= TOKENIZER_TOKEN_BYTES_MAX ? tokenizer_find(t, piece, false) : -1;
    if (whole >= 0 && t->tokens[whole].flags & TOKEN_WHOLE) {
        ids[0] = whole;
        return 1;
    }
    size_t n = symbols(t, piece, ids);
    if (n <= BPE_SHORT_MAX)
        return (int64_t)merge_short(t, (const unsigned char *)piece.ptr, ids, n);
    return merge_long(t, s, ids, n);
}

void bpe_mark_whole(struct tokenizer *t)
{
    int32_t ids[BPE_SHORT_MAX];
    for (int32_t id = 0; id < t->n_tokens; id++) {
        struct str key = tokenizer_key(t, id);
        if (!key.len || t->tokens[id].flags & TOKEN_RAW || tokenizer_find(t, key, false) != id)
            continue;
        bool whole = t->ignore_merges;
        if (!whole && key.len <= BPE_SHORT_MAX)
            whole =
                merge_short(t, (const unsigned char *)key.ptr, ids, symbols(t, key, ids)) == 1 &&
                ids[0] == id;
        t->tokens[id].flags |= (uint8_t)(whole ? TOKEN_WHOLE : 0);
    }
}
