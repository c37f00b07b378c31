/* Jobs that leave the engine before their end: parked by a drain and resumed by the next worker
 * with the bytes of an undisturbed run; cancelled or expired while they wait or run; the urgent
 * first. The worker over a source in memory, the simulated engine and a SQLite file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <unistd.h>

#include "engine/log.h"
#include "tests/unit/memory_source.h"
#include "tests/unit/rows_file.h"
#include "tests/unit/through_sink.h"
#include "worker/worker.h"

static struct memory_source source;

/* Where a job is given back before its states are there, a peer would begin it anew. */
static int released_before_park;
static void look_for_state(const struct job *job)
{
    char sql[200];
    bool begun = false;
    for (int32_t k = 0; k < job->n_choices; k++)
        begun = begun || job->choices[k].out.n > 0;
    snprintf(sql, sizeof sql, "SELECT count(*) FROM parked WHERE custom_id='%.40s'",
             job->custom_id.ptr);
    released_before_park += begun && ask(sql) == 0;
}

/* ---- a sink whose park fails on demand ---- */
static int park_answer, polls;
static int park_or_not(struct sink *s, const struct parked *p, size_t n, struct err *err)
{
    if (park_answer < 0)
        return err_set(err, park_answer, "injected");
    return through_park(s, p, n, err);
}
static int count_polls(struct sink *s, const struct key *k, size_t n, bool *out, struct err *err)
{
    polls++;
    return through_cancelled(s, k, n, out, err);
}

/* ---- a wall clock that runs fast, so that a deadline's minute of slack passes ---- */
static int64_t wall_zero, wall_speed;
static int64_t fast_mono(void *ctx)
{
    (void)ctx;
    return clock_mono_ns(clock_system());
}
static int64_t fast_wall(void *ctx)
{
    (void)ctx;
    return wall_zero + (clock_mono_ns(clock_system()) - wall_zero) * wall_speed;
}
static void fast_sleep(void *ctx, int64_t ns)
{
    (void)ctx;
    clock_sleep_ns(clock_system(), ns);
}
static const struct clock fast_clock = {fast_mono, fast_wall, fast_sleep, NULL};

/* ---- one run ---- */
struct setting {
    const char *const *lines;
    int n;
    int64_t step_ns, grace_ns, stop_after_ns, cancel_ns, flush_ns;
    int signals; /* that come behind stop_after_ns; 0: none */
    int32_t slots, tokens_mean;
    const char *revision;
    const struct clock *clock;
    const char *sql; /* run in the database behind stop_after_ns */
};
static struct worker_summary summary;
static struct err error;
static atomic_int stop_flag;

/* Time passes in the step: what is to happen behind stop_after_ns happens there. */
static const struct setting *now_set;
static int64_t start_ns;
static bool happened;
static void happen(void)
{
    if (happened || !now_set->stop_after_ns ||
        clock_mono_ns(clock_system()) - start_ns < now_set->stop_after_ns)
        return;
    happened = true;
    if (now_set->sql)
        ask(now_set->sql);
    stop_flag = now_set->signals;
}
static void sleep_and_happen(void *ctx, int64_t ns)
{
    (void)ctx;
    clock_sleep_ns(clock_system(), ns);
    happen();
}
static const struct clock step_clock = {fast_mono, fast_mono, sleep_and_happen, NULL};

static int run_with(const struct setting *set, struct engine *engine, struct loaded_model *model,
                    struct sink *real)
{
    static struct sink_ops ops;
    ops = through_sink_ops;
    ops.park = park_or_not;
    ops.cancelled = count_polls;
    struct through_sink sink = {.sink.ops = &ops, .real = real};
    struct prepare_context prepare = {
        .model = model,
        .params = {.default_max_tokens = 400, .vocab_size = 256, .max_model_len = 4096},
        .defaults = {STR("main"), STR("b")}};
    struct result_context result = {.model = model,
                                    .fingerprint = "f",
                                    .config_revision = set->revision ? set->revision : "c",
                                    .worker = "w",
                                    .source_label = STR("b.jsonl")};
    source = memory_source_of(set->lines, set->n);
    source.on_release = look_for_state;
    released_before_park = 0;
    struct worker_opts opts = {.source = &source.source,
                               .engines = &engine,
                               .n_engines = 1,
                               .sink = &sink.sink,
                               .prepare = &prepare,
                               .result = &result,
                               .clock = set->clock ? set->clock : clock_system(),
                               .group = "test",
                               .prepare_threads = 1,
                               .claim_rows = 1024,
                               .claim_bytes = 64 << 20,
                               .flush_rows = 64,
                               .flush_ns = set->flush_ns ? set->flush_ns : 20000000,
                               .grace_ns = set->grace_ns,
                               .cancel_ns = set->cancel_ns,
                               .stop_signal = &stop_flag};
    return worker_run(&opts, &summary, &error);
}

static int run(const struct setting *set)
{
    struct sqlite_opts sqlite = {.path = rows_path};
    struct engine *engine = NULL;
    struct sink *real = NULL;
    struct loaded_model model = {
        .rules = {.think_open_id = -1, .think_close_id = -1},
        .engine = {.kind = ENGINE_SIM,
                   .slots = set->slots ? set->slots : 8,
                   .isa = -1,
                   .max_model_len = 4096,
                   .clock = &step_clock,
                   .sim = {.step_ns = set->step_ns ? set->step_ns : 1,
                           .tokens_mean = set->tokens_mean ? set->tokens_mean : 60,
                           .vocab_size = 256,
                           .poison_id = -1}}};
    error = (struct err){0};
    stop_flag = 0;
    happened = false;
    now_set = set;
    start_ns = clock_mono_ns(clock_system());
    assert_int_equal(sink_sqlite_open(&real, &sqlite, &error), E_OK);
    if (engine_open(&engine, &model.engine, &error) < 0)
        fail_msg("%s", error.msg);
    int rc = run_with(set, engine, &model, real);
    engine_close(engine);
    sink_close(real);
    return rc;
}

enum { MANY = 60 };
static char many_text[MANY][160];
static const char *many[MANY];

static int set_up(void **state)
{
    (void)state;
    for (int i = 0; i < MANY; i++) {
        snprintf(many_text[i], sizeof many_text[i],
                 "{\"custom_id\":\"j%d\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{"
                 "\"model\":\"m\",\"prompt\":\"p%d\",\"max_tokens\":%d,\"n\":%d%s}}",
                 i, i, 20 + i * 5, 1 + i % 3, i % 2 ? ",\"logprobs\":2,\"temperature\":1" : "");
        many[i] = many_text[i];
    }
    rows_file_open();
    park_answer = polls = 0;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rows_file_remove();
    return 0;
}

/* The sum over all rows' outputs, and the tokens, of a run that nobody disturbs. */
static struct totals calm_totals;
static int64_t calm_sampled;
static void run_calm(void)
{
    struct setting set = {.lines = many, .n = MANY};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    assert_false(summary.work_left);
    calm_totals = summary.totals;
    calm_sampled = summary.engine.sampled;
    rows_file_remove();
}

static void expect_calm_rows(void)
{
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='ok' AND attempts=1"), MANY);
    assert_int_equal(ask("SELECT count(*) FROM parked"), 0);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 0);
    assert_int_equal(ask("SELECT position FROM partition_progress"), MANY);
    assert_memory_equal(summary.totals.outputs_sha256, calm_totals.outputs_sha256, 32);
}

/* ---- parking ---- */

static void parked_work_goes_on_and_is_not_done_again(void **state)
{
    (void)state;
    run_calm();
    int64_t sampled = 0, parked = 0, resumed = 0, rows = 0, device_ns = 0;
    for (int round = 0;; round++) {
        struct setting set = {.lines = many,
                              .n = MANY,
                              .step_ns = 1000000,
                              .stop_after_ns = 60000000,
                              .signals = 1,
                              .grace_ns = 40000000};
        assert_true(round < 200);
        assert_int_equal(run(&set), E_OK);
        sampled += summary.engine.sampled;
        device_ns += summary.engine.device_ns;
        resumed += summary.resumed;
        rows += summary.rows[RESULT_OK];
        assert_int_equal(released_before_park, 0);
        assert_int_equal(source.acked, summary.rows[RESULT_OK] + summary.present);
        if (!summary.work_left)
            break;
        parked += summary.parked;
        assert_true(source.released > 0 || source.next < MANY);
        assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
        assert_int_equal(ask("SELECT count(*) FROM parked p JOIN results r USING (run, batch_id, "
                             "custom_id)"),
                         0);
        /* Nothing is said to be settled that is not. */
        assert_int_equal(
            ask("SELECT count(*) FROM partition_progress g WHERE (SELECT count(*) FROM "
                "results WHERE json_extract(source,'$.position') <= g.position) <> "
                "g.position"),
            0);
    }
    assert_int_equal(rows, MANY);
    assert_true(parked > MANY && resumed > MANY);
    assert_int_equal(sampled, calm_sampled);
    expect_calm_rows();
    /* A row tells of all its lives; what is not in one is that of steps before a first token. */
    int64_t told = ask("SELECT sum(device_seconds) * 1e9 FROM results");
    assert_true(told <= device_ns + 1000 * MANY && told > device_ns / 2);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE started_at IS NULL OR started_at > "
                         "finished_at"),
                     0);
}

static void other_revisions_states_are_not_continued(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 1000000,
                          .stop_after_ns = 60000000,
                          .signals = 1,
                          .grace_ns = 4000000};
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.parked > 0);
    struct setting other = {.lines = many, .n = MANY, .revision = "another"};
    int64_t rows = summary.rows[RESULT_OK];
    assert_int_equal(run(&other), E_OK);
    assert_int_equal(summary.resumed, 0);
    assert_int_equal(summary.rows[RESULT_OK], MANY - rows);
    expect_calm_rows(); /* the simulated engine does not know of revisions */
}

static void a_torn_state_is_not_continued(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 1000000,
                          .stop_after_ns = 60000000,
                          .signals = 1,
                          .grace_ns = 4000000};
    assert_int_equal(run(&set), E_OK);
    int64_t parked = summary.parked;
    assert_true(parked > 2);
    ask("UPDATE parked SET state=substr(state,1,length(state)-1) WHERE choice=0 RETURNING 1");
    ask("UPDATE parked SET choice=999 WHERE rowid=(SELECT max(rowid) FROM parked) RETURNING 1");
    struct setting rest = {.lines = many, .n = MANY};
    assert_int_equal(run(&rest), E_OK);
    assert_true(summary.resumed < parked);
    expect_calm_rows();
}

static void jobs_go_back_when_nothing_can_be_parked(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 1000000,
                          .stop_after_ns = 60000000,
                          .signals = 1,
                          .grace_ns = 4000000};
    park_answer = E_FATAL;
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left && released_before_park > 0);
    assert_int_equal(summary.parked, 0);
    assert_int_equal(ask("SELECT coalesce(sum(n),0) FROM job_attempts"), 0);
    park_answer = E_RETRY; /* until the time for it is over */
    assert_int_equal(run(&set), E_OK);
    assert_true(summary.work_left);
    park_answer = E_OK;
    struct setting rest = {.lines = many, .n = MANY};
    assert_int_equal(run(&rest), E_OK);
    expect_calm_rows();
}

static void a_second_signal_leaves_at_once(void **state)
{
    (void)state;
    run_calm();
    struct setting set = {.lines = many,
                          .n = MANY,
                          .step_ns = 20000000,
                          .stop_after_ns = 200000000,
                          .signals = 2,
                          .grace_ns = 3600000000000};
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(run(&set), E_OK);
    assert_true(clock_mono_ns(clock_system()) - start < 20000000000);
    assert_true(summary.work_left && summary.parked > 0);
    struct setting rest = {.lines = many, .n = MANY};
    assert_int_equal(run(&rest), E_OK);
    assert_true(summary.resumed > 0);
    expect_calm_rows();
}

/* With time enough, what runs ends here. */
static void what_fits_the_grace_is_finished(void **state)
{
    (void)state;
    struct setting set = {.lines = many,
                          .n = 8,
                          .step_ns = 1000000,
                          .stop_after_ns = 20000000,
                          .signals = 1,
                          .slots = 32,
                          .grace_ns = 600000000000};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.rows[RESULT_OK], 8);
    assert_int_equal(summary.parked, 0);
    assert_false(summary.work_left);
}

static void the_grace_is_split(void **state)
{
    (void)state;
    const int64_t s = 1000000000;
    struct drain_budget b = drain_budget_of(120 * s);
    assert_int_equal(b.work_ns, 90 * s);
    assert_int_equal(b.sink_ns, 110 * s);
    assert_int_equal(b.exit_ns, 115 * s);
    b = drain_budget_of(3600 * s);
    assert_int_equal(b.work_ns, 3570 * s);
    b = drain_budget_of(0);
    assert_int_equal(b.work_ns, 0);
    assert_int_equal(b.sink_ns, 0);
    assert_int_equal(b.exit_ns, 5 * s);
}

/* ---- cancelling ---- */

static void cancellations_reach_what_waits_and_what_runs(void **state)
{
    (void)state;
    static char text[20][160];
    static const char *lines[20];
    for (int i = 0; i < 20; i++) { /* the first two run for two seconds */
        snprintf(text[i], sizeof text[i], "{\"id\":\"j%d\",\"prompt\":\"p\",%s}", i,
                 i < 2 ? "\"max_tokens\":400,\"min_tokens\":400"
                       : "\"max_tokens\":60,\"min_tokens\":30");
        lines[i] = text[i];
    }
    struct setting set = {.lines = lines,
                          .n = 20,
                          .slots = 4,
                          .step_ns = 5000000,
                          .cancel_ns = 20000000,
                          .stop_after_ns = 15000000,
                          .sql = "INSERT INTO cancellations (run,batch_id,custom_id) VALUES "
                                 "('main','b','j0'), ('main','b','j1'), ('main','b','j18'), "
                                 "('main','b','j19'), ('main','other','') RETURNING 1"};
    assert_int_equal(run(&set), E_OK);
    assert_false(summary.work_left);
    assert_int_equal(source.acked, 20);
    assert_true(polls > 1);
    assert_int_equal(summary.rows[RESULT_CANCELLED], 4);
    assert_int_equal(summary.rows[RESULT_OK], 20 - 4);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='cancelled' AND error_code="
                         "'cancelled' AND answer IS NULL AND choices IS NULL AND finish_reason IS "
                         "NULL AND custom_id IN ('j0','j1','j18','j19')"),
                     4);
    /* The first two ran: slots, not the whole of it, were spent on them. */
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='cancelled' AND attempts=1 AND "
                         "completion_tokens > 0 AND started_at IS NOT NULL"),
                     2);
    assert_int_equal(ask("SELECT count(*) FROM job_attempts"), 0);
}

static void a_whole_batch_is_cancelled(void **state)
{
    (void)state;
    struct setting set = {
        .lines = many,
        .n = MANY,
        .slots = 4,
        .step_ns = 2000000,
        .cancel_ns = 20000000,
        .stop_after_ns = 60000000,
        .sql = "INSERT INTO cancellations (run,batch_id) VALUES ('main','b') RETURNING 1"};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(source.acked, MANY);
    assert_int_equal(summary.rows[RESULT_CANCELLED] + summary.rows[RESULT_OK], MANY);
    assert_true(summary.rows[RESULT_CANCELLED] > MANY / 2);
}

static void deadlines_pass_while_jobs_wait_and_run(void **state)
{
    (void)state;
    static char text[6][200];
    static const char *lines[6];
    wall_zero = clock_mono_ns(clock_system());
    wall_speed = 60; /* a minute, and the minute of slack, in two seconds */
    for (int i = 0; i < 6; i++) {
        const char *last = i % 2 ? "\"max_tokens\":3000,\"min_tokens\":3000,\"deadline\":"
                                 : "\"max_tokens\":300,\"min_tokens\":300,\"seed\":";
        snprintf(text[i], sizeof text[i], "{\"id\":\"d%d\",\"prompt\":\"p%d\",%s%lld}", i, i, last,
                 i % 2 ? (long long)(wall_zero / 1000000000 + 60) : 7LL);
        lines[i] = text[i];
    }
    struct setting set = {
        .lines = lines, .n = 6, .slots = 2, .step_ns = 2000000, .clock = &fast_clock};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(source.acked, 6);
    assert_int_equal(summary.rows[RESULT_OK], 3);
    assert_int_equal(ask("SELECT count(*) FROM results WHERE status='expired' AND "
                         "error_code='expired' AND choices IS NULL AND finish_reason IS NULL"),
                     3);
    assert_int_equal(ask("SELECT completion_tokens > 0 FROM results WHERE custom_id='d1'"), 1);
    assert_int_equal(ask("SELECT completion_tokens FROM results WHERE custom_id='d5'"), 0);
}

/* ---- priority ---- */

static void the_urgent_go_first(void **state)
{
    (void)state;
    static char text[MANY][160];
    static const char *lines[MANY];
    for (int i = 0; i < MANY; i++) {
        snprintf(text[i], sizeof text[i], "{\"id\":\"p%02d\",\"prompt\":\"p\",\"priority\":%d%s}",
                 i, i % 3 - 1, i ? "" : ",\"max_tokens\":300,\"min_tokens\":300");
        lines[i] = text[i];
    }
    struct setting set = {
        .lines = lines, .n = MANY, .slots = 1, .step_ns = 1000000, .tokens_mean = 2};
    assert_int_equal(run(&set), E_OK);
    assert_int_equal(summary.rows[RESULT_OK], MANY);
    /* The first one holds the slot until the others have come. But for the two or three that got to
     * the engine meanwhile, nobody started behind one of lower priority. */
    assert_true(ask("SELECT count(*) FROM results a WHERE EXISTS (SELECT 1 FROM results b WHERE "
                    "b.started_at < a.started_at AND coalesce(json_extract(b.source,'$.priority'),"
                    "0) < coalesce(json_extract(a.source,'$.priority'),0) AND b.rowid > 4)") == 0);
}

int main(void)
{
#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_FILE(parked_work_goes_on_and_is_not_done_again),
        WITH_FILE(other_revisions_states_are_not_continued),
        WITH_FILE(a_torn_state_is_not_continued),
        WITH_FILE(jobs_go_back_when_nothing_can_be_parked),
        WITH_FILE(a_second_signal_leaves_at_once),
        WITH_FILE(what_fits_the_grace_is_finished),
        cmocka_unit_test(the_grace_is_split),
        WITH_FILE(cancellations_reach_what_waits_and_what_runs),
        WITH_FILE(a_whole_batch_is_cancelled),
        WITH_FILE(deadlines_pass_while_jobs_wait_and_run),
        WITH_FILE(the_urgent_go_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
