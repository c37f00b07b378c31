/* worker_run: one run of the worker over a source in memory, a database that fails on demand and
 * the simulated engine, with every ack checked. Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_WORKER_RUN_H
#define TRANCHE_TESTS_WORKER_RUN_H

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/log.h"
#include "tests/unit/memory_source.h"
#include "tests/unit/rows_file.h"
#include "tests/unit/through_sink.h"
#include "worker/worker.h"

/* ---- every ack is held against the database, at once ---- */
enum { MANY = 600, LINES_MAX = 2 * MANY };
static struct memory_source source;
static int acked_without_row;
static int acked_beyond; /* times that the acks reached further than the stored position */
static bool settled[LINES_MAX + 1]; /* by sequence: acknowledged */
static sqlite3 *looks;
static sqlite3_stmt *row_there, *position;

static void look_for_row(const struct job *job)
{
    sqlite3_bind_text(row_there, 1, job->custom_id.ptr, (int)job->custom_id.len, SQLITE_STATIC);
    acked_without_row += sqlite3_step(row_there) != SQLITE_ROW;
    sqlite3_reset(row_there);
    settled[job->sequence] = true;
}

static void look_at_position(void)
{
    int prefix = 0;
    while (prefix < source.n && settled[prefix])
        prefix++;
    bool stored = sqlite3_step(position) == SQLITE_ROW;
    acked_beyond += prefix > (stored ? sqlite3_column_int64(position, 0) : 0);
    sqlite3_reset(position);
}

/* ---- a sink that fails on demand, over the real one ---- */
struct faulty_sink {
    struct through_sink through;
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
    f->through.sink.retry_ns = 5000000;
    f->down_for--;
    return true;
}
static int faulty_lookup(struct sink *s, struct lookup *l, size_t n, struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    if (down(f))
        return err_set(err, E_RETRY, "injected away");
    return through_lookup(s, l, n, err);
}
/* Everything counted before must have its row by now where a suspect is among those that come. */
static size_t count_max; /* jobs of the largest start */
static int suspects_met, suspects_alone, group_max, group_mixed, group_unsettled;
static void note_group(const struct key *k, size_t n, int what)
{
    int suspects = 0;
    count_max = what == COUNT_BACK ? count_max : TR_MAX(count_max, n);
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
static int faulty_count(struct sink *s, const struct key *k, const struct str *revisions, size_t n,
                        int delta, int32_t *a, struct err *err)
{
    struct faulty_sink *f = (struct faulty_sink *)s;
    note_group(k, n, delta);
    if (down(f))
        return err_set(err, E_RETRY, "injected away");
    return through_count(s, k, revisions, n, delta, a, err);
}
/* The id of a job whose row another worker writes at the last moment, of another request. */
static const char *rival;
static void rival_writes(struct sink *s, const struct commit *c)
{
    struct err err = {0};
    struct commit_counts counts;
    for (size_t i = 0; rival && i < c->n_results; i++) {
        if (!str_eq(c->results[i]->key.custom_id, str_of(rival)))
            continue;
        struct result theirs = *c->results[i];
        const struct result *list = &theirs;
        struct commit alone = {.results = &list, .n_results = 1, .now_ns = c->now_ns};
        theirs.answer = STR("theirs");
        theirs.request_sha256[0] ^= 1;
        rival = NULL;
        assert_int_equal(through_commit(s, &alone, &counts, &err), E_OK);
    }
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
    rival_writes(s, c);
    int rc = through_commit(s, c, counts, err);
    if (f->after > 0 && f->after--)
        return err_set(err, E_RETRY, "injected after");
    return rc;
}

/* ---- one run ---- */
static atomic_int stop_flag;
static void on_alarm(int number)
{
    stop_flag = number == SIGALRM;
}
static inline void stop_in(unsigned seconds)
{
    signal(SIGALRM, on_alarm);
    alarm(seconds);
}
struct setting {
    const char *const *lines;
    int n, before, after, fatal_at, stall_at, down_at, down_for;
    int64_t spool_bytes; /* 0: no spool */
    double fail_share, breaker;
    int64_t step_ns, grace_ns, claim_rows, claim_bytes;
    int64_t fault_at; /* step at which the first engine is lost */
    int engines;      /* 0: one */
    int32_t flush_rows;
    size_t row_bytes_max;
    int64_t flush_ns, render_ns;
    const atomic_int *stop;
    bool stop_at_end; /* as the source hands out its last line */
};
static struct worker_summary summary;
static struct err error;
static char spool_dir[64];
static struct spool *spool;
static int64_t spool_left;

static void open_looks(void)
{
    static const char rows[] = "SELECT 1 FROM results WHERE custom_id=?1 UNION ALL "
                               "SELECT 1 FROM dead_letters WHERE custom_id=?1",
                      stored[] = "SELECT coalesce(max(position), 0) FROM partition_progress";
    acked_without_row = acked_beyond = 0;
    memset(settled, 0, sizeof settled);
    assert_int_equal(sqlite3_open(rows_path, &looks), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(looks, rows, -1, &row_there, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(looks, stored, -1, &position, NULL), SQLITE_OK);
}

static void close_looks(void)
{
    sqlite3_finalize(row_there);
    sqlite3_finalize(position);
    sqlite3_close(looks);
}

static struct faulty_sink open_sink(const struct setting *set)
{
    static struct sink_ops ops;
    ops = through_sink_ops;
    ops.lookup = faulty_lookup;
    ops.count_attempts = faulty_count;
    ops.commit = faulty_commit;
    struct faulty_sink sink = {.through.sink.ops = &ops,
                               .before = set->before,
                               .after = set->after,
                               .fatal_at = set->fatal_at,
                               .down_at = set->down_at,
                               .down_for = set->down_for};
    struct sqlite_opts sqlite = {.path = rows_path};
    struct spool_opts opts = {
        .dir = spool_dir, .bytes = set->spool_bytes, .owner = {1, STR("fake"), STR("main")}};
    assert_int_equal(sink_sqlite_open(&sink.through.real, &sqlite, &error), E_OK);
    sink.through.real->process = STR("here");
    spool = NULL;
    if (set->spool_bytes)
        assert_int_equal(spool_open(&spool, &opts, &error), E_OK);
    return sink;
}

static struct loaded_model model_of(const struct setting *set)
{
    struct loaded_model model = {.rules = {.think_open_id = -1, .think_close_id = -1},
                                 .n_devices = TR_MAX(set->engines, 1),
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
    for (int i = 0; i < model.n_devices; i++)
        model.devices[i] = i;
    return model;
}

static int run_over(const struct setting *set, struct sink *sink, struct loaded_model *model)
{
    struct engine *engines[ENGINES_MAX];
    int n_engines = 0;
    if (loaded_model_engines(engines, &n_engines, model, &error) < 0)
        fail_msg("%s", error.msg);
    struct prepare_context prepare = {
        .model = model,
        .params = {.default_max_tokens = 64, .vocab_size = 256, .max_model_len = 4096},
        .defaults = {STR("main"), STR("b")}};
    struct result_context result = {.model = model,
                                    .fingerprint = "f",
                                    .config_revision = "c",
                                    .worker = "w",
                                    .source_label = STR("b.jsonl"),
                                    .row_bytes_max = set->row_bytes_max};
    struct worker_opts opts = {.source = &source.source,
                               .engines = engines,
                               .n_engines = n_engines,
                               .sink = sink,
                               .spool = spool,
                               .prepare = &prepare,
                               .result = &result,
                               .clock = clock_system(),
                               .group = "test",
                               .prepare_threads = 2,
                               .claim_rows = set->claim_rows ? set->claim_rows : 64,
                               .claim_bytes = set->claim_bytes ? set->claim_bytes : 1 << 20,
                               .flush_rows = set->flush_rows ? set->flush_rows : 16,
                               .flush_ns = set->flush_ns ? set->flush_ns : 20000000,
                               .grace_ns = set->grace_ns ? set->grace_ns : 5000000000,
                               .breaker = set->breaker,
                               .render_ns = set->render_ns,
                               .stop_signal = set->stop};
    int rc = worker_run(&opts, &summary, &error);
    for (int i = 0; i < n_engines; i++)
        engine_close(engines[i]);
    return rc;
}

/* What became of it stands in summary, error, source, spool_left and the file. */
static int run(const struct setting *set)
{
    error = (struct err){0};
    count_max = 0;
    struct faulty_sink sink = open_sink(set);
    struct loaded_model model = model_of(set);
    source = memory_source_of(set->lines, set->n);
    source.stall_at = set->stall_at;
    source.stop_at_end = set->stop_at_end ? &stop_flag : NULL;
    source.on_ack = look_for_row;
    source.on_acked = look_at_position;
    open_looks();
    int rc = run_over(set, &sink.through.sink, &model);
    close_looks();
    spool_left = spool_bytes(spool);
    spool_close(spool);
    sink_close(sink.through.real);
    return rc;
}

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
    rows_file_open();
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char side[80];
    snprintf(side, sizeof side, "rm -rf %s", spool_dir);
    assert_int_equal(system(side), 0);
    rows_file_remove();
    return 0;
}

static void expect_all_done(int n)
{
    assert_int_equal(source.acked, n);
    assert_int_equal(acked_without_row, 0);
    assert_int_equal(acked_beyond, 0);
    assert_false(summary.work_left);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 0);
    assert_int_equal(ask("SELECT position FROM partition_progress"), n);
    assert_int_equal(ask("SELECT messages FROM partition_progress"), n);
}

#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

#endif
