/* console: what the operator's commands share: the way from options to a database, cells of a
 * table, spans of time. */
#ifndef TRANCHE_WORKER_COMMANDS_CONSOLE_H
#define TRANCHE_WORKER_COMMANDS_CONSOLE_H

#include <stdio.h>

#include "worker/config/config.h"
#include "worker/sink/query.h"
#include "worker/source/source_open.h"

/* The database of --db. Errors as query_open. */
int console_db(struct query **out, const struct config *config, enum query_access access,
               struct err *err) TR_MUSTCHECK;
/* --source and what belongs to it; without a group of its own. */
void console_queue(struct source_opts *o, const struct config *config);
/* --run where the operator named one; {NULL,0}: every run. */
struct str console_run(const struct config *config);

/* The text's first `width` characters on one line, padded on the right, and two blanks; "..."
 * stands for what was cut, a blank for a control character. NULL: empty. */
void console_cell(FILE *out, const char *text, int width);
/* "45s", "12m", "3h20m", "4d": rounded to what a person wants to know. */
void console_span(char out[24], double seconds);
/* "2026-01-31T12:00:00Z", with or without fraction; a date alone is its first second. Wall clock
 * ns; -1: no such time. Pure. */
int64_t console_time_parse(struct str text);

#endif
