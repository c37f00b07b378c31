/* postgres_hosts: of several hosts the first may be silent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <unistd.h>

#include "engine/log.h"
#include "tests/unit/postgres_rows.h"
#include "worker/sink/postgres_sink.h"

static void a_list_is_begun_one_further_on(void **state)
{
    static const char *const lists[][2] = {
        {"a,b,c", "b,c,a"}, {"one,2", "2,one"}, {",b", "b,"}, {"b,", ",b"},
        {",", ","},         {"alone", "alone"}, {"", ""}};
    (void)state;
    for (size_t i = 0; i < TR_COUNT(lists); i++) {
        char list[16];
        strcpy(list, lists[i][0]);
        postgres_rotate(list);
        assert_string_equal(list, lists[i][1]);
    }
}

static const char *value_of(const struct postgres *p, const char *key)
{
    const char *found = NULL;
    for (int i = 0; i < p->n_parameters; i++)
        if (strcmp(p->keys[i], key) == 0)
            found = p->values[i];
    return found;
}

/* Hosts, addresses and ports move together; what goes for all of them stays. */
static void what_belongs_to_a_host_moves_with_it(void **state)
{
    static const char *const cases[][4] = {
        {"postgres://[::1]:1,localhost:2,127.0.0.3:3/llm", "localhost,127.0.0.3,::1", NULL,
         "2,3,1"},
        {"postgres://localhost,127.0.0.2/llm?port=7", "127.0.0.2,localhost", NULL, "7"},
        {"postgres:///llm?host=a,b&hostaddr=127.0.0.1,127.0.0.2", "b,a", "127.0.0.2,127.0.0.1",
         NULL},
        {"postgres://localhost:9/llm", "localhost", NULL, "9"},
    };
    static const int hosts[] = {3, 2, 2, 1};
    (void)state;
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct postgres p;
        struct err err = {0};
        struct postgres_opts o = {.url = cases[i][0], .clock = clock_system()};
        if (postgres_open(&p, &o, &err) < 0)
            fail_msg("%s: %s", o.url, err.msg);
        assert_int_equal(postgres_hosts(&p), hosts[i]);
        postgres_next_host(&p);
        const char *keys[] = {"host", "hostaddr", "port"};
        for (int k = 0; k < 3; k++) {
            const char *found = value_of(&p, keys[k]), *want = cases[i][k + 1];
            if (!want != !found || (want && strcmp(want, found) != 0))
                fail_msg("%s: want %s %s, found %s", o.url, keys[k], want ? want : "none",
                         found ? found : "none");
        }
        assert_string_equal(value_of(&p, "target_session_attrs"), "read-write");
        for (int k = 1; k < hosts[i]; k++) /* all the way round */
            postgres_next_host(&p);
        postgres_close(&p);
    }
}

/* Takes connections and never says a word, as a server that stands still. */
static int silent_listener(int *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, n) < 0 || listen(fd, 16) < 0 ||
        getsockname(fd, (struct sockaddr *)&at, &n) < 0)
        fail_msg("no listener");
    *port = ntohs(at.sin_port);
    return fd;
}

/* Power lost by the first host, so to say: the second is found in one try, and asked first from
 * there on. */
static void a_silent_host_is_passed_over(void **state)
{
    (void)state;
    char url[512];
    int port;
    struct err err = {0};
    struct postgres_opts o = opts;
    struct sink *s = fresh();
    sink_close(s);
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    int fd = silent_listener(&port);
    snprintf(url, sizeof url, "postgres://%s@/%s?host=127.0.0.1,%s&port=%d,%s", PQuser(direct),
             PQdb(direct), PQhost(direct), port, PQport(direct));
    o.url = url;
    o.connect_ns = 0; /* once, as doctor does */
    if (sink_postgres_open(&s, &o, &err) < 0)
        fail_msg("%s", err.msg);
    struct postgres *p = &((struct sink_postgres *)s)->pg;
    struct result row = make_result("a", STR("x"), RESULT_OK);
    assert_string_equal(PQport(p->conn), PQport(direct));
    postgres_disconnect(p);
    int64_t start = clock_mono_ns(clock_system());
    assert_int_equal(commit_all(s, &row, 1, NULL, 0).inserted, 1);
    assert_int_equal(ask("SELECT count(*) FROM tranche.results"), 1);
    assert_true(clock_mono_ns(clock_system()) - start < 5000000000); /* what the first one takes */
    sink_close(s);
    close(fd);
}

/* Nobody answers: each has had its turn, and the last is named. */
static void all_hosts_are_silent(void **state)
{
    (void)state;
    char url[512], named[64];
    int ports[2], fds[2];
    struct postgres p;
    struct postgres_failure f;
    struct err err = {0};
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    for (int i = 0; i < 2; i++)
        fds[i] = silent_listener(&ports[i]);
    snprintf(url, sizeof url, "postgres://127.0.0.1:%d,127.0.0.1:%d/llm", ports[0], ports[1]);
    struct postgres_opts o = {.url = url, .clock = clock_system()};
    if (postgres_open(&p, &o, &err) < 0)
        fail_msg("%s", err.msg);
    assert_int_equal(postgres_connect(&p, &f), E_RETRY);
    snprintf(named, sizeof named, "host 127.0.0.1, port %d", ports[1]);
    assert_non_null(strstr(f.text, named));
    assert_int_equal(f.action, SQL_WAIT);
    postgres_close(&p);
    for (int i = 0; i < 2; i++)
        close(fds[i]);
}

/* A stop's time is over: not even a name is looked up, which nothing could cut short. */
static void no_connect_begins_behind_its_end(void **state)
{
    (void)state;
    char url[128];
    int port, fd = silent_listener(&port);
    struct postgres p;
    struct postgres_failure f;
    struct err err = {0};
    snprintf(url, sizeof url, "postgres://127.0.0.1:%d/llm", port);
    struct postgres_opts o = {.url = url, .clock = clock_system()};
    if (postgres_open(&p, &o, &err) < 0)
        fail_msg("%s", err.msg);
    atomic_llong until_ns = clock_mono_ns(o.clock) - 1;
    p.until_ns = &until_ns;
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    assert_int_equal(postgres_connect(&p, &f), E_RETRY);
    assert_int_equal(accept(fd, NULL, NULL), -1);
    assert_string_equal(f.text, "no connect is begun: the time to stop has passed");
    assert_int_equal(f.action, SQL_WAIT);
    assert_false(f.late);
    postgres_close(&p);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_list_is_begun_one_further_on),
        cmocka_unit_test(what_belongs_to_a_host_moves_with_it),
        cmocka_unit_test(a_silent_host_is_passed_over),
        cmocka_unit_test(all_hosts_are_silent),
        cmocka_unit_test(no_connect_begins_behind_its_end),
    };
    return cmocka_run_group_tests(tests, group_up, group_down);
}
