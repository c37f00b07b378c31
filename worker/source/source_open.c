/* source_open: see source_open.h. */
#include "worker/source/source_open.h"

#include <stdio.h>

#include "worker/monitor/metrics.h"
#include "worker/source/source_kafka.h"
#include "worker/source/source_redis.h"

enum { URL_SHOWN = 120 };

static int open_file(struct source **out, const struct source_url *url,
                     const struct source_opts *opts, const struct clock *clock, struct err *err)
{
    if (opts->partition >= 0)
        return err_set(err, E_USAGE,
                       "--partition: want none, because a file has no partitions, "
                       "found %d",
                       opts->partition);
    return source_file_open(out, url->name.ptr, clock, err); /* the text's end is the name's */
}

/* `hosts`: the scheme wants at least one. */
static const struct scheme {
    const char *name;
    bool hosts;
    int (*open)(struct source **, const struct source_url *, const struct source_opts *,
                const struct clock *, struct err *);
} schemes[] = {
    {"file", false, open_file},
    {"redis", true, source_redis_open},
    {"rediss", true, source_redis_open},
    {"redis-sentinel", true, source_redis_open},
    {"rediss-sentinel", true, source_redis_open},
    {"kafka", true, source_kafka_open},
};

static const struct scheme *scheme_find(struct str name)
{
    for (size_t i = 0; i < TR_COUNT(schemes); i++)
        if (str_eq(name, str_of(schemes[i].name)))
            return &schemes[i];
    return NULL;
}

static int complain(struct err *err, struct str text, const char *what)
{
    return err_set(err, E_USAGE, "source \"%.*s\": %s", (int)TR_MIN(text.len, (size_t)URL_SHOWN),
                   text.ptr, what);
}

int source_url_parse(struct source_url *out, struct str text, struct err *err)
{
    *out = (struct source_url){0};
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] <= ' ' || text.ptr[i] == 127)
            return complain(err, (struct str){text.ptr, i},
                            "want a URL without spaces and control characters");
    const char *colon = text.len ? memmem(text.ptr, text.len, "://", 3) : NULL;
    if (!colon || colon == text.ptr)
        return complain(err, text, "want SCHEME://HOST/NAME, as in kafka://localhost:9092/jobs");
    out->scheme = (struct str){text.ptr, (size_t)(colon - text.ptr)};
    struct str rest = {colon + 3, text.len - out->scheme.len - 3};
    const struct scheme *scheme = scheme_find(out->scheme);
    const char *slash = rest.len ? memchr(rest.ptr, '/', rest.len) : NULL;
    if (scheme && !scheme->hosts) {
        out->name = rest;
    } else {
        out->hosts = (struct str){rest.ptr, slash ? (size_t)(slash - rest.ptr) : rest.len};
        if (slash)
            out->name = (struct str){slash + 1, rest.len - out->hosts.len - 1};
        if (out->hosts.len && memchr(out->hosts.ptr, '@', out->hosts.len))
            return complain(err, out->scheme,
                            "want no user or password in a URL: both come from files");
        if (out->hosts.len == 0)
            return complain(err, text, "want a host behind ://");
    }
    if (out->name.len == 0)
        return complain(err, text, "want a name behind the host: /TOPIC or /STREAM");
    return E_OK;
}

int source_open(struct source **out, const struct source_opts *opts, const struct clock *clock,
                struct err *err)
{
    struct source_url url;
    int rc = source_url_parse(&url, str_of(opts->url ? opts->url : ""), err);
    if (rc < 0)
        return rc;
    const struct scheme *scheme = scheme_find(url.scheme);
    if (scheme && (rc = scheme->open(out, &url, opts, clock, err)) == E_OK)
        metrics_source((*out)->ops->name, url.name, scheme->hosts ? opts->group : NULL);
    if (scheme)
        return rc;
    char known[128] = "";
    for (size_t i = 0; i < TR_COUNT(schemes); i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                 schemes[i].name);
    return err_set(err, E_USAGE, "source \"%.*s://\": want one of %s",
                   (int)TR_MIN(url.scheme.len, (size_t)URL_SHOWN), url.scheme.ptr, known);
}
