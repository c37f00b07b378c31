/* outbox: how often a message has been a copy, read from a letter's source. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/sink/outbox.h"

static void copies_are_read_from_headers_and_fields(void **state)
{
    (void)state;
    static const struct {
        const char *source;
        int want;
    } cases[] = {
        {"{}", 0},
        {"", 0},
        {"no json", 0},
        {"[]", 0},
        {"{\"partition\":0,\"offset\":7}", 0},
        {"{\"headers\":[[\"a\",\"1\"],[\"tranche.copies\",\"2\"]]}", 2},
        {"{\"headers\":[[\"tranche.copies\",\"1\"],[\"tranche.copies\",\"3\"]]}", 3},
        {"{\"headers\":[[\"tranche.copies\",null],7,[]]}", 0},
        {"{\"headers\":[[\"tranche.copies\",\"x\"]]}", 0},
        {"{\"headers\":[[\"tranche.copies\",\"-5\"]]}", 0},
        {"{\"headers\":[[\"tranche.copies\",\"99999999999999999999\"]]}", 99},
        {"{\"stream\":\"jobs\",\"id\":\"1-0\",\"copies\":3}", 3},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        if (outbox_copies(str_of(cases[i].source)) != cases[i].want)
            fail_msg("%s: want %d, found %d", cases[i].source, cases[i].want,
                     outbox_copies(str_of(cases[i].source)));
    assert_int_equal(outbox_copies((struct str){NULL, 0}), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_are_read_from_headers_and_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
