/* redis_producer: submit's and init's side of Redis. See producer.h for what the functions do. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_PRODUCER_H
#define TRANCHE_WORKER_SOURCE_REDIS_PRODUCER_H

#include "worker/source/producer.h"

/* E_FATAL also where the stream does not exist: `tranche init` makes it. */
int redis_producer_open(struct producer **out, const struct source_url *url,
                        const struct source_opts *opts, struct err *err) TR_MUSTCHECK;
int redis_queue_init(const struct source_url *url, const struct source_opts *opts,
                     const struct queue_shape *shape, bool *made, struct err *err) TR_MUSTCHECK;

#endif
