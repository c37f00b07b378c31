/* progress: see progress.h. Each line goes out in one write, as log lines do, so that threads that
 * log meanwhile cannot come between a line and what clears the one before it. */
#include "worker/monitor/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include "engine/log.h"

static const int64_t LIVE_EVERY_NS = 250000000, PLAIN_EVERY_NS = 5000000000,
                     PLAIN_FIRST_NS = 1000000000; /* a run of seconds says something too */

bool progress_is_live(enum progress_mode mode, FILE *out)
{
    return mode == PROGRESS_LIVE || (mode == PROGRESS_AUTO && isatty(fileno(out)));
}

bool progress_open(struct progress_meter *m, enum progress_mode mode, FILE *out, int64_t now_ns)
{
    bool live = progress_is_live(mode, out);
    *m = (struct progress_meter){.out = out,
                                 .live = live,
                                 .every_ns = live ? LIVE_EVERY_NS : PLAIN_EVERY_NS,
                                 .shown_ns = now_ns,
                                 .rate_ns = now_ns};
    if (!live)
        m->shown_ns -= PLAIN_EVERY_NS - PLAIN_FIRST_NS;
    log_over_live_line(live);
    return mode != PROGRESS_OFF;
}

void progress_duration(char *out, size_t cap, double seconds)
{
    long s = (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, cap, "%ldh%02ldm", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(out, cap, "%ldm%02lds", s / 60, s % 60);
    else
        snprintf(out, cap, "%lds", s);
}

int progress_line(char *out, size_t cap, const struct progress_view *v, double tokens_per_s,
                  double elapsed_s)
{
    char eta[32] = "?", share[16] = "";
    if (v->total_bytes > 0) {
        int64_t fresh = v->done_bytes - v->present_bytes;
        snprintf(share, sizeof share, " (%.0f%%)",
                 100 * (double)v->done_bytes / (double)v->total_bytes);
        if (fresh > 0 && elapsed_s > 0)
            progress_duration(eta, sizeof eta,
                              elapsed_s * (double)(v->total_bytes - v->done_bytes) / (double)fresh);
    }
    return snprintf(out, cap,
                    "rows %lld%s  failed %lld  running %lld  waiting %lld  %.0f tokens/s  "
                    "%.0f rows/s  ETA %s",
                    (long long)v->rows, share, (long long)v->failed, (long long)v->running,
                    (long long)v->waiting, tokens_per_s,
                    elapsed_s > 0 ? (double)(v->rows - v->present) / elapsed_s : 0, eta);
}

bool progress_due(const struct progress_meter *m, int64_t now_ns)
{
    return now_ns - m->shown_ns >= m->every_ns;
}

/* A line that wraps could not be rewritten: the cursor stands in its last row. */
static int columns_of(FILE *out)
{
    struct winsize size;
    bool known = ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    return known ? size.ws_col - 1 : INT32_MAX;
}

void progress_show(struct progress_meter *m, const struct progress_view *v, int64_t now_ns)
{
    char line[256];
    m->shown_ns = now_ns;
    double span = (double)(now_ns - m->rate_ns) / 1e9;
    if (span >= 1) {
        m->tokens_per_s = (double)(v->tokens_out - m->rate_tokens) / span;
        m->rate_ns = now_ns;
        m->rate_tokens = v->tokens_out;
    }
    progress_line(line, sizeof line, v, m->tokens_per_s, (double)(now_ns - v->begun_ns) / 1e9);
    if (m->live)
        fprintf(m->out, LOG_CLEAR "%.*s", columns_of(m->out), line);
    else
        fprintf(m->out, "%s\n", line);
    fflush(m->out);
}

void progress_tell(struct progress_meter *m, const char *text)
{
    fprintf(m->out, "%s%s\n", m->live ? LOG_CLEAR : "", text);
    fflush(m->out);
}

void progress_close(struct progress_meter *m)
{
    if (m->live)
        fputs(LOG_CLEAR, m->out);
    fflush(m->out);
    log_over_live_line(false);
}
