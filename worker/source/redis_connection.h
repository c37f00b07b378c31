/* redis_connection: commands and replies on a link that may break: authentication, sentinels,
 * reconnecting with growing pauses, and what an error reply means for the connection. One thread.
 * It knows no stream. Formatter and parser are hiredis's. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_CONNECTION_H
#define TRANCHE_WORKER_SOURCE_REDIS_CONNECTION_H

#include "worker/source/redis_reply.h"

/* An argument list that is built on the way; texts of numbers and ids are kept inside. */
enum { REDIS_ARGS_MAX = 600, REDIS_ARGS_BYTES = 32 << 10 };
struct redis_args {
    const char *ptr[REDIS_ARGS_MAX];
    size_t len[REDIS_ARGS_MAX];
    int n;
    char bytes[REDIS_ARGS_BYTES];
    size_t used;
};
void redis_args_start(struct redis_args *a, const char *command);
void redis_args_add(struct redis_args *a, struct str s); /* borrowed until sent */
void redis_args_text(struct redis_args *a, const char *nul_terminated);
void redis_args_int(struct redis_args *a, int64_t n);
void redis_args_id(struct redis_args *a, struct redis_id id);

struct redis_connection;
/* Borrows settings and clock. Connects at the first redis_ready. */
int redis_connection_open(struct redis_connection **out, const struct redis_settings *settings,
                          const char *client, const struct clock *clock,
                          struct err *err) TR_MUSTCHECK;
void redis_connection_close(struct redis_connection *c); /* NULL is legal */

/* Connected and authenticated with a master, now. E_RETRY: not yet (the pause of 0.1 to 10 s, with
 * full jitter, is kept here); E_USAGE: will not be by waiting. */
int redis_ready(struct redis_connection *c, struct err *err) TR_MUSTCHECK;
bool redis_connected(const struct redis_connection *c);
/* Counts connects: after a change nothing that was in flight can be relied on. */
int64_t redis_epoch(const struct redis_connection *c);
void redis_disconnect(struct redis_connection *c); /* the next redis_ready connects anew */

/* Queues a command; sent by the next redis_take. Only while connected. */
int redis_append(struct redis_connection *c, const struct redis_args *a,
                 struct err *err) TR_MUSTCHECK;
/* The reply of the oldest command without one; the caller's (freeReplyObject). Waits wait_ns, then
 * the connection is cut. An error reply is an error here, its meaning in redis_last_fault; one that
 * says that this connection is of no use (READONLY, LOADING, NOAUTH, MOVED) cuts it as well.
 * E_RETRY, or E_FATAL (wrong type, a command that the server does not know). */
int redis_take(struct redis_connection *c, redisReply **out, int64_t wait_ns,
               struct err *err) TR_MUSTCHECK;
/* Both, on a connection that is ready. */
int redis_command(struct redis_connection *c, redisReply **out, const struct redis_args *a,
                  int64_t wait_ns, struct err *err) TR_MUSTCHECK;
enum redis_fault redis_last_fault(const struct redis_connection *c);
/* Bytes of the last reply; and the bound on one (default 64 MiB): a longer one cuts the connection
 * with the error type "redis_too_large". */
size_t redis_reply_bytes(const struct redis_connection *c);
void redis_limit_reply(struct redis_connection *c, size_t bytes);

#endif
