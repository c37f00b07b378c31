/* worker: the protocol with a source and a sink that misbehave. Every ack is checked, when it
 * happens, against the database itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/breaker.h"
#include "worker/outstanding.h"
#include "worker/worker.h"

static char path[64];

static int64_t ask(const char *sql);

/* ---- a source in memory ---- */
struct fake_source {
    struct source source;
    const char *const *lines;
    int n, next, stall_at; /* stall_at: no more lines behind it, and no end */
    int acked, released, acked_without_row;
    int acked_beyond; /* times that the acks reached further than the stored position */
    bool done[1024];  /* by sequence: acknowledged */
    int prefix;       /* all before it are */
    sqlite3 *db;
    sqlite3_stmt *row, *position;
};

static int fake_claim(struct source *source, const struct source_budget *budget, struct job **out,
                      int cap, int64_t timeout_ns, bool *drained, struct err *err)
{
    struct fake_source *f = (struct fake_source *)source;
    int n = 0;
    (void)err;
    while (n < cap && n < budget->rows && f->next < f->n && f->next != f->stall_at) {
        const char *line = f->lines[f->next];
        struct job *job = job_open(strlen(line));
        memcpy((char *)(uintptr_t)job->message.ptr, line, strlen(line));
        job_printf(job, &job->origin, "b:%d", f->next + 1);
        job_printf(job, &job->place, "\"line\":%d", f->next + 1);
        job->sequence = f->next++;
        job->position = job->sequence + 1;
        out[n++] = job;
    }
    *drained = f->next == f->n;
    if (n == 0 && !*drained)
        clock_sleep_ns(clock_system(), TR_MIN(timeout_ns, (int64_t)5000000));
    return n;
}
static int fake_service(struct source *s, struct source_service *out, struct err *err)
{
    (void)s;
    (void)err;
    *out = (struct source_service){0};
    return E_OK;
}
static int fake_ack(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    struct fake_source *f = (struct fake_source *)source;
    (void)err;
    for (size_t i = 0; i < n; i++) {
        sqlite3_reset(f->row);
        sqlite3_bind_text(f->row, 1, jobs[i]->custom_id.ptr, (int)jobs[i]->custom_id.len,
                          SQLITE_STATIC);
        f->acked_without_row += sqlite3_step(f->row) != SQLITE_ROW;
        sqlite3_reset(f->row);
        f->acked++;
        f->done[jobs[i]->sequence] = true;
    }
    while (f->prefix < f->n && f->done[f->prefix])
        f->prefix++;
    sqlite3_reset(f->position);
    int64_t stored =
        sqlite3_step(f->position) == SQLITE_ROW ? sqlite3_column_int64(f->position, 0) : 0;
    sqlite3_reset(f->position);
    f->acked_beyond += f->prefix > stored;
    return E_OK;
}
static int fake_release(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    (void)jobs;
    (void)err;
    ((struct fake_source *)source)->released += (int)n;
    return E_OK;
}
static int64_t fake_position(const struct source *s, int32_t partition)
{
    (void)partition;
    return ((const struct fake_source *)s)->next;
}
static void fake_lag(const struct source *s, struct source_lag *out)
{
    (void)s;
    *out = (struct source_lag){
        .messages = -1, .bytes = -1, .bytes_total = -1, .pending = -1, .joined = true};
}
static void fake_close(struct source *s)
{
    (void)s;
}

/* ---- a sink that fails on demand, over the real one ---- */
struct faulty_sink {
    struct sink sink;
    struct sink *real;
    int before, after; /* commits that answer E_RETRY without, or with, having been done */
    int fatal_at;      /* the commit that answers E_FATAL; 0: none */
    int commits;
    int down_at, down_for; /* from this commit on, so many calls of any kind find nobody */
};
/* Whether the database is away for this call. */
static bool down(struct faulty_sink *f)
{
    if (f->commits < f->down_at || f->down_for == 0)
        return false;
    f->sink.retry_ns = 5000000;
    f->down_for--;
    return true;
}
static int faulty_lookup(struct sink *s, struct lookup *l, size_t n, struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    if (down(f))
        return err_set(err, E_RETRY, "injected away");
    return f->real->ops->lookup(f->real, l, n, err);
}
/* Everything counted before must have its row by now where a suspect is among those that come. */
static int suspects_met, suspects_alone, group_max, group_mixed, group_unsettled;
static void note_group(const struct key *k, size_t n, int what)
{
    int suspects = 0;
    for (size_t i = 0; i < n; i++)
        suspects += k[i].custom_id.ptr[0] == 's';
    if (what == COUNT_BACK || suspects == 0)
        return;
    suspects_met += suspects;
    suspects_alone += what == COUNT_ALONE;
    group_max = TR_MAX(group_max, suspects);
    group_mixed += suspects != (int)n;
    group_unsettled += ask("SELECT count(*) FROM job_attempts WHERE process IS NOT NULL") > 0;
}
static int faulty_count(struct sink *s, const struct key *k, size_t n, int delta, int32_t *a,
                        struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    note_group(k, n, delta);
    if (down(f))
        return err_set(err, E_RETRY, "injected away");
    return f->real->ops->count_attempts(f->real, k, n, delta, a, err);
}
static int faulty_death(struct sink *s, struct death *d, struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    return f->real->ops->record_death(f->real, d, err);
}
static int faulty_commit(struct sink *s, const struct commit *c, struct commit_counts *counts,
                         struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    f->commits++;
    if (f->fatal_at == f->commits)
        return err_set(err, E_FATAL, "injected");
    if (down(f))
        return err_set(err, E_RETRY, "injected away");
    if (f->before > 0 && f->before--)
        return err_set(err, E_RETRY, "injected before");
    int rc = f->real->ops->commit(f->real, c, counts, err);
    if (f->after > 0 && f->after--)
        return err_set(err, E_RETRY, "injected after");
    return rc;
}
static int faulty_park(struct sink *s, const struct parked *p, size_t n, struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    return f->real->ops->park(f->real, p, n, err);
}
static int faulty_unpark(struct sink *s, const struct key *k, size_t n, unpark_take *take,
                         void *ctx, struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    return f->real->ops->unpark(f->real, k, n, take, ctx, err);
}
static int faulty_cancelled(struct sink *s, const struct key *k, size_t n, bool *out,
                            struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    return f->real->ops->cancelled(f->real, k, n, out, err);
}
static int faulty_totals(struct sink *s, struct totals *t, struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    return f->real->ops->totals(f->real, t, err);
}

/* ---- one run ---- */
static atomic_int stop_flag;
static void on_alarm(int number)
{
    stop_flag = number == SIGALRM;
}
struct setting {
    const char *const *lines;
    int n, before, after, fatal_at, stall_at, down_at, down_for;
    int64_t spool_bytes; /* 0: no spool */
    double fail_share, breaker;
    int64_t step_ns, grace_ns, claim_rows;
    int64_t fault_at; /* step at which the first engine is lost */
    int engines;      /* 0: one */
    int32_t flush_rows;
    const atomic_int *stop;
};
static struct fake_source source;
static struct worker_summary summary;
static struct err error;
static char spool_dir[64];
static struct spool *spool;
static int64_t spool_left;

static int run(const struct setting *set)
{
    static const struct source_ops source_ops = {.name = "fake",
                                                 .claim = fake_claim,
                                                 .service = fake_service,
                                                 .ack = fake_ack,
                                                 .release = fake_release,
                                                 .position = fake_position,
                                                 .lag = fake_lag,
                                                 .close = fake_close};
    static const struct sink_ops sink_ops = {.name = "faulty",
                                             .lookup = faulty_lookup,
                                             .count_attempts = faulty_count,
                                             .record_death = faulty_death,
                                             .commit = faulty_commit,
                                             .park = faulty_park,
                                             .unpark = faulty_unpark,
                                             .cancelled = faulty_cancelled,
                                             .totals = faulty_totals};
    struct faulty_sink sink = {.sink.ops = &sink_ops,
                               .before = set->before,
                               .after = set->after,
                               .fatal_at = set->fatal_at,
                               .down_at = set->down_at,
                               .down_for = set->down_for};
    struct spool_opts spool_opts = {
        .dir = spool_dir, .bytes = set->spool_bytes, .owner = {1, STR("fake"), STR("main")}};
    spool = NULL;
    struct sqlite_opts sqlite = {.path = path};
    error = (struct err){0};
    assert_int_equal(sink_sqlite_open(&sink.real, &sqlite, &error), E_OK);
    sink.real->process = STR("here");
    if (set->spool_bytes)
        assert_int_equal(spool_open(&spool, &spool_opts, &error), E_OK);
    source = (struct fake_source){.source = {&source_ops, "b.jsonl", "b"},
                                  .lines = set->lines,
                                  .n = set->n,
                                  .stall_at = set->stall_at ? set->stall_at : -1};
    assert_int_equal(sqlite3_open(path, &source.db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(source.db,
                                        "SELECT 1 FROM results WHERE custom_id=?1 UNION ALL "
                                        "SELECT 1 FROM dead_letters WHERE custom_id=?1",
                                        -1, &source.row, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(source.db,
                                        "SELECT coalesce(max(position), 0) FROM partition_progress",
                                        -1, &source.position, NULL),
                     SQLITE_OK);
    struct loaded_model model = {.rules = {.think_open_id = -1, .think_close_id = -1},
                                 .engine = {.kind = ENGINE_SIM,
                                            .slots = 8,
                                            .isa = -1,
                                            .max_model_len = 4096,
                                            .sim = {.step_ns = set->step_ns,
                                                    .tokens_mean = 6,
                                                    .vocab_size = 256,
                                                    .poison_id = -1,
                                                    .fault_after_steps = set->fault_at,
                                                    .fail_share = set->fail_share}}};
    struct engine *engines[ENGINES_MAX];
    int n_engines = 0;
    model.n_devices = TR_MAX(set->engines, 1);
    for (int i = 0; i < model.n_devices; i++)
        model.devices[i] = i;
    if (loaded_model_engines(engines, &n_engines, &model, &error) < 0)
        fail_msg("%s", error.msg);
    struct prepare_context prepare = {
        .model = &model,
        .params = {.default_max_tokens = 64, .vocab_size = 256, .max_model_len = 4096},
        .defaults = {STR("main"), STR("b")}};
    struct result_context result = {.model = &model,
                                    .fingerprint = "f",
                                    .config_revision = "c",
                                    .worker = "w",
                                    .source_label = STR("b.jsonl")};
    struct worker_opts opts = {.source = &source.source,
                               .engines = engines,
                               .n_engines = n_engines,
                               .sink = &sink.sink,
                               .spool = spool,
                               .prepare = &prepare,
                               .result = &result,
                               .clock = clock_system(),
                               .group = "test",
                               .prepare_threads = 2,
                               .claim_rows = set->claim_rows ? set->claim_rows : 64,
                               .claim_bytes = 1 << 20,
                               .flush_rows = set->flush_rows ? set->flush_rows : 16,
                               .flush_ns = 20000000,
                               .grace_ns = set->grace_ns ? set->grace_ns : 5000000000,
                               .breaker = set->breaker,
                               .stop_signal = set->stop};
    int rc = worker_run(&opts, &summary, &error);
    for (int i = 0; i < n_engines; i++)
        engine_close(engines[i]);
    spool_left = spool_bytes(spool);
    spool_close(spool);
    sink_close(sink.real);
    sqlite3_finalize(source.row);
    sqlite3_finalize(source.position);
    sqlite3_close(source.db);
    return rc;
}

static int64_t ask(const char *sql)
{
    sqlite3 *db;
    sqlite3_stmt *st;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    int64_t n = sqlite3_step(st) == SQLITE_ROW ? sqlite3_column_int64(st, 0) : -1;
    sqlite3_finalize(st);
    sqlite3_close(db);
    return n;
}

enum { MANY = 600 };
static char many_text[MANY][64];
static const char *many[MANY];

static int set_up(void **state)
{
    (void)state;
    for (int i = 0; i < MANY; i++) {
        snprintf(many_text[i], sizeof many_text[i], "{\"id\":\"j%d\",\"prompt\":\"p%d\"}", i, i);
        many[i] = many_text[i];
    }
    stop_flag = 0;
    strcpy(spool_dir, "/tmp/tranche-worker-spool-XXXXXX");
    assert_non_null(mkdtemp(spool_dir));
    strcpy(path, "/tmp/tranche-worker-XXXXXX");
    int fd = mkstemp(path);
    close(fd);
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    return fd < 0;
}

static int tear_down(void **state)
{
    (void)state;
    char side[80];
    snprintf(side, sizeof side, "rm -rf %s", spool_dir);
    assert_int_equal(system(side), 0);
    unlink(path);
    snprintf(side, sizeof side, "%s-wal", path);
    unlink(side);
    snprintf(side, sizeof side, "%s-shm", path);
    unlink(side);
    return 0;
}

static void expect_all_done(int n)
{
    assert_int_equal(source.acked, n);
    assert_int_equal(source.acked_without_row, 0);
    assert_int_equal(source.acked_beyond, 0);
    assert_false(summary.work_left);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 0);
    assert_int_equal(ask("SELECT position FROM partition_progress"), n);
    assert_int_equal(ask("SELECT messages FROM partition_progress"), n);
}

static void change(const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

/* A job whose row is there, and a second message of one that is being written: no ack of theirs
 * overtakes the stored position either. */
static void no_ack_overtakes_the_position(void **state)
{
    (void)state;
    static const char *twice[2 * MANY];
    for (int i = 0; i < 2 * MANY; i++)
        twice[i] = many[i / 2];
    struct setting set = {.lines = many, .n = MANY, .claim_rows = 100};
    assert_int_equal(run(&set), E_OK);
    change("UPDATE partition_progress SET position = 0, messages = 0");
    change("DELETE FROM results WHERE custom_id LIKE '%7'");
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    change("DELETE FROM partition_progress");
    change("DELETE FROM results WHERE custom_id LIKE '%3'");
    set = (struct setting){.lines = twice, .n = 1000, .claim_rows = 20, .flush_rows = 2};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(1000);
}

static void every_job_gets_one_row_before_its_ack(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = MANY};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok' AND attempts=1"), MANY);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    struct totals first = summary.totals;
    assert_int_equal(run(&set), E_OK); /* again: nothing is computed, all is acknowledged */
    assert_int_equal(source.acked, MANY);
    assert_int_equal(summary.present, MANY);
    assert_int_equal(summary.engine.steps, 0);
    assert_memory_equal(first.outputs_sha256, summary.totals.outputs_sha256, 32);
}

static void unknown_commit_outcome_is_sent_again(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 100, .before = 1, .after = 2};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(100);
    assert_int_equal(ask("SELECT count(*) FROM results"), 100);
    assert_int_equal(ask("SELECT rows_ok FROM batches"), 100);
}

static void run_sql(const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
}

static void suspects_run_apart_and_the_convicted_not_at_all(void **state)
{
    (void)state;
    enum { N = 60, SUSPECTS = 20 };
    static char text[N][64];
    static const char *lines[N];
    struct setting set = {.lines = lines, .n = 0};
    assert_int_equal(run(&set), E_OK); /* makes the file */
    for (int i = 0; i < N; i++) {
        const char *kind = i % 3 == 0 ? "s" : i == 40 ? "d" : "j";
        snprintf(text[i], sizeof text[i], "{\"id\":\"%s%d\",\"prompt\":\"p%d\"}", kind, i, i);
        lines[i] = text[i];
        char sql[200];
        snprintf(sql, sizeof sql,
                 "INSERT INTO job_attempts VALUES ('main','b','%s%d',%d,'',%d,'SIGSEGV',NULL,0)",
                 kind, i, 3 + i % 2, *kind == 'd' ? 2 : *kind == 's');
        if (*kind != 'j')
            run_sql(sql);
    }
    suspects_met = suspects_alone = group_max = group_mixed = group_unsettled = 0;
    set.n = N;
    assert_int_equal(run(&set), E_OK);
    expect_all_done(N);
    assert_int_equal(suspects_met, SUSPECTS);
    assert_true(suspects_alone >= 1 && group_max > 1 && group_max <= SUSPECTS / 2);
    assert_int_equal(group_mixed, 0);
    assert_int_equal(group_unsettled, 0);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok'"), N - 1);
    assert_int_equal(ask("SELECT count(*) FROM results JOIN dead_letters USING (custom_id) WHERE "
                         "custom_id='d40' AND status='dead' AND error_code='crashed' AND "
                         "reason='crashed' AND error_detail LIKE '%died 2 times%SIGSEGV%' AND "
                         "CAST(payload AS TEXT) LIKE '%p40%' AND source_key='main/b/b:41'"),
                     1);
    assert_int_equal(ask("SELECT rows_dead + dead_letters FROM batches"), 2);
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.present, N);
}

static void a_dead_sink_leaves_the_rest_unacknowledged(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = MANY, .fatal_at = 3};
    assert_int_equal(run(&set), E_FATAL);
    assert_string_equal(error.msg, "injected");
    assert_int_equal(source.acked_without_row, 0);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
    assert_true(source.acked < MANY && summary.work_left);
    set.fatal_at = 0;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
}

/* Away for a while in the middle, with a spool, without one, and with one that is soon full. */
static void an_outage_loses_and_doubles_nothing(void **state)
{
    (void)state;
    static const int64_t bytes[] = {1 << 20, 0, 12000};
    for (size_t i = 0; i < TR_COUNT(bytes); i++)
        for (int at = 0; at < 12; at += 3) {
            struct setting set = {.lines = many,
                                  .n = MANY,
                                  .down_at = at,
                                  .down_for = 40,
                                  .spool_bytes = bytes[i],
                                  .step_ns = 200000};
            assert_int_equal(unlink(path), 0);
            assert_int_equal(run(&set), E_OK);
            expect_all_done(MANY);
            assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
            assert_int_equal(summary.rows[RESULT_OK], MANY);
            assert_int_equal(summary.spooled, 0);
            assert_int_equal(spool_left, 0);
        }
}

/* The outage ends with a database that will never take a row (a configuration that nobody mended):
 * the worker leaves with that reason, and the rows stay in the spool. */
static void an_outage_that_ends_badly_keeps_the_spool(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .down_at = 3,
                          .down_for = 40,
                          .fatal_at = 12,
                          .spool_bytes = 1 << 20,
                          .step_ns = 500000};
    assert_int_equal(run(&set), E_FATAL);
    assert_string_equal(error.msg, "injected");
    assert_true(summary.work_left && summary.spooled > 0 && spool_left > 0);
    assert_int_equal(source.acked_without_row, 0);
    assert_true(source.acked <= ask("SELECT count(*) FROM results"));
    set.down_for = set.fatal_at = 0;
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
    assert_int_equal(spool_left, 0);
}

/* Stopped while the database is away: what was finished stands in the spool, nothing of it is
 * acknowledged, and the next worker writes it before it claims anything. */
static void the_next_worker_replays(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .down_at = 5,
                          .down_for = 1 << 20,
                          .spool_bytes = 1 << 20,
                          .claim_rows = 200,
                          .step_ns = 1000000,
                          .grace_ns = 300000000,
                          .stop = &stop_flag};
    signal(SIGALRM, on_alarm);
    alarm(1);
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left && summary.spooled > 0 && spool_left > 0);
    assert_int_equal(source.acked_without_row, 0);
    int64_t there = ask("SELECT count(*) FROM results"), spooled = summary.spooled;
    assert_int_equal(source.acked, there);
    stop_flag = 0;
    set.down_for = 0;
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
    assert_int_equal(summary.present, there + spooled); /* not computed again */
    assert_int_equal(spool_left, 0);
}

static void twins_and_conflicts_in_flight(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"id\":\"a\",\"prompt\":\"x\"}", "{\"id\":\"a\",\"prompt\":\"x\"}",
        "{\"id\":\"a\",\"prompt\":\"y\"}", "{\"id\":\"b\",\"prompt\":\"x\"}",
        "{ \"prompt\":\"x\", \"id\":\"a\"}"};
    struct setting set = {.lines = lines, .n = 5};
    for (int round = 0; round < 2; round++) { /* the second meets rows, not twins */
        assert_int_equal(run(&set), E_OK);
        expect_all_done(5);
        assert_int_equal(ask("SELECT count(*) FROM results"), 2);
        assert_int_equal(ask("SELECT count(*) FROM dead_letters WHERE reason='id_conflict' AND "
                             "source_key='main/b/b:3'"),
                         1);
        assert_int_equal(ask("SELECT request='{\"prompt\":\"x\"}' FROM results WHERE "
                             "custom_id='a'"),
                         1); /* the first in the file wins */
    }
}

static void bad_lines_do_not_stop_the_rest(void **state)
{
    (void)state;
    static const char *const lines[] = {"{\"id\":\"a\",\"prompt\":\"x\"}", "nonsense",
                                        "{\"id\":\"c\",\"prompt\":\"x\",\"tmperature\":1}",
                                        "{\"id\":\"d\",\"prompt\":\"x\",\"deadline\":1}"};
    struct setting set = {.lines = lines, .n = 4};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(4);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE custom_id='b:2' AND "
                         "error_code='bad_json' AND status='invalid'"),
                     1);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE error_code='unknown_field'"), 1);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='expired'"), 1);
    assert_int_equal(summary.rows[RESULT_OK], 1);
}

static void engine_failures_are_failed_rows(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 200, .fail_share = 0.3};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(200);
    int64_t failed = ask("SELECT count(*) FROM results WHERE status='failed' AND error_code<>''");
    assert_true(failed > 20 && failed < 120);
    assert_int_equal(summary.rows[RESULT_FAILED], failed);
}

static void several_engines_do_each_job_once(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = MANY, .engines = 3, .step_ns = 200000};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(MANY);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    assert_int_equal(summary.engine.slots, 24);
}

static void a_lost_engine_ends_the_worker(void **state)
{
    (void)state;
    struct setting set = {
        .lines = many, .n = MANY, .engines = 3, .step_ns = 200000, .fault_at = 40};
    assert_int_equal(run(&set), E_FATAL);
    assert_non_null(strstr(error.msg, "lost at step 40"));
    assert_true(summary.work_left);
    assert_int_equal(source.acked_without_row, 0);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
    assert_true(source.acked > 0 && source.acked < MANY);
    set.fault_at = 0;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
}

static void cancelled_jobs_are_not_run(void **state)
{
    (void)state;
    struct sink *sink = NULL;
    struct sqlite_opts sqlite = {.path = path};
    assert_int_equal(sink_sqlite_open(&sink, &sqlite, &error), E_OK);
    sink_close(sink);
    ask("INSERT INTO cancellations (run,batch_id,custom_id) VALUES ('main','b','j5') RETURNING 1");
    struct setting set = {.lines = many, .n = 20};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(20);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='cancelled' AND "
                         "custom_id='j5'"),
                     1);
    assert_int_equal(summary.rows[RESULT_OK], 19);
}

/* A model that fails always: few failed rows, then none; what came after is there for a whole one.
 */
static void a_broken_model_stops_intake(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .stop = &stop_flag,
                          .fail_share = 1,
                          .breaker = 0.2,
                          .claim_rows = 600};
    signal(SIGALRM, on_alarm);
    alarm(2);
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left);
    assert_int_equal(summary.rows[RESULT_FAILED], BREAKER_LEAST - 1);
    assert_int_equal(ask("SELECT count(*) FROM results"), BREAKER_LEAST - 1);
    assert_int_equal(ask("SELECT count(*) FROM dead_letters"), 0);
    assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
    set.fail_share = 0;
    set.stop = NULL;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok' AND attempts=1"),
                     MANY - BREAKER_LEAST + 1);
    expect_all_done(MANY);
}

/* Three of ten fail: it opens, a probe closes it, and in the end every job has its row. */
static void a_probe_lets_the_rest_through(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 160, .fail_share = 0.3, .breaker = 0.2};
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(run(&set), E_OK);
    assert_true(clock_mono_ns(clock_system()) - start >= 5000000000); /* it did open */
    expect_all_done(160);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE attempts=1"), 160);
    int64_t failed = ask("SELECT count(*) FROM results WHERE status='failed'");
    assert_true(failed > 20 && failed < 80);
}

static void a_stop_finishes_what_runs(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = MANY,
                          .stop = &stop_flag,
                          .step_ns = 2000000,
                          .stall_at = 300,
                          .claim_rows = 600};
    stop_flag = 1; /* at once: whatever got to the engine is finished, the rest is left */
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left);
    assert_int_equal(source.acked_without_row, 0);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
    assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
    set.stop = NULL;
    set.stall_at = 0;
    set.step_ns = 0;
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(ask("SELECT count(*) FROM results"), MANY);
    assert_int_equal(ask("SELECT max(attempts) FROM results"), 1);
}

static void grace_ends_a_long_step(void **state)
{
    (void)state;
    struct setting set = {
        .lines = many, .n = 64, .stop = &stop_flag, .step_ns = 50000000, .grace_ns = 1};
    stop_flag = 1;
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(run(&set), E_OK);
    assert_true(clock_mono_ns(clock_system()) - start < 3000000000);
    assert_true(summary.work_left);
    assert_int_equal(source.acked, ask("SELECT count(*) FROM results"));
}

static void tiny_budget_still_ends(void **state)
{
    (void)state;
    struct setting set = {.lines = many, .n = 50, .claim_rows = 1, .flush_rows = 1};
    assert_int_equal(run(&set), E_OK);
    expect_all_done(50);
}

static void watermark_stands_before_the_oldest_open_job(void **state)
{
    (void)state;
    struct outstanding o;
    struct err err = {0};
    struct job *jobs[4];
    int64_t messages;
    assert_int_equal(outstanding_open(&o, 8, &err), E_OK);
    static const int order[] = {2, 0, 3, 1};
    for (int i = 0; i < 4; i++) {
        jobs[i] = job_open(0);
        jobs[i]->arrival = jobs[i]->sequence = i;
        jobs[i]->from_position = i * 10;
        jobs[i]->position = i * 10 + 10;
        jobs[i]->priority = i == 3;
    }
    int entered = 0;
    for (int i = 0; i < 4; i++) {
        outstanding_arrive(&o, jobs[order[i]]);
        for (struct job *job; (job = outstanding_next(&o)); entered++)
            assert_ptr_equal(job, jobs[entered]);
    }
    assert_int_equal(entered, 4);
    outstanding_leave(&o, jobs[1]);
    assert_int_equal(partition_watermark(&o.partitions[0], 9, &messages), 0);
    jobs[0]->stage = 9;
    assert_int_equal(partition_watermark(&o.partitions[0], 9, &messages), 20);
    assert_int_equal(messages, 2);
    outstanding_leave(&o, jobs[0]);
    job_heap_push(&o.waiting, jobs[2]);
    job_heap_push(&o.waiting, jobs[3]);
    assert_ptr_equal(job_heap_pop(&o.waiting), jobs[3]); /* priority before age */
    assert_ptr_equal(job_heap_pop(&o.waiting), jobs[2]);
    assert_null(job_heap_pop(&o.waiting));
    job_close(jobs[0]);
    job_close(jobs[1]);
    outstanding_close(&o);
}

static void progress_line_reads_well(void **state)
{
    (void)state;
    char line[256];
    struct progress_view v = {
        .rows = 50, .failed = 2, .done_bytes = 25, .total_bytes = 100, .running = 8, .waiting = 42};
    progress_line(line, sizeof line, &v, 123.4, 10);
    assert_string_equal(line, "rows 50 (25%)  failed 2  running 8  waiting 42  123 tokens/s  5 "
                              "rows/s  ETA 30s");
    /* What was there already took no time: 10 bytes in 10 s, 75 to come. */
    v.present = 30;
    v.present_bytes = 15;
    progress_line(line, sizeof line, &v, 123.4, 10);
    assert_non_null(strstr(line, "rows 50 (25%)"));
    assert_non_null(strstr(line, "  2 rows/s  ETA 1m15s"));
    v.present_bytes = 25;
    progress_line(line, sizeof line, &v, 0, 10);
    assert_non_null(strstr(line, "ETA ?"));
    v.total_bytes = -1;
    progress_line(line, sizeof line, &v, 0, 0);
    assert_non_null(strstr(line, "ETA ?"));
}

int main(void)
{
#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_FILE(every_job_gets_one_row_before_its_ack),
        WITH_FILE(no_ack_overtakes_the_position),
        WITH_FILE(unknown_commit_outcome_is_sent_again),
        WITH_FILE(suspects_run_apart_and_the_convicted_not_at_all),
        WITH_FILE(a_dead_sink_leaves_the_rest_unacknowledged),
        WITH_FILE(an_outage_loses_and_doubles_nothing),
        WITH_FILE(an_outage_that_ends_badly_keeps_the_spool),
        WITH_FILE(the_next_worker_replays),
        WITH_FILE(twins_and_conflicts_in_flight),
        WITH_FILE(bad_lines_do_not_stop_the_rest),
        WITH_FILE(engine_failures_are_failed_rows),
        WITH_FILE(several_engines_do_each_job_once),
        WITH_FILE(a_lost_engine_ends_the_worker),
        WITH_FILE(cancelled_jobs_are_not_run),
        WITH_FILE(a_broken_model_stops_intake),
        WITH_FILE(a_probe_lets_the_rest_through),
        WITH_FILE(a_stop_finishes_what_runs),
        WITH_FILE(grace_ends_a_long_step),
        WITH_FILE(tiny_budget_still_ends),
        cmocka_unit_test(watermark_stands_before_the_oldest_open_job),
        cmocka_unit_test(progress_line_reads_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
