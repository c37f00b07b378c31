/* share: which jobs a canary takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>

#include "worker/job/share.h"

static struct str id_of(int i, char buf[32])
{
    snprintf(buf, 32, "job-%d", i);
    return str_of(buf);
}

static void a_share_is_what_it_says(void **state)
{
    (void)state;
    static const double shares[] = {0.01, 0.05, 0.25, 0.5, 0.9};
    char buf[32];
    for (size_t s = 0; s < TR_COUNT(shares); s++) {
        int taken = 0;
        for (int i = 0; i < 20000; i++)
            taken += share_takes(id_of(i, buf), shares[s]);
        double found = taken / 20000.0; /* five sigma of the widest is 0.018 */
        if (found < shares[s] - 0.018 || found > shares[s] + 0.018)
            fail_msg("want %g, found %g", shares[s], found);
    }
}

/* A growing canary keeps its jobs: each has a row already. */
static void a_larger_share_has_the_smaller(void **state)
{
    (void)state;
    char buf[32];
    for (int i = 0; i < 5000; i++)
        for (double share = 0.05; share < 0.9; share += 0.05)
            if (share_takes(id_of(i, buf), share) && !share_takes(id_of(i, buf), share + 0.05))
                fail_msg("%s is of %g, not of %g", buf, share, share + 0.05);
}

static void ends_are_none_and_all(void **state)
{
    (void)state;
    char buf[32];
    for (int i = 0; i < 1000; i++)
        assert_true(!share_takes(id_of(i, buf), 0) && share_takes(id_of(i, buf), 1));
}

/* The hash is part of the promise: an upgrade in mid-canary must not choose others. */
static void the_choice_is_fixed(void **state)
{
    (void)state;
    /* SHA-256("a") begins ca978112: 0.7914; SHA-256("") e3b0c442: 0.8894. */
    assert_true(share_takes(STR("a"), 0.7915) && !share_takes(STR("a"), 0.7913));
    assert_true(share_takes(STR(""), 0.8895) && !share_takes(STR(""), 0.8893));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_share_is_what_it_says),
        cmocka_unit_test(a_larger_share_has_the_smaller),
        cmocka_unit_test(ends_are_none_and_all),
        cmocka_unit_test(the_choice_is_fixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
