/* progress: see progress.h. */
#include "worker/progress.h"

#include <unistd.h>

static const int64_t LIVE_EVERY_NS = 250000000, PLAIN_EVERY_NS = 5000000000;

bool progress_open(struct progress_meter *m, enum progress_mode mode, FILE *out, int64_t now_ns)
{
    bool live = mode == PROGRESS_LIVE || (mode == PROGRESS_AUTO && isatty(fileno(out)));
    *m = (struct progress_meter){.out = out,
                                 .live = live,
                                 .every_ns = live ? LIVE_EVERY_NS : PLAIN_EVERY_NS,
                                 .shown_ns = now_ns,
                                 .start_ns = now_ns,
                                 .rate_ns = now_ns};
    return mode != PROGRESS_OFF;
}

static void put_duration(char *out, size_t cap, double seconds)
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
        double done = (double)v->done_bytes / (double)v->total_bytes;
        snprintf(share, sizeof share, " (%.0f%%)", 100 * done);
        if (done > 0 && elapsed_s > 0)
            put_duration(eta, sizeof eta, elapsed_s * (1 - done) / done);
    }
    return snprintf(out, cap,
                    "rows %lld%s  not ok %lld  running %lld  waiting %lld  %.0f tokens/s  "
                    "%.0f rows/s  ETA %s",
                    (long long)v->rows, share, (long long)v->not_ok, (long long)v->running,
                    (long long)v->waiting, tokens_per_s,
                    elapsed_s > 0 ? (double)v->rows / elapsed_s : 0, eta);
}

void progress_show(struct progress_meter *m, const struct progress_view *v, int64_t now_ns)
{
    char line[256];
    if (now_ns - m->shown_ns < m->every_ns)
        return;
    m->shown_ns = now_ns;
    double span = (double)(now_ns - m->rate_ns) / 1e9;
    if (span >= 1) {
        m->tokens_per_s = (double)(v->tokens_out - m->rate_tokens) / span;
        m->rate_ns = now_ns;
        m->rate_tokens = v->tokens_out;
    }
    int n =
        progress_line(line, sizeof line, v, m->tokens_per_s, (double)(now_ns - m->start_ns) / 1e9);
    n = TR_MIN(n, (int)sizeof line - 1);
    if (m->live)
        fprintf(m->out, "\r%-*s", TR_MAX(m->width, n), line);
    else
        fprintf(m->out, "%s\n", line);
    m->width = n;
    fflush(m->out);
}

void progress_close(struct progress_meter *m)
{
    if (m->live && m->width)
        fprintf(m->out, "\r%-*s\r", m->width, "");
    fflush(m->out);
}
