/* cmd_smoke: `tranche smoke`: one prompt into the queue, its row out of the database, and which
 * step on the way did not answer. It asks as an operator does: no right that `status` and `submit`
 * lack. */
#include <jansson.h>
#include <stdio.h>
#include <sys/random.h>

#include "engine/log.h"
#include "worker/commands/commands.h"
#include "worker/commands/console.h"
#include "worker/sink/sink.h"
#include "worker/source/producer.h"
#include "worker/stop.h"

#define BATCH  "smoke"
#define OF_JOB "WHERE run=$1 AND batch_id=$2 AND custom_id=$3"

enum found { FOUND_NOTHING, FOUND_ROW, FOUND_LETTER };
static const int64_t POLL_NS = 250000000;
/* A row by its key takes milliseconds: what holds it longer does not answer. */
static const int64_t ANSWER_NS = 10000000000;

struct smoke {
    const struct config *config;
    struct source_opts queue;
    struct query *q; /* NULL: the database does not answer */
    struct err away; /* and why */
    struct str run;
    char id[64];
    int64_t sent_ns, written_ns, seen_ns; /* mono: before sending, confirmed, row read */
    int64_t starts;                       /* counted in the database; 0: none was seen */
    char started[32];
    json_t *document;
};

enum column {
    COL_STATUS,
    COL_FINISH,
    COL_ANSWER,
    COL_CODE,
    COL_DETAIL,
    COL_MODEL,
    COL_WORKER,
    COL_ATTEMPTS,
    COL_PROMPT,
    COL_COMPLETION,
    COL_DEVICE,
    COL_QUEUED,
    COL_STARTED,
    COL_FINISHED
};
static const char row_sql[] =
    "SELECT status, finish_reason, answer, error_code, error_detail, model, worker, attempts, "
    "prompt_tokens, completion_tokens, device_seconds, queued_at, started_at, finished_at FROM "
    "results " OF_JOB;
static const char letter_sql[] = "SELECT reason, detail FROM dead_letters " OF_JOB;
static const char starts_sql[] = "SELECT n, last_at FROM job_attempts " OF_JOB;

static int at_step(struct err *err, const char *step)
{
    struct err why = *err;
    *err = (struct err){0};
    return err_typed(err, why.code, why.type, "%s: %.200s", step, why.msg);
}

/* ---- the way in ---- */

static int send_prompt(struct smoke *s, struct err *err)
{
    struct producer *p = NULL;
    struct text message = {0};
    uint64_t random = 0;
    char now[32];
    int64_t wall = clock_wall_ns(clock_system());
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return err_errno(err, E_FATAL, "no random bytes for an id");
    wall_text(wall, now);
    snprintf(s->id, sizeof s->id, "smoke-%.19sZ-%016llx", now, (unsigned long long)random);
    /* A prompt that nobody waits for any more is not worth a slot. */
    text_f(&message,
           "{\"id\":\"%s\",\"batch_id\":\"" BATCH "\",\"prompt\":\"1+1=\",\"max_tokens\":8,"
           "\"temperature\":0,\"deadline\":%lld}",
           s->id, (long long)((wall + config_int(s->config, "timeout")) / 1000000000 + 1));
    int rc = message.failed ? err_set(err, E_FATAL, "no memory for a message")
                            : producer_open(&p, &s->queue, err);
    s->sent_ns = clock_mono_ns(clock_system());
    if (rc >= 0)
        rc = p->ops->send(p, str_of(s->id), text_view(&message), err);
    if (rc >= 0)
        rc = p->ops->flush(p, err);
    s->written_ns = clock_mono_ns(clock_system());
    producer_close(p);
    text_close(&message);
    return rc;
}

/* ---- the way out ---- */

static int ask(struct smoke *s, const char *sql, struct err *err)
{
    struct str key[] = {s->run, STR(BATCH), str_of(s->id)};
    int rc = query_start(s->q, sql, key, TR_COUNT(key), err);
    return rc < 0 ? rc : query_next(s->q, err);
}

/* Tries for so long; 0: once. */
static int open_database(struct smoke *s, int64_t connect_ns, struct err *err)
{
    struct postgres_opts o;
    postgres_opts_from_config(&o, s->config);
    o.connect_ns = connect_ns;
    o.answer_ns = ANSWER_NS;
    return query_open(&s->q, &o, QUERY_READ, err);
}

/* An enum found, or errors. Of nothing found, what is known of its starts. */
static int ask_all(struct smoke *s, struct err *err)
{
    int rc = ask(s, row_sql, err);
    if (rc != 0)
        return rc < 0 ? rc : FOUND_ROW;
    rc = ask(s, letter_sql, err);
    if (rc != 0)
        return rc < 0 ? rc : FOUND_LETTER;
    rc = ask(s, starts_sql, err);
    if (rc > 0 && query_int(s->q, 0) > 0) {
        s->starts = query_int(s->q, 0);
        query_time(s->q, 1, s->started);
    }
    return rc < 0 ? rc : FOUND_NOTHING;
}

/* The same; that the database is away may pass. */
static int look(struct smoke *s, struct err *err)
{
    struct err why = {0};
    if (!s->q && open_database(s, 0, &why) < 0) {
        s->away = why;
        return FOUND_NOTHING;
    }
    int rc = ask_all(s, err);
    if (rc >= 0 || err->code != E_RETRY)
        return rc;
    s->away = *err;
    *err = (struct err){0};
    query_close(s->q);
    s->q = NULL;
    return FOUND_NOTHING;
}

static int wait_for_row(struct smoke *s, struct err *err)
{
    int64_t end = s->sent_ns + config_int(s->config, "timeout");
    int found;
    while ((found = look(s, err)) == FOUND_NOTHING && clock_mono_ns(clock_system()) < end)
        clock_sleep_ns(clock_system(), POLL_NS);
    s->seen_ns = clock_mono_ns(clock_system());
    return found;
}

/* ---- what is said of it ---- */

static json_t *text_of(const struct query *q, enum column column)
{
    struct str text = query_text(q, (int)column);
    return text.ptr ? json_stringn(text.ptr, text.len) : json_null();
}

/* From one column to another; null where either is. */
static json_t *span_of(const struct query *q, enum column from, enum column to)
{
    char a[32], b[32];
    query_time(q, (int)from, a);
    query_time(q, (int)to, b);
    if (!*a || !*b)
        return json_null();
    int64_t ns = console_time_parse(str_of(b)) - console_time_parse(str_of(a));
    return json_real((double)ns / 1e9);
}

static void read_row(struct smoke *s)
{
    static const struct {
        const char *name;
        enum column column;
    } texts[] = {{"status", COL_STATUS},   {"finish_reason", COL_FINISH}, {"answer", COL_ANSWER},
                 {"error_code", COL_CODE}, {"error_detail", COL_DETAIL},  {"model", COL_MODEL},
                 {"worker", COL_WORKER}},
      counts[] = {{"attempts", COL_ATTEMPTS},
                  {"prompt_tokens", COL_PROMPT},
                  {"completion_tokens", COL_COMPLETION}};
    json_t *d = s->document, *seconds = json_object();
    json_object_set_new(d, "run", json_stringn(s->run.ptr, s->run.len));
    json_object_set_new(d, "batch_id", json_string(BATCH));
    json_object_set_new(d, "custom_id", json_string(s->id));
    for (size_t i = 0; i < TR_COUNT(texts); i++)
        json_object_set_new(d, texts[i].name, text_of(s->q, texts[i].column));
    for (size_t i = 0; i < TR_COUNT(counts); i++)
        json_object_set_new(d, counts[i].name,
                            json_integer(query_int(s->q, (int)counts[i].column)));
    json_object_set_new(d, "device_seconds", json_real(query_real(s->q, COL_DEVICE)));
    json_object_set_new(d, "seconds", seconds);
    json_object_set_new(seconds, "queue_write",
                        json_real((double)(s->written_ns - s->sent_ns) / 1e9));
    json_object_set_new(seconds, "to_a_slot", span_of(s->q, COL_QUEUED, COL_STARTED));
    json_object_set_new(seconds, "engine", span_of(s->q, COL_STARTED, COL_FINISHED));
    json_object_set_new(seconds, "row", json_real((double)(s->seen_ns - s->sent_ns) / 1e9));
}

static const char *field(const struct smoke *s, const char *name)
{
    const char *text = json_string_value(json_object_get(s->document, name));
    return text ? text : "-";
}

static long long number(const struct smoke *s, const char *name)
{
    return (long long)json_integer_value(json_object_get(s->document, name));
}

static void print_stage(const struct smoke *s, const char *name, const char *key, const char *what)
{
    const json_t *v = json_object_get(json_object_get(s->document, "seconds"), key);
    if (json_is_real(v))
        printf("  %-12s %9.3f s  %s\n", name, json_real_value(v), what);
    else
        printf("  %-12s %11s  %s\n", name, "-", what);
}

static void print_row(const struct smoke *s)
{
    printf("%s: run %s, batch %s, id %s\n", field(s, "status"), field(s, "run"), BATCH, s->id);
    printf("  %-12s ", "answer");
    console_cell(stdout, field(s, "answer"), 70);
    printf("\n  %-12s worker %s, model %s, start %lld, %lld + %lld tokens, %.3f s of the device\n",
           "by", field(s, "worker"), field(s, "model"), number(s, "attempts"),
           number(s, "prompt_tokens"), number(s, "completion_tokens"),
           json_real_value(json_object_get(s->document, "device_seconds")));
    print_stage(s, "queue write", "queue_write", "until the broker had it");
    print_stage(s, "to a slot", "to_a_slot", "by the clocks of broker and worker");
    print_stage(s, "engine", "engine", "from the first step to the last");
    print_stage(s, "row", "row",
                "from sending to here, the worker's flush and 0.25 s of polling included");
}

/* It may quote a message, and so say what a terminal would obey. */
static void tell_detail(const char *text)
{
    console_cell(stderr, text, 200);
    fputc('\n', stderr);
}

static int tell_row(struct smoke *s)
{
    read_row(s);
    if (config_flag(s->config, "json")) {
        json_dumpf(s->document, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        print_row(s);
    }
    if (strcmp(field(s, "status"), result_status_name(RESULT_OK)) == 0)
        return EXIT_WELL;
    fflush(stdout);
    fprintf(stderr, "tranche smoke: the row came, and it is %s: %s: ", field(s, "status"),
            field(s, "error_code"));
    tell_detail(field(s, "error_detail"));
    return EXIT_STRICT;
}

static int tell_letter(const struct smoke *s)
{
    struct str reason = query_text(s->q, 0), detail = query_text(s->q, 1);
    struct text cell = {0};
    text_add(&cell, detail);
    text_char(&cell, '\0');
    fprintf(stderr, "tranche smoke: a dead letter in place of a row of %s: " STR_FMT ": ", s->id,
            STR_ARG(reason));
    tell_detail(cell.failed ? "" : cell.ptr);
    text_close(&cell);
    return EXIT_STRICT;
}

/* Which step did not answer, as far as it shows from here. */
static int tell_timeout(struct smoke *s)
{
    struct backlog b = {-1, -1};
    struct err err = {0};
    const char *group = s->queue.group;
    char span[24];
    console_span(span, (double)config_int(s->config, "timeout") / 1e9);
    fprintf(stderr, "tranche smoke: no row of %s in run " STR_FMT " within %s: ", s->id,
            STR_ARG(s->run), span);
    if (!s->q)
        fprintf(stderr, "the database does not answer: %s\n", s->away.msg);
    else if (s->starts)
        fprintf(stderr, "a worker started it (start %lld, at %s), and its row was not seen\n",
                (long long)s->starts, s->started);
    else if (queue_backlog(&s->queue, &b, &err) < 0)
        fprintf(stderr, "no worker has started it; group %s was not to be asked: %s\n", group,
                err.msg);
    else if (b.lag < 0)
        fprintf(stderr,
                "no worker has started it; the broker does not know what group %s has left\n",
                group);
    else if (b.lag + TR_MAX(b.pending, 0) == 0)
        fprintf(stderr,
                "group %s has acknowledged every message of %s: its workers write to another "
                "database or run, or take a share (--canary)\n",
                group, s->queue.url);
    else
        fprintf(stderr, "no worker took it: group %s has %lld messages of %s left\n", group,
                (long long)(b.lag + TR_MAX(b.pending, 0)), s->queue.url);
    return EXIT_STRICT;
}

static int smoke(struct smoke *s, int *status, struct err *err)
{
    if (!s->queue.url)
        return err_set(err, E_USAGE, "want --source URL, where the prompt goes, found none");
    int rc = open_database(s, config_int(s->config, "connect-timeout"), err);
    if (rc >= 0) /* whether it may be asked at all: of no id, nothing is found */
        rc = ask_all(s, err);
    if (rc < 0)
        return at_step(err, "database, nothing was sent");
    if (send_prompt(s, err) < 0)
        return at_step(err, "queue write");
    LOG(LOG_INFO, "smoke_sent", LOG_S("id", s->id), LOG_S("source", s->queue.url));
    rc = wait_for_row(s, err);
    if (rc < 0)
        return at_step(err, "database, looking for the row");
    *status = rc == FOUND_ROW ? tell_row(s) : rc == FOUND_LETTER ? tell_letter(s) : tell_timeout(s);
    return E_OK;
}

int command_smoke(const struct config *config)
{
    struct err err = {0};
    struct smoke s = {
        .config = config, .run = str_of(config_text(config, "run")), .document = json_object()};
    int status = EXIT_WELL;
    command_log_setup(config);
    CHECK(s.document);
    stop_catch();
    console_queue(&s.queue, config);
    s.queue.group = config_text(config, "group");
    int rc = smoke(&s, &status, &err);
    query_close(s.q);
    json_decref(s.document);
    return rc < 0 ? command_failed(config, &err) : status;
}
