/* tokenizer_json: reads model.vocab and model.merges of a tokenizer.json without building a tree.
 * They make up all but a few KiB of the 7 to 17 MB; Jansson needs 0.29 s for R1-Distill-Qwen's file
 * (parse and free), more than all the rest of opening. These readers are as strict as json_parse:
 * UTF-8, escapes, duplicates, separators. */
#include "engine/tokenizer_impl.h"

enum { TOKEN_STRING_MAX = 4 * TOKENIZER_TOKEN_BYTES_MAX };

struct reader {
    struct str text;
    size_t at, end;
    const char *section;
    struct err *err;
    char unescaped[TOKEN_STRING_MAX + 4];
};

static int reader_fail(struct reader *r, const char *want)
{
    return err_set(r->err, E_FATAL, "tokenizer.json: %s: byte %zu: want %s", r->section, r->at,
                   want);
}

static void skip_space(struct str text, size_t *at)
{
    while (*at < text.len && (text.ptr[*at] == ' ' || text.ptr[*at] == '\n' ||
                              text.ptr[*at] == '\r' || text.ptr[*at] == '\t'))
        ++*at;
}

/* ---- finding the sections ---- */

/* `at` stands behind an opening quote; returns the offset behind the closing one. */
static size_t skip_string(struct str text, size_t at)
{
    while (at < text.len && text.ptr[at] != '"')
        at += text.ptr[at] == '\\' ? 2 : 1;
    return TR_MIN(at + 1, text.len);
}

/* `at` stands on [ or {; returns the offset behind its partner, or text.len. */
static size_t skip_value(struct str text, size_t at, size_t *n_strings)
{
    size_t depth = 0;
    while (at < text.len) {
        char c = text.ptr[at++];
        if (c == '"') {
            at = skip_string(text, at);
            ++*n_strings;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if ((c == '}' || c == ']') && --depth == 0) {
            return at;
        }
    }
    return at;
}

/* The section that `key` at this depth names and whose value begins with `open`, or NULL. */
static struct json_span *section_of(struct tokenizer_spans *spans, struct str key, char open)
{
    struct json_span *span = NULL;
    if (str_eq(key, STR("vocab")) && open == '{')
        span = &spans->vocab;
    else if (str_eq(key, STR("merges")) && open == '[')
        span = &spans->merges;
    return span && span->end == 0 ? span : NULL;
}

size_t tokenizer_json_cut(struct str json, struct tokenizer_spans *spans, char *rest)
{
    size_t at = 0, copied = 0, used = 0, depth = 0;
    bool in_model = false;
    *spans = (struct tokenizer_spans){0};
    while (at < json.len) {
        char c = json.ptr[at++];
        if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            depth -= depth > 0;
            in_model = in_model && depth >= 2;
        } else if (c == '"') {
            size_t begin = at;
            at = skip_string(json, at);
            struct str key = {json.ptr + begin, at - begin > 0 ? at - begin - 1 : 0};
            skip_space(json, &at);
            if (at >= json.len || json.ptr[at] != ':')
                continue;
            at++;
            skip_space(json, &at);
            char open = at < json.len ? json.ptr[at] : '\0';
            if (depth == 1)
                in_model = str_eq(key, STR("model")) && open == '{';
            struct json_span *span = in_model && depth == 2 ? section_of(spans, key, open) : NULL;
            if (!span)
                continue;
            span->begin = at;
            at = span->end = skip_value(json, at, &span->n_strings);
            memcpy(rest + used, json.ptr + copied, span->begin - copied);
            used += span->begin - copied;
            /* an unclosed section is shorter than 2 bytes at worst: "{" becomes "{" */
            size_t n = TR_MIN(span->end - span->begin, 2);
            memcpy(rest + used, open == '{' ? "{}" : "[]", n);
            used += n;
            copied = at;
        }
    }
    memcpy(rest + used, json.ptr + copied, json.len - copied);
    return used + json.len - copied;
}

/* ---- strings, numbers ---- */

static int read_char(struct reader *r, char want)
{
    skip_space(r->text, &r->at);
    if (r->at >= r->end || r->text.ptr[r->at] != want)
        return reader_fail(r, (char[]){'\'', want, '\'', '\0'});
    r->at++;
    return E_OK;
}

static char peek(struct reader *r)
{
    skip_space(r->text, &r->at);
    return r->at < r->end ? r->text.ptr[r->at] : '\0';
}

static int hex4(const char *p)
{
    int value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* One escape; `at` stands behind the backslash. Returns its bytes in out, 0 when it is none. */
static size_t read_escape(struct reader *r, char *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *p = r->text.ptr + r->at, *known;
    size_t left = r->end - r->at;
    if (left >= 1 && *p != '\0' && (known = strchr(from, *p)) != NULL) {
        *out = to[known - from];
        r->at++;
        return 1;
    }
    int high = left >= 5 && *p == 'u' ? hex4(p + 1) : -1;
    if (high < 0 || (high >= 0xDC00 && high <= 0xDFFF))
        return 0;
    r->at += 5;
    if (high < 0xD800 || high > 0xDBFF)
        return utf8_put(out, (uint32_t)high);
    int low = left >= 11 && p[5] == '\\' && p[6] == 'u' ? hex4(p + 7) : -1;
    if (low < 0xDC00 || low > 0xDFFF)
        return 0;
    r->at += 6;
    return utf8_put(out, 0x10000u + (((uint32_t)high & 0x3FF) << 10 | ((uint32_t)low & 0x3FF)));
}

/* A string; *out points into the text, or into r->unescaped where it has escapes. */
static int read_string(struct reader *r, struct str *out)
{
    int rc = read_char(r, '"');
    if (rc != E_OK)
        return rc;
    size_t begin = r->at, used = 0;
    bool copied = false;
    for (;; r->at++) {
        if (r->at >= r->end)
            return reader_fail(r, "the end of a string");
        unsigned char c = (unsigned char)r->text.ptr[r->at];
        if (c == '"')
            break;
        if (c < 0x20)
            return reader_fail(r, "no control character in a string");
        if (r->at - begin > (size_t)6 * TOKEN_STRING_MAX || used > TOKEN_STRING_MAX - 4)
            return reader_fail(r, "a shorter token");
        if (c == '\\' && !copied) {
            used = r->at - begin;
            if (used > TOKEN_STRING_MAX - 4)
                return reader_fail(r, "a shorter token");
            memcpy(r->unescaped, r->text.ptr + begin, used);
            copied = true;
        }
        if (c == '\\') {
            r->at++;
            size_t n = read_escape(r, r->unescaped + used);
            if (n == 0)
                return reader_fail(r, "a valid escape");
            used += n;
            r->at--;
        } else if (copied) {
            r->unescaped[used++] = (char)c;
        }
    }
    *out = copied ? (struct str){r->unescaped, used}
                  : (struct str){r->text.ptr + begin, r->at - begin};
    r->at++;
    unsigned char lead_max;
    if (out->len > TOKEN_STRING_MAX)
        return reader_fail(r, "a shorter token");
    return utf8_valid_prefix(*out, &lead_max) == out->len ? E_OK : reader_fail(r, "valid UTF-8");
}

static int read_id(struct reader *r, int32_t *out)
{
    char c = peek(r);
    int32_t value = 0;
    size_t begin = r->at;
    while (r->at < r->end && (c = r->text.ptr[r->at]) >= '0' && c <= '9') {
        value = value * 10 + (c - '0');
        r->at++;
        if (value >= TOKENIZER_IDS_MAX)
            return reader_fail(r, "an id below 2097152");
    }
    if (r->at == begin || (r->text.ptr[begin] == '0' && r->at > begin + 1))
        return reader_fail(r, "a whole number, zero or above");
    if (r->at < r->end && (c == '.' || c == 'e' || c == 'E'))
        return reader_fail(r, "a whole number");
    *out = value;
    return E_OK;
}

/* ---- vocab ---- */

struct entry {
    uint32_t key;
    int32_t id;
    uint16_t len;
    bool raw;
};

static int read_entry(struct tokenizer *t, struct reader *r, struct entry *entry)
{
    struct str name;
    int rc = read_string(r, &name);
    if (rc != E_OK)
        return rc;
    char key[TOKEN_STRING_MAX];
    size_t len = name.len;
    bool mapped = t->byte_level && tokenizer_unmap(name, key, &len);
    if (len > TOKENIZER_TOKEN_BYTES_MAX)
        return reader_fail(r, "a token of at most 1024 bytes");
    entry->raw = t->byte_level && !mapped;
    entry->len = (uint16_t)len;
    entry->key = tokenizer_blob_add(t, (struct str){mapped ? key : name.ptr, len});
    if ((rc = read_char(r, ':')) != E_OK)
        return rc;
    return read_id(r, &entry->id);
}

static uint32_t table_size(size_t n)
{
    uint32_t size = 16;
    while (size / 4 * 3 < n) /* at most three quarters full */
        size *= 2;
    return size;
}

static int place_entries(struct tokenizer *t, const struct entry *entries, size_t n,
                         struct reader *r)
{
    for (size_t i = 0; i < n; i++) {
        struct str key = {t->blob + entries[i].key, entries[i].len};
        int32_t id = entries[i].id;
        if (t->tokens[id].flags)
            return err_set(r->err, E_FATAL,
                           "tokenizer.json: model.vocab: id %d belongs to two tokens", id);
        int32_t twin = tokenizer_find(t, key, entries[i].raw);
        if (twin >= 0)
            return err_set(r->err, E_FATAL,
                           "tokenizer.json: model.vocab: one token has two ids, %d and %d", twin,
                           id);
        uint8_t flags = (uint8_t)(TOKEN_PRESENT | (entries[i].raw ? TOKEN_RAW : 0));
        t->tokens[id] =
            (struct token){entries[i].key, entries[i].key, entries[i].len, entries[i].len, flags};
        if (!tokenizer_slot_add(t, id))
            return err_set(r->err, E_FATAL,
                           "tokenizer.json: model.vocab: id %d: the hashes of more than %d keys "
                           "before it collide",
                           id, TOKENIZER_PROBES_MAX);
    }
    return E_OK;
}

int tokenizer_read_vocab(struct tokenizer *t, struct str json, const struct json_span *span,
                         int32_t n_added_max, struct err *err)
{
    int rc = E_OK;
    struct reader *r = mem_alloc(1, sizeof *r);
    struct entry *entries = mem_alloc(span->n_strings, sizeof *entries);
    size_t n = 0;
    int32_t id_max = -1;
    if (!r || !entries) {
        rc = err_set(err, E_FATAL, "tokenizer.json: no memory for %zu tokens", span->n_strings);
        goto out;
    }
    *r = (struct reader){.text = json, .at = span->begin, .end = span->end};
    r->section = "model.vocab";
    r->err = err;
    rc = read_char(r, '{');
    for (bool more = rc == E_OK && peek(r) != '}'; more; more = peek(r) == ',' && ++r->at) {
        if (n == span->n_strings)
            break;
        if ((rc = read_entry(t, r, &entries[n])) != E_OK)
            goto out;
        id_max = TR_MAX(id_max, entries[n].id);
        n++;
    }
    if (rc != E_OK || (rc = read_char(r, '}')) != E_OK)
        goto out;
    t->n_tokens = id_max + 1;
    uint32_t size = table_size(n);
    t->tokens = mem_alloc((size_t)t->n_tokens + (size_t)n_added_max, sizeof *t->tokens);
    t->slots = mem_alloc(size, sizeof *t->slots);
    if (!t->tokens || !t->slots) {
        rc = err_set(err, E_FATAL, "tokenizer.json: no memory for %zu tokens", n);
        goto out;
    }
    memset(t->slots, 0xFF, size * sizeof *t->slots);
    t->slot_mask = size - 1;
    rc = place_entries(t, entries, n, r);
out:
    mem_free(entries);
    mem_free(r);
    return rc;
}

/* ---- merges ---- */

/* The id of one side of a merge. */
static int32_t side_id(const struct tokenizer *t, struct str s, char *key, size_t *len)
{
    if (!t->byte_level) {
        memcpy(key, s.ptr, s.len);
        *len = s.len;
    } else if (!tokenizer_unmap(s, key, len)) {
        return -1;
    }
    return tokenizer_find(t, (struct str){key, *len}, false);
}

static bool pair_put(struct tokenizer *t, int32_t left, int32_t right, uint64_t value)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    uint32_t i = (uint32_t)(hash >> 32) & t->pair_mask;
    for (int probes = 0; probes < TOKENIZER_PROBES_MAX; probes++, i = (i + 1) & t->pair_mask) {
        if (t->pairs[i].key == UINT64_MAX || t->pairs[i].key == key) {
            t->pairs[i] = (struct pair_slot){key, value}; /* of equal pairs the last one counts */
            return true;
        }
    }
    return false;
}

static int add_merge(struct tokenizer *t, struct reader *r, struct str a, struct str b,
                     uint32_t rank)
{
    char key[2 * TOKEN_STRING_MAX];
    size_t n_left, n_right;
    int32_t left = side_id(t, a, key, &n_left);
    int32_t right = left < 0 ? -1 : side_id(t, b, key + n_left, &n_right);
    int32_t both = right < 0 ? -1 : tokenizer_find(t, (struct str){key, n_left + n_right}, false);
    if (both < 0)
        return err_set(r->err, E_FATAL,
                       "tokenizer.json: model.merges[%u]: \"" STR_FMT "\" + \"" STR_FMT
                       "\": one side or the result is not in model.vocab",
                       rank, STR_ARG(a), STR_ARG(b));
    /* SentencePiece style: words are cut apart only where no merge joins them again. */
    if (t->split == SPLIT_WORDS && b.len >= 3 && memcmp(b.ptr, "\u2581", 3) == 0 &&
        (a.len < 3 || memcmp(a.ptr + a.len - 3, "\u2581", 3) != 0))
        t->split = SPLIT_NONE;
    if (!pair_put(t, left, right, (uint64_t)rank << 32 | (uint32_t)both))
        return err_set(r->err, E_FATAL,
                       "tokenizer.json: model.merges[%u]: the hashes of more than %d pairs before "
                       "it collide",
                       rank, TOKENIZER_PROBES_MAX);
    return E_OK;
}

/* "a b" or ["a", "b"]; *kind is '"' or '[' once the first was seen. Returns 1 for an entry that
 * counts, 0 for a legacy "#version" line. */
static int read_merge(struct tokenizer *t, struct reader *r, char *kind, uint32_t rank)
{
    int rc;
    char first = peek(r);
    if ((first != '"' && first != '[') || (*kind && *kind != first))
        return reader_fail(r, "merges that are all \"a b\" or all [\"a\", \"b\"]");
    *kind = first;
    struct str a, b;
    if (first == '"') {
        if ((rc = read_string(r, &a)) != E_OK)
            return rc;
        if (a.len >= 8 && memcmp(a.ptr, "#version", 8) == 0)
            return 0;
        const char *space = a.len ? memchr(a.ptr, ' ', a.len) : NULL;
        if (!space || memchr(space + 1, ' ', a.len - (size_t)(space + 1 - a.ptr)))
            return reader_fail(r, "two symbols with one space between them");
        b = (struct str){space + 1, a.len - (size_t)(space + 1 - a.ptr)};
        a.len = (size_t)(space - a.ptr);
        rc = add_merge(t, r, a, b, rank);
    } else {
        char left[TOKEN_STRING_MAX];
        if ((rc = read_char(r, '[')) != E_OK || (rc = read_string(r, &a)) != E_OK)
            return rc;
        if (a.ptr == r->unescaped)
            a.ptr = memcpy(left, a.ptr, a.len);
        if ((rc = read_char(r, ',')) != E_OK || (rc = read_string(r, &b)) != E_OK ||
            (rc = read_char(r, ']')) != E_OK)
            return rc;
        rc = add_merge(t, r, a, b, rank);
    }
    return rc == E_OK ? 1 : rc;
}

int tokenizer_read_merges(struct tokenizer *t, struct str json, const struct json_span *span,
                          struct err *err)
{
    int rc = E_OK;
    char kind = '\0';
    uint32_t rank = 0, size = table_size(span->n_strings / 2);
    struct reader *r = mem_alloc(1, sizeof *r);
    bool strings = false;
    for (size_t i = span->begin + 1; i < span->end && !strings; i++) {
        if (json.ptr[i] == '[' || json.ptr[i] == ']')
            break;
        strings = json.ptr[i] == '"';
    }
    if (strings)
        size = table_size(span->n_strings);
    t->pairs = mem_alloc(size, sizeof *t->pairs);
    if (!r || !t->pairs) {
        rc = err_set(err, E_FATAL, "tokenizer.json: no memory for %u merges", size);
        goto out;
    }
    memset(t->pairs, 0xFF, size * sizeof *t->pairs);
    t->pair_mask = size - 1;
    *r = (struct reader){.text = json, .at = span->begin, .end = span->end};
    r->section = "model.merges";
    r->err = err;
    rc = read_char(r, '[');
    for (bool more = rc == E_OK && peek(r) != ']'; more; more = peek(r) == ',' && ++r->at) {
        if ((rc = read_merge(t, r, &kind, rank)) < 0)
            goto out;
        rank += (uint32_t)rc;
    }
    rc = rc < 0 ? rc : read_char(r, ']');
out:
    mem_free(r);
    return rc;
}
