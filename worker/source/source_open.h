/* source_open: from a URL to the source that speaks its scheme. Each scheme is one row of a table
 * in source_open.c; what a URL means beyond its parts is its source's business. */
#ifndef TRANCHE_WORKER_SOURCE_SOURCE_OPEN_H
#define TRANCHE_WORKER_SOURCE_SOURCE_OPEN_H

#include "worker/source/source.h"

/* "kafka://a:9092,b:9092/topic": scheme "kafka", hosts "a:9092,b:9092", name "topic". A URL of the
 * scheme file has no hosts and its name is the path. Pieces of the parsed text. */
struct source_url {
    struct str scheme, hosts, name;
};
/* Pure; fuzzed. E_USAGE naming the text: no scheme, no name, a user or password in it (secrets come
 * from files), control characters. */
int source_url_parse(struct source_url *out, struct str text, struct err *err) TR_MUSTCHECK;

/* Strings are borrowed until the source is closed. NULL and 0 mean what the comment says. */
struct source_opts {
    const char *url;
    const char *group;         /* consumer group: who shares the messages */
    const char *client;        /* how the broker's log names this process */
    const char *broker_config; /* file of the client library's properties, secrets as files; NULL */
    bool allow_insecure;       /* plain text to a host that is not this machine */
    int32_t partition; /* only this one (Kafka), up to its end at open; < 0: what the group gives */
    bool tombstone_cancels;     /* Kafka: a message without a value takes back those with its key */
    int64_t idle_exit_ns;       /* drained once nothing was left for so long; 0: never */
    int64_t connect_timeout_ns; /* how long open waits for the broker before E_RETRY */
};
/* E_USAGE: the URL or the options; E_RETRY: no broker within connect_timeout_ns; E_FATAL. */
int source_open(struct source **out, const struct source_opts *opts, const struct clock *clock,
                struct err *err) TR_MUSTCHECK;

#endif
