/* doctor_redis: server, stream, group, and what a scaler reads of both. Claims nothing: whether the
 * user may do what a worker does is asked with arguments that no command accepts, which the server
 * refuses behind its look at the user's rights. */
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/commands/doctor_queue.h"
#include "worker/source/redis_link.h"
#include "worker/source/source_redis.h"

enum { SILENT_LEASES = 3, SILENT_MAX = 1000 };
static const int64_t ANSWER_NS = 5000000000, SECOND_NS = 1000000000;

struct look {
    struct doctor *d;
    struct redis_stream *s;
    const char *url;
    struct redis_args args;
};

/* Words of one command, NULL-terminated; "@stream" and "@group" stand for ours. NULL: refused, and
 * *fault says how. */
static redisReply *ask(struct look *l, const char *const *words, enum redis_fault *fault)
{
    struct err why = {0};
    redisReply *reply = NULL;
    redis_args_start(&l->args, words[0]);
    for (int i = 1; words[i]; i++)
        redis_args_text(&l->args, strcmp(words[i], "@stream") == 0  ? l->s->stream
                                  : strcmp(words[i], "@group") == 0 ? l->s->group_name
                                                                    : words[i]);
    *fault = REDIS_FAULT_OTHER;
    if (redis_ready(l->s->connection, &why) < 0)
        return NULL;
    if (redis_command(l->s->connection, &reply, &l->args, ANSWER_NS, &why) < 0) {
        *fault = redis_last_fault(l->s->connection);
        return NULL;
    }
    *fault = REDIS_FAULT_NONE;
    return reply;
}

/* ---- the server ---- */

static void look_at_certificates(struct look *l)
{
    const struct redis_settings *s = &l->s->settings;
    struct redis_link link = {.fd = -1};
    struct err why = {0};
    doctor_certificate_file(l->d, s->cert_file);
    doctor_certificate_file(l->d, s->ca_file);
    if (!s->tls || s->sentinel || s->n_hosts == 0)
        return;
    const struct clock *clock = clock_system();
    if (redis_link_open(&link, s, &s->hosts[0], clock_mono_ns(clock) + ANSWER_NS, clock, &why) ==
        E_OK) {
        X509 *x = SSL_get_peer_certificate(link.ssl);
        if (x)
            doctor_certificate(l->d, "the server's certificate", certificate_end(x));
        X509_free(x);
    }
    redis_link_close(&link);
}

static void look_at_info(struct look *l)
{
    static const char *const words[] = {"INFO", NULL};
    enum redis_fault fault;
    char version[24] = "?";
    redisReply *reply = ask(l, words, &fault);
    if (!reply)
        return; /* the ACL user may not ask */
    struct str info = redis_text(reply), v = redis_info_value(info, "redis_version");
    if (v.ptr)
        snprintf(version, sizeof version, STR_FMT, (int)TR_MIN(v.len, (size_t)20), v.ptr);
    struct str policy = redis_info_value(info, "maxmemory_policy");
    if (strtod(version, NULL) < 7.0)
        doctor_report(l->d, VERDICT_WARN, "broker", "upgrade it: scalers read a stream's lag",
                      "want Redis 7.0 or newer, found %s", version);
    if (policy.ptr && !str_eq(policy, STR("noeviction")) &&
        !str_eq(redis_info_value(info, "maxmemory"), STR("0")))
        doctor_report(l->d, VERDICT_FAULT, "broker", "CONFIG SET maxmemory-policy noeviction",
                      "maxmemory-policy is " STR_FMT ": a full server may drop the stream",
                      STR_ARG(policy));
    if (str_eq(redis_info_value(info, "aof_enabled"), STR("0")))
        doctor_report(l->d, VERDICT_WARN, "broker", "set appendonly yes",
                      "appendonly is no: jobs that the server forgets at a crash are gone");
    freeReplyObject(reply);
}

static void look_at_clock(struct look *l)
{
    static const char *const words[] = {"TIME", NULL};
    enum redis_fault fault;
    int64_t before = clock_wall_ns(clock_system());
    redisReply *reply = ask(l, words, &fault);
    int64_t after = clock_wall_ns(clock_system());
    if (reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2)
        doctor_skew(l->d, "the Redis server",
                    strtoll(redis_text(reply->element[0]).ptr, NULL, 10) * SECOND_NS +
                        strtoll(redis_text(reply->element[1]).ptr, NULL, 10) * 1000,
                    before, after);
    if (reply)
        freeReplyObject(reply);
}

/* ---- rights ---- */

static void look_at_rights(struct look *l)
{
    static const char *const needed[][8] = {
        {"XREADGROUP", "GROUP", "@group", "doctor", "STREAMS", "@stream", "none", NULL},
        {"XAUTOCLAIM", "@stream", "@group", "doctor", "none", "0", NULL},
        {"XCLAIM", "@stream", "@group", "doctor", "none", "0-0", NULL},
        {"XACK", "@stream", "@group", "none", NULL},
        {"XPENDING", "@stream", "@group", NULL},
        {"XTRIM", "@stream", "MINID", "none", NULL},
        {"XGROUP", "CREATE", "@stream", "@group", "none", NULL},
        {"EVAL", "return 1", "0", NULL},
        {"TIME", NULL}};
    static const char *const too_much[] = {"CONFIG", "GET", "maxmemory", NULL};
    char missing[200] = "";
    enum redis_fault fault;
    size_t n = 0;
    for (size_t i = 0; i < TR_COUNT(needed); i++) {
        redisReply *reply = ask(l, needed[i], &fault);
        if (reply)
            freeReplyObject(reply);
        if (fault == REDIS_FAULT_NOPERM)
            n += (size_t)snprintf(missing + n, sizeof missing - n, " %s", needed[i][0]);
    }
    redisReply *reply = ask(l, too_much, &fault);
    bool privileged = reply != NULL, named = l->s->settings.user[0] != '\0';
    if (reply)
        freeReplyObject(reply);
    if (n)
        doctor_report(l->d, VERDICT_FAULT, "rights", "grant them (docs/redis.md has the ACL line)",
                      "the user may not run%s on \"%s\"", missing, l->s->stream);
    else if (privileged && named)
        doctor_report(l->d, VERDICT_WARN, "rights",
                      "give the workers a user of their own (docs/redis.md has its ACL line)",
                      "user \"%s\" may read the server's configuration: more than a worker needs",
                      l->s->settings.user);
    else
        doctor_report(l->d, VERDICT_OK, "rights", NULL, "the %suser may do what a worker does%s",
                      named ? "" : "default ",
                      privileged ? ", and all else: the server has no users" : "");
}

/* ---- stream and group ---- */

static int64_t stream_length(struct look *l)
{
    static const char *const words[] = {"XINFO", "STREAM", "@stream", NULL};
    enum redis_fault fault;
    int64_t length = -1;
    redisReply *reply = ask(l, words, &fault);
    for (size_t i = 0; reply && reply->type == REDIS_REPLY_ARRAY && i + 1 < reply->elements; i += 2)
        if (str_eq(redis_text(reply->element[i]), STR("length")))
            length = reply->element[i + 1]->integer;
    if (reply)
        freeReplyObject(reply);
    return length;
}

/* Entries whose consumers have been silent for several leases: nobody lives who would take them. */
static void look_at_orphans(struct look *l)
{
    char idle[24], most[12];
    enum redis_fault fault;
    int64_t ms = SILENT_LEASES * l->s->settings.lease_ns / 1000000;
    snprintf(idle, sizeof idle, "%lld", (long long)ms);
    snprintf(most, sizeof most, "%d", SILENT_MAX);
    const char *const words[] = {"XPENDING", "@stream", "@group", "IDLE", idle,
                                 "-",        "+",       most,     NULL};
    redisReply *reply = ask(l, words, &fault);
    if (reply && reply->type == REDIS_REPLY_ARRAY && reply->elements > 0)
        doctor_report(
            l->d, VERDICT_WARN, "pending", "start a worker of this group: it takes them over",
            "%s%zu entries are with consumers that have been silent for more than %d "
            "leases",
            reply->elements == SILENT_MAX ? "at least " : "", reply->elements, SILENT_LEASES);
    if (reply)
        freeReplyObject(reply);
}

static void look_at_lag(struct look *l, const struct redis_group_info *info)
{
    int64_t length = stream_length(l);
    if (info->lag < 0)
        doctor_report(l->d, VERDICT_FAULT, "lag",
                      "never XDEL what nobody has read, move groups with `XGROUP SETID .. "
                      "ENTRIESREAD n`; a worker that reads to the end mends it",
                      "the server does not know it, and KEDA takes that for an empty queue "
                      "(%lld entries are in the stream)",
                      (long long)length);
    else if (length >= 0 && info->lag > length)
        doctor_report(l->d, VERDICT_FAULT, "lag",
                      "take MAXLEN off the producers' XADD and XTRIM: workers trim what is done",
                      "KEDA reads %lld unread entries, the stream holds %lld: entries were trimmed "
                      "that nobody had read",
                      (long long)info->lag, (long long)length);
    else
        doctor_report(l->d, VERDICT_OK, "lag", NULL, "KEDA reads %lld unread and %lld pending",
                      (long long)info->lag, (long long)info->pending);
}

static void look_at_group(struct look *l)
{
    struct redis_group_info info = {0};
    struct err why = {0};
    int rc = redis_group_info(&l->s->group, &info, &why);
    if (rc < 0 || !info.found) {
        doctor_report(l->d, VERDICT_FAULT, "group",
                      rc < 0 ? doctor_link_mend(&why, "name the stream's key in --source")
                             : "make it with `tranche init`, or correct --source and --group",
                      rc < 0 ? "redis:%s: group \"%s\": %s"
                             : "redis:%s: there is no such stream, or no group \"%s\" of it%s",
                      l->s->stream, l->s->group_name, rc < 0 ? why.msg : "");
        return;
    }
    doctor_report(l->d, VERDICT_OK, "group", NULL, "\"%s\" of \"%s\"", l->s->group_name,
                  l->s->stream);
    look_at_lag(l, &info);
    look_at_orphans(l);
}

void doctor_redis(struct doctor *d, const struct source_url *url, const struct source_opts *opts)
{
    struct err err = {0};
    struct look *l = mem_alloc(1, sizeof *l);
    CHECK(l);
    *l = (struct look){.d = d, .s = mem_alloc(1, sizeof *l->s), .url = opts->url};
    CHECK(l->s);
    int rc = redis_stream_open(l->s, url, opts, clock_system(), &err);
    if (rc < 0) {
        doctor_report(d, VERDICT_FAULT, "broker",
                      doctor_link_mend(&err, rc == E_RETRY
                                                 ? "start the server, correct the hosts of "
                                                   "--source, or let the network policy pass"
                                                 : "correct --source or --broker-config"),
                      "%s: %s", opts->url, err.msg);
    } else {
        doctor_report(d, VERDICT_OK, "broker", NULL, "%s answers", opts->url);
        look_at_info(l);
        look_at_clock(l);
        look_at_group(l);
        look_at_rights(l);
    }
    look_at_certificates(l);
    redis_stream_close(l->s);
    mem_free(l->s);
    mem_free(l);
}
