/* postgres_place: a server is held to its certificate wherever the name of it came from. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/sink/postgres_connection.h"

static const char *const names[] = {"PGHOST",    "PGHOSTADDR",    "PGPORT",
                                    "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE"};
static char services[] = "/tmp/tranche-services-XXXXXX";

static int set_up(void **state)
{
    (void)state;
    static const char text[] = "[far]\nhost=db.example.org\nport=6432\n[near]\nhost=localhost\n";
    int fd = mkstemp(services);
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    return fd < 0 || write(fd, text, sizeof text - 1) < 0 || close(fd) < 0;
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(services);
}

/* "PGHOST=a PGPORT=1"; what is not named is not there. */
static void environment(const char *settings)
{
    char copy[200], *rest = copy;
    for (size_t i = 0; i < TR_COUNT(names); i++)
        unsetenv(names[i]);
    setenv("PGSERVICEFILE", services, 1);
    snprintf(copy, sizeof copy, "%s", settings);
    for (char *value; (value = strsep(&rest, " "));) {
        const char *name = strsep(&value, "=");
        if (value)
            setenv(name, value, 1);
    }
}

static const char *value_of(const struct postgres *p, const char *key)
{
    const char *found = "";
    for (int i = 0; i < p->n_parameters; i++)
        if (strcmp(p->keys[i], key) == 0)
            found = p->values[i];
    return found;
}

static void expect(const char *what, const char *got, const char *want)
{
    if (strcmp(got, want) != 0)
        fail_msg("%s: want '%s', got '%s'", what, want, got);
}

/* "": here, so that nothing is asked. */
static void the_host_that_libpq_finds_is_judged(void **state)
{
    static const char *const cases[][3] = {
        {"", "postgres:///llm", ""},
        {"PGHOST=/run/postgresql", "postgres:///llm", ""},
        {"PGHOST=localhost", "postgres:///llm", ""},
        {"PGHOST=127.0.0.1,::1", "postgres:///llm", ""},
        {"PGHOST=db.example.org", "postgres:///llm", "verify-full"},
        {"PGHOST=db.example.org PGSSLMODE=disable", "postgres:///llm", "verify-full"},
        {"PGHOST=localhost,db.example.org", "postgres:///llm", "verify-full"},
        {"PGHOST=db.example.org", "postgres://localhost/llm", ""},
        {"PGHOSTADDR=192.0.2.1", "postgres://localhost/llm", "verify-full"},
        {"PGHOSTADDR=127.0.0.1 PGHOST=db.example.org", "postgres:///llm", ""},
        {"PGSERVICE=far", "postgres:///llm", "verify-full"},
        {"PGSERVICE=near", "postgres:///llm", ""},
        {"", "postgres:///llm?service=far", "verify-full"},
        {"PGHOST=db.example.org", "postgres:///llm?service=near", ""},
        {"", "postgres://127.example.org/llm", "verify-full"},
        {"", "postgres:///llm?host=localhost,db.example.org&hostaddr=127.0.0.1,", "verify-full"},
    };
    (void)state;
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        char what[200];
        struct postgres p;
        struct err err = {0};
        struct postgres_opts o = {.url = cases[i][1], .clock = clock_system()};
        snprintf(what, sizeof what, "%s %s", cases[i][0], o.url);
        environment(cases[i][0]);
        if (postgres_open(&p, &o, &err) < 0)
            fail_msg("%s: %s", what, err.msg);
        expect(what, value_of(&p, "sslmode"), cases[i][2]);
        postgres_close(&p);
        o.allow_insecure = true; /* then libpq's own, of PGSSLMODE or a service too */
        if (postgres_open(&p, &o, &err) < 0)
            fail_msg("%s: %s", what, err.msg);
        expect(what, value_of(&p, "sslmode"), "");
        postgres_close(&p);
    }
}

static void less_is_refused_by_the_name_found(void **state)
{
    struct postgres p;
    struct err err = {0};
    struct postgres_opts o = {.url = "postgres:///llm?sslmode=require", .clock = clock_system()};
    (void)state;
    environment("PGHOST=db.example.org");
    assert_int_equal(postgres_open(&p, &o, &err), E_USAGE);
    assert_string_equal(err.msg, "postgres://db.example.org:5432/llm: want sslmode=verify-full, "
                                 "found require; --allow-insecure permits it");
    postgres_close(&p);
    environment("PGHOST=/run/postgresql");
    assert_int_equal(postgres_open(&p, &o, &err), E_OK);
    postgres_close(&p);
}

/* A service that comes into being later would not have been judged. */
static void a_service_that_is_not_there(void **state)
{
    struct postgres p;
    struct err err = {0};
    struct postgres_opts o = {.url = "postgres://pod@/llm?service=none", .clock = clock_system()};
    (void)state;
    environment("");
    assert_int_equal(postgres_open(&p, &o, &err), E_USAGE);
    assert_non_null(strstr(err.msg, "definition of service \"none\" not found"));
    postgres_close(&p);
}

/* What was judged is what is connected to, whatever the file says then; and it can be rotated. */
static void the_place_found_stays(void **state)
{
    struct postgres p;
    struct err err = {0};
    struct postgres_opts o = {.url = "postgres:///llm?service=far", .clock = clock_system()};
    (void)state;
    environment("");
    assert_int_equal(postgres_open(&p, &o, &err), E_OK);
    expect("service", value_of(&p, "host"), "db.example.org");
    expect("service", value_of(&p, "port"), "6432");
    postgres_close(&p);
    o.url = "postgres:///llm";
    environment("PGHOST=a,b PGPORT=1,2");
    assert_int_equal(postgres_open(&p, &o, &err), E_OK);
    assert_int_equal(postgres_hosts(&p), 2);
    postgres_next_host(&p);
    expect("rotated", value_of(&p, "host"), "b,a");
    expect("rotated", value_of(&p, "port"), "2,1");
    postgres_close(&p);
    o.url = "postgres:///llm?host=a,b";
    assert_int_equal(postgres_open(&p, &o, &err), E_OK);
    postgres_next_host(&p);
    expect("rotated", value_of(&p, "host"), "b,a");
    expect("rotated", value_of(&p, "port"), "2,1");
    postgres_close(&p);
}

static void open_asks_nobody(void **state)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof at;
    char url[64];
    struct postgres p;
    struct err err = {0};
    struct postgres_opts o = {.url = url, .clock = clock_system()};
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, n), 0);
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &n), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    snprintf(url, sizeof url, "postgres://127.0.0.1:%d/llm", ntohs(at.sin_port));
    environment("");
    assert_int_equal(postgres_open(&p, &o, &err), E_OK);
    assert_int_equal(accept(fd, NULL, NULL), -1);
    postgres_close(&p);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_host_that_libpq_finds_is_judged),
        cmocka_unit_test(less_is_refused_by_the_name_found),
        cmocka_unit_test(a_service_that_is_not_there),
        cmocka_unit_test(the_place_found_stays),
        cmocka_unit_test(open_asks_nobody),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
