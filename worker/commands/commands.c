/* commands: the small commands, and the step from options to run and export. */
#include "worker/commands/commands.h"

#include <errno.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <sqlite3.h>
#include <string.h>
#include <utf8proc.h>

#include "engine/log.h"
#include "generated/version.h"
#include "kernels/kernels.h"
#include "worker/commands/export.h"
#include "worker/commands/run.h"
#include "worker/commands/submit.h"
#include "worker/monitor/gpu_watch.h"
#include "worker/monitor/health.h"
#include "worker/monitor/http.h"
#include "worker/monitor/metrics.h"
#include "worker/monitor/progress.h"

void command_log_setup(const struct config *config)
{
    static const enum log_level levels[] = {LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF};
    static const enum log_format formats[] = {LOG_LOGFMT, LOG_JSON};
    log_setup(levels[config_choice(config, "log-level")],
              formats[config_choice(config, "log-format")], 2);
    if (config->warning[0])
        LOG(LOG_WARN, "environment_unknown", LOG_S("text", config->warning));
}

int command_output_failed(struct err *err, const char *path, const char *what)
{
    return err_typed(err, E_FATAL, COMMAND_OUTPUT, "%s: cannot %s: %s", path, what,
                     strerror(errno));
}

int command_failed(const struct config *config, const struct err *err)
{
    fflush(stdout);
    fprintf(stderr, "tranche %s: %s\n", config->command->name, err->msg);
    if (err->code == E_USAGE)
        return EXIT_USAGE;
    if (strcmp(err->type, COMMAND_OUTPUT) == 0)
        return EXIT_OUTPUT;
    return err->code == E_RETRY ? EXIT_UNREACHABLE : EXIT_MODEL;
}

static enum progress_mode progress_mode(const struct config *config)
{
    static const enum progress_mode modes[] = {PROGRESS_AUTO, PROGRESS_LIVE, PROGRESS_PLAIN,
                                               PROGRESS_OFF};
    return modes[config_choice(config, "progress")];
}

/* What run and worker share. */
static int run_options(struct run_opts *o, const struct config *config, struct err *err)
{
    run_opts_init(o);
    o->command = config->command->name;
    o->db = config_text(config, "db");
    postgres_opts_from_config(&o->postgres, config);
    o->batch = config_text(config, "batch");
    o->run = config_text(config, "run");
    o->worker_name = config_text(config, "worker-name");
    o->ignore_generation_config = !config_flag(config, "generation-config");
    o->share = config_real(config, "canary") / 100;
    o->job_config = config_text(config, "job-config");
    o->default_max_tokens = (int32_t)config_int(config, "default-max-tokens");
    o->prepare_threads = (int32_t)config_int(config, "prepare-threads");
    o->claim_rows = config_int(config, "claim-rows");
    o->claim_bytes = config_int(config, "claim-bytes");
    o->flush_rows = (int32_t)config_int(config, "flush-rows");
    o->spool_dir = config_text(config, "spool-dir");
    o->spool_bytes = config_int(config, "spool-bytes");
    o->flush_ns = config_int(config, "flush-interval");
    o->grace_ns = config_int(config, "grace");
    o->self_test = config_text(config, "http") != NULL;
    o->progress = progress_mode(config);
    return model_opts_from_config(&o->model, config, err);
}

struct served {
    const struct config *config;
    child_main *main;
    int http; /* the listening socket; -1: none */
};

/* Probes have an answer from before anything else is opened until all of it is closed. */
static int serve_child(void *ctx, struct supervised *self, enum child_task task)
{
    struct served *s = ctx;
    struct err err = {0};
    struct http *http = NULL;
    health_begin(config_int(s->config, "watchdog"));
    metric_set(METRIC_START_TIME, 0, clock_wall_ns(clock_system()));
    /* Before the first word of the source an empty queue would be a lie, and so would a message
     * that is the next to be deleted. */
    metric_set(METRIC_LAG, 0, METRIC_UNKNOWN);
    metric_set(METRIC_LAG_BYTES, 0, METRIC_UNKNOWN);
    metric_set(METRIC_PENDING, 0, METRIC_UNKNOWN);
    metric_set(METRIC_RETAINED, 0, METRIC_UNKNOWN);
    if (task == CHILD_WORK && s->http >= 0 && http_open(&http, s->http, &err) < 0)
        return command_failed(s->config, &err);
    struct gpu_watch *gpus = http ? gpu_watch_open() : NULL;
    int code = s->main((void *)(uintptr_t)s->config, self, task);
    gpu_watch_close(gpus);
    http_close(http);
    return code;
}

/* Everything is opened in the child, even the look for a GPU that --device=auto takes: a process
 * that has looked cannot hand the card to its child. Standard input cannot be read twice. */
static int supervise(const struct config *config, child_main *child)
{
    bool standard = config->n_operands && strcmp(config->operands[0], "-") == 0;
    struct supervisor_opts o = {.off = !config_flag(config, "supervise"),
                                .watchdog_ns = config_int(config, "watchdog"),
                                .memory = config_int(config, "memory-limit"),
                                .restarts = standard ? 0 : (int32_t)config_int(config, "restarts"),
                                .clock = clock_system()};
    struct served served = {config, child, -1};
    struct err err = {0};
    const char *address = config_text(config, "http");
    if (address && http_listen(&served.http, address, &err) < 0)
        return command_failed(config, &err);
    /* The parent logs beneath the line that a child left when it died. */
    log_over_live_line(progress_is_live(progress_mode(config), stderr));
    return supervisor_run(&o, serve_child, &served);
}

static int run_child(void *ctx, struct supervised *self, enum child_task task)
{
    const struct config *config = ctx;
    struct err err = {0};
    struct run_opts o;
    if (run_options(&o, config, &err) < 0)
        return command_failed(config, &err);
    o.self = self;
    o.task = task;
    o.input = config->operands[0];
    o.strict = config_flag(config, "strict");
    o.show = (int32_t)config_int(config, "show");
    return run_main(&o);
}

int command_run(const struct config *config)
{
    struct err err = {0};
    command_log_setup(config);
    if (config->n_operands > 0)
        return supervise(config, run_child);
    err_set(&err, E_USAGE, "want a job file (JSONL, or \"-\" for standard input), found none");
    return command_failed(config, &err);
}

/* The Queue options, which every command that talks to a broker has. */
static void queue_options(struct source_opts *o, const struct config *config)
{
    o->url = config_text(config, "source");
    o->broker_config = config_text(config, "broker-config");
    o->allow_insecure = config_flag(config, "allow-insecure");
    o->connect_timeout_ns = config_int(config, "connect-timeout");
}

static int worker_child(void *ctx, struct supervised *self, enum child_task task)
{
    const struct config *config = ctx;
    struct err err = {0};
    struct run_opts o;
    if (run_options(&o, config, &err) < 0)
        return command_failed(config, &err);
    o.self = self;
    o.task = task;
    queue_options(&o.source, config);
    o.source.group = config_text(config, "group");
    o.source.partition = (int32_t)config_int(config, "partition");
    o.breaker = config_real(config, "breaker");
    o.source.idle_exit_ns = config_int(config, "idle-exit");
    o.source.tombstone_cancels = config_flag(config, "tombstone-cancels");
    o.dead_letters = o.source;
    o.dead_letters.url = config_text(config, "dead-letters-to");
    o.dead_letters.partition = -1;
    if (config_text(config, "dead-letters-config"))
        o.dead_letters.broker_config = config_text(config, "dead-letters-config");
    return run_main(&o);
}

int command_worker(const struct config *config)
{
    struct err err = {0};
    command_log_setup(config);
    if (config_text(config, "source"))
        return supervise(config, worker_child);
    err_set(&err, E_USAGE, "want --source URL, as in kafka://localhost:9092/jobs, found none");
    return command_failed(config, &err);
}

int command_init(const struct config *config)
{
    struct source_opts queue = {.group = config_text(config, "group"), .partition = -1};
    struct queue_shape shape = {.partitions = (int32_t)config_int(config, "partitions"),
                                .replicas = (int32_t)config_int(config, "replicas"),
                                .from_end = config_flag(config, "from-end")};
    command_log_setup(config);
    queue_options(&queue, config);
    return config_flag(config, "drop-group") ? drop_main(&queue) : init_main(&queue, &shape);
}

int command_submit(const struct config *config)
{
    struct err err = {0};
    struct submit_opts o = {.batch = config_text(config, "batch"), .queue = {.partition = -1}};
    command_log_setup(config);
    if (config->n_operands < 1) {
        err_set(&err, E_USAGE, "want a job file (JSONL), found none");
        return command_failed(config, &err);
    }
    struct postgres_opts db;
    postgres_opts_from_config(&db, config);
    if (config_origin(config, "db") != CONFIG_DEFAULT)
        o.db = &db;
    o.run = config_text(config, "run");
    o.file = config->operands[0];
    queue_options(&o.queue, config);
    return submit_main(&o);
}

int command_export(const struct config *config)
{
    struct err err = {0};
    struct export_opts o = {.batch = config_text(config, "batch"),
                            .run = config_text(config, "run"),
                            .output = config_text(config, "output"),
                            .errors = config_text(config, "errors")};
    command_log_setup(config);
    postgres_opts_from_config(&o.db, config);
    return export_main(&o, &err) < 0 ? command_failed(config, &err) : EXIT_WELL;
}

int command_help(const struct config *config)
{
    struct err err = {0};
    if (config_flag(config, "markdown")) {
        config_markdown(stdout);
        return EXIT_WELL;
    }
    const struct command_info *about = NULL;
    if (config->n_operands && config_command_find(&about, config->operands[0], &err) < 0)
        return command_failed(config, &err);
    config_help(stdout, about);
    return EXIT_WELL;
}

static const char *libpq_version(void)
{
    static char text[32];
    snprintf(text, sizeof text, "%d.%d", PQlibVersion() / 10000, PQlibVersion() % 10000);
    return text;
}

static json_t *version_document(void)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s}, s:s}", "version",
                     TRANCHE_VERSION, "commit", TRANCHE_COMMIT, "build", TRANCHE_BUILD, "compiler",
                     TRANCHE_COMPILER, "libraries", "jansson", jansson_version_str(), "sqlite",
                     sqlite3_libversion(), "libpq", libpq_version(), "utf8proc", utf8proc_version(),
                     "openssl", OpenSSL_version(OPENSSL_FULL_VERSION_STRING), "isa",
                     cpu_isa_name(cpu_isa_best()));
}

int command_version(const struct config *config)
{
    json_t *doc = version_document();
    CHECK(doc);
    if (config_flag(config, "json")) {
        json_dumpf(doc, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        printf("tranche %s (%s, %s, %s)\n", TRANCHE_VERSION, TRANCHE_COMMIT, TRANCHE_BUILD,
               TRANCHE_COMPILER);
        const char *key;
        json_t *value;
        json_object_foreach(json_object_get(doc, "libraries"), key, value)
            printf("  %-10s%s\n", key, json_string_value(value));
        printf("  %-10s%s\n", "isa", cpu_isa_name(cpu_isa_best()));
    }
    json_decref(doc);
    return EXIT_WELL;
}
