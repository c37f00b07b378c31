/* kv: pages are shared by exact prefixes only, computed once, and none is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/kv.h"

enum { LEN = 1024, PAGES = LEN / KV_PAGE_TOKENS };

static struct kv *open_kv(int32_t n_pages, bool sharing)
{
    struct kv *kv = NULL;
    struct err err = {0};
    assert_int_equal(kv_open(&kv, n_pages, sharing, &err), E_OK);
    return kv;
}

static struct kv_ids ids_of(const int32_t *ids, int32_t n)
{
    return (struct kv_ids){ids, NULL, n, n};
}

static void fill(int32_t *ids, int32_t n, int32_t first)
{
    for (int32_t i = 0; i < n; i++)
        ids[i] = first + i;
}

static void followers_wait_then_share(void **state)
{
    (void)state;
    struct kv *kv = open_kv(64, true);
    int32_t a[200], b[200], ta[PAGES], tb[PAGES];
    fill(a, 200, 0);
    fill(b, 200, 0);
    b[150] = 9999; /* 2 pages and 22 ids in common */
    struct kv_ids ia = ids_of(a, 200), ib = ids_of(b, 200);
    struct kv_match m;
    kv_match(kv, &ia, &m, ta);
    assert_int_equal(m.n_known, 0);
    assert_int_equal(m.n_pages, 4);
    kv_take(kv, &ia, &m, 0, ta);
    kv_match(kv, &ib, &m, tb);
    assert_int_equal(m.wait.page, ta[0]);
    assert_false(kv_wait_over(kv, &m.wait));
    kv_computed(kv, ta, 0, 0, 100);
    assert_true(kv_wait_over(kv, &m.wait));
    kv_match(kv, &ib, &m, tb);
    assert_int_equal(m.wait.page, ta[1]);
    kv_computed(kv, ta, 0, 100, 140);
    kv_match(kv, &ib, &m, tb);
    assert_int_equal(m.wait.page, ta[2]);
    assert_int_equal(m.wait.fill, 22);
    kv_computed(kv, ta, 0, 140, 160);
    kv_match(kv, &ib, &m, tb);
    assert_int_equal(m.wait.page, -1);
    assert_int_equal(m.n_shared, 2);
    assert_int_equal(m.copy_from, ta[2]);
    assert_int_equal(m.n_copy, 22);
    assert_int_equal(m.n_known, 150);
    assert_int_equal(m.n_pages, 2);
    kv_take(kv, &ib, &m, 1, tb);
    assert_int_equal(tb[0], ta[0]);
    assert_int_equal(tb[1], ta[1]);
    assert_int_not_equal(tb[2], ta[2]);
    kv_unpin(kv, ta[2]);
    assert_int_equal(kv_available(kv), 64 - 6);
    kv_check(kv);
    kv_release(kv, ta, 4, 0, false);
    kv_check(kv);
    kv_release(kv, tb, 4, 1, false);
    kv_check(kv);
    assert_int_equal(kv_available(kv), 64);
    kv_close(kv);
}

static void the_last_id_is_always_computed(void **state)
{
    (void)state;
    struct kv *kv = open_kv(16, true);
    int32_t a[128], t[PAGES], u[PAGES];
    fill(a, 128, 0);
    struct kv_ids ia = ids_of(a, 128);
    struct kv_match m;
    kv_match(kv, &ia, &m, t);
    kv_take(kv, &ia, &m, 0, t);
    kv_computed(kv, t, 0, 0, 128);
    kv_match(kv, &ia, &m, u);
    assert_int_equal(m.n_shared, 1);
    assert_int_equal(m.n_copy, 63);
    assert_int_equal(m.n_known, 127);
    kv_close(kv);
    kv = open_kv(16, false);
    kv_match(kv, &ia, &m, t);
    kv_take(kv, &ia, &m, 0, t);
    kv_computed(kv, t, 0, 0, 128);
    kv_match(kv, &ia, &m, u);
    assert_int_equal(m.n_known, 0); /* sharing off */
    kv_close(kv);
}

static void an_orphaned_prefix_is_taken_over(void **state)
{
    (void)state;
    struct kv *kv = open_kv(16, true);
    int32_t a[200], t[PAGES], u[PAGES];
    fill(a, 200, 0);
    struct kv_ids ia = ids_of(a, 200);
    struct kv_match m;
    kv_match(kv, &ia, &m, t);
    kv_take(kv, &ia, &m, 0, t);
    kv_computed(kv, t, 0, 0, 100);
    struct kv_match waiting;
    kv_match(kv, &ia, &waiting, u);
    assert_int_equal(waiting.wait.page, t[1]);
    kv_release(kv, t, 4, 0, false); /* cancelled, parked or evicted in mid-page */
    kv_check(kv);
    assert_true(kv_wait_over(kv, &waiting.wait));
    kv_match(kv, &ia, &m, u);
    assert_int_equal(m.n_shared, 2);
    assert_int_equal(m.n_known, 100);
    assert_int_equal(m.n_pages, 4);
    kv_take(kv, &ia, &m, 7, u);
    assert_int_equal(u[1], t[1]);
    struct kv_match third;
    int32_t v[PAGES];
    kv_match(kv, &ia, &third, v);
    assert_int_equal(third.wait.page, u[1]); /* the new owner is waited for */
    kv_computed(kv, u, 7, 100, 200);
    kv_match(kv, &ia, &third, v);
    assert_int_equal(third.n_known, 192); /* 8 ids are too few to copy */
    kv_release(kv, u, 4, 7, true);
    kv_match(kv, &ia, &third, v);
    assert_int_equal(third.n_known, 0); /* forgotten */
    kv_check(kv);
    kv_close(kv);
}

/* Random sequences over few ids, so that prefixes meet by chance: what a match gives is compared
 * with what was written into the pages. */
enum { SEQS = 12, KV_N = 40 };
struct model_seq {
    int32_t ids[LEN], table[PAGES], n, n_computed;
    bool running;
};
static struct model_seq seqs[SEQS];
static int32_t content[KV_N][KV_PAGE_TOKENS]; /* what "the device" holds */
static uint64_t rng;

static int32_t below(int32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((rng >> 33) % (uint64_t)n);
}

/* A page's content names the whole prefix: a false match cannot look right. */
static int32_t prefix_hash(const int32_t *ids, int32_t n)
{
    return (int32_t)hash_bytes(ids, (size_t)n * sizeof *ids, 3);
}

static int64_t start(struct kv *kv, struct model_seq *s)
{
    static const int32_t lengths[] = {1, 5, 63, 64, 65, 100, 128, 129, 200, 300};
    s->n = lengths[below((int32_t)TR_COUNT(lengths))];
    int32_t kind = below(3), cut = below(s->n + 1);
    for (int32_t i = 0; i < s->n; i++)
        s->ids[i] = i < cut ? kind : below(2);
    struct kv_ids ids = ids_of(s->ids, s->n);
    struct kv_match m;
    kv_match(kv, &ids, &m, s->table);
    if (m.wait.page >= 0 || m.n_pages > kv_available(kv))
        return 0;
    int32_t before = kv_available(kv);
    kv_take(kv, &ids, &m, (int32_t)(s - seqs), s->table);
    assert_int_equal(before - m.n_pages, kv_available(kv));
    assert_true(m.n_known < s->n);
    if (m.n_copy > 0) {
        memcpy(content[s->table[m.n_shared]], content[m.copy_from],
               (size_t)m.n_copy * sizeof(int32_t));
        kv_unpin(kv, m.copy_from);
    }
    for (int32_t i = 0; i < m.n_known; i++)
        assert_int_equal(content[s->table[i / KV_PAGE_TOKENS]][i % KV_PAGE_TOKENS],
                         prefix_hash(s->ids, i + 1));
    s->n_computed = m.n_known;
    s->running = true;
    return m.n_known;
}

static void compute(struct kv *kv, struct model_seq *s)
{
    int32_t more = 1 + below(100), to = TR_MIN(s->n, s->n_computed + more);
    for (int32_t i = s->n_computed; i < to; i++)
        content[s->table[i / KV_PAGE_TOKENS]][i % KV_PAGE_TOKENS] = prefix_hash(s->ids, i + 1);
    kv_computed(kv, s->table, (int32_t)(s - seqs), s->n_computed, to);
    s->n_computed = to;
}

static void stop(struct kv *kv, struct model_seq *s, bool forget)
{
    kv_release(kv, s->table, kv_pages_of(s->n), (int32_t)(s - seqs), forget);
    s->running = false;
}

static void no_false_sharing_no_page_lost(void **state)
{
    (void)state;
    struct kv *kv = open_kv(KV_N, true);
    int64_t shared = 0;
    rng = 42;
    for (int round = 0; round < 60000; round++) {
        struct model_seq *s = &seqs[below(SEQS)];
        if (!s->running)
            shared += start(kv, s);
        else if (s->n_computed == s->n || below(20) == 0)
            stop(kv, s, below(10) == 0);
        else
            compute(kv, s);
        if (round % 16 == 0)
            kv_check(kv);
    }
    for (int i = 0; i < SEQS; i++) {
        if (seqs[i].running)
            stop(kv, &seqs[i], false);
    }
    kv_check(kv);
    assert_int_equal(kv_available(kv), KV_N);
    assert_true(shared > 10000);
    kv_close(kv);
}

static void pages_grow_and_cached_ones_give_way(void **state)
{
    (void)state;
    struct kv *kv = open_kv(8, true);
    int32_t a[512], t[PAGES], grown[8];
    fill(a, 512, 0);
    struct kv_ids ia = ids_of(a, 512);
    struct kv_match m;
    kv_match(kv, &ia, &m, t);
    kv_take(kv, &ia, &m, 0, t);
    kv_computed(kv, t, 0, 0, 512);
    assert_int_equal(kv_available(kv), 0);
    kv_release(kv, t, 8, 0, false);
    for (int32_t i = 0; i < 3; i++) {
        grown[i] = kv_grow(kv);
        kv_check(kv);
    }
    kv_match(kv, &ia, &m, t);
    assert_int_equal(m.n_shared, 5); /* the end of the prefix went first */
    kv_release(kv, grown, 3, 0, false);
    kv_check(kv);
    kv_close(kv);
    kv_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(followers_wait_then_share),
        cmocka_unit_test(the_last_id_is_always_computed),
        cmocka_unit_test(an_orphaned_prefix_is_taken_over),
        cmocka_unit_test(no_false_sharing_no_page_lost),
        cmocka_unit_test(pages_grow_and_cached_ones_give_way),
    };
    return cmocka_run_group_tests_name("kv", tests, NULL, NULL);
}
