/* redis_producer: XADD in windows, each confirmed by the server's reply. See producer.h. A window
 * that was cut off or refused (no memory, a replica) is sent again as a whole, for two minutes:
 * what arrives twice is one row all the same. */
#include "worker/source/redis_producer.h"

#include <stdio.h>

#include "engine/log.h"
#include "worker/job/text.h"
#include "worker/source/source_redis.h"

enum { PIECES_MAX = 1 + 2 * PRODUCER_HEADERS_MAX, WINDOW = 256, WINDOW_BYTES = 4 << 20 };
static const int64_t LIMIT_NS = 120000000000, REPLY_NS = 10000000000, PAUSE_NS = 100000000;

struct redis_producer {
    struct producer producer;
    struct redis_stream stream;
    struct text bytes; /* the window's messages, one behind the other: value, name, value, .. */
    size_t end[WINDOW * PIECES_MAX];
    size_t first[WINDOW + 1]; /* piece of each message */
    size_t n, done;           /* in the window; of them confirmed */
    int64_t confirmed;
    char label[JOB_ORIGIN_MAX];
};

/* Sends what the window has unconfirmed and takes the replies. */
static int send_window(struct redis_producer *p, struct err *err)
{
    struct redis_connection *c = p->stream.connection;
    struct redis_args *a = &p->stream.group.args;
    int rc = redis_ready(c, err);
    for (size_t i = p->done; rc == E_OK && i < p->n; i++) {
        redis_args_start(a, "XADD");
        redis_args_add(a, p->stream.group.stream);
        redis_args_text(a, "NOMKSTREAM");
        redis_args_text(a, "*");
        redis_args_text(a, "job");
        for (size_t k = p->first[i]; k < p->first[i + 1]; k++) {
            size_t from = k ? p->end[k - 1] : 0;
            redis_args_add(a, (struct str){p->bytes.ptr + from, p->end[k] - from});
        }
        rc = redis_append(c, a, err);
    }
    while (rc == E_OK && p->done < p->n) {
        redisReply *reply;
        rc = redis_take(c, &reply, REPLY_NS, err);
        if (rc == E_OK && reply->type == REDIS_REPLY_NIL)
            rc = err_set(err, E_FATAL, "%s: the stream is gone", p->label);
        if (rc == E_OK)
            p->done++;
        if (reply)
            freeReplyObject(reply);
    }
    if (rc < 0)
        redis_disconnect(c); /* replies of this window may still be on their way */
    return rc;
}

static int redis_flush(struct producer *producer, struct err *err)
{
    struct redis_producer *p = (struct redis_producer *)producer;
    const struct clock *clock = clock_system();
    int64_t deadline = clock_mono_ns(clock) + LIMIT_NS;
    struct err last = {0};
    for (;;) {
        struct err why = {0};
        size_t before = p->done;
        int rc = send_window(p, &why);
        p->confirmed += (int64_t)(p->done - before);
        if (rc == E_OK)
            break;
        if (strcmp(why.type, "redis_away") != 0)
            last = why;
        if (rc == E_USAGE || rc == E_FATAL || clock_mono_ns(clock) >= deadline)
            return err_typed(err, rc == E_RETRY ? E_RETRY : E_FATAL, last.type, "%s", last.msg);
        clock_sleep_ns(clock, PAUSE_NS);
    }
    p->n = p->done = 0;
    text_reset(&p->bytes);
    return E_OK;
}

static void add_piece(struct redis_producer *p, size_t *piece, struct str bytes)
{
    text_add(&p->bytes, bytes);
    p->end[(*piece)++] = p->bytes.len;
}

static int redis_put(struct producer *producer, const struct producer_message *m, struct err *err)
{
    struct redis_producer *p = (struct redis_producer *)producer;
    size_t piece = p->first[p->n];
    CHECK(m->n_headers <= PRODUCER_HEADERS_MAX);
    add_piece(p, &piece, m->value); /* a stream has no partitions, so the key plays no part */
    for (size_t i = 0; i < m->n_headers; i++) {
        add_piece(p, &piece, m->headers[i].name);
        add_piece(p, &piece, m->headers[i].value);
    }
    if (p->bytes.failed)
        return err_set(err, E_FATAL, "%s: no memory for a message", p->label);
    p->first[++p->n] = piece;
    return p->n == WINDOW || p->bytes.len >= WINDOW_BYTES ? redis_flush(producer, err) : E_OK;
}

static int redis_send(struct producer *producer, struct str key, struct str value, struct err *err)
{
    struct producer_message m = {.key = key, .value = value};
    return redis_put(producer, &m, err);
}

static int64_t redis_confirmed(struct producer *producer)
{
    return ((struct redis_producer *)producer)->confirmed;
}

static void redis_close(struct producer *producer)
{
    struct redis_producer *p = (struct redis_producer *)producer;
    redis_stream_close(&p->stream);
    text_close(&p->bytes);
    mem_free(p);
}

static int open_stream(struct redis_stream *s, const struct source_url *url,
                       const struct source_opts *opts, struct err *err)
{
    struct source_opts plain = *opts;
    plain.group = opts->group && *opts->group ? opts->group : "tranche";
    plain.partition = -1;
    return redis_stream_open(s, url, &plain, clock_system(), err);
}

/* A slip of the pen must not start a new queue. */
static int find_stream(struct redis_producer *p, struct err *err)
{
    struct redis_args *a = &p->stream.group.args;
    redisReply *reply;
    redis_args_start(a, "XLEN");
    redis_args_add(a, p->stream.group.stream);
    int rc = redis_command(p->stream.connection, &reply, a, REPLY_NS, err);
    if (rc < 0)
        return rc;
    bool empty = reply->type == REDIS_REPLY_INTEGER && reply->integer == 0;
    freeReplyObject(reply);
    if (!empty)
        return E_OK;
    redis_args_start(a, "EXISTS");
    redis_args_add(a, p->stream.group.stream);
    rc = redis_command(p->stream.connection, &reply, a, REPLY_NS, err);
    if (rc < 0)
        return rc;
    if (reply->type == REDIS_REPLY_INTEGER && reply->integer == 0)
        rc =
            err_set(err, E_FATAL, "%s: there is no such stream; `tranche init` makes it", p->label);
    freeReplyObject(reply);
    return rc;
}

int redis_producer_open(struct producer **out, const struct source_url *url,
                        const struct source_opts *opts, struct err *err)
{
    static const struct producer_ops ops = {"redis",     redis_send,  redis_put, redis_confirmed,
                                            redis_flush, redis_close, false};
    struct redis_producer *p = mem_alloc(1, sizeof *p);
    if (!p)
        return err_set(err, E_FATAL, "redis: no memory");
    p->producer.ops = &ops;
    snprintf(p->label, sizeof p->label, "redis:" STR_FMT, (int)TR_MIN(url->name.len, (size_t)200),
             url->name.ptr);
    int rc = open_stream(&p->stream, url, opts, err);
    if (rc == E_OK)
        rc = find_stream(p, err);
    if (rc < 0)
        redis_close(&p->producer);
    else
        *out = &p->producer;
    return rc;
}

int redis_queue_init(const struct source_url *url, const struct source_opts *opts,
                     const struct queue_shape *shape, bool *made, struct err *err)
{
    struct redis_stream *s = mem_alloc(1, sizeof *s); /* too large for a stack */
    *made = false;
    if (!s)
        return err_set(err, E_FATAL, "redis: no memory");
    int rc = open_stream(s, url, opts, err);
    if (rc == E_OK)
        rc = redis_group_create(&s->group, shape->from_end, made, err);
    redis_stream_close(s);
    mem_free(s);
    return rc;
}
