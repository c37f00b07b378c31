/* redis_admin: what an operator asks of a stream and a group as nobody's consumer. See producer.h.
 */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_ADMIN_H
#define TRANCHE_WORKER_SOURCE_REDIS_ADMIN_H

#include "worker/source/producer.h"
#include "worker/source/source_redis.h"

/* A stream that is there. E_FATAL: no such stream or group; else as redis_stream_open. mem_free it
 * behind redis_stream_close; NULL on errors. */
int redis_admin_open(struct redis_stream **out, const struct source_url *url,
                     const struct source_opts *opts, struct redis_group_info *info,
                     struct err *err) TR_MUSTCHECK;
void redis_admin_close(struct redis_stream *s); /* NULL is legal */

int redis_queue_seek(const struct source_url *url, const struct source_opts *opts,
                     const struct seek_to *to, bool apply, struct seek_move *moves, int *n,
                     char label[JOB_ORIGIN_MAX], struct err *err) TR_MUSTCHECK;
int redis_queue_scan(const struct source_url *url, const struct source_opts *opts,
                     const struct scan_range *range, queue_scan_take *take, void *ctx,
                     struct err *err) TR_MUSTCHECK;
int redis_queue_drop(const struct source_url *url, const struct source_opts *opts, bool *dropped,
                     struct err *err) TR_MUSTCHECK;
int redis_queue_backlog(const struct source_url *url, const struct source_opts *opts,
                        struct backlog *out, struct err *err) TR_MUSTCHECK;

#endif
