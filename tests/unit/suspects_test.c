/* suspects: groups that halve, and what convicts. The whole policy is played against random deaths:
 * no innocent is ever convicted, every poison is, within its bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <signal.h>
#include <stdlib.h>

#include "worker/job/job.h"
#include "worker/supervisor/death.h"
#include "worker/suspects.h"

static void limits_halve_down_to_one(void **state)
{
    (void)state;
    assert_int_equal(suspect_limit(2, 1024), 0);
    assert_int_equal(suspect_limit(3, 1024), 512);
    assert_int_equal(suspect_limit(4, 1024), 256);
    assert_int_equal(suspect_limit(12, 1024), 1);
    assert_int_equal(suspect_limit(INT32_MAX, INT64_MAX), 1);
    assert_int_equal(suspect_limit(3, 1), 1);
    for (int64_t wave = 1; wave < 1 << 20; wave = wave * 3 + 1) {
        assert_int_equal(suspect_limit(SUSPECT_LEVELS - 1, wave), 1);
        /* 3 deaths as anybody, one at each size, and one more alone. */
        int deaths = SUSPECT_STARTS + 1;
        for (int32_t starts = SUSPECT_STARTS; suspect_limit(starts, wave) > 1; starts++)
            deaths++;
        assert_true(deaths + 1 <= 5 + log2((double)wave));
    }
}

static void only_two_deaths_alone_of_a_suspect_convict(void **state)
{
    (void)state;
    assert_false(suspect_convicted(1000, 0));
    assert_false(suspect_convicted(1000, 1));
    assert_false(suspect_convicted(2, 2));
    assert_true(suspect_convicted(3, 2));
}

static void fewest_starts_go_first_and_the_last_one_limits(void **state)
{
    (void)state;
    struct job jobs[20];
    struct suspects s = {0};
    memset(jobs, 0, sizeof jobs);
    assert_int_equal(suspects_group(&s, 64), 0);
    assert_null(suspects_take(&s));
    for (int i = 0; i < 20; i++) {
        jobs[i].attempts = i % 2 ? 3 : 6; /* of a wave of 64: 32 and 4 */
        suspects_add(&s, &jobs[i]);
    }
    assert_int_equal(suspects_group(&s, 64), 10); /* half of those at hand: all with 3 starts */
    for (int i = 0; i < 10; i++)
        assert_ptr_equal(suspects_take(&s), &jobs[2 * i + 1]);
    assert_int_equal(suspects_group(&s, 64), 4);
    assert_int_equal(suspects_group(&s, 16), 1);
    for (int i = 0; i < 10; i++)
        assert_ptr_equal(suspects_take(&s), &jobs[2 * i]);
    assert_int_equal(s.n, 0);
    jobs[0].attempts = 1000; /* a storm */
    suspects_add(&s, &jobs[0]);
    assert_int_equal(suspects_group(&s, 1 << 20), 1);
    assert_ptr_equal(suspects_take(&s), &jobs[0]);
}

static void causes_have_names_and_signals(void **state)
{
    (void)state;
    for (int i = DEATH_NONE; i < DEATH_CAUSES; i++)
        assert_int_equal(death_cause_find(str_of(death_cause_name((enum death_cause)i))), i);
    assert_int_equal(death_cause_find(STR("SIGKILL")), DEATH_NONE);
    assert_int_equal(death_cause_find((struct str){NULL, 0}), DEATH_NONE);
    assert_int_equal(death_cause_of_signal(SIGSEGV), DEATH_SIGSEGV);
    assert_int_equal(death_cause_of_signal(SIGKILL), DEATH_OUTSIDE);
    assert_int_equal(death_cause_of_signal(SIGTERM), DEATH_OUTSIDE);
    assert_int_equal(death_cause_of_signal(0), DEATH_OUTSIDE);
    assert_false(death_is_own(DEATH_OUTSIDE));
    assert_true(death_is_own(DEATH_HANG));
}

/* ---- a world of deaths ---- */
enum { JOBS = 400 };
struct world {
    struct job jobs[JOBS];
    bool poison[JOBS], done[JOBS], dead[JOBS];
    int deaths[JOBS];    /* on record */
    int triggered[JOBS]; /* deaths of which it was the cause */
    int n, left;
    int64_t wave;
    uint64_t rng;
    double kill, lost; /* chance that a wave is killed; that nobody is left to record a death */
};

static double chance(struct world *w)
{
    w->rng = w->rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(w->rng >> 11) * 0x1p-53;
}

/* What is in flight: runs in a random order; a poison ends all of it, a kill does too. False: the
 * process is dead. */
static bool flight(struct world *w, int *in, int n, bool alone)
{
    for (int i = 0; i < n; i++)
        w->jobs[in[i]].attempts++;
    for (int i = n - 1; i > 0; i--) {
        int k = (int)(chance(w) * (i + 1)), t = in[i];
        in[i] = in[k];
        in[k] = t;
    }
    int until = chance(w) < w->kill ? (int)(chance(w) * n) : n, killer = -1, i;
    for (i = 0; i < until && killer < 0; i++) {
        if (w->poison[in[i]])
            killer = in[i];
        else
            w->done[in[i]] = chance(w) < 0.9; /* finished, but not always committed in time */
        w->left -= w->done[in[i]];
    }
    if (killer < 0 && until == n) {
        for (i = 0; i < n; i++) {
            w->left -= !w->done[in[i]];
            w->done[in[i]] = true;
        }
        return true;
    }
    bool recorded = chance(w) >= w->lost;
    for (i = 0; i < n; i++)
        if (recorded && killer < 0)
            w->jobs[in[i]].attempts--;
    if (killer >= 0) {
        w->triggered[killer]++;
        if (recorded && alone && n == 1)
            w->deaths[killer]++;
    }
    return false;
}

/* One process from its start to its death or to the end of the work. */
static void life(struct world *w)
{
    struct suspects suspects = {0};
    int normal[JOBS], n_normal = 0, in[JOBS], n;
    for (int i = 0; i < w->n; i++) {
        if (w->done[i])
            continue;
        if (suspect_convicted(w->jobs[i].attempts, w->deaths[i])) {
            w->dead[i] = w->done[i] = true;
            w->left--;
        } else if (suspect_is(w->jobs[i].attempts)) {
            suspects_add(&suspects, &w->jobs[i]);
        } else {
            normal[n_normal++] = i;
        }
    }
    for (int at = 0; at < n_normal; at += n) {
        for (n = 0; at + n < n_normal && n < w->wave; n++)
            in[n] = normal[at + n];
        if (!flight(w, in, n, false))
            return;
    }
    while (suspects.n) {
        int64_t size = suspects_group(&suspects, w->wave);
        assert_true(size >= 1 && size <= suspects.n);
        for (n = 0; n < size; n++)
            in[n] = (int)(suspects_take(&suspects) - w->jobs);
        if (!flight(w, in, n, size == 1))
            return;
    }
}

static int play(struct world *w, int n, int poisons, int64_t wave, double kill, double lost)
{
    uint64_t rng = w->rng;
    memset(w, 0, sizeof *w);
    w->rng = rng;
    w->n = w->left = n;
    w->wave = wave;
    w->kill = kill;
    w->lost = lost;
    while (poisons > 0) {
        int at = (int)(chance(w) * n);
        poisons -= !w->poison[at];
        w->poison[at] = true;
    }
    int lives = 0;
    for (; w->left > 0; lives++) {
        assert_true(lives < 100000);
        life(w);
    }
    for (int i = 0; i < n; i++)
        assert_int_equal(w->dead[i], w->poison[i]);
    return lives;
}

static void innocents_live_and_poison_dies_within_the_bound(void **state)
{
    (void)state;
    static struct world w;
    w.rng = 7;
    int worst = 0;
    for (int round = 0; round < 600; round++) {
        int n = 1 + (int)(chance(&w) * (JOBS - 1)), poisons = TR_MIN(n, (int)(chance(&w) * 5));
        int64_t wave = 1 + (int64_t)(chance(&w) * (round % 2 ? 64 : 2000));
        play(&w, n, poisons, wave, round % 3 ? 0 : 0.2, 0);
        for (int i = 0; i < n; i++) {
            assert_true(w.triggered[i] <= 5 + log2((double)wave));
            worst = TR_MAX(worst, w.triggered[i]);
        }
    }
    assert_true(worst >= SUSPECT_STARTS + SUSPECT_CONVICTS);
}

/* Pods that are lost whole, parent included: nobody says why. */
static void a_storm_without_records_convicts_nobody(void **state)
{
    (void)state;
    static struct world w;
    w.rng = 11;
    for (int round = 0; round < 200; round++) {
        int n = 1 + (int)(chance(&w) * (JOBS - 1));
        assert_true(play(&w, n, 0, 1 + (int64_t)(chance(&w) * 500), 0.6, 1) > 0);
        play(&w, n, TR_MIN(n, 2), 64, 0.3, 0.3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_halve_down_to_one),
        cmocka_unit_test(only_two_deaths_alone_of_a_suspect_convict),
        cmocka_unit_test(fewest_starts_go_first_and_the_last_one_limits),
        cmocka_unit_test(causes_have_names_and_signals),
        cmocka_unit_test(innocents_live_and_poison_dies_within_the_bound),
        cmocka_unit_test(a_storm_without_records_convicts_nobody),
    };
    return cmocka_run_group_tests_name("suspects", tests, NULL, NULL);
}
