/* spool_record: see spool_record.h. */
#include "worker/sink/spool_record.h"

#include <openssl/evp.h>

const char spool_magic[SPOOL_MAGIC_BYTES + 1] = "TRSPOOL1";
static const char record_magic[4] = {'T', 'R', 'r', '1'};
enum { AT_KIND = 4, AT_LENGTH = 8, AT_HEAD_SUM = 16, AT_SUM = 24, HEAD_SUM_BYTES = 8 };
static const uint32_t NULL_LENGTH = UINT32_MAX;

/* ---- numbers and texts ---- */

static void put_number(struct text *t, uint64_t v, size_t bytes)
{
    char at[8];
    for (size_t i = 0; i < bytes; i++, v >>= 8)
        at[i] = (char)(v & 255);
    text_add(t, (struct str){at, bytes});
}

static void put_str(struct text *t, struct str v)
{
    if (v.ptr && v.len >= NULL_LENGTH)
        t->failed = true;
    put_number(t, v.ptr ? v.len : NULL_LENGTH, 4);
    if (v.ptr)
        text_add(t, v);
}

struct reader {
    struct str left;
    bool bad;
};

static uint64_t number_at(const char *at, size_t bytes)
{
    uint64_t v = 0;
    for (size_t i = bytes; i-- > 0;)
        v = v << 8 | (uint8_t)at[i];
    return v;
}

static struct str take(struct reader *r, size_t n)
{
    struct str taken = {r->left.ptr, n};
    if (r->bad || n > r->left.len) {
        r->bad = true;
        return (struct str){NULL, 0};
    }
    r->left = (struct str){r->left.ptr + n, r->left.len - n};
    return taken;
}

static uint64_t take_number(struct reader *r, size_t bytes)
{
    struct str at = take(r, bytes);
    return at.ptr ? number_at(at.ptr, bytes) : 0;
}

static struct str take_str(struct reader *r)
{
    uint64_t n = take_number(r, 4);
    return r->bad || n == NULL_LENGTH ? (struct str){NULL, 0} : take(r, (size_t)n);
}

/* ---- rows: one list of fields serves both ways ---- */

static const size_t result_texts[] = {
    offsetof(struct result, key.run),       offsetof(struct result, key.batch_id),
    offsetof(struct result, key.custom_id), offsetof(struct result, answer),
    offsetof(struct result, reasoning),     offsetof(struct result, finish_reason),
    offsetof(struct result, logprobs),      offsetof(struct result, prompt_logprobs),
    offsetof(struct result, choices),       offsetof(struct result, error_code),
    offsetof(struct result, error_detail),  offsetof(struct result, raw),
    offsetof(struct result, model),         offsetof(struct result, model_sha256),
    offsetof(struct result, fingerprint),   offsetof(struct result, config_revision),
    offsetof(struct result, params),        offsetof(struct result, request),
    offsetof(struct result, source),        offsetof(struct result, worker)};
static const size_t result_counts[] = {
    offsetof(struct result, prompt_tokens), offsetof(struct result, completion_tokens),
    offsetof(struct result, reasoning_tokens), offsetof(struct result, cached_tokens),
    offsetof(struct result, attempts)};
static const size_t result_times[] = {
    offsetof(struct result, seed), offsetof(struct result, queued_ns),
    offsetof(struct result, started_ns), offsetof(struct result, finished_ns)};
static const size_t dead_letter_texts[] = {
    offsetof(struct dead_letter, source_key),   offsetof(struct dead_letter, key.run),
    offsetof(struct dead_letter, key.batch_id), offsetof(struct dead_letter, key.custom_id),
    offsetof(struct dead_letter, reason),       offsetof(struct dead_letter, detail),
    offsetof(struct dead_letter, payload),      offsetof(struct dead_letter, source),
    offsetof(struct dead_letter, worker),       offsetof(struct dead_letter, message_key)};
static const size_t lost_range_texts[] = {
    offsetof(struct lost_range, run), offsetof(struct lost_range, group),
    offsetof(struct lost_range, source), offsetof(struct lost_range, reason)};

static void put_texts(struct text *t, const void *row, const size_t *at, size_t n)
{
    for (size_t i = 0; i < n; i++)
        put_str(t, *(const struct str *)((const char *)row + at[i]));
}

static void take_texts(struct reader *r, void *row, const size_t *at, size_t n)
{
    for (size_t i = 0; i < n; i++)
        *(struct str *)((char *)row + at[i]) = take_str(r);
}

static void read_result(struct reader *r, struct result *out)
{
    struct str sum;
    *out = (struct result){0};
    take_texts(r, out, result_texts, TR_COUNT(result_texts));
    for (size_t i = 0; i < TR_COUNT(result_counts); i++)
        *(int32_t *)((char *)out + result_counts[i]) = (int32_t)(uint32_t)take_number(r, 4);
    for (size_t i = 0; i < TR_COUNT(result_times); i++)
        *(int64_t *)((char *)out + result_times[i]) = (int64_t)take_number(r, 8);
    uint64_t seconds = take_number(r, 8), status = take_number(r, 1), correct = take_number(r, 1);
    uint64_t flags = take_number(r, 1);
    memcpy(&out->device_seconds, &seconds, 8);
    r->bad = r->bad || status >= RESULT_STATUSES || correct > 2 || flags > 3;
    out->status = (enum result_status)status;
    out->correct = (int)correct - 1;
    out->sanitized = flags & 1;
    out->has_seed = flags >> 1 & 1;
    if ((sum = take(r, 32)).ptr)
        memcpy(out->request_sha256, sum.ptr, 32);
    if ((sum = take(r, 32)).ptr)
        memcpy(out->output_sha256, sum.ptr, 32);
    r->bad = r->bad || !out->key.run.ptr || !out->key.batch_id.ptr || !out->key.custom_id.ptr;
}

static void write_result(struct text *t, const struct result *r)
{
    uint64_t seconds;
    memcpy(&seconds, &r->device_seconds, 8);
    put_texts(t, r, result_texts, TR_COUNT(result_texts));
    for (size_t i = 0; i < TR_COUNT(result_counts); i++)
        put_number(t, (uint32_t) * (const int32_t *)((const char *)r + result_counts[i]), 4);
    for (size_t i = 0; i < TR_COUNT(result_times); i++)
        put_number(t, (uint64_t) * (const int64_t *)((const char *)r + result_times[i]), 8);
    put_number(t, seconds, 8);
    put_number(t, (uint64_t)r->status, 1);
    put_number(t, (uint64_t)(r->correct + 1), 1);
    put_number(t, (uint64_t)(r->sanitized | r->has_seed << 1), 1);
    text_add(t, (struct str){(const char *)r->request_sha256, 32});
    text_add(t, (struct str){(const char *)r->output_sha256, 32});
}

static void read_dead_letter(struct reader *r, struct dead_letter *out)
{
    *out = (struct dead_letter){0};
    take_texts(r, out, dead_letter_texts, TR_COUNT(dead_letter_texts));
    out->attempts = (int32_t)(uint32_t)take_number(r, 4);
    out->seen_ns = (int64_t)take_number(r, 8);
    struct str sum = take(r, 32);
    if (sum.ptr)
        memcpy(out->sha256, sum.ptr, 32);
    r->bad = r->bad || !out->source_key.ptr || !out->key.run.ptr || !out->key.batch_id.ptr;
}

static void write_dead_letter(struct text *t, const struct dead_letter *d)
{
    put_texts(t, d, dead_letter_texts, TR_COUNT(dead_letter_texts));
    put_number(t, (uint32_t)d->attempts, 4);
    put_number(t, (uint64_t)d->seen_ns, 8);
    text_add(t, (struct str){(const char *)d->sha256, 32});
}

static void read_lost_range(struct reader *r, struct lost_range *out)
{
    *out = (struct lost_range){0};
    take_texts(r, out, lost_range_texts, TR_COUNT(lost_range_texts));
    out->partition = (int32_t)(uint32_t)take_number(r, 4);
    out->from = (int64_t)take_number(r, 8);
    out->to = (int64_t)take_number(r, 8);
    r->bad = r->bad || !out->run.ptr || !out->group.ptr || !out->source.ptr || !out->reason.ptr;
}

static void write_lost_range(struct text *t, const struct lost_range *l)
{
    put_texts(t, l, lost_range_texts, TR_COUNT(lost_range_texts));
    put_number(t, (uint32_t)l->partition, 4);
    put_number(t, (uint64_t)l->from, 8);
    put_number(t, (uint64_t)l->to, 8);
}

/* ---- records ---- */

static void sum_of(const char *head, struct str body, uint8_t out[32])
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    CHECK(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1 &&
          EVP_DigestUpdate(ctx, head, AT_HEAD_SUM) == 1 &&
          EVP_DigestUpdate(ctx, body.ptr ? body.ptr : "", body.len) == 1 &&
          EVP_DigestFinal_ex(ctx, out, NULL) == 1);
    EVP_MD_CTX_free(ctx);
}

static void head_sum_of(const char *head, uint8_t out[HEAD_SUM_BYTES])
{
    uint8_t sum[32];
    sha256_of((struct str){head, AT_HEAD_SUM}, sum);
    memcpy(out, sum, HEAD_SUM_BYTES);
}

/* Where the record that is being written began. */
static size_t begin(struct text *t)
{
    size_t from = t->len;
    char *at = text_room(t, SPOOL_HEAD_BYTES);
    if (at) {
        memset(at, 0, SPOOL_HEAD_BYTES);
        t->len += SPOOL_HEAD_BYTES;
    }
    return from;
}

static void end(struct text *t, size_t from, enum spool_kind kind)
{
    if (t->failed || t->len - from - SPOOL_HEAD_BYTES > SPOOL_BODY_MAX) {
        t->failed = true;
        return;
    }
    char *head = t->ptr + from;
    struct str body = {head + SPOOL_HEAD_BYTES, t->len - from - SPOOL_HEAD_BYTES};
    uint8_t sum[32];
    memcpy(head, record_magic, sizeof record_magic);
    head[AT_KIND] = (char)kind;
    for (size_t i = 0; i < 4; i++)
        head[AT_LENGTH + i] = (char)(body.len >> 8 * i & 255);
    head_sum_of(head, sum);
    memcpy(head + AT_HEAD_SUM, sum, HEAD_SUM_BYTES);
    sum_of(head, body, sum);
    memcpy(head + AT_SUM, sum, sizeof sum);
}

void spool_put_owner(struct text *t, const struct spool_owner *o)
{
    size_t from = begin(t);
    put_number(t, (uint32_t)o->schema, 4);
    put_str(t, o->database);
    put_str(t, o->run);
    end(t, from, SPOOL_OWNER);
}

void spool_put_result(struct text *t, const struct result *r)
{
    size_t from = begin(t);
    write_result(t, r);
    end(t, from, SPOOL_RESULT);
}

void spool_put_dead_letter(struct text *t, const struct dead_letter *d)
{
    size_t from = begin(t);
    write_dead_letter(t, d);
    end(t, from, SPOOL_DEAD_LETTER);
}

void spool_put_lost_range(struct text *t, const struct lost_range *l)
{
    size_t from = begin(t);
    write_lost_range(t, l);
    end(t, from, SPOOL_LOST_RANGE);
}

/* A head whose own sum holds. */
static bool is_head(struct str bytes, size_t at)
{
    uint8_t sum[HEAD_SUM_BYTES];
    if (bytes.len - at < SPOOL_HEAD_BYTES ||
        memcmp(bytes.ptr + at, record_magic, sizeof record_magic) != 0)
        return false;
    head_sum_of(bytes.ptr + at, sum);
    return memcmp(bytes.ptr + at + AT_HEAD_SUM, sum, HEAD_SUM_BYTES) == 0;
}

/* The next head at or behind `at`; bytes.len: there is none. */
static size_t find_head(struct str bytes, size_t at)
{
    while (at < bytes.len) {
        const char *hit = memmem(bytes.ptr + at, bytes.len - at, record_magic, sizeof record_magic);
        if (!hit)
            return bytes.len;
        at = (size_t)(hit - bytes.ptr);
        if (is_head(bytes, at))
            return at;
        at++;
    }
    return bytes.len;
}

static bool read_body(struct spool_row *row, struct str body)
{
    struct reader r = {.left = body};
    switch (row->kind) {
    case SPOOL_OWNER:
        row->owner.schema = (int32_t)(uint32_t)take_number(&r, 4);
        row->owner.database = take_str(&r);
        row->owner.run = take_str(&r);
        break;
    case SPOOL_RESULT:
        read_result(&r, &row->result);
        break;
    case SPOOL_DEAD_LETTER:
        read_dead_letter(&r, &row->dead_letter);
        break;
    case SPOOL_LOST_RANGE:
        read_lost_range(&r, &row->lost_range);
        break;
    default:
        return false;
    }
    return !r.bad && r.left.len == 0;
}

enum spool_found spool_next(struct str bytes, size_t *at, struct spool_row *row)
{
    if (*at >= bytes.len)
        return SPOOL_END;
    if (!is_head(bytes, *at)) {
        *at = find_head(bytes, *at + 1);
        return *at == bytes.len ? SPOOL_TORN : SPOOL_DAMAGED;
    }
    const char *head = bytes.ptr + *at;
    size_t n = (size_t)number_at(head + AT_LENGTH, 4);
    if (n > bytes.len - *at - SPOOL_HEAD_BYTES) {
        *at = bytes.len;
        return SPOOL_TORN;
    }
    struct str body = {head + SPOOL_HEAD_BYTES, n};
    uint8_t sum[32];
    sum_of(head, body, sum);
    *at += SPOOL_HEAD_BYTES + n;
    row->kind = (enum spool_kind)(uint8_t)head[AT_KIND];
    bool whole = memcmp(head + AT_SUM, sum, sizeof sum) == 0 && read_body(row, body);
    if (whole)
        return SPOOL_ROW;
    return *at == bytes.len ? SPOOL_TORN : SPOOL_DAMAGED;
}
