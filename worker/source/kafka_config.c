/* kafka_config: see kafka_config.h. */
#include "worker/source/kafka_config.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20, NAME_BYTES_MAX = 64, VALUE_BYTES_MAX = 64 << 10 };

/* The acks depend on these: whoever changes one gets rows without acks, or acks without rows. */
static const char *const ours[] = {"bootstrap.servers",
                                   "metadata.broker.list",
                                   "group.id",
                                   "enable.auto.commit",
                                   "auto.commit.enable",
                                   "enable.auto.offset.store",
                                   "auto.offset.reset",
                                   "enable.partition.eof",
                                   "partition.assignment.strategy",
                                   "enable.idempotence",
                                   "acks",
                                   "request.required.acks"};

static struct str trim(struct str s)
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

static int take_line(struct str line, const char *where, kafka_config_set *set,
                     kafka_config_set *from_file, void *ctx, struct err *err)
{
    static const char suffix[] = ".file";
    const char *equals = memchr(line.ptr, '=', line.len);
    if (!equals)
        return err_set(err, E_USAGE, "%s: want `name = value`", where);
    struct str name = trim((struct str){line.ptr, (size_t)(equals - line.ptr)});
    struct str value = trim((struct str){equals + 1, line.len - (size_t)(equals - line.ptr) - 1});
    if (name.len == 0 || name.len >= NAME_BYTES_MAX || memchr(name.ptr, 0, name.len))
        return err_set(err, E_USAGE, "%s: want a name of 1 to %d bytes", where, NAME_BYTES_MAX - 1);
    if (value.len >= VALUE_BYTES_MAX || (value.len && memchr(value.ptr, 0, value.len)))
        return err_set(err, E_USAGE, "%s: want a value under %d bytes, without NUL", where,
                       VALUE_BYTES_MAX);
    bool file = name.len > strlen(suffix) &&
                memcmp(name.ptr + name.len - strlen(suffix), suffix, strlen(suffix)) == 0;
    char named[NAME_BYTES_MAX];
    snprintf(named, sizeof named, "%.*s", (int)(name.len - (file ? strlen(suffix) : 0)), name.ptr);
    for (size_t i = 0; i < TR_COUNT(ours); i++)
        if (strcmp(named, ours[i]) == 0)
            return err_set(err, E_USAGE, "%s: %s is set by tranche itself", where, named);
    if (file && !from_file)
        return err_set(err, E_USAGE, "%s: %s.file: want a value, a file is not read here", where,
                       named);
    char *copy = mem_alloc(value.len + 1, 1);
    if (!copy)
        return err_set(err, E_FATAL, "%s: no memory", where);
    if (value.len)
        memcpy(copy, value.ptr, value.len);
    int rc = (file ? from_file : set)(ctx, named, copy, err);
    explicit_bzero(copy, value.len);
    mem_free(copy);
    return rc;
}

int kafka_config_parse(struct str text, const char *path, kafka_config_set *set,
                       kafka_config_set *from_file, void *ctx, struct err *err)
{
    int rc = E_OK;
    for (int number = 1; rc >= 0 && text.len; number++) {
        const char *end = memchr(text.ptr, '\n', text.len);
        struct str line = {text.ptr, end ? (size_t)(end - text.ptr) : text.len};
        text.ptr += line.len + (end != NULL);
        text.len -= line.len + (end != NULL);
        line = trim(line);
        char where[256];
        snprintf(where, sizeof where, "%.200s:%d", path, number);
        if (line.len && line.ptr[0] != '#')
            rc = take_line(line, where, set, from_file, ctx, err);
        if (rc == E_USAGE && !strstr(err->msg, where)) {
            char detail[sizeof err->msg];
            snprintf(detail, sizeof detail, "%s", err->msg);
            *err = (struct err){0};
            rc = err_set(err, E_USAGE, "%s: %.300s", where, detail);
        }
    }
    return rc;
}

/* The whole file, NUL behind it; the caller wipes and frees. */
static int slurp(const char *path, char **out, size_t *len, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, E_USAGE, "%s: cannot open", path);
    char *bytes = mem_alloc(FILE_BYTES_MAX + 1, 1);
    ssize_t n = 1;
    *len = 0;
    while (bytes && n > 0 && *len < FILE_BYTES_MAX) {
        n = read(fd, bytes + *len, FILE_BYTES_MAX - *len);
        *len += n > 0 ? (size_t)n : 0;
    }
    close(fd);
    *out = bytes;
    if (!bytes)
        return err_set(err, E_FATAL, "%s: no memory", path);
    if (n == 0 && *len < FILE_BYTES_MAX)
        return E_OK;
    explicit_bzero(bytes, *len);
    mem_free(bytes);
    return n < 0 ? err_errno(err, E_USAGE, "%s: cannot read", path)
                 : err_set(err, E_USAGE, "%s: want less than %d bytes", path, FILE_BYTES_MAX);
}

struct reading {
    kafka_config_set *set;
    void *ctx;
};

static int pass_on(void *ctx, const char *name, const char *value, struct err *err)
{
    struct reading *r = ctx;
    return r->set(r->ctx, name, value, err);
}

static int set_from_file(void *ctx, const char *name, const char *path, struct err *err)
{
    char *secret;
    size_t len;
    int rc = slurp(path, &secret, &len, err);
    if (rc < 0)
        return rc;
    if (len && secret[len - 1] == '\n')
        len--;
    secret[len] = '\0';
    if (memchr(secret, 0, len))
        rc = err_set(err, E_USAGE, "%s: want a value without NUL", path);
    else
        rc = pass_on(ctx, name, secret, err);
    explicit_bzero(secret, len);
    mem_free(secret);
    return rc;
}

int kafka_config_read(const char *path, kafka_config_set *set, void *ctx, struct err *err)
{
    struct reading r = {set, ctx};
    char *text;
    size_t len;
    int rc = slurp(path, &text, &len, err);
    if (rc < 0)
        return rc;
    rc = kafka_config_parse((struct str){text, len}, path, pass_on, set_from_file, &r, err);
    explicit_bzero(text, len);
    mem_free(text);
    return rc;
}

bool kafka_hosts_local(struct str hosts)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    while (hosts.len) {
        const char *comma = memchr(hosts.ptr, ',', hosts.len);
        struct str one = {hosts.ptr, comma ? (size_t)(comma - hosts.ptr) : hosts.len};
        hosts.ptr += one.len + (comma != NULL);
        hosts.len -= one.len + (comma != NULL);
        const char *scheme = one.len ? memmem(one.ptr, one.len, "://", 3) : NULL;
        if (scheme) {
            one.len -= (size_t)(scheme + 3 - one.ptr);
            one.ptr = scheme + 3;
        }
        bool found = false;
        for (size_t i = 0; i < TR_COUNT(names); i++) {
            size_t n = strlen(names[i]);
            found = found || (one.len >= n && memcmp(one.ptr, names[i], n) == 0 &&
                              (one.len == n || one.ptr[n] == ':'));
        }
        if (!found)
            return false;
    }
    return true;
}
