/* sink_sqlite: one row a key whatever is sent twice, lookups, attempts, parking, totals, refusals.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

#include "generated/schema_sqlite.h"
#include "tests/unit/rows_file.h"
#include "tests/unit/sink_deaths.h"
#include "tests/unit/sink_revision.h"
#include "worker/job/text.h"
#include "worker/sink/sink.h"

static struct sink *open_sink(void)
{
    struct sink *s = NULL;
    struct err err = {0};
    struct sqlite_opts opts = {.path = rows_path, .busy_ns = 50000000};
    if (sink_sqlite_open(&s, &opts, &err) < 0)
        fail_msg("%s", err.msg);
    return s;
}

static void run_sql(const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(rows_path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
}

static struct result make_result(const char *id, const char *payload, enum result_status status)
{
    struct result r = {.key = {STR("main"), STR("b"), str_of(id)},
                       .status = status,
                       .answer = str_of(payload),
                       .correct = -1,
                       .attempts = 1,
                       .finished_ns = 1769860800123000000};
    sha256_of(str_of(payload), r.request_sha256);
    sha256_of(str_of(id), r.output_sha256);
    return r;
}

static struct commit_counts commit_rows(struct sink *s, const struct result *rows, size_t n)
{
    const struct result *list[16];
    struct commit_counts counts;
    struct err err = {0};
    for (size_t i = 0; i < n; i++)
        list[i] = &rows[i];
    struct commit c = {.results = list, .n_results = n, .now_ns = 1769860800000000000};
    if (s->ops->commit(s, &c, &counts, &err) < 0)
        fail_msg("%s", err.msg);
    return counts;
}

static void first_row_of_a_key_stays(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    struct result rows[2] = {make_result("a", "one", RESULT_OK),
                             make_result("b", "x", RESULT_INVALID)};
    struct commit_counts counts = commit_rows(s, rows, 2);
    assert_int_equal(counts.inserted, 2);
    counts = commit_rows(s, rows, 2); /* the outcome of a COMMIT was not known: sent again */
    assert_int_equal(counts.inserted, 0);
    assert_int_equal(counts.already, 2);
    rows[0] = make_result("a", "two", RESULT_OK);
    commit_rows(s, rows, 1);
    assert_int_equal(ask("SELECT count(*) FROM results"), 2);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE answer='one'"), 1);
    assert_int_equal(ask("SELECT rows_ok FROM batches WHERE batch_id='b'"), 1);
    assert_int_equal(ask("SELECT rows_invalid FROM batches"), 1);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE "
                         "finished_at='2026-01-31T12:00:00.123Z'"),
                     2);
    sink_close(s);
}

static void lookup_tells_four_states(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    struct result row = make_result("a", "one", RESULT_OK);
    commit_rows(s, &row, 1);
    run_sql("INSERT INTO cancellations (run,batch_id,custom_id) VALUES ('main','b','c'), "
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
    struct sink *s = open_sink();
    check_deaths(s);
    sink_close(s);
}

static void attempts_are_durable_until_the_row(void **state)
{
    (void)state;
    struct err err = {0};
    struct key key = {STR("main"), STR("b"), STR("a")};
    int32_t n = 0;
    for (int start = 1; start <= 3; start++) { /* three processes, each of which dies */
        struct sink *s = open_sink();
        assert_int_equal(s->ops->count_attempts(s, &key, NULL, 1, 1, &n, &err), E_OK);
        assert_int_equal(n, start);
        sink_close(s);
    }
    struct sink *s = open_sink();
    assert_int_equal(s->ops->count_attempts(s, &key, NULL, 1, -1, &n, &err), E_OK);
    assert_int_equal(n, 2);
    uint8_t sha[32] = {0};
    struct lookup l = {.key = key, .sha256 = sha};
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_int_equal(l.attempts, 2);
    struct result row = make_result("a", "one", RESULT_OK);
    commit_rows(s, &row, 1);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 0);
    sink_close(s);
}

/* The row that is there is another request's: nothing is written, and the caller hears of which. */
static void another_requests_row_undoes_the_commit(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    struct err err = {0};
    struct commit_counts counts;
    struct result there = make_result("b", "theirs", RESULT_OK);
    struct result rows[3] = {make_result("c", "one", RESULT_OK),
                             make_result("b", "ours", RESULT_OK), there};
    const struct result *list[3] = {&rows[0], &rows[1], &rows[0]};
    struct progress p = {STR("main"), STR("g"), STR("t"), 0, 77, 2};
    bool conflicts[3] = {false};
    commit_rows(s, &there, 1);
    struct commit c = {.results = list, .n_results = 3, .progress = &p, .n_progress = 1};
    c.conflicts = conflicts;
    c.now_ns = 1769860800000000000;
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), SINK_CONFLICT);
    assert_true(!conflicts[0] && conflicts[1] && !conflicts[2]);
    assert_int_equal(ask("SELECT count(*) FROM results"), 1);
    assert_int_equal(ask("SELECT count(*) FROM partition_progress"), 0);
    list[1] = &rows[2]; /* the same request again is none */
    conflicts[1] = false;
    if (s->ops->commit(s, &c, &counts, &err) != E_OK)
        fail_msg("%s", err.msg);
    assert_false(conflicts[1]);
    assert_int_equal(ask("SELECT count(*) FROM results"), 2);
    sink_close(s);
}

/* A worker that lost its job counts it behind the row of another, and dies. */
static void starts_behind_a_row_are_forgotten(void **state)
{
    (void)state;
    struct err err = {0};
    struct sink *s = open_sink();
    struct result row = make_result("a", "one", RESULT_OK);
    struct key keys[2] = {row.key, {STR("main"), STR("b"), STR("open")}};
    commit_rows(s, &row, 1);
    assert_int_equal(s->ops->count_attempts(s, keys, NULL, 2, COUNT_START, NULL, &err), E_OK);
    assert_int_equal(s->ops->progress_read(s, NULL, 0, &err), E_OK);
    assert_int_equal(s->ops->progress_read(s, NULL, 0, &err), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 1);
    assert_int_equal(ask("SELECT n FROM job_attempts WHERE custom_id='open'"), 1);
    sink_close(s);
}

static void the_first_revision_is_kept(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    check_first_revision(s);
    sink_close(s);
}

/* What a worker of schema 1 has left is there for one of today. */
static void older_files_are_brought_up(void **state)
{
    (void)state;
    run_sql("PRAGMA application_id = 1953656419");
    run_sql(schema_sqlite_001);
    run_sql("INSERT INTO job_attempts (run, batch_id, custom_id, n, last_at) "
            "VALUES ('main','b','a',2,'x')");
    struct sink *s = open_sink();
    struct err err = {0};
    uint8_t sha[32] = {0};
    struct lookup l = {.key = {STR("main"), STR("b"), STR("a")}, .sha256 = sha};
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_int_equal(l.attempts, 2);
    assert_string_equal(l.config_revision, "");
    assert_int_equal(ask("SELECT max(version) FROM schema_migrations"), 2);
    sink_close(s);
}

static void dead_letters_and_progress_share_the_transaction(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    struct err err = {0};
    struct commit_counts counts;
    struct dead_letter d = {.source_key = STR("main/b/b:2"),
                            .key = {STR("main"), STR("b"), STR("a")},
                            .reason = STR("id_conflict"),
                            .payload = {"\0\xff", 2},
                            .seen_ns = 1769860800000000000};
    struct progress p = {STR("main"), STR("file"), STR("b.jsonl"), 0, 77, 2};
    struct commit c = {.dead_letters = &d,
                       .n_dead_letters = 1,
                       .progress = &p,
                       .n_progress = 1,
                       .now_ns = 1769860800000000000};
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_OK);
    assert_int_equal(counts.dead_letters, 1);
    static const int64_t later_s[] = {0, 1, -1}; /* 0: a spool's record, replayed twice */
    for (size_t i = 0; i < TR_COUNT(later_s); i++) {
        d.seen_ns = 1769860800000000000 + later_s[i] * 1000000000;
        assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_OK);
        assert_int_equal(counts.dead_letters, 0);
    }
    assert_int_equal(ask("SELECT count(*) FROM dead_letters WHERE payload=x'00ff' AND "
                         "first_seen='2026-01-31T12:00:00.000Z' AND "
                         "last_seen='2026-01-31T12:00:01.000Z'"),
                     1);
    assert_int_equal(ask("SELECT dead_letters FROM batches"), 1);
    assert_int_equal(ask("SELECT position FROM partition_progress"), 77);
    sink_close(s);
}

struct seen {
    size_t calls, at[4];
    int32_t n[4]; /* by choice */
    char bytes[4][8];
};
static void see(void *ctx, size_t at, const struct parked *p)
{
    struct seen *seen = ctx;
    assert_true(p->choice < 4 && p->state.len < 8);
    seen->calls++;
    seen->at[p->choice] = at;
    seen->n[p->choice] = p->n;
    memcpy(seen->bytes[p->choice], p->state.ptr, p->state.len);
}

static void parked_state_comes_back_and_goes_with_the_row(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    struct err err = {0};
    struct key key = {STR("main"), STR("b"), STR("a")};
    uint8_t sha[32] = {0};
    struct lookup l[2] = {{.key = key, .sha256 = sha},
                          {.key = {STR("main"), STR("b"), STR("z")}, .sha256 = sha}};
    struct parked p[2] = {{.key = key, .choice = 1, .n = 3, .state = {"\1\0\2", 3}, .parked_ns = 1},
                          {.key = key, .choice = 0, .n = 9, .state = {"x", 1}, .parked_ns = 1}};
    assert_int_equal(s->ops->lookup(s, l, 2, &err), E_OK);
    assert_false(l[0].parked);
    /* By another connection: this one must notice. */
    struct sink *other = open_sink();
    assert_int_equal(other->ops->park(other, p, 2, &err), E_OK);
    p[1].n = 4;
    assert_int_equal(other->ops->park(other, &p[1], 1, &err), E_OK);
    sink_close(other);
    assert_int_equal(s->ops->lookup(s, l, 2, &err), E_OK);
    assert_true(l[0].parked && !l[1].parked);
    struct key keys[2] = {l[1].key, key};
    struct seen seen = {0};
    assert_int_equal(s->ops->unpark(s, keys, 2, see, &seen, &err), E_OK);
    assert_int_equal(seen.calls, 2);
    assert_int_equal(seen.at[1], 1);
    assert_int_equal(seen.n[0], 4);
    assert_int_equal(seen.n[1], 3);
    assert_memory_equal(seen.bytes[1], "\1\0\2", 3);
    struct result row = make_result("a", "one", RESULT_OK);
    commit_rows(s, &row, 1);
    assert_int_equal(ask("SELECT count(*) FROM parked"), 0);
    /* A peer was faster: nothing is left behind. */
    assert_int_equal(s->ops->park(s, p, 2, &err), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM parked"), 0);
    sink_close(s);
}

static void cancellations_name_jobs_and_batches(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    struct err err = {0};
    bool out[3] = {true, true, true};
    struct key keys[3] = {{STR("main"), STR("b"), STR("a")},
                          {STR("main"), STR("b"), STR("z")},
                          {STR("main"), STR("c"), STR("a")}};
    assert_int_equal(s->ops->cancelled(s, keys, 3, out, &err), E_OK);
    assert_false(out[0] || out[1] || out[2]);
    run_sql("INSERT INTO cancellations (run, batch_id, custom_id) VALUES ('main','b','z'), "
            "('main','c','')");
    assert_int_equal(s->ops->cancelled(s, keys, 3, out, &err), E_OK);
    assert_true(!out[0] && out[1] && out[2]);
    sink_close(s);
}

static void output_sum_ignores_order_and_processes(void **state)
{
    (void)state;
    struct result rows[3] = {make_result("a", "1", RESULT_OK), make_result("b", "2", RESULT_OK),
                             make_result("c", "3", RESULT_FAILED)};
    struct totals first, second;
    struct err err = {0};
    struct sink *s = open_sink();
    commit_rows(s, rows, 3);
    assert_int_equal(s->ops->totals(s, &first, &err), E_OK);
    sink_close(s);
    run_sql("DELETE FROM results; DELETE FROM batches");
    for (int i = 2; i >= 0; i--) {
        s = open_sink();
        commit_rows(s, &rows[i], 1);
        commit_rows(s, &rows[i], 1);
        assert_int_equal(s->ops->totals(s, &second, &err), E_OK);
        sink_close(s);
    }
    assert_memory_equal(first.outputs_sha256, second.outputs_sha256, 32);
    assert_int_equal(second.rows[RESULT_OK], 2);
    assert_int_equal(second.rows[RESULT_FAILED], 1);
}

static void a_failed_commit_leaves_nothing(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    struct err err = {0};
    struct commit_counts counts;
    struct result rows[2] = {make_result("a", "1", RESULT_OK), make_result("b", "2", RESULT_OK)};
    rows[1].key.run = (struct str){NULL, 0}; /* NOT NULL: the second row cannot be stored */
    const struct result *list[2] = {&rows[0], &rows[1]};
    struct commit c = {.results = list, .n_results = 2, .now_ns = 1};
    assert_int_equal(s->ops->commit(s, &c, &counts, &err), E_FATAL);
    assert_int_equal(ask("SELECT count(*) FROM results"), 0);
    assert_int_equal(ask("SELECT count(*) FROM batches"), 0);
    commit_rows(s, rows, 1); /* and the connection is usable */
    sink_close(s);
}

static void a_locked_database_is_a_retry(void **state)
{
    (void)state;
    struct sink *s = open_sink();
    sqlite3 *other;
    struct err err = {0};
    uint8_t sha[32] = {0};
    struct lookup l = {.key = {STR("main"), STR("b"), STR("a")}, .sha256 = sha};
    assert_int_equal(sqlite3_open(rows_path, &other), SQLITE_OK);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_RETRY);
    sqlite3_close(other);
    err = (struct err){0};
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    sink_close(s);
}

static void expect_refused(const char *want)
{
    struct sink *s = NULL;
    struct err err = {0};
    struct sqlite_opts opts = {.path = rows_path};
    assert_int_equal(sink_sqlite_open(&s, &opts, &err), E_FATAL);
    if (!strstr(err.msg, want))
        fail_msg("want \"%s\" in: %s", want, err.msg);
}

static void foreign_and_newer_files_are_refused(void **state)
{
    (void)state;
    run_sql("CREATE TABLE t (x)");
    expect_refused("not one of tranche's");
    run_sql("DROP TABLE t");
    sink_close(open_sink());
    run_sql("INSERT INTO schema_migrations (version, name) VALUES (99, 'future')");
    expect_refused("has schema 99, this build knows up to 2");
}

static void times_are_written_right(void **state)
{
    (void)state;
    static const struct {
        int64_t s;
        const char *want;
    } cases[] = {{0, "1970-01-01T00:00:00.000Z"},
                 {951782400, "2000-02-29T00:00:00.000Z"},
                 {1709251199, "2024-02-29T23:59:59.000Z"},
                 {4102444800, "2100-01-01T00:00:00.000Z"}};
    char text[32];
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        wall_text(cases[i].s * 1000000000, text);
        assert_string_equal(text, cases[i].want);
    }
}

int main(void)
{
#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, rows_file_set_up, rows_file_tear_down)
    const struct CMUnitTest tests[] = {
        WITH_FILE(first_row_of_a_key_stays),
        WITH_FILE(lookup_tells_four_states),
        WITH_FILE(attempts_are_durable_until_the_row),
        WITH_FILE(the_first_revision_is_kept),
        WITH_FILE(older_files_are_brought_up),
        WITH_FILE(deaths_charge_only_who_was_alone),
        WITH_FILE(another_requests_row_undoes_the_commit),
        WITH_FILE(starts_behind_a_row_are_forgotten),
        WITH_FILE(dead_letters_and_progress_share_the_transaction),
        WITH_FILE(parked_state_comes_back_and_goes_with_the_row),
        WITH_FILE(cancellations_name_jobs_and_batches),
        WITH_FILE(output_sum_ignores_order_and_processes),
        WITH_FILE(a_failed_commit_leaves_nothing),
        WITH_FILE(a_locked_database_is_a_retry),
        WITH_FILE(foreign_and_newer_files_are_refused),
        cmocka_unit_test(times_are_written_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
