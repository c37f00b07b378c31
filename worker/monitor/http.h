/* http: what a probe, Prometheus and a person ask of a worker: /healthz, /readyz, /metrics, and
 * a page at / (http_page.h).
 *
 * GET only, one request a connection, at most 8 of these, 1 KiB a request, 5 s of silence and 10 s
 * in all; where all 8 are taken, the oldest that has had a second makes room. So a slow client
 * costs the others a second at most. No answer holds a prompt or an answer of a job.
 *
 * The supervisor's parent binds the address before it forks, and keeps the socket: each child
 * serves it in turn, from before it opens anything else. Between two children the address stays
 * taken, and who connects then is answered by the next one. */
#ifndef TRANCHE_WORKER_MONITOR_HTTP_H
#define TRANCHE_WORKER_MONITOR_HTTP_H

#include "engine/base.h"

enum { HTTP_CONNECTIONS = 8, HTTP_REQUEST_BYTES = 1024 };

/* Binds "HOST:PORT" ("127.0.0.1:9464", "[::]:9464"; port 0: a free one, which the log tells).
 * [::] is IPv4 too, whatever the system's default, and IPv4 alone where it has no IPv6.
 * E_USAGE naming the address and what is wrong with it. */
int http_listen(int *fd, const char *address, struct err *err) TR_MUSTCHECK;

struct http;
/* Serves fd on a thread of its own; fd is the server's from here on (a parent's copy of it is not).
 * E_FATAL. */
int http_open(struct http **out, int fd, struct err *err) TR_MUSTCHECK;
void http_close(struct http *h); /* NULL is legal */

#endif
