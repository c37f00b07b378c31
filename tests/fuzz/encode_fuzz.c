/* Any bytes as text for small tokenizers of each kind (tests/fuzz/encode_fuzz.json.*): byte 0
 * chooses the tokenizer and the flags, byte 1 cuts the text into pieces. Broken UTF-8 is refused;
 * else decoding gives the normalized text back, and pieces without plain text give the ids of the
 * whole. */
#include "engine/tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>

enum { KINDS = 4, IDS_CAP = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Every byte's symbol, some merges, and the given normalizer and pre_tokenizer. */
static char *make_json(const char *normalizer, const char *pre_tokenizer)
{
    char *json = NULL;
    size_t len;
    FILE *f = open_memstream(&json, &len);
    CHECK(f);
    fprintf(
        f,
        "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":260,\"content\":\"<t>\",\"single_word\":"
        "false,\"lstrip\":true,\"rstrip\":true,\"normalized\":false,\"special\":true},{\"id\":261,"
        "\"content\":\"<n\u0301>\",\"single_word\":true,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":true,\"special\":false}],\"normalizer\":%s,\"pre_tokenizer\":%s,"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{",
        normalizer, pre_tokenizer);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; byte++) {
        bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        char c[5] = {0};
        utf8_put(c, visible ? byte : next);
        next += !visible;
        fprintf(f, "\"%s%s\":%u,", byte == '"' || byte == '\\' ? "\\" : "", c, byte);
    }
    fprintf(f, "\"ab\":256,\"abc\":257,\"\u0120ab\":258,\"aa\":259},\"merges\":[\"a b\",\"ab c\","
               "\"\u0120 ab\",\"a a\"]}}");
    CHECK(fclose(f) == 0);
    return json;
}

static struct tokenizer *kinds[KINDS];
static struct tokenizer_scratch *scratches[KINDS]; /* kept: a warm word cache must not change ids */

static void open_kinds(void)
{
    static const char *const pre[KINDS] = {
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+",
        NULL, NULL};
    static const char deepseek[] =
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}\"},\"behavior\":\"Isolated\","
        "\"invert\":false},{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[一-龥\u3040-ゟ゠-ヿ]+\"},"
        "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|"
        "[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|"
        "\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false}";
    for (size_t k = 0; k < KINDS; k++) {
        char text[4096];
        if (pre[k])
            snprintf(text, sizeof text,
                     "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                     "{\"Regex\":\"%s\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":"
                     "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}",
                     pre[k]);
        else if (k == 2)
            snprintf(text, sizeof text,
                     "{\"type\":\"Sequence\",\"pretokenizers\":[%s,{\"type\":\"ByteLevel\","
                     "\"add_prefix_space\":false,\"use_regex\":false}]}",
                     deepseek);
        else
            snprintf(text, sizeof text,
                     "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}");
        struct err err = {0};
        char *json = make_json(k == 0 ? "{\"type\":\"NFC\"}" : "null", text);
        if (tokenizer_parse(&kinds[k], str_of(json), (struct str){NULL, 0}, &err) != E_OK) {
            fprintf(stderr, "%s\n", err.msg);
            abort();
        }
        free(json);
        scratches[k] = tokenizer_scratch_open(kinds[k]);
        CHECK(scratches[k]);
    }
}

static void check_text(const struct tokenizer *t, struct tokenizer_scratch *s, struct str text,
                       size_t cut)
{
    static int32_t ids[IDS_CAP], pieces_ids[IDS_CAP];
    static char back[1 << 18];
    struct err err = {0};
    unsigned char lead_max;
    int64_t n = tokenizer_encode(t, s, text, TOKENIZER_PLAIN_TEXT, ids, IDS_CAP, &err);
    if (utf8_valid_prefix(text, &lead_max) != text.len) {
        CHECK(n == E_JOB);
        return;
    }
    CHECK(n >= 0 && n <= IDS_CAP);
    size_t len = tokenizer_decode(t, ids, (size_t)n, false, back, sizeof back);
    CHECK(len <= sizeof back);
    char *want = mem_alloc(text.len + 1, NFC_GROWTH_MAX);
    CHECK(want);
    struct nfc_buf buf = {0};
    size_t want_len = text.len;
    if (text.len)
        memcpy(want, text.ptr, text.len);
    if (t->nfc)
        want_len = (size_t)nfc_normalize(text, want, &buf, NULL, 0);
    CHECK(len == want_len && memcmp(back, want, len) == 0);
    nfc_buf_close(&buf);
    mem_free(want);
    cut = TR_MIN(cut, text.len);
    struct tokenizer_piece pieces[] = {{{text.ptr, cut}, false},
                                       {{text.ptr + cut, text.len - cut}, false}};
    n = tokenizer_encode(t, s, text, 0, ids, IDS_CAP, &err);
    CHECK(n >= 0 && tokenizer_encode_pieces(t, s, pieces, 2, 0, pieces_ids, IDS_CAP, &err) == n);
    CHECK(memcmp(ids, pieces_ids, (size_t)n * sizeof *ids) == 0);
    pieces[1].plain = true;
    CHECK(tokenizer_encode_pieces(t, s, pieces, 2, 0, pieces_ids, IDS_CAP, &err) >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!kinds[0])
        open_kinds();
    if (size < 2 || size > 8192)
        return 0;
    const struct tokenizer *t = kinds[data[0] % KINDS];
    struct tokenizer_scratch *s = scratches[data[0] % KINDS];
    /* a copy of the exact size lets the sanitizer see reads past the end */
    char *text = malloc(size - 2 ? size - 2 : 1);
    CHECK(text);
    memcpy(text, data + 2, size - 2);
    check_text(t, s, (struct str){text, size - 2}, data[1]);
    free(text);
    return 0;
}
