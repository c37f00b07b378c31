/* kafka_message: a job from a message: its bytes as they are, its coordinates, key and headers as
 * the row's `source` will show them. See source_kafka.h. */
#include "worker/job/text.h"
#include "worker/source/source_kafka.h"

enum { HEADER_BYTES_MAX = 8192, KEY_BYTES_MAX = 1024, LONG_KEPT = 4096 };

/* A JSON string of any bytes: what is no UTF-8, and NUL, becomes U+FFFD. */
static void add_bytes(struct text *t, const void *bytes, size_t len)
{
    bool changed;
    char *clean = mem_alloc(len * 3 + 1, 1);
    if (!clean) {
        t->failed = true;
        return;
    }
    size_t n = utf8_repair((struct str){bytes, len}, clean, len * 3 + 1, &changed);
    for (size_t i = 0; i < n; i++)
        if (clean[i] == '\0')
            clean[i] = '?';
    text_json_str(t, (struct str){clean, n});
    mem_free(clean);
}

/* ,"headers":[["name","value"],...]: pairs, because Kafka lets a name come twice. */
static void add_headers(struct text *t, const struct kafka_record *r)
{
    if (r->n_all == 0)
        return;
    text_add(t, STR(",\"headers\":["));
    for (size_t i = 0; i < r->n_headers; i++) {
        text_add(t, i ? STR(",[") : STR("["));
        add_bytes(t, r->headers[i].name.ptr, r->headers[i].name.len);
        text_char(t, ',');
        if (r->headers[i].value.ptr)
            add_bytes(t, r->headers[i].value.ptr, r->headers[i].value.len);
        else
            text_add(t, STR("null"));
        text_char(t, ']');
    }
    text_char(t, ']');
    if (r->n_headers < r->n_all)
        text_f(t, ",\"headers_left_out\":%zu", r->n_all - r->n_headers);
}

static void add_place(struct text *t, const struct kafka_record *r)
{
    text_f(t, "\"partition\":%d,\"offset\":%lld", r->partition, (long long)r->offset);
    if (r->key.ptr) {
        text_add(t, STR(",\"key\":"));
        add_bytes(t, r->key.ptr, TR_MIN(r->key.len, (size_t)KEY_BYTES_MAX));
    }
    add_headers(t, r);
}

/* What a header says about the job; the last of a name counts. False: no memory. */
static bool take_headers(struct job *job, const struct kafka_record *r)
{
    for (size_t i = 0; i < r->n_headers; i++) {
        const struct kafka_header *h = &r->headers[i];
        struct str *out = str_eq(h->name, STR("tranche-job-id"))     ? &job->header_id
                          : str_eq(h->name, STR("tranche-deadline")) ? &job->header_deadline
                                                                     : NULL;
        if (out && h->value.ptr)
            *out = job_str(job, h->value);
        if (out && h->value.ptr && !out->ptr)
            return false;
    }
    return true;
}

struct job *kafka_record_job(const char *topic, const struct kafka_record *r,
                             const struct clock *clock)
{
    size_t len = r->value.ptr ? r->value.len : 0;
    struct job *job = job_open(len > JOB_BYTES_MAX ? LONG_KEPT : len);
    if (!job)
        return NULL;
    if (job->message.len)
        memcpy((char *)(uintptr_t)job->message.ptr, r->value.ptr, job->message.len);
    job->message_full = len;
    job->partition = r->partition;
    job->position = r->offset + 1;
    job->queued_ns =
        r->ms > 0 && r->ms < INT64_MAX / 1000000 ? r->ms * 1000000 : clock_wall_ns(clock);
    struct text place = {0};
    add_place(&place, r);
    if (!place.failed)
        job->place = job_str(job, text_view(&place));
    text_close(&place);
    if (r->key.ptr)
        job->message_key = job_str(job, r->key);
    if (!job->place.ptr || (r->key.ptr && !job->message_key.ptr) || !take_headers(job, r) ||
        job_printf(job, &job->origin, "%s/%d/%lld", topic, r->partition, (long long)r->offset) <
            0) {
        job_close(job);
        return NULL;
    }
    return job;
}

/* The first headers, as many as the caps let through. */
static void read_headers(struct kafka_record *r, const rd_kafka_message_t *message)
{
    rd_kafka_headers_t *headers;
    const char *name;
    const void *value;
    size_t size, bytes = 0;
    if (rd_kafka_message_headers(message, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return;
    r->n_all = rd_kafka_header_cnt(headers);
    while (r->n_headers < TR_MIN(r->n_all, (size_t)KAFKA_HEADERS_MAX) &&
           rd_kafka_header_get_all(headers, r->n_headers, &name, &value, &size) ==
               RD_KAFKA_RESP_ERR_NO_ERROR) {
        bytes += strlen(name) + size;
        if (bytes > HEADER_BYTES_MAX)
            break;
        r->headers[r->n_headers++] = (struct kafka_header){str_of(name), {value, size}};
    }
}

struct job *kafka_job(const char *topic, const rd_kafka_message_t *message,
                      const struct clock *clock)
{
    rd_kafka_timestamp_type_t type;
    struct kafka_record r = {.partition = message->partition,
                             .offset = message->offset,
                             .ms = rd_kafka_message_timestamp(message, &type),
                             .key = {message->key, message->key ? message->key_len : 0},
                             .value = {message->payload, message->payload ? message->len : 0}};
    if (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE)
        r.ms = 0;
    read_headers(&r, message);
    return kafka_record_job(topic, &r, clock);
}
