/* tokenizer_config: normalizer, pre_tokenizer, decoder, post_processor and the model's switches,
 * and tokenizer_config.json. Known shapes are recognised field by field; every other one is refused
 * with the field's name and value: a tokenizer that is nearly right gives wrong answers silently.
 */
#include "engine/tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>

int tokenizer_bad_field(struct err *err, const char *field, const char *want, const json_t *have)
{
    char *text = have ? json_dumps(have, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    err_set(err, E_FATAL, "tokenizer.json: %s: want %s, file has %.80s", field, want,
            text ? text : json_type_name(have));
    free(text);
    return E_FATAL;
}

static bool is_type(const json_t *item, const char *type)
{
    return str_eq(json_str(json_object_get(item, "type")), str_of(type));
}

static bool is_text(const json_t *item, const char *key, const char *text)
{
    return str_eq(json_str(json_object_get(item, key)), str_of(text));
}

static bool is_flag(const json_t *item, const char *key, bool value)
{
    const json_t *have = json_object_get(item, key);
    return json_is_boolean(have) && json_is_true(have) == value;
}

/* Every key of the object is one of those listed, NULL-terminated. */
static bool only_keys(const json_t *item, const char *const *keys)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)item, key, value)
    {
        size_t i = 0;
        while (keys[i] && strcmp(keys[i], key) != 0)
            i++;
        if (!keys[i])
            return false;
    }
    return true;
}
#define ONLY(item, ...) only_keys(item, (const char *const[]){"type", __VA_ARGS__, NULL})

/* The members of a Sequence under `key`, or the item alone: out[0..3]. Returns the count, 0 for
 * null, -1 for more than fit or no object. */
static int flatten(const json_t *item, const char *key, const json_t *out[4])
{
    if (!item || json_is_null(item))
        return 0;
    if (!is_type(item, "Sequence")) {
        out[0] = item;
        return json_is_object(item) ? 1 : -1;
    }
    const json_t *list = json_object_get(item, key);
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n > 4 || !ONLY(item, key))
        return -1;
    for (size_t i = 0; i < n; i++)
        out[i] = json_array_get(list, i);
    return (int)n;
}

/* ---- normalizer ---- */

static bool is_replace(const json_t *item, const char *from, const char *to)
{
    const json_t *pattern = json_object_get(item, "pattern");
    return is_type(item, "Replace") && ONLY(item, "pattern", "content") &&
           json_object_size(pattern) == 1 && is_text(pattern, "String", from) &&
           is_text(item, "content", to);
}

static int read_normalizer(struct tokenizer *t, const json_t *item, struct err *err)
{
    const json_t *part[4];
    int n = flatten(item, "normalizers", part);
    if (n == 0)
        return E_OK;
    if (n == 1 && is_type(part[0], "NFC") && json_object_size(part[0]) == 1) {
        t->nfc = true;
        return E_OK;
    }
    if (n == 2 && is_type(part[0], "Prepend") && is_text(part[0], "prepend", "\u2581") &&
        ONLY(part[0], "prepend") && is_replace(part[1], " ", "\u2581")) {
        t->metaspace = true;
        return E_OK;
    }
    return tokenizer_bad_field(err, "normalizer", "none, NFC, or Prepend and Replace of U+2581",
                               item);
}

/* ---- pre_tokenizer ---- */

static bool is_byte_level(const json_t *item)
{
    return is_type(item, "ByteLevel") &&
           ONLY(item, "add_prefix_space", "trim_offsets", "use_regex");
}

/* The expression of a Split that leaves matches and gaps as pieces, or NULL. */
static const char *split_pattern(const json_t *item)
{
    const json_t *pattern = json_object_get(item, "pattern");
    bool known = is_type(item, "Split") && ONLY(item, "pattern", "behavior", "invert") &&
                 is_text(item, "behavior", "Isolated") && is_flag(item, "invert", false) &&
                 json_object_size(pattern) == 1;
    return known ? json_string_value(json_object_get(pattern, "Regex")) : NULL;
}

static int read_pre_tokenizer(struct tokenizer *t, const json_t *item, struct err *err)
{
    const char *want = "null, ByteLevel, or the Qwen2, Llama 3 or DeepSeek-V3 Split and ByteLevel";
    const char *patterns[4];
    const json_t *part[4];
    int n = flatten(item, "pretokenizers", part);
    if (n == 0) {
        t->split = SPLIT_WORDS;
        return E_OK;
    }
    if (n < 0 || !is_byte_level(part[n - 1]) || !is_flag(part[n - 1], "add_prefix_space", false))
        return tokenizer_bad_field(err, "pre_tokenizer", want, item);
    t->byte_level = true;
    const json_t *use_regex = json_object_get(part[n - 1], "use_regex");
    if (n == 1) {
        if (use_regex && !json_is_boolean(use_regex))
            return tokenizer_bad_field(err, "pre_tokenizer.use_regex", "true or false", use_regex);
        t->split = json_is_false(use_regex) ? SPLIT_NONE : SPLIT_GPT2;
        return E_OK;
    }
    for (int i = 0; i < n - 1; i++)
        if (!(patterns[i] = split_pattern(part[i])))
            return tokenizer_bad_field(err, "pre_tokenizer", want, part[i]);
    t->split = split_find(patterns, (size_t)n - 1);
    if (t->split == SPLIT_NONE || !json_is_false(use_regex))
        return tokenizer_bad_field(err, "pre_tokenizer", want, part[0]);
    return E_OK;
}

/* ---- decoder ---- */

static int read_decoder(const struct tokenizer *t, const json_t *item, struct err *err)
{
    const json_t *part[4];
    int n = flatten(item, "decoders", part);
    if (t->byte_level) {
        if (n == 1 && is_byte_level(part[0]))
            return E_OK;
        return tokenizer_bad_field(err, "decoder", "ByteLevel, as the pre_tokenizer", item);
    }
    const json_t *strip = n == 4 ? part[3] : NULL;
    if (n == 4 && is_replace(part[0], "\u2581", " ") && is_type(part[1], "ByteFallback") &&
        is_type(part[2], "Fuse") && is_type(strip, "Strip") &&
        ONLY(strip, "content", "start", "stop") && is_text(strip, "content", " ") &&
        json_integer_value(json_object_get(strip, "start")) == 1 &&
        json_is_integer(json_object_get(strip, "stop")) &&
        json_integer_value(json_object_get(strip, "stop")) == 0)
        return E_OK;
    return tokenizer_bad_field(err, "decoder", "Replace, ByteFallback, Fuse, Strip(\" \", 1, 0)",
                               item);
}

/* ---- model ---- */

static int read_model(struct tokenizer *t, const json_t *model, struct err *err)
{
    if (!is_type(model, "BPE"))
        return tokenizer_bad_field(err, "model.type", "\"BPE\"", json_object_get(model, "type"));
    if (!ONLY(model, "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"))
        return tokenizer_bad_field(err, "model", "the fields of BPE and no others", model);
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout))
        return tokenizer_bad_field(err, "model.dropout", "null", dropout);
    const char *affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < TR_COUNT(affixes); i++) {
        const json_t *affix = json_object_get(model, affixes[i]);
        if (affix && !json_is_null(affix) && !(json_is_string(affix) && !json_str(affix).len))
            return tokenizer_bad_field(err, affixes[i], "null or \"\"", affix);
    }
    const json_t *fallback = json_object_get(model, "byte_fallback");
    if (!t->byte_level && !json_is_true(fallback))
        return tokenizer_bad_field(err, "model.byte_fallback", "true where there is no ByteLevel",
                                   fallback);
    const json_t *whole = json_object_get(model, "ignore_merges");
    if (whole && !json_is_boolean(whole))
        return tokenizer_bad_field(err, "model.ignore_merges", "true or false", whole);
    t->ignore_merges = json_is_true(whole);
    return E_OK;
}

int tokenizer_read_pipeline(struct tokenizer *t, const json_t *doc, struct err *err)
{
    static const char *const none[] = {"truncation", "padding"};
    if (!only_keys(doc, (const char *const[]){"version", "truncation", "padding", "added_tokens",
                                              "normalizer", "pre_tokenizer", "post_processor",
                                              "decoder", "model", NULL}))
        return tokenizer_bad_field(err, "top level", "the fields of version 1.0 and no others",
                                   doc);
    if (!is_text(doc, "version", "1.0"))
        return tokenizer_bad_field(err, "version", "\"1.0\"", json_object_get(doc, "version"));
    for (size_t i = 0; i < TR_COUNT(none); i++) {
        const json_t *value = json_object_get(doc, none[i]);
        if (value && !json_is_null(value))
            return tokenizer_bad_field(err, none[i], "null: a job's text is never cut", value);
    }
    int rc = read_pre_tokenizer(t, json_object_get(doc, "pre_tokenizer"), err);
    if (rc == E_OK)
        rc = read_normalizer(t, json_object_get(doc, "normalizer"), err);
    if (rc == E_OK)
        rc = read_decoder(t, json_object_get(doc, "decoder"), err);
    if (rc == E_OK)
        rc = read_model(t, json_object_get(doc, "model"), err);
    if (rc == E_OK && t->metaspace && t->byte_level)
        rc = tokenizer_bad_field(err, "normalizer", "none or NFC in front of ByteLevel",
                                 json_object_get(doc, "normalizer"));
    /* Without the normalizer's U+2581 there are no words to cut at. */
    if (!t->metaspace && t->split == SPLIT_WORDS)
        t->split = SPLIT_NONE;
    /* Without a pre_tokenizer the whole text is the word that ignore_merges looks up. */
    if (t->ignore_merges && t->split == SPLIT_WORDS)
        t->split = SPLIT_NONE;
    return rc;
}

/* ---- post_processor ---- */

/* The ids of one special token of a template. */
static int template_ids(struct tokenizer *t, const json_t *item, const json_t *name, bool behind,
                        struct err *err)
{
    const char *key = json_string_value(name);
    const json_t *token =
        key ? json_object_get(json_object_get(item, "special_tokens"), key) : NULL;
    const json_t *ids = json_object_get(token, "ids");
    int *n = behind ? &t->n_after : &t->n_before;
    int32_t *out = behind ? t->after : t->before;
    if (json_array_size(ids) == 0)
        return tokenizer_bad_field(err, "post_processor.special_tokens", "an entry with ids",
                                   token);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= t->n_tokens || !t->tokens[value].flags)
            return tokenizer_bad_field(err, "post_processor.special_tokens", "ids of tokens",
                                       token);
        if (*n == TOKENIZER_TEMPLATE_MAX)
            return tokenizer_bad_field(err, "post_processor.single", "at most 8 ids", token);
        out[(*n)++] = (int32_t)value;
    }
    return E_OK;
}

static int read_template(struct tokenizer *t, const json_t *item, struct err *err)
{
    const json_t *single = json_object_get(item, "single");
    int n_texts = 0;
    if (!ONLY(item, "single", "pair", "special_tokens"))
        return tokenizer_bad_field(err, "post_processor", "single, pair, special_tokens", item);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *part = json_array_get(single, i);
        const json_t *special = json_object_get(part, "SpecialToken");
        if (json_object_size(part) == 1 && is_text(json_object_get(part, "Sequence"), "id", "A")) {
            n_texts++;
        } else if (json_object_size(part) == 1 && special) {
            int rc = template_ids(t, item, json_object_get(special, "id"), n_texts > 0, err);
            if (rc != E_OK)
                return rc;
        } else {
            n_texts = 2;
        }
    }
    if (n_texts != 1)
        return tokenizer_bad_field(err, "post_processor.single",
                                   "special tokens around one Sequence A", single);
    t->has_template = true;
    return E_OK;
}

int tokenizer_read_post(struct tokenizer *t, const json_t *doc, struct err *err)
{
    const json_t *part[4], *item = json_object_get(doc, "post_processor");
    int n = flatten(item, "processors", part);
    for (int i = 0; i < n; i++) {
        if (is_type(part[i], "TemplateProcessing") && !t->has_template) {
            int rc = read_template(t, part[i], err);
            if (rc != E_OK)
                return rc;
        } else if (!is_byte_level(part[i])) {
            n = -1;
        }
    }
    if (n < 0)
        return tokenizer_bad_field(err, "post_processor", "null, ByteLevel or TemplateProcessing",
                                   item);
    return E_OK;
}

/* ---- tokenizer_config.json ---- */

static int bad_config(struct err *err, const char *field, const char *want, const json_t *have)
{
    char *text = have ? json_dumps(have, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    err_set(err, E_FATAL, "tokenizer_config.json: %s: want %s, file has %.80s", field, want,
            text ? text : json_type_name(have));
    free(text);
    return E_FATAL;
}

static int read_named(struct tokenizer *t, const json_t *config, size_t i, const char *name,
                      struct err *err)
{
    const json_t *value = json_object_get(config, name);
    if (json_is_object(value))
        value = json_object_get(value, "content");
    if (!value || json_is_null(value))
        return E_OK;
    struct str text = json_str(value);
    if (!text.ptr || text.len > TOKENIZER_TOKEN_BYTES_MAX)
        return bad_config(err, name, "a text, an object with content, or null", value);
    t->named[i] = (struct str){t->blob + tokenizer_blob_add(t, text), text.len};
    return E_OK;
}

static int read_bool(const json_t *config, const char *name, bool *out, struct err *err)
{
    const json_t *value = json_object_get(config, name);
    *out = json_is_true(value);
    if (!value || json_is_null(value) || json_is_boolean(value))
        return E_OK;
    return bad_config(err, name, "true, false or null", value);
}

/* Transformers adds what this map has beyond tokenizer.json, so the two must say the same. */
static int check_added(const struct tokenizer *t, const json_t *map, struct err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)map, key, value)
    {
        char *end;
        long id = strtol(key, &end, 10);
        struct str content = json_str(json_object_get(value, "content"));
        if (!content.ptr || *end || id < 0 || id >= TOKENIZER_IDS_MAX ||
            tokenizer_token_id(t, content) != (int32_t)id) {
            char field[80], want[80];
            snprintf(field, sizeof field, "added_tokens_decoder.%.40s", key);
            snprintf(want, sizeof want, "the token that tokenizer.json has under this id");
            return bad_config(err, field, want, json_object_get(value, "content"));
        }
    }
    return E_OK;
}

int tokenizer_read_config(struct tokenizer *t, const json_t *config, struct err *err)
{
    static const char *const names[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    if (!json_is_object(config))
        return bad_config(err, "top level", "an object", config);
    int rc = read_bool(config, "add_bos_token", &t->add_bos, err);
    if (rc == E_OK)
        rc = read_bool(config, "add_eos_token", &t->add_eos, err);
    for (size_t i = 0; i < TR_COUNT(names) && rc == E_OK; i++)
        rc = read_named(t, config, i, names[i], err);
    if (rc == E_OK)
        rc = check_added(t, json_object_get(config, "added_tokens_decoder"), err);
    if (rc != E_OK)
        return rc;
    int32_t ids[2];
    for (size_t i = 0; i < 2; i++) {
        ids[i] = t->named[i].ptr ? tokenizer_token_id(t, t->named[i]) : -1;
        if (t->named[i].ptr && ids[i] < 0)
            return bad_config(err, names[i], "a token of tokenizer.json",
                              json_object_get(config, names[i]));
    }
    t->bos_id = ids[0] >= 0 ? ids[0] : t->bos_id;
    t->eos_id = ids[1];
    if (!t->has_template && t->add_bos && t->bos_id < 0)
        return bad_config(err, "add_bos_token", "a bos_token with it",
                          json_object_get(config, names[0]));
    if (!t->has_template && t->add_eos && t->eos_id < 0)
        return bad_config(err, "add_eos_token", "an eos_token with it",
                          json_object_get(config, names[1]));
    return E_OK;
}
