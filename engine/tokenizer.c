/* tokenizer: see tokenizer.h. Opening, and the way of a text through added tokens, normalizer,
 * split and BPE; each of these has a file of its own. */
#include "engine/tokenizer_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/plain_file.h"

/* ---- open ---- */

/* Sets what decoding writes for a token, given its string in the file. */
static void set_text(struct tokenizer *t, int32_t id, struct str string)
{
    struct token *token = &t->tokens[id];
    char bytes[TOKENIZER_TOKEN_BYTES_MAX], close;
    unsigned byte;
    size_t len = 0;
    if (t->byte_level)
        tokenizer_unmap(string, bytes, &len);
    for (size_t i = 0; i < string.len && !t->byte_level;) {
        bool mark = string.len - i >= 3 && memcmp(string.ptr + i, "\u2581", 3) == 0;
        bytes[len++] = mark ? ' ' : string.ptr[i];
        i += mark ? 3 : 1;
    }
    token->flags &= (uint8_t)~TOKEN_BYTE;
    if (!t->byte_level && len == 6) {
        char copy[7] = {0};
        memcpy(copy, bytes, 6);
        if (sscanf(copy, "<0x%2x%c", &byte, &close) == 2 && close == '>') {
            token->flags |= TOKEN_BYTE;
            bytes[0] = (char)byte;
            len = 1;
        }
    }
    token->text = tokenizer_blob_add(t, (struct str){bytes, len});
    token->text_len = (uint16_t)len;
}

/* Hugging Face knows a token with `normalized` by its normalized string: that is what it decodes
 * to, and what decides whether it is special. */
static void finish_added(struct tokenizer *t)
{
    for (int32_t i = 0; i < t->n_added; i++) {
        const struct added_token *a = &t->added[i];
        if (str_eq(a->pattern, a->content))
            continue;
        bool special = false;
        for (int32_t j = 0; j < t->n_added && !special; j++)
            special = t->added[j].special && str_eq(t->added[j].content, a->pattern);
        set_text(t, a->id, a->pattern);
        t->tokens[a->id].flags &= (uint8_t)~TOKEN_SPECIAL;
        t->tokens[a->id].flags |= special ? TOKEN_SPECIAL : 0;
    }
}

/* Texts of all tokens, and the symbol of each byte. */
static int finish_tokens(struct tokenizer *t, struct err *err)
{
    memset(t->byte_id, 0xFF, sizeof t->byte_id);
    for (int32_t id = 0; id < t->n_tokens && !t->byte_level; id++)
        if (t->tokens[id].flags)
            set_text(t, id, tokenizer_key(t, id));
    finish_added(t);
    for (int byte = 0; byte < 256; byte++) {
        char name[7], as_byte = (char)byte;
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        struct str key = t->byte_level ? (struct str){&as_byte, 1} : (struct str){name, 6};
        t->byte_id[byte] = tokenizer_find(t, key, false);
        if (t->byte_id[byte] < 0)
            return err_set(err, E_FATAL,
                           "tokenizer.json: model.vocab: want a symbol for each of the 256 bytes, "
                           "byte 0x%02X has none",
                           (unsigned)byte);
    }
    return E_OK;
}

static int parse_rest(json_t **doc, struct str json, struct tokenizer_spans *spans, struct err *err)
{
    char *rest = mem_alloc(json.len, 1);
    if (!rest)
        return err_set(err, E_FATAL, "tokenizer.json: no memory for %zu bytes", json.len);
    struct err why = {0};
    size_t len = tokenizer_json_cut(json, spans, rest);
    int rc = json_parse(doc, (struct str){rest, len}, "tokenizer.json without vocab and merges",
                        &json_limits_file, &why);
    mem_free(rest);
    if (rc != E_OK)
        return err_set(err, E_FATAL, "%s", why.msg);
    if (spans->vocab.end == 0 || spans->merges.end == 0)
        return err_set(err, E_FATAL, "tokenizer.json: model.%s: want %s, file has none",
                       spans->vocab.end ? "merges" : "vocab",
                       spans->vocab.end ? "an array" : "an object");
    return E_OK;
}

static int parse_config(struct tokenizer *t, struct str text, struct err *err)
{
    json_t *config = NULL;
    struct err why = {0};
    if (!text.ptr)
        return E_OK;
    if (json_parse(&config, text, "tokenizer_config.json", &json_limits_file, &why) != E_OK)
        return err_set(err, E_FATAL, "%s", why.msg);
    int rc = tokenizer_read_config(t, config, err);
    json_decref(config);
    return rc;
}

int tokenizer_parse(struct tokenizer **out, struct str json, struct str config, struct err *err)
{
    json_t *doc = NULL;
    struct tokenizer_spans spans;
    struct tokenizer *t = mem_alloc(1, sizeof *t);
    int rc = t ? E_OK : err_set(err, E_FATAL, "tokenizer.json: no memory");
    if (rc == E_OK && json.len > json_limits_file.bytes_max)
        rc = err_set(err, E_FATAL, "tokenizer.json: %zu bytes, the limit is %zu", json.len,
                     json_limits_file.bytes_max);
    if (rc != E_OK || (rc = parse_rest(&doc, json, &spans, err)) != E_OK)
        goto out;
    t->bos_id = t->eos_id = -1;
    if ((rc = tokenizer_read_pipeline(t, doc, err)) != E_OK)
        goto out;
    size_t vocab = spans.vocab.end - spans.vocab.begin;
    /* keys, texts of SentencePiece tokens, and each added token as content, pattern, key, text */
    t->blob_cap = 2 * vocab + 12 * (json.len - vocab + config.len) + 256;
    if (spans.merges.end > spans.merges.begin)
        t->blob_cap -= 12 * (spans.merges.end - spans.merges.begin);
    t->blob = mem_alloc(t->blob_cap, 1);
    if (!t->blob) {
        rc = err_set(err, E_FATAL, "tokenizer.json: no memory for %zu bytes", t->blob_cap);
        goto out;
    }
    rc = tokenizer_read_vocab(t, json, &spans.vocab, TOKENIZER_ADDED_MAX, err);
    if (rc == E_OK)
        rc = tokenizer_read_merges(t, json, &spans.merges, err);
    if (rc == E_OK)
        rc = added_read(t, doc, err);
    if (rc == E_OK)
        rc = added_build(t, err);
    if (rc == E_OK)
        rc = finish_tokens(t, err);
    if (rc == E_OK)
        rc = bpe_build(t, err);
    if (rc == E_OK)
        rc = tokenizer_read_post(t, doc, err);
    if (rc != E_OK)
        goto out;
    t->bos_id = t->n_before == 1 ? t->before[0] : -1;
    bpe_mark_whole(t);
    rc = parse_config(t, config, err);
out:
    json_decref(doc);
    if (rc == E_OK)
        *out = t;
    else
        tokenizer_close(t);
    return rc;
}

/* The whole file in out->ptr (mem_free); an absent file is {NULL,0} where it may be absent. */
static int read_file(struct str *out, const char *dir, const char *name, bool may_miss,
                     struct err *err)
{
    char path[4096], *text = NULL;
    struct stat st;
    size_t used = 0;
    int rc = E_OK;
    *out = (struct str){NULL, 0};
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return err_set(err, E_FATAL, "%.60s...: path too long", dir);
    /* a FIFO is refused below, not waited for */
    int fd = plain_file_open(AT_FDCWD, path);
    if (fd < 0)
        return may_miss && errno == ENOENT ? E_OK
                                           : err_errno(err, E_FATAL, "%s: cannot open", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) ||
        (uint64_t)st.st_size > json_limits_file.bytes_max) {
        rc = err_set(err, E_FATAL, "%s: want a regular file of at most %zu bytes", path,
                     json_limits_file.bytes_max);
        goto out;
    }
    size_t size = (size_t)st.st_size;
    text = mem_alloc(size, 1);
    while (text && used < size) {
        ssize_t n = read(fd, text + used, size - used);
        if (n == 0 || (n < 0 && errno != EINTR))
            break;
        used += n > 0 ? (size_t)n : 0;
    }
    if (!text || used < size) {
        rc = err_set(err, E_FATAL, "%s: read %zu of %zu bytes", path, used, size);
        goto out;
    }
    *out = (struct str){text, size};
    text = NULL;
out:
    mem_free(text);
    close(fd);
    return rc;
}

int tokenizer_open(struct tokenizer **out, const char *model_dir, struct err *err)
{
    struct str json = {NULL, 0}, config = {NULL, 0};
    int rc = read_file(&json, model_dir, "tokenizer.json", false, err);
    if (rc == E_OK)
        rc = read_file(&config, model_dir, "tokenizer_config.json", true, err);
    if (rc == E_OK)
        rc = tokenizer_parse(out, json, config, err);
    mem_free((void *)json.ptr);
    mem_free((void *)config.ptr);
    return rc;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    mem_free(t->blob);
    mem_free(t->tokens);
    mem_free(t->slots);
    mem_free(t->pairs);
    mem_free(t->byte_pair);
    mem_free(t->added);
    mem_free(t->raw.nodes);
    mem_free(t->normalized.nodes);
    mem_free(t);
}

/* ---- what an open tokenizer knows ---- */

int32_t tokenizer_token_id(const struct tokenizer *t, struct str text)
{
    for (int32_t i = 0; i < t->n_added; i++)
        if (str_eq(t->added[i].content, text))
            return t->added[i].id;
    if (text.len == 0 || text.len > TOKENIZER_TOKEN_BYTES_MAX)
        return -1;
    int32_t id = tokenizer_find(t, text, false);
    return id >= 0 ? id : tokenizer_find(t, text, true);
}

int32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n_tokens;
}

int32_t tokenizer_bos_id(const struct tokenizer *t)
{
    return t->bos_id;
}

int32_t tokenizer_eos_id(const struct tokenizer *t)
{
    return t->eos_id;
}

struct str tokenizer_named_token(const struct tokenizer *t, const char *name)
{
    static const char *const names[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    for (size_t i = 0; i < TR_COUNT(names); i++)
        if (strcmp(name, names[i]) == 0)
            return t->named[i];
    return (struct str){NULL, 0};
}

/* ---- scratch ---- */

void *grow_reserve(struct grow *g, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes))
        return NULL;
    if (bytes <= g->cap && g->ptr)
        return g->ptr;
    size_t cap = TR_MAX(bytes, TR_MAX(2 * g->cap, 4096));
    mem_free(g->ptr);
    g->ptr = mem_alloc(cap, 1);
    g->cap = g->ptr ? cap : 0;
    return g->ptr;
}

struct tokenizer_scratch *tokenizer_scratch_open(const struct tokenizer *t)
{
    (void)t;
    struct tokenizer_scratch *s = mem_alloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->words = mem_alloc((size_t)1 << WORD_CACHE_BITS, sizeof *s->words);
    if (!s->words) {
        mem_free(s);
        return NULL;
    }
    return s;
}

void tokenizer_scratch_close(struct tokenizer_scratch *s)
{
    if (!s)
        return;
    struct grow *all[] = {&s->joined, &s->normal, &s->ids,   &s->links,
                          &s->heap,   &s->ranges, &s->inner, &s->marks};
    for (size_t i = 0; i < TR_COUNT(all); i++)
        mem_free(all[i]->ptr);
    nfc_buf_close(&s->nfc);
    mem_free(s->words);
    mem_free(s);
}
