/* postgres_connection: one connection to PostgreSQL whose every wait has a deadline. libpq has none
 * of its own for queries, so all is sent without blocking and waited for with poll(2). (Only the
 * resolving of a host name blocks, inside libpq.) Statements are unnamed and nothing is kept in the
 * session, so a pooler in transaction mode may stand between. */
#ifndef TRANCHE_WORKER_SINK_POSTGRES_CONNECTION_H
#define TRANCHE_WORKER_SINK_POSTGRES_CONNECTION_H

#include <libpq-fe.h>
#include <stdatomic.h>

#include "worker/sink/postgres_arrays.h"
#include "worker/sink/sqlstate.h"

struct postgres_opts {
    const char *url;           /* postgres://user@host:port/database?sslmode=..; no password */
    const char *password_file; /* read at each connect; NULL: what libpq finds (.pgpass) */
    bool allow_insecure;       /* a server elsewhere without sslmode=verify-full */
    int64_t connect_ns;        /* how long open keeps trying; 0: once */
    int64_t answer_ns;         /* of query.h, how long a statement may take; 0: ten minutes */
    const struct clock *clock;
};
enum { POSTGRES_PARAMETERS_MAX = 128, POSTGRES_LABEL_MAX = 200 };

struct postgres {
    PGconn *conn; /* NULL: not connected */
    const struct clock *clock;
    const char *keys[POSTGRES_PARAMETERS_MAX], *values[POSTGRES_PARAMETERS_MAX];
    int n_parameters;
    PQconninfoOption *parsed; /* owns the values */
    const char *password_file;
    int64_t statement_ns;           /* longest wait for an answer */
    const atomic_llong *until_ns;   /* no wait lasts beyond it, as of struct sink; NULL: none */
    char label[POSTGRES_LABEL_MAX]; /* "postgres://user@host:port/database", for messages */
};
/* Why a statement failed. The text is the server's first line, without detail: that quotes rows. */
struct postgres_failure {
    char code[6]; /* SQLSTATE; "": the link failed */
    enum sql_action action;
    bool late; /* no answer in time: the link was cut, what became of it is not known */
    char text[180];
};

bool postgres_is_url(const char *text);
/* Checks the URL; connects nothing. E_USAGE: not such a URL, a password in it, a service that is
 * not in its file, or a server elsewhere whose certificate would not be verified. *p must be closed
 * in either case. */
int postgres_open(struct postgres *p, const struct postgres_opts *opts,
                  struct err *err) TR_MUSTCHECK;
void postgres_close(struct postgres *p);

/* The calls below return E_OK, or E_RETRY with *f filled in. */
/* If it is not; none is begun where until_ns has passed. Of several hosts libpq asks one behind the
 * other, and stays at one that says nothing; so a try that had no answer in 5 s is followed by one
 * that begins a host further on, until each host has been the first. The next connect begins where
 * this one ended. */
int postgres_connect(struct postgres *p, struct postgres_failure *f) TR_MUSTCHECK;
void postgres_disconnect(struct postgres *p);
/* Runs text without parameters: any number of statements. */
int postgres_run(struct postgres *p, const char *sql, struct postgres_failure *f) TR_MUSTCHECK;
/* One statement whose parameters are the columns of `arrays`. *out (PQclear it): its rows, in
 * binary form when asked. */
int postgres_query(struct postgres *p, const char *sql, struct postgres_arrays *arrays, bool binary,
                   PGresult **out, struct postgres_failure *f) TR_MUSTCHECK;
/* One statement whose parameters are texts, of types that the server infers; ptr NULL is NULL. *out
 * (PQclear it): its rows as text. */
int postgres_query_text(struct postgres *p, const char *sql, const struct str *parameters, int n,
                        PGresult **out, struct postgres_failure *f) TR_MUSTCHECK;
/* Opens a transaction with the limits that every one of ours has. */
int postgres_begin(struct postgres *p, struct postgres_failure *f) TR_MUSTCHECK;
/* Undoes it; a link that does not answer is dropped. */
void postgres_rollback(struct postgres *p);

/* postgres_hosts.c. "a,b,c" becomes "b,c,a"; one without a comma, which goes for every host, stays.
 */
void postgres_rotate(char *list);
int postgres_hosts(const struct postgres *p); /* how many the URL names, 1 at least */
void postgres_next_host(struct postgres *p);  /* the next connect begins with the next one */

/* postgres_place.c. Writes the hosts that libpq finds for the URL, in the environment or a service
 * file too, into p->parsed where the URL names none: what is judged is what is connected to, until
 * close. Connects nothing. E_USAGE: libpq's text; E_FATAL. */
int postgres_place(struct postgres *p, const char *url, struct err *err) TR_MUSTCHECK;
/* Each of a connection's hosts is this machine: a socket's folder or loopback. Comma-separated, or
 * NULL; an address goes before its host. */
bool postgres_is_here(const char *hosts, const char *addresses);

/* postgres_certificate.c: why the server's certificate is not to be trusted, in words of the TLS
 * library; NULL: it is, or the server cannot be asked. root: PEM file of the authorities, "system",
 * or NULL for libpq's default. Asks over a connection of its own, 5 s at most an answer. */
const char *postgres_certificate_fault(const char *host, const char *port, const char *root);

#endif
