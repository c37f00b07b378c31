/* run: `tranche run` and `tranche worker`: opens the model, the engine, a source and a database,
 * runs the worker over them, prints the summary and gives the exit code. Options come parsed and
 * range-checked; run_main deals in the combinations that only it can judge. */
#ifndef TRANCHE_WORKER_COMMANDS_RUN_H
#define TRANCHE_WORKER_COMMANDS_RUN_H

#include "worker/monitor/progress.h"
#include "worker/open_model.h"
#include "worker/sink/postgres_connection.h"
#include "worker/source/source_open.h"
#include "worker/supervisor/supervisor.h"

/* Strings are borrowed until run_main returns; NULL and 0 mean "the default" where one is named. */
struct run_opts {
    const char *command;             /* "run", "worker": whose name errors carry */
    const char *input;               /* JSONL file; "-": stdin, which needs `batch` */
    struct source_opts source;       /* url set: in place of input */
    struct source_opts dead_letters; /* where copies of dead letters go; url NULL: nowhere */
    const char *db;                  /* SQLite file, created where absent; or a postgres:// URL */
    struct postgres_opts postgres;   /* how to reach that; its url is `db` */
    const char *batch;               /* batch_id of lines that name none; NULL: the file's stem */
    const char *run;                 /* run of lines that name none; NULL: "main" */
    struct model_opts model; /* folder, template, engine. ENGINE_SIM without a folder: a byte is a
                                token */
    const char *worker_name; /* NULL: "<host>:<pid>" */
    double share;            /* of the jobs, by the hash of their id; 0: all */
    const char *job_config;  /* directory of defaults, template, system prompts; NULL: none */
    bool ignore_generation_config;
    int32_t default_max_tokens; /* chat jobs that name none; 0: 2048 */
    int32_t prepare_threads;    /* 0: half of the CPUs, at least 1 */
    int64_t claim_rows;         /* jobs in memory at once; 0: 16,384 */
    int64_t claim_bytes;        /* their bytes; 0: 256 MiB */
    const char *spool_dir;      /* rows while the database is away; NULL: no spool */
    int64_t spool_bytes;
    int32_t flush_rows; /* results that make a transaction; 0: 512 */
    int64_t flush_ns;   /* or the age of the oldest; 0: 5 s */
    int64_t grace_ns;   /* Ctrl-C, SIGTERM: what is running may finish so long; < 0: 30 s */
    double breaker;     /* worker_opts'; 0: never */
    bool strict;        /* exit 3 when a row is not `ok` */
    int32_t show;       /* > 0: that many first rows, the counts, the next commands */
    enum progress_mode progress;
    bool self_test;          /* worker_opts' */
    struct supervised *self; /* what a parent shares with this process; NULL: nobody watches */
    enum child_task task;
};
void run_opts_init(struct run_opts *o); /* every default filled in; input and db NULL */

/* Runs to the end of the input; of a queue until it is stopped or idle. Installs handlers for
 * SIGINT and SIGTERM while it runs: the first signal drains within grace_ns, the second leaves at
 * once. Summary and table go to stdout, progress and log lines to stderr. Returns an enum
 * exit_code. */
int run_main(const struct run_opts *o);

#endif
