/* doctor_queue: the queue of --source: which broker looks at it, and what both have in common. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "worker/commands/console.h"
#include "worker/commands/doctor.h"
#include "worker/commands/doctor_queue.h"

static const int64_t WAIT_NS = 5000000000, SKEW_WARN_NS = 2000000000, SKEW_FAULT_NS = 60000000000;

void doctor_skew(struct doctor *d, const char *who, int64_t theirs, int64_t before, int64_t after)
{
    int64_t off = theirs - before - (after - before) / 2;
    int64_t sure = TR_MAX(llabs(off) - (after - before) / 2, (int64_t)0);
    enum verdict verdict = sure > SKEW_FAULT_NS  ? VERDICT_FAULT
                           : sure > SKEW_WARN_NS ? VERDICT_WARN
                                                 : VERDICT_OK;
    doctor_report(d, verdict, "clock",
                  verdict == VERDICT_OK
                      ? NULL
                      : "run a time service (chrony) on both: deadlines, leases and ages of "
                        "messages are held against this clock",
                  "%s is %.3f s %s this machine", who, (double)llabs(off) / 1e9,
                  off < 0 ? "behind" : "ahead of");
}

const char *doctor_link_mend(const struct err *err, const char *otherwise)
{
    static const struct {
        const char *word, *mend;
    } mends[] = {
        {"certificate", "renew or correct the certificates: chain, name, end (docs/kafka.md, "
                        "docs/redis.md, docs/postgres.md)"},
        {"WRONGPASS", "correct user and password file in --broker-config"},
        {"NOAUTH", "name user and password file in --broker-config"},
        {"uthentication", "correct user and password file in --broker-config"},
        {"uthoriz", "grant the broker's user the rights that docs/kafka.md lists"},
        {"NOPERM", "grant the broker's user the rights that docs/redis.md lists"},
        {"no topic", "make it with `tranche init`, or correct the name in --source"},
        {"plain text", "set up TLS in --broker-config, or give --allow-insecure"},
    };
    for (size_t i = 0; i < TR_COUNT(mends); i++)
        if (strstr(err->msg, mends[i].word))
            return mends[i].mend;
    return otherwise;
}

void doctor_queue(struct doctor *d)
{
    struct source_opts opts;
    struct source_url url;
    struct err err = {0};
    console_queue(&opts, d->config);
    opts.group = config_text(d->config, "group");
    opts.client = "tranche-doctor";
    if (config_origin(d->config, "connect-timeout") == CONFIG_DEFAULT)
        opts.connect_timeout_ns = WAIT_NS; /* the question is whether it answers now */
    if (!opts.url)
        return;
    if (source_url_parse(&url, str_of(opts.url), &err) < 0)
        doctor_report(d, VERDICT_FAULT, "broker", "correct --source", "%s", err.msg);
    else if (str_eq(url.scheme, STR("kafka")))
        doctor_kafka(d, &url, &opts);
    else if (str_eq(url.scheme, STR("redis")) || str_eq(url.scheme, STR("rediss")) ||
             str_eq(url.scheme, STR("redis-sentinel")) ||
             str_eq(url.scheme, STR("rediss-sentinel")))
        doctor_redis(d, &url, &opts);
    else if (!str_eq(url.scheme, STR("file")))
        doctor_report(
            d, VERDICT_FAULT, "broker", "correct --source",
            "%s: want kafka, redis, rediss, redis-sentinel, rediss-sentinel or file, found "
            "another scheme",
            opts.url);
    else if (access(url.name.ptr, R_OK) != 0) /* the URL's end: it has its NUL */
        doctor_report(d, VERDICT_FAULT, "broker", "name a file that can be read with --source",
                      "%s: %s", opts.url, strerror(errno));
    else
        doctor_report(d, VERDICT_OK, "broker", NULL, "%s can be read", opts.url);
}
