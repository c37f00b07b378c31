/* commands: one function for each command of the table. Each takes the checked options, prints to
 * stdout, tells errors on stderr in one line, and returns an enum exit_code. */
#ifndef TRANCHE_WORKER_COMMANDS_COMMANDS_H
#define TRANCHE_WORKER_COMMANDS_COMMANDS_H

#include "worker/config/config.h"

int command_run(const struct config *config);
int command_worker(const struct config *config);
int command_init(const struct config *config);
int command_submit(const struct config *config);
int command_status(const struct config *config);
int command_cancel(const struct config *config);
int command_dlq(const struct config *config);
int command_prune(const struct config *config);
int command_seek(const struct config *config);
int command_audit(const struct config *config);
int command_diff(const struct config *config); /* exit 3: worse, by --fail-on */
int command_export(const struct config *config);
int command_tokenize(const struct config *config);
int command_doctor(const struct config *config); /* exit 0 well, 1 warnings, 2 faults */
int command_bench(const struct config *config);
int command_version(const struct config *config);
int command_migrate(const struct config *config);
int command_cache(const struct config *config);
int command_smoke(const struct config *config); /* exit 3: no row in time, or not ok */
int command_help(const struct config *config);

struct postgres_opts;
/* --db and what belongs to it; strings are the config's. */
void postgres_opts_from_config(struct postgres_opts *o, const struct config *config);

/* "tranche COMMAND: message" on stderr; the exit code that belongs to err->code. */
int command_failed(const struct config *config, const struct err *err);
/* Records that `path` could not be written (`what`: "write", "rename"), with errno's text and the
 * type by which command_failed gives EXIT_OUTPUT. Returns E_FATAL. */
#define COMMAND_OUTPUT "output"
int command_output_failed(struct err *err, const char *path, const char *what);
/* Log level and format from the options; tells config->warning. */
void command_log_setup(const struct config *config);

#endif
