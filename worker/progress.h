/* progress: what the operator sees while a run goes on: one live line on a terminal, plain lines
 * every few seconds elsewhere. It reads no clock and no state of its own. */
#ifndef TRANCHE_WORKER_PROGRESS_H
#define TRANCHE_WORKER_PROGRESS_H

#include <stdio.h>

#include "engine/base.h"
#include "worker/run.h"

struct progress_view {
    int64_t rows, not_ok;            /* committed or found there; of these, not ok */
    int64_t done_bytes, total_bytes; /* of the input; total < 0: not known */
    int64_t running, waiting;        /* sequences in slots; jobs before them */
    int64_t tokens_in, tokens_out;
};
struct progress_meter {
    FILE *out;
    bool live;
    int64_t every_ns, shown_ns, start_ns, rate_ns;
    int64_t rate_tokens;
    double tokens_per_s; /* of the newest interval */
    int width;           /* of the live line that stands there */
};
/* False (and nothing is ever shown) for PROGRESS_OFF. */
bool progress_open(struct progress_meter *m, enum progress_mode mode, FILE *out, int64_t now_ns);
/* Shows the view when it is time to. */
void progress_show(struct progress_meter *m, const struct progress_view *v, int64_t now_ns);
void progress_close(struct progress_meter *m); /* ends a live line */

/* The line itself, without a newline; returns its length. Pure. */
int progress_line(char *out, size_t cap, const struct progress_view *v, double tokens_per_s,
                  double elapsed_s);

#endif
