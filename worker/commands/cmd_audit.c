/* cmd_audit: `tranche audit`: every acknowledged message that the broker still has must have its
 * row. What lacks one was lost behind our back, by a database set back to an older state, and can
 * be sent again. */
#include <errno.h>
#include <stdlib.h>

#include "engine/log.h"
#include "worker/commands/commands.h"
#include "worker/commands/console.h"
#include "worker/job/envelope.h"
#include "worker/job/job.h"
#include "worker/job/share.h"
#include "worker/sink/sink_postgres.h"
#include "worker/source/producer.h"

enum { LOOK_UP = 256 };
static const int64_t TOLD_NS = 2000000000, CHUNK_BYTES = 32 << 20;

struct audit {
    struct sink *sink;
    struct producer *producer; /* NULL: holes are only listed */
    struct job_defaults defaults;
    struct text scratch, message;
    struct job *jobs[LOOK_UP];
    struct lookup lookups[LOOK_UP];
    size_t n;
    int64_t bytes, limit, messages, present, passed_over, conflicts, holes, sent, told_ns;
    double share; /* of the jobs: the workers' */
};

static void print_hole(struct audit *a, const struct job *job)
{
    if (a->limit && a->holes > a->limit)
        return;
    printf("missing " STR_FMT " run=" STR_FMT " batch=" STR_FMT " id=" STR_FMT "\n",
           STR_ARG(job->origin), STR_ARG(job->run), STR_ARG(job->batch_id),
           STR_ARG(job->custom_id));
}

/* Its own bytes; what a header said is said by one again. */
static int send_with_headers(struct audit *a, const struct job *job, bool nameless, struct err *err)
{
    struct producer_header headers[2];
    struct producer_message m = {.key = job->custom_id, .value = job->message, .headers = headers};
    if (nameless || job->header_id.ptr)
        headers[m.n_headers++] = (struct producer_header){STR("tranche-job-id"), job->custom_id};
    if (job->header_deadline.ptr)
        headers[m.n_headers++] =
            (struct producer_header){STR("tranche-deadline"), job->header_deadline};
    return a->producer->ops->put(a->producer, &m, err);
}

/* Under the id that is missing: one that was the message's place names another place now. E_JOB: it
 * cannot be told to the queue. */
static int send_again(struct audit *a, const struct job *job, struct err *err)
{
    bool nameless = job->custom_id.ptr == job->origin.ptr;
    struct envelope e = {.id = job->custom_id};
    if (job->message_full > job->message.len)
        return err_set(err, E_JOB, "its %zu bytes are too many, the limit is %d", job->message_full,
                       JOB_BYTES_MAX);
    if (a->producer->ops->headers_count)
        return send_with_headers(a, job, nameless, err);
    if (!nameless)
        return a->producer->ops->send(a->producer, job->custom_id, job->message, err);
    if (!job->body) /* the hash covers all of it */
        return err_set(err, E_JOB, "it names no id, and has no body to stay the same beside one");
    int rc = envelope_put(job->message, &e, &a->message, err);
    return rc < 0
               ? rc
               : a->producer->ops->send(a->producer, job->custom_id, text_view(&a->message), err);
}

static int judge(struct audit *a, const struct lookup *l, struct job *job, struct err *err)
{
    a->messages++;
    a->present += l->state == LOOKUP_SAME;
    a->conflicts += l->state == LOOKUP_CONFLICT; /* a dead letter, if it came second */
    if (l->state == LOOKUP_SAME || l->state == LOOKUP_CONFLICT)
        return E_OK;
    a->holes++;
    print_hole(a, job);
    if (!a->producer)
        return E_OK;
    struct err why = {0};
    int rc = send_again(a, job, &why);
    a->sent += rc >= 0;
    if (rc == E_JOB)
        fprintf(stderr, "tranche audit: " STR_FMT " is not sent again: %s\n", STR_ARG(job->origin),
                why.msg);
    return rc < 0 && rc != E_JOB ? err_typed(err, rc, why.type, "%s", why.msg) : E_OK;
}

/* Asks for the jobs in hand and lets go of them. */
static int look_up(struct audit *a, struct err *err)
{
    int rc = a->n ? a->sink->ops->lookup(a->sink, a->lookups, a->n, err) : E_OK;
    for (size_t i = 0; i < a->n; i++) {
        if (rc >= 0)
            rc = judge(a, &a->lookups[i], a->jobs[i], err);
        job_close(a->jobs[i]);
    }
    a->n = 0;
    a->bytes = 0;
    if (clock_mono_ns(clock_system()) - a->told_ns >= TOLD_NS) {
        a->told_ns = clock_mono_ns(clock_system());
        LOG(LOG_INFO, "auditing", LOG_I("messages", a->messages), LOG_I("missing", a->holes));
    }
    return rc;
}

static int take(void *ctx, struct job *job, struct err *err)
{
    struct audit *a = ctx;
    job_parse(job, &a->defaults, &a->scratch);
    if (!share_takes(job->custom_id, a->share)) {
        a->messages++;
        a->passed_over++;
        job_close(job);
        return E_OK;
    }
    a->jobs[a->n] = job;
    a->lookups[a->n] =
        (struct lookup){.key = {job->run, job->batch_id, job->custom_id}, .sha256 = job->sha256};
    a->n++;
    a->bytes += (int64_t)job->message.len;
    return a->n == LOOK_UP || a->bytes >= CHUNK_BYTES ? look_up(a, err) : E_OK;
}

/* One side of the range: nothing, digits, or a time. */
static int parse_end(struct scan_end *e, struct str text, struct err *err)
{
    char buf[48], *end;
    *e = (struct scan_end){.kind = SCAN_OPEN};
    if (text.len == 0)
        return E_OK;
    snprintf(buf, sizeof buf, "%.*s", (int)TR_MIN(text.len, sizeof buf - 1), text.ptr);
    errno = 0;
    e->kind = SCAN_OFFSET;
    e->value = strtoll(buf, &end, 10);
    if (buf[0] >= '0' && buf[0] <= '9' && !*end && !errno)
        return E_OK;
    e->kind = SCAN_TIME;
    e->value = console_time_parse(text);
    return e->value >= 0 ? E_OK
                         : err_set(err, E_USAGE,
                                   "--range: want offsets or times such as 2026-01-31T12:00:00Z, "
                                   "found \"%s\"",
                                   buf);
}

static int parse_range(struct scan_range *r, const char *text, struct err *err)
{
    const char *dots = text ? strstr(text, "..") : NULL;
    if (text && !dots)
        return err_set(err, E_USAGE, "--range: want FROM..TO, found \"%.60s\"", text);
    int rc = parse_end(&r->from, (struct str){text, dots ? (size_t)(dots - text) : 0}, err);
    return rc < 0 ? rc : parse_end(&r->to, str_of(dots ? dots + 2 : ""), err);
}

/* The workers' own question, many keys at once. The file must be there: a sink would make it. */
static int open_sink(struct audit *a, const struct config *config, struct err *err)
{
    struct postgres_opts o;
    struct query *q;
    postgres_opts_from_config(&o, config);
    if (postgres_is_url(o.url))
        return sink_postgres_open(&a->sink, &o, err);
    struct sqlite_opts file = {.path = o.url, .full_sync = true};
    int rc = query_open(&q, &o, QUERY_READ, err);
    query_close(q);
    return rc < 0 ? rc : sink_sqlite_open(&a->sink, &file, err);
}

static int audit(struct audit *a, const struct config *config, struct err *err)
{
    struct source_opts queue;
    struct scan_range range = {0};
    struct source_url url = {0};
    console_queue(&queue, config);
    queue.group = config_text(config, "group");
    queue.partition = (int32_t)config_int(config, "partition");
    queue.tombstone_cancels = config_flag(config, "tombstone-cancels");
    int rc = queue.url ? source_url_parse(&url, str_of(queue.url), err)
                       : err_set(err, E_USAGE, "want --source URL, found none");
    if (rc >= 0)
        rc = parse_range(&range, config_text(config, "range"), err);
    if (rc >= 0)
        rc = open_sink(a, config, err);
    if (rc >= 0 && config_flag(config, "requeue"))
        rc = producer_open(&a->producer, &queue, err);
    const char *batch = config_text(config, "batch");
    a->defaults =
        (struct job_defaults){str_of(config_text(config, "run")), batch ? str_of(batch) : url.name};
    if (rc >= 0)
        rc = queue_scan(&queue, &range, take, a, err);
    if (rc >= 0)
        rc = look_up(a, err);
    if (rc >= 0 && a->producer)
        rc = a->producer->ops->flush(a->producer, err);
    return rc;
}

int command_audit(const struct config *config)
{
    struct err err = {0};
    struct audit *a = mem_alloc(1, sizeof *a);
    command_log_setup(config);
    CHECK(a);
    a->limit = config_int(config, "limit");
    a->share = config_real(config, "canary") / 100;
    a->told_ns = clock_mono_ns(clock_system());
    int rc = audit(a, config, &err);
    for (size_t i = 0; i < a->n; i++)
        job_close(a->jobs[i]);
    int code = rc < 0 ? command_failed(config, &err) : a->holes > a->sent ? EXIT_STRICT : EXIT_WELL;
    if (rc >= 0)
        printf("audited messages=%lld present=%lld passed_over=%lld conflicts=%lld missing=%lld "
               "requeued=%lld\n",
               (long long)a->messages, (long long)a->present, (long long)a->passed_over,
               (long long)a->conflicts, (long long)a->holes, (long long)a->sent);
    producer_close(a->producer);
    sink_close(a->sink);
    text_close(&a->scratch);
    text_close(&a->message);
    mem_free(a);
    return code;
}
