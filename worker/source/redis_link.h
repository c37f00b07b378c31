/* redis_link: one TCP connection, plain or TLS, on which no call waits past its deadline. It knows
 * bytes, not Redis. hiredis's own sockets are not used: Debian 12's has no TLS, and its timeouts do
 * not outlive a reconnect. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_LINK_H
#define TRANCHE_WORKER_SOURCE_REDIS_LINK_H

#include "worker/source/redis_settings.h"

struct ssl_st;
struct ssl_ctx_st;
struct redis_link {
    int fd; /* -1: closed */
    struct ssl_st *ssl;
    struct ssl_ctx_st *context;
    const struct clock *clock;
};
/* Resolves, connects, and with settings->tls verifies the peer: chain, host name or address, TLS
 * 1.2 or newer; certificates are read anew each time, so rotated ones are taken. E_RETRY: not now;
 * E_USAGE: plain text to another machine without allow_insecure, or an unreadable certificate. */
int redis_link_open(struct redis_link *l, const struct redis_settings *settings,
                    const struct redis_host *host, int64_t deadline_ns, const struct clock *clock,
                    struct err *err) TR_MUSTCHECK;
void redis_link_close(struct redis_link *l); /* closed and zero-initialised with fd -1 are legal */
/* All of it, or E_RETRY. deadline_ns: on the monotonic clock. */
int redis_link_write(struct redis_link *l, const char *bytes, size_t n, int64_t deadline_ns,
                     struct err *err) TR_MUSTCHECK;
/* At least one byte; their number, or E_RETRY: deadline, or the peer hung up. */
int redis_link_read(struct redis_link *l, char *to, size_t cap, int64_t deadline_ns,
                    struct err *err) TR_MUSTCHECK;

#endif
