/* postgres_arrays: the bytes that array_recv reads, NULLs, no rows, reuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/sink/postgres_arrays.h"

static const char *values[ARRAYS_MAX];
static int lengths[ARRAYS_MAX], formats[ARRAYS_MAX];
static unsigned types[ARRAYS_MAX];

static void finish(struct postgres_arrays *a)
{
    struct err err = {0};
    assert_int_equal(arrays_end(a, values, lengths, formats, types, &err), E_OK);
}

static void same_bytes(int column, const char *want, size_t n)
{
    assert_int_equal(lengths[column], n);
    assert_memory_equal(values[column], want, n);
    assert_int_equal(formats[column], 1);
}

/* Written down from the server's array_send for ARRAY['ab', NULL]::text[] and the like. */
static void bytes_are_the_servers(void **state)
{
    (void)state;
    struct postgres_arrays a = {0};
    const uint8_t sha[32] = {0xAB, 0xCD};
    arrays_begin(&a, "tildbwt");
    arrays_str(&a, STR("ab"));
    arrays_int(&a, -2);
    arrays_int(&a, 1LL << 40);
    arrays_real(&a, 1.5);
    arrays_str(&a, (struct str){"\0\xFF", 2});
    arrays_time(&a, 946684800000001000 + 1000); /* 2000-01-01 and 2 us */
    arrays_hash(&a, sha);
    arrays_str(&a, (struct str){NULL, 0});
    arrays_null(&a);
    arrays_int(&a, INT64_MIN);
    arrays_real(&a, -0.0);
    arrays_str(&a, STR(""));
    arrays_time(&a, 0);
    arrays_null(&a);
    assert_int_equal(a.rows, 2);
    finish(&a);
#define HEADER(type)        "\0\0\0\1\0\0\0\1" type "\0\0\0\2\0\0\0\1"
#define BYTES(column, text) same_bytes(column, text, sizeof(text) - 1)
    BYTES(0, HEADER("\0\0\0\x19") "\0\0\0\2ab\xFF\xFF\xFF\xFF");
    BYTES(1, HEADER("\0\0\0\x17") "\0\0\0\4\xFF\xFF\xFF\xFE\xFF\xFF\xFF\xFF");
    BYTES(2, HEADER("\0\0\0\x14") "\0\0\0\x8\0\0\1\0\0\0\0\0\0\0\0\x8\x80\0\0\0\0\0\0\0");
    BYTES(3, HEADER("\0\0\2\xBD") "\0\0\0\x8\x3F\xF8\0\0\0\0\0\0\0\0\0\x8\x80\0\0\0\0\0\0\0");
    BYTES(4, HEADER("\0\0\0\x11") "\0\0\0\2\0\xFF\0\0\0\0");
    BYTES(5, HEADER("\0\0\4\xA0") "\0\0\0\x8\0\0\0\0\0\0\0\2\xFF\xFF\xFF\xFF");
    assert_int_equal(lengths[6], 20 + 4 + 64 + 4);
    assert_memory_equal(values[6] + 24, "abcd00", 6);
    static const unsigned want[] = {1009, 1007, 1016, 1022, 1001, 1185, 1009};
    assert_memory_equal(types, want, sizeof want);
    arrays_close(&a);
}

static void no_rows_are_an_empty_array(void **state)
{
    (void)state;
    struct postgres_arrays a = {0};
    arrays_begin(&a, "ti");
    finish(&a);
    same_bytes(0, "\0\0\0\0\0\0\0\1\0\0\0\x19", 12);
    arrays_close(&a);
}

static void buffers_serve_again(void **state)
{
    (void)state;
    struct postgres_arrays a = {0};
    for (int round = 0; round < 3; round++) {
        arrays_begin(&a, round == 1 ? "it" : "ti");
        for (int i = 0; i < 1000; i++) {
            if (round == 1)
                arrays_int(&a, i);
            arrays_str(&a, STR("text"));
            if (round != 1)
                arrays_int(&a, i);
        }
        finish(&a);
        finish(&a); /* sent again: the same */
        assert_int_equal(a.rows, 1000);
        assert_int_equal(lengths[round == 1], 20 + 1000 * 8);
        assert_int_equal(a.bytes, 16000);
        assert_int_equal(types[0], round == 1 ? 1007 : 1009);
    }
    arrays_close(&a);
}

/* Too large is not the same as no memory, and begins anew with the next statement. */
static void values_over_the_limit_are_told(void **state)
{
    (void)state;
    struct postgres_arrays a = {.bytes_max = 32};
    static const char text[24] = "x";
    for (int round = 0; round < 2; round++) {
        struct err err = {0};
        arrays_begin(&a, "ti");
        arrays_str(&a, (struct str){text, round == 0 ? sizeof text : 20});
        arrays_int(&a, 1);
        assert_int_equal(arrays_end(&a, values, lengths, formats, types, &err),
                         round == 0 ? E_JOB : E_OK);
        assert_string_equal(err.msg,
                            round == 0 ? "want at most 32 bytes in a statement, have 36" : "");
    }
    arrays_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_the_servers),
        cmocka_unit_test(no_rows_are_an_empty_array),
        cmocka_unit_test(buffers_serve_again),
        cmocka_unit_test(values_over_the_limit_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
