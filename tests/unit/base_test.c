/* base, json, log: the smallest promises that every other room leans on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/json.h"
#include "engine/log.h"

static void err_first_failure_wins(void **state)
{
    (void)state;
    struct err err = {0};
    assert_int_equal(err_set(&err, E_JOB, "first %d", 1), E_JOB);
    assert_int_equal(err_typed(&err, E_FATAL, "x", "second"), E_FATAL);
    assert_int_equal(err.code, E_JOB);
    assert_string_equal(err.msg, "first 1");
}

static void err_is_cut_between_characters(void **state)
{
    (void)state;
    char text[400];
    for (size_t i = 0; i + 3 <= sizeof text; i += 3)
        memcpy(text + i, "\xE4\xBD\xA0", 3);
    text[399] = '\0';
    for (int shift = 0; shift < 3; shift++) {
        struct err err = {0};
        err_set(&err, E_JOB, "%.*s%s", shift, "abc", text);
        assert_int_equal((strlen(err.msg) - (size_t)shift) % 3, 0);
    }
}

static void arena_says_full(void **state)
{
    (void)state;
    struct arena a;
    struct err err = {0};
    assert_int_equal(arena_open(&a, 64, &err), E_OK);
    assert_non_null(arena_alloc(&a, 48));
    assert_null(arena_alloc(&a, 17));
    assert_non_null(arena_alloc(&a, 16));
    assert_null(arena_alloc(&a, SIZE_MAX));
    arena_reset(&a);
    assert_int_equal(arena_str(&a, STR("abc")).len, 3);
    arena_close(&a);
    arena_close(NULL);
}

static int parse(const char *text, size_t len)
{
    struct err err = {0};
    json_t *doc = NULL;
    int rc = json_parse(&doc, (struct str){text, len}, "job", &json_limits_job, &err);
    json_decref(doc);
    return rc;
}
#define PARSE(literal) parse(literal, sizeof(literal) - 1)

static void json_is_strict(void **state)
{
    (void)state;
    assert_int_equal(PARSE("{\"a\":1}"), E_OK);
    assert_int_equal(PARSE("{\"a\":\"\\u0000x\"}"), E_OK);
    assert_int_equal(PARSE("{\"a\":1}x"), E_JOB);
    assert_int_equal(PARSE("{\"a\":1,\"a\":2}"), E_JOB);
    assert_int_equal(PARSE("{\"a\":1e999}"), E_JOB);
    assert_int_equal(PARSE("{\"a\":\"\xff\"}"), E_JOB);
    assert_int_equal(PARSE("{\"a\":\"\\ud800\"}"), E_JOB);
    assert_int_equal(PARSE("{\"a\":NaN}"), E_JOB);
    assert_int_equal(PARSE("{\"a\":\0}"), E_JOB);
    assert_int_equal(PARSE(""), E_JOB);
}

static void json_depth_is_limited(void **state)
{
    (void)state;
    char text[200];
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    assert_int_equal(parse(text, 130), E_JOB);
    assert_int_equal(parse(text + 1, 128), E_OK);
}

static void json_keeps_integers_exact(void **state)
{
    (void)state;
    struct err err = {0};
    json_t *doc = NULL;
    assert_int_equal(json_parse(&doc, STR("9007199254740993"), "n", &json_limits_job, &err), E_OK);
    assert_true(json_integer_value(doc) == 9007199254740993);
    json_decref(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(err_first_failure_wins), cmocka_unit_test(err_is_cut_between_characters),
        cmocka_unit_test(arena_says_full),        cmocka_unit_test(json_is_strict),
        cmocka_unit_test(json_depth_is_limited),  cmocka_unit_test(json_keeps_integers_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
