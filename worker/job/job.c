/* job: see job.h. Parameters are read in params.c. */
#include "worker/job/job_config.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

enum { CHUNK_BYTES = 2048 };

struct job_chunk {
    struct job_chunk *next;
    size_t used, cap;
    _Alignas(16) char data[];
};

struct job *job_open(size_t len)
{
    if (len > (size_t)JOB_BYTES_MAX * 4)
        return NULL;
    size_t bytes = sizeof(struct job) + len + 1;
    struct job *job = mem_alloc(1, bytes);
    if (!job)
        return NULL;
    job->message = (struct str){(char *)(job + 1), len};
    job->message_full = len;
    job->bytes = bytes;
    return job;
}

void job_close(struct job *job)
{
    if (!job)
        return;
    json_decref(job->doc);
    job_config_release(job->config);
    mem_free(job->output);
    for (struct job_chunk *c = job->chunks, *next; c; c = next) {
        next = c->next;
        mem_free(c);
    }
    mem_free(job);
}

void *job_alloc(struct job *job, size_t size)
{
    struct job_chunk *c = job->chunks;
    size_t start = c ? (c->used + 15) & ~(size_t)15 : 0;
    if (!c || start > c->cap || size > c->cap - start) {
        size_t cap = TR_MAX(size, (size_t)CHUNK_BYTES - sizeof *c);
        c = size < SIZE_MAX / 4 ? mem_alloc(1, sizeof *c + cap) : NULL;
        if (!c)
            return NULL;
        c->cap = cap;
        job->bytes += sizeof *c + cap;
        c->next = job->chunks;
        job->chunks = c;
        start = 0;
    }
    c->used = start + size;
    return c->data + start; /* mem_alloc zeroed it, and nothing is handed out twice */
}

struct str job_str(struct job *job, struct str s)
{
    char *copy = job_alloc(job, s.len + 1);
    if (!copy)
        return (struct str){NULL, 0};
    if (s.len)
        memcpy(copy, s.ptr, s.len);
    return (struct str){copy, s.len};
}

void job_mark_result(struct job *job)
{
    job->before_result = job->chunks;
}

void job_drop_chunks(struct job *job, const struct job_chunk *mark)
{
    while (job->chunks != mark) {
        struct job_chunk *newest = job->chunks;
        job->chunks = newest->next;
        job->bytes -= sizeof *newest + newest->cap;
        mem_free(newest);
    }
}

void job_drop_result(struct job *job)
{
    if (job->result)
        job_drop_chunks(job, job->before_result);
    job->result = NULL;
}

int job_printf(struct job *job, struct str *out, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *text = n < 0 ? NULL : job_alloc(job, (size_t)n + 1);
    *out = (struct str){text, text ? (size_t)n : 0};
    if (!text)
        return E_RETRY;
    va_start(ap, fmt);
    vsnprintf(text, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return E_OK;
}

int job_fail(struct job *job, const char *type, const char *fmt, ...)
{
    char text[sizeof job->err.msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_typed(&job->err, E_JOB, type, "%s", text);
}

/* A key part from the message. False (and job->err) when it is there but unusable. */
static bool take_id(struct job *job, const char *field, const json_t *value, struct str *out)
{
    if (!value || json_is_null(value))
        return false;
    struct str s = json_str(value);
    if (!json_is_string(value))
        job_fail(job, "bad_field", "%s: want a string, got %s", field, json_type_name(value));
    else if (s.len == 0 || s.len > JOB_ID_BYTES_MAX)
        job_fail(job, "bad_value", "%s: want 1 to %d bytes, got %zu", field, JOB_ID_BYTES_MAX,
                 s.len);
    else if (memchr(s.ptr, 0, s.len))
        job_fail(job, "bad_value", "%s: holds a NUL character", field);
    else
        *out = job_str(job, s);
    return out->ptr != NULL;
}

/* "2026-01-31T12:00:00Z" or with an offset "+02:00"; fractions are dropped. */
static bool parse_time(struct str s, int64_t *out_ns)
{
    char text[40];
    struct tm tm = {0};
    if (s.len >= sizeof text || memchr(s.ptr, 0, s.len))
        return false;
    memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    int used = 0, hours = 0, minutes = 0;
    if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
               &tm.tm_min, &tm.tm_sec, &used) != 6)
        return false;
    const char *rest = text + used;
    if (*rest == '.')
        rest += 1 + strspn(rest + 1, "0123456789");
    if (strcmp(rest, "Z") != 0) {
        char sign = *rest;
        if ((sign != '+' && sign != '-') || strlen(rest) != 6 ||
            sscanf(rest + 1, "%2d:%2d", &hours, &minutes) != 2)
            return false;
        minutes = (hours * 60 + minutes) * (sign == '-' ? -1 : 1);
    }
    if (tm.tm_year < 1970 || tm.tm_year > 2199 || tm.tm_mon < 1 || tm.tm_mon > 12 ||
        tm.tm_mday < 1 || tm.tm_mday > 31 || tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60)
        return false;
    tm.tm_year -= 1900;
    tm.tm_mon--;
    *out_ns = ((int64_t)timegm(&tm) - minutes * 60) * 1000000000;
    return true;
}

static void take_deadline(struct job *job, const json_t *value)
{
    const double latest = 9.2e9; /* seconds that still fit 64 bits of nanoseconds */
    if (!value || json_is_null(value))
        return;
    double seconds = json_is_number(value) ? json_number_value(value) : -1;
    if (json_is_number(value) && seconds > 0 && seconds < latest)
        job->deadline_ns = (int64_t)(seconds * 1e9);
    else if (!json_is_string(value) || !parse_time(json_str(value), &job->deadline_ns))
        job_fail(job, "bad_value",
                 "deadline: want seconds since 1970 or a time like 2026-01-31T12:00:00Z");
}

json_t *job_header_deadline(struct str given)
{
    char *end = NULL, text[40] = "";
    if (given.len < sizeof text)
        memcpy(text, given.ptr, given.len);
    double seconds = strtod(text, &end);
    bool number = *text && *end == '\0' && seconds > 0 && seconds < 1e18;
    return number ? json_real(seconds) : json_stringn(text, strlen(text));
}

/* What stands beside the message counts where the message itself names none. */
static void take_headers(struct job *job)
{
    json_t *value = NULL;
    if (!job->custom_id.ptr && job->header_id.ptr) {
        value = json_stringn(job->header_id.ptr, job->header_id.len);
        if (!value)
            job_fail(job, "bad_value", "tranche-job-id: want UTF-8");
        take_id(job, "tranche-job-id", value, &job->custom_id);
        json_decref(value);
    }
    if (!job->deadline_ns && job->header_deadline.ptr) {
        value = job_header_deadline(job->header_deadline);
        if (!value)
            job_fail(job, "bad_value", "tranche-deadline: want UTF-8");
        take_deadline(job, value);
        json_decref(value);
    }
}

static void take_priority(struct job *job, const json_t *value)
{
    if (!value || json_is_null(value))
        return;
    if (!json_is_integer(value))
        job_fail(job, "bad_field", "priority: want an integer, got %s", json_type_name(value));
    else if (json_integer_value(value) < -1000 || json_integer_value(value) > 1000)
        job_fail(job, "bad_value", "priority: want -1000 to 1000, got %lld",
                 (long long)json_integer_value(value));
    else
        job->priority = (int32_t)json_integer_value(value);
}

static void take_expected(struct job *job, const json_t *value, struct text *scratch)
{
    if (!value || json_is_null(value))
        return;
    if (json_is_string(value)) {
        job->expected = job_str(job, json_str(value));
    } else if (json_is_number(value)) {
        text_reset(scratch);
        text_json_canonical(scratch, value);
        job->expected = job_str(job, text_view(scratch));
    } else {
        job_fail(job, "bad_field", "expected: want a string or a number, got %s",
                 json_type_name(value));
    }
}

static void take_metadata(struct job *job, const json_t *value, struct text *scratch)
{
    if (!value || json_is_null(value))
        return;
    if (!json_is_object(value)) {
        job_fail(job, "bad_field", "metadata: want an object, got %s", json_type_name(value));
        return;
    }
    text_reset(scratch);
    text_json_canonical(scratch, value);
    job->metadata = job_str(job, text_view(scratch));
}

static const char *const envelope[] = {"custom_id", "method",   "url",      "body",     "batch_id",
                                       "run",       "deadline", "priority", "metadata", "expected"};
static const char *const short_envelope[] = {"id",       "batch_id", "run",     "deadline",
                                             "priority", "metadata", "expected"};

static void take_body_of_line(struct job *job)
{
    const char *key;
    json_t *value;
    json_object_foreach(job->doc, key, value)
    {
        size_t i = 0;
        while (i < TR_COUNT(envelope) && strcmp(key, envelope[i]) != 0)
            i++;
        if (i < TR_COUNT(envelope))
            continue;
        const char *near = nearest_name(str_of(key), envelope, TR_COUNT(envelope));
        job_fail(job, "unknown_field", "%.60s: unknown field of a batch line%s%s%s", key,
                 near ? "; do you mean " : "; parameters belong into body", near ? near : "",
                 near ? "?" : "");
    }
    struct str method = json_str(json_object_get(job->doc, "method"));
    struct str url = json_str(json_object_get(job->doc, "url"));
    job->body = json_object_get(job->doc, "body");
    if (!json_is_object(job->body))
        job_fail(job, job->body ? "bad_field" : "missing_field", "body: want an object, got %s",
                 json_type_name(job->body));
    if (!str_eq(method, STR("POST")))
        job_fail(job, method.ptr ? "bad_value" : "missing_field",
                 "method: want \"POST\", got \"%.*s\"", (int)TR_MIN(method.len, 40), method.ptr);
    if (str_eq(url, STR("/v1/chat/completions")))
        job->kind = JOB_CHAT;
    else if (str_eq(url, STR("/v1/completions")))
        job->kind = JOB_COMPLETION;
    else
        job_fail(job, url.ptr ? "unsupported_url" : "missing_field",
                 "url: want /v1/chat/completions or /v1/completions, got \"%.*s\"",
                 (int)TR_MIN(url.len, 80), url.ptr);
}

static void take_body_of_short_form(struct job *job)
{
    const json_t *prompt = json_object_get(job->doc, "prompt");
    const json_t *messages = json_object_get(job->doc, "messages");
    for (size_t i = 0; i < TR_COUNT(short_envelope); i++)
        json_object_del(job->doc, short_envelope[i]);
    job->body = job->doc;
    job->kind = prompt && !messages ? JOB_COMPLETION : JOB_CHAT;
    if (prompt && messages)
        job_fail(job, "bad_value", "prompt and messages: want one of them, got both");
    if (prompt || messages)
        return;
    params_refuse_unknown(job); /* "prompts" says more than that "prompt" is missing */
    job_fail(job, "missing_field",
             "want `prompt` or `messages` (or an OpenAI batch line with "
             "custom_id, method, url and body)");
}

/* What the hash covers, kept for the `request` column. */
static void take_request(struct job *job, struct text *scratch)
{
    text_reset(scratch);
    if (job->body)
        text_json_canonical(scratch, job->body);
    else if (job->doc)
        text_json_canonical(scratch, job->doc);
    else
        text_add(scratch, job->message);
    sha256_of(text_view(scratch), job->sha256);
    job->request = job_str(job, text_view(scratch));
    job->model = job->body ? json_str(json_object_get(job->body, "model")) : job->model;
    if (job->model.ptr)
        job->model = job_str(job, job->model);
}

static bool is_line(const json_t *doc)
{
    return json_object_get(doc, "custom_id") || json_object_get(doc, "body") ||
           json_object_get(doc, "url");
}

const char *job_id_field(const json_t *doc)
{
    return is_line(doc) ? "custom_id" : "id";
}

static void take_envelope(struct job *job, struct text *scratch)
{
    json_t *doc = job->doc;
    bool line = is_line(doc);
    const char *id = job_id_field(doc);
    const json_t *given = json_object_get(doc, id);
    if (!take_id(job, id, given, &job->custom_id) && line && !job->header_id.ptr)
        job_fail(job, "missing_field", "custom_id: want a string, got %s", json_type_name(given));
    take_id(job, "batch_id", json_object_get(doc, "batch_id"), &job->batch_id);
    take_id(job, "run", json_object_get(doc, "run"), &job->run);
    take_deadline(job, json_object_get(doc, "deadline"));
    take_priority(job, json_object_get(doc, "priority"));
    take_expected(job, json_object_get(doc, "expected"), scratch);
    take_metadata(job, json_object_get(doc, "metadata"), scratch);
    if (line)
        take_body_of_line(job);
    else
        take_body_of_short_form(job);
    if (json_object_size(doc) > JOB_KEYS_MAX ||
        (json_is_object(job->body) && json_object_size(job->body) > JOB_KEYS_MAX))
        job_fail(job, "too_large", "want at most %d fields in an object", JOB_KEYS_MAX);
}

uint64_t job_key_hash(const struct key *key)
{
    uint64_t h = hash_bytes(key->run.ptr, key->run.len, 0);
    h = hash_bytes(key->batch_id.ptr, key->batch_id.len, h);
    return hash_bytes(key->custom_id.ptr, key->custom_id.len, h);
}

void job_parse(struct job *job, const struct job_defaults *defaults, struct text *scratch)
{
    if (job->message_full > job->message.len || job->message.len > JOB_BYTES_MAX)
        job_fail(job, "too_large", "the message has %zu bytes, the limit is %d", job->message_full,
                 JOB_BYTES_MAX);
    else if (json_parse(&job->doc, job->message, "message", &json_limits_job, &job->err) == E_OK &&
             !json_is_object(job->doc))
        job_fail(job, "bad_json", "message: want an object, got %s", json_type_name(job->doc));
    if (json_is_object(job->doc))
        take_envelope(job, scratch);
    take_headers(job);
    take_request(job, scratch);
    if (!job->custom_id.ptr)
        job->custom_id = job->origin;
    if (!job->batch_id.ptr)
        job->batch_id = defaults->batch_id;
    if (!job->run.ptr)
        job->run = defaults->run;
    if (!json_is_object(job->body))
        job->body = NULL;
    struct key key = {job->run, job->batch_id, job->custom_id};
    job->key_hash = job_key_hash(&key);
}

void job_parse_again(struct job *job)
{
    job->err = (struct err){0};
    if (json_parse(&job->doc, job->message, "message", &json_limits_job, &job->err) != E_OK)
        return;
    if (is_line(job->doc))
        take_body_of_line(job);
    else
        take_body_of_short_form(job);
    if (!json_is_object(job->body))
        job->body = NULL;
}
