/* query_impl: what query.c and its two databases share. Nobody else includes this. */
#ifndef TRANCHE_WORKER_SINK_QUERY_IMPL_H
#define TRANCHE_WORKER_SINK_QUERY_IMPL_H

#include "worker/sink/query.h"

struct query_ops {
    int (*start)(struct query *, const char *sql, const struct str *, int n, bool stream,
                 struct err *);
    int (*next)(struct query *, struct err *);
    struct str (*text)(const struct query *, int column);
    bool (*bytes)(const struct query *, int column, struct text *out);
    int64_t (*changed)(const struct query *);
    int (*begin)(struct query *, struct err *);
    int (*commit)(struct query *, struct err *);
    void (*rollback)(struct query *);
    void (*close)(struct query *);
};
struct query {
    const struct query_ops *ops;
    bool transaction; /* between begin and its end */
};
int query_sqlite_open(struct query **out, const char *path, enum query_access access,
                      struct err *err) TR_MUSTCHECK;
int query_postgres_open(struct query **out, const struct postgres_opts *opts,
                        struct err *err) TR_MUSTCHECK;
extern const struct query_ops query_postgres_ops;

#endif
