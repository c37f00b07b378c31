/* metrics: see metrics.h. */
#include "worker/monitor/metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "generated/version.h"

enum type { COUNTER, GAUGE, HISTOGRAM };
static const char *const type_names[] = {"counter", "gauge", "histogram"};
enum { BUCKETS = 14, HISTOGRAMS = METRICS - METRIC_STAGE, LABEL_BYTES = 320 };
static const int64_t NS = 1000000000;
/* Upper bounds in ms: a prompt's tokenization on one end, a night in a queue on the other. */
static const int64_t bounds_ms[BUCKETS] = {1,    5,     20,    100,    500,    1000,    2500,
                                           5000, 10000, 30000, 120000, 600000, 3600000, 28800000};

struct family {
    const char *name, *help;
    enum type type;
    int64_t per_unit; /* kept values that make one of the name's unit; 0: 1 */
    const char *label;
    const char *values[METRIC_LABELS_MAX];
};
#define GPU .label = "device", .values = {"0", "1", "2", "3", "4", "5", "6", "7"}
static const struct family families[METRICS] = {
    [METRIC_CLAIMED] = {.name = "tranche_messages_claimed_total",
                        .help = "Messages taken from the source.",
                        .type = COUNTER},
    [METRIC_ROWS] = {.name = "tranche_rows_total",
                     .help = "Rows finished by this process, in the database or its spool.",
                     .type = COUNTER,
                     .label = "status",
                     .values = {"ok", "failed", "invalid", "expired", "cancelled", "dead"}},
    [METRIC_INSERTED] = {.name = "tranche_rows_inserted_total",
                         .help = "Rows that the database has taken from this process as new.",
                         .type = COUNTER},
    [METRIC_DUPLICATES] = {.name = "tranche_duplicates_total",
                           .help = "Messages whose row was there, or whose twin was in flight.",
                           .type = COUNTER,
                           .label = "kind",
                           .values = {"present", "in_flight"}},
    [METRIC_PASSED_OVER] = {.name = "tranche_passed_over_total",
                            .help = "Messages beyond the share of --canary, left without a row.",
                            .type = COUNTER},
    [METRIC_DEAD_LETTERS] = {.name = "tranche_dead_letters_total",
                             .help = "New dead letters.",
                             .type = COUNTER},
    [METRIC_ATTEMPTS] = {.name = "tranche_attempts_total",
                         .help =
                             "Starts counted in the database before the engine, and given back.",
                         .type = COUNTER,
                         .label = "kind",
                         .values = {"started", "returned"}},
    [METRIC_PROMPT_TOKENS] = {.name = "tranche_prompt_tokens_total",
                              .help = "Prompt tokens of finished rows.",
                              .type = COUNTER},
    [METRIC_COMPLETION_TOKENS] = {.name = "tranche_completion_tokens_total",
                                  .help = "Generated tokens of finished rows.",
                                  .type = COUNTER},
    [METRIC_CHECKED_ANSWERS] = {.name = "tranche_checked_answers_total",
                                .help = "Answers of jobs that named an expected one.",
                                .type = COUNTER,
                                .label = "verdict",
                                .values = {"wrong", "correct"}},
    [METRIC_PARKED] = {.name = "tranche_sequences_parked_total",
                       .help = "Sequences that a drain took off the engine.",
                       .type = COUNTER},
    [METRIC_RESUMED] = {.name = "tranche_sequences_resumed_total",
                        .help = "Sequences that went on where another worker had parked them.",
                        .type = COUNTER},
    [METRIC_SINK_RETRIES] = {.name = "tranche_sink_retries_total",
                             .help = "Calls that the database could not take at that moment.",
                             .type = COUNTER},
    [METRIC_STEPS] = {.name = "tranche_engine_steps_total",
                      .help = "Steps, the mean over the engines' slots.",
                      .type = COUNTER},
    [METRIC_STEP_TOKENS] =
        {.name = "tranche_engine_tokens_total",
         .help = "Tokens computed in steps; cached: taken from a shared prefix instead.",
         .type = COUNTER,
         .label = "kind",
         .values = {"prefill", "decode", "cached"}},
    [METRIC_STEP_ROWS] =
        {.name = "tranche_engine_step_rows_total",
         .help = "Rows that steps computed; padding: up to the width that a GPU's products run in, "
                 "none on a CPU.",
         .type = COUNTER,
         .label = "kind",
         .values = {"used", "padding"}},
    [METRIC_SLOT_STEPS] = {.name = "tranche_engine_slot_steps_total",
                           .help = "Sum over steps of the sequences that ran.",
                           .type = COUNTER},
    [METRIC_SAMPLED] = {.name = "tranche_engine_sampled_tokens_total",
                        .help = "Tokens generated, also of sequences that still run.",
                        .type = COUNTER},
    [METRIC_EVICTIONS] = {.name = "tranche_engine_evictions_total",
                          .help = "Sequences evicted for want of KV pages, to be computed again.",
                          .type = COUNTER},
    [METRIC_DEVICE] = {.name = "tranche_engine_device_seconds_total",
                       .help = "Time of the device in steps.",
                       .type = COUNTER,
                       .per_unit = NS},
    [METRIC_SLOTS] = {.name = "tranche_engine_slots",
                      .help = "Sequences that can run at once.",
                      .type = GAUGE},
    [METRIC_ENGINES] = {.name = "tranche_engines",
                        .help = "Engines, each on a device of its own.",
                        .type = GAUGE},
    [METRIC_PREPARE_THREADS] = {.name = "tranche_prepare_threads",
                                .help = "Threads that tokenize prompts and render answers.",
                                .type = GAUGE},
    [METRIC_RUNNING] = {.name = "tranche_engine_running_sequences",
                        .help = "Sequences that run.",
                        .type = GAUGE},
    [METRIC_WAITING] = {.name = "tranche_waiting_jobs",
                        .help = "Jobs claimed that do not run yet, or any more.",
                        .type = GAUGE},
    [METRIC_OCCUPANCY] = {.name = "tranche_engine_occupancy_ratio",
                          .help = "Share of slots in use, the mean over all steps so far.",
                          .type = GAUGE,
                          .per_unit = 1000000},
    [METRIC_PAGES] = {.name = "tranche_kv_pages",
                      .help = "Pages of keys and values.",
                      .type = GAUGE},
    [METRIC_PAGES_USED] = {.name = "tranche_kv_used_pages",
                           .help = "Of these in use.",
                           .type = GAUGE},
    [METRIC_OUTSTANDING] = {.name = "tranche_outstanding_messages",
                            .help = "Messages claimed and not acknowledged.",
                            .type = GAUGE},
    [METRIC_QUEUE_AGE] = {.name = "tranche_queue_age_seconds",
                          .help = "Age of the oldest message claimed and not acknowledged.",
                          .type = GAUGE,
                          .per_unit = NS},
    [METRIC_LAG] =
        {.name = "tranche_source_lag_messages",
         .help = "What is left, as KEDA reads it: Kafka, not acknowledged of our partitions (the "
                 "end as of the last fetch); Redis, unread and pending of the group.",
         .type = GAUGE},
    [METRIC_LAG_BYTES] = {.name = "tranche_source_lag_bytes",
                          .help = "Bytes of a file that are unread.",
                          .type = GAUGE},
    [METRIC_PENDING] = {.name = "tranche_source_pending_messages",
                        .help = "Redis: claimed by any worker of the group and not acknowledged.",
                        .type = GAUGE},
    [METRIC_RETAINED] =
        {.name = "tranche_source_retained_messages",
         .help = "Kafka: from the log's start to our oldest unfinished message, the least of our "
                 "partitions; at 0 retention takes what has no row.",
         .type = GAUGE},
    [METRIC_SPOOLED] = {.name = "tranche_spooled_messages",
                        .help = "Messages whose rows are in the spool and not yet in the database.",
                        .type = GAUGE},
    [METRIC_SPOOL_BYTES] = {.name = "tranche_spool_bytes",
                            .help = "Size of the spool.",
                            .type = GAUGE},
    [METRIC_SPOOL_LIMIT] = {.name = "tranche_spool_limit_bytes",
                            .help = "What the spool may take; 0: there is none.",
                            .type = GAUGE},
    [METRIC_SINK_STATE] = {.name = "tranche_sink_state",
                           .help = "1 for the state that the database is in.",
                           .type = GAUGE,
                           .label = "state",
                           .values = {"well", "away", "away_full"}},
    [METRIC_BREAKER_STATE] = {.name = "tranche_breaker_state",
                              .help = "1 for the state that the breaker is in.",
                              .type = GAUGE,
                              .label = "state",
                              .values = {"closed", "open", "probing"}},
    [METRIC_READY] = {.name = "tranche_ready",
                      .help = "1 where /readyz answers 200.",
                      .type = GAUGE},
    [METRIC_CONFIG_RELOADS] = {.name = "tranche_config_reloads_total",
                               .help = "New revisions found in the directory of --job-config.",
                               .type = COUNTER,
                               .label = "result",
                               .values = {"adopted", "refused"}},
    [METRIC_CONFIG_REFUSED] = {.name = "tranche_config_refused",
                               .help =
                                   "1 while what lies in the directory of --job-config is refused.",
                               .type = GAUGE},
    [METRIC_BOTTLENECK] =
        {.name = "tranche_bottleneck_seconds_total",
         .help = "Time in which this kept the worker from more rows; engine: its slots were full.",
         .type = COUNTER,
         .per_unit = NS,
         .label = "what",
         .values = {"idle", "source", "prepare", "pages", "engine", "sink"}},
    [METRIC_GPU_MEMORY] = {.name = "tranche_gpu_memory_bytes",
                           .help =
                               "Memory of a card that this process sees, by the driver's index.",
                           .type = GAUGE,
                           GPU},
    [METRIC_GPU_MEMORY_USED] = {.name = "tranche_gpu_memory_used_bytes",
                                .help = "Of it in use, by whomever.",
                                .type = GAUGE,
                                GPU},
    [METRIC_GPU_BUSY] = {.name = "tranche_gpu_utilization_ratio",
                         .help = "Share of the last moments in which a kernel ran.",
                         .type = GAUGE,
                         .per_unit = 1000000,
                         GPU},
    [METRIC_GPU_CONTROLLER] = {.name = "tranche_gpu_memory_controller_ratio",
                               .help = "Share of the last moments in which memory was read or "
                                       "written.",
                               .type = GAUGE,
                               .per_unit = 1000000,
                               GPU},
    [METRIC_GPU_CELSIUS] = {.name = "tranche_gpu_temperature_celsius",
                            .help = "Temperature of the chip.",
                            .type = GAUGE,
                            GPU},
    [METRIC_GPU_FOREIGN] = {.name = "tranche_gpu_foreign_processes",
                            .help = "Processes on the card that are not this one; none where the "
                                    "driver's ids are of another namespace.",
                            .type = GAUGE,
                            GPU},
    [METRIC_START_TIME] = {.name = "tranche_start_time_seconds",
                           .help = "When this process began, Unix time.",
                           .type = GAUGE,
                           .per_unit = NS},
    [METRIC_STAGE] =
        {.name = "tranche_stage_seconds",
         .help = "Time of a job in a stage: queue, its message's time to its first step; run, "
                 "to its last, of which prefill goes to its first token and decode from there; "
                 "sink, from its last step to its COMMIT or spool.",
         .type = HISTOGRAM,
         .per_unit = NS,
         .label = "stage",
         .values = {"queue", "prepare", "run", "render", "prefill", "decode", "sink"}},
};

static atomic_llong values[METRICS][METRIC_LABELS_MAX];
static struct {
    atomic_llong in[BUCKETS + 1], sum_ns;
} histograms[HISTOGRAMS][METRIC_LABELS_MAX];
/* Families whose labels say what is so, with the value 1; nothing until it is known. */
enum info { INFO_MODEL, INFO_SOURCE, INFOS };
enum { INFO_LABELS = 3, LABEL_REVISION = 1 };
static struct {
    const char *name, *help, *labels[INFO_LABELS];
    char values[INFO_LABELS][LABEL_BYTES];
    bool known;
} infos[INFOS] = {
    [INFO_MODEL] = {.name = "tranche_model_info",
                    .help = "1 once the model is loaded; what its answers depend on.",
                    .labels = {"fingerprint", "config_revision", "run"}},
    [INFO_SOURCE] = {.name = "tranche_source_info",
                     .help = "1 once the source is open; what is read, and with whom it is shared.",
                     .labels = {"kind", "queue", "group"}},
};
static pthread_mutex_t info_mutex = PTHREAD_MUTEX_INITIALIZER; /* guards their values and known */

static int labels_of(const struct family *f)
{
    int n = 0;
    while (n < METRIC_LABELS_MAX && f->values[n])
        n++;
    return TR_MAX(n, 1);
}

void metric_add(enum metric m, int label, int64_t by)
{
    atomic_fetch_add_explicit(&values[m][label], by, memory_order_relaxed);
}

void metric_set(enum metric m, int label, int64_t value)
{
    atomic_store_explicit(&values[m][label], value, memory_order_relaxed);
}

void metric_state(enum metric m, int state)
{
    for (int i = 0; i < labels_of(&families[m]); i++)
        metric_set(m, i, i == state);
}

void metric_observe(enum metric m, int label, int64_t ns)
{
    int b = 0;
    ns = TR_MAX(ns, (int64_t)0);
    while (b < BUCKETS && ns > bounds_ms[b] * 1000000)
        b++;
    atomic_fetch_add_explicit(&histograms[m - METRIC_STAGE][label].in[b], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&histograms[m - METRIC_STAGE][label].sum_ns, ns,
                              memory_order_relaxed);
}

int64_t metric_get(enum metric m, int label)
{
    return atomic_load_explicit(&values[m][label], memory_order_relaxed);
}

static void set_info(enum info which, const char *const *texts)
{
    pthread_mutex_lock(&info_mutex);
    for (int i = 0; i < INFO_LABELS; i++)
        snprintf(infos[which].values[i], LABEL_BYTES, "%s", texts[i]);
    infos[which].known = true;
    pthread_mutex_unlock(&info_mutex);
}

void metrics_model(const char *fingerprint, const char *config_revision, const char *run)
{
    const char *texts[INFO_LABELS] = {fingerprint, config_revision, run};
    set_info(INFO_MODEL, texts);
}

void metrics_revision(const char *config_revision)
{
    pthread_mutex_lock(&info_mutex);
    snprintf(infos[INFO_MODEL].values[LABEL_REVISION], LABEL_BYTES, "%s", config_revision);
    pthread_mutex_unlock(&info_mutex);
}

void metrics_source(const char *kind, struct str queue, const char *group)
{
    char name[LABEL_BYTES];
    const char *texts[INFO_LABELS] = {kind, name, group ? group : ""};
    snprintf(name, sizeof name, "%.*s", (int)TR_MIN(queue.len, sizeof name - 1), queue.ptr);
    set_info(INFO_SOURCE, texts);
}

void metrics_reset(void)
{
    for (int m = 0; m < METRICS; m++)
        for (int l = 0; l < METRIC_LABELS_MAX; l++)
            metric_set((enum metric)m, l, 0);
    for (int h = 0; h < HISTOGRAMS; h++)
        for (int l = 0; l < METRIC_LABELS_MAX; l++) {
            atomic_store(&histograms[h][l].sum_ns, 0);
            for (int b = 0; b <= BUCKETS; b++)
                atomic_store(&histograms[h][l].in[b], 0);
        }
    for (int i = 0; i < INFOS; i++)
        infos[i].known = false;
}

/* ---- text ---- */

/* Exact: an integer, and where the unit is a fraction its decimal digits. */
static void put_value(struct text *out, int64_t v, int64_t per_unit)
{
    if (per_unit <= 1) {
        text_f(out, "%lld\n", (long long)v);
        return;
    }
    int digits = 0;
    for (int64_t p = per_unit; p > 1; p /= 10)
        digits++;
    text_f(out, "%s%lld.%0*lld\n", v < 0 ? "-" : "", llabs(v / per_unit), digits,
           llabs(v % per_unit));
}

static void put_label(struct text *out, const char *name, const char *value)
{
    text_f(out, "%s=\"", name);
    for (const char *p = value; *p; p++) {
        if (*p == '\\' || *p == '"' || *p == '\n')
            text_char(out, '\\');
        text_char(out, *p == '\n' ? 'n' : *p);
    }
    text_char(out, '"');
}

static void put_head(struct text *out, const char *name, const char *help, const char *type)
{
    text_f(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* _count is the sum of the buckets as read, so that it never contradicts the last one. */
static void put_histogram(struct text *out, const struct family *f, int h, int label)
{
    int64_t total = 0;
    for (int b = 0; b <= BUCKETS; b++) {
        total += atomic_load_explicit(&histograms[h][label].in[b], memory_order_relaxed);
        text_f(out, "%s_bucket{%s=\"%s\",le=\"", f->name, f->label, f->values[label]);
        if (b < BUCKETS)
            text_f(out, "%g\"} ", (double)bounds_ms[b] / 1000);
        else
            text_f(out, "+Inf\"} ");
        put_value(out, total, 1);
    }
    text_f(out, "%s_sum{%s=\"%s\"} ", f->name, f->label, f->values[label]);
    put_value(out, atomic_load_explicit(&histograms[h][label].sum_ns, memory_order_relaxed),
              f->per_unit);
    text_f(out, "%s_count{%s=\"%s\"} %lld\n", f->name, f->label, f->values[label],
           (long long)total);
}

static void put_infos(struct text *out)
{
    put_head(out, "tranche_build_info", "1; which build this is.", "gauge");
    text_f(out, "tranche_build_info{");
    put_label(out, "version", TRANCHE_VERSION);
    text_char(out, ',');
    put_label(out, "commit", TRANCHE_COMMIT);
    text_f(out, "} 1\n");
    pthread_mutex_lock(&info_mutex);
    for (int m = 0; m < INFOS; m++) {
        put_head(out, infos[m].name, infos[m].help, "gauge");
        for (int i = 0; infos[m].known && i < INFO_LABELS; i++) {
            if (i)
                text_char(out, ',');
            else
                text_f(out, "%s{", infos[m].name);
            put_label(out, infos[m].labels[i], infos[m].values[i]);
        }
        text_add(out, infos[m].known ? STR("} 1\n") : STR(""));
    }
    pthread_mutex_unlock(&info_mutex);
}

void metrics_render(struct text *out)
{
    put_infos(out);
    for (int m = 0; m < METRICS; m++) {
        const struct family *f = &families[m];
        put_head(out, f->name, f->help, type_names[f->type]);
        for (int l = 0; l < labels_of(f); l++) {
            int64_t v = metric_get((enum metric)m, l);
            if (f->type == HISTOGRAM) {
                put_histogram(out, f, m - METRIC_STAGE, l);
            } else if (v != METRIC_UNKNOWN && f->label) {
                text_f(out, "%s{%s=\"%s\"} ", f->name, f->label, f->values[l]);
                put_value(out, v, f->per_unit);
            } else if (v != METRIC_UNKNOWN) {
                text_f(out, "%s ", f->name);
                put_value(out, v, f->per_unit);
            }
        }
    }
}
