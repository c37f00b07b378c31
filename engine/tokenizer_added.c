/* tokenizer_added: added tokens: their section of tokenizer.json, and finding them in a text.
 * The rules are those of Hugging Face's AddedVocabulary: leftmost-longest over all tokens of a set;
 * single_word, lstrip and rstrip look at the text around a match. A trie walk from each possible
 * first byte costs at most the longest token a position. */
#include "engine/tokenizer_impl.h"

#include <stdio.h>

static int bad(struct err *err, size_t i, const char *field, const char *want, const json_t *have)
{
    char name[64];
    snprintf(name, sizeof name, "added_tokens[%zu]%s%s", i, *field ? "." : "", field);
    return tokenizer_bad_field(err, name, want, have);
}

/* The id that Hugging Face gives: the file's own number is only a claim there. */
static int32_t id_due(const struct tokenizer *t, struct str content, size_t n_vocab)
{
    char key[4096];
    size_t len = content.len;
    bool raw = t->byte_level && !tokenizer_unmap(content, key, &len);
    int32_t id = tokenizer_find(t, t->byte_level ? (struct str){key, len} : content, raw);
    if (id >= 0)
        return id;
    int64_t max = -1;
    for (int32_t i = 0; i < t->n_added; i++)
        max = TR_MAX(max, t->added[i].id);
    if (max >= (int64_t)n_vocab)
        return (int32_t)max + 1;
    return (int32_t)n_vocab;
}

static int read_one(struct tokenizer *t, const json_t *item, size_t i, size_t n_vocab,
                    struct err *err)
{
    struct added_token *a = &t->added[i];
    const json_t *id = json_object_get(item, "id"), *content = json_object_get(item, "content");
    struct {
        const char *name;
        bool *value;
    } bools[] = {{"single_word", &a->single_word},
                 {"lstrip", &a->lstrip},
                 {"rstrip", &a->rstrip},
                 {"normalized", &a->normalized},
                 {"special", &a->special}};
    for (size_t b = 0; b < TR_COUNT(bools); b++) {
        const json_t *value = json_object_get(item, bools[b].name);
        if (!json_is_boolean(value))
            return bad(err, i, bools[b].name, "true or false", value);
        *bools[b].value = json_is_true(value);
    }
    if (json_object_size(item) != TR_COUNT(bools) + 2)
        return bad(err, i, "", "id, content and five flags", item);
    struct str text = json_str(content);
    if (text.len == 0 || text.len > TOKENIZER_TOKEN_BYTES_MAX)
        return bad(err, i, "content", "a text of 1 to 1024 bytes", content);
    for (size_t j = 0; j < i; j++)
        if (str_eq(t->added[j].content, text))
            return bad(err, i, "content", "a text that no other added token has", content);
    int32_t due = id_due(t, text, n_vocab);
    if (!json_is_integer(id) || json_integer_value(id) != due) {
        char want[64];
        snprintf(want, sizeof want, "%d, the id that its place gives", due);
        return bad(err, i, "id", want, id);
    }
    a->id = due;
    a->content = (struct str){t->blob + tokenizer_blob_add(t, text), text.len};
    a->pattern = a->content;
    if (due < t->n_tokens && t->tokens[due].flags) {
        t->tokens[due].flags |= (uint8_t)(a->special ? TOKEN_SPECIAL : 0);
        return E_OK;
    }
    char key[4096];
    size_t len = text.len;
    bool mapped = t->byte_level && tokenizer_unmap(text, key, &len);
    uint32_t at = tokenizer_blob_add(t, mapped ? (struct str){key, len} : text);
    t->tokens[due] = (struct token){at, at, (uint16_t)len, (uint16_t)len,
                                    (uint8_t)(TOKEN_PRESENT | (a->special ? TOKEN_SPECIAL : 0))};
    t->n_tokens = TR_MAX(t->n_tokens, due + 1);
    return E_OK;
}

int added_read(struct tokenizer *t, const json_t *doc, struct err *err)
{
    const json_t *list = json_object_get(doc, "added_tokens");
    size_t n = json_array_size(list), n_vocab = 0;
    if (!json_is_array(list) || n > TOKENIZER_ADDED_MAX)
        return tokenizer_bad_field(err, "added_tokens", "an array of at most 16384", list);
    for (int32_t id = 0; id < t->n_tokens; id++)
        n_vocab += t->tokens[id].flags != 0;
    t->added = mem_alloc(n, sizeof *t->added);
    if (!t->added)
        return err_set(err, E_FATAL, "tokenizer.json: no memory for %zu added tokens", n);
    for (size_t i = 0; i < n; i++) {
        int rc = read_one(t, json_array_get(list, i), i, n_vocab, err);
        if (rc != E_OK)
            return rc;
        t->n_added++;
    }
    return E_OK;
}

/* ---- the trie ---- */

static unsigned class_before(struct str text, size_t at, size_t *len)
{
    const unsigned char *p = (const unsigned char *)text.ptr;
    size_t begin = at - 1, step;
    while ((p[begin] & 0xC0) == 0x80)
        begin--;
    *len = at - begin;
    return unicode_class(utf8_get(p + begin, &step));
}

static unsigned class_at(struct str text, size_t at, size_t *len)
{
    return unicode_class(utf8_get((const unsigned char *)text.ptr + at, len));
}

static void trie_insert(struct added_set *set, struct str pattern, int32_t token)
{
    uint32_t at = 0;
    for (size_t i = 0; i < pattern.len; i++) {
        unsigned char byte = (unsigned char)pattern.ptr[i];
        uint32_t child = at == 0 ? set->first[byte] : set->nodes[at].child;
        while (at != 0 && child != 0 && set->nodes[child].byte != byte)
            child = set->nodes[child].next;
        if (child == 0) {
            child = set->n_nodes++;
            set->nodes[child] = (struct added_node){0, at ? set->nodes[at].child : 0, -1, byte};
            if (at == 0)
                set->first[byte] = child;
            else
                set->nodes[at].child = child;
        }
        at = child;
    }
    if (set->nodes[at].token < 0) /* equal patterns after normalization: the first one counts */
        set->nodes[at].token = token;
}

static int trie_build(struct tokenizer *t, struct added_set *set, bool normalized, struct err *err)
{
    size_t bytes = 1;
    for (int32_t i = 0; i < t->n_added; i++)
        bytes += t->added[i].pattern.len;
    set->nodes = mem_alloc(bytes, sizeof *set->nodes);
    if (!set->nodes)
        return err_set(err, E_FATAL, "tokenizer.json: no memory for %zu added bytes", bytes);
    set->nodes[0].token = -1;
    set->n_nodes = 1;
    for (int32_t i = 0; i < t->n_added; i++)
        if (t->added[i].normalized == normalized)
            trie_insert(set, t->added[i].pattern, i);
    int n_first = 0;
    set->only = -1;
    for (int byte = 0; byte < 256; byte++)
        if (set->first[byte] != 0 && n_first++ == 0)
            set->only = byte;
    if (n_first != 1)
        set->only = -1;
    return E_OK;
}

/* What a token that is looked for in normalized text looks like there. */
static int normalize_pattern(struct tokenizer *t, struct added_token *a, struct err *err)
{
    char text[(NFC_GROWTH_MAX + 1) * TOKENIZER_TOKEN_BYTES_MAX];
    size_t used = 0;
    if (t->nfc) {
        struct nfc_buf buf = {0};
        int64_t n = nfc_normalize(a->content, text, &buf, NULL, 0);
        nfc_buf_close(&buf);
        if (n < 0)
            return err_set(err, E_FATAL, "tokenizer.json: no memory for added tokens");
        used = (size_t)n;
    } else if (t->metaspace) {
        memcpy(text, "\u2581", 3);
        used = 3;
        for (size_t i = 0; i < a->content.len; i++) {
            bool space = a->content.ptr[i] == ' ';
            memcpy(text + used, space ? "\u2581" : a->content.ptr + i, space ? 3 : 1);
            used += space ? 3 : 1;
        }
    } else {
        return E_OK;
    }
    if (used > TOKENIZER_TOKEN_BYTES_MAX)
        return err_set(
            err, E_FATAL,
            "tokenizer.json: added_tokens: id %d: want at most 1024 bytes, normalized it "
            "has %zu",
            a->id, used);
    a->pattern = (struct str){t->blob + tokenizer_blob_add(t, (struct str){text, used}), used};
    return E_OK;
}

/* A match that lies in the spaces which an rstrip token took before it: Hugging Face's result
 * depends on the rest of the text there, or is a panic. No published tokenizer has both. */
static int check_spaces(const struct tokenizer *t, struct err *err)
{
    int32_t rstrip = -1, space = -1;
    size_t len;
    for (int32_t i = 0; i < t->n_added; i++) {
        bool begins = class_at(t->added[i].pattern, 0, &len) & UNICODE_SPACE;
        rstrip = t->added[i].rstrip ? i : rstrip;
        space = begins ? i : space;
    }
    if (rstrip < 0 || space < 0)
        return E_OK;
    return err_set(
        err, E_FATAL,
        "tokenizer.json: added_tokens[%d].rstrip: want false, as added_tokens[%d] begins "
        "with white space, file has true",
        rstrip, space);
}

int added_build(struct tokenizer *t, struct err *err)
{
    for (int32_t i = 0; i < t->n_added; i++) {
        int rc = t->added[i].normalized ? normalize_pattern(t, &t->added[i], err) : E_OK;
        if (rc != E_OK)
            return rc;
    }
    int rc = check_spaces(t, err);
    if (rc == E_OK)
        rc = trie_build(t, &t->raw, false, err);
    return rc == E_OK ? trie_build(t, &t->normalized, true, err) : rc;
}

/* The longest token at p[0..n); -1 when there is none. */
static int32_t longest_at(const struct added_set *set, const unsigned char *p, size_t n,
                          size_t *len)
{
    int32_t found = -1;
    uint32_t at = set->first[p[0]];
    for (size_t i = 1; at != 0; i++) {
        if (set->nodes[at].token >= 0) {
            found = set->nodes[at].token;
            *len = i;
        }
        if (i == n)
            break;
        at = set->nodes[at].child;
        while (at != 0 && set->nodes[at].byte != p[i])
            at = set->nodes[at].next;
    }
    return found;
}

static bool stands_alone(struct str text, size_t begin, size_t end)
{
    size_t len;
    return (begin == 0 || !(class_before(text, begin, &len) & UNICODE_WORD)) &&
           (end == text.len || !(class_at(text, end, &len) & UNICODE_WORD));
}

bool added_next(const struct tokenizer *t, const struct added_set *set, struct str text,
                size_t from, size_t to, size_t floor, struct added_match *match)
{
    const unsigned char *p = (const unsigned char *)text.ptr;
    for (size_t at = from; at < to && set->n_nodes > 1;) {
        if (set->only >= 0) {
            const unsigned char *hit = memchr(p + at, set->only, to - at);
            if (!hit)
                return false;
            at = (size_t)(hit - p);
        } else if (set->first[p[at]] == 0) {
            at++;
            continue;
        }
        size_t len = 0, step;
        int32_t token = longest_at(set, p + at, to - at, &len);
        if (token < 0) {
            at++;
            continue;
        }
        const struct added_token *a = &t->added[token];
        *match = (struct added_match){at, at + len, at + len, a->id};
        at += len;
        if (a->single_word && !stands_alone(text, match->begin, match->end))
            continue;
        if (a->lstrip)
            while (match->begin > floor && class_before(text, match->begin, &step) & UNICODE_SPACE)
                match->begin -= step;
        if (a->rstrip)
            while (match->end < text.len && class_at(text, match->end, &step) & UNICODE_SPACE)
                match->end += step;
        return true;
    }
    return false;
}
