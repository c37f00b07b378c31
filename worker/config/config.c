/* config: merges command line, environment and file over the table's defaults. */
#include "worker/config/config.h"

#include "worker/job/job.h"

#include <errno.h>
#include <stdlib.h>

enum { NAME_MAX_BYTES = 64, WHERE_MAX = 160 };

/* Levenshtein distance; a name that begins with what was typed counts as near. */
static int name_distance(struct str a, const char *b)
{
    int row[NAME_MAX_BYTES + 1];
    size_t n = strlen(b);
    if (a.len > NAME_MAX_BYTES || n > NAME_MAX_BYTES)
        return NAME_MAX_BYTES;
    if (a.len >= 3 && a.len < n && memcmp(a.ptr, b, a.len) == 0)
        return 1;
    for (size_t j = 0; j <= n; j++)
        row[j] = (int)j;
    for (size_t i = 0; i < a.len; i++) {
        int diagonal = row[0];
        row[0] = (int)i + 1;
        for (size_t j = 0; j < n; j++) {
            int swap = diagonal + (a.ptr[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = TR_MIN(swap, TR_MIN(row[j], row[j + 1]) + 1);
        }
    }
    return row[n];
}

/* More slips than this and nothing is near: a guess would lead astray. */
static int slips_of(size_t length)
{
    return length < 4 ? 1 : length < 10 ? 2 : 3;
}

/* The option nearest to `name` among those of `commands`; NULL where none is near. */
static const struct option *option_nearest(struct str name, unsigned commands)
{
    const struct option *best = NULL;
    int least = slips_of(name.len) + 1;
    for (size_t i = 0; i < option_count; i++) {
        int d = name_distance(name, option_table[i].name);
        if ((option_table[i].commands & commands) && d < least) {
            least = d;
            best = &option_table[i];
        }
    }
    return best;
}

/* "--temperature" is a question of the job. */
static const char *hint_of_field(struct str name)
{
    return params_is_field(name) ? "; it is a field of each job" : "";
}

static int option_find(struct str name)
{
    for (size_t i = 0; i < option_count; i++)
        if (str_eq(name, str_of(option_table[i].name)))
            return (int)i;
    return -1;
}

int config_command_find(const struct command_info **out, const char *name, struct err *err)
{
    const struct command_info *best = NULL;
    int least = slips_of(strlen(name)) + 1;
    for (size_t i = 0; i < command_count; i++) {
        int d = name_distance(str_of(name), command_table[i].name);
        if (strcmp(name, command_table[i].name) == 0) {
            *out = &command_table[i];
            return E_OK;
        }
        if (d < least) {
            best = &command_table[i];
            least = d;
        }
    }
    if (!best)
        return err_set(err, E_USAGE, "\"%.*s\" is no command; `tranche help` lists them",
                       NAME_MAX_BYTES, name);
    return err_set(err, E_USAGE, "\"%.*s\" is no command; the nearest is \"%s\"", NAME_MAX_BYTES,
                   name, best->name);
}

static int value_set(struct config *c, int index, struct str text, enum config_origin origin,
                     const char *where, struct err *err)
{
    struct config_value v = {.origin = origin};
    int rc = config_value_parse(&v, &option_table[index], text, where, err);
    if (rc != E_OK)
        return rc;
    v.text = mem_alloc(text.len + 1, 1);
    if (!v.text)
        return err_set(err, E_FATAL, "%s: no memory for %zu bytes", where, text.len);
    if (text.len)
        memcpy(v.text, text.ptr, text.len);
    mem_free(c->values[index].text);
    c->values[index] = v;
    return E_OK;
}

static int set_defaults(struct config *c, struct err *err)
{
    CHECK(option_count <= CONFIG_OPTIONS_MAX);
    for (size_t i = 0; i < option_count; i++) {
        if (!option_table[i].fallback)
            continue;
        int rc = value_set(c, (int)i, str_of(option_table[i].fallback), CONFIG_DEFAULT,
                           "option table", err);
        if (rc != E_OK)
            return rc;
    }
    return E_OK;
}

/* TRANCHE_KV_BYTES -> kv-bytes. */
static struct str name_of_variable(const char *variable, char *buf, size_t cap)
{
    size_t n = 0;
    for (const char *p = variable + strlen("TRANCHE_"); *p && *p != '=' && n < cap; p++)
        buf[n++] = *p == '_' ? '-' : *p >= 'A' && *p <= 'Z' ? (char)(*p | 0x20) : '?';
    return (struct str){buf, n};
}

/* An unknown variable is a warning, never an error: an orchestrator sets TRANCHE_PORT and the like
 * for a service of that name. Only those that look like a slip are told. */
static int read_environment(struct config *c, char *const *environment, struct err *err)
{
    char buf[NAME_MAX_BYTES + 1], where[WHERE_MAX];
    for (; environment && *environment; environment++) {
        const char *value = strchr(*environment, '=');
        if (strncmp(*environment, "TRANCHE_", 8) != 0 || !value)
            continue;
        struct str name = name_of_variable(*environment, buf, sizeof buf);
        int index = option_find(name);
        snprintf(where, sizeof where, "%.*s", (int)(value - *environment), *environment);
        if (index < 0) {
            const struct option *near = option_nearest(name, ~0u);
            if (near && !c->warning[0])
                snprintf(c->warning, sizeof c->warning,
                         "%s in the environment is no option; did "
                         "you mean the one of --%s?",
                         where, near->name);
            continue;
        }
        /* An empty variable counts as unset. */
        if (!value[1] || !(option_table[index].commands & (unsigned)c->command->id))
            continue;
        int rc = value_set(c, index, str_of(value + 1), CONFIG_ENVIRONMENT, where, err);
        if (rc != E_OK)
            return rc;
    }
    return E_OK;
}

static struct str str_trim(struct str s)
{
    while (s.len && strchr(" \t\r", s.ptr[0]) && s.ptr[0]) {
        s.ptr++;
        s.len--;
    }
    while (s.len && strchr(" \t\r", s.ptr[s.len - 1]) && s.ptr[s.len - 1])
        s.len--;
    return s;
}

static int read_line(struct config *c, struct str line, const char *where, struct err *err)
{
    line = str_trim(line);
    if (line.len == 0 || line.ptr[0] == '#')
        return E_OK;
    const char *equals = memchr(line.ptr, '=', line.len);
    if (!equals)
        return err_set(err, E_USAGE, "%s: want `name = value`, found \"%.*s\"", where,
                       (int)TR_MIN(line.len, 60), line.ptr);
    struct str name = str_trim((struct str){line.ptr, (size_t)(equals - line.ptr)});
    struct str value =
        str_trim((struct str){equals + 1, line.len - (size_t)(equals - line.ptr) - 1});
    int index = option_find(name);
    const struct option *near = index < 0 ? option_nearest(name, ~0u) : NULL;
    if (index < 0)
        return err_set(err, E_USAGE, "%s: \"%.*s\" is no option%s%s%s%s", where,
                       (int)TR_MIN(name.len, NAME_MAX_BYTES), name.ptr, hint_of_field(name),
                       near ? "; the nearest is \"" : "", near ? near->name : "", near ? "\"" : "");
    if (strcmp(option_table[index].name, "config") == 0)
        return err_set(err, E_USAGE, "%s: a config file cannot name another one", where);
    return value_set(c, index, value, CONFIG_FILE, where, err);
}

int config_file_parse(struct config *c, struct str text, const char *path, struct err *err)
{
    char where[WHERE_MAX];
    int rc = E_OK;
    for (int line = 1; text.len && rc == E_OK; line++) {
        const char *end = memchr(text.ptr, '\n', text.len);
        size_t n = end ? (size_t)(end - text.ptr) : text.len;
        snprintf(where, sizeof where, "%.120s:%d", path, line);
        rc = read_line(c, (struct str){text.ptr, n}, where, err);
        n += end != NULL;
        text = (struct str){text.ptr + n, text.len - n};
    }
    return rc;
}

static int read_file(struct config *c, const char *path, struct err *err)
{
    int rc = E_OK;
    char *text = mem_alloc(CONFIG_FILE_BYTES_MAX + 1, 1);
    FILE *f = fopen(path, "rb");
    if (!text) {
        rc = err_set(err, E_FATAL, "%s: no memory to read it", path);
        goto out;
    }
    if (!f) {
        rc = err_errno(err, E_USAGE, "config file %s", path);
        goto out;
    }
    size_t n = fread(text, 1, CONFIG_FILE_BYTES_MAX + 1, f);
    if (ferror(f))
        rc = err_errno(err, E_USAGE, "config file %s", path);
    else if (n > CONFIG_FILE_BYTES_MAX)
        rc = err_set(err, E_USAGE, "config file %s: want at most %d bytes, found more", path,
                     CONFIG_FILE_BYTES_MAX);
    else
        rc = config_file_parse(c, (struct str){text, n}, path, err);
out:
    if (f)
        fclose(f);
    mem_free(text);
    return rc;
}

static int flag_unknown(const struct config *c, struct str name, int index, struct err *err)
{
    int length = (int)TR_MIN(name.len, NAME_MAX_BYTES);
    if (index >= 0)
        return err_set(err, E_USAGE, "--%s is no option of `tranche %s`; `tranche help` says whose",
                       option_table[index].name, c->command->name);
    const struct option *near = option_nearest(name, (unsigned)c->command->id);
    if (!near)
        return err_set(err, E_USAGE,
                       "--%.*s is no option of `tranche %s`%s; `tranche %s --help` explains it",
                       length, name.ptr, c->command->name, hint_of_field(name), c->command->name);
    return err_set(err, E_USAGE, "--%.*s is no option of `tranche %s`%s; the nearest is --%s",
                   length, name.ptr, c->command->name, hint_of_field(name), near->name);
}

/* One --flag at argv[*i]; moves *i over its value. */
static int read_flag(struct config *c, int argc, char *const *argv, int *i, struct err *err)
{
    char where[WHERE_MAX];
    const char *arg = argv[*i] + 2, *equals = strchr(arg, '=');
    struct str name = {arg, equals ? (size_t)(equals - arg) : strlen(arg)};
    if (str_eq(name, STR("help")) && !equals) {
        c->help = true;
        return E_OK;
    }
    int index = option_find(name);
    if (index < 0 || !(option_table[index].commands & (unsigned)c->command->id))
        return flag_unknown(c, name, index, err);
    struct str value = STR("true");
    if (equals) {
        value = str_of(equals + 1);
    } else if (option_table[index].type != OPTION_FLAG) {
        if (*i + 1 >= argc)
            return err_set(err, E_USAGE, "--%s: want a value (%s), found the end of the line",
                           option_table[index].name, option_table[index].value);
        value = str_of(argv[++*i]);
    }
    snprintf(where, sizeof where, "command line");
    return value_set(c, index, value, CONFIG_COMMAND_LINE, where, err);
}

static int read_arguments(struct config *c, int argc, char *const *argv, struct err *err)
{
    bool operands_only = false;
    for (int i = 2; i < argc; i++) {
        const char *arg = argv[i];
        int rc = E_OK;
        if (!operands_only && strcmp(arg, "--") == 0) {
            operands_only = true;
        } else if (!operands_only && strcmp(arg, "-h") == 0) {
            c->help = true;
        } else if (!operands_only && arg[0] == '-' && arg[1] == '-') {
            rc = read_flag(c, argc, argv, &i, err);
        } else if (!operands_only && arg[0] == '-' && arg[1]) {
            rc = err_set(err, E_USAGE, "%s: options are written --name; see `tranche %s --help`",
                         arg, c->command->name);
        } else if (c->n_operands >= c->command->operands_max) {
            rc = err_set(err, E_USAGE, "`tranche %s`: want at most %d operand%s, found \"%s\" too",
                         c->command->name, c->command->operands_max,
                         c->command->operands_max == 1 ? "" : "s", arg);
        } else {
            c->operands[c->n_operands++] = arg;
        }
        if (rc != E_OK)
            return rc;
    }
    return E_OK;
}

/* The file's path may come from the command line or the environment, and the file's values stand
 * below both: so they are read once to find the path, and again over the file. */
int config_open(struct config *c, int argc, char *const *argv, char *const *environment,
                struct err *err)
{
    *c = (struct config){0};
    int rc = set_defaults(c, err);
    if (rc != E_OK)
        return rc;
    if (argc < 2)
        return err_set(err, E_USAGE, "want a command, found none");
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        name = "help";
    else if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0)
        name = "version";
    rc = config_command_find(&c->command, name, err);
    for (int pass = 0; pass < 2 && rc == E_OK; pass++) {
        c->n_operands = 0;
        rc = read_environment(c, environment, err);
        if (rc == E_OK)
            rc = read_arguments(c, argc, argv, err);
        const char *path = config_text(c, "config");
        if (rc != E_OK || pass == 1 || !path || c->help)
            break;
        rc = read_file(c, path, err);
    }
    return rc;
}

void config_close(struct config *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < CONFIG_OPTIONS_MAX; i++)
        mem_free(c->values[i].text);
    *c = (struct config){0};
}

static const struct config_value *value_of(const struct config *c, const char *name, unsigned types)
{
    int index = option_find(str_of(name));
    CHECK(index >= 0);
    CHECK(types & (1u << option_table[index].type));
    return &c->values[index];
}

bool config_flag(const struct config *c, const char *name)
{
    return value_of(c, name, 1u << OPTION_FLAG)->flag;
}

int64_t config_int(const struct config *c, const char *name)
{
    return value_of(c, name, 1u << OPTION_INT | 1u << OPTION_SIZE | 1u << OPTION_DURATION)->integer;
}

double config_real(const struct config *c, const char *name)
{
    return value_of(c, name, 1u << OPTION_REAL)->real;
}

const char *config_text(const struct config *c, const char *name)
{
    return value_of(c, name, 1u << OPTION_TEXT | 1u << OPTION_CHOICE)->text;
}

int config_choice(const struct config *c, const char *name)
{
    return (int)value_of(c, name, 1u << OPTION_CHOICE)->integer;
}

enum config_origin config_origin(const struct config *c, const char *name)
{
    return value_of(c, name, ~0u)->origin;
}
