/* schedule: its promises hold over random sequences: progress, budget, pages, no starving. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/schedule.h"
#include "kernels/kernels.h"

static uint64_t rng;
static int32_t below(int32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((rng >> 33) % (uint64_t)n);
}

enum { N = 60, SLOTS_MAX = 16 };
struct model_seq {
    int32_t n_prompt, n_end, n_tokens, n_computed, n_pages, waited;
    bool running, done;
};
struct world {
    struct model_seq seqs[N];
    struct schedule_limits limits;
    int32_t free, evictions, steps;
    int32_t running[SLOTS_MAX], n_running;
    struct schedule_seq sched[SLOTS_MAX];
    struct schedule_pick picks[SLOTS_MAX];
    struct schedule_plan plan;
};

static int32_t pages_of(int32_t n)
{
    return (n + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

static void list_running(struct world *w)
{
    w->n_running = 0;
    for (int32_t i = 0; i < N; i++) {
        const struct model_seq *s = &w->seqs[i];
        if (!s->running)
            continue;
        w->sched[w->n_running] = (struct schedule_seq){s->n_tokens, s->n_computed, s->n_pages, 0};
        w->running[w->n_running++] = i;
    }
}

static void make_plan(struct world *w)
{
    int32_t victim;
    list_running(w);
    while ((victim = schedule_running(w->sched, w->n_running, &w->limits, w->free, &w->plan)) >=
           0) {
        assert_true(victim > 0); /* never the oldest */
        struct model_seq *s = &w->seqs[w->running[victim]];
        assert_int_equal(victim, w->n_running - 1);
        w->free += s->n_pages;
        s->running = false;
        s->n_pages = s->n_computed = 0;
        w->evictions++;
        list_running(w);
    }
    int32_t n = w->n_running;
    for (int32_t i = 0; i < N && schedule_room(&w->plan, &w->limits); i++) {
        struct model_seq *s = &w->seqs[i];
        if (s->running || s->done)
            continue;
        int32_t pages = pages_of(s->n_tokens);
        if (schedule_admit(&w->plan, &w->limits, s->n_tokens, 0, pages) == 0)
            break;
        s->running = true;
        s->n_pages = pages;
        w->free -= pages;
        w->running[n++] = i;
    }
    w->n_running = n;
    assert_int_equal(n, w->plan.n_running);
}

static void check_and_run(struct world *w)
{
    int32_t rows = 0, oldest = N, moved_oldest = 0, decodes_skipped = 0, prefills = 0;
    bool picked[SLOTS_MAX] = {false};
    for (int32_t i = 0; i < N && oldest == N; i++)
        oldest = w->seqs[i].done ? N : i;
    for (int32_t i = 0; i < w->plan.n_picks; i++) {
        const struct schedule_pick *p = &w->picks[i];
        struct model_seq *s = &w->seqs[w->running[p->seq]];
        assert_false(picked[p->seq]);
        picked[p->seq] = true;
        assert_true(p->count >= 1 && p->count <= w->limits.chunk_tokens);
        assert_int_equal(p->start, s->n_computed);
        assert_true(p->start + p->count <= s->n_tokens);
        rows += p->count;
        prefills += s->n_tokens - s->n_computed > 1;
        s->n_pages += p->new_page;
        w->free -= p->new_page;
        assert_true(p->start + p->count <= s->n_pages * KV_PAGE_TOKENS);
        moved_oldest += w->running[p->seq] == oldest;
    }
    for (int32_t i = 0; i < w->n_running; i++) {
        const struct model_seq *s = &w->seqs[w->running[i]];
        decodes_skipped += !picked[i] && s->n_tokens - s->n_computed == 1;
    }
    assert_int_equal(rows, w->plan.n_rows);
    assert_true(rows >= 1 && rows <= w->limits.step_tokens);
    assert_true(w->free >= 0);
    assert_int_equal(w->free, w->plan.pages_left);
    assert_true(w->n_running <= w->limits.slots);
    assert_true(moved_oldest == 1);                     /* the oldest moves in every step */
    assert_true(decodes_skipped == 0 || prefills <= 1); /* decodes first */
    for (int32_t i = 0; i < w->plan.n_picks; i++) {
        struct model_seq *s = &w->seqs[w->running[w->picks[i].seq]];
        s->n_computed += w->picks[i].count;
        if (s->n_computed < s->n_tokens)
            continue;
        if (++s->n_tokens < s->n_end)
            continue;
        s->done = true;
        s->running = false;
        w->free += s->n_pages;
    }
}

static void random_world(struct world *w, int32_t seed)
{
    memset(w, 0, sizeof *w);
    rng = (uint64_t)seed * 77 + 5;
    int32_t longest = 64 * (1 + below(8)), pages = pages_of(longest) * (1 + below(6));
    w->limits.slots = 1 + below(SLOTS_MAX);
    w->limits.step_tokens = 1 + below(below(2) ? 20 : 300);
    w->limits.chunk_tokens = 1 + below(w->limits.step_tokens);
    w->limits.n_pages = w->free = pages;
    w->plan.picks = w->picks;
    for (int32_t i = 0; i < N; i++) {
        struct model_seq *s = &w->seqs[i];
        s->n_prompt = s->n_tokens = 1 + below(longest - 1);
        s->n_end = s->n_prompt + 1 + below(longest - s->n_prompt);
    }
}

static void promises_hold_over_random_sequences(void **state)
{
    (void)state;
    static struct world w;
    int32_t evictions = 0;
    for (int32_t seed = 0; seed < 400; seed++) {
        random_world(&w, seed);
        int32_t pages = w.free, left = N;
        for (w.steps = 0; left > 0; w.steps++) {
            assert_true(w.steps < N * 600);
            make_plan(&w);
            check_and_run(&w);
            left = 0;
            for (int32_t i = 0; i < N; i++)
                left += !w.seqs[i].done;
        }
        assert_int_equal(w.free, pages);
        evictions += w.evictions;
    }
    assert_true(evictions > 100); /* the case was met */
}

static void decodes_then_oldest_prefill(void **state)
{
    (void)state;
    const struct schedule_seq seqs[] = {
        {.n_tokens = 11, .n_computed = 10, .n_pages = 1},
        {.n_tokens = 500, .n_computed = 100, .n_pages = 8},
        {.n_tokens = 65, .n_computed = 64, .n_pages = 1},
        {.n_tokens = 300, .n_computed = 0, .n_pages = 5},
        {.n_tokens = 9, .n_computed = 8, .n_pages = 1, .held = true},
    };
    const struct schedule_limits limits = {256, 200, 8, 100};
    struct schedule_pick picks[8];
    struct schedule_plan plan = {.picks = picks};
    assert_int_equal(schedule_running(seqs, 5, &limits, 10, &plan), -1);
    const int32_t want[][3] = {{0, 10, 1}, {2, 64, 1}, {1, 100, 200}, {3, 0, 54}};
    assert_int_equal(plan.n_picks, 4);
    for (int32_t i = 0; i < 4; i++) {
        assert_int_equal(picks[i].seq, want[i][0]);
        assert_int_equal(picks[i].start, want[i][1]);
        assert_int_equal(picks[i].count, want[i][2]);
        assert_int_equal(picks[i].new_page, i == 1);
    }
    assert_int_equal(plan.n_rows, 256);
    assert_int_equal(plan.pages_left, 9);
    assert_false(schedule_room(&plan, &limits));
    assert_int_equal(schedule_running(seqs, 5, &limits, 0, &plan), 4); /* the youngest goes */
}

static void an_old_prefill_is_not_starved_by_decodes(void **state)
{
    (void)state;
    struct schedule_seq seqs[4] = {{.n_tokens = 90, .n_computed = 1, .n_pages = 2}};
    for (int i = 1; i < 4; i++)
        seqs[i] = (struct schedule_seq){.n_tokens = 5, .n_computed = 4, .n_pages = 1};
    const struct schedule_limits limits = {3, 3, 4, 100};
    struct schedule_pick picks[4];
    struct schedule_plan plan = {.picks = picks};
    assert_int_equal(schedule_running(seqs, 4, &limits, 9, &plan), -1);
    assert_int_equal(plan.n_picks, 3);
    assert_int_equal(picks[2].seq, 0);
    assert_int_equal(picks[2].count, 1);
}

static void admission_keeps_a_reserve(void **state)
{
    (void)state;
    const struct schedule_limits limits = {256, 100, 3, 64};
    struct schedule_pick picks[3];
    struct schedule_plan plan = {.picks = picks};
    assert_int_equal(schedule_running(NULL, 0, &limits, 8, &plan), -1);
    assert_int_equal(schedule_admit(&plan, &limits, 512, 0, 9), 0);
    assert_int_equal(schedule_admit(&plan, &limits, 380, 20, 6), 100); /* alone: no reserve */
    assert_int_equal(schedule_admit(&plan, &limits, 10, 0, 1), 0);     /* 1 + 64 / 64 kept back */
    plan.pages_left = 10;
    assert_int_equal(schedule_admit(&plan, &limits, 10, 0, 1), 10);
    assert_int_equal(schedule_admit(&plan, &limits, 200, 0, 4), 100);
    assert_int_equal(plan.n_rows, 210);
    assert_false(schedule_room(&plan, &limits)); /* slots */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(promises_hold_over_random_sequences),
        cmocka_unit_test(decodes_then_oldest_prefill),
        cmocka_unit_test(an_old_prefill_is_not_starved_by_decodes),
        cmocka_unit_test(admission_keeps_a_reserve),
    };
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
