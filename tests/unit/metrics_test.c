/* Unit tests of metrics.h, health.h and http_page.h: what is counted comes out as Prometheus text
 * that parses, and probes say what they are told. The binary's own answers: tests/run/test_http.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "engine/log.h"
#include "worker/monitor/health.h"
#include "worker/monitor/http_page.h"
#include "worker/monitor/metrics.h"

/* The sample that begins with `series`; fails where it is absent. */
static double sample(const char *text, const char *series)
{
    size_t n = strlen(series);
    for (const char *at = text; (at = strstr(at, series)); at++)
        if ((at == text || at[-1] == '\n') && at[n] == ' ')
            return strtod(at + n + 1, NULL);
    fail_msg("no sample %s", series);
    return 0;
}

static char *rendered(struct text *t)
{
    text_reset(t);
    metrics_render(t);
    text_char(t, '\0');
    assert_false(t->failed);
    return t->ptr;
}

static bool name_char(char c, bool first)
{
    return c == '_' || (c >= 'a' && c <= 'z') || (!first && c >= '0' && c <= '9');
}

/* One line of the text format, strictly; *name and *n its family's name. */
static void check_line(const char *line, const char *family, size_t family_len)
{
    const char *p = line;
    if (line[0] == '#') {
        assert_true(strncmp(line, "# HELP tranche_", 15) == 0 ||
                    strncmp(line, "# TYPE tranche_", 15) == 0);
        return;
    }
    while (name_char(*p, p == line))
        p++;
    assert_true((size_t)(p - line) >= family_len && strncmp(line, family, family_len) == 0);
    if (*p == '{') {
        do {
            const char *label = ++p;
            while (name_char(*p, p == label))
                p++;
            assert_true(p > label && p[0] == '=' && p[1] == '"');
            for (p += 2; *p != '"'; p++) {
                assert_true(*p && *p != '\n');
                p += *p == '\\';
            }
        } while (*++p == ',');
        assert_int_equal(*p++, '}');
    }
    assert_int_equal(*p++, ' ');
    char *end;
    strtod(p, &end);
    assert_true(end > p && *end == '\n');
}

static void test_text_is_well_formed(void **state)
{
    struct text t = {0};
    (void)state;
    metrics_reset();
    metrics_model("cpu \"x\"\\y\nz", "0123", "main");
    metrics_source("kafka", str_of("a \"topic\""), NULL);
    metric_set(METRIC_LAG, 0, METRIC_UNKNOWN);
    const char *family = "", *text = rendered(&t);
    size_t family_len = 0;
    int families = 0, samples = 0;
    assert_non_null(strstr(text, "fingerprint=\"cpu \\\"x\\\"\\\\y\\nz\""));
    assert_non_null(strstr(text, "\ntranche_source_info{kind=\"kafka\",queue=\"a \\\"topic\\\"\","
                                 "group=\"\"} 1\n"));
    assert_null(strstr(text, "\ntranche_source_lag_messages "));
    for (const char *line = text; *line; line = strchr(line, '\n') + 1) {
        if (strncmp(line, "# HELP ", 7) == 0) {
            family = line + 7;
            family_len = strcspn(family, " ");
            families++;
        }
        check_line(line, family, family_len);
        samples += line[0] != '#';
    }
    assert_int_equal(families, METRICS + 3);
    assert_true(samples > METRICS);
    text_close(&t);
}

static void test_values_and_units(void **state)
{
    struct text t = {0};
    (void)state;
    metrics_reset();
    metric_add(METRIC_ROWS, 2, 3);
    metric_add(METRIC_ROWS, 2, 4);
    metric_set(METRIC_QUEUE_AGE, 0, 90071992547409931);
    metric_state(METRIC_SINK_STATE, 1);
    metric_state(METRIC_SINK_STATE, 2);
    const char *text = rendered(&t);
    assert_true(sample(text, "tranche_rows_total{status=\"invalid\"}") == 7);
    assert_true(sample(text, "tranche_rows_total{status=\"ok\"}") == 0);
    assert_non_null(strstr(text, "\ntranche_queue_age_seconds 90071992.547409931\n"));
    assert_true(sample(text, "tranche_sink_state{state=\"away\"}") == 0);
    assert_true(sample(text, "tranche_sink_state{state=\"away_full\"}") == 1);
    text_close(&t);
}

static void test_histogram(void **state)
{
    struct text t = {0};
    (void)state;
    metrics_reset();
    metric_observe(METRIC_STAGE, METRIC_STAGE_RUN, 1000000); /* a bound is included */
    metric_observe(METRIC_STAGE, METRIC_STAGE_RUN, 1000001);
    metric_observe(METRIC_STAGE, METRIC_STAGE_RUN, 40000000000000); /* above the last bound */
    metric_observe(METRIC_STAGE, METRIC_STAGE_RUN, -5);             /* a clock that went back */
    const char *text = rendered(&t);
    assert_true(sample(text, "tranche_stage_seconds_bucket{stage=\"run\",le=\"0.001\"}") == 2);
    assert_true(sample(text, "tranche_stage_seconds_bucket{stage=\"run\",le=\"0.005\"}") == 3);
    assert_true(sample(text, "tranche_stage_seconds_bucket{stage=\"run\",le=\"28800\"}") == 3);
    assert_true(sample(text, "tranche_stage_seconds_bucket{stage=\"run\",le=\"+Inf\"}") == 4);
    assert_true(sample(text, "tranche_stage_seconds_count{stage=\"run\"}") == 4);
    assert_non_null(strstr(text, "_sum{stage=\"run\"} 40000.002000001\n"));
    assert_true(sample(text, "tranche_stage_seconds_count{stage=\"sink\"}") == 0);
    text_close(&t);
}

enum { THREADS = 4, TIMES = 20000 };
static void *add_many(void *arg)
{
    (void)arg;
    for (int i = 0; i < TIMES; i++) {
        metric_add(METRIC_PROMPT_TOKENS, 0, 1);
        metric_observe(METRIC_STAGE, METRIC_STAGE_PREPARE, i);
    }
    return NULL;
}

static void test_no_update_is_lost(void **state)
{
    pthread_t threads[THREADS];
    struct text t = {0};
    (void)state;
    metrics_reset();
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    const char *text = rendered(&t);
    assert_true(sample(text, "tranche_prompt_tokens_total") == THREADS * TIMES);
    assert_true(sample(text, "tranche_stage_seconds_count{stage=\"prepare\"}") == THREADS * TIMES);
    text_close(&t);
}

static bool says(bool (*probe)(struct text *), const char *want)
{
    struct text why = {0};
    bool yes = probe(&why);
    text_char(&why, '\0');
    bool as_wanted = strcmp(why.ptr, want) == 0;
    text_close(&why);
    return as_wanted && yes == (*want == '\0');
}

static void test_ready(void **state)
{
    (void)state;
    health_begin(0);
    assert_true(says(health_ready, "start: the model and both ends are not open yet\n"));
    assert_int_equal(metric_get(METRIC_READY, 0), 0);
    health_set(HEALTH_START, false);
    assert_true(says(health_ready, ""));
    assert_int_equal(metric_get(METRIC_READY, 0), 1);
    health_set(HEALTH_SINK, true);
    health_set(HEALTH_BREAKER, true);
    assert_true(says(health_ready, "database: did not answer the last call\nbreaker: open\n"));
    health_begin(0);
    assert_true(says(health_ready, "start: the model and both ends are not open yet\n"));
}

static const int64_t S = 1000000000;
static int64_t now_ns;
static bool alive(struct text *why)
{
    return health_alive(now_ns, why);
}

static void test_alive(void **state)
{
    (void)state;
    now_ns = 1000 * S;
    health_begin(10 * S);
    assert_true(says(alive, "")); /* loads */
    health_beat(now_ns);
    health_engine(1, now_ns);
    now_ns += 10 * S;
    assert_true(says(alive, ""));
    now_ns += S;
    health_beat(now_ns);
    assert_true(says(alive, "engine loop: stood still for 11.0 s, want at most 10.0 s\n"));
    health_engine(1, 0);
    assert_true(says(alive, ""));
    now_ns += 12 * S;
    assert_true(says(alive, "worker loop: stood still for 12.0 s, want at most 10.0 s\n"));
    health_rest();
    assert_true(says(alive, ""));
    health_begin(0);
    health_beat(now_ns);
    now_ns += 100000 * S;
    assert_true(says(alive, "")); /* no watchdog */
}

static void test_page_rates(void **state)
{
    struct page_rates r = {0};
    struct text t = {0};
    (void)state;
    metrics_reset();
    health_begin(0);
    page_render(&t, &r, S, S);     /* before the first sample */
    for (int i = 0; i < 40; i++) { /* two a second are asked for, one is kept; 30 tokens each */
        metric_set(METRIC_SAMPLED, 0, i * 15);
        metric_set(METRIC_ROWS, i % 2, i);
        page_sample(&r, S + i * S / 2);
    }
    assert_int_equal(r.n, 20);
    text_reset(&t);
    page_render(&t, &r, S, S);
    text_char(&t, '\0');
    assert_non_null(strstr(t.ptr, " rows/s, 30 tokens/s"));
    assert_non_null(strstr(t.ptr, "not ready"));
    text_close(&t);
}

static void test_page_escapes(void **state)
{
    struct text t = {0};
    struct page_rates r = {0};
    (void)state;
    text_html(&t, (struct str){"<a href='x'>\"&\0\x01\xC3\xA9", 18});
    text_char(&t, '\0');
    assert_string_equal(t.ptr, "&lt;a href=&#39;x&#39;&gt;&quot;&amp;  \xC3\xA9");
    text_reset(&t);
    log_setup(LOG_WARN, LOG_LOGFMT, open("/dev/null", O_WRONLY | O_CLOEXEC));
    LOG(LOG_WARN, "told", LOG_S("error", "<script>alert(1)</script>"));
    for (int i = 0; i < 12; i++) {
        char long_error[700];
        memset(long_error, 'x', sizeof long_error - 1);
        long_error[sizeof long_error - 1] = '\0';
        LOG(LOG_WARN, i < 7 ? "older" : "newer", LOG_S("error", i == 11 ? long_error : "y"));
        if (i == 2) {
            page_render(&t, &r, S, S);
            text_char(&t, '\0');
            assert_non_null(strstr(t.ptr, "&lt;script&gt;alert(1)&lt;/script&gt;"));
            assert_null(strstr(t.ptr, "<script"));
        }
    }
    text_reset(&t);
    page_render(&t, &r, S, S);
    text_char(&t, '\0');
    assert_null(strstr(t.ptr, "alert"));
    assert_null(strstr(t.ptr, "event=told"));
    assert_non_null(strstr(t.ptr, "xxx\n</pre>"));
    text_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_well_formed),
        cmocka_unit_test(test_values_and_units),
        cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_no_update_is_lost),
        cmocka_unit_test(test_ready),
        cmocka_unit_test(test_alive),
        cmocka_unit_test(test_page_rates),
        cmocka_unit_test(test_page_escapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
