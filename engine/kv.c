/* kv: see kv.h. */
#include "engine/kv.h"

enum {
    NIL = -1,
    SCAN_MAX = 32, /* candidates looked at for a shared tail, newest first */
};

struct link {
    int32_t prev, next; /* pages; prev NIL: first of its list */
};
struct page {
    int32_t refs, owner, filled, n_ids; /* n_ids 0: not registered */
    int32_t parent, n_children;
    uint32_t serial; /* of this use of the page */
    uint32_t full_bucket, tail_bucket;
    struct link full, tail, lru; /* lru.next also links the free list */
    int32_t ids[KV_PAGE_TOKENS];
};
struct kv {
    struct page *pages;
    int32_t *full, *tail; /* [buckets] first page of a bucket's list */
    uint32_t n_buckets;   /* a power of two */
    int32_t n_pages, free_head, n_free;
    int32_t lru_head, lru_tail, n_lru; /* registered pages that nobody holds, oldest first */
    bool sharing;
};

int kv_open(struct kv **out, int32_t n_pages, bool sharing, struct err *err)
{
    struct kv *kv = mem_alloc(1, sizeof *kv);
    uint32_t n_buckets = 64;
    while (n_buckets < (uint32_t)n_pages)
        n_buckets *= 2;
    if (kv) {
        kv->pages = mem_alloc((size_t)n_pages, sizeof *kv->pages);
        kv->full = mem_alloc(n_buckets, sizeof *kv->full);
        kv->tail = mem_alloc(n_buckets, sizeof *kv->tail);
    }
    if (!kv || !kv->pages || !kv->full || !kv->tail) {
        kv_close(kv);
        return err_set(err, E_FATAL, "no memory for the table of %d KV pages", n_pages);
    }
    kv->n_buckets = n_buckets;
    kv->n_pages = kv->n_free = n_pages;
    kv->sharing = sharing;
    kv->lru_head = kv->lru_tail = NIL;
    for (uint32_t i = 0; i < n_buckets; i++)
        kv->full[i] = kv->tail[i] = NIL;
    for (int32_t i = 0; i < n_pages; i++) {
        kv->pages[i].lru.next = i + 1 < n_pages ? i + 1 : NIL;
        kv->pages[i].owner = NIL;
    }
    *out = kv;
    return E_OK;
}

void kv_close(struct kv *kv)
{
    if (!kv)
        return;
    mem_free(kv->pages);
    mem_free(kv->full);
    mem_free(kv->tail);
    mem_free(kv);
}

int64_t kv_bytes(const struct kv *kv)
{
    return (int64_t)sizeof *kv + (int64_t)kv->n_pages * (int64_t)sizeof *kv->pages +
           2 * (int64_t)kv->n_buckets * (int64_t)sizeof *kv->full;
}

int32_t kv_available(const struct kv *kv)
{
    return kv->n_free + kv->n_lru;
}

/* ---- the two indexes: whole pages by (parent, 64 ids), all by (parent, first ids) ---- */
static uint32_t bucket_of(const struct kv *kv, int32_t parent, const int32_t *ids, int32_t n)
{
    uint64_t h = hash_bytes(ids, (size_t)n * sizeof *ids, (uint64_t)(uint32_t)parent);
    return (uint32_t)h & (kv->n_buckets - 1);
}

static void full_insert(struct kv *kv, int32_t p)
{
    struct page *page = &kv->pages[p];
    page->full_bucket = bucket_of(kv, page->parent, page->ids, KV_PAGE_TOKENS);
    int32_t *head = &kv->full[page->full_bucket];
    page->full = (struct link){NIL, *head};
    if (*head != NIL)
        kv->pages[*head].full.prev = p;
    *head = p;
}

static void full_remove(struct kv *kv, const struct page *page)
{
    if (page->full.prev != NIL)
        kv->pages[page->full.prev].full.next = page->full.next;
    else
        kv->full[page->full_bucket] = page->full.next;
    if (page->full.next != NIL)
        kv->pages[page->full.next].full.prev = page->full.prev;
}

static void tail_insert(struct kv *kv, int32_t p)
{
    struct page *page = &kv->pages[p];
    page->tail_bucket = bucket_of(kv, page->parent, page->ids, KV_TAIL_MIN);
    int32_t *head = &kv->tail[page->tail_bucket];
    page->tail = (struct link){NIL, *head};
    if (*head != NIL)
        kv->pages[*head].tail.prev = p;
    *head = p;
}

static void tail_remove(struct kv *kv, const struct page *page)
{
    if (page->tail.prev != NIL)
        kv->pages[page->tail.prev].tail.next = page->tail.next;
    else
        kv->tail[page->tail_bucket] = page->tail.next;
    if (page->tail.next != NIL)
        kv->pages[page->tail.next].tail.prev = page->tail.prev;
}

static int32_t find_full(const struct kv *kv, int32_t parent, const int32_t *ids)
{
    int32_t p = kv->full[bucket_of(kv, parent, ids, KV_PAGE_TOKENS)];
    for (; p != NIL; p = kv->pages[p].full.next) {
        const struct page *page = &kv->pages[p];
        if (page->parent == parent && memcmp(page->ids, ids, sizeof page->ids) == 0)
            return p;
    }
    return NIL;
}

/* The child of `parent` that starts with most of ids [n]; *common says with how many. */
static int32_t find_tail(const struct kv *kv, int32_t parent, const int32_t *ids, int32_t n,
                         int32_t *common)
{
    int32_t best = NIL, scanned = 0;
    *common = KV_TAIL_MIN - 1;
    if (n < KV_TAIL_MIN)
        return NIL;
    int32_t p = kv->tail[bucket_of(kv, parent, ids, KV_TAIL_MIN)];
    for (; p != NIL && scanned < SCAN_MAX && *common < n; p = kv->pages[p].tail.next, scanned++) {
        const struct page *page = &kv->pages[p];
        if (page->parent != parent)
            continue;
        int32_t same = 0, most = TR_MIN(n, page->n_ids);
        while (same < most && page->ids[same] == ids[same])
            same++;
        if (same > *common) {
            *common = same;
            best = p;
        }
    }
    return best;
}

static void page_register(struct kv *kv, int32_t p, int32_t parent, const int32_t *ids, int32_t n,
                          int32_t owner, int32_t filled)
{
    struct page *page = &kv->pages[p];
    page->parent = parent;
    page->n_ids = n;
    page->owner = filled < n ? owner : NIL;
    page->filled = filled;
    memcpy(page->ids, ids, (size_t)n * sizeof *ids);
    if (parent != NIL)
        kv->pages[parent].n_children++;
    if (n == KV_PAGE_TOKENS)
        full_insert(kv, p);
    tail_insert(kv, p);
}

static void page_unregister(struct kv *kv, int32_t p)
{
    struct page *page = &kv->pages[p];
    CHECK(page->n_children == 0);
    if (page->parent != NIL)
        kv->pages[page->parent].n_children--;
    if (page->n_ids == KV_PAGE_TOKENS)
        full_remove(kv, page);
    tail_remove(kv, page);
    page->n_ids = 0;
    page->owner = NIL;
}

/* ---- free pages, and registered ones that nobody holds ---- */
static void lru_append(struct kv *kv, int32_t p)
{
    kv->pages[p].lru = (struct link){kv->lru_tail, NIL};
    if (kv->lru_tail != NIL)
        kv->pages[kv->lru_tail].lru.next = p;
    else
        kv->lru_head = p;
    kv->lru_tail = p;
    kv->n_lru++;
}

static void lru_remove(struct kv *kv, int32_t p)
{
    struct link l = kv->pages[p].lru;
    if (l.prev != NIL)
        kv->pages[l.prev].lru.next = l.next;
    else
        kv->lru_head = l.next;
    if (l.next != NIL)
        kv->pages[l.next].lru.prev = l.prev;
    else
        kv->lru_tail = l.prev;
    kv->n_lru--;
}

static void page_free(struct kv *kv, int32_t p)
{
    kv->pages[p].lru.next = kv->free_head;
    kv->free_head = p;
    kv->n_free++;
}

int32_t kv_grow(struct kv *kv)
{
    int32_t p = kv->free_head;
    if (kv->n_free > 0) {
        kv->free_head = kv->pages[p].lru.next;
        kv->n_free--;
    } else {
        CHECK(kv->n_lru > 0);
        p = kv->lru_head;
        lru_remove(kv, p);
        page_unregister(kv, p);
    }
    struct page *page = &kv->pages[p];
    page->serial++;
    page->refs = 1;
    page->owner = NIL;
    page->filled = page->n_ids = page->n_children = 0;
    page->parent = NIL;
    return p;
}

void kv_pin(struct kv *kv, int32_t page)
{
    if (kv->pages[page].refs++ == 0)
        lru_remove(kv, page);
}

/* `forget` cannot take a page from under registered children. */
static void page_unref(struct kv *kv, int32_t p, bool forget)
{
    struct page *page = &kv->pages[p];
    CHECK(page->refs > 0);
    if (--page->refs > 0)
        return;
    if (page->n_ids > 0 && ((page->filled > 0 && !forget) || page->n_children > 0)) {
        lru_append(kv, p);
        return;
    }
    if (page->n_ids > 0)
        page_unregister(kv, p);
    page_free(kv, p);
}

void kv_unpin(struct kv *kv, int32_t page)
{
    page_unref(kv, page, false);
}

/* ---- sequences ---- */
static int32_t ids_of_page(const struct kv_ids *ids, int32_t page, int32_t limit, int32_t *out)
{
    int32_t from = page * KV_PAGE_TOKENS, n = TR_MIN(limit - from, (int32_t)KV_PAGE_TOKENS);
    for (int32_t i = 0; i < n; i++)
        out[i] = kv_id(ids, from + i);
    return n;
}

void kv_match_none(const struct kv_ids *ids, struct kv_match *match)
{
    *match = (struct kv_match){.wait.page = NIL, .copy_from = NIL};
    match->n_pages = kv_pages_of(ids->n);
}

static void wait_for(const struct kv *kv, struct kv_match *match, int32_t page, int32_t fill)
{
    match->wait = (struct kv_wait){page, fill, kv->pages[page].serial};
}

void kv_match(const struct kv *kv, const struct kv_ids *ids, struct kv_match *match, int32_t *table)
{
    kv_match_none(ids, match);
    if (!kv->sharing)
        return;
    /* The last id is always computed by the sequence itself: its logits are wanted. */
    int32_t buf[KV_PAGE_TOKENS], usable = ids->n - 1, parent = NIL, i = 0;
    for (; (i + 1) * KV_PAGE_TOKENS <= usable; i++) {
        ids_of_page(ids, i, usable, buf);
        int32_t p = find_full(kv, parent, buf);
        if (p == NIL)
            break;
        const struct page *page = &kv->pages[p];
        if (page->filled < KV_PAGE_TOKENS && page->owner != NIL) {
            wait_for(kv, match, p, KV_PAGE_TOKENS);
            return;
        }
        table[i] = p;
        match->n_pages -= page->refs > 0;
        match->n_shared++;
        match->n_known += page->filled;
        if (page->filled < KV_PAGE_TOKENS)
            return;
        parent = p;
    }
    int32_t common, n = ids_of_page(ids, i, usable, buf),
                    p = find_tail(kv, parent, buf, n, &common);
    if (p == NIL)
        return;
    const struct page *page = &kv->pages[p];
    if (page->filled < common && page->owner != NIL) {
        wait_for(kv, match, p, common);
        return;
    }
    common = TR_MIN(common, page->filled);
    if (common < KV_TAIL_MIN)
        return;
    match->copy_from = p;
    match->n_copy = common;
    match->n_known += common;
    match->n_pages += page->refs == 0; /* it is pinned for the copy */
}

void kv_match_no_copy(const struct kv *kv, struct kv_match *match)
{
    if (match->n_copy == 0)
        return;
    match->n_pages -= kv->pages[match->copy_from].refs == 0;
    match->n_known -= match->n_copy;
    match->n_copy = 0;
    match->copy_from = NIL;
}

bool kv_wait_over(const struct kv *kv, const struct kv_wait *wait)
{
    const struct page *page = &kv->pages[wait->page];
    return page->serial != wait->serial || page->owner == NIL || page->filled >= wait->fill;
}

/* Registers page i of the sequence; NIL when it is known already, or too short to be worth it. */
static int32_t take_register(struct kv *kv, int32_t p, int32_t parent, const int32_t *ids,
                             int32_t n, int32_t owner, int32_t filled)
{
    int32_t common;
    if (n < KV_TAIL_MIN || (n == KV_PAGE_TOKENS && find_full(kv, parent, ids) != NIL))
        return NIL;
    if (n < KV_PAGE_TOKENS && find_tail(kv, parent, ids, n, &common) != NIL && common == n)
        return NIL;
    page_register(kv, p, parent, ids, n, owner, filled);
    return p;
}

void kv_take(struct kv *kv, const struct kv_ids *ids, const struct kv_match *match, int32_t owner,
             int32_t *table)
{
    CHECK(owner >= 0 && match->wait.page == NIL && match->n_pages <= kv_available(kv));
    int32_t n_pages = kv_pages_of(ids->n), parent = NIL, buf[KV_PAGE_TOKENS];
    for (int32_t i = 0; i < match->n_shared; i++) {
        parent = table[i];
        kv_pin(kv, parent);
        if (kv->pages[parent].filled < KV_PAGE_TOKENS)
            kv->pages[parent].owner = owner;
    }
    if (match->n_copy > 0)
        kv_pin(kv, match->copy_from);
    /* Behind a page that could not be registered, none can: it would not hold its parent. */
    bool chain = kv->sharing;
    for (int32_t i = match->n_shared; i < n_pages; i++) {
        table[i] = kv_grow(kv);
        if (!chain)
            continue;
        int32_t n = ids_of_page(ids, i, ids->n, buf);
        int32_t filled = i == match->n_shared ? match->n_copy : 0;
        parent = take_register(kv, table[i], parent, buf, n, owner, filled);
        chain = parent != NIL;
    }
}

void kv_computed(struct kv *kv, const int32_t *table, int32_t owner, int32_t from, int32_t to)
{
    for (int32_t i = from / KV_PAGE_TOKENS; i * KV_PAGE_TOKENS < to; i++) {
        struct page *page = &kv->pages[table[i]];
        if (page->owner != owner)
            continue;
        page->filled = TR_MIN(to - i * KV_PAGE_TOKENS, page->n_ids);
        if (page->filled == page->n_ids)
            page->owner = NIL;
    }
}

void kv_release(struct kv *kv, const int32_t *table, int32_t n, int32_t owner, bool forget)
{
    /* Last page first: in the line of pages to give up, a child stands before its parent. */
    for (int32_t i = n - 1; i >= 0; i--) {
        struct page *page = &kv->pages[table[i]];
        if (page->owner == owner)
            page->owner = NIL;
        page_unref(kv, table[i], forget);
    }
}

void kv_check(const struct kv *kv)
{
    int32_t held = 0, n_free = 0, n_lru = 0, children = 0, registered_children = 0;
    for (int32_t p = kv->free_head; n_free < kv->n_free; p = kv->pages[p].lru.next, n_free++)
        CHECK(kv->pages[p].refs == 0 && kv->pages[p].n_ids == 0);
    for (int32_t p = kv->lru_head; p != NIL; p = kv->pages[p].lru.next, n_lru++)
        CHECK(kv->pages[p].refs == 0 && kv->pages[p].n_ids > 0 && kv->pages[p].owner == NIL);
    for (int32_t p = 0; p < kv->n_pages; p++) {
        const struct page *page = &kv->pages[p];
        held += page->refs > 0;
        if (page->refs == 0 && page->n_ids == 0)
            continue;
        children += page->n_children;
        CHECK(page->filled <= page->n_ids);
        CHECK(page->n_children == 0 || page->n_ids == KV_PAGE_TOKENS);
        if (page->n_ids == 0 || page->parent == NIL)
            continue;
        registered_children++;
        const struct page *parent = &kv->pages[page->parent];
        CHECK(parent->n_ids == KV_PAGE_TOKENS && parent->refs >= (page->refs > 0));
        CHECK(page->filled == 0 || parent->filled == KV_PAGE_TOKENS);
    }
    CHECK(n_lru == kv->n_lru && held + kv->n_free + kv->n_lru == kv->n_pages);
    CHECK(children == registered_children);
}
