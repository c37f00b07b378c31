/* run: see run.h. The table of first rows is in show.c. */
#include "worker/commands/run.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/commands/show.h"
#include "worker/model_hash.h"
#include "worker/monitor/metrics.h"
#include "worker/sink/outbox.h"
#include "worker/sink/sink_postgres.h"
#include "worker/stop.h"
#include "worker/worker.h"

static const int64_t OUTBOX_NS = 5000000000; /* for the last copies */
enum { BYTE_VOCAB = 256, BYTE_CONTEXT = 1 << 20 };
static const int64_t RECORD_NS = 10000000000, AGAIN_NS = 200000000;

void run_opts_init(struct run_opts *o)
{
    *o = (struct run_opts){
        .command = "run",
        .run = "main",
        .source = {.group = "file", .partition = -1},
        .model = {.engine = {.isa = -1, .sim = {.poison_id = -1}}, .plain_content = true},
        .default_max_tokens = 2048,
        .claim_rows = 16384,
        .claim_bytes = 256 << 20,
        .flush_rows = 512,
        .flush_ns = 5000000000,
        .grace_ns = 30000000000};
}

/* Everything that a run opens, in the order of opening. */
struct session {
    struct run_opts opts;
    struct source *source;
    struct sink *sink;
    struct spool *spool;
    struct outbox *outbox;
    struct loaded_model model;
    struct engine *engines[ENGINES_MAX];
    int n_engines;
    struct model_hash *hash;
    struct prepare_context prepare;
    struct result_context result;
    char worker_name[300], weights[65], revision[REVISION_CAP]; /* the first */
    struct job_config_base base;
    struct job_config_slot configs;
    struct supervised *self;
};

static void fill_defaults(struct session *s)
{
    struct run_opts fallback, *o = &s->opts;
    run_opts_init(&fallback);
    o->run = o->run && *o->run ? o->run : fallback.run;
    o->default_max_tokens =
        o->default_max_tokens > 0 ? o->default_max_tokens : fallback.default_max_tokens;
    o->claim_rows = o->claim_rows > 0 ? o->claim_rows : fallback.claim_rows;
    o->claim_bytes = o->claim_bytes > 0 ? o->claim_bytes : fallback.claim_bytes;
    o->flush_rows = o->flush_rows > 0 ? o->flush_rows : fallback.flush_rows;
    o->flush_ns = o->flush_ns > 0 ? o->flush_ns : fallback.flush_ns;
    o->grace_ns = o->grace_ns >= 0 ? o->grace_ns : fallback.grace_ns;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (o->prepare_threads <= 0)
        o->prepare_threads = (int32_t)TR_MAX(cpus / 2, 1);
    if (o->worker_name && *o->worker_name) {
        snprintf(s->worker_name, sizeof s->worker_name, "%s", o->worker_name);
    } else {
        char host[256] = "";
        gethostname(host, sizeof host - 1);
        snprintf(s->worker_name, sizeof s->worker_name, "%s:%ld", host, (long)s->self->pid);
    }
}

/* A request must fit whichever engine takes it. */
static int32_t shortest_model_len(const struct session *s)
{
    int32_t shortest = engine_max_model_len(s->engines[0]);
    for (int i = 1; i < s->n_engines; i++)
        shortest = TR_MIN(shortest, engine_max_model_len(s->engines[i]));
    return shortest;
}

static void fill_prepare(struct session *s)
{
    const struct run_opts *o = &s->opts;
    const struct loaded_model *m = &s->model;
    int32_t vocab = BYTE_VOCAB;
    if (m->tokenizer)
        vocab = tokenizer_vocab_size(m->tokenizer);
    if (m->model)
        vocab = (int32_t)model_config(m->model)->vocab_size;
    s->prepare = (struct prepare_context){
        .model = m,
        .params = {.generation = o->ignore_generation_config ? NULL : &m->generation,
                   .default_max_tokens = o->default_max_tokens,
                   .vocab_size = vocab,
                   .max_model_len = shortest_model_len(s),
                   .thinks = m->rules.think_close_id >= 0},
        .defaults = {str_of(o->run), str_of(o->batch ? o->batch : s->source->stem)},
        .plain_content = o->model.plain_content,
        .share = o->share,
        .configs = &s->configs};
}

/* The first revision, kept in the database before a job can be counted under it. */
static int open_configs(struct session *s, struct err *err)
{
    const struct run_opts *o = &s->opts;
    const struct clock *clock = clock_system();
    int64_t until = clock_mono_ns(clock) + TR_MAX(o->postgres.connect_ns, RECORD_NS);
    struct job_config *first = NULL;
    struct err why = {0};
    int rc;
    s->base = (struct job_config_base){.prepare = &s->prepare,
                                       .model_dir = s->model.model ? model_dir(s->model.model)
                                                                   : o->model.dir,
                                       .template_path = o->model.chat_template,
                                       .dir = o->job_config};
    job_config_base_hash(&s->base, !o->ignore_generation_config);
    while ((rc = job_config_load(&first, &s->base, &why)) == E_RETRY &&
           clock_mono_ns(clock) < until) {
        clock_sleep_ns(clock, AGAIN_NS);
        why = (struct err){0};
    }
    while (rc >= 0 &&
           (rc = s->sink->ops->config_write(s->sink, str_of(first->revision),
                                            text_view(&first->content), &why)) == E_RETRY &&
           clock_mono_ns(clock) < until) {
        clock_sleep_ns(clock, AGAIN_NS);
        why = (struct err){0};
        rc = E_OK;
    }
    if (rc < 0) {
        job_config_release(first);
        return err_typed(err, rc, why.type, "%s", why.msg);
    }
    snprintf(s->revision, sizeof s->revision, "%s", first->revision);
    job_config_slot_open(&s->configs, first);
    return E_OK;
}

static void fill_result(struct session *s)
{
    const struct loaded_model *m = &s->model;
    const struct clock *clock = clock_system();
    s->result =
        (struct result_context){.model = m,
                                .fingerprint = engine_fingerprint(s->engines[0]),
                                .config_revision = s->revision,
                                .worker = s->worker_name,
                                .weights = s->weights,
                                .model_sha256 = model_hash_get,
                                .sha_ctx = s->hash,
                                .source_label = str_of(s->source->label),
                                .mono_to_wall_ns = clock_wall_ns(clock) - clock_mono_ns(clock)};
}

/* The table of everything taken at open. */
static void log_memory(const struct engine *engine)
{
    struct memory_line lines[32];
    int n = engine_memory(engine, lines, (int)TR_COUNT(lines));
    for (int i = 0; i < n && i < (int)TR_COUNT(lines); i++)
        LOG(LOG_INFO, "memory_taken", LOG_S("what", lines[i].what), LOG_I("bytes", lines[i].bytes));
}

/* Workers that start together on a new file meet in its making: SQLite refuses the later ones at
 * once, so they ask again. */
static int open_sqlite(struct session *s, const struct sqlite_opts *opts, int64_t timeout_ns,
                       struct err *err)
{
    const struct clock *clock = clock_system();
    int64_t until = clock_mono_ns(clock) + timeout_ns;
    for (;;) {
        struct err why = {0};
        int rc = sink_sqlite_open(&s->sink, opts, &why);
        if (rc == E_RETRY && clock_mono_ns(clock) < until) {
            clock_sleep_ns(clock, 50000000);
            continue;
        }
        return rc < 0 ? err_typed(err, why.code, why.type, "%s", why.msg) : rc;
    }
}

static int open_sink(struct session *s, struct err *err)
{
    const struct run_opts *o = &s->opts;
    if (!postgres_is_url(o->db)) {
        /* A file keeps its lines; a broker forgets what was acknowledged. */
        struct sqlite_opts sqlite = {.path = o->db, .full_sync = o->source.url != NULL};
        return open_sqlite(s, &sqlite, o->source.url ? o->source.connect_timeout_ns : 0, err);
    }
    struct postgres_opts postgres = o->postgres;
    postgres.url = o->db;
    postgres.clock = clock_system();
    return sink_postgres_open(&s->sink, &postgres, err);
}

static int open_spool(struct session *s, struct err *err)
{
    const struct run_opts *o = &s->opts;
    struct spool_opts spool = {
        .dir = o->spool_dir,
        .bytes = o->spool_bytes,
        .owner = {s->sink->schema, str_of(s->sink->database), str_of(o->run)}};
    return o->spool_dir ? spool_open(&s->spool, &spool, err) : E_OK;
}

static int open_outbox(struct session *s, struct err *err)
{
    const struct run_opts *o = &s->opts;
    struct outbox_opts outbox = {.postgres = o->postgres,
                                 .to = o->dead_letters,
                                 .source_url = o->source.url,
                                 .queue = str_of(s->source->stem),
                                 .worker = s->worker_name,
                                 .clock = clock_system()};
    s->sink->queue = outbox.queue;
    if (!o->dead_letters.url)
        return E_OK;
    if (!postgres_is_url(o->db))
        return err_set(err, E_USAGE, "--dead-letters-to: want a postgres:// database, found %s",
                       o->db);
    outbox.postgres.url = o->db;
    outbox.postgres.clock = outbox.clock;
    return outbox_open(&s->outbox, &outbox, err);
}

static int record_deaths(struct session *s, struct err *err)
{
    s->sink->process = str_of(s->self->process);
    return deaths_record(s->self, s->sink, TR_MAX(s->opts.postgres.connect_ns, RECORD_NS), err);
}

static int exit_of(int rc)
{
    return rc == E_OK      ? EXIT_WELL
           : rc == E_USAGE ? EXIT_USAGE
           : rc == E_RETRY ? EXIT_UNREACHABLE
                           : EXIT_MODEL;
}

/* Where jobs come from and where rows go. */
static int ends_open(struct session *s, struct err *err)
{
    struct run_opts *o = &s->opts;
    bool queue = o->source.url != NULL, standard = o->input && strcmp(o->input, "-") == 0;
    if (!(queue || o->input) || !o->db)
        return err_set(err, E_USAGE, "want an input and a database"), EXIT_USAGE;
    if (standard && !o->batch)
        return err_set(err, E_USAGE, "--batch: want a name, because standard input has none"),
               EXIT_USAGE;
    if (o->batch && (!*o->batch || strlen(o->batch) > JOB_ID_BYTES_MAX))
        return err_set(err, E_USAGE, "--batch: want 1 to %d bytes", JOB_ID_BYTES_MAX), EXIT_USAGE;
    o->source.client = s->worker_name;
    /* Before a new database is made that nothing will fill. */
    char found[PATH_MAX];
    if (o->model.engine.kind != ENGINE_SIM && o->model.dir &&
        model_find(found, o->model.dir, err) < 0)
        return EXIT_MODEL;
    int rc = queue ? source_open(&s->source, &o->source, clock_system(), err)
                   : source_file_open(&s->source, o->input, clock_system(), err);
    if (rc < 0)
        return rc == E_USAGE ? EXIT_USAGE : rc == E_RETRY ? EXIT_UNREACHABLE : EXIT_MODEL;
    if (!queue)
        metrics_source("file", str_of(o->input), NULL);
    rc = open_sink(s, err);
    if (rc == E_OK)
        rc = open_spool(s, err);
    if (rc == E_OK)
        rc = open_outbox(s, err);
    return exit_of(rc);
}

/* Opens the rest; on failure the exit code, and err says why. */
static int session_open(struct session *s, struct err *err)
{
    const struct run_opts *o = &s->opts;
    int code = ends_open(s, err);
    if (code == EXIT_WELL)
        code = exit_of(record_deaths(s, err));
    if (code != EXIT_WELL)
        return code;
    int rc = loaded_model_open(&s->model, &o->model, err);
    if (rc < 0)
        return rc == E_USAGE ? EXIT_USAGE : EXIT_MODEL;
    if (s->model.engine.kind == ENGINE_SIM && !s->model.tokenizer) {
        s->model.engine.sim.vocab_size = BYTE_VOCAB;
        if (!s->model.engine.max_model_len)
            s->model.engine.max_model_len = BYTE_CONTEXT;
    }
    rc = loaded_model_engines(s->engines, &s->n_engines, &s->model, err);
    if (rc < 0)
        return rc == E_USAGE ? EXIT_USAGE : EXIT_ENGINE;
    for (int i = 0; i < s->n_engines; i++)
        log_memory(s->engines[i]);
    struct err hash_err = {0};
    if (s->model.model && model_hash_open(&s->hash, model_dir(s->model.model), &hash_err) < 0)
        LOG(LOG_WARN, "model_hash_failed", LOG_S("error", hash_err.msg));
    fill_prepare(s);
    rc = open_configs(s, err);
    if (rc < 0)
        return exit_of(rc);
    struct err mark_err = {0};
    if (s->model.model && model_mark(model_dir(s->model.model), s->weights, &mark_err) < 0) {
        /* Without a mark nothing that others parked may be taken for ours. */
        snprintf(s->weights, sizeof s->weights, "%.40s %lld", s->worker_name,
                 (long long)clock_wall_ns(clock_system()));
        LOG(LOG_WARN, "model_mark_failed", LOG_S("error", mark_err.msg));
    }
    fill_result(s);
    metrics_model(s->result.fingerprint, s->revision, o->run);
    return EXIT_WELL;
}

/* The source first: what it still holds goes to others at once. */
static void session_close(struct session *s)
{
    outbox_close(s->outbox, OUTBOX_NS);
    source_close(s->source);
    for (int i = 0; i < s->n_engines; i++)
        engine_close(s->engines[i]);
    model_hash_close(s->hash);
    job_config_slot_close(&s->configs);
    loaded_model_close(&s->model);
    spool_close(s->spool);
    sink_close(s->sink);
}

static void print_summary(const struct worker_summary *w, const struct session *s)
{
    char hex[65];
    const struct engine_stats *e = &w->engine;
    double seconds = TR_MAX(w->seconds, 1e-9), occupancy = 0;
    int64_t rows = 0;
    for (int i = 0; i < RESULT_STATUSES; i++)
        rows += w->rows[i];
    if (e->steps > 0 && e->slots > 0)
        occupancy = (double)e->slot_steps / (double)e->steps / e->slots;
    sha256_hex(w->totals.outputs_sha256, hex);
    printf("%s batch=%s rows=%lld ok=%lld failed=%lld invalid=%lld other=%lld present=%lld "
           "repeated=%lld dead_letters=%lld rows_per_s=%.1f tokens_in_per_s=%.1f "
           "tokens_out_per_s=%.1f occupancy=%.3f parked=%lld resumed=%lld passed_over=%lld "
           "seconds=%.3f outputs=%s\n",
           w->work_left ? "stopped" : "done", s->prepare.defaults.batch_id.ptr, (long long)rows,
           (long long)w->rows[RESULT_OK], (long long)w->rows[RESULT_FAILED],
           (long long)w->rows[RESULT_INVALID],
           (long long)(w->rows[RESULT_EXPIRED] + w->rows[RESULT_CANCELLED] + w->rows[RESULT_DEAD]),
           (long long)w->present, (long long)w->repeated, (long long)w->dead_letters,
           (double)rows / seconds, (double)w->prompt_tokens / seconds,
           (double)w->completion_tokens / seconds, occupancy, (long long)w->parked,
           (long long)w->resumed, (long long)w->passed_over, w->seconds, hex);
    fflush(stdout);
}

static int verdict(const struct session *s, const struct worker_summary *w, int rc,
                   const struct err *err)
{
    /* A source that refuses would refuse the next process too. */
    bool config_fault =
        strcmp(err->type, "database_config") == 0 || strcmp(err->type, SOURCE_REFUSED) == 0;
    if (rc < 0)
        return rc == E_USAGE   ? EXIT_USAGE
               : rc == E_RETRY ? EXIT_UNREACHABLE
               : config_fault  ? EXIT_MODEL
                               : EXIT_ENGINE;
    if (w->work_left)
        return stop_number() == SIGTERM ? EXIT_TERMINATED : EXIT_INTERRUPTED;
    int64_t not_ok = w->dead_letters;
    for (int i = 0; i < RESULT_STATUSES; i++)
        not_ok += i == RESULT_OK ? 0 : w->rows[i];
    /* --strict speaks of the batch, so that running again does not turn it green. */
    for (int i = 0; i < RESULT_STATUSES; i++)
        not_ok += i == RESULT_OK ? 0 : w->totals.rows[i];
    return s->opts.strict && not_ok + w->totals.dead_letters > 0 ? EXIT_STRICT : EXIT_WELL;
}

static void tell_left(const struct worker_summary *w)
{
    fprintf(stderr, "tranche run: %s%lld jobs are left%s; the same command goes on with them\n",
            w->unread ? "at least " : "", (long long)w->left,
            w->unread ? " (the input was not read to its end)" : "");
}

static int run_session(struct session *s, struct err *err)
{
    const struct run_opts *o = &s->opts;
    struct progress_meter meter;
    struct worker_summary summary;
    const struct clock *clock = clock_system();
    bool shown = progress_open(&meter, o->progress, stderr, clock_mono_ns(clock));
    struct worker_opts w = {.source = s->source,
                            .engines = s->engines,
                            .n_engines = s->n_engines,
                            .sink = s->sink,
                            .spool = s->spool,
                            .prepare = &s->prepare,
                            .configs = &s->base,
                            .result = &s->result,
                            .clock = clock,
                            .group = o->source.group,
                            .prepare_threads = o->prepare_threads,
                            .claim_rows = o->claim_rows,
                            .claim_bytes = o->claim_bytes,
                            .flush_rows = o->flush_rows,
                            .flush_ns = o->flush_ns,
                            .grace_ns = o->grace_ns,
                            .breaker = o->breaker,
                            .self_test = o->self_test,
                            .stop_signal = stop_count(),
                            .progress = shown ? &meter : NULL,
                            .tell_stop = strcmp(o->command, "run") == 0,
                            .self = s->self};
    stop_begin(drain_budget_of(o->grace_ns).exit_ns);
    LOG(LOG_INFO, "run_started", LOG_S("input", s->source->label), LOG_S("db", o->db),
        LOG_STR("batch", s->prepare.defaults.batch_id), LOG_S("run", o->run),
        LOG_F("share", o->share > 0 ? o->share : 1),
        LOG_S("config_revision", s->result.config_revision),
        LOG_S("fingerprint", s->result.fingerprint));
    int rc = worker_run(&w, &summary, err);
    int code = verdict(s, &summary, rc, err);
    if (shown) {
        progress_close(&meter);
        if (w.tell_stop && rc == E_OK && summary.work_left)
            tell_left(&summary);
    }
    print_summary(&summary, s);
    LOG(LOG_INFO, "run_ended", LOG_I("exit", code), LOG_I("sampled", summary.engine.sampled),
        LOG_I("parked", summary.parked), LOG_I("parked_tokens", summary.parked_tokens),
        LOG_I("resumed", summary.resumed), LOG_I("resumed_tokens", summary.resumed_tokens),
        LOG_F("seconds", summary.seconds));
    return code;
}

static int run_work(struct session *s, struct err *err)
{
    int code = session_open(s, err);
    return code == EXIT_WELL ? run_session(s, err) : code;
}

static int run_record(struct session *s, struct err *err)
{
    int code = exit_of(open_sink(s, err));
    return code == EXIT_WELL ? exit_of(record_deaths(s, err)) : code;
}

int run_main(const struct run_opts *o)
{
    struct supervised alone = {.pid = getpid()};
    struct session s = {.opts = *o, .self = o->self ? o->self : &alone};
    struct err err = {0};
    stop_catch();
    fill_defaults(&s);
    supervised_begin(s.self, s.worker_name);
    int code = o->task == CHILD_RECORD ? run_record(&s, &err) : run_work(&s, &err);
    if (err.code)
        fprintf(stderr, "tranche %s: %s\n", o->command, err.msg);
    char batch[JOB_ORIGIN_MAX + 1] = "";
    if (s.source)
        snprintf(batch, sizeof batch, "%s", o->batch ? o->batch : s.source->stem);
    session_close(&s);
    supervised_end();
    stop_release();
    /* Behind the close: the sink has then written all of it to the file. */
    if (o->show > 0 && !err.code && o->task == CHILD_WORK)
        show_rows(o, s.opts.run, o->batch ? o->batch : batch, stdout);
    return code;
}
