/* config_help: the option table as --help pages and as docs/config.md. */
#include "worker/config/config.h"

enum { HELP_COLUMN = 28, HELP_WIDTH = 96 };

static const char overview_head[] =
    "tranche runs a file of prompts through a language model and keeps one row for each.\n"
    "\n"
    "  tranche COMMAND [OPTIONS] [OPERANDS]\n"
    "\n";
static const char overview_tail[] =
    "\n"
    "`tranche COMMAND --help` explains one. Every option --some-name is also TRANCHE_SOME_NAME in\n"
    "the environment and a line `some-name = value` in the file given by --config; a flag beats\n"
    "the environment, which beats the file.\n";

/* The default, where it says more than the text does: flags show theirs only when they are on, and
 * "0: chosen" needs no [0]. */
static const char *shown_default(const struct option *o)
{
    char told[32];
    if (!o->fallback || (o->type == OPTION_FLAG && strcmp(o->fallback, "false") == 0))
        return NULL;
    snprintf(told, sizeof told, "; %.20s: ", o->fallback);
    return strstr(o->help, told) ? NULL : o->fallback;
}

/* Prints `text` word by word from column `indent`, folded at HELP_WIDTH. */
static void print_folded(FILE *out, const char *text, int indent)
{
    int column = indent;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column > indent && column + 1 + n > HELP_WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", n, text);
        column += n;
        text += n + (text[n] == ' ');
    }
    fputc('\n', out);
}

static void print_option(FILE *out, const struct option *o)
{
    char left[64], right[512];
    int n = snprintf(left, sizeof left, "  --%s%s%s", o->name, o->value ? " " : "",
                     o->value ? o->value : "");
    const char *fallback = shown_default(o);
    snprintf(right, sizeof right, "%s%s%s%s%s%s", o->help, o->choices ? "; one of " : "",
             o->choices ? o->choices : "", fallback ? " [" : "", fallback ? fallback : "",
             fallback ? "]" : "");
    fputs(left, out);
    if (n >= HELP_COLUMN - 1) {
        fputc('\n', out);
        n = 0;
    }
    fprintf(out, "%*s", HELP_COLUMN - n, "");
    print_folded(out, right, HELP_COLUMN);
}

static void command_help(FILE *out, const struct command_info *command)
{
    const char *group = "";
    bool any = false;
    for (size_t i = 0; i < option_count; i++)
        any = any || (option_table[i].commands & (unsigned)command->id);
    fprintf(out, "tranche %s%s%s%s: %s\n", command->name, any ? " [OPTIONS]" : "",
            command->operands[0] ? " " : "", command->operands, command->summary);
    if (command->detail[0])
        fprintf(out, "\n%s\n", command->detail);
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        if (!(o->commands & (unsigned)command->id))
            continue;
        if (strcmp(group, o->group) != 0)
            fprintf(out, "\n%s\n", o->group);
        group = o->group;
        print_option(out, o);
    }
}

void config_help(FILE *out, const struct command_info *command)
{
    if (command) {
        command_help(out, command);
        return;
    }
    fputs(overview_head, out);
    for (size_t i = 0; i < command_count; i++)
        fprintf(out, "  %-10s%s\n", command_table[i].name, command_table[i].summary);
    fputs(overview_tail, out);
}

static void markdown_text(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|' || *text == '<')
            fputc('\\', out);
        fputc(*text, out);
    }
}

static void markdown_range(FILE *out, const struct option *o)
{
    static const char *const kinds[] = {"true or false", "whole number", "number", "text",
                                        "size",          "duration",     "one of "};
    fputs(kinds[o->type], out);
    if (o->type == OPTION_CHOICE)
        markdown_text(out, o->choices);
    else if (o->type == OPTION_INT || o->type == OPTION_REAL)
        fprintf(out, ", %.15g to %.15g", o->min, o->max);
    else if (o->type == OPTION_SIZE)
        fprintf(out, ", %.15g to %.15g bytes", o->min, o->max);
    else if (o->type == OPTION_DURATION)
        fprintf(out, ", %.15g to %.15g s", o->min, o->max);
}

static void markdown_option(FILE *out, const struct option *o)
{
    char variable[80];
    size_t n = (size_t)snprintf(variable, sizeof variable, "TRANCHE_%s", o->name);
    for (size_t i = 0; i < n; i++)
        variable[i] = variable[i] == '-'                         ? '_'
                      : variable[i] >= 'a' && variable[i] <= 'z' ? (char)(variable[i] & ~0x20)
                                                                 : variable[i];
    fprintf(out, "| `--%s` | `%s` | ", o->name, variable);
    markdown_range(out, o);
    fprintf(out, " | ");
    if (o->fallback)
        fprintf(out, "`%s`", o->fallback);
    fputs(" | ", out);
    bool first = true;
    for (size_t i = 0; i < command_count; i++) {
        if (!(o->commands & (unsigned)command_table[i].id))
            continue;
        fprintf(out, "%s%s", first ? "" : ", ", command_table[i].name);
        first = false;
    }
    fputs(" | ", out);
    markdown_text(out, o->help);
    fputs(" |\n", out);
}

static void markdown_command(FILE *out, const struct command_info *c)
{
    fprintf(out, "| `tranche %s` | ", c->name);
    markdown_text(out, c->operands);
    fprintf(out, " | %s |\n", c->summary);
}

void config_markdown(FILE *out)
{
    fputs("# Commands and options\n\n"
          "Written by `tranche help --markdown`; a test keeps it equal to the program.\n\n"
          "| command | operands | what it does |\n|---|---|---|\n",
          out);
    for (size_t i = 0; i < command_count; i++)
        markdown_command(out, &command_table[i]);
    fputs("\n"
          "Flag, then environment, then config file, then default: the first that is set wins. An\n"
          "empty variable counts as unset. A config file (`--config`) holds `name = value` lines\n"
          "and may name options of any command. Sizes: `4096`, `512MiB`, `8GiB`, `2GB`.\n"
          "Durations: `250ms`, `5s`, `2m`, `1h`, `30d`. An unknown name or a value out of range "
          "ends the\n"
          "program with exit code 64 before anything is opened.\n",
          out);
    const char *group = "";
    for (size_t i = 0; i < option_count; i++) {
        const struct option *o = &option_table[i];
        if (strcmp(group, o->group) != 0)
            fprintf(out,
                    "\n## %s\n\n| flag | environment | value | default | commands | |\n"
                    "|---|---|---|---|---|---|\n",
                    o->group);
        group = o->group;
        markdown_option(out, o);
    }
}
