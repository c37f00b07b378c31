/* sink_postgres: the contract of sink.h on a real server, whose URL stands in TRANCHE_TEST_POSTGRES
 * (tests/run/postgres_server.py starts one; tests/run/test_postgres.py runs this there). Without it
 * each case is skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "tests/unit/sink_deaths.h"
#include "worker/sink/migrate.h"
#include "worker/sink/sink_postgres.h"

static struct postgres_opts opts;
static PGconn *direct;
static const int64_t now = 1769860800123000000;

static int group_up(void **state)
{
    (void)state;
    struct err err = {0};
    int from, to;
    opts = (struct postgres_opts){
        .url = getenv("TRANCHE_TEST_POSTGRES"), .connect_ns = 5000000000, .clock = clock_system()};
    if (!opts.url)
        return 0;
    if (migrate_run(&opts, &from, &to, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    direct = PQconnectdb(opts.url);
    return PQstatus(direct) != CONNECTION_OK;
}

static int group_down(void **state)
{
    (void)state;
    PQfinish(direct);
    return 0;
}

static void run_sql(const char *sql)
{
    PGresult *r = PQexec(direct, sql);
    if (PQresultStatus(r) != PGRES_COMMAND_OK && PQresultStatus(r) != PGRES_TUPLES_OK)
        fail_msg("%s: %s", sql, PQerrorMessage(direct));
    PQclear(r);
}

static struct sink *fresh(void)
{
    struct sink *s = NULL;
    struct err err = {0};
    if (!opts.url)
        skip();
    run_sql("TRUNCATE tranche.results, tranche.batches, tranche.dead_letters, tranche.parked, "
            "tranche.job_attempts, tranche.partition_progress, tranche.cancellations");
    if (sink_postgres_open(&s, &opts, &err) < 0)
        fail_msg("%s", err.msg);
    return s;
}

static int64_t ask(const char *sql)
{
    PGresult *r = PQexec(direct, sql);
    if (PQresultStatus(r) != PGRES_TUPLES_OK || PQntuples(r) != 1)
        fail_msg("%s: %s", sql, PQerrorMessage(direct));
    int64_t n = strtoll(PQgetvalue(r, 0, 0), NULL, 10);
    PQclear(r);
    return n;
}

static struct result make_result(const char *id, struct str answer, enum result_status status)
{
    struct result r = {.key = {STR("main"), STR("b"), str_of(id)},
                       .status = status,
                       .answer = answer,
                       .correct = -1,
                       .attempts = 1,
                       .finished_ns = now};
    sha256_of(answer, r.request_sha256);
    sha256_of(str_of(id), r.output_sha256);
    return r;
}

static struct commit_counts commit_all(struct sink *s, const struct result *rows, size_t n,
                                       const struct dead_letter *letters, size_t n_letters)
{
    const struct result *list[64];
    struct commit_counts counts;
    struct err err = {0};
    for (size_t i = 0; i < n; i++)
        list[i] = &rows[i];
    struct commit c = {.results = list,
                       .n_results = n,
                       .dead_letters = letters,
                       .n_dead_letters = n_letters,
                       .now_ns = now};
    if (s->ops->commit(s, &c, &counts, &err) < 0)
        fail_msg("%s", err.msg);
    return counts;
}

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

static void lookup_tells_four_states(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct result row = make_result("a", STR("one"), RESULT_OK);
    commit_all(s, &row, 1, NULL, 0);
    run_sql("INSERT INTO tranche.cancellations (run,batch_id,custom_id) VALUES ('main','b','c'), "
            "('main','gone','')");
    uint8_t one[32], two[32];
    sha256_of(STR("one"), one);
    sha256_of(STR("two"), two);
    struct lookup l[] = {{.key = {STR("main"), STR("b"), STR("a")}, .sha256 = one},
                         {.key = {STR("main"), STR("b"), STR("a")}, .sha256 = two},
                         {.key = {STR("main"), STR("b"), STR("c")}, .sha256 = one},
                         {.key = {STR("main"), STR("gone"), STR("z")}, .sha256 = one},
                         {.key = {STR("blue"), STR("b"), STR("a")}, .sha256 = two}};
    static const enum lookup_state want[] = {LOOKUP_SAME, LOOKUP_CONFLICT, LOOKUP_CANCELLED,
                                             LOOKUP_CANCELLED, LOOKUP_ABSENT};
    struct err err = {0};
    assert_int_equal(s->ops->lookup(s, l, TR_COUNT(l), &err), E_OK);
    for (size_t i = 0; i < TR_COUNT(l); i++)
        assert_int_equal(l[i].state, want[i]);
    sink_close(s);
}

static void deaths_charge_only_who_was_alone(void **state)
{
    (void)state;
    struct sink *s = fresh();
    check_deaths(s);
    sink_close(s);
}

static void attempts_are_counted_until_the_row(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    uint8_t sha[32] = {0};
    int32_t n[4];
    /* Out of order, and one twice. */
    struct key keys[4] = {{STR("main"), STR("b"), STR("z")},
                          {STR("main"), STR("b"), STR("a")},
                          {STR("main"), STR("b"), STR("z")},
                          {STR("main"), STR("a"), STR("q")}};
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 4, 1, n, &err), E_OK);
    assert_true(n[0] == 2 && n[1] == 1 && n[2] == 2 && n[3] == 1);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 2, 1, n, &err), E_OK);
    assert_true(n[0] == 3 && n[1] == 2);
    struct lookup l = {.key = keys[0], .sha256 = sha};
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_int_equal(l.attempts, 3);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 2, -1, n, &err), E_OK);
    assert_true(n[0] == 2 && n[1] == 1);
    assert_int_equal(s->ops->count_attempts(s, &keys[3], NULL, 1, -1, NULL, &err), E_OK);
    assert_int_equal(s->ops->count_attempts(s, &keys[3], NULL, 1, -1, n, &err), E_OK);
    assert_int_equal(n[0], 0); /* never below */
    struct result rows[2] = {make_result("z", STR("x"), RESULT_OK),
                             make_result("a", STR("y"), RESULT_OK)};
    commit_all(s, rows, 2, NULL, 0);
    assert_int_equal(ask("SELECT count(*) FROM tranche.job_attempts WHERE batch_id='b'"), 0);
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

/* A worker that lost its job counts it behind the row of another, and dies. */
static void starts_behind_a_row_are_forgotten(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    struct result row = make_result("a", STR("y"), RESULT_OK);
    struct key keys[2] = {row.key, {STR("main"), STR("b"), STR("open")}};
    commit_all(s, &row, 1, NULL, 0);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 2, COUNT_START, NULL, &err), E_OK);
    assert_int_equal(s->ops->progress_read(s, NULL, 0, &err), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM tranche.job_attempts"), 1);
    assert_int_equal(ask("SELECT n FROM tranche.job_attempts WHERE custom_id='open'"), 1);
    sink_close(s);
}

/* The revision of the first counted start stays until the row, also where starts come back. */
static void the_first_revision_is_kept(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    struct text found = {0};
    uint8_t sha[32] = {0};
    struct key key = {STR("main"), STR("b"), STR("a")};
    struct str first = STR("0123456789abcdef"), second = STR("fedcba9876543210");
    struct lookup l = {.key = key, .sha256 = sha};
    assert_int_equal(s->ops->config_write(s, first, STR("{\"max_tokens\":7}"), &err), E_OK);
    assert_int_equal(s->ops->config_write(s, first, STR("another"), &err), E_OK);
    assert_int_equal(s->ops->config_read(s, first, &found, &err), E_OK);
    assert_true(str_eq(text_view(&found), STR("{\"max_tokens\":7}")));
    assert_int_equal(s->ops->config_read(s, second, &found, &err), E_OK);
    assert_int_equal(found.len, 0);
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_string_equal(l.config_revision, "");
    assert_int_equal(s->ops->count_attempts(s, &key, &first, 1, COUNT_START, NULL, &err), E_OK);
    assert_int_equal(s->ops->count_attempts(s, &key, NULL, 1, COUNT_BACK, NULL, &err), E_OK);
    assert_int_equal(s->ops->count_attempts(s, &key, &second, 1, COUNT_ALONE, NULL, &err), E_OK);
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_string_equal(l.config_revision, "0123456789abcdef");
    assert_int_equal(l.attempts, 1);
    text_close(&found);
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

struct seen {
    struct str want; /* of choice 1 */
    size_t calls;
    int32_t n[2]; /* by choice */
};
static void see(void *ctx, size_t at, const struct parked *p)
{
    struct seen *seen = ctx;
    seen->calls++;
    assert_int_equal(at, 1);
    assert_true(p->choice == 0 || p->choice == 1);
    seen->n[p->choice] = p->n;
    if (p->choice == 1) {
        assert_int_equal(p->state.len, seen->want.len);
        assert_memory_equal(p->state.ptr, seen->want.ptr, seen->want.len);
        assert_true(str_eq(p->worker, STR("w")) && !p->config_revision.ptr);
    }
}

static void cancellations_name_jobs_and_batches(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    bool out[3] = {true, true, true};
    struct key keys[3] = {{STR("main"), STR("b"), STR("a")},
                          {STR("main"), STR("b"), STR("z")},
                          {STR("main"), STR("c"), STR("a")}};
    assert_int_equal(s->ops->cancelled(s, keys, 3, out, &err), E_OK);
    assert_false(out[0] || out[1] || out[2]);
    run_sql("INSERT INTO tranche.cancellations (run, batch_id, custom_id) VALUES "
            "('main','b','z'), ('main','c','')");
    assert_int_equal(s->ops->cancelled(s, keys, 3, out, &err), E_OK);
    assert_true(!out[0] && out[1] && out[2]);
    run_sql("TRUNCATE tranche.cancellations");
    sink_close(s);
}

static void parked_states_come_back_whole(void **state)
{
    (void)state;
    struct sink *s = fresh();
    struct err err = {0};
    char bytes[300];
    for (int i = 0; i < 300; i++)
        bytes[i] = (char)i;
    struct key key = {STR("main"), STR("b"), STR("a")};
    struct parked p[2] = {{.key = key,
                           .choice = 1,
                           .n = 70000,
                           .state = {bytes, 300},
                           .worker = STR("w"),
                           .parked_ns = now},
                          {.key = key, .choice = 0, .n = 1, .state = {bytes, 1}, .parked_ns = now}};
    assert_int_equal(s->ops->park(s, p, 2, &err), E_OK);
    p[1].n = 2;
    assert_int_equal(s->ops->park(s, &p[1], 1, &err), E_OK);
    uint8_t sha[32] = {0};
    struct key keys[2] = {{STR("main"), STR("b"), STR("z")}, key};
    struct lookup l[2] = {{.key = keys[0], .sha256 = sha}, {.key = keys[1], .sha256 = sha}};
    assert_int_equal(s->ops->lookup(s, l, 2, &err), E_OK);
    assert_true(!l[0].parked && l[1].parked);
    struct seen seen = {.want = {bytes, 300}};
    assert_int_equal(s->ops->unpark(s, keys, 2, see, &seen, &err), E_OK);
    assert_int_equal(seen.calls, 2);
    assert_int_equal(seen.n[0], 2);
    assert_int_equal(seen.n[1], 70000);
    struct result row = make_result("a", STR("x"), RESULT_OK);
    commit_all(s, &row, 1, NULL, 0);
    assert_int_equal(ask("SELECT count(*) FROM tranche.parked"), 0);
    /* A peer was faster: nothing is left behind. */
    assert_int_equal(s->ops->park(s, p, 2, &err), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM tranche.parked"), 0);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_row_of_a_key_stays),
        cmocka_unit_test(lookup_tells_four_states),
        cmocka_unit_test(attempts_are_counted_until_the_row),
        cmocka_unit_test(the_first_revision_is_kept),
        cmocka_unit_test(deaths_charge_only_who_was_alone),
        cmocka_unit_test(another_requests_row_undoes_the_commit),
        cmocka_unit_test(starts_behind_a_row_are_forgotten),
        cmocka_unit_test(bytes_that_are_no_text),
        cmocka_unit_test(dead_letters_are_there_once),
        cmocka_unit_test(cancellations_name_jobs_and_batches),
        cmocka_unit_test(parked_states_come_back_whole),
        cmocka_unit_test(progress_never_goes_back),
        cmocka_unit_test(large_rows_go_in_pieces),
        cmocka_unit_test(configuration_faults_have_ten_minutes),
    };
    return cmocka_run_group_tests(tests, group_up, group_down);
}
