/* export: `tranche export`: rows of a batch as OpenAI batch output and error lines. */
#ifndef TRANCHE_WORKER_COMMANDS_EXPORT_H
#define TRANCHE_WORKER_COMMANDS_EXPORT_H

#include "worker/sink/postgres_connection.h"

struct export_opts {
    struct postgres_opts db; /* url: a SQLite file, or postgres:// */
    const char *batch;  /* NULL: the database's only batch; several: an error that lists them */
    const char *run;    /* NULL: "main" */
    const char *output; /* lines of status ok; "-": stdout */
    const char *errors; /* all other lines; NULL: beside output, "<output>.errors.jsonl", made only
                           when there is one; "-" shares stdout */
};

/* Writes both files in input order (where the source knows one, else by custom_id). A file appears
 * under its name only when it is complete; a pipe or device is written as it is. E_USAGE: unknown
 * batch, a file that cannot be made; E_FATAL: rights, schema, damage, or of type COMMAND_OUTPUT a
 * file that cannot be written whole; E_RETRY: no database. */
int export_main(const struct export_opts *o, struct err *err) TR_MUSTCHECK;

#endif
