/* cmd_prune: `tranche prune`: retention by age, a bounded piece a transaction, so that workers
 * never wait for it. */
#include "engine/log.h"
#include "worker/commands/commands.h"
#include "worker/commands/console.h"
#include "worker/sink/sink.h"

static const int64_t TOLD_NS = 2000000000;

/* What may be removed, by its option's name: where, how old a row is, and what names one. */
static const struct prunable {
    const char *name, *table, *age, *key;
} prunables[] = {
    {"results", "results", "finished_at", "run, batch_id, custom_id"},
    {"dead_letters", "dead_letters", "last_seen", "source_key"},
    {"parked", "parked", "parked_at", "run, batch_id, custom_id, choice"},
    {"attempts", "job_attempts", "last_at", "run, batch_id, custom_id"},
    {"cancellations", "cancellations", "requested_at", "run, batch_id, custom_id"},
};

struct prune {
    struct query *q;
    char before[32], rows[24];
    struct str run, batch;
    bool dry, uncopied; /* uncopied: letters too whose copy to a queue is owed */
    int64_t told_ns;
};

#define OLD                                                                                        \
    "%s<$1 AND (CAST($2 AS text) IS NULL OR run=$2) AND (CAST($3 AS text) IS NULL OR batch_id=$3)"

/* Rows that are old enough, and of them those that `more` names. */
static int64_t count(struct prune *p, const struct prunable *t, const char *more, struct err *err)
{
    char sql[400];
    struct str parameters[] = {str_of(p->before), p->run, p->batch};
    snprintf(sql, sizeof sql, "SELECT count(*) FROM %s WHERE " OLD "%s", t->table, t->age, more);
    int rc = query_start(p->q, sql, parameters, 3, err);
    if (rc >= 0)
        rc = query_next(p->q, err);
    return rc < 0 ? rc : query_int(p->q, 0);
}

/* A letter is in the outbox until its copy has reached the dead-letter queue. SQLite has none. */
static bool outbox(const struct prune *p, const struct prunable *t)
{
    return !p->uncopied && strcmp(t->table, "dead_letters") == 0 && query_is_postgres(p->q);
}

/* The oldest first, so that what is left after a stop is the newer part. */
static int64_t remove_all(struct prune *p, const struct prunable *t, const char *more,
                          struct err *err)
{
    char sql[600];
    struct str parameters[] = {str_of(p->before), p->run, p->batch, str_of(p->rows)};
    snprintf(sql, sizeof sql,
             "DELETE FROM %s WHERE (%s) IN (SELECT %s FROM %s WHERE " OLD
             "%s ORDER BY %s LIMIT CAST($4 AS integer))",
             t->table, t->key, t->key, t->table, t->age, more, t->age);
    int64_t all = 0, n;
    while ((n = query_run(p->q, sql, parameters, 4, err)) > 0) {
        all += n;
        if (clock_mono_ns(clock_system()) - p->told_ns >= TOLD_NS) {
            p->told_ns = clock_mono_ns(clock_system());
            LOG(LOG_INFO, "pruning", LOG_S("table", t->table), LOG_I("rows", all));
        }
    }
    return n < 0 ? n : all;
}

/* Whether the comma-separated list has the name. */
static bool listed(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',')
        if (strncmp(at, name, n) == 0 && (at[n] == ',' || !at[n]))
            return true;
    return false;
}

static int check_list(const char *list, struct err *err)
{
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',') {
        size_t i = 0, n = strcspn(at, ",");
        while (i < TR_COUNT(prunables) && !str_eq((struct str){at, n}, str_of(prunables[i].name)))
            i++;
        if (i == TR_COUNT(prunables))
            return err_set(err, E_USAGE,
                           "--tables: want some of results,dead_letters,parked,attempts,"
                           "cancellations, found \"%.*s\"",
                           (int)TR_MIN(n, (size_t)60), at);
    }
    return E_OK;
}

static int prune(struct prune *p, const char *list, struct err *err)
{
    printf("%s before=%s", p->dry ? "would_prune" : "pruned", p->before);
    for (size_t i = 0; i < TR_COUNT(prunables); i++) {
        if (!listed(list, prunables[i].name))
            continue;
        const struct prunable *t = &prunables[i];
        const char *more = outbox(p, t) ? " AND copied_at IS NOT NULL" : "";
        int64_t n = p->dry ? count(p, t, more, err) : remove_all(p, t, more, err), owed = 0;
        if (n >= 0 && *more)
            owed = count(p, t, " AND copied_at IS NULL", err);
        if (n < 0 || owed < 0) {
            putchar('\n');
            return (int)TR_MIN(n, owed);
        }
        printf(" %s=%lld", t->name, (long long)n);
        if (owed)
            printf(" uncopied_kept=%lld", (long long)owed);
        fflush(stdout);
    }
    putchar('\n');
    return E_OK;
}

int command_prune(const struct config *config)
{
    struct err err = {0};
    const char *list = config_text(config, "tables");
    struct prune p = {.run = console_run(config),
                      .batch = str_of(config_text(config, "batch")),
                      .dry = config_flag(config, "dry-run"),
                      .uncopied = config_flag(config, "uncopied")};
    command_log_setup(config);
    int rc = check_list(list, &err);
    if (rc >= 0 && config_origin(config, "older-than") == CONFIG_DEFAULT)
        rc = err_set(&err, E_USAGE, "want --older-than TIME, as in 30d, found none");
    wall_text(clock_wall_ns(clock_system()) - config_int(config, "older-than"), p.before);
    snprintf(p.rows, sizeof p.rows, "%lld", (long long)config_int(config, "chunk-rows"));
    if (rc >= 0)
        rc = console_db(&p.q, config, p.dry ? QUERY_READ : QUERY_WRITE, &err);
    if (rc >= 0)
        rc = prune(&p, list, &err);
    query_close(p.q);
    return rc < 0 ? command_failed(config, &err) : EXIT_WELL;
}
