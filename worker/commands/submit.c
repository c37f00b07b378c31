/* submit: see submit.h. */
#include "worker/commands/submit.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/config/config.h"
#include "worker/job/id_set.h"
#include "worker/sink/query.h"
#include "worker/sink/sink.h"

static const int64_t TOLD_NS = 2000000000;

struct submission {
    const struct submit_opts *opts;
    const char *path, *name; /* of the lines: where they are, what messages call them */
    char copy[PATH_MAX];     /* of standard input; "": none */
    struct source *lines;
    struct producer *producer;
    struct id_set ids;
    struct text scratch, message;
    char batch[JOB_ID_BYTES_MAX + 1], state[4096];
    int64_t total, ours, skip, told_ns; /* ours: of lines that name no batch */
};

/* Calls `take` for each line; the job is ours. */
static int each_line(struct submission *s,
                     int (*take)(struct submission *, struct job *, struct err *), struct err *err)
{
    struct source_budget budget = {SOURCE_CLAIM_MAX, 16 << 20};
    struct job *jobs[SOURCE_CLAIM_MAX];
    struct job_defaults defaults = {STR("main"), STR("\x01")}; /* no id: tells an absent one */
    bool drained = false;
    int rc = source_file_open(&s->lines, s->path, clock_system(), err);
    while (rc >= 0 && !drained) {
        int n = s->lines->ops->claim(s->lines, &budget, jobs, SOURCE_CLAIM_MAX, 1000000000,
                                     &drained, err);
        rc = TR_MIN(n, 0);
        for (int i = 0; i < n; i++) {
            if (rc >= 0) {
                job_parse(jobs[i], &defaults, &s->scratch);
                rc = take(s, jobs[i], err);
            }
            job_close(jobs[i]);
        }
    }
    source_close(s->lines);
    s->lines = NULL;
    return rc;
}

static int check_line(struct submission *s, struct job *job, struct err *err)
{
    long long line = (long long)job->sequence + 1;
    s->total++;
    s->ours += str_eq(job->batch_id, STR("\x01"));
    if (str_eq(job->custom_id, job->origin))
        return err_set(err, E_USAGE, "%s: job %lld: %s", s->name, line,
                       job->err.code ? job->err.msg : "want an id, found none");
    int rc = id_set_add(&s->ids, job->batch_id, job->custom_id, err);
    if (rc != 0)
        return TR_MIN(rc, 0);
    return err_set(err, E_USAGE, "%s: job %lld: the id \"" STR_FMT "\" is an earlier job's",
                   s->name, line, STR_ARG(job->custom_id));
}

/* So that a status can say how much is still to come. The same file again changes nothing. */
static int register_batch(const struct submission *s, struct err *err)
{
    static const char sql[] =
        "INSERT INTO batches (run, batch_id, source, total, outputs_sha256, created_at, "
        "updated_at) VALUES ($1,$2,$3,$4,$5,$6,$6) ON CONFLICT (run, batch_id) DO UPDATE SET "
        "total=CASE WHEN batches.total>excluded.total THEN batches.total ELSE excluded.total END";
    char now[32], total[24], zeros[65];
    struct query *q;
    if (!s->opts->db || s->ours == 0)
        return E_OK;
    wall_text(clock_wall_ns(clock_system()), now);
    snprintf(total, sizeof total, "%lld", (long long)s->ours);
    sha256_hex((const uint8_t[32]){0}, zeros);
    struct str parameters[] = {str_of(s->opts->run), str_of(s->batch), str_of(s->opts->queue.url),
                               str_of(total),        str_of(zeros),    str_of(now)};
    int rc = query_open(&q, s->opts->db, QUERY_WRITE, err);
    if (rc >= 0 && query_run(q, sql, parameters, TR_COUNT(parameters), err) < 0)
        rc = err->code;
    query_close(q);
    return rc;
}

/* The state file appears whole or not at all. */
static void remember(struct submission *s, int64_t confirmed)
{
    char next[sizeof s->state + 8];
    if (*s->copy)
        return;
    snprintf(next, sizeof next, "%s.new", s->state);
    FILE *f = fopen(next, "we");
    if (!f)
        return; /* a file in a folder that cannot be written is sent from its start again */
    fprintf(f, "%lld %s %s\n", (long long)confirmed, s->batch, s->opts->queue.url);
    bool whole = !ferror(f);
    if (fclose(f) == 0 && whole)
        rename(next, s->state);
}

/* How much an earlier attempt at the same batch and queue has confirmed. */
static int64_t recall(const struct submission *s)
{
    char want[sizeof s->state + 1024], have[sizeof want] = "";
    long long confirmed = 0;
    int at = 0;
    FILE *f = *s->copy ? NULL : fopen(s->state, "re");
    if (!f)
        return 0;
    size_t n = fread(have, 1, sizeof have - 1, f);
    fclose(f);
    have[n] = '\0';
    snprintf(want, sizeof want, "%s %s\n", s->batch, s->opts->queue.url);
    if (sscanf(have, "%lld %n", &confirmed, &at) != 1 || strcmp(have + at, want) != 0 ||
        confirmed < 0 || confirmed > s->total)
        return 0;
    return confirmed;
}

static void tell(struct submission *s, bool last)
{
    int64_t now = clock_mono_ns(clock_system());
    int64_t confirmed = s->skip + s->producer->ops->confirmed(s->producer);
    if (!last && now - s->told_ns < TOLD_NS)
        return;
    s->told_ns = now;
    remember(s, confirmed);
    LOG(LOG_INFO, "submitting", LOG_I("confirmed", confirmed), LOG_I("jobs", s->total));
}

static int send_line(struct submission *s, struct job *job, struct err *err)
{
    if (job->sequence < s->skip)
        return E_OK;
    struct str line = job->message;
    text_reset(&s->message);
    if (str_eq(job->batch_id, STR("\x01"))) { /* an object, or it would have no id */
        const char *brace = memchr(line.ptr, '{', line.len);
        CHECK(brace);
        size_t head = (size_t)(brace - line.ptr) + 1;
        text_add(&s->message, STR("{\"batch_id\":"));
        text_json_str(&s->message, str_of(s->batch));
        text_char(&s->message, ',');
        line = (struct str){line.ptr + head, line.len - head};
    }
    text_add(&s->message, line);
    if (s->message.failed)
        return err_set(err, E_FATAL, "%s: no memory for a message", s->name);
    tell(s, false);
    return s->producer->ops->send(s->producer, job->custom_id, text_view(&s->message), err);
}

/* Standard input can be read once, and every id is checked before the first message leaves. */
static int copy_input(struct submission *s, struct err *err)
{
    const char *folder = getenv("TMPDIR");
    char bytes[1 << 16];
    size_t n;
    if (!s->opts->batch)
        return err_set(err, E_USAGE, "--batch: want a name, because standard input has none");
    snprintf(s->copy, sizeof s->copy, "%s/tranche-submit-XXXXXX",
             folder && *folder ? folder : "/tmp");
    int fd = mkostemp(s->copy, O_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    if (!f) {
        int rc = err_errno(err, E_FATAL, "%s: cannot write", s->copy);
        s->copy[0] = '\0';
        return rc;
    }
    while ((n = fread(bytes, 1, sizeof bytes, stdin)) > 0 && fwrite(bytes, 1, n, f) == n)
        continue;
    bool failed = ferror(stdin) || ferror(f);
    if (fclose(f) != 0 || failed)
        return err_errno(err, E_FATAL, "standard input to %s", s->copy);
    s->path = s->copy;
    s->name = "standard input";
    return E_OK;
}

/* Where the lines are, and which batch they belong to. */
static int find_lines(struct submission *s, struct err *err)
{
    const char *base = strrchr(s->path, '/');
    struct stat st;
    if (strcmp(s->path, "-") == 0) {
        int rc = copy_input(s, err);
        snprintf(s->batch, sizeof s->batch, "%s", s->opts->batch ? s->opts->batch : "");
        return rc;
    }
    base = base ? base + 1 : s->name;
    const char *dot = strrchr(base, '.');
    if (stat(s->path, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(err, E_USAGE, "%s: want a file that can be read twice", s->name);
    snprintf(s->batch, sizeof s->batch, "%.*s",
             s->opts->batch || !dot || dot == base ? JOB_ID_BYTES_MAX : (int)(dot - base),
             s->opts->batch ? s->opts->batch : base);
    snprintf(s->state, sizeof s->state, "%s.submit", s->path);
    return E_OK;
}

static int submit(struct submission *s, struct err *err)
{
    int rc = find_lines(s, err);
    if (rc >= 0)
        rc = each_line(s, check_line, err);
    if (rc >= 0)
        rc = producer_open(&s->producer, &s->opts->queue, err);
    if (rc >= 0)
        rc = register_batch(s, err);
    if (rc < 0)
        return rc;
    s->skip = recall(s);
    if (s->skip)
        LOG(LOG_INFO, "submit_resumed", LOG_I("confirmed", s->skip), LOG_I("jobs", s->total));
    rc = each_line(s, send_line, err);
    if (rc >= 0)
        rc = s->producer->ops->flush(s->producer, err);
    tell(s, true);
    if (rc >= 0) {
        printf("submitted batch=%s jobs=%lld sent=%lld\n", s->batch, (long long)s->total,
               (long long)(s->total - s->skip));
        if (!*s->copy)
            unlink(s->state);
    }
    return rc;
}

static int exit_code_of(int rc)
{
    return rc >= 0         ? EXIT_WELL
           : rc == E_USAGE ? EXIT_USAGE
           : rc == E_RETRY ? EXIT_UNREACHABLE
                           : EXIT_MODEL;
}

int submit_main(const struct submit_opts *o)
{
    struct submission s = {.opts = o, .path = o->file, .name = o->file};
    struct err err = {0};
    int rc = submit(&s, &err);
    if (rc < 0)
        fprintf(stderr, "tranche submit: %s\n", err.msg);
    if (*s.copy)
        unlink(s.copy);
    producer_close(s.producer);
    id_set_close(&s.ids);
    text_close(&s.scratch);
    text_close(&s.message);
    return exit_code_of(rc);
}

int drop_main(const struct source_opts *queue)
{
    struct err err = {0};
    bool dropped = false;
    int rc = queue_drop(queue, &dropped, &err);
    if (rc < 0)
        fprintf(stderr, "tranche init: %s\n", err.msg);
    else
        printf("%s %s group=%s\n", dropped ? "dropped" : "none", queue->url, queue->group);
    return exit_code_of(rc);
}

int init_main(const struct source_opts *queue, const struct queue_shape *shape)
{
    struct err err = {0};
    bool made = false;
    int rc = queue_init(queue, shape, &made, &err);
    if (rc < 0)
        fprintf(stderr, "tranche init: %s\n", err.msg);
    else
        printf("%s %s group=%s\n", made ? "made" : "found", queue->url, queue->group);
    return exit_code_of(rc);
}
