/* sink_deaths: what every sink must make of the death of a process, seen through its own calls. For
 * an empty database; includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_SINK_DEATHS_H
#define TRANCHE_TESTS_SINK_DEATHS_H

#include "worker/sink/sink.h"

static struct lookup deaths_of(struct sink *s, struct key key)
{
    static const uint8_t sha[32];
    struct err err = {0};
    struct lookup l = {.key = key, .sha256 = sha};
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    return l;
}

static void start_as(struct sink *s, const char *process, const struct key *keys, size_t n,
                     int what)
{
    struct err err = {0};
    s->process = str_of(process);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, n, what, NULL, &err), E_OK);
}

static struct death death_as(struct sink *s, const char *process, enum death_cause cause)
{
    struct err err = {0};
    struct death d = {.process = str_of(process), .cause = cause};
    assert_int_equal(s->ops->record_death(s, &d, &err), E_OK);
    return d;
}

static void check_deaths(struct sink *s)
{
    struct key a = {STR("main"), STR("deaths"), STR("a")},
               b = {STR("main"), STR("deaths"), STR("b")}, both[2] = {a, b};

    /* Together: they stay counted, and nobody is charged. The second record changes nothing. */
    start_as(s, "p1", both, 2, COUNT_START);
    struct death d = death_as(s, "p1", DEATH_SIGSEGV);
    assert_true(d.jobs == 2 && d.charged == 0);
    d = death_as(s, "p1", DEATH_SIGSEGV);
    assert_true(d.jobs == 0 && d.charged == 0);
    struct lookup l = deaths_of(s, a);
    assert_true(l.attempts == 1 && l.deaths == 0 && l.cause == DEATH_SIGSEGV);

    /* From outside, together and alone: given back. */
    start_as(s, "p2", both, 2, COUNT_START);
    d = death_as(s, "p2", DEATH_OUTSIDE);
    assert_true(d.jobs == 2 && d.charged == 0);
    start_as(s, "p3", &a, 1, COUNT_ALONE);
    d = death_as(s, "p3", DEATH_OUTSIDE);
    assert_true(d.jobs == 1 && d.charged == 0);
    l = deaths_of(s, a);
    assert_true(l.attempts == 1 && l.deaths == 0 && l.cause == DEATH_SIGSEGV);

    /* One that happened to be the last in flight was not started alone. */
    start_as(s, "p4", &a, 1, COUNT_START);
    d = death_as(s, "p4", DEATH_HANG);
    assert_true(d.jobs == 1 && d.charged == 0);

    /* Alone, by its own doing: charged. */
    start_as(s, "p5", &a, 1, COUNT_ALONE);
    d = death_as(s, "p5", DEATH_MEMORY);
    assert_true(d.jobs == 1 && d.charged == 1);
    l = deaths_of(s, a);
    assert_true(l.attempts == 3 && l.deaths == 1 && l.cause == DEATH_MEMORY);

    /* Another process has taken it up since: the dead one answers for nothing. */
    start_as(s, "p6", &a, 1, COUNT_ALONE);
    start_as(s, "p7", &a, 1, COUNT_ALONE);
    d = death_as(s, "p6", DEATH_SIGABRT);
    assert_true(d.jobs == 0 && d.charged == 0);

    /* p6 gives back what p7 has in flight: the count falls, the name stays. */
    start_as(s, "p6", &a, 1, COUNT_BACK);
    assert_int_equal(deaths_of(s, a).attempts, 4);
    d = death_as(s, "p7", DEATH_SIGABRT);
    assert_true(d.jobs == 1 && d.charged == 1);
    l = deaths_of(s, a);
    assert_true(l.attempts == 4 && l.deaths == 2 && l.cause == DEATH_SIGABRT);

    /* Given back, it is nobody's. */
    start_as(s, "p8", both, 2, COUNT_START);
    start_as(s, "p8", both, 2, COUNT_BACK);
    d = death_as(s, "p8", DEATH_SIGILL);
    assert_int_equal(d.jobs, 0);
    assert_int_equal(deaths_of(s, b).attempts, 1);
}

#endif
