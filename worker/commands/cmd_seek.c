/* cmd_seek: `tranche seek`: an explicit move of the stored position. A worker starts where the
 * database says, so that is what moves; the group's offsets go with it, for scalers to see. */
#include <errno.h>
#include <stdlib.h>

#include "worker/commands/commands.h"
#include "worker/commands/console.h"
#include "worker/sink/sink.h"
#include "worker/source/producer.h"

static int parse_to(struct seek_to *to, const char *text, struct err *err)
{
    char *end;
    *to = (struct seek_to){.kind = SEEK_TO_OFFSET};
    if (!text)
        return err_set(err, E_USAGE, "want --to earliest, end, an offset or a time, found none");
    if (strcmp(text, "earliest") == 0 || strcmp(text, "end") == 0) {
        to->kind = *text == 'e' && text[1] == 'a' ? SEEK_TO_EARLIEST : SEEK_TO_END;
        return E_OK;
    }
    errno = 0;
    to->value = strtoll(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && !errno)
        return E_OK;
    to->kind = SEEK_TO_TIME;
    to->value = console_time_parse(str_of(text));
    return to->value >= 0 ? E_OK
                          : err_set(err, E_USAGE,
                                    "--to: want earliest, end, an offset or a time such as "
                                    "2026-01-31T12:00:00Z, found \"%.60s\"",
                                    text);
}

/* The stored position of each partition; -1: none. */
static int read_stored(struct query *q, const struct str key[3], int64_t stored[], struct err *err)
{
    int more,
        rc = query_start(q,
                         "SELECT partition, position FROM partition_progress WHERE run=$1 AND "
                         "consumer_group=$2 AND source=$3",
                         key, 3, err);
    for (int i = 0; i < SOURCE_PARTITIONS_MAX; i++)
        stored[i] = -1;
    while (rc >= 0 && (more = query_next(q, err)) != 0) {
        if (more < 0)
            return more;
        int64_t p = query_int(q, 0);
        if (p >= 0 && p < SOURCE_PARTITIONS_MAX)
            stored[p] = query_int(q, 1);
    }
    return rc;
}

static int store(struct query *q, const struct str key[3], const struct seek_move *moves, int n,
                 struct err *err)
{
    static const char sql[] =
        "INSERT INTO partition_progress (run, consumer_group, source, partition, position, "
        "messages, updated_at) VALUES ($1,$2,$3,$4,$5,0,$6) ON CONFLICT (run, consumer_group, "
        "source, partition) DO UPDATE SET position=excluded.position, "
        "updated_at=excluded.updated_at";
    char now[32], partition[16], position[24];
    wall_text(clock_wall_ns(clock_system()), now);
    int rc = query_begin(q, err);
    for (int i = 0; rc >= 0 && i < n; i++) {
        snprintf(partition, sizeof partition, "%d", moves[i].partition);
        snprintf(position, sizeof position, "%lld", (long long)moves[i].to);
        struct str parameters[] = {key[0],           key[1],     key[2], str_of(partition),
                                   str_of(position), str_of(now)};
        int64_t done = query_run(q, sql, parameters, TR_COUNT(parameters), err);
        rc = done < 0 ? (int)done : E_OK;
    }
    return rc < 0 ? rc : query_commit(q, err);
}

static void print_moves(const struct seek_move *moves, int n, const int64_t stored[])
{
    printf("%9s %14s %14s %14s %14s %14s\n", "partition", "first", "end", "acknowledged", "stored",
           "to");
    for (int i = 0; i < n; i++) {
        const struct seek_move *m = &moves[i];
        int64_t have[] = {m->low, m->high, m->committed, stored[m->partition], m->to};
        printf("%9d", m->partition);
        for (size_t k = 0; k < TR_COUNT(have); k++)
            if (have[k] < 0)
                printf(" %14s", "-");
            else
                printf(" %14lld", (long long)have[k]);
        putchar('\n');
    }
}

static int seek(const struct config *config, struct err *err)
{
    struct seek_to to;
    struct source_opts queue;
    struct seek_move moves[SOURCE_PARTITIONS_MAX];
    struct query *q = NULL;
    int64_t stored[SOURCE_PARTITIONS_MAX];
    char label[JOB_ORIGIN_MAX];
    int n = 0;
    bool dry = config_flag(config, "dry-run");
    console_queue(&queue, config);
    queue.group = config_text(config, "group");
    queue.partition = (int32_t)config_int(config, "partition");
    int rc = parse_to(&to, config_text(config, "to"), err);
    if (rc >= 0 && !queue.url)
        rc = err_set(err, E_USAGE, "want --source URL, found none");
    if (rc >= 0)
        rc = queue_seek(&queue, &to, false, moves, &n, label, err);
    struct str key[] = {str_of(config_text(config, "run")), str_of(queue.group), str_of(label)};
    if (rc >= 0)
        rc = console_db(&q, config, dry ? QUERY_READ : QUERY_WRITE, err);
    if (rc >= 0)
        rc = read_stored(q, key, stored, err);
    if (rc >= 0) {
        print_moves(moves, n, stored);
        fflush(stdout);
    }
    /* The broker first: it refuses while workers run, and then nothing has moved. */
    if (rc >= 0 && !dry)
        rc = queue_seek(&queue, &to, true, moves, &n, label, err);
    if (rc >= 0 && !dry)
        rc = store(q, key, moves, n, err);
    query_close(q);
    if (rc >= 0)
        printf("%s\n", dry ? "nothing was moved" : "moved");
    return rc;
}

int command_seek(const struct config *config)
{
    struct err err = {0};
    command_log_setup(config);
    return seek(config, &err) < 0 ? command_failed(config, &err) : EXIT_WELL;
}
