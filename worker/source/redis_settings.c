/* redis_settings: see redis_settings.h. */
#include "worker/source/redis_settings.h"

#include <stdio.h>

#include "worker/config/config.h"
#include "worker/job/text.h"

void redis_settings_init(struct redis_settings *s)
{
    *s = (struct redis_settings){.lease_ns = 120000000000, .trim_keep_ns = 3600000000000};
}

/* Decimal digits only; -1 when it is none or beyond max. */
static int64_t parse_number(struct str s, int64_t max)
{
    int64_t n = 0;
    if (s.len == 0 || s.len > 18)
        return -1;
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] < '0' || s.ptr[i] > '9')
            return -1;
        n = n * 10 + (s.ptr[i] - '0');
    }
    return n <= max ? n : -1;
}

int redis_host_parse(struct redis_host *out, struct str text, int default_port, struct err *err)
{
    struct str name = text, port = {NULL, 0};
    const char *close = text.len && text.ptr[0] == '[' ? memchr(text.ptr, ']', text.len) : NULL;
    const char *from = close ? close + 1 : text.ptr;
    size_t rest = text.len - (size_t)(from - text.ptr);
    const char *colon = rest ? memchr(from, ':', rest) : NULL;
    if (close && rest > 0 && *from != ':')
        return err_set(err, E_USAGE, "redis host \"" STR_FMT "\": want [ADDRESS]:PORT",
                       (int)TR_MIN(text.len, (size_t)80), text.ptr);
    if (colon) {
        port = (struct str){colon + 1, text.len - (size_t)(colon + 1 - text.ptr)};
        name.len = (size_t)(colon - text.ptr);
    }
    if (close)
        name = (struct str){text.ptr + 1, (size_t)(close - text.ptr) - 1};
    int64_t number = colon ? parse_number(port, 65535) : default_port;
    if (name.len == 0 || name.len >= sizeof out->name || memchr(name.ptr, 0, name.len))
        return err_set(err, E_USAGE, "redis host: want a name of 1 to %d bytes, found %zu",
                       REDIS_NAME_MAX - 1, name.len);
    if (number < 1)
        return err_set(err, E_USAGE, "redis host \"" STR_FMT "\": want a port from 1 to 65535",
                       (int)TR_MIN(text.len, (size_t)80), text.ptr);
    memcpy(out->name, name.ptr, name.len);
    out->name[name.len] = '\0';
    out->port = (int)number;
    return E_OK;
}

int redis_settings_url(struct redis_settings *s, struct str scheme, struct str hosts,
                       struct err *err)
{
    s->tls = str_eq(scheme, STR("rediss")) || str_eq(scheme, STR("rediss-sentinel"));
    s->sentinel = str_eq(scheme, STR("redis-sentinel")) || str_eq(scheme, STR("rediss-sentinel"));
    if (!s->tls && !s->sentinel && !str_eq(scheme, STR("redis")))
        return err_set(err, E_USAGE, "redis: unknown scheme \"" STR_FMT "\"",
                       (int)TR_MIN(scheme.len, (size_t)40), scheme.ptr);
    s->n_hosts = 0;
    while (true) {
        const char *comma = hosts.len ? memchr(hosts.ptr, ',', hosts.len) : NULL;
        struct str one = {hosts.ptr, comma ? (size_t)(comma - hosts.ptr) : hosts.len};
        if (s->n_hosts == REDIS_HOSTS_MAX)
            return err_set(err, E_USAGE, "redis: want at most %d hosts", REDIS_HOSTS_MAX);
        int rc = redis_host_parse(&s->hosts[s->n_hosts], one, s->sentinel ? 26379 : 6379, err);
        if (rc < 0)
            return rc;
        s->n_hosts++;
        if (!comma)
            break;
        hosts.len -= one.len + 1;
        hosts.ptr = comma + 1;
    }
    if (s->n_hosts > 1 && !s->sentinel)
        return err_set(err, E_USAGE,
                       "redis: want one host, found %d; several are sentinels: redis-sentinel://",
                       s->n_hosts);
    return E_OK;
}

static struct str trimmed(struct str s)
{
    while (s.len && (s.ptr[0] == ' ' || s.ptr[0] == '\t')) {
        s.ptr++;
        s.len--;
    }
    while (s.len &&
           (s.ptr[s.len - 1] == ' ' || s.ptr[s.len - 1] == '\t' || s.ptr[s.len - 1] == '\r'))
        s.len--;
    return s;
}

static int take_duration(int64_t *out, struct str value, double min, double max, const char *where,
                         struct err *err)
{
    struct option option = {.name = "time", .type = OPTION_DURATION, .min = min, .max = max};
    struct config_value v = {0};
    int rc = config_value_parse(&v, &option, value, where, err);
    *out = rc == E_OK ? v.integer : *out;
    return rc;
}

/* One `name = value`. */
static int take_line(struct redis_settings *s, struct str name, struct str value, const char *where,
                     struct err *err)
{
    const struct {
        const char *name;
        char *to;
        size_t cap;
    } texts[] = {
        {"username", s->user, sizeof s->user},
        {"password.file", s->password_file, sizeof s->password_file},
        {"sentinel.master", s->master, sizeof s->master},
        {"sentinel.password.file", s->sentinel_password_file, sizeof s->sentinel_password_file},
        {"tls.ca.file", s->ca_file, sizeof s->ca_file},
        {"tls.cert.file", s->cert_file, sizeof s->cert_file},
        {"tls.key.file", s->key_file, sizeof s->key_file}};
    const char *known[TR_COUNT(texts) + 2] = {"lease", "trim.keep"};
    char at[160];
    snprintf(at, sizeof at, "%s: " STR_FMT, where, (int)TR_MIN(name.len, (size_t)40), name.ptr);
    if (str_eq(name, STR("lease")))
        return take_duration(&s->lease_ns, value, 1, 86400, at, err);
    if (str_eq(name, STR("trim.keep")) && str_eq(value, STR("never"))) {
        s->trim_keep_ns = -1;
        return E_OK;
    }
    if (str_eq(name, STR("trim.keep")))
        return take_duration(&s->trim_keep_ns, value, 0, 86400 * 365.0, at, err);
    if (str_eq(name, STR("password")))
        return err_set(err, E_USAGE, "%s: want password.file: secrets stand in files of their own",
                       where);
    for (size_t i = 0; i < TR_COUNT(texts); i++) {
        known[i + 2] = texts[i].name;
        if (!str_eq(name, str_of(texts[i].name)))
            continue;
        if (value.len == 0 || value.len >= texts[i].cap || memchr(value.ptr, 0, value.len))
            return err_set(err, E_USAGE, "%s: want 1 to %zu bytes, found %zu", at, texts[i].cap - 1,
                           value.len);
        memcpy(texts[i].to, value.ptr, value.len);
        texts[i].to[value.len] = '\0';
        return E_OK;
    }
    const char *near = nearest_name(name, known, TR_COUNT(known));
    return err_set(err, E_USAGE, "%s: unknown name%s%s", at, near ? "; nearest: " : "",
                   near ? near : "");
}

int redis_settings_parse(struct redis_settings *s, struct str text, const char *path,
                         struct err *err)
{
    for (int line = 1; text.len > 0; line++) {
        const char *end = memchr(text.ptr, '\n', text.len);
        struct str one = {text.ptr, end ? (size_t)(end - text.ptr) : text.len};
        size_t used = one.len + (end != NULL);
        text.ptr += used;
        text.len -= used;
        one = trimmed(one);
        if (one.len == 0 || one.ptr[0] == '#')
            continue;
        char where[100];
        snprintf(where, sizeof where, "%.80s:%d", path, line);
        const char *equals = memchr(one.ptr, '=', one.len);
        if (!equals)
            return err_set(err, E_USAGE, "%s: want `name = value`", where);
        struct str name = trimmed((struct str){one.ptr, (size_t)(equals - one.ptr)});
        struct str value =
            trimmed((struct str){equals + 1, one.len - (size_t)(equals + 1 - one.ptr)});
        int rc = take_line(s, name, value, where, err);
        if (rc < 0)
            return rc;
    }
    return E_OK;
}

int redis_settings_check(const struct redis_settings *s, struct err *err)
{
    if (s->sentinel && !s->master[0])
        return err_set(err, E_USAGE,
                       "redis-sentinel://: want sentinel.master in the broker config");
    if (!s->sentinel && s->master[0])
        return err_set(err, E_USAGE, "sentinel.master: want a redis-sentinel:// URL with it");
    if (!s->cert_file[0] != !s->key_file[0])
        return err_set(err, E_USAGE, "want tls.cert.file and tls.key.file together");
    if (!s->tls && (s->ca_file[0] || s->cert_file[0]))
        return err_set(err, E_USAGE, "tls.*: want a rediss:// URL with it");
    if (s->user[0] && !s->password_file[0])
        return err_set(err, E_USAGE, "username: want password.file with it");
    return E_OK;
}
