/* The five public vocabularies against Hugging Face's tokenizers: every code point, 12.9 MB of
 * mixed text, random id lists. Needs the folders that tools/fixtures.sh makes; compares with the
 * hashes of tests/golden/tokenizer/ (tools/golden_tokenizer.py says what each hash covers). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/tokenizer_impl.h"

enum { IDS_CAP = 1 << 16, POINTS = 2048, LISTS = 64, NAME_MAX_LEN = 128 };

struct golden {
    struct tokenizer *t;
    struct tokenizer_scratch *s;
    FILE *hashes;
    EVP_MD_CTX *md;
    int32_t *ids;
    char *text;
    size_t text_cap;
};

static void open_golden(struct golden *g, const char *name)
{
    char path[NAME_MAX_LEN], version[32], of[32];
    struct err err = {0};
    snprintf(path, sizeof path, ".cache/fixtures/%s", name);
    if (tokenizer_open(&g->t, path, &err) != E_OK)
        fail_msg("%s (run tools/fixtures.sh first)", err.msg);
    snprintf(path, sizeof path, "tests/golden/tokenizer/%s.txt", name);
    g->hashes = fopen(path, "r");
    assert_non_null(g->hashes);
    assert_int_equal(fscanf(g->hashes, "tokenizers %31s %31s", version, of), 2);
    assert_string_equal(of, name);
    g->s = tokenizer_scratch_open(g->t);
    g->md = EVP_MD_CTX_new();
    g->ids = mem_alloc(IDS_CAP, sizeof *g->ids);
    g->text_cap = 1 << 16;
    g->text = mem_alloc(g->text_cap, 1);
    assert_true(g->s && g->md && g->ids && g->text);
}

static void close_golden(struct golden *g)
{
    fclose(g->hashes);
    EVP_MD_CTX_free(g->md);
    tokenizer_scratch_close(g->s);
    tokenizer_close(g->t);
    mem_free(g->ids);
    mem_free(g->text);
}

static void begin(struct golden *g)
{
    assert_int_equal(EVP_DigestInit_ex(g->md, EVP_sha256(), NULL), 1);
}

static void add(struct golden *g, const void *bytes, size_t n)
{
    assert_int_equal(EVP_DigestUpdate(g->md, bytes, n), 1);
}

/* Compares with the file's next hash. */
static void end(struct golden *g, const char *section, size_t i)
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    char have[17], want[17];
    assert_int_equal(EVP_DigestFinal_ex(g->md, sum, NULL), 1);
    for (size_t b = 0; b < 8; b++)
        snprintf(have + 2 * b, 3, "%02x", sum[b]);
    assert_int_equal(fscanf(g->hashes, "%16s", want), 1);
    if (strcmp(have, want) != 0)
        fail_msg("%s[%zu]: want %s, have %s", section, i, want, have);
}

static size_t section(struct golden *g, const char *name)
{
    char have[16];
    size_t n;
    assert_int_equal(fscanf(g->hashes, "%15s %zu", have, &n), 2);
    assert_string_equal(have, name);
    assert_true(n > 0);
    return n;
}

static size_t encode(struct golden *g, struct str text, unsigned flags)
{
    struct err err = {0};
    int64_t n = tokenizer_encode(g->t, g->s, text, flags, g->ids, IDS_CAP, &err);
    if (n < 0 || n > IDS_CAP)
        fail_msg("%lld: %s", (long long)n, err.msg);
    return (size_t)n;
}

static void add_ids(struct golden *g, struct str text)
{
    int32_t n = (int32_t)encode(g, text, 0);
    add(g, &n, sizeof n);
    add(g, g->ids, (size_t)n * sizeof *g->ids);
}

static void check_points(struct golden *g)
{
    size_t n = section(g, "points");
    for (size_t i = 0; i < n; i++) {
        begin(g);
        for (uint32_t c = (uint32_t)i * POINTS; c < (i + 1) * POINTS; c++) {
            if (c >= 0xD800 && c <= 0xDFFF)
                continue;
            char text[16] = "a";
            size_t len = utf8_put(text + 1, c);
            text[1 + len] = 'b';
            add_ids(g, (struct str){text + 1, len});
            char twice[8];
            memcpy(twice, text + 1, len);
            memcpy(twice + len, text + 1, len);
            add_ids(g, (struct str){twice, 2 * len});
            add_ids(g, (struct str){text, len + 2});
        }
        end(g, "points", i);
    }
}

/* Decoding gives the text back, but for the normalizer's work: NFC, or U+2581 for a space. */
static void check_round_trip(struct golden *g, struct str text, size_t chunk)
{
    struct nfc_buf buf = {0};
    size_t n = encode(g, text, TOKENIZER_PLAIN_TEXT);
    size_t have = tokenizer_decode(g->t, g->ids, n, false, g->text, g->text_cap);
    char *want = mem_alloc(text.len + 1, NFC_GROWTH_MAX);
    assert_non_null(want);
    size_t len = text.len;
    memcpy(want, text.ptr, text.len);
    if (g->t->nfc)
        len = (size_t)nfc_normalize(text, want, &buf, NULL, 0);
    if (g->t->metaspace) {
        len = 0;
        for (size_t i = 0; i < text.len; i++) {
            bool mark = text.len - i >= 3 && memcmp(text.ptr + i, "\u2581", 3) == 0;
            want[len++] = mark ? ' ' : text.ptr[i];
            i += mark ? 2 : 0;
        }
    }
    if (have != len || memcmp(g->text, want, len) != 0)
        fail_msg("mixed[%zu]: %zu bytes in, %zu back", chunk, len, have);
    nfc_buf_close(&buf);
    mem_free(want);
}

static void check_mixed(struct golden *g)
{
    static char chunk[1 << 14];
    size_t n = section(g, "mixed");
    FILE *corpus = fopen(".cache/fixtures/corpus/corpus.bin", "rb");
    if (!corpus)
        fail_msg("no corpus (run tools/fixtures.sh first)");
    for (size_t i = 0; i < n; i++) {
        uint32_t len;
        assert_int_equal(fread(&len, sizeof len, 1, corpus), 1);
        assert_true(len <= sizeof chunk);
        assert_int_equal(fread(chunk, 1, len, corpus), len);
        begin(g);
        size_t n_ids = encode(g, (struct str){chunk, len}, 0);
        add(g, g->ids, n_ids * sizeof *g->ids);
        end(g, "mixed", i);
        check_round_trip(g, (struct str){chunk, len}, i);
    }
    assert_int_equal(fgetc(corpus), EOF);
    fclose(corpus);
}

/* xorshift64*, as in tools/golden_tokenizer.py */
static uint64_t below(uint64_t *state, uint64_t n)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint64_t)((unsigned __int128)(*state * 0x2545F4914F6CDD1Du) * n >> 64);
}

static void check_decode(struct golden *g)
{
    size_t n = section(g, "decode");
    uint64_t state = 0x123456789ABC, n_ids = 0;
    for (int32_t id = 0; id < tokenizer_vocab_size(g->t); id++)
        n_ids += g->t->tokens[id].flags != 0;
    for (size_t i = 0; i < n; i++) {
        begin(g);
        for (int list = 0; list < LISTS; list++) {
            uint64_t top = below(&state, 2) ? 300 : n_ids + 64;
            size_t len = (size_t)below(&state, 24);
            for (size_t k = 0; k < len; k++)
                g->ids[k] = (int32_t)below(&state, top);
            for (int skip = 0; skip < 2; skip++) {
                int32_t bytes =
                    (int32_t)tokenizer_decode(g->t, g->ids, len, skip, g->text, g->text_cap);
                add(g, &bytes, sizeof bytes);
                add(g, g->text, (size_t)bytes);
            }
        }
        end(g, "decode", i);
    }
}

static void vocabulary(void **state)
{
    struct golden g = {0};
    open_golden(&g, *state);
    check_points(&g);
    check_mixed(&g);
    check_decode(&g);
    close_golden(&g);
}

/* Ids that a chat template's output must give, known from the published model. */
static void r1_distill_prompt(void **state)
{
    (void)state;
    static const int32_t want[] = {151646, 151644, 3838, 374,    220,    16,
                                   10,     16,     30,   151645, 151648, 198};
    struct golden g = {0};
    open_golden(&g, "r1-qwen");
    size_t n =
        encode(&g, STR("<｜User｜>What is 1+1?<｜Assistant｜><think>\n"), TOKENIZER_ADD_SPECIAL);
    assert_int_equal(n, TR_COUNT(want));
    assert_memory_equal(g.ids, want, sizeof want);
    assert_int_equal(tokenizer_vocab_size(g.t), 151665);
    assert_int_equal(tokenizer_bos_id(g.t), 151646);
    assert_int_equal(tokenizer_eos_id(g.t), 151643);
    assert_int_equal(tokenizer_token_id(g.t, STR("</think>")), 151649);
    assert_true(str_eq(tokenizer_named_token(g.t, "pad_token"), STR("<｜end▁of▁sentence｜>")));
    assert_null(tokenizer_named_token(g.t, "unk_token").ptr);
    assert_true(tokenizer_is_special(g.t, 151646));
    assert_false(tokenizer_is_special(g.t, 151649));
    assert_null(tokenizer_token_bytes(g.t, 151700).ptr);
    close_golden(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"r1-qwen", vocabulary, NULL, NULL, "r1-qwen"},
        {"qwen3", vocabulary, NULL, NULL, "qwen3"},
        {"deepseek-v3", vocabulary, NULL, NULL, "deepseek-v3"},
        {"llama3.1", vocabulary, NULL, NULL, "llama3.1"},
        {"llama2", vocabulary, NULL, NULL, "llama2"},
        cmocka_unit_test(r1_distill_prompt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
