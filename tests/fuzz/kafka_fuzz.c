/* kafka_fuzz: what a Kafka broker and an operator can send us. The first byte chooses: a file of
 * the client's properties; a list of hosts; else a message, whose bytes are cut into key, headers
 * and value: a job with a key, and a `source` that is JSON. */
#include "engine/json.h"
#include "engine/unicode.h"
#include "worker/source/kafka_config.h"
#include "worker/source/source_kafka.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int take(void *ctx, const char *name, const char *value, struct err *err)
{
    (void)ctx;
    (void)err;
    CHECK(*name && strlen(name) < 64 && value);
    CHECK(strcmp(name, "enable.auto.commit") != 0 && strcmp(name, "group.id") != 0);
    return E_OK;
}

/* The next piece: a byte of length in front; 255: null. */
static struct str piece(struct str *rest)
{
    if (rest->len == 0)
        return (struct str){0};
    size_t n = (uint8_t)rest->ptr[0];
    bool null = n == 255;
    n = null ? 0 : TR_MIN(n, rest->len - 1);
    struct str out = {null ? NULL : rest->ptr + 1, n};
    rest->ptr += n + 1;
    rest->len -= n + 1;
    return out;
}

static void message(struct str rest)
{
    static const struct str named[] = {{"tranche-job-id", 14}, {"tranche-deadline", 16}};
    struct job_defaults defaults = {STR("main"), STR("b")};
    struct kafka_record r = {.partition = 1, .offset = (int64_t)rest.len};
    struct text scratch = {0}, whole = {0};
    json_t *doc = NULL;
    struct err err = {0};
    r.key = piece(&rest);
    size_t n = rest.len ? (uint8_t)rest.ptr[0] % (KAFKA_HEADERS_MAX + 1) : 0;
    for (; r.n_headers < n && rest.len; r.n_headers++) {
        struct str name = piece(&rest);
        r.headers[r.n_headers].name = name.len < TR_COUNT(named) ? named[name.len] : name;
        r.headers[r.n_headers].value = piece(&rest);
    }
    r.n_all = n;
    r.value = rest.len ? rest : (struct str){0};
    struct job *job = kafka_record_job("t", &r, clock_system());
    CHECK(job && job->position == r.offset + 1 && job->origin.len && job->queued_ns > 0);
    text_add(&whole, STR("{"));
    text_add(&whole, job->place);
    text_add(&whole, STR("}"));
    CHECK(json_parse(&doc, text_view(&whole), "source", &json_limits_job, &err) == E_OK);
    json_decref(doc);
    job_parse(job, &defaults, &scratch);
    CHECK(job->custom_id.len && job->custom_id.len <= JOB_ID_BYTES_MAX && job->request.ptr);
    CHECK(utf8_valid_prefix(job->custom_id, &(unsigned char){0}) == job->custom_id.len);
    CHECK(job->deadline_ns >= 0);
    job_close(job);
    text_close(&scratch);
    text_close(&whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    if (size == 0)
        return 0;
    struct str rest = {(const char *)data + 1, size - 1};
    if (data[0] == 'c') {
        int rc = kafka_config_parse(rest, "file", take, NULL, NULL, &err);
        CHECK(rc == E_OK || (rc == E_USAGE && err.msg[0]));
    } else if (data[0] == 'h') {
        (void)kafka_hosts_local(rest);
    } else {
        message(rest);
    }
    return 0;
}
