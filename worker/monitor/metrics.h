/* metrics: what the worker counts, as Prometheus text. One table (metrics.c) holds every family:
 * name, type, unit, labels. Like the log it belongs to the process, not to an object, because the
 * places that know are on every thread.
 *
 * Updates are single relaxed atomic operations, for any thread, and never wait; only the HTTP
 * thread reads. Labels come from the table alone, so the number of series is fixed at build: no
 * ids, no text of a job. Times are given in ns and written in seconds. */
#ifndef TRANCHE_WORKER_MONITOR_METRICS_H
#define TRANCHE_WORKER_MONITOR_METRICS_H

#include "worker/job/text.h"

enum metric {
    METRIC_CLAIMED,
    METRIC_ROWS, /* label: enum result_status */
    METRIC_INSERTED,
    METRIC_DUPLICATES, /* label: enum metric_duplicate */
    METRIC_PASSED_OVER,
    METRIC_DEAD_LETTERS,
    METRIC_ATTEMPTS, /* label: enum metric_attempt */
    METRIC_PROMPT_TOKENS,
    METRIC_COMPLETION_TOKENS,
    METRIC_CHECKED_ANSWERS, /* label: 0 wrong, 1 correct */
    METRIC_PARKED,
    METRIC_RESUMED,
    METRIC_SINK_RETRIES,
    METRIC_STEPS,
    METRIC_STEP_TOKENS, /* label: enum metric_step_tokens */
    METRIC_STEP_ROWS,   /* label: enum metric_step_rows */
    METRIC_SLOT_STEPS,
    METRIC_SAMPLED,
    METRIC_EVICTIONS,
    METRIC_DEVICE,
    METRIC_SLOTS,
    METRIC_ENGINES,
    METRIC_PREPARE_THREADS,
    METRIC_RUNNING,
    METRIC_WAITING,
    METRIC_OCCUPANCY,
    METRIC_PAGES,
    METRIC_PAGES_USED,
    METRIC_OUTSTANDING,
    METRIC_QUEUE_AGE,
    METRIC_LAG,
    METRIC_LAG_BYTES,
    METRIC_PENDING,
    METRIC_RETAINED,
    METRIC_SPOOLED,
    METRIC_SPOOL_BYTES,
    METRIC_SPOOL_LIMIT,
    METRIC_SINK_STATE,    /* label: enum sink_state */
    METRIC_BREAKER_STATE, /* label: enum breaker_state */
    METRIC_READY,
    METRIC_CONFIG_RELOADS, /* label: enum metric_config */
    METRIC_CONFIG_REFUSED,
    METRIC_BOTTLENECK, /* label: enum bottleneck */
    METRIC_GPU_MEMORY, /* label of these: NVML's index; METRIC_UNKNOWN without such a card */
    METRIC_GPU_MEMORY_USED,
    METRIC_GPU_BUSY,
    METRIC_GPU_CONTROLLER,
    METRIC_GPU_CELSIUS,
    METRIC_GPU_FOREIGN,
    METRIC_START_TIME,
    METRIC_STAGE, /* the first histogram; label: enum metric_stage */
    METRICS
};
enum metric_duplicate { DUPLICATE_PRESENT, DUPLICATE_IN_FLIGHT };
enum metric_attempt { ATTEMPT_STARTED, ATTEMPT_RETURNED };
enum metric_step_tokens { STEP_PREFILL, STEP_DECODE, STEP_CACHED };
enum metric_step_rows { STEP_USED, STEP_PADDING };
enum metric_config { CONFIG_ADOPTED, CONFIG_REFUSED };
enum metric_stage {
    METRIC_STAGE_QUEUE, /* from the message's time to the first step */
    METRIC_STAGE_PREPARE,
    METRIC_STAGE_RUN, /* from the first step to the last */
    METRIC_STAGE_RENDER,
    METRIC_STAGE_PREFILL, /* from the first step to the first token; not of resumed sequences */
    METRIC_STAGE_DECODE,  /* from there to the last step */
    METRIC_STAGE_SINK     /* from the last step to the COMMIT, or to the spool */
};
enum { METRIC_LABELS_MAX = 8 };
#define METRIC_UNKNOWN INT64_MIN /* of a gauge: no sample is written */

/* `label` is an index into the family's own label values; 0 where it has none. */
void metric_add(enum metric m, int label, int64_t by);    /* a counter */
void metric_set(enum metric m, int label, int64_t value); /* a gauge, or a counter kept elsewhere */
void metric_state(enum metric m, int state);              /* a gauge: 1 for this label, else 0 */
void metric_observe(enum metric m, int label, int64_t ns); /* a histogram; below 0 counts as 0 */
int64_t metric_get(enum metric m, int label);              /* METRIC_UNKNOWN where it is */

/* What the answers depend on, as tranche_model_info's labels. */
void metrics_model(const char *fingerprint, const char *config_revision, const char *run);
void metrics_revision(const char *config_revision); /* from here on another one */
/* What is read: "kafka", "redis" or "file"; topic, stream or path; NULL where there is no group. As
 * tranche_source_info's labels, by which lag is joined to a queue. */
void metrics_source(const char *kind, struct str queue, const char *group);

/* Appends every family in the table's order, HELP and TYPE lines included (text format 0.0.4). */
void metrics_render(struct text *out);
void metrics_reset(void); /* all back to zero: for tests, no other thread may be in here */

#endif
