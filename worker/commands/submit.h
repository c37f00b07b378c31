/* submit: `tranche submit FILE`: a job file into a queue, and `tranche init`. */
#ifndef TRANCHE_WORKER_COMMANDS_SUBMIT_H
#define TRANCHE_WORKER_COMMANDS_SUBMIT_H

#include "worker/sink/postgres_connection.h"
#include "worker/source/producer.h"

struct submit_opts {
    const char *file;  /* JSON lines; "-": standard input, by way of a temporary file */
    const char *batch; /* NULL: the file's stem */
    struct source_opts queue;
    const struct postgres_opts
        *db;         /* where the batch and its total are registered; NULL: nowhere */
    const char *run; /* of the registration */
};
/* Reads the file twice: first every id, so that nothing is sent of a file with a line that has none
 * or two lines that have the same; then, behind the batch's registration, the messages. How far the
 * broker has confirmed them stands in FILE.submit while it runs: after a stop the same command goes
 * on from there. What is sent twice around that point is one row all the same. Returns an enum
 * exit_code. */
int submit_main(const struct submit_opts *o);
int init_main(const struct source_opts *queue, const struct queue_shape *shape);
int drop_main(const struct source_opts *queue); /* `init --drop-group` */

#endif
