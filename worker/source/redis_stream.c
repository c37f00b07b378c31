/* redis_stream: from URL and options to a connection with a server that is fit for the work. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/source/source_redis.h"

enum { CONFIG_BYTES_MAX = 64 << 10 };
static const int64_t INFO_NS = 5000000000, POLL_NS = 50000000;

static int read_config(struct redis_settings *s, const char *path, struct err *err)
{
    char *text = mem_alloc(CONFIG_BYTES_MAX + 1, 1);
    if (!text)
        return err_set(err, E_FATAL, "%s: no memory", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, CONFIG_BYTES_MAX + 1);
    int rc = E_OK;
    if (n < 0)
        rc = err_errno(err, E_USAGE, "%s: cannot read", path);
    else if (n > CONFIG_BYTES_MAX)
        rc = err_set(err, E_USAGE, "%s: want at most %d bytes", path, CONFIG_BYTES_MAX);
    else
        rc = redis_settings_parse(s, (struct str){text, (size_t)n}, path, err);
    if (fd >= 0)
        close(fd);
    mem_free(text);
    return rc;
}

static int take_name(char *to, size_t cap, struct str name, const char *what, struct err *err)
{
    if (name.len == 0 || name.len > 200 || name.len >= cap)
        return err_set(err, E_USAGE, "redis: want a %s of 1 to 200 bytes, found %zu", what,
                       name.len);
    memcpy(to, name.ptr, name.len);
    to[name.len] = '\0';
    return E_OK;
}

/* Warns of a server that would lose what it was given; refuses one that is too old. */
static int check_server(struct redis_stream *s, struct err *err)
{
    struct redis_args a;
    redisReply *reply;
    struct err why = {0};
    redis_args_start(&a, "INFO");
    int rc = redis_command(s->connection, &reply, &a, INFO_NS, &why);
    if (rc < 0 && redis_last_fault(s->connection) == REDIS_FAULT_NOPERM)
        return E_OK; /* the ACL user may not ask */
    if (rc < 0)
        return err_typed(err, rc, why.type, "%s", why.msg);
    struct str info = redis_text(reply), version = redis_info_value(info, "redis_version");
    char text[24];
    snprintf(text, sizeof text, STR_FMT, (int)TR_MIN(version.len, (size_t)20), version.ptr);
    double number = strtod(text, NULL);
    if (number > 0 && number < 6.2)
        rc = err_set(err, E_USAGE, "redis: want version 6.2 or newer (XAUTOCLAIM), found %s", text);
    struct str policy = redis_info_value(info, "maxmemory_policy");
    struct str maximum = redis_info_value(info, "maxmemory");
    if (policy.ptr && !str_eq(policy, STR("noeviction")) && !str_eq(maximum, STR("0")))
        LOG(LOG_WARN, "redis_may_evict", LOG_STR("maxmemory_policy", policy),
            LOG_S("want", "noeviction"));
    if (str_eq(redis_info_value(info, "aof_enabled"), STR("0")))
        LOG(LOG_WARN, "redis_not_durable", LOG_S("found", "appendonly no"),
            LOG_S("want", "appendonly yes: jobs that the server forgets are gone"));
    freeReplyObject(reply);
    return rc;
}

static int reach(struct redis_stream *s, int64_t timeout_ns, const struct clock *clock,
                 struct err *err)
{
    int64_t deadline = clock_mono_ns(clock) + timeout_ns;
    struct err last = {0};
    for (;;) {
        struct err why = {0};
        int rc = redis_ready(s->connection, &why);
        if (rc == E_OK)
            rc = check_server(s, &why);
        if (rc == E_OK)
            return E_OK;
        if (strcmp(why.type, "redis_away") != 0)
            last = why;
        if (rc != E_RETRY || clock_mono_ns(clock) >= deadline)
            return err_typed(err, rc, last.type, "%s", last.msg);
        clock_sleep_ns(clock, POLL_NS);
    }
}

int redis_stream_open(struct redis_stream *s, const struct source_url *url,
                      const struct source_opts *opts, const struct clock *clock, struct err *err)
{
    *s = (struct redis_stream){0};
    redis_settings_init(&s->settings);
    s->settings.allow_insecure = opts->allow_insecure;
    if (opts->partition >= 0)
        return err_set(
            err, E_USAGE,
            "--partition: want none, because a Redis stream has no partitions, found %d; "
            "--idle-exit ends a worker too",
            opts->partition);
    int rc = redis_settings_url(&s->settings, url->scheme, url->hosts, err);
    if (rc == E_OK && opts->broker_config)
        rc = read_config(&s->settings, opts->broker_config, err);
    if (rc == E_OK)
        rc = redis_settings_check(&s->settings, err);
    if (rc == E_OK)
        rc = take_name(s->stream, sizeof s->stream, url->name, "stream name", err);
    if (rc == E_OK)
        rc = take_name(s->group_name, sizeof s->group_name, str_of(opts->group), "group name", err);
    if (rc == E_OK)
        rc = take_name(s->consumer, sizeof s->consumer,
                       str_of(opts->client && *opts->client ? opts->client : "tranche"),
                       "worker name", err);
    if (rc == E_OK)
        rc = redis_connection_open(&s->connection, &s->settings, s->consumer, clock, err);
    if (rc < 0)
        return rc;
    s->group.connection = s->connection;
    s->group.stream = str_of(s->stream);
    s->group.group = str_of(s->group_name);
    s->group.consumer = str_of(s->consumer);
    return reach(s, opts->connect_timeout_ns, clock, err);
}

void redis_stream_close(struct redis_stream *s)
{
    redis_connection_close(s->connection);
    s->connection = NULL;
}
