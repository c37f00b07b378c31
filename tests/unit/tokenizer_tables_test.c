/* tokenizer: tokenizer.json files written here. Keys and pairs made to meet in one slot of the
 * tables are refused instead of taking quadratic time; a SentencePiece one with ignore_merges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>

#include "engine/tokenizer_impl.h"
#include "worker/job/text.h"

static struct text json;

static void begin(const char *normalizer, const char *pre_tokenizer, const char *decoder,
                  const char *flags)
{
    text_reset(&json);
    text_f(&json,
           "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],"
           "\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":null,\"decoder\":%s,"
           "\"model\":{\"type\":\"BPE\",%s\"vocab\":{",
           normalizer, pre_tokenizer, decoder, flags);
}

/* A token of raw bytes as byte-level vocabularies write it. */
static void put_token(const char *bytes, size_t n, int id)
{
    text_f(&json, id ? ",\"" : "\"");
    for (size_t i = 0; i < n; i++) {
        uint32_t hidden = 0, byte = (unsigned char)bytes[i];
        char c[8];
        for (uint32_t b = 0; b <= byte; b++) {
            bool visible = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
            if (b == byte)
                c[utf8_put(c, visible ? byte : 0x100 + hidden)] = '\0';
            hidden += !visible;
        }
        text_f(&json, *c == '"' || *c == '\\' ? "\\%s" : "%s", c);
    }
    text_f(&json, "\":%d", id);
}

static void begin_byte_level(void)
{
    begin("null", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}",
          "{\"type\":\"ByteLevel\"}", "");
    for (int byte = 0; byte < 256; byte++)
        put_token(&(char){(char)byte}, 1, byte);
}

static int open_json(struct tokenizer **t, struct err *err)
{
    assert_false(json.failed);
    *t = NULL;
    *err = (struct err){0};
    return tokenizer_parse(t, (struct str){json.ptr, json.len}, (struct str){NULL, 0}, err);
}

static void expect(const char *message)
{
    struct tokenizer *t;
    struct err err;
    int rc = open_json(&t, &err);
    if (rc != (message ? E_FATAL : E_OK) || (message && !strstr(err.msg, message)))
        fail_msg("code %d, \"%s\"", rc, err.msg);
    tokenizer_close(t);
}

/* Behind these eight bytes the rest of a key of up to 15 made no difference to its hash. */
static void keys_made_to_collide_are_refused(void **state)
{
    (void)state;
    static const char zero[] = "\x15\x7c\x4a\x7f\xb9\x79\x37\x9e";
    enum { N = 50000 };
    for (int made = 0; made < 2; made++) {
        begin_byte_level();
        for (int i = 0; i < 2 * N; i++) {
            char key[32];
            int n = i < N ? snprintf(key, sizeof key, "k%07d", i)
                          : snprintf(key, sizeof key, "%s%06d", made ? zero : "ordinary", i);
            put_token(key, (size_t)n, 256 + i);
        }
        text_f(&json, "},\"merges\":[]}}");
        expect(made ? "the hashes of more than 1024 keys" : NULL);
    }
}

/* Ids of sides by the slot that they choose: all merges of 64 left sides with 64 right ones begin
 * at slot 0 of the 8192 that 4096 merges take; or ids in a row. */
static void pairs_made_to_collide_are_refused(void **state)
{
    (void)state;
    enum { SIDES = 64, SLOTS = 8192, N = SIDES * SIDES };
    for (int made = 0; made < 2; made++) {
        int left[SIDES], right[SIDES], id = 2 * N;
        begin_byte_level();
        for (int i = 0; i < SIDES; i++)
            left[i] = made ? (i + 2) * SLOTS : ++id;
        for (int i = 0; i < SIDES; i++) {
            while (++id % SLOTS == 0 ||
                   (made && ((uint64_t)id * 0x9E3779B97F4A7C15u >> 32) % SLOTS != 0))
                ;
            right[i] = id;
        }
        for (int i = 0; i < SIDES; i++) {
            put_token((char[]){'l', (char)('0' + i)}, 2, left[i]);
            put_token((char[]){(char)('0' + i), 'r'}, 2, right[i]);
        }
        for (int i = 0; i < N; i++) {
            char l = (char)('0' + i / SIDES), r = (char)('0' + i % SIDES);
            put_token((char[]){'l', l, r, 'r'}, 4, 256 + i);
        }
        text_f(&json, "},\"merges\":[");
        for (int i = 0; i < N; i++) {
            char l = (char)('0' + i / SIDES), r = (char)('0' + i % SIDES);
            const char *slash_l = l == '\\' ? "\\" : "", *slash_r = r == '\\' ? "\\" : "";
            text_f(&json, "%s\"l%s%c %s%cr\"", i ? "," : "", slash_l, l, slash_r, r);
        }
        text_f(&json, "]}}");
        expect(made ? "model.merges[1024]: the hashes of more than 1024 pairs" : NULL);
    }
}

/* What Hugging Face gives: without a pre_tokenizer the normalized text is one word, and
 * ignore_merges takes it from the vocabulary whole. */
static void ignore_merges_sees_the_whole_text(void **state)
{
    (void)state;
    static const struct {
        const char *flag, *text;
        int n, ids[4];
    } cases[] = {
        {"true", "a b", 1, {261}},
        {"true", "a b a", 3, {259, 260, 259}},
        {"false", "a b", 2, {259, 260}},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        char flags[64];
        struct tokenizer *t;
        struct err err;
        int32_t ids[8];
        snprintf(flags, sizeof flags, "\"byte_fallback\":true,\"ignore_merges\":%s,",
                 cases[i].flag);
        begin("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
              "\"\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":"
              "\"\u2581\"}]}",
              "null",
              "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
              "\"\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
              "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}",
              flags);
        for (int byte = 0; byte < 256; byte++)
            text_f(&json, "\"<0x%02X>\":%d,", (unsigned)byte, byte);
        text_f(&json, "\"a\":256,\"b\":257,\"\u2581\":258,\"\u2581a\":259,\"\u2581b\":260,"
                      "\"\u2581a\u2581b\":261},\"merges\":[\"\u2581 a\",\"\u2581 b\"]}}");
        if (open_json(&t, &err) != E_OK)
            fail_msg("%s", err.msg);
        struct tokenizer_scratch *s = tokenizer_scratch_open(t);
        assert_non_null(s);
        assert_int_equal(tokenizer_encode(t, s, str_of(cases[i].text), 0, ids, TR_COUNT(ids), &err),
                         cases[i].n);
        for (int k = 0; k < cases[i].n; k++)
            assert_int_equal(ids[k], cases[i].ids[k]);
        tokenizer_scratch_close(s);
        tokenizer_close(t);
    }
}

static int teardown(void **state)
{
    (void)state;
    text_close(&json);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_made_to_collide_are_refused),
        cmocka_unit_test(pairs_made_to_collide_are_refused),
        cmocka_unit_test(ignore_merges_sees_the_whole_text),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}
