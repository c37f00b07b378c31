/* redis_lease: against a plain list under random operations; growth, sweeping, listing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "worker/source/redis_job.h"
#include "worker/source/redis_lease.h"

enum { IDS = 700, STEPS = 300000 };

static struct redis_id id_of(size_t i)
{
    return (struct redis_id){1700000000000 + i / 3, i % 3};
}

static size_t counted(const enum lease_state *model, enum lease_state state)
{
    size_t n = 0;
    for (size_t i = 0; i < IDS; i++)
        n += model[i] == state;
    return n;
}

static void agrees_with_a_plain_list(void **state)
{
    (void)state;
    static enum lease_state model[IDS];
    struct lease_table t;
    struct err err = {0};
    unsigned seed = 7;
    assert_int_equal(lease_open(&t, &err), E_OK);
    for (int step = 0; step < STEPS; step++) {
        size_t i = (size_t)rand_r(&seed) % IDS;
        enum lease_state to = (enum lease_state)(rand_r(&seed) % 4);
        assert_int_equal(lease_find(&t, id_of(i)), model[i]);
        assert_true(lease_set(&t, id_of(i), to));
        model[i] = to;
        if (step % 997 == 0) {
            assert_int_equal(lease_sweep(&t), counted(model, LEASE_LOST));
            for (size_t k = 0; k < IDS; k++)
                model[k] = model[k] == LEASE_LOST ? LEASE_NONE : model[k];
        }
        if (step % 499 == 0) {
            assert_int_equal(t.held, counted(model, LEASE_HELD));
            assert_int_equal(t.owed, counted(model, LEASE_OWED));
            assert_int_equal(t.n, IDS - counted(model, LEASE_NONE));
            for (size_t k = 0; k < IDS; k++)
                assert_int_equal(lease_find(&t, id_of(k)), model[k]);
        }
    }
    lease_close(&t);
}

static void grows_when_asked_and_only_then(void **state)
{
    (void)state;
    struct lease_table t;
    struct err err = {0};
    assert_int_equal(lease_open(&t, &err), E_OK);
    size_t cap = t.cap;
    for (size_t i = 0; i < cap / 2; i++)
        assert_true(lease_set(&t, id_of(i), LEASE_HELD));
    assert_false(lease_set(&t, id_of(cap), LEASE_HELD));
    assert_true(lease_set(&t, id_of(0), LEASE_OWED)); /* a change needs no room */
    assert_int_equal(lease_reserve(&t, 1, &err), E_OK);
    assert_true(t.cap > cap);
    assert_true(lease_set(&t, id_of(cap), LEASE_HELD));
    for (size_t i = 0; i < cap / 2; i++)
        assert_int_equal(lease_find(&t, id_of(i)), i ? LEASE_HELD : LEASE_OWED);
    assert_int_equal(t.held, cap / 2);
    assert_int_equal(t.owed, 1);
    lease_close(&t);
}

static void lists_each_once_in_pieces(void **state)
{
    (void)state;
    struct lease_table t;
    struct err err = {0};
    static int seen[IDS];
    struct redis_id ids[64];
    assert_int_equal(lease_open(&t, &err), E_OK);
    for (size_t i = 0; i < IDS; i++)
        assert_true(lease_set(&t, id_of(i), i % 2 ? LEASE_HELD : LEASE_OWED));
    size_t n, cursor = 0;
    while ((n = lease_list(&t, LEASE_HELD, &cursor, ids, TR_COUNT(ids))) > 0)
        for (size_t k = 0; k < n; k++)
            seen[(ids[k].ms - 1700000000000) * 3 + ids[k].seq]++;
    for (size_t i = 0; i < IDS; i++)
        assert_int_equal(seen[i], i % 2);
    lease_close(&t);
}

static void an_entry_becomes_a_job_and_is_found_again(void **state)
{
    (void)state;
    struct redis_entry e = {
        .id = {1700000000123, 4}, .id_text = STR("1700000000123-4"), .job = STR("{\"id\":1}")};
    struct job *job = redis_job_open(&e, "a/b", STR("\"a/b\""), 1800000000000000000);
    assert_non_null(job);
    assert_true(str_eq(job->origin, STR("a/b/1700000000123-4")));
    assert_true(str_eq(job->place, STR("\"stream\":\"a/b\",\"id\":\"1700000000123-4\"")));
    assert_true(str_eq(job->message, e.job) && job->message_full == e.job.len);
    assert_true(job->queued_ns == 1700000000123000000 && job->err.code == 0);
    assert_true(redis_id_eq(redis_job_id(job), e.id));
    job_close(job);
    e.job = (struct str){NULL, 0};
    e.id = (struct redis_id){5, 0};
    job = redis_job_open(&e, "s", STR("\"s\""), 1800000000000000000);
    assert_true(job->queued_ns == 1800000000000000000); /* an id that is no time */
    assert_string_equal(job->err.type, "missing_field");
    job_close(job);
}

static void a_long_message_is_cut(void **state)
{
    (void)state;
    char *big = mem_alloc(JOB_BYTES_MAX + 1, 1);
    struct redis_entry e = {.id = {1, 1}, .id_text = STR("1-1"), .job = {big, JOB_BYTES_MAX + 1}};
    struct job *job = redis_job_open(&e, "s", STR("\"s\""), 1);
    assert_int_equal(job->message.len, 1024);
    assert_int_equal(job->message_full, JOB_BYTES_MAX + 1);
    job_close(job);
    mem_free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_a_plain_list),
        cmocka_unit_test(grows_when_asked_and_only_then),
        cmocka_unit_test(lists_each_once_in_pieces),
        cmocka_unit_test(an_entry_becomes_a_job_and_is_found_again),
        cmocka_unit_test(a_long_message_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
