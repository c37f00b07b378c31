/* config: the operator's options. One table (options.c) gives the flags, the TRANCHE_* environment,
 * the config file, --help and docs/config.md. Values are checked here once; commands only read
 * them.
 *
 * Who wins: flag > environment > config file > default. A config file holds `name = value` lines;
 * it may name options of any command, so that one file serves them all. It knows nothing of models,
 * engines or sinks. */
#ifndef TRANCHE_WORKER_CONFIG_CONFIG_H
#define TRANCHE_WORKER_CONFIG_CONFIG_H

#include <stdio.h>

#include "engine/base.h"

/* sysexits(3), as far as we use them. */
enum exit_code {
    EXIT_WELL = 0,         /* nothing is left to do */
    EXIT_STRICT = 3,       /* done, and somebody should look: the commands say */
    EXIT_USAGE = 64,       /* options or config */
    EXIT_MODEL = 65,       /* model folder, input or schema */
    EXIT_UNREACHABLE = 69, /* database or broker at start */
    EXIT_ENGINE = 70,      /* the engine was lost */
    EXIT_OUTPUT = 74,      /* standard output or a file of the command cannot be written */
    EXIT_INTERRUPTED = 130,
    EXIT_TERMINATED = 143,
};

enum command {
    COMMAND_RUN = 1,
    COMMAND_EXPORT = 2,
    COMMAND_TOKENIZE = 4,
    COMMAND_DOCTOR = 8,
    COMMAND_BENCH = 16,
    COMMAND_VERSION = 32,
    COMMAND_HELP = 64,
    COMMAND_WORKER = 128,
    COMMAND_INIT = 256,
    COMMAND_SUBMIT = 512,
    COMMAND_MIGRATE = 1024,
    COMMAND_STATUS = 2048,
    COMMAND_CANCEL = 4096,
    COMMAND_DLQ = 8192,
    COMMAND_PRUNE = 16384,
    COMMAND_SEEK = 32768,
    COMMAND_AUDIT = 65536,
    COMMAND_DIFF = 131072,
    COMMAND_CACHE = 262144,
    COMMAND_SMOKE = 524288,
};
struct command_info {
    enum command id;
    const char *name, *operands, *summary, *detail;
    int operands_max;
};
extern const struct command_info command_table[];
extern const size_t command_count;

enum option_type {
    OPTION_FLAG,     /* --x, --x=false; environment and file: true|false|on|off|yes|no|1|0 */
    OPTION_INT,      /* 64-bit */
    OPTION_REAL,     /* finite */
    OPTION_TEXT,     /* any text, paths too */
    OPTION_SIZE,     /* bytes: 4096, 512MiB, 2GB */
    OPTION_DURATION, /* 250ms, 5s, 2m, 1h; kept in ns */
    OPTION_CHOICE,   /* one of `choices` */
};
struct option {
    const char *name; /* "kv-bytes": flag --kv-bytes, environment TRANCHE_KV_BYTES */
    unsigned commands;
    enum option_type type;
    const char *fallback; /* the default as the operator would write it; NULL: none */
    double min, max;      /* INT, REAL, SIZE (bytes), DURATION (seconds), both included */
    const char *choices;  /* "cpu|sim" */
    const char *value;    /* what --help calls the value: "DIR" */
    const char *group;    /* heading it stands under */
    const char *help;
};
extern const struct option option_table[];
extern const size_t option_count;

enum { CONFIG_OPTIONS_MAX = 128, CONFIG_OPERANDS_MAX = 16, CONFIG_FILE_BYTES_MAX = 1 << 20 };
enum config_origin { CONFIG_DEFAULT, CONFIG_FILE, CONFIG_ENVIRONMENT, CONFIG_COMMAND_LINE };

struct config_value {
    char *text; /* as written; NULL: not set and no default */
    int64_t integer;
    double real;
    bool flag;
    enum config_origin origin;
};
struct config {
    const struct command_info *command;
    struct config_value values[CONFIG_OPTIONS_MAX];
    const char *operands[CONFIG_OPERANDS_MAX]; /* borrowed from argv */
    int n_operands;
    bool help;         /* --help was asked for: print it and leave */
    char warning[280]; /* a TRANCHE_ variable that looks like a slip; "" when there is none */
};

/* Reads argv[1..] (command, options, operands in any order; `--` ends options), the environment
 * `environment` (NULL-terminated "NAME=value" list) and the config file. Errors: E_USAGE with text
 * that names the option, where it was set, the nearest known name or the allowed range, and what
 * was found. `config` must be closed in either case. */
int config_open(struct config *config, int argc, char *const *argv, char *const *environment,
                struct err *err) TR_MUSTCHECK;
void config_close(struct config *config); /* NULL is legal */

/* The command of that name; E_USAGE with the nearest one. */
int config_command_find(const struct command_info **out, const char *name,
                        struct err *err) TR_MUSTCHECK;

/* Values by option name; an unknown name or a wrong type is a bug (CHECK). */
bool config_flag(const struct config *config, const char *name);
int64_t config_int(const struct config *config,
                   const char *name); /* INT; SIZE bytes; DURATION ns */
double config_real(const struct config *config, const char *name);
const char *config_text(const struct config *config, const char *name); /* TEXT, CHOICE; or NULL */
/* Index of the value among the option's choices. */
int config_choice(const struct config *config, const char *name);
enum config_origin config_origin(const struct config *config, const char *name);

/* Parses one value against its option. Pure; fuzzed. E_USAGE names `where` ("--slots"). */
int config_value_parse(struct config_value *out, const struct option *option, struct str text,
                       const char *where, struct err *err) TR_MUSTCHECK;

/* Reads `name = value` lines over the values that `config` has. Pure but for memory; fuzzed.
 * E_USAGE names path:line. config_open calls it. */
int config_file_parse(struct config *config, struct str text, const char *path,
                      struct err *err) TR_MUSTCHECK;

/* Writes the overview (command NULL) or one command's page, plain text; or docs/config.md. */
void config_help(FILE *out, const struct command_info *command);
void config_markdown(FILE *out);

#endif
