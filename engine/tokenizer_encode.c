/* tokenizer_encode: the way of a text to ids: added tokens, normalizer, normalized added tokens,
 * split, and BPE with a cache of whole pre-tokens in front. */
#include "engine/tokenizer_impl.h"

struct run {
    const struct tokenizer *t;
    struct tokenizer_scratch *s;
    int32_t *ids;
    size_t cap, n;
    const struct text_range *ranges; /* where added tokens are looked for, in the whole text */
    size_t n_ranges;
    bool dirty; /* some character is U+0300 or above: NFC may have work */
};

static void put_id(struct run *r, int32_t id)
{
    if (r->n < r->cap)
        r->ids[r->n] = id;
    r->n++;
}

/* The cache's key of a pre-token of at most WORD_KEY_MAX bytes, of which `left` may be read. */
static inline void word_key(uint64_t key[4], const unsigned char *p, size_t len, size_t left)
{
    /* the first n bytes of an eight-byte word */
    static const uint64_t first[9] = {0x0,        0xFF,         0xFFFF,         0xFFFFFF,
                                      0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF,
                                      UINT64_MAX};
    key[0] = key[1] = key[2] = key[3] = 0;
    if (len <= 16 && left >= 16) {
        memcpy(key, p, 16);
        key[0] &= first[TR_MIN(len, 8)];
        key[1] &= first[len > 8 ? len - 8 : 0];
    } else {
        memcpy(key, p, len);
    }
    key[3] |= (uint64_t)len << 56;
}

/* A pre-token that the cache does not hold, and its place there if it may have one. */
static int put_word(struct run *r, struct str word, const uint64_t key[4], struct word_entry *entry)
{
    int64_t n = bpe_piece(r->t, r->s, word);
    if (n < 0)
        return E_RETRY;
    const int32_t *ids = r->s->ids.ptr;
    for (int64_t i = 0; i < n; i++)
        put_id(r, ids[i]);
    if (entry && n <= WORD_IDS_MAX) {
        memcpy(entry->key, key, sizeof entry->key);
        memcpy(entry->ids, ids, (size_t)n * sizeof *ids);
        entry->n = (int32_t)n;
    }
    return E_OK;
}

/* Normalized text without added tokens. */
static int encode_text(struct run *r, struct str text)
{
    struct splitter split = {.at = (const unsigned char *)text.ptr, .kind = r->t->split};
    split.end = split.at + text.len;
    while (split.at < split.end) {
        const unsigned char *p = split.at;
        size_t len = split_next(&split);
        struct word_entry *e = NULL;
        uint64_t key[4];
        if (len <= WORD_KEY_MAX) {
            word_key(key, p, len, (size_t)(split.end - p));
            uint64_t hash = hash_words(key[0] ^ key[2], key[1] ^ key[3]);
            e = &r->s->words[hash >> (64 - WORD_CACHE_BITS)];
            if (((e->key[0] ^ key[0]) | (e->key[1] ^ key[1]) | (e->key[2] ^ key[2]) |
                 (e->key[3] ^ key[3])) == 0) {
                if (r->n + WORD_IDS_MAX <= r->cap) {
                    memcpy(r->ids + r->n, e->ids, sizeof e->ids);
                    r->n += (size_t)e->n;
                } else {
                    for (int32_t i = 0; i < e->n; i++)
                        put_id(r, e->ids[i]);
                }
                continue;
            }
        }
        if (put_word(r, (struct str){(const char *)p, len}, key, e) != E_OK)
            return E_RETRY;
    }
    return E_OK;
}

/* Cuts at the tokens of a set that stand in one of the ranges; the text between goes to `gap`. */
static int cut(struct run *r, const struct added_set *set, struct str text,
               const struct text_range *ranges, size_t n_ranges,
               int (*gap)(struct run *r, struct str text, size_t at))
{
    size_t floor = 0;
    struct added_match match;
    for (size_t i = 0; i < n_ranges; i++) {
        size_t from = ranges[i].begin;
        while (added_next(r->t, set, text, from, ranges[i].end, floor, &match)) {
            if (floor < match.begin) {
                int rc = gap(r, (struct str){text.ptr + floor, match.begin - floor}, floor);
                if (rc != E_OK)
                    return rc;
            }
            put_id(r, match.id);
            floor = match.end;
            from = match.next;
        }
    }
    if (floor < text.len)
        return gap(r, (struct str){text.ptr + floor, text.len - floor}, floor);
    return E_OK;
}

static int inner_gap(struct run *r, struct str text, size_t at)
{
    (void)at;
    return encode_text(r, text);
}

/* U+2581 in front and in place of every space (SentencePiece). Marks move along as in
 * nfc_normalize; a mark at 0 stays in front of the added one. */
static size_t metaspace(struct str text, char *out, struct nfc_mark *marks, size_t n_marks)
{
    size_t used = 3, mark = 0;
    memcpy(out, "\u2581", 3);
    for (; mark < n_marks && marks[mark].at == 0; mark++)
        continue;
    for (size_t i = 0; i < text.len; i++) {
        bool space = text.ptr[i] == ' ';
        for (; mark < n_marks && marks[mark].at == i; mark++)
            marks[mark].at = used;
        memcpy(out + used, space ? "\u2581" : text.ptr + i, space ? 3 : 1);
        used += space ? 3 : 1;
    }
    for (; mark < n_marks; mark++)
        marks[mark].at = used;
    return used;
}

/* The run's ranges that touch text[at..at+len), as marks in it: begin, end, begin, end, ... */
static struct nfc_mark *gap_marks(struct run *r, size_t at, size_t len, size_t *n)
{
    struct nfc_mark *marks = grow_reserve(&r->s->marks, 2 * r->n_ranges, sizeof *marks);
    *n = 0;
    for (size_t i = 0; marks && i < r->n_ranges; i++) {
        size_t begin = TR_MAX(r->ranges[i].begin, at), end = TR_MIN(r->ranges[i].end, at + len);
        if (begin >= end)
            continue;
        marks[(*n)++] = (struct nfc_mark){begin - at, true};
        marks[(*n)++] = (struct nfc_mark){end - at, false};
    }
    return marks;
}

/* A text between two tokens of the first set: normalizer, then the tokens of the second set. */
static int outer_gap(struct run *r, struct str text, size_t at)
{
    const struct tokenizer *t = r->t;
    bool second = t->normalized.n_nodes > 1;
    size_t n_marks = 0;
    struct nfc_mark *marks = second ? gap_marks(r, at, text.len, &n_marks) : NULL;
    if (second && !marks)
        return E_RETRY;
    bool nfc = t->nfc && r->dirty && nfc_clean_prefix(text) < text.len;
    if (nfc || t->metaspace) {
        char *out = grow_reserve(&r->s->normal, text.len + 1, NFC_GROWTH_MAX);
        if (!out)
            return E_RETRY;
        int64_t n = nfc ? nfc_normalize(text, out, &r->s->nfc, marks, n_marks)
                        : (int64_t)metaspace(text, out, marks, n_marks);
        if (n < 0)
            return E_RETRY;
        text = (struct str){out, (size_t)n};
    }
    if (!second)
        return encode_text(r, text);
    struct text_range *inner = grow_reserve(&r->s->inner, n_marks / 2, sizeof *inner);
    if (!inner)
        return E_RETRY;
    size_t n_inner = 0;
    for (size_t i = 0; i < n_marks; i += 2)
        if (marks[i].at < marks[i + 1].at)
            inner[n_inner++] = (struct text_range){marks[i].at, marks[i + 1].at};
    return cut(r, &t->normalized, text, inner, n_inner, inner_gap);
}

static int64_t encode_ranges(struct run *r, struct str text, unsigned flags, struct err *err)
{
    const struct tokenizer *t = r->t;
    unsigned char lead_max;
    bool special = flags & TOKENIZER_ADD_SPECIAL;
    if (text.len > TOKENIZER_TEXT_MAX)
        return err_typed(err, E_JOB, "too_large", "text: %zu bytes, the limit is %d", text.len,
                         TOKENIZER_TEXT_MAX);
    size_t valid = utf8_valid_prefix(text, &lead_max);
    if (valid != text.len)
        return err_typed(err, E_JOB, "bad_utf8", "text: byte %zu of %zu is no valid UTF-8", valid,
                         text.len);
    r->dirty = lead_max >= 0xCC;
    for (int i = 0; special && i < t->n_before; i++)
        put_id(r, t->before[i]);
    if (special && !t->has_template && t->add_bos)
        put_id(r, t->bos_id);
    if (cut(r, &t->raw, text, r->ranges, r->n_ranges, outer_gap) != E_OK)
        return err_set(err, E_RETRY, "text: no memory to encode %zu bytes", text.len);
    for (int i = 0; special && i < t->n_after; i++)
        put_id(r, t->after[i]);
    if (special && !t->has_template && t->add_eos)
        put_id(r, t->eos_id);
    return (int64_t)r->n;
}

int64_t tokenizer_encode(const struct tokenizer *t, struct tokenizer_scratch *s, struct str text,
                         unsigned flags, int32_t *ids, size_t cap, struct err *err)
{
    struct text_range all = {0, text.len};
    struct run r = {.t = t, .s = s, .ids = ids, .cap = cap, .ranges = &all};
    r.n_ranges = !(flags & TOKENIZER_PLAIN_TEXT);
    return encode_ranges(&r, text, flags, err);
}

int64_t tokenizer_encode_pieces(const struct tokenizer *t, struct tokenizer_scratch *s,
                                const struct tokenizer_piece *pieces, size_t n_pieces,
                                unsigned flags, int32_t *ids, size_t cap, struct err *err)
{
    size_t len = 0, n = 0;
    for (size_t i = 0; i < n_pieces; i++)
        if (__builtin_add_overflow(len, pieces[i].text.len, &len))
            len = SIZE_MAX;
    char *text = len <= TOKENIZER_TEXT_MAX ? grow_reserve(&s->joined, len, 1) : NULL;
    struct text_range *ranges = grow_reserve(&s->ranges, n_pieces, sizeof *ranges);
    if (len > TOKENIZER_TEXT_MAX)
        return err_typed(err, E_JOB, "too_large", "text: %zu bytes, the limit is %d", len,
                         TOKENIZER_TEXT_MAX);
    if (!text || !ranges)
        return err_set(err, E_RETRY, "text: no memory to encode %zu bytes", len);
    size_t at = 0;
    for (size_t i = 0; i < n_pieces; i++) {
        size_t end = at + pieces[i].text.len;
        if (end > at)
            memcpy(text + at, pieces[i].text.ptr, end - at);
        bool plain = pieces[i].plain || flags & TOKENIZER_PLAIN_TEXT;
        if (!plain && n > 0 && ranges[n - 1].end == at)
            ranges[n - 1].end = end;
        else if (!plain)
            ranges[n++] = (struct text_range){at, end};
        at = end;
    }
    struct run r = {.t = t, .s = s, .ids = ids, .cap = cap, .ranges = ranges, .n_ranges = n};
    return encode_ranges(&r, (struct str){text, len}, flags, err);
}
