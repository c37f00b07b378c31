/* kafka_config: the operator's file of client properties, and which of them are not the operator's.
 * Lines are `name = value`; `#` starts a comment line. `name.file = PATH` takes the value from a
 * file, without its last newline: the way for passwords and keys. */
#ifndef TRANCHE_WORKER_SOURCE_KAFKA_CONFIG_H
#define TRANCHE_WORKER_SOURCE_KAFKA_CONFIG_H

#include "engine/base.h"

/* Takes one property. E_USAGE when the client library does not know it or its value. */
typedef int kafka_config_set(void *ctx, const char *name, const char *value, struct err *err);

/* Pure; fuzzed. Calls `set` for each line of `text`; `from_file` (NULL: refused) reads the value of
 * NAME.file and passes it on. E_USAGE names path:line, and a property that the worker itself must
 * set for its acks to be true (enable.auto.commit and its like). Values never appear in errors. */
int kafka_config_parse(struct str text, const char *path, kafka_config_set *set,
                       kafka_config_set *from_file, void *ctx, struct err *err) TR_MUSTCHECK;

/* Reads the file and what it refers to. Secrets are wiped from our memory before it returns. */
int kafka_config_read(const char *path, kafka_config_set *set, void *ctx,
                      struct err *err) TR_MUSTCHECK;

/* Whether every host of "a:9092,[::1]:9093" is this machine. Pure. */
bool kafka_hosts_local(struct str hosts);

#endif
