/* safetensors: the reference's rules, one broken file each, and reads of files that shrink. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/safetensors.h"

enum { FILE_CAP = 4096 };
struct file {
    char bytes[FILE_CAP];
    size_t n;
};

/* The header with its length in front and `data` zero bytes behind. */
static struct file file_of(const char *header, size_t data)
{
    struct file f = {.n = 8 + strlen(header) + data};
    assert_true(f.n <= FILE_CAP);
    f.bytes[0] = (char)(strlen(header) & 0xFF);
    f.bytes[1] = (char)(strlen(header) >> 8);
    memcpy(f.bytes + 8, header, strlen(header));
    return f;
}

static struct err last;
static int parse(struct safetensors *s, const struct file *f)
{
    last = (struct err){0};
    return safetensors_parse(s, (struct str){f->bytes, f->n}, f->n, "model.safetensors", &last);
}

static void refused(const char *header, size_t data, const char *why)
{
    struct safetensors s;
    struct file f = file_of(header, data);
    assert_int_equal(parse(&s, &f), E_FATAL);
    if (!strstr(last.msg, why))
        fail_msg("\"%s\" does not say \"%s\"", last.msg, why);
    assert_non_null(strstr(last.msg, "model.safetensors: "));
}

static void accepted(const char *header, size_t data, size_t n_tensors)
{
    struct safetensors s;
    struct file f = file_of(header, data);
    if (parse(&s, &f) != E_OK)
        fail_msg("%s", last.msg);
    assert_int_equal(s.n_tensors, n_tensors);
    safetensors_close(&s);
}

#define T(name, dtype, shape, b, e)                                                                \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #b "," #e "]" \
    "}"

static void valid_files_are_read(void **state)
{
    (void)state;
    struct safetensors s;
    struct file f =
        file_of("{" T("b", "F32", "2,3", 8, 32) "," T("a", "BF16", "4", 0, 8) "}  ", 24 + 8);
    assert_int_equal(parse(&s, &f), E_OK);
    assert_int_equal(s.n_tensors, 2);
    const struct safetensors_tensor *b = safetensors_find(&s, STR("b"));
    assert_non_null(b);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->dtype, ST_F32);
    assert_int_equal(b->begin, 8 + s.header_bytes + 8);
    assert_int_equal(b->end, f.n);
    assert_null(safetensors_find(&s, STR("c")));
    assert_null(safetensors_find(&s, STR("")));
    char text[64];
    safetensors_describe(b->dtype, b->shape, b->rank, text, sizeof text);
    assert_string_equal(text, "f32 [2,3]");
    safetensors_close(&s);
    accepted("{}", 0, 0);
    accepted("{\"__metadata__\":{\"format\":\"pt\"}}", 0, 0);
    accepted("{" T("scalar", "F32", "", 0, 4) "}", 4, 1);
    accepted("{" T("none", "F32", "0,7", 0, 0) "," T("x", "U8", "1", 0, 1) "}", 1, 2);
    accepted("{" T("four", "F4", "2", 0, 1) "}", 1, 1);
    accepted("{" T("utf8 \xE2\x96\x81", "F8_E4M3", "2", 0, 2) "}", 2, 1);
}

static void broken_headers_are_refused(void **state)
{
    (void)state;
    refused("", 0, "starts with '{'");
    refused("[]", 0, "starts with '{'");
    refused(" {}", 0, "starts with '{'");
    refused("{} x", 0, "line 1");
    refused("{\"a\":\"\xFF\"}", 0, "line 1");
    refused("{" T("a", "U8", "1", 0, 1) "," T("a", "U8", "1", 1, 2) "}", 2, "duplicate");
    refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
            "duplicate");
    refused("{\"a\":7}", 0, "a: want an object");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "data_offsets");
    refused("{\"__metadata__\":[]}", 0, "__metadata__: want an object");
    refused("{\"__metadata__\":{\"n\":1}}", 0, "__metadata__.n: want a string");
}

static void broken_tensors_are_refused(void **state)
{
    (void)state;
    refused("{" T("a", "F31", "1", 0, 4) "}", 4, "unknown \"F31\"");
    refused("{" T("a", "f32", "1", 0, 4) "}", 4, "unknown \"f32\"");
    refused("{" T("a", "F32", "-1", 0, 4) "}", 4, "shape[0]");
    refused("{" T("a", "F32", "1.0", 0, 4) "}", 4, "shape[0]");
    refused("{" T("a", "F32", "2", 0, 4) "}", 4, "f32 [2] does not fill 4 bytes");
    refused("{" T("a", "F32", "1", 4, 0) "}", 4, "0 <= begin <= end");
    refused("{" T("a", "F32", "1", 0, 4.0) "}", 4, "0 <= begin <= end");
    refused("{" T("a", "F4", "3", 0, 1) "}", 1, "does not fill");
    refused("{" T("a", "U8", "4294967296,4294967296", 0, 0) "}", 0, "does not fill");
    refused("{" T("a", "F64", "4611686018427387904", 0, 0) "}", 0, "does not fill");
    refused("{" T("a", "F32", "99999999999999999999", 0, 4) "}", 4, "too big");
    refused("{" T("a", "U8", "1", 1, 2) "}", 2, "a hole");
    refused("{" T("a", "U8", "2", 0, 2) "," T("b", "U8", "2", 1, 3) "}", 3, "an overlap");
    refused("{" T("a", "U8", "1", 0, 1) "," T("b", "U8", "1", 2, 3) "}", 3, "a hole");
    refused("{" T("a", "U8", "1", 0, 1) "}", 2, "want");
    refused("{" T("a", "U8", "2", 0, 2) "}", 1, "cut short");
    refused("{" T("a", "U8", "9223372036854775807", 0, 9223372036854775807) "}", 1,
            "does not fill");
    refused("{" T("a", "U8", "1152921504606846976", 0, 1152921504606846976) "}", 1, "cut short");
}

static void lengths_are_checked(void **state)
{
    (void)state;
    struct safetensors s;
    struct file f = file_of("{}", 0);
    for (size_t n = 0; n < f.n; n++) {
        struct file cut = f;
        cut.n = n;
        assert_int_equal(parse(&s, &cut), E_FATAL);
    }
    struct file huge = f;
    memset(huge.bytes, 0xFF, 8);
    assert_int_equal(parse(&s, &huge), E_FATAL);
    assert_non_null(strstr(last.msg, "18446744073709551615"));
    struct file pointer = {.n = 60};
    memcpy(pointer.bytes, "version https://git-lfs", 23);
    assert_int_equal(parse(&s, &pointer), E_FATAL);
    assert_non_null(strstr(last.msg, "git lfs pull"));
}

static void long_names_are_cut_in_messages(void **state)
{
    (void)state;
    char header[2000] = "{\"";
    for (int i = 0; i < 400; i++)
        strcat(header, "\xE4\xBD\xA0");
    strcat(header, "\":7}");
    refused(header, 0, "want an object");
    assert_true(strlen(last.msg) < 220);
}

static void many_tensors_are_refused(void **state)
{
    (void)state;
    size_t cap = (size_t)(SAFETENSORS_TENSORS_MAX + 1) * 64, n = 9;
    char *text = malloc(cap);
    assert_non_null(text);
    text[8] = '{';
    for (int i = 0; i <= SAFETENSORS_TENSORS_MAX; i++)
        n += (size_t)sprintf(text + n,
                             "%s\"%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                             i ? "," : "", i);
    text[n++] = '}';
    uint64_t length = n - 8;
    memcpy(text, &length, 8);
    struct safetensors s;
    struct err err = {0};
    assert_int_equal(safetensors_parse(&s, (struct str){text, n}, n, "m", &err), E_FATAL);
    assert_non_null(strstr(err.msg, "want at most 100000 tensors, header has 100001"));
    free(text);
}

static void a_file_that_shrinks_is_an_error(void **state)
{
    (void)state;
    char path[] = "/tmp/tranche_safetensors_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    struct file f = file_of("{" T("a", "F32", "2", 0, 8) "}", 8);
    f.bytes[f.n - 8] = 42;
    assert_int_equal(write(fd, f.bytes, f.n), f.n);
    struct safetensors s;
    struct err err = {0};
    assert_int_equal(safetensors_open(&s, path, &err), E_OK);
    const struct safetensors_tensor *a = safetensors_find(&s, STR("a"));
    char data[8];
    assert_int_equal(safetensors_read(&s, a->begin, data, 8, &err), E_OK);
    assert_int_equal(data[0], 42);
    assert_int_equal(ftruncate(fd, (off_t)f.n - 4), 0);
    assert_int_equal(safetensors_read(&s, a->begin, data, 8, &err), E_FATAL);
    assert_non_null(strstr(err.msg, "as when opened"));
    safetensors_close(&s);
    safetensors_close(NULL);
    err = (struct err){0};
    assert_int_equal(safetensors_open(&s, path, &err), E_FATAL);
    assert_non_null(strstr(err.msg, "cut short"));
    close(fd);
    unlink(path);
    err = (struct err){0};
    assert_int_equal(safetensors_open(&s, path, &err), E_FATAL);
    assert_non_null(strstr(err.msg, "No such file"));
    err = (struct err){0};
    assert_int_equal(safetensors_open(&s, "/tmp", &err), E_FATAL);
    assert_non_null(strstr(err.msg, "regular file"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_files_are_read),
        cmocka_unit_test(broken_headers_are_refused),
        cmocka_unit_test(broken_tensors_are_refused),
        cmocka_unit_test(lengths_are_checked),
        cmocka_unit_test(long_names_are_cut_in_messages),
        cmocka_unit_test(many_tensors_are_refused),
        cmocka_unit_test(a_file_that_shrinks_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
