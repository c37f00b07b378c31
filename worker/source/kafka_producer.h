/* kafka_producer: submit's and init's side of Kafka. See producer.h for what the functions do. */
#ifndef TRANCHE_WORKER_SOURCE_KAFKA_PRODUCER_H
#define TRANCHE_WORKER_SOURCE_KAFKA_PRODUCER_H

#include "worker/source/producer.h"

int kafka_producer_open(struct producer **out, const struct source_url *url,
                        const struct source_opts *opts, struct err *err) TR_MUSTCHECK;
int kafka_queue_init(const struct source_url *url, const struct source_opts *opts,
                     const struct queue_shape *shape, bool *made, struct err *err) TR_MUSTCHECK;

#endif
