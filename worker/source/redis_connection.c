/* redis_connection: see redis_connection.h. */
#include "worker/source/redis_connection.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/source/redis_link.h"

enum { READ_BYTES = 64 << 10, OUT_BYTES = 64 << 10, SECRET_MAX = 4096 };
static const int64_t CONNECT_NS = 5000000000, COMMAND_NS = 5000000000;
static const int64_t PAUSE_MIN_NS = 100000000, PAUSE_MAX_NS = 10000000000;

struct redis_connection {
    const struct redis_settings *settings;
    const struct clock *clock;
    char client[REDIS_NAME_MAX];
    struct redis_link link;
    redisReader *reader;
    char *in, *out; /* [READ_BYTES], [out_cap] */
    size_t out_len, out_cap, reply_bytes, reply_max;
    int64_t epoch, next_try_ns, pause_ns;
    struct redis_host moved; /* where MOVED sent us; name "": nowhere */
    enum redis_fault fault;
    bool ready;
};

/* ---- arguments ---- */

void redis_args_start(struct redis_args *a, const char *command)
{
    a->n = 0;
    a->used = 0;
    redis_args_text(a, command);
}

void redis_args_add(struct redis_args *a, struct str s)
{
    CHECK(a->n < REDIS_ARGS_MAX);
    a->ptr[a->n] = s.len ? s.ptr : "";
    a->len[a->n++] = s.len;
}

void redis_args_text(struct redis_args *a, const char *nul_terminated)
{
    redis_args_add(a, str_of(nul_terminated));
}

static void args_keep(struct redis_args *a, const char *text)
{
    size_t n = strlen(text);
    CHECK(a->used + n <= sizeof a->bytes);
    memcpy(a->bytes + a->used, text, n);
    redis_args_add(a, (struct str){a->bytes + a->used, n});
    a->used += n;
}

void redis_args_int(struct redis_args *a, int64_t n)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)n);
    args_keep(a, text);
}

void redis_args_id(struct redis_args *a, struct redis_id id)
{
    char text[REDIS_ID_TEXT];
    redis_id_text(id, text);
    args_keep(a, text);
}

/* ---- commands ---- */

int redis_append(struct redis_connection *c, const struct redis_args *a, struct err *err)
{
    char *bytes = NULL;
    long long n = redisFormatCommandArgv(&bytes, a->n, (const char **)(uintptr_t)a->ptr, a->len);
    if (n < 0)
        return err_set(err, E_RETRY, "redis: no memory for a command");
    size_t want = c->out_len + (size_t)n;
    if (want > c->out_cap) {
        char *more = mem_alloc(want * 2, 1);
        if (!more) {
            redisFreeCommand(bytes);
            return err_set(err, E_RETRY, "redis: no memory for %zu bytes of commands", want);
        }
        memcpy(more, c->out, c->out_len);
        mem_free(c->out);
        c->out = more;
        c->out_cap = want * 2;
    }
    memcpy(c->out + c->out_len, bytes, (size_t)n);
    c->out_len = want;
    redisFreeCommand(bytes);
    return E_OK;
}

/* An error reply: its class, and whether this connection is still of use. */
static int refused(struct redis_connection *c, const redisReply *reply, struct err *err)
{
    struct str text = redis_text(reply);
    c->fault = redis_fault_of(text);
    bool fatal = c->fault == REDIS_FAULT_WRONGTYPE || c->fault == REDIS_FAULT_OTHER;
    err_typed(err, fatal ? E_FATAL : E_RETRY, redis_fault_name(c->fault), "redis: " STR_FMT,
              (int)TR_MIN(text.len, (size_t)200), text.ptr);
    if (c->fault == REDIS_FAULT_MOVED && redis_moved_parse(text, &c->moved))
        redis_disconnect(c);
    if (c->fault == REDIS_FAULT_READONLY || c->fault == REDIS_FAULT_LOADING ||
        c->fault == REDIS_FAULT_AUTH)
        redis_disconnect(c);
    return err->code;
}

static int receive(struct redis_connection *c, redisReply **out, int64_t deadline, struct err *err)
{
    void *reply = NULL;
    c->reply_bytes = 0;
    for (;;) {
        if (redisReaderGetReply(c->reader, &reply) != REDIS_OK)
            return err_typed(err, E_RETRY, "redis_protocol", "redis: %s", c->reader->errstr);
        if (reply)
            break;
        int n = redis_link_read(&c->link, c->in, READ_BYTES, deadline, err);
        if (n < 0)
            return n;
        c->reply_bytes += (size_t)n;
        if (c->reply_bytes > c->reply_max)
            return err_typed(err, E_RETRY, "redis_too_large",
                             "redis: want a reply of at most %zu bytes, got more", c->reply_max);
        if (redisReaderFeed(c->reader, c->in, (size_t)n) != REDIS_OK)
            return err_set(err, E_RETRY, "redis: no memory for a reply");
    }
    *out = reply;
    return E_OK;
}

int redis_take(struct redis_connection *c, redisReply **out, int64_t wait_ns, struct err *err)
{
    *out = NULL;
    c->fault = REDIS_FAULT_NONE;
    if (c->link.fd < 0)
        return err_set(err, E_RETRY, "redis: not connected");
    int64_t deadline = clock_mono_ns(c->clock) + wait_ns;
    int rc = E_OK;
    if (c->out_len)
        rc = redis_link_write(&c->link, c->out, c->out_len, deadline, err);
    c->out_len = 0;
    if (rc == E_OK)
        rc = receive(c, out, deadline, err);
    if (rc < 0) {
        redis_disconnect(c);
        return rc;
    }
    if ((*out)->type != REDIS_REPLY_ERROR)
        return E_OK;
    rc = refused(c, *out, err);
    freeReplyObject(*out);
    *out = NULL;
    return rc;
}

int redis_command(struct redis_connection *c, redisReply **out, const struct redis_args *a,
                  int64_t wait_ns, struct err *err)
{
    *out = NULL;
    int rc = redis_append(c, a, err);
    return rc < 0 ? rc : redis_take(c, out, wait_ns, err);
}

/* One whose answer is only good or bad. */
static int plain_command(struct redis_connection *c, const struct redis_args *a, struct err *err)
{
    redisReply *reply;
    int rc = redis_command(c, &reply, a, COMMAND_NS, err);
    if (reply)
        freeReplyObject(reply);
    return rc;
}

/* ---- connecting ---- */

/* Reads a secret file into `to`; trailing line ends are no part of it. */
static int read_secret(char to[SECRET_MAX], const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, to, SECRET_MAX - 1);
    if (n < 0)
        err_errno(err, E_RETRY, "%s: cannot read the secret", path);
    if (fd >= 0)
        close(fd);
    if (n < 0)
        return E_RETRY;
    while (n > 0 && (to[n - 1] == '\n' || to[n - 1] == '\r'))
        n--;
    to[n] = '\0';
    return n > 0 ? E_OK : err_set(err, E_RETRY, "%s: want a secret, the file is empty", path);
}

static int authenticate(struct redis_connection *c, const char *user, const char *file,
                        struct err *err)
{
    char secret[SECRET_MAX];
    struct redis_args a;
    if (!file[0])
        return E_OK;
    int rc = read_secret(secret, file, err);
    if (rc == E_OK) {
        redis_args_start(&a, "AUTH");
        if (user[0])
            redis_args_text(&a, user);
        redis_args_text(&a, secret);
        rc = plain_command(c, &a, err);
    }
    explicit_bzero(secret, sizeof secret);
    explicit_bzero(c->out, c->out_cap);
    return rc;
}

static int link_to(struct redis_connection *c, const struct redis_host *host, struct err *err)
{
    redis_disconnect(c);
    int64_t deadline = clock_mono_ns(c->clock) + CONNECT_NS;
    int rc = redis_link_open(&c->link, c->settings, host, deadline, c->clock, err);
    if (rc < 0)
        return rc;
    c->reader = redis_reader_open();
    if (!c->reader) {
        redis_disconnect(c);
        return err_set(err, E_RETRY, "redis: no memory for the reader");
    }
    return E_OK;
}

/* Where the sentinels say that the master is; the first that answers is believed, and ROLE checks
 * it. */
static int ask_sentinels(struct redis_connection *c, struct redis_host *master, struct err *err)
{
    int rc = E_RETRY;
    for (int i = 0; i < c->settings->n_hosts; i++) {
        struct err each = {0};
        struct redis_args a;
        redisReply *reply = NULL;
        const struct redis_host *host = &c->settings->hosts[i];
        rc = link_to(c, host, &each);
        if (rc == E_OK)
            rc = authenticate(c, "", c->settings->sentinel_password_file, &each);
        redis_args_start(&a, "SENTINEL");
        redis_args_text(&a, "GET-MASTER-ADDR-BY-NAME");
        redis_args_text(&a, c->settings->master);
        if (rc == E_OK)
            rc = redis_command(c, &reply, &a, COMMAND_NS, &each);
        bool known = rc == E_OK && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2;
        if (known) {
            char text[REDIS_NAME_MAX + 8];
            struct str name = redis_text(reply->element[0]), port = redis_text(reply->element[1]);
            bool six = name.len && memchr(name.ptr, ':', name.len);
            int n = snprintf(text, sizeof text, six ? "[%.*s]:%.*s" : "%.*s:%.*s",
                             (int)TR_MIN(name.len, (size_t)200), name.ptr,
                             (int)TR_MIN(port.len, (size_t)6), port.ptr);
            rc = redis_host_parse(master, (struct str){text, (size_t)n}, 6379, &each);
        } else if (rc == E_OK) {
            rc = err_set(&each, E_RETRY, "redis: sentinel %s knows no master named \"%s\"",
                         host->name, c->settings->master);
        }
        if (reply)
            freeReplyObject(reply);
        if (rc == E_OK)
            return E_OK;
        if (i + 1 == c->settings->n_hosts)
            err_set(err, each.code, "%s", each.msg);
    }
    return rc;
}

/* A replica takes no XREADGROUP; better to hear it here than at the first command. */
static int check_role(struct redis_connection *c, struct err *err)
{
    struct redis_args a;
    redisReply *reply;
    redis_args_start(&a, "ROLE");
    int rc = redis_command(c, &reply, &a, COMMAND_NS, err);
    if (rc < 0 && c->fault == REDIS_FAULT_NOPERM) {
        /* The ACL user may not ask: READONLY will tell. */
        *err = (struct err){0};
        return E_OK;
    }
    if (rc < 0)
        return rc;
    struct str role = reply->type == REDIS_REPLY_ARRAY && reply->elements > 0
                          ? redis_text(reply->element[0])
                          : (struct str){NULL, 0};
    if (!str_eq(role, STR("master")))
        rc = err_typed(err, E_RETRY, "readonly", "redis: want a master, this is a " STR_FMT,
                       (int)TR_MIN(role.len, (size_t)20), role.ptr);
    freeReplyObject(reply);
    return rc;
}

static int connect_now(struct redis_connection *c, struct err *err)
{
    struct redis_host host = c->settings->hosts[0];
    int rc = E_OK;
    if (c->moved.name[0])
        host = c->moved;
    else if (c->settings->sentinel)
        rc = ask_sentinels(c, &host, err);
    c->moved.name[0] = '\0'; /* one attempt: the node may be gone as well */
    if (rc == E_OK)
        rc = link_to(c, &host, err);
    if (rc == E_OK)
        rc = authenticate(c, c->settings->user, c->settings->password_file, err);
    if (rc == E_OK)
        rc = check_role(c, err);
    if (rc == E_OK && c->client[0]) {
        struct redis_args a;
        struct err ignored = {0};
        redis_args_start(&a, "CLIENT");
        redis_args_text(&a, "SETNAME");
        redis_args_text(&a, c->client);
        (void)plain_command(c, &a, &ignored); /* an ACL user may do without */
        if (c->link.fd < 0)
            rc = err_set(err, E_RETRY, "%s", ignored.msg);
    }
    if (rc < 0)
        return rc;
    LOG(LOG_INFO, "redis_connected", LOG_S("host", host.name), LOG_I("port", host.port),
        LOG_I("tls", c->settings->tls), LOG_I("connects", c->epoch + 1));
    return E_OK;
}

static int64_t jitter(int64_t below)
{
    uint64_t draw = 0;
    if (getrandom(&draw, sizeof draw, 0) != sizeof draw)
        return below;
    return (int64_t)(draw % (uint64_t)below);
}

int redis_ready(struct redis_connection *c, struct err *err)
{
    if (c->ready)
        return E_OK;
    if (clock_mono_ns(c->clock) < c->next_try_ns)
        return err_typed(err, E_RETRY, "redis_away", "redis: waiting to connect again");
    struct err why = {0};
    int rc = connect_now(c, &why);
    if (rc == E_OK) {
        c->ready = true;
        c->epoch++;
        c->pause_ns = 0;
        return E_OK;
    }
    redis_disconnect(c);
    c->pause_ns = TR_MIN(TR_MAX(c->pause_ns * 2, PAUSE_MIN_NS), PAUSE_MAX_NS);
    c->next_try_ns = clock_mono_ns(c->clock) + TR_MAX(jitter(c->pause_ns), PAUSE_MIN_NS / 2);
    LOG(LOG_WARN, "redis_away", LOG_S("error", why.msg));
    /* A command that is unknown here (no Redis at all) may be another server tomorrow. */
    return err_typed(err, rc == E_USAGE ? E_USAGE : E_RETRY, why.type, "%s", why.msg);
}

/* ---- open and close ---- */

int redis_connection_open(struct redis_connection **out, const struct redis_settings *settings,
                          const char *client, const struct clock *clock, struct err *err)
{
    struct redis_connection *c = mem_alloc(1, sizeof *c);
    if (!c)
        return err_set(err, E_FATAL, "redis: no memory");
    c->settings = settings;
    c->clock = clock;
    c->link.fd = -1;
    c->reply_max = (size_t)64 << 20;
    c->out_cap = OUT_BYTES;
    c->in = mem_alloc(READ_BYTES, 1);
    c->out = mem_alloc(c->out_cap, 1);
    /* CLIENT SETNAME takes printable characters without spaces. */
    for (size_t i = 0; client && client[i] && i + 1 < sizeof c->client; i++)
        c->client[i] = client[i] > ' ' && client[i] < 127 ? client[i] : '_';
    if (!c->in || !c->out) {
        redis_connection_close(c);
        return err_set(err, E_FATAL, "redis: no memory for the buffers");
    }
    *out = c;
    return E_OK;
}

void redis_disconnect(struct redis_connection *c)
{
    redis_link_close(&c->link);
    if (c->reader)
        redisReaderFree(c->reader);
    c->reader = NULL;
    c->out_len = 0;
    c->ready = false;
}

void redis_connection_close(struct redis_connection *c)
{
    if (!c)
        return;
    redis_disconnect(c);
    mem_free(c->in);
    mem_free(c->out);
    mem_free(c);
}

bool redis_connected(const struct redis_connection *c)
{
    return c->ready;
}

int64_t redis_epoch(const struct redis_connection *c)
{
    return c->epoch;
}

enum redis_fault redis_last_fault(const struct redis_connection *c)
{
    return c->fault;
}

size_t redis_reply_bytes(const struct redis_connection *c)
{
    return c->reply_bytes;
}

void redis_limit_reply(struct redis_connection *c, size_t bytes)
{
    c->reply_max = bytes;
}
