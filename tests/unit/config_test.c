/* config: who wins, what is refused and with which words, and that the table itself is sound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "worker/config/config.h"

enum { ARGS_MAX = 12 };

/* Opens a config from a NULL-terminated argument list. */
static int open_args(struct config *c, char *const *environment, struct err *err, ...)
{
    char *argv[ARGS_MAX] = {(char *)"tranche"};
    int argc = 1;
    va_list ap;
    va_start(ap, err);
    for (char *arg; (arg = va_arg(ap, char *)) != NULL;)
        argv[argc++] = arg;
    va_end(ap);
    return config_open(c, argc, argv, environment, err);
}

static void expect_refused(const char *message, char *const *environment, const char *arg,
                           const char *value)
{
    struct config c;
    struct err err = {0};
    assert_int_equal(open_args(&c, environment, &err, "run", arg, value, NULL), E_USAGE);
    assert_string_equal(err.msg, message);
    config_close(&c);
}

static void defaults_are_in_range(void **state)
{
    (void)state;
    struct config c;
    struct err err = {0};
    for (size_t i = 0; i < command_count; i++) {
        assert_int_equal(open_args(&c, NULL, &err, command_table[i].name, NULL), E_OK);
        assert_int_equal(c.command->id, command_table[i].id);
        config_close(&c);
    }
}

static void table_is_sound(void **state)
{
    (void)state;
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        assert_true(strlen(o->name) < 40 &&
                    strspn(o->name, "abcdefghijklmnopqrstuvwxyz-") == strlen(o->name));
        assert_true((o->type == OPTION_CHOICE) == (o->choices != NULL));
        assert_true((o->type == OPTION_FLAG) == (o->value == NULL));
        assert_non_null(o->help);
        assert_true(o->commands != 0 && o->min <= o->max);
        for (size_t j = i + 1; j < option_count; j++)
            assert_string_not_equal(o->name, option_table[j].name);
    }
}

static void flag_beats_environment_beats_file(void **state)
{
    (void)state;
    char path[] = "/tmp/config_test_XXXXXX";
    const char text[] =
        "# a comment\n slots = 3\nflush-rows=7\r\n\ngrace = 1500ms\ndecode = true\n";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    char file[64];
    snprintf(file, sizeof file, "TRANCHE_CONFIG=%s", path);
    char *environment[] = {(char *)"TRANCHE_SLOTS=5", (char *)"TRANCHE_FLUSH_ROWS=9",
                           (char *)"TRANCHE_GRACE=", file, NULL};
    struct config c;
    struct err err = {0};
    assert_int_equal(open_args(&c, environment, &err, "run", "--slots=11", "x.jsonl", NULL), E_OK);
    assert_int_equal(config_int(&c, "slots"), 11);
    assert_int_equal(config_origin(&c, "slots"), CONFIG_COMMAND_LINE);
    assert_int_equal(config_int(&c, "flush-rows"), 9);
    assert_int_equal(config_origin(&c, "flush-rows"), CONFIG_ENVIRONMENT);
    assert_int_equal(config_int(&c, "grace"), 1500000000);
    assert_int_equal(config_origin(&c, "grace"), CONFIG_FILE);
    assert_int_equal(config_int(&c, "default-max-tokens"), 2048);
    assert_int_equal(config_origin(&c, "default-max-tokens"), CONFIG_DEFAULT);
    assert_int_equal(c.n_operands, 1);
    config_close(&c);
    unlink(path);
}

static void refusals_name_both_values(void **state)
{
    (void)state;
    char *bad[] = {(char *)"TRANCHE_SLOTS=many", NULL};
    expect_refused("--slotz is no option of `tranche run`; the nearest is --slots", NULL, "--slotz",
                   "1");
    expect_refused("command line: slots: want 0 to 4096, found \"4097\"", NULL, "--slots", "4097");
    expect_refused("command line: slots: want a whole number, found \"1e3\"", NULL, "--slots",
                   "1e3");
    expect_refused("command line: slots: want 0 to 4096, found \"99999999999999999999\"", NULL,
                   "--slots", "99999999999999999999");
    expect_refused("command line: isa: want one of auto|scalar|avx2|avx512, found \"neon\"", NULL,
                   "--isa", "neon");
    expect_refused(
        "command line: grace: want a duration such as 250ms, 5s, 2m, 1h or 30d, found \"5\"", NULL,
        "--grace", "5");
    expect_refused("command line: flush-interval: want 0.01s to 3600s, found \"1ms\"", NULL,
                   "--flush-interval", "1ms");
    expect_refused("command line: strict: want true or false, found \"maybe\"", NULL,
                   "--strict=maybe", "x");
    expect_refused("TRANCHE_SLOTS: slots: want a whole number, found \"many\"", bad, "x", NULL);
    expect_refused("--slots: want a value (N), found the end of the line", NULL, "--slots", NULL);
    expect_refused("--decode is no option of `tranche run`; `tranche help` says whose", NULL,
                   "--decode", NULL);
    expect_refused("`tranche run`: want at most 1 operand, found \"b\" too", NULL, "a", "b");
}

static void commands_and_files_are_checked(void **state)
{
    (void)state;
    struct config c;
    struct err err = {0};
    assert_int_equal(open_args(&c, NULL, &err, "rum", NULL), E_USAGE);
    assert_string_equal(err.msg, "\"rum\" is no command; the nearest is \"run\"");
    config_close(&c);
    err = (struct err){0};
    assert_int_equal(open_args(&c, NULL, &err, "run", "--config", "/nonexistent/f", NULL), E_USAGE);
    assert_non_null(strstr(err.msg, "/nonexistent/f: No such file"));
    config_close(&c);
    err = (struct err){0};
    assert_int_equal(open_args(&c, NULL, &err, "run", NULL), E_OK);
    assert_int_equal(config_file_parse(&c, STR("slots=1\nslot = 2"), "f", &err), E_USAGE);
    assert_string_equal(err.msg, "f:2: \"slot\" is no option; the nearest is \"slots\"");
    err = (struct err){0};
    assert_int_equal(config_file_parse(&c, STR("slots"), "f", &err), E_USAGE);
    assert_string_equal(err.msg, "f:1: want `name = value`, found \"slots\"");
    config_close(&c);
    config_close(NULL);
}

static void slips_in_the_environment_are_told(void **state)
{
    (void)state;
    char *service[] = {(char *)"TRANCHE_SERVICE_HOST=10.0.0.1", NULL};
    char *slip[] = {(char *)"TRANCHE_SLOTZ=3", NULL};
    struct config c;
    struct err err = {0};
    assert_int_equal(open_args(&c, service, &err, "run", NULL), E_OK);
    assert_string_equal(c.warning, "");
    config_close(&c);
    assert_int_equal(open_args(&c, slip, &err, "run", NULL), E_OK);
    assert_non_null(strstr(c.warning, "TRANCHE_SLOTZ"));
    assert_non_null(strstr(c.warning, "--slots"));
    config_close(&c);
}

static int64_t size_of(const char *text)
{
    struct option o = {.name = "o", .type = OPTION_SIZE, .max = 0x1p46};
    struct config_value v = {.integer = -1};
    struct err err = {0};
    return config_value_parse(&v, &o, str_of(text), "t", &err) == E_OK ? v.integer : -1;
}

static int64_t ns_of(const char *text)
{
    struct option o = {.name = "o", .type = OPTION_DURATION, .max = 1e6};
    struct config_value v = {.integer = -1};
    struct err err = {0};
    return config_value_parse(&v, &o, str_of(text), "t", &err) == E_OK ? v.integer : -1;
}

static void units_are_exact(void **state)
{
    (void)state;
    assert_int_equal(size_of("4096"), 4096);
    assert_int_equal(size_of("1.5GiB"), 1610612736);
    assert_int_equal(size_of("2gb"), 2000000000);
    assert_int_equal(size_of("64TiB"), (int64_t)1 << 46);
    assert_int_equal(size_of("65TiB"), -1);
    assert_int_equal(size_of("-1"), -1);
    assert_int_equal(size_of("1 GiB"), -1);
    assert_int_equal(size_of("0x10"), -1);
    assert_int_equal(size_of("inf"), -1);
    assert_int_equal(size_of(""), -1);
    assert_int_equal(ns_of("0"), 0);
    assert_int_equal(ns_of("250ms"), 250000000);
    assert_int_equal(ns_of("1.5h"), 5400000000000);
    assert_int_equal(ns_of("1d"), 86400000000000);
    assert_int_equal(ns_of("5"), -1);
    assert_int_equal(ns_of("5 s"), -1);
    assert_int_equal(ns_of("ms"), -1);
}

static void every_option_has_help(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    for (size_t i = 0; i < command_count; i++)
        config_help(f, &command_table[i]);
    config_markdown(f);
    fclose(f);
    for (size_t i = 0; i < option_count; i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "  --%s", option_table[i].name);
        assert_non_null(strstr(text, flag));
        snprintf(flag, sizeof flag, "| `--%s` |", option_table[i].name);
        assert_non_null(strstr(text, flag));
    }
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1)
        assert_true(line[0] == '|' || end - line <= 100);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_in_range),
        cmocka_unit_test(table_is_sound),
        cmocka_unit_test(flag_beats_environment_beats_file),
        cmocka_unit_test(refusals_name_both_values),
        cmocka_unit_test(commands_and_files_are_checked),
        cmocka_unit_test(slips_in_the_environment_are_told),
        cmocka_unit_test(units_are_exact),
        cmocka_unit_test(every_option_has_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
