/* cmd_status: `tranche status`: batches as they go, what is under way, and the queue's backlog. */
#include <jansson.h>

#include "worker/commands/commands.h"
#include "worker/commands/console.h"
#include "worker/sink/sink.h"
#include "worker/source/producer.h"

enum { RATE_SECONDS = 60 };

struct status {
    struct query *q;
    struct str run, batch; /* {NULL,0}: all */
    json_t *document;
    json_t *batches;
};

/* NULL on both sides means "any"; parameters of a text type on both databases. */
#define OF_RUN "(CAST($1 AS text) IS NULL OR run=$1) AND (CAST($2 AS text) IS NULL OR batch_id=$2)"

static const char batches_sql[] =
    "SELECT run, batch_id, total, rows_ok, rows_failed, rows_invalid, rows_expired, "
    "rows_cancelled, rows_dead, dead_letters, created_at, updated_at FROM batches WHERE " OF_RUN
    " ORDER BY updated_at, run, batch_id";
/* The newest rows alone: an index leads to them whatever the table's size. */
static const char rates_sql[] = "SELECT run, batch_id, count(*), min(finished_at) FROM results "
                                "WHERE finished_at>=$3 AND " OF_RUN " GROUP BY run, batch_id";
static const char flight_sql[] = "SELECT count(*), coalesce(max(n), 0), min(last_at), "
                                 "coalesce(sum(CASE WHEN n>=3 THEN 1 ELSE 0 END), 0) FROM "
                                 "job_attempts WHERE n>0 AND " OF_RUN;
static const char parked_sql[] = "SELECT count(*) FROM parked WHERE " OF_RUN;
static const char dead_sql[] =
    "SELECT count(*), count(redriven_at), count(copied_at) FROM dead_letters WHERE " OF_RUN;
static const char cancelled_sql[] = "SELECT count(*) FROM cancellations WHERE " OF_RUN;

/* Starts a statement with the two filters and steps to its first row, which aggregates always have.
 */
static int one_row(struct status *s, const char *sql, struct err *err)
{
    struct str parameters[] = {s->run, s->batch};
    int rc = query_start(s->q, sql, parameters, 2, err);
    return rc < 0 ? rc : TR_MIN(query_next(s->q, err), E_OK);
}

static json_t *text_of(const struct query *q, int column)
{
    struct str text = query_text(q, column);
    return json_stringn(text.ptr ? text.ptr : "", text.len);
}

static json_t *time_of(const struct query *q, int column)
{
    char text[32];
    query_time(q, column, text);
    return *text ? json_string(text) : json_null();
}

static int read_batches(struct status *s, struct err *err)
{
    struct str parameters[] = {s->run, s->batch};
    int more, rc = query_stream(s->q, batches_sql, parameters, 2, err);
    while (rc >= 0 && (more = query_next(s->q, err)) != 0) {
        json_t *b = json_object();
        int64_t rows = 0;
        if (more < 0)
            return json_decref(b), more;
        json_object_set_new(b, "run", text_of(s->q, 0));
        json_object_set_new(b, "batch_id", text_of(s->q, 1));
        bool known = query_text(s->q, 2).ptr != NULL;
        json_object_set_new(b, "total", known ? json_integer(query_int(s->q, 2)) : json_null());
        for (int i = 0; i < RESULT_STATUSES; i++)
            rows += query_int(s->q, 3 + i);
        json_object_set_new(b, "rows", json_integer(rows));
        for (int i = 0; i < RESULT_STATUSES; i++)
            json_object_set_new(b, result_status_name((enum result_status)i),
                                json_integer(query_int(s->q, 3 + i)));
        json_object_set_new(b, "dead_letters", json_integer(query_int(s->q, 9)));
        json_object_set_new(b, "created_at", time_of(s->q, 10));
        json_object_set_new(b, "updated_at", time_of(s->q, 11));
        json_object_set_new(b, "rows_per_s", json_real(0));
        json_object_set_new(b, "seconds_left", json_null());
        json_array_append_new(s->batches, b);
    }
    return rc;
}

static json_t *batch_find(const struct status *s, struct str run, struct str batch)
{
    size_t i;
    json_t *b;
    json_array_foreach(s->batches, i, b)
    {
        if (str_eq(json_str(json_object_get(b, "run")), run) &&
            str_eq(json_str(json_object_get(b, "batch_id")), batch))
            return b;
    }
    return NULL;
}

/* Rows of the last minute over the time since the first of them, and what that leaves to wait. */
static int read_rates(struct status *s, struct err *err)
{
    char since[32], first[32];
    int more = 1;
    int64_t now_ns = clock_wall_ns(clock_system());
    wall_text(now_ns - RATE_SECONDS * 1000000000LL, since);
    struct str parameters[] = {s->run, s->batch, str_of(since)};
    int rc = query_start(s->q, rates_sql, parameters, 3, err);
    while (rc >= 0 && (more = query_next(s->q, err)) > 0) {
        json_t *b = batch_find(s, query_text(s->q, 0), query_text(s->q, 1));
        query_time(s->q, 3, first);
        double seconds = (double)(now_ns - console_time_parse(str_of(first))) / 1e9;
        double rate = (double)query_int(s->q, 2) / TR_MAX(seconds, 1.0);
        if (!b)
            continue;
        int64_t left = json_integer_value(json_object_get(b, "total")) -
                       json_integer_value(json_object_get(b, "rows"));
        json_object_set_new(b, "rows_per_s", json_real(rate));
        if (json_is_integer(json_object_get(b, "total")) && left >= 0 && rate > 0)
            json_object_set_new(b, "seconds_left", json_real((double)left / rate));
    }
    return rc < 0 ? rc : TR_MIN(more, E_OK);
}

static int read_rest(struct status *s, struct err *err)
{
    json_t *flight = json_object(), *dead = json_object();
    json_object_set_new(s->document, "in_flight", flight);
    json_object_set_new(s->document, "dead_letters", dead);
    int rc = one_row(s, flight_sql, err);
    if (rc < 0)
        return rc;
    json_object_set_new(flight, "jobs", json_integer(query_int(s->q, 0)));
    json_object_set_new(flight, "most_starts", json_integer(query_int(s->q, 1)));
    json_object_set_new(flight, "oldest_at", time_of(s->q, 2));
    json_object_set_new(flight, "suspects", json_integer(query_int(s->q, 3)));
    if ((rc = one_row(s, parked_sql, err)) < 0)
        return rc;
    json_object_set_new(s->document, "parked", json_integer(query_int(s->q, 0)));
    if ((rc = one_row(s, cancelled_sql, err)) < 0)
        return rc;
    json_object_set_new(s->document, "cancellations", json_integer(query_int(s->q, 0)));
    if ((rc = one_row(s, dead_sql, err)) < 0)
        return rc;
    json_object_set_new(dead, "all", json_integer(query_int(s->q, 0)));
    json_object_set_new(dead, "redriven", json_integer(query_int(s->q, 1)));
    json_object_set_new(dead, "copied", json_integer(query_int(s->q, 2)));
    return E_OK;
}

static int read_source(struct status *s, const struct config *config, struct err *err)
{
    struct source_opts queue;
    struct backlog backlog = {-1, -1};
    console_queue(&queue, config);
    queue.group = config_text(config, "group");
    if (!queue.url)
        return E_OK;
    int rc = queue_backlog(&queue, &backlog, err);
    json_t *source = json_pack("{s:s, s:s}", "url", queue.url, "group", queue.group);
    json_object_set_new(source, "lag", backlog.lag < 0 ? json_null() : json_integer(backlog.lag));
    json_object_set_new(source, "pending",
                        backlog.pending < 0 ? json_null() : json_integer(backlog.pending));
    json_object_set_new(s->document, "source", source);
    return rc;
}

/* ---- for people ---- */

static int64_t number(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static void print_batch(const json_t *b)
{
    char span[24] = "";
    const json_t *left = json_object_get(b, "seconds_left");
    console_cell(stdout, json_string_value(json_object_get(b, "run")), 10);
    console_cell(stdout, json_string_value(json_object_get(b, "batch_id")), 24);
    if (json_is_integer(json_object_get(b, "total")))
        printf("%9lld ", (long long)number(b, "total"));
    else
        printf("%9s ", "");
    printf("%9lld", (long long)number(b, "rows"));
    for (int i = 0; i < RESULT_STATUSES; i++)
        printf(" %9lld", (long long)number(b, result_status_name((enum result_status)i)));
    if (left && !json_is_null(left))
        console_span(span, json_number_value(left));
    printf(" %7lld %9.1f %7s\n", (long long)number(b, "dead_letters"),
           json_number_value(json_object_get(b, "rows_per_s")), span);
}

static void print_all(const struct status *s)
{
    size_t i;
    json_t *b;
    const json_t *flight = json_object_get(s->document, "in_flight");
    const json_t *dead = json_object_get(s->document, "dead_letters");
    const json_t *source = json_object_get(s->document, "source");
    console_cell(stdout, "run", 10);
    console_cell(stdout, "batch", 24);
    printf("%9s %9s", "total", "rows");
    for (int k = 0; k < RESULT_STATUSES; k++)
        printf(" %9s", result_status_name((enum result_status)k));
    printf(" %7s %9s %7s\n", "letters", "rows/s", "left");
    json_array_foreach(s->batches, i, b) print_batch(b);
    printf("\nstarted and without a row: %lld", (long long)number(flight, "jobs"));
    if (number(flight, "suspects"))
        printf(", of these %lld started three times or more",
               (long long)number(flight, "suspects"));
    printf("; parked sequences: %lld; cancellations: %lld\n",
           (long long)number(s->document, "parked"),
           (long long)number(s->document, "cancellations"));
    printf("dead letters: %lld, of these sent again: %lld\n", (long long)number(dead, "all"),
           (long long)number(dead, "redriven"));
    if (!source)
        return;
    printf("%s, group %s:", json_string_value(json_object_get(source, "url")),
           json_string_value(json_object_get(source, "group")));
    static const char *const names[] = {"lag", "pending"};
    for (size_t k = 0; k < TR_COUNT(names); k++) {
        const json_t *v = json_object_get(source, names[k]);
        if (json_is_integer(v))
            printf(" %s %lld", names[k], (long long)json_integer_value(v));
        else
            printf(" %s not known", names[k]);
    }
    putchar('\n');
}

int command_status(const struct config *config)
{
    struct err err = {0};
    struct status s = {
        .run = console_run(config), .document = json_object(), .batches = json_array()};
    command_log_setup(config);
    CHECK(s.document && s.batches);
    json_object_set_new(s.document, "batches", s.batches);
    if (config->n_operands)
        s.batch = str_of(config->operands[0]);
    int rc = console_db(&s.q, config, QUERY_READ, &err);
    if (rc >= 0)
        rc = read_batches(&s, &err);
    if (rc >= 0 && s.batch.ptr && json_array_size(s.batches) == 0)
        rc = err_set(&err, E_USAGE, "%s: no batch \"%s\"; `tranche status` lists all",
                     config_text(config, "db"), s.batch.ptr);
    if (rc >= 0)
        rc = read_rates(&s, &err);
    if (rc >= 0)
        rc = read_rest(&s, &err);
    if (rc >= 0)
        rc = read_source(&s, config, &err);
    query_close(s.q);
    if (rc >= 0 && config_flag(config, "json")) {
        json_dumpf(s.document, stdout, JSON_INDENT(2));
        putchar('\n');
    } else if (rc >= 0) {
        print_all(&s);
    }
    json_decref(s.document);
    return rc < 0 ? command_failed(config, &err) : EXIT_WELL;
}
