/* sink_postgres: a commit by the contract of sink.h on a real server: rows, dead letters, progress.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/postgres_rows.h"
#include "worker/sink/postgres_sink.h"

static void first_row_of_a_key_stays(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct result rows[3] = {make_result("b", STR("x"), RESULT_INVALID),
                             make_result("a", STR("one"), RESULT_OK),
                             make_result("a", STR("twin"), RESULT_OK)};
    struct commit_counts counts = commit_all(s, rows, 3, NULL, 0);
    assert_int_equal(counts.inserted, 2);
    assert_int_equal(counts.already, 1);
    counts = commit_all(s, rows, 3, NULL, 0); /* the outcome of a COMMIT was not known: again */
    assert_int_equal(counts.inserted, 0);
    assert_int_equal(counts.already, 3);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results"), 2);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE answer='one'"), 1);
    assert_int_equal(ask("SELECT rows_ok * 10 + rows_invalid FROM tranche.batches"), 11);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE finished_at="
                         "'2026-01-31T12:00:00.123Z' AND started_at IS NULL AND correct IS NULL"),
                     2);
    struct totals t;
    struct err err = {0};
    uint8_t want[32], more[32];
    unsigned carry = 0;
    sha256_of(STR("a"), want);
    sha256_of(STR("b"), more);
    for (int i = 0; i < 32; i++) {
        carry += (unsigned)want[i] + more[i];
        want[i] = (uint8_t)carry;
        carry >>= 8;
    }
    assert_int_equal(s->ops->totals(s, &t, &err), E_OK);
    assert_int_equal(t.rows[RESULT_OK], 1);
    assert_int_equal(t.rows[RESULT_INVALID], 1);
    assert_memory_equal(t.outputs_sha256, want, 32);
    sink_close(s);
}

/* The row that is there is another request's: nothing is written, and the caller hears of which. */
static void another_requests_row_undoes_the_commit(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    struct commit_counts counts;
    struct result there = make_result("b", STR("theirs"), RESULT_OK);
    struct result rows[3] = {make_result("c", STR("one"), RESULT_OK),
                             make_result("b", STR("ours"), RESULT_OK), there};
    const struct result *list[3] = {&rows[0], &rows[1], &rows[0]};
    struct progress p = {STR("main"), STR("g"), STR("t"), 0, 77, 2};
    bool conflicts[3] = {false};
    commit_all(s, &there, 1, NULL, 0);
    struct commit c = {.results = list, .n_results = 3, .progress = &p, .n_progress = 1};
    c.conflicts = conflicts;
    c.now_ns = now;
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), SINK_CONFLICT);
    assert_true(!conflicts[0] && conflicts[1] && !conflicts[2]);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results"), 1);
    assert_int_equal(ask("SELECT count(*) FROM tranche.partition_progress"), 0);
    list[1] = &rows[2]; /* the same request again is none */
    conflicts[1] = false;
    if (s->ops->commit(s, &c, &counts, &err) != E_OK)
        fail_msg("%s", err.msg);
    assert_false(conflicts[1]);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results"), 2);
    sink_close(s);
}

static void bytes_that_are_no_text(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct result rows[40];
    char ids[40][8];
    for (int i = 0; i < 40; i++) {
        snprintf(ids[i], sizeof ids[i], "id%02d", i);
        rows[i] = make_result(ids[i], STR("fine"), RESULT_OK);
    }
    rows[3].answer = (struct str){"a\0b", 3};
    rows[17].reasoning = STR("\xED\xA0\x80");         /* a surrogate */
    rows[18].request = STR("\xF8\x88\x80\x80");       /* no UTF-8 at all */
    rows[39].key.custom_id = (struct str){"k\0y", 3}; /* not even its key can be stored */
    struct commit_counts counts = commit_all(s, rows, 40, NULL, 0);
    assert_int_equal(counts.inserted, 39);
    assert_int_equal(counts.dead_letters, 1);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE status='ok'"), 36);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE status='failed' AND "
                         "error_code='unstorable' AND error_detail LIKE '%22021%'"),
                     3);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE custom_id='id03' AND "
                         "error_detail LIKE '%answer begins 610062'"),
                     1);
    assert_int_equal(ask("SELECT count(*) FROM tranche.dead_letters WHERE custom_id='k?y' AND "
                         "reason='unstorable'"),
                     1);
    assert_int_equal(ask("SELECT rows_ok * 100 + rows_failed FROM tranche.batches"), 3603);
    counts = commit_all(s, rows, 40, NULL, 0);
    assert_int_equal(counts.inserted + counts.dead_letters, 0);
    assert_int_equal(ask("SELECT rows_ok * 100 + rows_failed FROM tranche.batches"), 3603);
    assert_int_equal(ask("SELECT dead_letters FROM tranche.batches"), 1);
    sink_close(s);
}

static void dead_letters_are_there_once(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct result row = make_result("a", STR("x"), RESULT_OK);
    struct dead_letter d[4] = {
        {.source_key = STR("k2"), .reason = STR("id_conflict"), .payload = STR("\xFF\0\1")},
        {.source_key = STR("k1"), .reason = STR("id_conflict")},
        {.source_key = STR("k2"), .reason = STR("id_conflict")},
        {.source_key = STR("k3"), .reason = STR("r"), .detail = STR("\xFF")}};
    for (int i = 0; i < 4; i++) {
        d[i].key = row.key;
        d[i].seen_ns = now;
    }
    struct commit_counts counts = commit_all(s, &row, 1, d, 4);
    assert_int_equal(counts.dead_letters, 3);
    assert_int_equal(counts.inserted, 1);
    for (int i = 0; i < 4; i++)
        d[i].seen_ns = now + 5000000000;
    counts = commit_all(s, &row, 1, d, 4);
    assert_int_equal(counts.dead_letters, 0);
    assert_int_equal(ask("SELECT count(*) FROM tranche.dead_letters"), 3);
    assert_int_equal(ask("SELECT count(*) FROM tranche.dead_letters WHERE reason='unstorable'"), 1);
    assert_int_equal(ask("SELECT count(*) FROM tranche.dead_letters WHERE last_seen - first_seen = "
                         "interval '5 s'"),
                     3);
    assert_int_equal(ask("SELECT dead_letters FROM tranche.batches"), 3);
    assert_int_equal(ask("SELECT octet_length(payload) FROM tranche.dead_letters WHERE "
                         "source_key='k2'"),
                     3);
    sink_close(s);
}

static void progress_never_goes_back(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    struct commit_counts counts;
    struct progress p[2] = {{STR("main"), STR("g"), STR("t"), 1, 10, 5},
                            {STR("main"), STR("g"), STR("t"), 0, 7, 3}};
    struct commit c = {.progress = p, .n_progress = 2, .now_ns = now};
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_OK);
    p[0].position = 9;
    p[1].position = 8;
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_OK);
    assert_int_equal(
        ask("SELECT sum(position * (1 + 99 * partition)) FROM tranche.partition_progress"),
        8 + 10 * 100);
    sink_close(s);
}

/* 24 rows of 2 MiB in one flush: several statements, one transaction. */
static void large_rows_go_in_pieces(void **state)
{
    (void)state;
    struct sink *s = fresh();
    enum { BYTES = 2 << 20 };
    struct result rows[24];
    char ids[24][8], *text = mem_alloc(BYTES, 1);
    assert_non_null(text);
    memset(text, 'x', BYTES);
    for (int i = 0; i < 24; i++) {
        snprintf(ids[i], sizeof ids[i], "id%02d", i);
        rows[i] = make_result(ids[i], (struct str){text, BYTES}, RESULT_OK);
    }
    assert_int_equal(commit_all(s, rows, 24, NULL, 0).inserted, 24);
    assert_int_equal(ask("SELECT sum(length(answer)) FROM tranche.results"), 24LL * BYTES);
    assert_int_equal(ask("SELECT count(DISTINCT xmin::text) FROM tranche.results"), 1);
    mem_free(text);
    sink_close(s);
}

/* One row among ten that no message can hold (the limit is lowered): it alone is found, and its
 * link is not taken for one that failed. */
static void a_row_over_the_message_limit(void **state)
{
    (void)state;
    enum { BYTES = 300000, ROWS = 10 };
    struct sink *s = fresh();
    struct result rows[ROWS];
    char ids[ROWS][8], *text = mem_alloc(BYTES, 1);
    assert_non_null(text);
    memset(text, 'x', BYTES);
    ((struct sink_postgres *)s)->arrays.bytes_max = BYTES;
    for (int i = 0; i < ROWS; i++) {
        snprintf(ids[i], sizeof ids[i], "id%02d", i);
        rows[i] = make_result(ids[i], (struct str){text, BYTES / 5}, RESULT_OK);
    }
    rows[6].logprobs = (struct str){text, BYTES};
    assert_int_equal(commit_all(s, rows, ROWS, NULL, 0).inserted, ROWS);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE status='ok'"), ROWS - 1);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE custom_id='id06' AND "
                         "error_code='unstorable' AND logprobs IS NULL AND error_detail LIKE "
                         "'%54000: want at most 300000 bytes in a statement, have 3%'"),
                     1);
    assert_int_equal(ask("SELECT rows_ok * 10 + rows_failed FROM tranche.batches"), 91);
    mem_free(text);
    sink_close(s);
}

/* A clock that is set by hand: waits of the policy pass at once. */
static int64_t ahead_ns;
static int64_t ahead_mono(void *ctx)
{
    (void)ctx;
    return clock_mono_ns(clock_system()) + ahead_ns;
}
static int64_t ahead_wall(void *ctx)
{
    (void)ctx;
    return clock_wall_ns(clock_system());
}
static void ahead_sleep(void *ctx, int64_t ns)
{
    (void)ctx;
    ahead_ns += ns;
}

/* A right that is gone: every 30 s again, and the end after ten minutes; one success in between
 * begins them anew. Nothing is blamed on the row. */
static void configuration_faults_have_ten_minutes(void **state)
{
    (void)state;
    static const struct clock ahead = {ahead_mono, ahead_wall, ahead_sleep, NULL};
    const struct clock *usual = opts.clock;
    opts.clock = &ahead;
    struct sink *s = fresh();
    opts.clock = usual;
    run_sql("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
            "'injected' USING ERRCODE = '42501'; END $$");
    struct result r = make_result("a", STR("x"), RESULT_OK);
    const struct result *at = &r;
    struct commit c = {.results = &at, .n_results = 1, .now_ns = now};
    for (int round = 0; round < 2; round++) {
        int64_t waited = 0;
        int rc;
        run_sql("CREATE TRIGGER refuse BEFORE INSERT ON tranche.results EXECUTE FUNCTION refuse()");
        for (;;) {
            struct commit_counts counts;
            struct err err = {0};
            rc = s->ops->commit(s, &c, &counts, &err);
            assert_string_equal(err.type, "database_config");
            if (rc != E_RETRY || (round == 0 && waited >= 570000000000))
                break;
            assert_true(s->retry_ns == 30000000000);
            ahead_ns += s->retry_ns;
            waited += s->retry_ns;
        }
        assert_int_equal(rc, round == 0 ? E_RETRY : E_FATAL);
        assert_true(waited >= 570000000000 && waited <= 600000000000);
        run_sql("DROP TRIGGER refuse ON tranche.results");
        if (round == 0)
            assert_int_equal(commit_all(s, &r, 1, NULL, 0).inserted, 1);
    }
    assert_int_equal(ask("SELECT count(*) FROM tranche.results WHERE status='ok'"), 1);
    run_sql("DROP FUNCTION refuse");
    sink_close(s);
}

/* A server that needs 50 ms a row, and a client that waits a second for a statement: the flush goes
 * through in the end, though lookups succeed between its tries, and each row is there once. */
static void pieces_shrink_where_no_answer_comes_in_time(void **state)
{
    enum { ROWS = 60, TRIES = 20 };
    (void)state;
    struct sink *s = fresh();
    struct result rows[ROWS];
    const struct result *list[ROWS];
    char ids[ROWS][8];
    struct commit_counts counts;
    struct err err = {0};
    int rc = E_RETRY, tries = 0;
    for (int i = 0; i < ROWS; i++) {
        snprintf(ids[i], sizeof ids[i], "id%02d", i);
        rows[i] = make_result(ids[i], STR("x"), RESULT_OK);
        list[i] = &rows[i];
    }
    struct commit c = {.results = list, .n_results = ROWS, .now_ns = now};
    ((struct sink_postgres *)s)->pg.statement_ns = 1000000000;
    run_sql("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM "
            "pg_sleep(0.05); RETURN NEW; END $$");
    run_sql("CREATE TRIGGER slow BEFORE INSERT ON tranche.results FOR EACH ROW EXECUTE FUNCTION "
            "slow()");
    for (; rc == E_RETRY && tries < TRIES; tries++) {
        struct lookup l[1] = {{.key = rows[0].key, .sha256 = rows[0].request_sha256}};
        err = (struct err){0};
        rc = s->ops->commit(s, &c, &counts, &err);
        for (int i = 0; i < 12 && rc == E_RETRY; i++)
            (void)s->ops->lookup(s, l, 1, &(struct err){0});
    }
    run_sql("DROP TRIGGER slow ON tranche.results");
    run_sql("DROP FUNCTION slow");
    if (rc < 0)
        fail_msg("%d tries: %s", tries, err.msg);
    assert_true(tries > 1);
    assert_true(((struct sink_postgres *)s)->policy.piece_rows < ROWS);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results"), ROWS);
    assert_int_equal(ask("SELECT rows_ok FROM tranche.batches"), ROWS);
    sink_close(s);
}

/* A server that stands still, as far as we can see: the end that another thread sets is kept. */
static void no_call_waits_beyond_its_end(void **state)
{
    (void)state;
    const struct clock *clock = clock_system();
    struct sink *s = fresh();
    struct err err = {0};
    struct result row = make_result("a", STR("x"), RESULT_OK);
    const struct result *list[1] = {&row};
    struct commit c = {.results = list, .n_results = 1, .now_ns = now};
    struct commit_counts counts;
    run_sql("BEGIN");
    run_sql("LOCK TABLE tranche.results");
    int64_t start = clock_mono_ns(clock);
    atomic_store(&s->until_ns, start + 500000000);
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_RETRY);
    assert_non_null(strstr(err.msg, "no answer to a statement in time"));
    assert_true(clock_mono_ns(clock) - start < 10000000000); /* the server's own limit for a lock */
    run_sql("ROLLBACK");
    err = (struct err){0};
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_RETRY); /* the time is over */
    atomic_store(&s->until_ns, 0);
    assert_int_equal(commit_all(s, &row, 1, NULL, 0).inserted, 1);
    sink_close(s);
}

static void refuse_as_too_slow(const char *table)
{
    char sql[512];
    run_sql("DROP SEQUENCE IF EXISTS public.tries CASCADE");
    run_sql("CREATE SEQUENCE public.tries");
    run_sql("CREATE OR REPLACE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "PERFORM nextval('public.tries'); RAISE EXCEPTION 'injected' USING ERRCODE = '57014'; "
            "END $$");
    snprintf(sql, sizeof sql,
             "CREATE TRIGGER slow BEFORE INSERT ON tranche.%s FOR EACH STATEMENT EXECUTE FUNCTION "
             "public.slow()",
             table);
    run_sql(sql);
}

/* A minute each: what has no smaller pieces is not sent again before others had their turn. */
static void a_timeout_asks_for_smaller_pieces_only_where_there_are_any(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct sql_policy *policy = &((struct sink_postgres *)s)->policy;
    struct result rows[3] = {make_result("a", STR("x"), RESULT_OK),
                             make_result("b", STR("x"), RESULT_OK),
                             make_result("c", STR("x"), RESULT_OK)};
    const struct result *list[3] = {&rows[0], &rows[1], &rows[2]};
    struct commit c = {.results = list, .n_results = 3, .now_ns = now};
    struct commit_counts counts;
    struct err err = {0};
    refuse_as_too_slow("job_attempts");
    assert_int_equal(s->ops->count_attempts(s, &rows[0].key, NULL, 1, COUNT_START, NULL, &err),
                     E_RETRY);
    assert_int_equal(ask("SELECT last_value FROM public.tries"), 1);
    assert_int_equal(policy->piece_rows, PIECE_ROWS_MAX);
    assert_true(s->retry_ns > 0);
    run_sql("DROP TRIGGER slow ON tranche.job_attempts");
    refuse_as_too_slow("results");
    err = (struct err){0};
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_RETRY);
    assert_int_equal(ask("SELECT last_value FROM public.tries"), 2); /* all three, then the first */
    assert_int_equal(policy->piece_rows, 1);
    policy->piece_rows = PIECE_ROWS_MAX;
    c.n_results = 1;
    err = (struct err){0};
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_RETRY);
    assert_int_equal(ask("SELECT last_value FROM public.tries"), 3);
    assert_int_equal(policy->piece_rows, PIECE_ROWS_MAX);
    run_sql("DROP TRIGGER slow ON tranche.results");
    run_sql("DROP SEQUENCE public.tries CASCADE");
    run_sql("DROP FUNCTION public.slow");
    assert_int_equal(commit_all(s, rows, 3, NULL, 0).inserted, 3);
    sink_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_row_of_a_key_stays),
        cmocka_unit_test(another_requests_row_undoes_the_commit),
        cmocka_unit_test(bytes_that_are_no_text),
        cmocka_unit_test(dead_letters_are_there_once),
        cmocka_unit_test(progress_never_goes_back),
        cmocka_unit_test(large_rows_go_in_pieces),
        cmocka_unit_test(a_row_over_the_message_limit),
        cmocka_unit_test(pieces_shrink_where_no_answer_comes_in_time),
        cmocka_unit_test(configuration_faults_have_ten_minutes),
        cmocka_unit_test(no_call_waits_beyond_its_end),
        cmocka_unit_test(a_timeout_asks_for_smaller_pieces_only_where_there_are_any),
    };
    return cmocka_run_group_tests(tests, group_up, group_down);
}
