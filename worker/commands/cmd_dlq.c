/* cmd_dlq: `tranche dlq list|show|redrive`: dead letters for people, and back into a queue. */
#include "engine/tokenizer.h"
#include "worker/commands/commands.h"
#include "worker/commands/console.h"
#include "worker/job/envelope.h"
#include "worker/sink/dead_letters.h"
#include "worker/sink/sink.h"
#include "worker/source/producer.h"

enum { REDRIVE_CHUNK = 16, SQL_MAX = 1200 };

struct dlq {
    const struct config *config;
    struct query *q;
    struct letter_filter filter;
};

enum letter_column {
    COL_KEY,
    COL_RUN,
    COL_BATCH,
    COL_ID,
    COL_REASON,
    COL_DETAIL,
    COL_SHA256,
    COL_SOURCE,
    COL_ATTEMPTS,
    COL_WORKER,
    COL_FIRST_SEEN,
    COL_LAST_SEEN,
    COL_COPIED,
    COL_REDRIVEN,
    COL_PAYLOAD
};
static const char *const columns[] = {
    "source_key", "run",      "batch_id", "custom_id",  "reason",    "detail",    "sha256",
    "source",     "attempts", "worker",   "first_seen", "last_seen", "copied_at", "redriven_at"};
#define COLUMNS                                                                                    \
    "source_key, run, batch_id, custom_id, reason, detail, sha256, source, attempts, worker, "     \
    "first_seen, last_seen, copied_at, redriven_at"

static bool is_time(int column)
{
    return column >= COL_FIRST_SEEN && column <= COL_REDRIVEN;
}

/* The row at hand without its payload. */
static json_t *letter_json(const struct query *q)
{
    json_t *o = json_object();
    char time[32];
    for (int i = 0; i < (int)TR_COUNT(columns); i++) {
        struct str text = query_text(q, i);
        if (is_time(i)) {
            query_time(q, i, time);
            text = *time ? str_of(time) : (struct str){NULL, 0};
        }
        json_object_set_new(o, columns[i],
                            i == COL_ATTEMPTS ? json_integer(query_int(q, i))
                            : text.ptr        ? json_stringn(text.ptr, text.len)
                                              : json_null());
    }
    return o;
}

static int select_letters(struct dlq *d, struct err *err)
{
    char sql[SQL_MAX], limit[24];
    struct str parameters[LETTER_FIELDS + 1];
    int64_t most = config_int(d->config, "limit");
    memcpy(parameters, d->filter.fields, sizeof d->filter.fields);
    snprintf(limit, sizeof limit, "%lld", (long long)(most ? most : INT32_MAX));
    parameters[LETTER_FIELDS] = str_of(limit);
    snprintf(sql, sizeof sql,
             "SELECT " COLUMNS " FROM dead_letters WHERE %s ORDER BY last_seen DESC, source_key "
             "LIMIT CAST($6 AS bigint)",
             letter_filter_sql(d->filter.state));
    return query_stream(d->q, sql, parameters, LETTER_FIELDS + 1, err);
}

static void print_letter(const struct query *q)
{
    static const int widths[] = {44, 18, 10};
    static const enum letter_column cells[] = {COL_KEY, COL_REASON, COL_BATCH};
    char time[32];
    struct text cell = {0};
    for (size_t i = 0; i < TR_COUNT(cells); i++) {
        text_reset(&cell);
        text_add(&cell, query_text(q, (int)cells[i]));
        text_char(&cell, '\0');
        console_cell(stdout, cell.ptr, widths[i]);
    }
    query_time(q, COL_LAST_SEEN, time);
    printf("%3lld  %-24s  ", (long long)query_int(q, COL_ATTEMPTS), time);
    console_cell(stdout, query_text(q, COL_REDRIVEN).ptr ? "sent again" : "", 10);
    text_reset(&cell);
    text_add(&cell, query_text(q, COL_DETAIL));
    text_char(&cell, '\0');
    console_cell(stdout, cell.ptr, 50);
    putchar('\n');
    text_close(&cell);
}

static int dlq_list(struct dlq *d, struct err *err)
{
    bool json = config_flag(d->config, "json");
    json_t *all = json_array();
    int more, rc = select_letters(d, err);
    if (rc >= 0 && !json)
        printf("%-44s  %-18s  %-10s  %3s  %-24s  %-10s  %s\n", "key", "reason", "batch", "n",
               "last seen", "", "detail");
    while (rc >= 0 && (more = query_next(d->q, err)) != 0) {
        if (more < 0)
            rc = more;
        else if (json)
            json_array_append_new(all, letter_json(d->q));
        else
            print_letter(d->q);
    }
    if (rc >= 0 && json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(all);
    return rc;
}

/* ---- show ---- */

/* Any bytes as a JSON string: what is no UTF-8 becomes U+FFFD. */
static json_t *bytes_json(struct str bytes)
{
    bool changed;
    char *clean = mem_alloc(bytes.len * 3 + 1, 1);
    if (!clean)
        return json_null();
    size_t n = utf8_repair(bytes, clean, bytes.len * 3 + 1, &changed);
    json_t *value = json_stringn(clean, n);
    mem_free(clean);
    return value ? value : json_null();
}

static int dlq_show(struct dlq *d, struct err *err)
{
    if (d->config->n_operands != 2)
        return err_set(err, E_USAGE, "show: want one key, found %d; `tranche dlq list` tells them",
                       d->config->n_operands - 1);
    struct str key = str_of(d->config->operands[1]);
    struct text payload = {0};
    int rc = query_start(d->q, "SELECT " COLUMNS ", payload FROM dead_letters WHERE source_key=$1",
                         &key, 1, err);
    if (rc >= 0)
        rc = query_next(d->q, err);
    if (rc == 0)
        rc = err_set(err, E_USAGE,
                     "no dead letter \"" STR_FMT "\"; `tranche dlq list` tells the keys",
                     STR_ARG(key));
    if (rc < 0)
        return rc;
    json_t *letter = letter_json(d->q), *value;
    const char *name;
    bool whole = query_bytes(d->q, COL_PAYLOAD, &payload);
    if (config_flag(d->config, "json")) {
        json_object_set_new(letter, "payload",
                            payload.len ? bytes_json(text_view(&payload)) : json_null());
        json_dumpf(letter, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        json_object_foreach(letter, name, value)
        {
            printf("%-12s", name);
            if (json_is_string(value))
                fwrite(json_string_value(value), 1, json_string_length(value), stdout);
            else if (!json_is_null(value))
                json_dumpf(value, stdout, JSON_ENCODE_ANY);
            putchar('\n');
        }
        printf("\n");
        fwrite(payload.ptr, 1, payload.len, stdout);
        printf("\n");
    }
    json_decref(letter);
    text_close(&payload);
    return whole ? E_OK : err_set(err, E_FATAL, "no memory for the payload");
}

/* ---- redrive ---- */

struct redrive {
    struct dlq *d;
    struct producer *producer; /* NULL: a dry run */
    struct text payload, message, run, deadline;
    struct text keys[REDRIVE_CHUNK]; /* sent and to be marked */
    int n_keys;
    struct text last; /* key of the row before */
    int64_t sent, skipped;
};

/* The row at hand as a job of r->run, under the id and with the deadline that it had. */
static int make_message(struct redrive *r, struct err *err)
{
    const struct query *q = r->d->q;
    struct envelope e = {.batch_id = query_text(q, COL_BATCH), .id = query_text(q, COL_ID)};
    int rc = redrive_run(query_text(q, COL_RUN), &r->run, err);
    text_reset(&r->deadline);
    if (envelope_header(query_text(q, COL_SOURCE), "tranche-deadline", &r->deadline))
        e.deadline = text_view(&r->deadline);
    e.run = text_view(&r->run);
    return rc < 0 ? rc : envelope_put(text_view(&r->payload), &e, &r->message, err);
}

/* The row at hand. E_JOB: it stays, and standard error says why. */
static int send_letter(struct redrive *r, struct err *err)
{
    const struct query *q = r->d->q;
    struct err why = {0};
    struct str key = query_text(q, COL_KEY), id = query_text(q, COL_ID);
    int rc = query_bytes(q, COL_PAYLOAD, &r->payload) ? E_OK : E_FATAL;
    if (rc >= 0 && r->payload.len == 0)
        rc = err_set(&why, E_JOB, "its payload was not kept");
    if (rc >= 0)
        rc = make_message(r, &why);
    if (rc == E_JOB) {
        fprintf(stderr, "tranche dlq: " STR_FMT " stays: %s\n", STR_ARG(key), why.msg);
        r->skipped++;
        return E_OK;
    }
    if (rc < 0)
        return err_set(err, E_FATAL, "no memory for a message");
    if (!r->producer)
        printf("would send " STR_FMT " as run=" STR_FMT " batch=" STR_FMT " id=" STR_FMT "\n",
               STR_ARG(key), STR_ARG(text_view(&r->run)), STR_ARG(query_text(q, COL_BATCH)),
               STR_ARG(id));
    else
        rc = r->producer->ops->send(r->producer, id, text_view(&r->message), err);
    struct text *kept = &r->keys[r->n_keys++];
    text_reset(kept);
    text_add(kept, key);
    r->sent++;
    return rc >= 0 && kept->failed ? err_set(err, E_FATAL, "no memory for a key") : rc;
}

/* A crash before the mark sends a message twice: the same key and payload, so one row. */
static int mark_letters(struct redrive *r, struct err *err)
{
    char now[32];
    wall_text(clock_wall_ns(clock_system()), now);
    int rc = r->producer->ops->flush(r->producer, err);
    if (rc >= 0)
        rc = query_begin(r->d->q, err);
    for (int i = 0; rc >= 0 && i < r->n_keys; i++) {
        struct str parameters[] = {str_of(now), text_view(&r->keys[i])};
        int64_t n = query_run(r->d->q, "UPDATE dead_letters SET redriven_at=$1 WHERE source_key=$2",
                              parameters, 2, err);
        rc = n < 0 ? (int)n : E_OK;
    }
    return rc < 0 ? rc : query_commit(r->d->q, err);
}

/* The next rows behind the last key; their number. */
static int redrive_chunk(struct redrive *r, const char *sql, struct err *err)
{
    struct str parameters[LETTER_FIELDS + 1];
    memcpy(parameters, r->d->filter.fields, sizeof r->d->filter.fields);
    parameters[LETTER_FIELDS] = text_view(&r->last);
    int n = 0, more, rc = query_start(r->d->q, sql, parameters, LETTER_FIELDS + 1, err);
    r->n_keys = 0;
    while (rc >= 0 && (more = query_next(r->d->q, err)) != 0) {
        if (more < 0)
            return more;
        text_reset(&r->last);
        text_add(&r->last, query_text(r->d->q, COL_KEY));
        n++;
        rc = send_letter(r, err);
    }
    if (rc >= 0 && r->producer && r->n_keys)
        rc = mark_letters(r, err);
    return rc < 0 ? rc : n;
}

/* Only open letters are sent: another state asks for what is not done. */
static int check_state(const struct letter_filter *f, struct err *err)
{
    if (!f->state_named || f->state == LETTER_OPEN)
        return E_OK;
    return err_set(err, E_USAGE,
                   "redrive: --filter: state: want open, the letters that it sends, found \"%s\"",
                   f->state == LETTER_ANY ? "any" : "redriven");
}

static int dlq_redrive(struct dlq *d, struct err *err)
{
    char sql[SQL_MAX];
    struct redrive *r = mem_alloc(1, sizeof *r);
    struct source_opts queue;
    bool dry = config_flag(d->config, "dry-run");
    console_queue(&queue, d->config);
    int n, rc = check_state(&d->filter, err);
    if (!r)
        return err_set(err, E_FATAL, "no memory");
    r->d = d;
    if (rc >= 0 && !dry && !queue.url)
        rc = err_set(err, E_USAGE, "redrive: want --source URL, where the messages go, found none");
    if (rc >= 0 && !dry)
        rc = producer_open(&r->producer, &queue, err);
    snprintf(sql, sizeof sql,
             "SELECT " COLUMNS ", payload FROM dead_letters WHERE %s AND source_key>$6 ORDER BY "
             "source_key LIMIT %d",
             letter_filter_sql(LETTER_OPEN), REDRIVE_CHUNK);
    text_add(&r->last, STR("")); /* not NULL */
    text_char(&r->last, ' ');
    while (rc >= 0 && (n = redrive_chunk(r, sql, err)) != 0)
        rc = TR_MIN(n, E_OK);
    if (rc >= 0)
        printf("%s=%lld stay=%lld\n", dry ? "would_send" : "sent", (long long)r->sent,
               (long long)r->skipped);
    producer_close(r->producer);
    text_close(&r->payload);
    text_close(&r->message);
    text_close(&r->run);
    text_close(&r->deadline);
    text_close(&r->last);
    for (int i = 0; i < REDRIVE_CHUNK; i++)
        text_close(&r->keys[i]);
    mem_free(r);
    return rc;
}

int command_dlq(const struct config *config)
{
    static const struct {
        const char *name;
        int (*run)(struct dlq *, struct err *);
        bool writes;
    } actions[] = {
        {"list", dlq_list, false}, {"show", dlq_show, false}, {"redrive", dlq_redrive, true}};
    struct err err = {0};
    struct dlq d = {.config = config};
    const char *name = config->n_operands ? config->operands[0] : "";
    size_t i = 0;
    command_log_setup(config);
    while (i < TR_COUNT(actions) && strcmp(name, actions[i].name) != 0)
        i++;
    int rc = i < TR_COUNT(actions)
                 ? E_OK
                 : err_set(&err, E_USAGE, "want one of list, show, redrive, found \"%.60s\"", name);
    d.filter.fields[LETTER_RUN] = console_run(config);
    if (rc >= 0 && config_text(config, "filter"))
        rc = letter_filter_parse(&d.filter, str_of(config_text(config, "filter")), &err);
    if (rc >= 0)
        rc = console_db(&d.q, config, actions[i].writes ? QUERY_WRITE : QUERY_READ, &err);
    if (rc >= 0)
        rc = actions[i].run(&d, &err);
    query_close(d.q);
    return rc < 0 ? command_failed(config, &err) : EXIT_WELL;
}
