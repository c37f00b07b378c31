/* cmd_migrate: `tranche migrate`, and the options that name a PostgreSQL database. */
#include "worker/commands/commands.h"
#include "worker/sink/migrate.h"

void postgres_opts_from_config(struct postgres_opts *o, const struct config *config)
{
    *o = (struct postgres_opts){.url = config_text(config, "db"),
                                .password_file = config_text(config, "db-password-file"),
                                .allow_insecure = config_flag(config, "allow-insecure"),
                                .connect_ns = config_int(config, "connect-timeout"),
                                .clock = clock_system()};
}

int command_migrate(const struct config *config)
{
    struct err err = {0};
    struct postgres_opts o;
    int from, to;
    command_log_setup(config);
    postgres_opts_from_config(&o, config);
    if (!postgres_is_url(o.url)) {
        err_set(&err, E_USAGE,
                "--db: want a postgres:// URL, found %s (a SQLite file needs no "
                "migrate: `tranche run` makes and mends it)",
                o.url);
        return command_failed(config, &err);
    }
    if (migrate_run(&o, &from, &to, &err) < 0)
        return command_failed(config, &err);
    if (from == to)
        printf("schema %d: nothing to do\n", to);
    else
        printf("schema %d -> %d\n", from, to);
    return EXIT_WELL;
}
