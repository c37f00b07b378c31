/* redis_settings: URLs, hosts, the config file, and what does not fit together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/source/source_redis.h"

static void urls(void **state)
{
    (void)state;
    static const struct {
        const char *url;
        bool tls, sentinel;
        int n, port;
        const char *host, *stream;
    } cases[] = {
        {"redis://localhost/jobs", false, false, 1, 6379, "localhost", "jobs"},
        {"rediss://h.example:7000/{tranche:q}:jobs", true, false, 1, 7000, "h.example",
         "{tranche:q}:jobs"},
        {"redis://[::1]:7001/a/b", false, false, 1, 7001, "::1", "a/b"},
        {"redis://[fe80::1]/x", false, false, 1, 6379, "fe80::1", "x"},
        {"redis-sentinel://a,b:1,c/jobs", false, true, 3, 26379, "a", "jobs"},
        {"rediss-sentinel://a:5/jobs", true, true, 1, 5, "a", "jobs"},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct source_url url;
        struct redis_settings s;
        struct err err = {0};
        redis_settings_init(&s);
        assert_int_equal(source_url_parse(&url, str_of(cases[i].url), &err), E_OK);
        assert_int_equal(redis_settings_url(&s, url.scheme, url.hosts, &err), E_OK);
        assert_int_equal(s.tls, cases[i].tls);
        assert_int_equal(s.sentinel, cases[i].sentinel);
        assert_int_equal(s.n_hosts, cases[i].n);
        assert_string_equal(s.hosts[0].name, cases[i].host);
        assert_int_equal(s.hosts[0].port, cases[i].port);
        assert_true(str_eq(url.name, str_of(cases[i].stream)));
    }
}

static void bad_hosts(void **state)
{
    (void)state;
    static const char *const bad[] = {"",        ":6379", "h:",     "h:0",
                                      "h:65536", "h:6x",  "[::1]x", "[]:6379",
                                      "a,b",     "h:-1",  "a,",     "h:99999999999999999999"};
    for (size_t i = 0; i < TR_COUNT(bad); i++) {
        struct redis_settings s;
        struct err err = {0};
        redis_settings_init(&s);
        assert_int_equal(redis_settings_url(&s, STR("redis"), str_of(bad[i]), &err), E_USAGE);
        assert_non_null(strstr(err.msg, "want"));
    }
    struct redis_settings s;
    struct err err = {0};
    assert_int_equal(redis_settings_url(&s, STR("redis-sentinel"), STR("a,b,c,d,e,f,g,h,i"), &err),
                     E_USAGE);
}

static int parse(struct redis_settings *s, const char *text, struct err *err)
{
    redis_settings_init(s);
    return redis_settings_parse(s, str_of(text), "broker.conf", err);
}

static void config_file(void **state)
{
    (void)state;
    struct redis_settings s;
    struct err err = {0};
    assert_int_equal(parse(&s,
                           "# a comment\n\n lease = 90s\ntrim.keep=never\r\n"
                           "username = w\npassword.file = /run/p\ntls.ca.file=/run/ca.crt",
                           &err),
                     E_OK);
    assert_true(s.lease_ns == 90000000000 && s.trim_keep_ns == -1);
    assert_string_equal(s.user, "w");
    assert_string_equal(s.password_file, "/run/p");
    assert_string_equal(s.ca_file, "/run/ca.crt");
    assert_int_equal(parse(&s, "", &err), E_OK);
    assert_true(s.lease_ns == 120000000000 && s.trim_keep_ns == 3600000000000);
}

static void config_mistakes_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"\nleese = 1s", "broker.conf:2"}, {"leese = 1s", "nearest: lease"},
        {"lease = 1ms", "lease"},          {"lease = x", "lease"},
        {"lease", "name = value"},         {"password = hunter2", "password.file"},
        {"trim.keep = -1s", "trim.keep"},  {"username =", "username"},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct redis_settings s;
        struct err err = {0};
        assert_int_equal(parse(&s, cases[i].text, &err), E_USAGE);
        assert_non_null(strstr(err.msg, cases[i].says));
        assert_null(strstr(err.msg, "hunter2"));
    }
}

static void what_does_not_fit_together(void **state)
{
    (void)state;
    static const struct {
        const char *scheme, *text;
        bool fits;
    } cases[] = {
        {"redis", "", true},
        {"redis-sentinel", "", false},
        {"redis-sentinel", "sentinel.master = m", true},
        {"redis", "sentinel.master = m", false},
        {"rediss", "tls.cert.file = a", false},
        {"rediss", "tls.cert.file = a\ntls.key.file = b", true},
        {"redis", "tls.ca.file = a", false},
        {"redis", "username = u", false},
        {"redis", "username = u\npassword.file = p", true},
        {"redis", "password.file = p", true},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct redis_settings s;
        struct err err = {0};
        assert_int_equal(parse(&s, cases[i].text, &err), E_OK);
        assert_int_equal(redis_settings_url(&s, str_of(cases[i].scheme), STR("h"), &err), E_OK);
        assert_int_equal(redis_settings_check(&s, &err), cases[i].fits ? E_OK : E_USAGE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urls),
        cmocka_unit_test(bad_hosts),
        cmocka_unit_test(config_file),
        cmocka_unit_test(config_mistakes_are_named),
        cmocka_unit_test(what_does_not_fit_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
