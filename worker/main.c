/* main: argv to a command, a command's verdict to an exit code. Nothing else. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "worker/commands/commands.h"

extern char **environ;

static int dispatch(const struct config *config)
{
    switch (config->command->id) {
    case COMMAND_RUN:
        return command_run(config);
    case COMMAND_WORKER:
        return command_worker(config);
    case COMMAND_INIT:
        return command_init(config);
    case COMMAND_SUBMIT:
        return command_submit(config);
    case COMMAND_STATUS:
        return command_status(config);
    case COMMAND_CANCEL:
        return command_cancel(config);
    case COMMAND_DLQ:
        return command_dlq(config);
    case COMMAND_PRUNE:
        return command_prune(config);
    case COMMAND_SEEK:
        return command_seek(config);
    case COMMAND_DIFF:
        return command_diff(config);
    case COMMAND_AUDIT:
        return command_audit(config);
    case COMMAND_EXPORT:
        return command_export(config);
    case COMMAND_TOKENIZE:
        return command_tokenize(config);
    case COMMAND_DOCTOR:
        return command_doctor(config);
    case COMMAND_BENCH:
        return command_bench(config);
    case COMMAND_CACHE:
        return command_cache(config);
    case COMMAND_SMOKE:
        return command_smoke(config);
    case COMMAND_MIGRATE:
        return command_migrate(config);
    case COMMAND_VERSION:
        return command_version(config);
    case COMMAND_HELP:
        return command_help(config);
    }
    CHECK(false); /* a command of the table that this switch lacks */
}

/* What a command printed has to arrive, or its caller takes a cut list for a whole one. The product
 * of run and worker is rows: their verdict stands, whoever reads the summary. */
static int printed(const struct config *config, int status)
{
    int why = fflush(stdout) != 0 ? errno : EIO;
    if (!ferror(stdout) || status == EXIT_OUTPUT)
        return status;
    fprintf(stderr, "tranche %s: standard output: cannot write: %s\n", config->command->name,
            strerror(why));
    bool rows = !config->help && config->command->id & (COMMAND_RUN | COMMAND_WORKER);
    return status == EXIT_WELL && !rows ? EXIT_OUTPUT : status;
}

int main(int argc, char **argv)
{
    struct config config;
    struct err err = {0};
    int status;
    if (config_open(&config, argc, argv, environ, &err) < 0) {
        fprintf(stderr, "tranche: %s\n", err.msg);
        if (argc < 2)
            config_help(stderr, NULL);
        status = EXIT_USAGE;
    } else if (config.help) {
        config_help(stdout, config.command->id == COMMAND_HELP ? NULL : config.command);
        status = printed(&config, EXIT_WELL);
    } else {
        status = printed(&config, dispatch(&config));
    }
    config_close(&config);
    return status;
}
