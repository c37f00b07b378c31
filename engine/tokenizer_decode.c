/* tokenizer_decode: ids to text, and the repair of broken UTF-8. */
#include "engine/tokenizer_impl.h"

/* Where decoded bytes go: only the first cap are kept, all are counted. */
struct sink {
    char *buf;
    size_t cap, n;
    unsigned char tail[4]; /* a character that is not complete yet */
    size_t n_tail;
    bool changed;
    bool strip; /* one space at the very start is still to be dropped */
};

static void sink_put(struct sink *s, const char *bytes, size_t n)
{
    if (s->strip && n > 0) {
        size_t space = *bytes == ' ';
        s->strip = false;
        bytes += space;
        n -= space;
    }
    if (s->n < s->cap)
        memcpy(s->buf + s->n, bytes, TR_MIN(n, s->cap - s->n));
    s->n += n;
}

static void sink_replace(struct sink *s)
{
    sink_put(s, "\uFFFD", 3);
    s->changed = true;
}

/* A byte of text that may be broken. A byte that does not continue the tail makes all of the tail
 * one maximal subpart, so nothing but that byte has to be looked at again. */
static void sink_byte(struct sink *s, unsigned char byte)
{
    size_t len;
    s->tail[s->n_tail++] = byte;
    enum utf8_state state = utf8_look(s->tail, s->n_tail, &len);
    if (state == UTF8_CUT)
        return;
    if (state == UTF8_VALID)
        sink_put(s, (const char *)s->tail, len);
    else
        sink_replace(s);
    bool again = len < s->n_tail;
    s->n_tail = 0;
    if (again)
        sink_byte(s, byte);
}

static void sink_bytes(struct sink *s, struct str bytes)
{
    for (size_t i = 0; i < bytes.len; i++) {
        size_t from = i;
        while (s->n_tail == 0 && i < bytes.len && (unsigned char)bytes.ptr[i] < 0x80)
            i++;
        if (i > from)
            sink_put(s, bytes.ptr + from, i - from);
        if (i < bytes.len)
            sink_byte(s, (unsigned char)bytes.ptr[i]);
    }
}

static void sink_end(struct sink *s)
{
    if (s->n_tail)
        sink_replace(s);
    s->n_tail = 0;
}

size_t utf8_repair(struct str bytes, char *buf, size_t cap, bool *changed)
{
    struct sink s = {.buf = buf, .cap = cap};
    sink_bytes(&s, bytes);
    sink_end(&s);
    *changed = s.changed;
    return s.n;
}

struct str tokenizer_token_bytes(const struct tokenizer *t, int32_t id)
{
    return tokenizer_text(t, id);
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_tokens && t->tokens[id].flags & TOKEN_SPECIAL;
}

static bool counts(const struct tokenizer *t, int32_t id, bool skip_special)
{
    return id >= 0 && id < t->n_tokens && t->tokens[id].flags &&
           !(skip_special && t->tokens[id].flags & TOKEN_SPECIAL);
}

/* A run of byte tokens is text when all of it is valid; else each of its bytes is U+FFFD. Returns
 * the index behind the run. */
static size_t byte_run(const struct tokenizer *t, const int32_t *ids, size_t i, size_t n,
                       bool skip_special, struct sink *out)
{
    struct sink probe = {0};
    size_t end = i, n_bytes = 0;
    for (; end < n; end++) {
        if (!counts(t, ids[end], skip_special))
            continue;
        if (!(t->tokens[ids[end]].flags & TOKEN_BYTE))
            break;
        sink_bytes(&probe, tokenizer_text(t, ids[end]));
        n_bytes++;
    }
    sink_end(&probe);
    for (; i < end; i++)
        if (!probe.changed && counts(t, ids[i], skip_special))
            sink_put(out, t->blob + t->tokens[ids[i]].text, 1);
    for (size_t b = 0; probe.changed && b < n_bytes; b++)
        sink_replace(out);
    return end;
}

static void decode_sentencepiece(const struct tokenizer *t, const int32_t *ids, size_t n,
                                 bool skip_special, struct sink *out)
{
    out->strip = true;
    for (size_t i = 0; i < n;) {
        if (!counts(t, ids[i], skip_special)) {
            i++;
        } else if (t->tokens[ids[i]].flags & TOKEN_BYTE) {
            i = byte_run(t, ids, i, n, skip_special, out);
        } else {
            struct str text = tokenizer_text(t, ids[i++]);
            sink_put(out, text.ptr, text.len);
        }
    }
}

size_t tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                        char *buf, size_t cap)
{
    struct sink out = {.buf = buf, .cap = cap};
    if (!t->byte_level) {
        decode_sentencepiece(t, ids, n, skip_special, &out);
        return out.n;
    }
    for (size_t i = 0; i < n; i++)
        if (counts(t, ids[i], skip_special))
            sink_bytes(&out, tokenizer_text(t, ids[i]));
    sink_end(&out);
    return out.n;
}
