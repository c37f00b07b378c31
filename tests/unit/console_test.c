/* console, dead_letters, envelope, text: times, spans, filters, messages sent again: pure
 * functions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/commands/console.h"
#include "worker/job/envelope.h"
#include "worker/sink/dead_letters.h"
#include "worker/sink/sink.h"

static void times_are_utc_and_strict(void **state)
{
    (void)state;
    const int64_t second = 1000000000;
    assert_int_equal(console_time_parse(STR("1970-01-01")), 0);
    assert_int_equal(console_time_parse(STR("2000-02-29T00:00:00Z")), 951782400 * second);
    assert_int_equal(console_time_parse(STR("2026-01-31T12:34Z")), 1769862840 * second);
    assert_int_equal(console_time_parse(STR("2026-01-31 12:34:56.789Z")),
                     1769862896 * second + 789000000);
    static const char *const bad[] = {"",
                                      "2026-01-3",
                                      "2026-13-01",
                                      "2026-02-29",
                                      "1900-01-01",
                                      "2026-01-31T12:34:56",
                                      "2026-01-31T24:00:00Z",
                                      "2026-01-31T12:34:56+01:00",
                                      "2026-01-31T12:34:56Zx",
                                      "20260131T123456Z",
                                      "noon"};
    for (size_t i = 0; i < TR_COUNT(bad); i++)
        assert_int_equal(console_time_parse(str_of(bad[i])), -1);
    for (int64_t day = 0; day < 60000; day += 13) { /* there and back */
        char text[32];
        wall_text(day * 86400 * second + 5 * second, text);
        assert_int_equal(console_time_parse(str_of(text)), day * 86400 * second + 5 * second);
    }
}

static void spans_are_for_people(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{-1, "0s"},       {0.4, "0s"},    {119, "119s"},
                 {120, "2m"},      {7199, "120m"}, {7200, "2h00m"},
                 {12000, "3h20m"}, {172800, "2d"}, {1e300, "11574074d"}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        char text[24];
        console_span(text, cases[i].seconds);
        assert_string_equal(text, cases[i].text);
    }
}

static void filters_name_what_they_want(void **state)
{
    (void)state;
    struct letter_filter f = {0};
    struct err err = {0};
    assert_int_equal(
        letter_filter_parse(&f, STR("reason=crashed,batch=b=c,state=redriven,run=~,"), &err), E_OK);
    assert_true(str_eq(f.fields[LETTER_REASON], STR("crashed")));
    assert_true(str_eq(f.fields[LETTER_BATCH], STR("b=c")));
    assert_true(str_eq(f.fields[LETTER_RUN], STR("~")));
    assert_null(f.fields[LETTER_ID].ptr);
    assert_int_equal(f.state, LETTER_REDRIVEN);
    assert_true(f.state_named);
    static const char *const bad[] = {"reason", "reason=", "=x", "size=3", "state=", "a,b"};
    for (size_t i = 0; i < TR_COUNT(bad); i++) {
        err = (struct err){0};
        assert_int_equal(letter_filter_parse(&f, str_of(bad[i]), &err), E_USAGE);
        assert_non_null(strstr(err.msg, "--filter: "));
    }
}

static void a_letter_is_sent_again_three_times(void **state)
{
    (void)state;
    struct text run = {0};
    struct err err = {0};
    assert_int_equal(redrive_run(STR("main"), &run, &err), E_OK);
    assert_true(str_eq(text_view(&run), STR("main~1")));
    assert_int_equal(redrive_run(STR("main~2"), &run, &err), E_OK);
    assert_true(str_eq(text_view(&run), STR("main~3")));
    assert_int_equal(redrive_run(STR("main~3"), &run, &err), E_JOB);
    err = (struct err){0};
    assert_int_equal(redrive_run(STR("main~9"), &run, &err), E_JOB);
    err = (struct err){0};
    assert_int_equal(redrive_run(STR("a~b"), &run, &err), E_OK);
    assert_true(str_eq(text_view(&run), STR("a~b~1")));
    text_close(&run);
}

static void a_message_keeps_its_body(void **state)
{
    (void)state;
    struct text out = {0};
    struct err err = {0};
    const struct envelope e = {.run = STR("main~1"), .batch_id = STR("b\"c")};
    assert_int_equal(
        envelope_put(STR("{\"id\":\"x\",\"run\":\"old\",\"prompt\":\"a\\u0000\\n\",\"seed\":"
                         "9007199254740993,\"top_p\":0.1}"),
                     &e, &out, &err),
        E_OK);
    assert_true(str_eq(text_view(&out),
                       STR("{\"id\":\"x\",\"run\":\"main~1\",\"prompt\":\"a\\u0000\\n\",\"seed\":"
                           "9007199254740993,\"top_p\":0.10000000000000001,\"batch_id\":"
                           "\"b\\\"c\"}")));
    assert_int_equal(envelope_put(STR("[1]"), &e, &out, &err), E_JOB);
    err = (struct err){0};
    assert_int_equal(envelope_put(STR("{\"a\":"), &e, &out, &err), E_JOB);
    text_close(&out);
}

static bool makes(const char *payload, const char *id, const char *deadline, const char *want)
{
    struct text out = {0};
    struct err err = {0};
    struct envelope e = {.id = id ? str_of(id) : (struct str){NULL, 0},
                         .deadline = deadline ? str_of(deadline) : (struct str){NULL, 0}};
    int rc = envelope_put(str_of(payload), &e, &out, &err);
    bool same = want ? rc == E_OK && str_eq(text_view(&out), str_of(want)) : rc == E_JOB;
    text_close(&out);
    return same;
}

static void an_id_goes_where_the_message_names_none(void **state)
{
    (void)state;
    assert_true(makes("{\"prompt\":\"x\"}", "t/0/7", NULL, "{\"prompt\":\"x\",\"id\":\"t/0/7\"}"));
    assert_true(
        makes("{\"id\":null,\"prompt\":\"x\"}", "a", NULL, "{\"id\":\"a\",\"prompt\":\"x\"}"));
    assert_true(makes("{\"id\":\"own\"}", "a", NULL, "{\"id\":\"own\"}"));
    assert_true(makes("{\"url\":\"/v1\",\"id\":1}", "a", NULL,
                      "{\"url\":\"/v1\",\"id\":1,\"custom_id\":\"a\"}"));
    assert_true(makes("{\"body\":{}}", NULL, NULL, "{\"body\":{}}"));
    assert_true(makes("{\"id\":5}", "a", NULL, NULL)); /* another id would make a valid job of it */
    assert_true(makes("{\"id\":\"\"}", "a", NULL, NULL));
    assert_true(makes("{\"prompt\":\"x\"}", "\xff", NULL, NULL));
    assert_true(
        makes("{\"id\":\"a\"}", NULL, "1600000000", "{\"id\":\"a\",\"deadline\":1600000000.0}"));
    assert_true(makes("{\"id\":\"a\"}", NULL, "2020-01-01T00:00:00Z",
                      "{\"id\":\"a\",\"deadline\":\"2020-01-01T00:00:00Z\"}"));
    assert_true(makes("{\"id\":\"a\",\"deadline\":1}", NULL, "2", "{\"id\":\"a\",\"deadline\":1}"));
}

static void the_last_header_of_a_name_counts(void **state)
{
    (void)state;
    struct text out = {0};
    const struct str source =
        STR("{\"offset\":7,\"headers\":[[\"d\",\"1\"],[\"d\",\"2\"],[\"d\",null],"
            "[\"e\",\"3\"]]}");
    assert_true(envelope_header(source, "d", &out));
    assert_true(str_eq(text_view(&out), STR("2")));
    assert_false(envelope_header(source, "f", &out));
    assert_false(envelope_header(STR("{\"line\":7}"), "d", &out));
    assert_false(envelope_header((struct str){NULL, 0}, "d", &out));
    text_close(&out);
}

static void an_absent_text_is_an_empty_string(void **state)
{
    (void)state;
    struct text out = {0};
    text_json_str(&out, (struct str){NULL, 0});
    assert_true(str_eq(text_view(&out), STR("\"\"")));
    text_close(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_are_utc_and_strict),
        cmocka_unit_test(spans_are_for_people),
        cmocka_unit_test(filters_name_what_they_want),
        cmocka_unit_test(a_letter_is_sent_again_three_times),
        cmocka_unit_test(a_message_keeps_its_body),
        cmocka_unit_test(an_id_goes_where_the_message_names_none),
        cmocka_unit_test(the_last_header_of_a_name_counts),
        cmocka_unit_test(an_absent_text_is_an_empty_string),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
