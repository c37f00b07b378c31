/* worker_config: config revisions that come, and jobs that come again.
 *
 * A new revision is adopted once the database keeps its content: from then on jobs are prepared
 * under it, so whatever is counted under a revision can be looked up by any worker. A job whose
 * lookup names the revision of an earlier start is prepared again under that one: its content is
 * read from the database, unless it is at hand. Where that is not to be had (nobody kept it, or it
 * is of another model folder) the job goes on under ours; its row says which it was. */
#include <stdio.h>

#include "engine/log.h"
#include "worker/failpoint.h"
#include "worker/monitor/metrics.h"
#include "worker/worker_impl.h"

static struct job_config_slot *slot_of(const struct worker *w)
{
    return w->opts.prepare->configs;
}

/* ---- a new revision ---- */

void worker_config_offer(struct worker *w, struct job_config *next)
{
    struct configuring *c = &w->configuring;
    job_config_release(c->next); /* an older one that nobody has adopted yet */
    c->next = next;
}

static void send_write(struct worker *w)
{
    struct configuring *c = &w->configuring;
    if (!c->next || c->write.busy || w->draining)
        return;
    c->writing = c->next;
    c->next = NULL;
    c->write.revision = str_of(c->writing->revision);
    c->write.config = text_view(&c->writing->content);
    FAILPOINT("config.before_write");
    worker_call_sink(w, &c->write, SINK_CONFIG_WRITE);
}

static void after_write(struct worker *w)
{
    struct configuring *c = &w->configuring;
    struct job_config *old = job_config_current(slot_of(w));
    LOG(LOG_INFO, "config_adopted", LOG_S("revision", c->writing->revision),
        LOG_S("before", old->revision), LOG_I("bytes", c->writing->content.len));
    metric_add(METRIC_CONFIG_RELOADS, CONFIG_ADOPTED, 1);
    metrics_revision(c->writing->revision);
    job_config_release(old);
    job_config_adopt(slot_of(w), c->writing);
    c->writing = NULL;
}

/* ---- jobs that come again ---- */

static struct known_config *find(struct configuring *c, const char *revision)
{
    for (size_t i = 0; i < TR_COUNT(c->known); i++)
        if (strcmp(c->known[i].revision, revision) == 0)
            return &c->known[i];
    return NULL;
}

static struct known_config *remember(struct configuring *c, const char *revision,
                                     struct job_config *config)
{
    struct known_config *k = &c->known[c->next_known++ % TR_COUNT(c->known)];
    job_config_release(k->config);
    snprintf(k->revision, sizeof k->revision, "%s", revision);
    k->config = config;
    return k;
}

void worker_prepare_again(struct worker *w, struct job *job)
{
    struct item item = {TASK_PREPARE_AGAIN, job};
    w->configuring.again++;
    queue_push(w->tasks, &item, 1);
}

/* False: this revision is not to be had. */
static bool prepare_under(struct worker *w, struct job *job, struct job_config *config)
{
    if (!config)
        return false;
    job_config_release(job->config);
    job->config = job_config_hold(config);
    worker_prepare_again(w, job);
    return true;
}

bool worker_pin(struct worker *w, struct job *job, const struct lookup *l)
{
    struct configuring *c = &w->configuring;
    if (!job->config || !l->config_revision[0] ||
        strcmp(l->config_revision, job->config->revision) == 0)
        return false;
    snprintf(job->pinned, sizeof job->pinned, "%s", l->config_revision);
    struct known_config *k = find(c, job->pinned);
    struct job_config *current = job_config_current(slot_of(w));
    if (!k && strcmp(current->revision, job->pinned) == 0)
        k = remember(c, job->pinned, job_config_hold(current));
    job_config_release(current);
    if (k)
        return prepare_under(w, job, k->config);
    list_add(&c->to_pin, job);
    return true;
}

static void send_read(struct worker *w)
{
    struct configuring *c = &w->configuring;
    if (!c->to_pin.first || c->read.busy || w->draining)
        return;
    snprintf(c->reading, sizeof c->reading, "%s", c->to_pin.first->pinned);
    c->read.revision = str_of(c->reading);
    c->read.found = &c->text;
    worker_call_sink(w, &c->read, SINK_CONFIG_READ);
}

static void after_read(struct worker *w)
{
    struct configuring *c = &w->configuring;
    struct job_config *config = NULL;
    struct err err = {0};
    if (c->text.len == 0)
        err_typed(&err, E_FATAL, "absent", "the database keeps no content of it");
    else if (job_config_open(&config, w->opts.configs, c->reading, text_view(&c->text), &err) < 0)
        config = NULL;
    struct known_config *k = remember(c, c->reading, config);
    size_t jobs = 0, waiting = c->to_pin.n;
    for (; waiting > 0; waiting--) {
        struct job *job = list_take(&c->to_pin);
        if (strcmp(job->pinned, k->revision) != 0) {
            list_add(&c->to_pin, job);
            continue;
        }
        jobs++;
        if (!prepare_under(w, job, k->config))
            worker_go_on(w, job);
    }
    if (config)
        LOG(LOG_INFO, "config_kept", LOG_S("revision", k->revision), LOG_I("jobs", jobs));
    else
        LOG(LOG_WARN, "config_not_kept", LOG_S("revision", k->revision), LOG_I("jobs", jobs),
            LOG_S("reason", err.type), LOG_S("error", err.msg));
}

void worker_prepared_again(struct worker *w, struct job *job)
{
    w->configuring.again--;
    worker_go_on(w, job);
}

/* ---- the worker's hooks ---- */

void worker_config_step(struct worker *w)
{
    send_write(w);
    send_read(w);
}

bool worker_config_answer(struct worker *w, const struct sink_call *c)
{
    if (c->rc < 0)
        return false;
    if (c == &w->configuring.write)
        after_write(w);
    else if (c == &w->configuring.read)
        after_read(w);
    else
        return false;
    return true;
}

bool worker_config_busy(const struct worker *w)
{
    return w->configuring.write.busy || w->configuring.read.busy;
}

bool worker_config_empty(const struct worker *w)
{
    return w->configuring.again == 0 && w->configuring.to_pin.n == 0;
}

void worker_config_close(struct worker *w)
{
    struct configuring *c = &w->configuring;
    job_config_release(c->next);
    job_config_release(c->writing);
    for (size_t i = 0; i < TR_COUNT(c->known); i++)
        job_config_release(c->known[i].config);
    text_close(&c->text);
}
