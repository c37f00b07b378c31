/* park_run: one run of the worker that is stopped, cancelled or overtaken by the time: a source in
 * memory, the simulated engine, a SQLite file. Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_PARK_RUN_H
#define TRANCHE_TESTS_PARK_RUN_H

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
static int64_t step_mono(void *ctx)
{
    (void)ctx;
    return clock_mono_ns(clock_system());
}
static const struct clock step_clock = {step_mono, step_mono, sleep_and_happen, NULL};

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

#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

#endif
