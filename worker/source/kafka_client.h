/* kafka_client: what the source, the producer and init share of the client library: its properties,
 * the topic's metadata, the classes of its errors. */
#ifndef TRANCHE_WORKER_SOURCE_KAFKA_CLIENT_H
#define TRANCHE_WORKER_SOURCE_KAFKA_CLIENT_H

#include <librdkafka/rdkafka.h>

#include "worker/source/source_open.h"

/* Properties: hosts and client id, then the caller's, then the operator's file, and the check that
 * no plain text leaves the machine unasked. Errors: E_USAGE, E_FATAL. The caller's to destroy. */
int kafka_client_conf(rd_kafka_conf_t **out, const struct source_url *url,
                      const struct source_opts *opts, const char *const (*pairs)[2], size_t n,
                      struct err *err) TR_MUSTCHECK;
/* Asks for the topic until it answers or the time is over; *failed is what an error callback may
 * set meanwhile; partitions may be NULL. E_RETRY: no broker; E_FATAL: no such topic, no right to.
 */
int kafka_client_topic(rd_kafka_t *rk, const char *topic, int64_t timeout_ns,
                       const struct err *failed, int32_t *partitions, struct err *err) TR_MUSTCHECK;
/* Waits for any broker. E_RETRY. */
int kafka_client_reach(rd_kafka_t *rk, int64_t timeout_ns, struct err *err) TR_MUSTCHECK;
/* Messages of the whole topic that the handle's group has not acknowledged; -1: no answer. */
int64_t kafka_client_lag(rd_kafka_t *rk, const char *topic, int32_t partitions);
/* What an error callback was told, in words for the operator: where the client library itself is
 * what a login fails on, that comes first. Writes at most cap bytes, NUL included. */
void kafka_client_explain(rd_kafka_t *rk, rd_kafka_resp_err_t code, const char *detail, char *out,
                          size_t cap);
/* The library's log callback: into ours. */
void kafka_client_log(const rd_kafka_t *rk, int level, const char *facility, const char *text);
/* The class of what the library says: E_OK: goes by itself; E_RETRY; E_FATAL. Pure. */
int kafka_error_class(rd_kafka_resp_err_t code);
/* NUL-terminated; mem_free it. NULL: no memory. */
char *kafka_client_copy(struct str s);

#endif
