/* doctor: `tranche doctor`: collects the checks and prints them for people or as JSON. */
#include "worker/commands/doctor.h"

#include "engine/log.h"
#include "worker/commands/commands.h"

static const char *const verdict_names[VERDICTS] = {"ok", "warn", "fault"};

void doctor_report(struct doctor *d, enum verdict verdict, const char *check, const char *mend,
                   const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    d->counts[verdict]++;
    json_t *item = json_pack("{s:s, s:s, s:s%, s:s?}", "check", check, "verdict",
                             verdict_names[verdict], "text", text, strlen(text), "mend", mend);
    /* A path that is no UTF-8 cannot stand in JSON. */
    if (!item)
        item = json_pack("{s:s, s:s, s:s, s:s?}", "check", check, "verdict", verdict_names[verdict],
                         "text", "a name that is not UTF-8", "mend", mend);
    CHECK(item && json_array_append_new(d->checks, item) == 0);
}

void doctor_memory_line(struct doctor *d, const char *what, int64_t bytes)
{
    json_t *item = json_pack("{s:s, s:I}", "what", what, "bytes", (json_int_t)bytes);
    CHECK(item && json_array_append_new(d->memory, item) == 0);
}

/* Bytes in the largest unit that leaves at least 1. */
static void print_bytes(double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t u = 0;
    for (; u + 1 < TR_COUNT(units) && bytes >= 1024; u++)
        bytes /= 1024;
    printf("%9.1f %s\n", bytes, units[u]);
}

static void print_text(const struct doctor *d)
{
    size_t i;
    json_t *item;
    json_array_foreach(d->checks, i, item)
    {
        const char *mend = json_string_value(json_object_get(item, "mend"));
        printf("%-6s %-12s %s\n", json_string_value(json_object_get(item, "verdict")),
               json_string_value(json_object_get(item, "check")),
               json_string_value(json_object_get(item, "text")));
        if (mend)
            printf("%-19s mend: %s\n", "", mend);
    }
    if (json_array_size(d->memory))
        printf("\nmemory\n");
    json_array_foreach(d->memory, i, item)
    {
        printf("  %-36s", json_string_value(json_object_get(item, "what")));
        print_bytes((double)json_integer_value(json_object_get(item, "bytes")));
    }
    printf("\n%d ok, %d warning%s, %d fault%s\n", d->counts[VERDICT_OK], d->counts[VERDICT_WARN],
           d->counts[VERDICT_WARN] == 1 ? "" : "s", d->counts[VERDICT_FAULT],
           d->counts[VERDICT_FAULT] == 1 ? "" : "s");
}

static void print_json(const struct doctor *d)
{
    json_t *doc = json_pack("{s:O, s:O, s:i, s:i, s:i}", "checks", d->checks, "memory", d->memory,
                            "ok", d->counts[VERDICT_OK], "warnings", d->counts[VERDICT_WARN],
                            "faults", d->counts[VERDICT_FAULT]);
    CHECK(doc);
    json_dumpf(doc, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(doc);
}

/* What the options name, from where this process stands. */
static void look_here(struct doctor *d)
{
    struct err err = {0};
    doctor_cpu(d);
    doctor_gpu(d);
    if (model_opts_from_config(&d->opts, d->config, &err) < 0)
        doctor_report(d, VERDICT_FAULT, "options", "see `tranche doctor --help`", "%s", err.msg);
    if (d->opts.dir)
        doctor_model(d);
    doctor_limits(d);
    doctor_queue(d);
    doctor_database(d);
}

int command_doctor(const struct config *config)
{
    struct doctor d = {.config = config, .checks = json_array(), .memory = json_array()};
    CHECK(d.checks && d.memory);
    command_log_setup(config);
    /* The log's account of each phase would stand between the verdicts. */
    if (config_origin(config, "log-level") == CONFIG_DEFAULT)
        log_setup(LOG_ERROR, LOG_LOGFMT, 2);
    if (config_text(config, "cluster"))
        doctor_cluster(&d, config_text(config, "cluster"));
    else
        look_here(&d);
    if (config_flag(config, "json"))
        print_json(&d);
    else
        print_text(&d);
    json_decref(d.checks);
    json_decref(d.memory);
    return d.counts[VERDICT_FAULT] ? 2 : d.counts[VERDICT_WARN] ? 1 : 0;
}
