/* cmd_cancel: `tranche cancel`: jobs that nobody wants any more. The workers see the rows. */
#include <errno.h>

#include "worker/commands/commands.h"
#include "worker/commands/console.h"
#include "worker/sink/sink.h"

enum { CHUNK = 1000, LINE_MAX_BYTES = 4096 };

struct cancel {
    struct query *q;
    struct str run, batch, reason;
    char now[32];
    bool undo;
    int64_t ids, changed, late; /* asked for; new ones; those whose row is there already */
};

/* "" is the whole batch. */
static int cancel_one(struct cancel *c, struct str id, struct err *err)
{
    static const char insert[] = "INSERT INTO cancellations (run, batch_id, custom_id, reason, "
                                 "requested_at) VALUES ($1,$2,$3,$4,$5) "
                                 "ON CONFLICT (run, batch_id, custom_id) DO NOTHING";
    static const char remove[] =
        "DELETE FROM cancellations WHERE run=$1 AND batch_id=$2 AND custom_id=$3";
    static const char done[] =
        "SELECT 1 FROM results WHERE run=$1 AND batch_id=$2 AND custom_id=$3";
    struct str parameters[] = {c->run, c->batch, id, c->reason, str_of(c->now)};
    if (c->ids > 0 && c->ids % CHUNK == 0) {
        int rc = query_commit(c->q, err);
        if (rc >= 0)
            rc = query_begin(c->q, err);
        if (rc < 0)
            return rc;
    }
    c->ids++;
    int64_t n = query_run(c->q, c->undo ? remove : insert, parameters, c->undo ? 3 : 5, err);
    if (n < 0)
        return (int)n;
    c->changed += n;
    if (c->undo || id.len == 0)
        return E_OK;
    int rc = query_start(c->q, done, parameters, 3, err);
    if (rc >= 0)
        rc = query_next(c->q, err);
    c->late += rc > 0;
    return TR_MIN(rc, E_OK);
}

/* One id a line. */
static int cancel_file(struct cancel *c, const char *path, struct err *err)
{
    char line[LINE_MAX_BYTES];
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    int rc = E_OK;
    if (!f)
        return err_errno(err, E_USAGE, "--ids: %s", path);
    while (rc >= 0 && fgets(line, sizeof line, f)) {
        struct str id = {line, strcspn(line, "\r\n")};
        if (id.len == sizeof line - 1)
            rc = err_set(err, E_USAGE, "%s: want lines of at most %d bytes", path,
                         LINE_MAX_BYTES - 2);
        else if (id.len)
            rc = cancel_one(c, id, err);
    }
    if (rc >= 0 && ferror(f))
        rc = err_errno(err, E_USAGE, "--ids: %s", path);
    if (f != stdin)
        fclose(f);
    return rc;
}

static int cancel_all(struct cancel *c, const struct config *config, struct err *err)
{
    const char *path = config_text(config, "ids");
    int rc = query_begin(c->q, err);
    for (int i = 1; rc >= 0 && i < config->n_operands; i++)
        rc = *config->operands[i] ? cancel_one(c, str_of(config->operands[i]), err)
                                  : err_set(err, E_USAGE, "an id is empty");
    if (rc >= 0 && path)
        rc = cancel_file(c, path, err);
    if (rc >= 0 && config->n_operands == 1 && !path)
        rc = cancel_one(c, STR(""), err);
    return rc < 0 ? rc : query_commit(c->q, err);
}

/* A batch that nobody has heard of may be a slip of the pen, or may still come. */
static int check_batch(struct cancel *c, struct err *err)
{
    struct str parameters[] = {c->run, c->batch};
    int rc =
        query_start(c->q, "SELECT 1 FROM batches WHERE run=$1 AND batch_id=$2", parameters, 2, err);
    if (rc >= 0)
        rc = query_next(c->q, err);
    if (rc == 0)
        fprintf(stderr,
                "tranche cancel: the database knows no batch \"" STR_FMT "\" of run \"" STR_FMT
                "\" yet; jobs of it that come will be cancelled\n",
                STR_ARG(c->batch), STR_ARG(c->run));
    return TR_MIN(rc, E_OK);
}

int command_cancel(const struct config *config)
{
    struct err err = {0};
    struct cancel c = {.run = str_of(config_text(config, "run")),
                       .reason = str_of(config_text(config, "reason")),
                       .undo = config_flag(config, "undo")};
    command_log_setup(config);
    int rc = E_OK;
    if (config->n_operands < 1)
        rc = err_set(&err, E_USAGE, "want a batch, found none");
    else
        c.batch = str_of(config->operands[0]);
    wall_text(clock_wall_ns(clock_system()), c.now);
    if (rc >= 0)
        rc = console_db(&c.q, config, QUERY_WRITE, &err);
    if (rc >= 0 && !c.undo)
        rc = check_batch(&c, &err);
    if (rc >= 0)
        rc = cancel_all(&c, config, &err);
    query_close(c.q);
    if (rc < 0)
        return command_failed(config, &err);
    printf("%s batch=" STR_FMT " run=" STR_FMT " asked=%lld changed=%lld rows_already=%lld\n",
           c.undo ? "taken_back" : "cancelled", STR_ARG(c.batch), STR_ARG(c.run), (long long)c.ids,
           (long long)c.changed, (long long)c.late);
    return EXIT_WELL;
}
