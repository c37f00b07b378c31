/* outbox: see outbox.h. */
#include "worker/sink/outbox.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "engine/log.h"
#include "generated/version.h"

enum {
    ROWS = 16,
    CAREFUL_ROWS = 16,
    COPIES_MAX = 3,
    DETAIL_MAX = 1024,
    SOURCE_MAX = 16384,
    BARE_SOURCE_MAX = 1024
};
/* What the copy of a letter that is too large goes without. */
enum bare { BARE_NOTHING, BARE_PAYLOAD, BARE_KEY };
static const int64_t POLL_NS = 1000000000, SLICE_NS = 50000000, REACH_NS = 10000000000;
static const int64_t RETRY_MIN_NS = 100000000, RETRY_MAX_NS = 30000000000;

/* Everything as text, so that the payload can come in binary form beside it. */
#define TIME(column) "to_char(" column " AT TIME ZONE 'UTC','YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
static const char take_sql[] =
    "SELECT source_key, reason, detail, custom_id, run, batch_id, queue, source, "
    "attempts::text, " TIME("first_seen") ", " TIME(
        "last_seen") ", worker, sha256, message_key, payload "
                     "FROM tranche.v_outbox WHERE queue=($1)[1] AND (worker=($2)[1] OR "
                     "first_seen < now() - interval '60 s') ORDER BY first_seen LIMIT ($3)[1] "
                     "FOR UPDATE SKIP LOCKED";
static const char mark_sql[] =
    "UPDATE tranche.v_outbox SET copied_at=now() WHERE source_key = ANY ($1)";
enum {
    COL_SOURCE_KEY,
    COL_DETAIL = 2,
    COL_SOURCE = 7,
    COL_HEADERS = 13,
    COL_KEY = 13,
    COL_PAYLOAD
};
static const char *const header_names[COL_HEADERS] = {
    "tranche.source_key", "tranche.reason",     "tranche.detail",    "tranche.job_id",
    "tranche.run",        "tranche.batch",      "tranche.queue",     "tranche.source",
    "tranche.attempts",   "tranche.first_seen", "tranche.last_seen", "tranche.worker",
    "tranche.sha256"};

struct outbox {
    struct outbox_opts opts;
    struct postgres pg;
    struct postgres_arrays arrays;
    struct producer *producer; /* NULL: to be opened; a client that failed for good is replaced */
    struct retry retry;
    pthread_t thread;
    atomic_bool stop;
    char queue[JOB_ORIGIN_MAX], worker[JOB_ORIGIN_MAX]; /* may outlive the caller's */
    int careful; /* so many rows one by one: one of them may be too large */
};

/* ---- one letter ---- */

int outbox_copies(struct str source_json)
{
    json_t *doc = json_loadb(source_json.ptr ? source_json.ptr : "", source_json.len, 0, NULL);
    json_int_t copies = json_integer_value(json_object_get(doc, "copies")); /* a stream's entry */
    size_t i;
    json_t *pair;
    json_array_foreach(json_object_get(doc, "headers"), i, pair)
    {
        const char *name = json_string_value(json_array_get(pair, 0));
        const char *value = json_string_value(json_array_get(pair, 1));
        if (name && value && strcmp(name, "tranche.copies") == 0)
            copies = strtol(value, NULL, 10);
    }
    json_decref(doc);
    return (int)TR_MAX(TR_MIN(copies, (json_int_t)99), (json_int_t)0);
}

static struct str cell(const PGresult *r, int row, int column)
{
    if (PQgetisnull(r, row, column))
        return (struct str){NULL, 0};
    return (struct str){PQgetvalue(r, row, column), (size_t)PQgetlength(r, row, column)};
}

/* The largest beginning of whole characters. */
static struct str cut(struct str s, size_t max)
{
    if (s.len <= max)
        return s;
    while (max > 0 && ((unsigned char)s.ptr[max] & 0xC0) == 0x80)
        max--;
    return (struct str){s.ptr, max};
}

static void add(struct producer_message *m, struct producer_header *headers, const char *name,
                struct str value)
{
    if (value.ptr)
        headers[m->n_headers++] = (struct producer_header){str_of(name), value};
}

/* In place of what does not fit: how much it was. */
static struct str left_out(char text[48], struct str what)
{
    snprintf(text, 48, "left out: %zu bytes", what.len);
    return str_of(text);
}

static int copy_row(struct outbox *o, const PGresult *rows, int row, enum bare bare,
                    struct err *err)
{
    struct producer_header headers[PRODUCER_HEADERS_MAX];
    struct producer_message m = {
        .key = cell(rows, row, COL_KEY), .value = cell(rows, row, COL_PAYLOAD), .headers = headers};
    char times[16], payload[48], key[48];
    int copies = outbox_copies(cell(rows, row, COL_SOURCE));
    if (copies >= COPIES_MAX) {
        LOG(LOG_ERROR, "dead_letter_goes_in_circles",
            LOG_STR("source_key", cell(rows, row, COL_SOURCE_KEY)), LOG_I("copies", copies));
        return E_OK;
    }
    snprintf(times, sizeof times, "%d", copies + 1);
    add(&m, headers, "tranche.copies", str_of(times)); /* first: who reads it may cap the rest */
    for (int i = 0; i < COL_HEADERS; i++)
        add(&m, headers, header_names[i],
            cut(cell(rows, row, i), i == COL_DETAIL   ? DETAIL_MAX
                                    : i != COL_SOURCE ? SIZE_MAX
                                    : bare < BARE_KEY ? SOURCE_MAX
                                                      : BARE_SOURCE_MAX));
    add(&m, headers, "tranche.version", STR(TRANCHE_VERSION));
    if (bare >= BARE_PAYLOAD) {
        add(&m, headers, "tranche.payload", left_out(payload, m.value));
        m.value = STR("");
    }
    if (bare >= BARE_KEY && m.key.ptr) {
        add(&m, headers, "tranche.message_key", left_out(key, m.key));
        m.key = (struct str){NULL, 0};
    }
    if (!m.value.ptr)
        m.value = STR(""); /* a message without a value deletes in a compacted topic */
    return o->producer->ops->put(o->producer, &m, err);
}

/* ---- one transaction ---- */

static int open_producer(struct outbox *o, struct err *err)
{
    struct source_opts to = o->opts.to;
    to.connect_timeout_ns = TR_MIN(to.connect_timeout_ns, REACH_NS);
    return o->producer ? E_OK : producer_open(&o->producer, &to, err);
}

/* All of them confirmed by the broker. */
static int send_rows(struct outbox *o, const PGresult *rows, enum bare bare, struct err *err)
{
    int n = PQntuples(rows), rc = open_producer(o, err);
    for (int i = 0; rc >= 0 && i < n; i++)
        rc = copy_row(o, rows, i, bare, err);
    if (rc >= 0)
        rc = o->producer->ops->flush(o->producer, err);
    if (rc >= 0)
        return n;
    producer_close(o->producer);
    o->producer = NULL;
    return rc;
}

static bool is_too_large(const struct err *err)
{
    return strcmp(err->type, "too_large") == 0;
}

/* One that is too large and alone goes with less and less; of several it is not known which it is.
 */
static int copy_rows(struct outbox *o, const PGresult *rows, struct err *err)
{
    enum bare bare = BARE_NOTHING;
    int rc = send_rows(o, rows, bare, err);
    while (rc < 0 && is_too_large(err) && PQntuples(rows) == 1 && bare < BARE_KEY) {
        *err = (struct err){0};
        o->careful = CAREFUL_ROWS;
        rc = send_rows(o, rows, ++bare, err);
    }
    if (rc >= 0)
        o->careful = TR_MAX(o->careful - 1, 0);
    else if (is_too_large(err))
        o->careful = CAREFUL_ROWS;
    return rc;
}

static int told(struct outbox *o, const struct postgres_failure *f, struct err *err)
{
    postgres_rollback(&o->pg);
    if (f->action == SQL_WAIT || f->action == SQL_WRONG_NODE || f->action == SQL_CONFIG)
        postgres_disconnect(&o->pg);
    return err_typed(err, E_RETRY, "database", "%s: %s (%s)", o->pg.label, f->text, f->code);
}

static int mark(struct outbox *o, const PGresult *rows, struct postgres_failure *f)
{
    PGresult *none = NULL;
    arrays_begin(&o->arrays, "t");
    for (int i = 0; i < PQntuples(rows); i++)
        arrays_str(&o->arrays, cell(rows, i, COL_SOURCE_KEY));
    int rc = postgres_query(&o->pg, mark_sql, &o->arrays, false, &none, f);
    PQclear(none);
    return rc;
}

static int limit_of(const struct outbox *o)
{
    return o->careful ? 1 : ROWS;
}

/* The next letters; how many were copied. The rows stay locked while the broker takes them, so no
 * peer sends them too. */
static int pass(struct outbox *o, struct err *err)
{
    struct postgres_failure f;
    PGresult *rows = NULL, *done = NULL;
    int n = 0, rc = postgres_begin(&o->pg, &f);
    if (rc >= 0) {
        arrays_begin(&o->arrays, "tti");
        arrays_str(&o->arrays, str_of(o->queue));
        arrays_str(&o->arrays, str_of(o->worker));
        arrays_int(&o->arrays, limit_of(o));
        rc = postgres_query(&o->pg, take_sql, &o->arrays, true, &rows, &f);
    }
    if (rc >= 0 && PQntuples(rows) > 0) {
        n = copy_rows(o, rows, err);
        if (n < 0) {
            PQclear(rows);
            postgres_rollback(&o->pg);
            return n;
        }
        rc = mark(o, rows, &f);
    }
    if (rc >= 0)
        rc = postgres_query(&o->pg, "COMMIT", NULL, false, &done, &f);
    PQclear(rows);
    PQclear(done);
    return rc < 0 ? told(o, &f, err) : n;
}

/* ---- thread ---- */

static void wait_ns(struct outbox *o, int64_t ns)
{
    for (; ns > 0 && !atomic_load(&o->stop); ns -= SLICE_NS)
        clock_sleep_ns(o->opts.clock, TR_MIN(ns, SLICE_NS));
}

static void *outbox_main(void *arg)
{
    struct outbox *o = arg;
    for (;;) {
        struct err err = {0};
        bool last = atomic_load(&o->stop);
        int most = limit_of(o), n = pass(o, &err);
        bool smaller = n < 0 && is_too_large(&err) && most > 1; /* at once, one by one */
        if (n > 0)
            LOG(LOG_INFO, "dead_letters_copied", LOG_I("rows", n));
        if (n >= 0)
            retry_reset(&o->retry);
        if (n < 0 && !smaller) {
            int64_t pause_ns = retry_wait_ns(&o->retry);
            LOG(err.code == E_RETRY ? LOG_WARN : LOG_ERROR, "outbox_waits", LOG_S("error", err.msg),
                LOG_F("seconds", (double)pause_ns / 1e9));
            if (last)
                return NULL;
            wait_ns(o, pause_ns);
        } else if (!smaller && n < most) {
            if (last && n == 0)
                return NULL;
            if (!last)
                wait_ns(o, POLL_NS);
        }
    }
}

static void outbox_free(struct outbox *o)
{
    producer_close(o->producer);
    postgres_close(&o->pg);
    arrays_close(&o->arrays);
    mem_free(o);
}

static int check_urls(const struct outbox_opts *opts, struct err *err)
{
    struct source_url to, from;
    int rc = source_url_parse(&to, str_of(opts->to.url), err);
    if (rc >= 0)
        rc = source_url_parse(&from, str_of(opts->source_url), err);
    if (rc >= 0 && str_eq(to.hosts, from.hosts) && str_eq(to.name, from.name))
        rc = err_set(err, E_USAGE,
                     "--dead-letters-to: want another queue than --source, found %s twice",
                     opts->to.url);
    return rc;
}

int outbox_open(struct outbox **out, const struct outbox_opts *opts, struct err *err)
{
    struct err away = {0};
    struct outbox *o = mem_alloc(1, sizeof *o);
    if (!o)
        return err_set(err, E_FATAL, "outbox: no memory");
    o->opts = *opts;
    snprintf(o->queue, sizeof o->queue, STR_FMT, STR_ARG(opts->queue));
    snprintf(o->worker, sizeof o->worker, "%s", opts->worker);
    o->opts.to.client = o->worker;
    retry_open(&o->retry, RETRY_MIN_NS, RETRY_MAX_NS, (uint64_t)clock_wall_ns(opts->clock));
    int rc = check_urls(opts, err);
    if (rc >= 0)
        rc = postgres_open(&o->pg, &opts->postgres, err);
    if (rc >= 0 && (rc = open_producer(o, &away)) < 0 && rc != E_RETRY)
        err_typed(err, rc, away.type, "--dead-letters-to: %s", away.msg);
    else if (rc == E_RETRY)
        LOG(LOG_WARN, "outbox_waits", LOG_S("error", away.msg));
    if (rc >= 0 || rc == E_RETRY)
        rc = pthread_create(&o->thread, NULL, outbox_main, o) == 0
                 ? E_OK
                 : err_set(err, E_FATAL, "outbox: cannot start its thread");
    if (rc < 0) {
        outbox_free(o);
        return rc;
    }
    *out = o;
    return E_OK;
}

void outbox_close(struct outbox *o, int64_t limit_ns)
{
    struct timespec until;
    if (!o)
        return;
    atomic_store(&o->stop, true);
    int64_t until_ns = clock_wall_ns(clock_system()) + limit_ns;
    until = (struct timespec){until_ns / 1000000000, until_ns % 1000000000};
    if (pthread_timedjoin_np(o->thread, NULL, &until) != 0) {
        LOG(LOG_WARN, "outbox_left", LOG_S("why", "its broker or database does not answer"));
        return; /* the thread still has it; the process ends */
    }
    outbox_free(o);
}
