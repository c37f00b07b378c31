/* worker_metrics: what the worker's loop tells metrics.h and health.h: counts as they happen, and
 * ten times a second what others keep. */
#include "worker/monitor/bottleneck.h"
#include "worker/monitor/health.h"
#include "worker/monitor/metrics.h"
#include "worker/worker_impl.h"

static const int64_t EVERY_NS = 100000000;

void worker_metrics_row(const struct worker *w, const struct result *r)
{
    int64_t now = clock_wall_ns(w->opts.clock);
    metric_add(METRIC_ROWS, (int)r->status, 1);
    metric_add(METRIC_PROMPT_TOKENS, 0, r->prompt_tokens);
    metric_add(METRIC_COMPLETION_TOKENS, 0, r->completion_tokens);
    if (r->correct >= 0)
        metric_add(METRIC_CHECKED_ANSWERS, r->correct, 1);
    metric_observe(METRIC_STAGE, METRIC_STAGE_SINK, now - r->finished_ns);
    if (r->started_ns == 0)
        return;
    metric_observe(METRIC_STAGE, METRIC_STAGE_QUEUE, r->started_ns - r->queued_ns);
    metric_observe(METRIC_STAGE, METRIC_STAGE_RUN, r->finished_ns - r->started_ns);
    if (r->first_ns == 0)
        return;
    metric_observe(METRIC_STAGE, METRIC_STAGE_PREFILL, r->first_ns - r->started_ns);
    metric_observe(METRIC_STAGE, METRIC_STAGE_DECODE, r->finished_ns - r->first_ns);
}

static void note_engine(struct worker *w)
{
    struct engine_stats s;
    engine_group_stats(w->engine, &s);
    metric_set(METRIC_STEPS, 0, s.steps);
    metric_set(METRIC_STEP_TOKENS, STEP_PREFILL, s.prefill_rows);
    metric_set(METRIC_STEP_TOKENS, STEP_DECODE, s.decode_rows);
    metric_set(METRIC_STEP_TOKENS, STEP_CACHED, s.cached_rows);
    metric_set(METRIC_STEP_ROWS, STEP_USED, s.rows);
    metric_set(METRIC_STEP_ROWS, STEP_PADDING, s.padding_rows);
    metric_set(METRIC_SLOT_STEPS, 0, s.slot_steps);
    metric_set(METRIC_SAMPLED, 0, s.sampled);
    metric_set(METRIC_EVICTIONS, 0, s.evictions);
    metric_set(METRIC_DEVICE, 0, s.device_ns);
    metric_set(METRIC_SLOTS, 0, s.slots);
    metric_set(METRIC_ENGINES, 0, w->opts.n_engines);
    metric_set(METRIC_PREPARE_THREADS, 0, w->opts.prepare_threads);
    metric_set(METRIC_RUNNING, 0, s.running);
    metric_set(METRIC_WAITING, 0, TR_MAX((int64_t)w->out.n - s.running, (int64_t)0));
    metric_set(METRIC_PAGES, 0, s.pages);
    metric_set(METRIC_PAGES_USED, 0, s.pages_used);
    if (s.steps > 0 && s.slots > 0)
        metric_set(METRIC_OCCUPANCY, 0,
                   (int64_t)(1e6 * (double)s.slot_steps / (double)s.steps / s.slots));
}

static void note_queue(struct worker *w)
{
    struct source_lag lag;
    int64_t oldest = INT64_MAX, now = clock_wall_ns(w->opts.clock);
    intake_lag(w->intake, &lag);
    metric_set(METRIC_CLAIMED, 0, intake_claimed(w->intake));
    metric_set(METRIC_LAG, 0, lag.messages < 0 ? METRIC_UNKNOWN : lag.messages);
    metric_set(METRIC_LAG_BYTES, 0, lag.bytes < 0 ? METRIC_UNKNOWN : lag.bytes);
    metric_set(METRIC_PENDING, 0, lag.pending < 0 ? METRIC_UNKNOWN : lag.pending);
    metric_set(METRIC_RETAINED, 0, lag.retained < 0 ? METRIC_UNKNOWN : lag.retained);
    health_set(HEALTH_SOURCE, !lag.joined || w->rc != E_OK);
    metric_set(METRIC_OUTSTANDING, 0, (int64_t)w->out.n);
    metric_set(METRIC_SPOOLED, 0, (int64_t)w->spooled.n);
    for (int i = 0; i < SOURCE_PARTITIONS_MAX; i++)
        if (w->out.partitions[i].first)
            oldest = TR_MIN(oldest, w->out.partitions[i].first->queued_ns);
    metric_set(METRIC_QUEUE_AGE, 0, oldest == INT64_MAX ? 0 : TR_MAX(now - oldest, (int64_t)0));
}

/* Adds the time since the last look to what is in the way now. */
static void note_bottleneck(struct worker *w, int64_t since_ns)
{
    size_t rows = TR_MIN(w->to_commit.n + w->n_committing + w->spooled.n + w->replayed.n, w->out.n);
    struct bottleneck_view v = {.sink_away = w->sink_state != SINK_WELL,
                                .slots = metric_get(METRIC_SLOTS, 0),
                                .running = metric_get(METRIC_RUNNING, 0),
                                .jobs = (int64_t)(w->out.n - rows),
                                .pages = metric_get(METRIC_PAGES, 0),
                                .pages_used = metric_get(METRIC_PAGES_USED, 0),
                                .lag = metric_get(METRIC_LAG, 0)};
    metric_add(METRIC_BOTTLENECK, (int)bottleneck_of(&v), since_ns);
}

/* When each engine's loop last went round, as far as this loop can see it. */
static void note_beats(struct worker *w, int64_t now)
{
    for (int i = 0; w->opts.self && i < w->opts.n_engines; i++) {
        int64_t beats = atomic_load(&w->opts.self->engines[i].beats);
        if (!atomic_load(&w->opts.self->engines[i].armed)) {
            health_engine(i, 0);
        } else if (beats != w->beats[i] || w->beats_ns[i] == 0) {
            w->beats_ns[i] = now;
            health_engine(i, now);
        }
        w->beats[i] = beats;
    }
}

void worker_metrics_step(struct worker *w)
{
    const struct worker_summary *s = w->summary;
    int64_t now = clock_mono_ns(w->opts.clock);
    health_beat(now);
    if (now - w->metrics_ns < EVERY_NS)
        return;
    int64_t since = w->metrics_ns > 0 ? now - w->metrics_ns : 0;
    w->metrics_ns = now;
    note_engine(w);
    note_queue(w);
    note_bottleneck(w, since);
    note_beats(w, now);
    metric_set(METRIC_DUPLICATES, DUPLICATE_PRESENT, s->present);
    metric_set(METRIC_DUPLICATES, DUPLICATE_IN_FLIGHT, s->repeated);
    metric_set(METRIC_DEAD_LETTERS, 0, s->dead_letters);
    metric_set(METRIC_PARKED, 0, s->parked);
    metric_set(METRIC_RESUMED, 0, s->resumed);
    metric_state(METRIC_SINK_STATE, (int)w->sink_state);
    metric_state(METRIC_BREAKER_STATE, (int)w->breaker.state);
    health_set(HEALTH_SINK, w->sink_state != SINK_WELL);
    health_set(HEALTH_BREAKER, w->breaker.state != BREAKER_CLOSED);
    health_set(HEALTH_ENGINE, w->engine_failed);
    health_set(HEALTH_PROOF, w->opts.self_test && !w->proven);
    health_set(HEALTH_STOPPING, w->draining || w->stop);
    health_set(HEALTH_START, false);
}

void worker_metrics_end(struct worker *w)
{
    w->metrics_ns = INT64_MIN / 2;
    worker_metrics_step(w);
    health_set(HEALTH_STOPPING, true);
    health_rest();
}
