/* chat_template: equal to Jinja2 on every construct, on every code point and on whole templates;
 * golden files of tools/golden_chat_template.py. */
#include <openssl/evp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>
#include <utf8proc.h>
#include <cmocka.h>

#include "engine/chat_template.h"

/* The template asks a tokenizer for its named tokens only: this one has them from a JSON object. */
struct tokenizer {
    const json_t *tokens;
};

struct str tokenizer_named_token(const struct tokenizer *t, const char *name)
{
    return json_str(json_object_get(t->tokens, name));
}

static json_t *golden(const char *name)
{
    char path[256];
    struct err err = {0};
    json_t *doc = NULL;
    snprintf(path, sizeof path, "tests/golden/chat_template/%s", name);
    if (json_parse_file(&doc, path, &json_limits_file, &err) < 0)
        fail_msg("%s", err.msg);
    return doc;
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static bool same_pieces(const struct chat_template_output *out)
{
    size_t at = 0;
    for (size_t i = 0; i < out->n_pieces; i++) {
        const struct tokenizer_piece *p = &out->pieces[i];
        if (p->text.len == 0 || p->text.ptr != out->text.ptr + at)
            return false;
        if (i && p->plain == out->pieces[i - 1].plain)
            return false;
        at += p->text.len;
    }
    return at == out->text.len;
}

/* ---- one construct a case ---- */

/* 0: as Jinja2. Prints what differs. */
static int run_case(const json_t *test, const json_t *context)
{
    struct chat_template *t = NULL;
    struct chat_template_output out = {0};
    struct err err = {0};
    struct chat_template_input in = {.messages = json_object_get(context, "messages"),
                                     .kwargs = context};
    const json_t *expect = json_object_get(test, "expect");
    const char *refused = text_of(test, "refused");
    int bad = 0;
    int rc = chat_template_compile(&t, json_str(json_object_get(test, "template")), "t", &err);
    if (rc >= 0 && !refused)
        rc = chat_template_render(t, &in, &out, &err);
    if (refused)
        bad = rc != E_FATAL || !strstr(err.msg, refused);
    else if (!expect)
        bad = rc >= 0 || err.code != rc || strncmp(err.msg, "t: line ", 8) != 0;
    else
        bad = rc < 0 || !str_eq(out.text, json_str(expect)) || !same_pieces(&out);
    if (bad)
        print_error("%s\n  template: %s\n  want: %s%s\n  got:  %.*s%s\n", text_of(test, "name"),
                    text_of(test, "template"),
                    expect    ? json_string_value(expect)
                    : refused ? refused
                              : "an error, ",
                    expect || refused ? "" : text_of(test, "error"), STR_ARG(out.text), err.msg);
    chat_template_output_free(&out);
    chat_template_close(t);
    return bad;
}

static void constructs_equal_jinja2(void **state)
{
    (void)state;
    json_t *doc = golden("constructs.json"), *test;
    const json_t *cases = json_object_get(doc, "cases");
    size_t i;
    int bad = 0;
    assert_true(json_array_size(cases) >= 700);
    json_array_foreach(cases, i, test) bad += run_case(test, json_object_get(doc, "context"));
    json_decref(doc);
    assert_int_equal(bad, 0);
}

/* ---- every code point ---- */

enum { CHUNK = 0x1000 };

static json_t *chunk_text(uint32_t start)
{
    char buf[CHUNK * 5];
    size_t n = 0;
    for (uint32_t cp = start; cp < start + CHUNK; cp++) {
        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        if (n)
            buf[n++] = '-';
        n += (size_t)utf8proc_encode_char((utf8proc_int32_t)cp, (utf8proc_uint8_t *)buf + n);
    }
    return json_stringn(buf, n);
}

static void hash_code_points(const char *expression, char hex[65])
{
    char template[128];
    struct chat_template *t = NULL;
    struct err err = {0};
    json_t *messages = json_array();
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    unsigned char digest[32];
    snprintf(template, sizeof template, "{{ %s }}", expression);
    assert_int_equal(chat_template_compile(&t, str_of(template), "t", &err), E_OK);
    assert_true(EVP_DigestInit_ex(md, EVP_sha256(), NULL));
    for (uint32_t start = 0; start < 0x110000; start += CHUNK) {
        json_t *kwargs = json_pack("{s:o}", "x", chunk_text(start));
        struct chat_template_input in = {.messages = messages, .kwargs = kwargs};
        struct chat_template_output out;
        if (chat_template_render(t, &in, &out, &err) < 0)
            fail_msg("%s", err.msg);
        assert_true(EVP_DigestUpdate(md, out.text.ptr, out.text.len));
        chat_template_output_free(&out);
        json_decref(kwargs);
    }
    assert_true(EVP_DigestFinal_ex(md, digest, NULL));
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(md);
    json_decref(messages);
    chat_template_close(t);
}

static void code_points_equal_python(void **state)
{
    (void)state;
    json_t *doc = golden("constructs.json"), *want;
    const char *expression;
    int bad = 0;
    json_object_foreach(json_object_get(doc, "code_points"), expression, want)
    {
        char hex[65];
        hash_code_points(expression, hex);
        if (strcmp(hex, json_string_value(want)) != 0) {
            print_error("%s differs\n", expression);
            bad++;
        }
    }
    json_decref(doc);
    assert_int_equal(bad, 0);
}

/* ---- whole templates ---- */

static void hex_sha256(struct str text, char out[65])
{
    unsigned char digest[32];
    assert_true(EVP_Digest(text.ptr, text.len, digest, NULL, EVP_sha256(), NULL));
    for (int i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static int run_shape(const struct chat_template *t, const json_t *entry, const json_t *shape)
{
    const json_t *want = json_object_get(json_object_get(entry, "renders"), text_of(shape, "name"));
    const json_t *prompt = json_object_get(shape, "add_generation_prompt");
    struct tokenizer tokenizer = {json_object_get(entry, "tokens")};
    struct chat_template_output out = {0};
    struct err err = {0};
    struct chat_template_input in = {
        .messages = json_object_get(shape, "messages"),
        .tools = json_object_get(shape, "tools"),
        .kwargs = json_object_get(shape, "kwargs"),
        .add_generation_prompt = !prompt || json_is_true(prompt),
        .continue_final_message = json_is_true(json_object_get(shape, "continue_final_message")),
        .tokenizer = &tokenizer,
        .date_ns = json_integer_value(json_object_get(shape, "date_ns")),
    };
    char hash[65] = "";
    assert_non_null(want);
    int rc = chat_template_render(t, &in, &out, &err), bad;
    if (rc >= 0)
        hex_sha256(out.text, hash);
    if (json_object_get(want, "error"))
        bad = rc != E_JOB || strcmp(err.type, "template_error") != 0;
    else if (json_object_get(want, "expect"))
        bad = rc < 0 || !str_eq(out.text, json_str(json_object_get(want, "expect")));
    else
        bad = rc < 0 || strcmp(hash, text_of(want, "sha256")) != 0;
    bad |= rc >= 0 && !same_pieces(&out);
    if (bad)
        print_error("%s: %s:\n%s\ngot: %.*s%s\n", text_of(entry, "name"), text_of(shape, "name"),
                    json_object_get(want, "expect") ? text_of(want, "expect") : "(hash or error)",
                    STR_ARG(out.text), err.msg);
    chat_template_output_free(&out);
    return bad;
}

/* NULL with a printed line where a registry package was not fetched. */
static struct chat_template *open_golden(const json_t *entry)
{
    char path[256];
    struct chat_template *t = NULL;
    struct err err = {0};
    bool ours = json_is_true(json_object_get(entry, "ours"));
    if (ours)
        snprintf(path, sizeof path, "tests/golden/chat_template/%s.jinja", text_of(entry, "name"));
    else
        snprintf(path, sizeof path, ".cache/fixtures/%s", text_of(entry, "name"));
    if (!ours && access(path, F_OK) != 0)
        fail_msg("%s is missing: run tools/fixtures_templates.sh", path);
    if (chat_template_open(&t, path, ours ? path : NULL, &err) < 0 || !t)
        fail_msg("%s", err.msg);
    assert_string_equal(chat_template_sha256(t), text_of(entry, "sha256"));
    return t;
}

static void templates_equal_jinja2(void **state)
{
    (void)state;
    json_t *doc = golden("renders.json"), *entry, *shape;
    size_t i, k;
    int bad = 0, n = 0;
    json_array_foreach(json_object_get(doc, "templates"), i, entry)
    {
        struct chat_template *t = open_golden(entry);
        json_array_foreach(json_object_get(doc, "shapes"), k, shape)
        {
            bad += run_shape(t, entry, shape);
            n++;
        }
        chat_template_close(t);
    }
    assert_int_equal(n, json_array_size(json_object_get(doc, "templates")) *
                            json_array_size(json_object_get(doc, "shapes")));
    json_decref(doc);
    print_message("%d renders\n", n);
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(constructs_equal_jinja2),
        cmocka_unit_test(code_points_equal_python),
        cmocka_unit_test(templates_equal_jinja2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
