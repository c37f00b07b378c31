/* kafka_config: what the file may say, what it may not, and that secrets stay out of errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "worker/source/kafka_config.h"
#include "worker/source/source_open.h"

struct seen {
    char text[512];
};

static int note(void *ctx, const char *name, const char *value, struct err *err)
{
    struct seen *s = ctx;
    size_t n = strlen(s->text);
    if (strcmp(name, "refused") == 0)
        return err_set(err, E_USAGE, "%s: no", name);
    snprintf(s->text + n, sizeof s->text - n, "%s=%s;", name, value);
    return E_OK;
}

static int parse(struct seen *s, const char *text, struct err *err)
{
    *s = (struct seen){0};
    *err = (struct err){0};
    return kafka_config_parse(str_of(text), "c", note, NULL, s, err);
}

static void lines_become_properties(void **state)
{
    struct seen s;
    struct err err;
    (void)state;
    assert_int_equal(parse(&s, "# a = b\n\n a.b =\tc = d \r\ne=\nlast = x", &err), E_OK);
    assert_string_equal(s.text, "a.b=c = d;e=;last=x;");
    assert_int_equal(parse(&s, "", &err), E_OK);
}

static void refusals_name_the_line(void **state)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"a = b\nnothing", "c:2: want `name = value`"},
        {" = b", "c:1: want a name"},
        {"\nrefused = geheim", "c:2: refused: no"},
        {"auto.offset.reset = latest", "c:1: auto.offset.reset is set by tranche itself"},
        {"group.id.file = x", "c:1: group.id is set by tranche itself"},
        {"sasl.password.file = x", "c:1: sasl.password.file"},
    };
    struct seen s;
    struct err err;
    (void)state;
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        assert_int_equal(parse(&s, cases[i].text, &err), E_USAGE);
        assert_non_null(strstr(err.msg, cases[i].words));
        assert_null(strstr(err.msg, "geheim"));
    }
}

static void secrets_come_from_files(void **state)
{
    char folder[] = "/tmp/kafka_config_XXXXXX", secret[64], config[64];
    struct seen s = {0};
    struct err err = {0};
    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(secret, sizeof secret, "%s/secret", folder);
    snprintf(config, sizeof config, "%s/config", folder);
    FILE *f = fopen(secret, "w");
    fputs("two\nlines\n", f);
    fclose(f);
    f = fopen(config, "w");
    fprintf(f, "sasl.username = me\nsasl.password.file = %s\n", secret);
    fclose(f);
    assert_int_equal(kafka_config_read(config, note, &s, &err), E_OK);
    assert_string_equal(s.text, "sasl.username=me;sasl.password=two\nlines;");
    unlink(secret);
    assert_int_equal(kafka_config_read(config, note, &s, &err), E_USAGE);
    assert_non_null(strstr(err.msg, "secret: cannot open"));
    unlink(config);
    rmdir(folder);
}

static void hosts_of_this_machine(void **state)
{
    (void)state;
    assert_true(kafka_hosts_local(STR("localhost")));
    assert_true(kafka_hosts_local(STR("127.0.0.1:9092,[::1]:9093,PLAINTEXT://localhost:1")));
    assert_false(kafka_hosts_local(STR("localhost:1,broker:9092")));
    assert_false(kafka_hosts_local(STR("localhost.example:9092")));
    assert_false(kafka_hosts_local(STR("127.0.0.10")));
    assert_false(kafka_hosts_local(STR(",")));
}

static void urls(void **state)
{
    static const char *const wrong[] = {
        "",          "jobs",       "://a/b",          "kafka://",      "kafka:///t",
        "kafka://h", "kafka://h/", "kafka://u:p@h/t", "kafka://h/t t", "kafka://h/t\n",
        "file://"};
    struct source_url url;
    struct err err = {0};
    (void)state;
    assert_int_equal(source_url_parse(&url, STR("kafka://a:1,b:2/top.ic"), &err), E_OK);
    assert_true(str_eq(url.scheme, STR("kafka")) && str_eq(url.hosts, STR("a:1,b:2")) &&
                str_eq(url.name, STR("top.ic")));
    assert_int_equal(source_url_parse(&url, STR("file:///x/y.jsonl"), &err), E_OK);
    assert_true(str_eq(url.name, STR("/x/y.jsonl")) && url.hosts.len == 0);
    for (size_t i = 0; i < TR_COUNT(wrong); i++) {
        err = (struct err){0};
        assert_int_equal(source_url_parse(&url, str_of(wrong[i]), &err), E_USAGE);
        assert_null(strstr(err.msg, "u:p"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_become_properties), cmocka_unit_test(refusals_name_the_line),
        cmocka_unit_test(secrets_come_from_files), cmocka_unit_test(hosts_of_this_machine),
        cmocka_unit_test(urls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
