/* postgres_connection: see postgres_connection.h. */
#include "worker/sink/postgres_connection.h"

#include <ctype.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "engine/log.h"

enum { PASSWORD_MAX = 1024 };
/* The server gives up first (statement_timeout), so that its answer says why. */
static const int64_t CONNECT_NS = 5000000000, STATEMENT_NS = 65000000000;
#define LIMITS                                                                                     \
    "SET LOCAL statement_timeout=60000; SET LOCAL lock_timeout=10000; "                            \
    "SET LOCAL idle_in_transaction_session_timeout=60000"

bool postgres_is_url(const char *text)
{
    return text &&
           (strncmp(text, "postgres://", 11) == 0 || strncmp(text, "postgresql://", 13) == 0);
}

/* ---- what to connect to ---- */

static const char *option_of(const struct postgres *p, const char *name)
{
    for (const PQconninfoOption *o = p->parsed; o && o->keyword; o++)
        if (strcmp(o->keyword, name) == 0 && o->val && *o->val)
            return o->val;
    return NULL;
}

static void parameter(struct postgres *p, const char *key, const char *value)
{
    CHECK(p->n_parameters < POSTGRES_PARAMETERS_MAX - 2); /* password, end */
    p->keys[p->n_parameters] = key;
    p->values[p->n_parameters++] = value;
}

static int check_security(struct postgres *p, const struct postgres_opts *o, struct err *err)
{
    const char *mode = option_of(p, "sslmode");
    bool here = postgres_is_here(option_of(p, "host"), option_of(p, "hostaddr"));
    if (option_of(p, "password") || option_of(p, "sslpassword"))
        return err_set(err, E_USAGE,
                       "%s: a password in a URL can be seen by others; put it into a "
                       "file and name that with --db-password-file",
                       p->label);
    if (!mode && !here && !o->allow_insecure)
        parameter(p, "sslmode", "verify-full"); /* also where PGSSLMODE or a service says less */
    if (!mode || here || strcmp(mode, "verify-full") == 0)
        return E_OK;
    if (!o->allow_insecure)
        return err_set(err, E_USAGE,
                       "%s: want sslmode=verify-full, found %s; --allow-insecure "
                       "permits it",
                       p->label, mode);
    LOG(LOG_WARN, "insecure_link", LOG_S("database", p->label), LOG_S("sslmode", mode));
    return E_OK;
}

static void write_label(struct postgres *p)
{
    const char *user = option_of(p, "user"), *host = option_of(p, "host");
    const char *port = option_of(p, "port"), *database = option_of(p, "dbname");
    snprintf(p->label, sizeof p->label, "postgres://%s%s%s%s%s/%s", user ? user : "",
             user ? "@" : "", host ? host : "", port ? ":" : "", port ? port : "",
             database ? database : "");
}

int postgres_open(struct postgres *p, const struct postgres_opts *o, struct err *err)
{
    char *why = NULL;
    *p = (struct postgres){
        .clock = o->clock, .password_file = o->password_file, .statement_ns = STATEMENT_NS};
    if (!postgres_is_url(o->url))
        return err_set(err, E_USAGE, "want a postgres:// URL, found none");
    p->parsed = PQconninfoParse(o->url, &why);
    if (!p->parsed) {
        /* libpq's text quotes the URL, in which a password may stand. */
        bool quotable = why && !strchr(o->url, '@');
        int rc = err_set(err, E_USAGE, "the postgres:// URL cannot be read%s%s",
                         quotable ? ": " : "", quotable ? why : "");
        PQfreemem(why);
        return rc;
    }
    int rc = postgres_place(p, o->url, err);
    if (rc < 0)
        return rc;
    write_label(p);
    parameter(p, "client_encoding", "UTF8");
    parameter(p, "fallback_application_name", "tranche");
    parameter(p, "target_session_attrs", "read-write");
    parameter(p, "keepalives_idle", "10");
    parameter(p, "keepalives_interval", "5");
    parameter(p, "keepalives_count", "3");
    parameter(p, "tcp_user_timeout", "15000");
    rc = check_security(p, o, err);
    for (const PQconninfoOption *at = p->parsed; rc == E_OK && at->keyword; at++)
        if (at->val && *at->val) /* later ones win over ours */
            parameter(p, at->keyword, at->val);
    return rc;
}

void postgres_close(struct postgres *p)
{
    postgres_disconnect(p);
    PQconninfoFree(p->parsed);
    *p = (struct postgres){0};
}

void postgres_disconnect(struct postgres *p)
{
    PQfinish(p->conn);
    p->conn = NULL;
}

/* ---- failures ---- */

static int fail_link(struct postgres_failure *f, const char *text)
{
    *f = (struct postgres_failure){.action = SQL_WAIT};
    size_t n = strcspn(text, "\n");
    snprintf(f->text, sizeof f->text, "%.*s", (int)TR_MIN(n, sizeof f->text - 1), text);
    return E_RETRY;
}

/* A refused connection has no result to ask for its code; in verbose form it stands in the text:
 * "FATAL:  28P01: password authentication failed .." */
static void code_of_text(const char *text, char code[6])
{
    for (const char *at = strstr(text, ":  "); at; at = strstr(at + 1, ":  ")) {
        int n = 0;
        while (n < 5 && (isdigit((unsigned char)at[3 + n]) || isupper((unsigned char)at[3 + n])))
            n++;
        if (n == 5 && at[8] == ':') {
            memcpy(code, at + 3, 5);
            code[5] = '\0';
            return;
        }
    }
    code[0] = '\0';
}

static void explain_certificate(struct postgres *p, struct postgres_failure *f)
{
    const char *why =
        postgres_certificate_fault(PQhost(p->conn), PQport(p->conn), option_of(p, "sslrootcert"));
    size_t len = strlen(f->text);
    if (why)
        snprintf(f->text + len, sizeof f->text - len, ": %s", why);
}

static int fail_connect(struct postgres *p, struct postgres_failure *f)
{
    char code[6];
    const char *text = p->conn ? PQerrorMessage(p->conn) : "no memory";
    code_of_text(text, code);
    fail_link(f, text);
    if (strstr(f->text, "certificate verify failed"))
        explain_certificate(p, f);
    memcpy(f->code, code, sizeof code);
    f->action = sqlstate_action(code);
    postgres_disconnect(p);
    return E_RETRY;
}

static int fail_result(struct postgres *p, const PGresult *result, struct postgres_failure *f)
{
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    fail_link(f, text ? text : PQerrorMessage(p->conn));
    if (code && strlen(code) == 5)
        memcpy(f->code, code, 6);
    f->action = sqlstate_action(f->code);
    return E_RETRY;
}

/* ---- waiting ---- */

static int64_t time_left(const struct postgres *p, int64_t deadline_ns)
{
    int64_t until_ns = p->until_ns ? atomic_load(p->until_ns) : 0;
    return (until_ns ? TR_MIN(until_ns, deadline_ns) : deadline_ns) - clock_mono_ns(p->clock);
}

/* True when the socket is ready before the deadline, which may come nearer while it waits. */
static bool wait_for(struct postgres *p, short events, int64_t deadline_ns)
{
    for (;;) {
        struct pollfd pf = {.fd = PQsocket(p->conn), .events = events};
        int64_t left = time_left(p, deadline_ns);
        if (pf.fd < 0 || left <= 0)
            return false;
        if (poll(&pf, 1, (int)TR_MIN(left / 1000000 + 1, 1000)) > 0)
            return true;
    }
}

/* The password's bytes in buf, without the newline; NULL: none is to be had. */
static const char *read_password(const struct postgres *p, char buf[PASSWORD_MAX])
{
    FILE *f = p->password_file ? fopen(p->password_file, "re") : NULL;
    if (!f)
        return NULL;
    setvbuf(f, NULL, _IONBF, 0); /* no second copy in memory */
    size_t n = fread(buf, 1, PASSWORD_MAX - 1, f);
    fclose(f);
    buf[n] = '\0';
    buf[strcspn(buf, "\r\n")] = '\0';
    return buf;
}

static void ignore_notice(void *arg, const char *text)
{
    (void)arg;
    (void)text;
}

static int no_answer(struct postgres *p, struct postgres_failure *f)
{
    char text[sizeof f->text];
    const char *host = PQhost(p->conn), *port = PQport(p->conn);
    snprintf(text, sizeof text, "no answer to a connect in time (host %s, port %s)",
             host ? host : "?", port ? port : "?");
    fail_link(f, text);
    f->late = true;
    postgres_disconnect(p);
    return E_RETRY;
}

static int connect_once(struct postgres *p, struct postgres_failure *f)
{
    char password[PASSWORD_MAX];
    const char *secret = read_password(p, password);
    p->keys[p->n_parameters] = secret ? "password" : NULL;
    p->values[p->n_parameters] = secret;
    p->keys[p->n_parameters + 1] = NULL;
    p->conn = PQconnectStartParams(p->keys, p->values, 0);
    p->values[p->n_parameters] = NULL;
    explicit_bzero(password, sizeof password);
    if (p->password_file && !secret) {
        postgres_disconnect(p);
        fail_link(f, "the password file cannot be read");
        f->action = SQL_CONFIG;
        return E_RETRY;
    }
    if (!p->conn || PQstatus(p->conn) == CONNECTION_BAD)
        return fail_connect(p, f);
    PQsetErrorVerbosity(p->conn, PQERRORS_VERBOSE);
    PQsetNoticeProcessor(p->conn, ignore_notice, NULL);
    int64_t deadline = clock_mono_ns(p->clock) + CONNECT_NS;
    PostgresPollingStatusType state = PGRES_POLLING_WRITING;
    while (state != PGRES_POLLING_OK) {
        if (state == PGRES_POLLING_FAILED)
            return fail_connect(p, f);
        if (!wait_for(p, state == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline))
            return no_answer(p, f);
        state = PQconnectPoll(p->conn);
    }
    PQsetErrorVerbosity(p->conn, PQERRORS_DEFAULT);
    PQsetnonblocking(p->conn, 1);
    return E_OK;
}

int postgres_connect(struct postgres *p, struct postgres_failure *f)
{
    if (p->conn)
        return E_OK;
    if (time_left(p, INT64_MAX) <= 0) /* nothing could cut the lookup of a name short */
        return fail_link(f, "no connect is begun: the time to stop has passed");
    for (int others = postgres_hosts(p) - 1;; others--) {
        int rc = connect_once(p, f);
        if (rc >= 0 || !f->late)
            return rc;
        postgres_next_host(p);
        if (others <= 0 || time_left(p, INT64_MAX) <= 0)
            return rc;
        LOG(LOG_WARN, "database_host_silent", LOG_S("text", f->text));
    }
}

/* ---- statements ---- */

static int lost(struct postgres *p, const char *text, struct postgres_failure *f)
{
    fail_link(f, text ? text : PQerrorMessage(p->conn));
    postgres_disconnect(p);
    return E_RETRY;
}

static int lost_late(struct postgres *p, struct postgres_failure *f)
{
    int rc = lost(p, "no answer to a statement in time", f);
    f->late = true;
    return rc;
}

/* Everything sent and all answers read; *out gets the last, and the first failure wins. */
static int finish(struct postgres *p, PGresult **out, struct postgres_failure *f)
{
    int64_t deadline = clock_mono_ns(p->clock) + p->statement_ns;
    int flushed, rc = E_OK;
    PGresult *result;
    while ((flushed = PQflush(p->conn)) == 1) {
        if (!wait_for(p, POLLIN | POLLOUT, deadline))
            return lost_late(p, f);
        if (!PQconsumeInput(p->conn))
            return lost(p, NULL, f);
    }
    if (flushed < 0)
        return lost(p, NULL, f);
    for (;;) {
        while (PQisBusy(p->conn)) {
            if (!wait_for(p, POLLIN, deadline))
                return lost_late(p, f);
            if (!PQconsumeInput(p->conn))
                return lost(p, NULL, f);
        }
        result = PQgetResult(p->conn);
        if (!result)
            break;
        ExecStatusType status = PQresultStatus(result);
        bool good = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
        if (!good && rc == E_OK)
            rc = fail_result(p, result, f);
        if (out && good) {
            PQclear(*out);
            *out = result;
        } else {
            PQclear(result);
        }
    }
    if (PQstatus(p->conn) == CONNECTION_BAD)
        postgres_disconnect(p);
    return rc;
}

int postgres_run(struct postgres *p, const char *sql, struct postgres_failure *f)
{
    if (!p->conn)
        return fail_link(f, "not connected");
    if (!PQsendQuery(p->conn, sql))
        return lost(p, NULL, f);
    return finish(p, NULL, f);
}

/* Values of 1 GiB: program_limit_exceeded, as the server would say if it were to read them. */
static int fail_size(struct postgres_failure *f, const char *text)
{
    int rc = fail_link(f, text);
    memcpy(f->code, "54000", sizeof f->code);
    f->action = sqlstate_action(f->code);
    return rc;
}

int postgres_query(struct postgres *p, const char *sql, struct postgres_arrays *arrays, bool binary,
                   PGresult **out, struct postgres_failure *f)
{
    const char *values[ARRAYS_MAX];
    int lengths[ARRAYS_MAX], formats[ARRAYS_MAX], n = arrays ? arrays->n_columns : 0;
    unsigned types[ARRAYS_MAX];
    struct err err = {0};
    *out = NULL;
    if (!p->conn)
        return fail_link(f, "not connected");
    int rc = arrays ? arrays_end(arrays, values, lengths, formats, types, &err) : E_OK;
    if (rc < 0)
        return rc == E_JOB ? fail_size(f, err.msg) : fail_link(f, err.msg);
    if (!PQsendQueryParams(p->conn, sql, n, types, values, lengths, formats, binary))
        return lost(p, NULL, f);
    rc = finish(p, out, f);
    if (rc < 0) {
        PQclear(*out);
        *out = NULL;
    }
    return rc;
}

int postgres_query_text(struct postgres *p, const char *sql, const struct str *parameters, int n,
                        PGresult **out, struct postgres_failure *f)
{
    char *values[ARRAYS_MAX] = {0};
    CHECK(n <= ARRAYS_MAX);
    *out = NULL;
    if (!p->conn)
        return fail_link(f, "not connected");
    bool whole = true;
    for (int i = 0; i < n; i++) {
        if (!parameters[i].ptr)
            continue;
        values[i] = mem_alloc(parameters[i].len + 1, 1);
        whole = whole && values[i];
        if (values[i] && parameters[i].len)
            memcpy(values[i], parameters[i].ptr, parameters[i].len);
    }
    int rc = !whole ? fail_link(f, "no memory for a statement")
             : !PQsendQueryParams(p->conn, sql, n, NULL, (const char *const *)values, NULL, NULL, 0)
                 ? lost(p, NULL, f)
                 : finish(p, out, f);
    for (int i = 0; i < n; i++)
        mem_free(values[i]);
    if (rc < 0) {
        PQclear(*out);
        *out = NULL;
    }
    return rc;
}

int postgres_begin(struct postgres *p, struct postgres_failure *f)
{
    /* A server that went away while we were idle has left its goodbye in the socket. */
    if (p->conn && (!PQconsumeInput(p->conn) || PQstatus(p->conn) == CONNECTION_BAD))
        postgres_disconnect(p);
    int rc = postgres_connect(p, f);
    return rc < 0 ? rc : postgres_run(p, "BEGIN; " LIMITS, f);
}

void postgres_rollback(struct postgres *p)
{
    struct postgres_failure ignored;
    if (p->conn && PQtransactionStatus(p->conn) != PQTRANS_IDLE &&
        postgres_run(p, "ROLLBACK", &ignored) < 0)
        postgres_disconnect(p);
}
