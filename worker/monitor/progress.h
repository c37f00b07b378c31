/* progress: what the operator sees while a run goes on: one live line on a terminal, plain lines
 * every few seconds elsewhere, and what a stop does. It reads no clock and no state of its own. */
#ifndef TRANCHE_WORKER_MONITOR_PROGRESS_H
#define TRANCHE_WORKER_MONITOR_PROGRESS_H

#include <stdio.h>

#include "engine/base.h"

enum progress_mode {
    PROGRESS_AUTO, /* a live line on a terminal, else plain lines */
    PROGRESS_LIVE,
    PROGRESS_PLAIN,
    PROGRESS_OFF
};

struct progress_view {
    int64_t rows, failed;     /* finished here, committed or not yet, or found there; not ok */
    int64_t present;          /* of rows: found there */
    int64_t done_bytes;       /* of the input, those of `rows` */
    int64_t present_bytes;    /* of done_bytes, those of `present` */
    int64_t total_bytes;      /* < 0: not known */
    int64_t running, waiting; /* sequences in slots; jobs before them */
    int64_t tokens_out;
    int64_t begun_ns; /* mono: when the first job went to an engine; before that, the run's start */
};
struct progress_meter {
    FILE *out;
    bool live;
    int64_t every_ns, shown_ns, rate_ns;
    int64_t rate_tokens;
    double tokens_per_s; /* of the newest interval */
};
/* Whether a live line is what this mode shows on `out`. */
bool progress_is_live(enum progress_mode mode, FILE *out);
/* False (and nothing is ever shown) for PROGRESS_OFF. From here to progress_close log lines make
 * room for a live line (log_over_live_line). */
bool progress_open(struct progress_meter *m, enum progress_mode mode, FILE *out, int64_t now_ns);
bool progress_due(const struct progress_meter *m, int64_t now_ns);
void progress_show(struct progress_meter *m, const struct progress_view *v, int64_t now_ns);
/* A line of its own, whichever the mode; text without the newline. */
void progress_tell(struct progress_meter *m, const char *text);
void progress_close(struct progress_meter *m); /* ends a live line */

/* The line itself, without a newline; returns its length. Rows per second and the time to come
 * leave out what was found there. Pure. */
int progress_line(char *out, size_t cap, const struct progress_view *v, double tokens_per_s,
                  double elapsed_s);
/* "45s", "2m05s", "1h00m". Pure. */
void progress_duration(char *out, size_t cap, double seconds);

#endif
