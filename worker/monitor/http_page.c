/* http_page: see http_page.h. */
#include "worker/monitor/http_page.h"

#include "engine/log.h"
#include "worker/monitor/bottleneck.h"
#include "worker/monitor/health.h"
#include "worker/monitor/metrics.h"
#include "worker/sink/sink.h"

static const int64_t SECOND_NS = 1000000000;

void text_html(struct text *out, struct str s)
{
    static const char special[] = "&<>\"'";
    static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        const char *found = c ? strchr(special, c) : NULL;
        if (found)
            text_add(out, str_of(entities[found - special]));
        else
            text_char(out, c < 0x20 || c == 0x7F ? ' ' : (char)c);
    }
}

static int64_t sum(enum metric m, int labels)
{
    int64_t all = 0;
    for (int i = 0; i < labels; i++)
        all += metric_get(m, i);
    return all;
}

void page_sample(struct page_rates *r, int64_t now_ns)
{
    if (r->n > 0 && now_ns - r->at_ns[(r->n - 1) % PAGE_SAMPLES] < SECOND_NS)
        return;
    int at = r->n++ % PAGE_SAMPLES;
    r->at_ns[at] = now_ns;
    r->tokens[at] = metric_get(METRIC_SAMPLED, 0);
    r->rows[at] = sum(METRIC_ROWS, RESULT_STATUSES);
}

/* From the oldest sample to the newest. */
static double rate(const struct page_rates *r, const int64_t *values)
{
    int last = (r->n - 1) % PAGE_SAMPLES, first = r->n > PAGE_SAMPLES ? r->n % PAGE_SAMPLES : 0;
    if (r->n < 2)
        return 0;
    double seconds = (double)(r->at_ns[last] - r->at_ns[first]) / 1e9;
    return (double)(values[last] - values[first]) / seconds;
}

static void row(struct text *out, const char *name, const char *fmt, ...) TR_PRINTF(3, 4);
static void row(struct text *out, const char *name, const char *fmt, ...)
{
    char value[160];
    va_list args;
    va_start(args, fmt);
    vsnprintf(value, sizeof value, fmt, args);
    va_end(args);
    text_f(out, "<tr><th>%s</th><td>", name);
    text_html(out, str_of(value));
    text_f(out, "</td></tr>\n");
}

static void count(struct text *out, const char *name, enum metric m)
{
    int64_t v = metric_get(m, 0);
    if (v != METRIC_UNKNOWN)
        row(out, name, "%lld", (long long)v);
}

static void put_state(struct text *out, int64_t now_ns)
{
    struct text why = {0};
    bool alive = health_alive(now_ns, &why), ready = health_ready(&why);
    text_f(out, "<p class=\"%s\">%s</p>\n", alive && ready ? "well" : "ill",
           !alive  ? "stands still"
           : ready ? "ready"
                   : "not ready");
    if (why.len) {
        text_f(out, "<pre>");
        text_html(out, text_view(&why));
        text_f(out, "</pre>\n");
    }
    text_close(&why);
}

static void put_work(struct text *out, const struct page_rates *r)
{
    text_f(out, "<h2>Work</h2>\n<table>\n");
    for (int i = 0; i < RESULT_STATUSES; i++)
        if (i == RESULT_OK || metric_get(METRIC_ROWS, i))
            row(out, result_status_name((enum result_status)i), "%lld rows",
                (long long)metric_get(METRIC_ROWS, i));
    row(out, "rate", "%.1f rows/s, %.0f tokens/s", rate(r, r->rows), rate(r, r->tokens));
    count(out, "in hand", METRIC_OUTSTANDING);
    count(out, "left at the source", METRIC_LAG);
    count(out, "pending in the group", METRIC_PENDING);
    row(out, "oldest message in hand", "%.1f s", (double)metric_get(METRIC_QUEUE_AGE, 0) / 1e9);
    count(out, "dead letters", METRIC_DEAD_LETTERS);
    count(out, "in the spool", METRIC_SPOOLED);
    int64_t right = metric_get(METRIC_CHECKED_ANSWERS, 1),
            checked = right + metric_get(METRIC_CHECKED_ANSWERS, 0);
    if (checked)
        row(out, "correct answers", "%lld of %lld", (long long)right, (long long)checked);
    text_f(out, "</table>\n<h2>Engine</h2>\n<table>\n");
    row(out, "running", "%lld of %lld slots", (long long)metric_get(METRIC_RUNNING, 0),
        (long long)metric_get(METRIC_SLOTS, 0));
    row(out, "slots in use so far", "%.1f %%", (double)metric_get(METRIC_OCCUPANCY, 0) / 1e4);
    row(out, "KV pages", "%lld of %lld", (long long)metric_get(METRIC_PAGES_USED, 0),
        (long long)metric_get(METRIC_PAGES, 0));
    count(out, "evictions", METRIC_EVICTIONS);
    text_f(out, "</table>\n");
}

/* What the time went to, and the cards where a driver tells of them. */
static void put_machine(struct text *out)
{
    static const char *const names[] = {"idle",     "source", "prepare",
                                        "KV pages", "engine", "database"};
    int64_t all = sum(METRIC_BOTTLENECK, BOTTLENECKS);
    text_f(out, "<h2>What was in the way</h2>\n<table>\n");
    for (int i = 0; i < BOTTLENECKS; i++)
        if (metric_get(METRIC_BOTTLENECK, i))
            row(out, names[i], "%.1f %%",
                100 * (double)metric_get(METRIC_BOTTLENECK, i) / (double)all);
    for (int i = 0; i < METRIC_LABELS_MAX; i++) {
        char name[16];
        snprintf(name, sizeof name, "GPU %d", i);
        if (metric_get(METRIC_GPU_MEMORY, i) > 0)
            row(out, name, "%.1f of %.1f GiB, busy %.0f %%, %lld degrees",
                (double)metric_get(METRIC_GPU_MEMORY_USED, i) / 1073741824,
                (double)metric_get(METRIC_GPU_MEMORY, i) / 1073741824,
                (double)TR_MAX(metric_get(METRIC_GPU_BUSY, i), (int64_t)0) / 1e4,
                (long long)TR_MAX(metric_get(METRIC_GPU_CELSIUS, i), (int64_t)0));
    }
    text_f(out, "</table>\n");
}

static void put_event(void *ctx, struct str line)
{
    text_html(ctx, line);
    text_char(ctx, '\n');
}

void page_render(struct text *out, const struct page_rates *r, int64_t now_ns, int64_t wall_ns)
{
    text_f(out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                "<meta http-equiv=\"refresh\" content=\"5\">\n"
                "<meta name=\"viewport\" content=\"width=device-width\">\n"
                "<title>tranche</title>\n<style>\n"
                "body{font:16px/1.4 system-ui,sans-serif;margin:2em auto;max-width:50em;"
                "padding:0 1em}\n"
                "th{text-align:left;font-weight:normal;padding-right:2em;color:#555}\n"
                "td{font-variant-numeric:tabular-nums}\n"
                "pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}\n"
                ".well,.ill{font-size:1.4em;font-weight:bold;color:#060}.ill{color:#a00}\n"
                "@media(prefers-color-scheme:dark){body{background:#111;color:#eee}"
                "th{color:#aaa}a{color:#9cf}.well{color:#6d6}.ill{color:#f77}}\n"
                "</style></head><body>\n<h1>tranche worker</h1>\n");
    put_state(out, now_ns);
    double up = (double)(wall_ns - metric_get(METRIC_START_TIME, 0)) / 1e9;
    text_f(out, "<p>This process has run for %.0f s; its counts begin with it.</p>\n", up);
    put_work(out, r);
    put_machine(out);
    text_f(out, "<h2>Last warnings and errors</h2>\n<pre>");
    size_t before = out->len;
    log_recent(put_event, out);
    text_f(out, out->len == before ? "none</pre>\n" : "</pre>\n");
    text_f(out, "<p><a href=\"metrics\">metrics</a> <a href=\"healthz\">healthz</a> "
                "<a href=\"readyz\">readyz</a></p>\n</body></html>\n");
}
