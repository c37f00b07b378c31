/* show: what a newcomer sees at the end of `tranche run --show N`: the first rows of the batch, the
 * counts, and three commands to try next. Text of the model is cut to one line, and nothing in it
 * reaches the terminal as a control character. */
#ifndef TRANCHE_WORKER_COMMANDS_SHOW_H
#define TRANCHE_WORKER_COMMANDS_SHOW_H

#include <stdio.h>

#include "worker/commands/run.h"

void show_rows(const struct run_opts *o, const char *run, const char *batch, FILE *out);

#endif
