/* kafka_message: a job from a message: its bytes as they are, its coordinates, key and headers as
 * the row's `source` will show them. See source_kafka.h. */
#include "worker/source_kafka.h"
#include "worker/text.h"

enum { HEADERS_MAX = 64, HEADER_BYTES_MAX = 8192, KEY_BYTES_MAX = 1024, LONG_KEPT = 4096 };

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
static void add_headers(struct text *t, const rd_kafka_message_t *message)
{
    rd_kafka_headers_t *headers;
    const char *name;
    const void *value;
    size_t size, bytes = 0, n = 0;
    if (rd_kafka_message_headers(message, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return;
    size_t all = rd_kafka_header_cnt(headers);
    text_add(t, STR(",\"headers\":["));
    for (; n < TR_MIN(all, (size_t)HEADERS_MAX) &&
           rd_kafka_header_get_all(headers, n, &name, &value, &size) == RD_KAFKA_RESP_ERR_NO_ERROR;
         n++) {
        bytes += strlen(name) + size;
        if (bytes > HEADER_BYTES_MAX)
            break;
        text_add(t, n ? STR(",[") : STR("["));
        add_bytes(t, name, strlen(name));
        text_char(t, ',');
        if (value)
            add_bytes(t, value, size);
        else
            text_add(t, STR("null"));
        text_char(t, ']');
    }
    text_char(t, ']');
    if (n < all)
        text_f(t, ",\"headers_left_out\":%zu", all - n);
}

static void add_place(struct text *t, const rd_kafka_message_t *message)
{
    text_f(t, "\"partition\":%d,\"offset\":%lld", message->partition, (long long)message->offset);
    if (message->key) {
        text_add(t, STR(",\"key\":"));
        add_bytes(t, message->key, TR_MIN(message->key_len, (size_t)KEY_BYTES_MAX));
    }
    add_headers(t, message);
}

struct job *kafka_job(const char *topic, const rd_kafka_message_t *message,
                      const struct clock *clock)
{
    size_t len = message->payload ? message->len : 0;
    rd_kafka_timestamp_type_t type;
    int64_t ms = rd_kafka_message_timestamp(message, &type);
    struct job *job = job_open(len > JOB_BYTES_MAX ? LONG_KEPT : len);
    if (!job)
        return NULL;
    if (job->message.len)
        memcpy((char *)(uintptr_t)job->message.ptr, message->payload, job->message.len);
    job->message_full = len;
    job->partition = message->partition;
    job->position = message->offset + 1;
    job->queued_ns =
        ms > 0 && type != RD_KAFKA_TIMESTAMP_NOT_AVAILABLE ? ms * 1000000 : clock_wall_ns(clock);
    struct text place = {0};
    add_place(&place, message);
    if (!place.failed)
        job->place = job_str(job, text_view(&place));
    text_close(&place);
    if (message->key)
        job->message_key = job_str(job, (struct str){message->key, message->key_len});
    if (!job->place.ptr || (message->key && !job->message_key.ptr) ||
        job_printf(job, &job->origin, "%s/%d/%lld", topic, message->partition,
                   (long long)message->offset) < 0) {
        job_close(job);
        return NULL;
    }
    return job;
}
