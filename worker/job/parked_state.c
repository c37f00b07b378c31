/* parked_state: see parked_state.h. */
#include "worker/job/parked_state.h"

enum { VERSION = 1, HEAD = 104, CHECK_BYTES = 8, ID_BYTES_MAX = 5 };

void parked_engine_sha256(const char *fingerprint, const char *config_revision, const char *weights,
                          uint8_t out[32])
{
    const char *parts[] = {fingerprint, config_revision, weights};
    uint8_t digests[TR_COUNT(parts)][32];
    for (size_t i = 0; i < TR_COUNT(parts); i++)
        sha256_of(str_of(parts[i]), digests[i]);
    sha256_of((struct str){(const char *)digests, sizeof digests}, out);
}

/* ---- write ---- */

static void put(uint8_t *at, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(v >> (8 * i));
}

static void add_ids(struct text *out, const int32_t *ids, size_t n)
{
    uint8_t *at = (uint8_t *)text_room(out, n * ID_BYTES_MAX);
    if (!at || n == 0)
        return;
    for (size_t i = 0; i < n; i++) {
        uint32_t v = (uint32_t)ids[i];
        for (; v > 0x7F; v >>= 7)
            *at++ = (uint8_t)(v | 0x80);
        *at++ = (uint8_t)v;
    }
    out->len = (size_t)((char *)at - out->ptr);
}

static void add_reals(struct text *out, const float *reals, size_t n)
{
    uint8_t *at = (uint8_t *)text_room(out, n * 4);
    if (!at || n == 0)
        return;
    for (size_t i = 0; i < n; i++, at += 4) {
        uint32_t bits;
        memcpy(&bits, &reals[i], 4);
        put(at, bits, 4);
    }
    out->len += n * 4;
}

size_t parked_state_write(struct text *out, const struct parked_shape *shape,
                          const struct parked_life *life, const struct generated *g)
{
    uint8_t head[HEAD] = {'T', 'P', 'K', VERSION}, sum[32];
    size_t from = out->len, n = (size_t)g->n, top = (size_t)TR_MAX(shape->n_top, 0);
    bool prompt = shape->prompt_top >= 0;
    size_t n_prompt = prompt ? (size_t)shape->n_prompt : 0;
    size_t best = (size_t)TR_MAX(shape->prompt_top, 0);
    put(head + 4, (uint64_t)(shape->n_top + 1), 1);
    put(head + 5, (uint64_t)(shape->prompt_top + 1), 1);
    put(head + 8, n, 4);
    put(head + 12, n_prompt, 4);
    put(head + 16, (uint64_t)life->device_ns, 8);
    put(head + 24, (uint64_t)life->started_ns, 8);
    put(head + 32, (uint64_t)life->n_cached, 4);
    memcpy(head + 40, shape->request_sha256, 32);
    memcpy(head + 72, shape->engine_sha256, 32);
    text_add(out, (struct str){(const char *)head, HEAD});
    add_ids(out, g->ids, n);
    add_reals(out, g->logprobs, shape->n_top >= 0 ? n : 0);
    add_ids(out, g->top_ids, n * top);
    add_reals(out, g->top_logprobs, n * top);
    add_reals(out, g->prompt_logprobs, n_prompt);
    add_ids(out, g->prompt_top_ids, n_prompt * best);
    add_reals(out, g->prompt_top_logprobs, n_prompt * best);
    if (out->failed)
        return 0;
    sha256_of((struct str){out->ptr + from, out->len - from}, sum);
    text_add(out, (struct str){(const char *)sum, CHECK_BYTES});
    return out->failed ? 0 : out->len - from;
}

/* ---- read ---- */

struct reader {
    const uint8_t *at, *end;
    bool bad;
};

static uint64_t get(const uint8_t *at, int bytes)
{
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)at[i] << (8 * i);
    return v;
}

/* Shortest form only, so that equal states are equal bytes. may_lack: -1 is an id, of an entry that
 * a row's best have not. */
static void take_ids(struct reader *r, int32_t *ids, size_t n, bool may_lack)
{
    for (size_t i = 0; i < n && !r->bad; i++) {
        uint64_t v = 0;
        int shift = 0;
        uint8_t byte = 0x80;
        for (; byte & 0x80 && shift < 35 && r->at < r->end; shift += 7) {
            byte = *r->at++;
            v |= (uint64_t)(byte & 0x7F) << shift;
        }
        bool lacks = may_lack && v == UINT32_MAX;
        r->bad = byte & 0x80 || (v > INT32_MAX && !lacks) || (shift > 7 && byte == 0);
        ids[i] = r->bad ? 0 : lacks ? -1 : (int32_t)v;
    }
}

static void take_reals(struct reader *r, float *reals, size_t n)
{
    if (r->bad || (size_t)(r->end - r->at) / 4 < n) {
        r->bad = true;
        return;
    }
    for (size_t i = 0; i < n; i++, r->at += 4) {
        uint32_t bits = (uint32_t)get(r->at, 4);
        memcpy(&reals[i], &bits, 4);
    }
}

static int check_head(const uint8_t *head, size_t len, const struct parked_shape *want,
                      struct err *err)
{
    uint8_t sum[32];
    if (len < HEAD + CHECK_BYTES || memcmp(head, "TPK", 3) != 0)
        return err_typed(err, E_JOB, "broken_state",
                         "parked state: %zu bytes that do not begin as one", len);
    if (head[3] != VERSION)
        return err_typed(err, E_JOB, "other_version", "parked state: version %d, want %d", head[3],
                         VERSION);
    sha256_of((struct str){(const char *)head, len - CHECK_BYTES}, sum);
    if (memcmp(head + len - CHECK_BYTES, sum, CHECK_BYTES) != 0)
        return err_typed(err, E_JOB, "broken_state", "parked state: checksum of %zu bytes is wrong",
                         len);
    if (memcmp(head + 40, want->request_sha256, 32) != 0)
        return err_typed(err, E_JOB, "other_request",
                         "parked state: of a request with another request_sha256");
    if (memcmp(head + 72, want->engine_sha256, 32) != 0)
        return err_typed(err, E_JOB, "other_engine",
                         "parked state: of another fingerprint, config revision or weights");
    uint32_t n_prompt = want->prompt_top >= 0 ? (uint32_t)want->n_prompt : 0;
    if (head[4] != want->n_top + 1 || head[5] != want->prompt_top + 1 ||
        get(head + 12, 4) != n_prompt)
        return err_typed(err, E_JOB, "other_request",
                         "parked state: logprobs %d and %d of %u prompt ids, want %d and %d of %u",
                         head[4] - 1, head[5] - 1, (unsigned)get(head + 12, 4), want->n_top,
                         want->prompt_top, (unsigned)n_prompt);
    return E_OK;
}

int parked_state_read(struct str bytes, const struct parked_shape *want, struct parked_life *life,
                      struct generated *g, struct err *err)
{
    const uint8_t *head = (const uint8_t *)bytes.ptr;
    g->n = 0;
    int rc = check_head(head, bytes.len, want, err);
    if (rc < 0)
        return rc;
    struct reader r = {head + HEAD, head + bytes.len - CHECK_BYTES, false};
    size_t n = (size_t)get(head + 8, 4), n_prompt = (size_t)get(head + 12, 4);
    size_t top = (size_t)TR_MAX(want->n_top, 0), best = (size_t)TR_MAX(want->prompt_top, 0);
    if (n > (size_t)TR_MAX(g->cap, 0))
        return err_typed(err, E_JOB, "no_room", "parked state: %zu ids, room for %d", n, g->cap);
    *life = (struct parked_life){(int64_t)get(head + 16, 8), (int64_t)get(head + 24, 8),
                                 (int32_t)get(head + 32, 4)};
    take_ids(&r, g->ids, n, false);
    take_reals(&r, g->logprobs, want->n_top >= 0 ? n : 0);
    take_ids(&r, g->top_ids, n * top, true);
    take_reals(&r, g->top_logprobs, n * top);
    take_reals(&r, g->prompt_logprobs, n_prompt);
    take_ids(&r, g->prompt_top_ids, n_prompt * best, true);
    take_reals(&r, g->prompt_top_logprobs, n_prompt * best);
    if (r.bad || r.at != r.end || life->device_ns < 0 || life->started_ns < 0 || life->n_cached < 0)
        return err_typed(err, E_JOB, "broken_state",
                         "parked state: its %zu bytes do not hold the %zu ids that it names",
                         bytes.len, n);
    g->n = (int32_t)n;
    return E_OK;
}
