/* cmd_diff: `tranche diff`: two runs over the same jobs, row by row. The database compares and
 * counts; here at most one row is held at a time, whatever the number of rows. */
#include <stdio.h>

#include "worker/commands/commands.h"
#include "worker/commands/console.h"

/* What can differ; one job may differ in several ways. Order is that of the columns in diff_sql. */
enum kind {
    KIND_MISSING, /* no row in the second run */
    KIND_EXTRA,   /* no row in the first one */
    KIND_REQUEST, /* the id names another request there: nothing else is compared */
    KIND_FAILED,
    KIND_MENDED,
    KIND_CHANGED,
    KIND_LONGER,
    KIND_WRONG,
    KIND_RIGHT,
    KINDS
};
static const struct {
    const char *name, *text;
} kinds[KINDS] = {
    [KIND_MISSING] = {"missing", "no row in the second run"},
    [KIND_EXTRA] = {"extra", "no row in the first run"},
    [KIND_REQUEST] = {"request", "another request under the same id"},
    [KIND_FAILED] = {"failed", "answered, and now not"},
    [KIND_MENDED] = {"mended", "answered only now"},
    [KIND_CHANGED] = {"changed", "another answer"},
    [KIND_LONGER] = {"longer", "more tokens, beyond --longer-than"},
    [KIND_WRONG] = {"wrong", "correct, and now not"},
    [KIND_RIGHT] = {"right", "correct only now"},
};

struct diff {
    struct query *q;
    struct str parameters[5]; /* the runs, the batch, how much longer, how many to list */
    unsigned fail_on;         /* bits 1 << enum kind */
    int64_t found[KINDS], before, after, both, same, tokens[2];
    struct text sql;
};

/* Both databases, old SQLite too: no FULL JOIN, and no IS DISTINCT FROM. */
static const char diff_sql[] =
    "WITH pairs AS (SELECT a.batch_id, a.custom_id, a.status AS status1, a.answer AS answer1, "
    "a.choices AS choices1, a.correct AS correct1, a.completion_tokens AS tokens1, "
    "a.request_sha256 AS sha1, b.status AS status2, b.answer AS answer2, b.choices AS choices2, "
    "b.correct AS correct2, b.completion_tokens AS tokens2, b.request_sha256 AS sha2 "
    "FROM results a LEFT JOIN results b ON b.run=$2 AND b.batch_id=a.batch_id AND "
    "b.custom_id=a.custom_id "
    "WHERE a.run=$1 AND (CAST($3 AS text) IS NULL OR a.batch_id=$3) "
    "UNION ALL SELECT b.batch_id, b.custom_id, NULL, NULL, NULL, NULL, NULL, NULL, b.status, "
    "b.answer, b.choices, b.correct, b.completion_tokens, b.request_sha256 FROM results b "
    "WHERE b.run=$2 AND (CAST($3 AS text) IS NULL OR b.batch_id=$3) AND NOT EXISTS (SELECT 1 "
    "FROM results a WHERE a.run=$1 AND a.batch_id=b.batch_id AND a.custom_id=b.custom_id)), "
    "kinds AS (SELECT batch_id, custom_id, status1, status2, tokens1, tokens2, correct1, correct2, "
    "answer1, answer2, CASE WHEN status2 IS NULL THEN 1 ELSE 0 END AS missing, "
    "CASE WHEN status1 IS NULL THEN 1 ELSE 0 END AS extra, "
    "CASE WHEN sha1<>sha2 THEN 1 ELSE 0 END AS request, "
    "CASE WHEN sha1=sha2 AND status1='ok' AND status2<>'ok' THEN 1 ELSE 0 END AS failed, "
    "CASE WHEN sha1=sha2 AND status1<>'ok' AND status2='ok' THEN 1 ELSE 0 END AS mended, "
    "CASE WHEN sha1=sha2 AND status1='ok' AND status2='ok' AND choices1<>choices2 "
    "THEN 1 ELSE 0 END AS changed, "
    "CASE WHEN sha1=sha2 AND status1='ok' AND status2='ok' AND "
    "tokens2>tokens1*CAST($4 AS double precision) THEN 1 ELSE 0 END AS longer, "
    "CASE WHEN sha1=sha2 AND correct1=1 AND correct2=0 THEN 1 ELSE 0 END AS wrong, "
    "CASE WHEN sha1=sha2 AND correct1=0 AND correct2=1 THEN 1 ELSE 0 END AS right_now FROM pairs) ";
static const char totals_sql[] =
    "SELECT sum(missing), sum(extra), sum(request), sum(failed), sum(mended), sum(changed), "
    "sum(longer), sum(wrong), sum(right_now), count(status1), count(status2), "
    "sum(CASE WHEN status1 IS NULL OR status2 IS NULL THEN 0 ELSE 1 END), "
    "sum(CASE WHEN missing+extra+request+failed+mended+changed+longer+wrong+right_now=0 "
    "THEN 1 ELSE 0 END), sum(tokens1), sum(tokens2) FROM kinds";
static const char list_sql[] =
    "SELECT missing, extra, request, failed, mended, changed, longer, wrong, right_now, batch_id, "
    "custom_id, status1, status2, tokens1, tokens2, correct1, correct2, answer1, answer2 FROM "
    "kinds "
    "WHERE missing+extra+request+failed+mended+changed+longer+wrong+right_now>0 "
    "ORDER BY batch_id, custom_id LIMIT CAST($5 AS bigint)";
enum {
    COL_BATCH = KINDS,
    COL_ID,
    COL_STATUS,
    COL_TOKENS = COL_STATUS + 2,
    COL_CORRECT = COL_TOKENS + 2,
    COL_ANSWER = COL_CORRECT + 2
};

static int start(struct diff *d, const char *select, int parameters, struct err *err)
{
    text_reset(&d->sql);
    text_add(&d->sql, STR(diff_sql));
    text_add(&d->sql, str_of(select));
    text_char(&d->sql, '\0');
    if (d->sql.failed)
        return err_set(err, E_FATAL, "diff: no memory");
    return query_stream(d->q, d->sql.ptr, d->parameters, parameters, err);
}

static int read_totals(struct diff *d, struct err *err)
{
    int rc = start(d, totals_sql, 4, err);
    if (rc < 0 || (rc = query_next(d->q, err)) < 0)
        return rc;
    int64_t *const after[] = {&d->before, &d->after,     &d->both,
                              &d->same,   &d->tokens[0], &d->tokens[1]};
    for (int i = 0; i < KINDS; i++)
        d->found[i] = query_int(d->q, i);
    for (int i = 0; i < (int)TR_COUNT(after); i++)
        *after[i] = query_int(d->q, KINDS + i);
    return TR_MIN(query_next(d->q, err), E_OK);
}

static bool fails(const struct diff *d)
{
    for (int i = 0; i < KINDS; i++)
        if (d->fail_on & 1u << i && d->found[i])
            return true;
    return false;
}

/* ---- one row ---- */

static void add_kinds(const struct query *q, struct text *t, const char *quote)
{
    bool first = true;
    for (int i = 0; i < KINDS; i++)
        if (query_int(q, i)) {
            text_f(t, "%s%s%s%s", first ? "" : ",", quote, kinds[i].name, quote);
            first = false;
        }
}

/* NULL: null. */
static void add_pair(const struct query *q, struct text *t, const char *name, int column,
                     bool is_text)
{
    text_f(t, ",\"%s\":", name);
    for (int side = 0; side < 2; side++) {
        struct str v = query_text(q, column + side);
        text_char(t, side ? ',' : '[');
        if (!v.ptr)
            text_add(t, STR("null"));
        else if (is_text)
            text_json_str(t, v);
        else
            text_add(t, v);
    }
    text_char(t, ']');
}

static void row_json(const struct query *q, struct text *t)
{
    text_add(t, STR("{\"batch_id\":"));
    text_json_str(t, query_text(q, COL_BATCH));
    text_add(t, STR(",\"custom_id\":"));
    text_json_str(t, query_text(q, COL_ID));
    text_add(t, STR(",\"kinds\":["));
    add_kinds(q, t, "\"");
    text_char(t, ']');
    add_pair(q, t, "status", COL_STATUS, true);
    add_pair(q, t, "completion_tokens", COL_TOKENS, false);
    add_pair(q, t, "correct", COL_CORRECT, false);
    add_pair(q, t, "answer", COL_ANSWER, true);
    text_char(t, '}');
}

static void cell(const struct query *q, int column, int width)
{
    char buf[600];
    struct str v = query_text(q, column);
    snprintf(buf, sizeof buf, "%.*s", v.ptr ? (int)TR_MIN(v.len, (size_t)512) : 1,
             v.ptr ? v.ptr : "-");
    console_cell(stdout, buf, width);
}

static void row_print(const struct query *q, struct text *t)
{
    text_reset(t);
    add_kinds(q, t, "");
    text_char(t, '\0');
    console_cell(stdout, t->failed ? "?" : t->ptr, 22);
    cell(q, COL_BATCH, 18);
    cell(q, COL_ID, 26);
    for (int side = 0; side < 2; side++) {
        cell(q, COL_STATUS + side, 9);
        cell(q, COL_TOKENS + side, 6);
        cell(q, COL_CORRECT + side, 1);
    }
    putchar('\n');
}

static void print_head(void)
{
    static const struct {
        const char *name;
        int width;
    } cells[] = {{"what", 22}, {"batch", 18}, {"id", 26},    {"first", 9}, {"tokens", 6},
                 {"", 1},      {"second", 9}, {"tokens", 6}, {"", 1}};
    for (size_t i = 0; i < TR_COUNT(cells); i++)
        console_cell(stdout, cells[i].name, cells[i].width);
    putchar('\n');
}

/* Each row as it comes; of JSON the member "rows". */
static int list(struct diff *d, bool json, struct err *err)
{
    struct text line = {0};
    int more, rc = start(d, list_sql, 5, err);
    bool first = true;
    if (rc >= 0 && json)
        printf("\"rows\":[");
    else if (rc >= 0)
        print_head();
    while (rc >= 0 && (more = query_next(d->q, err)) != 0) {
        rc = TR_MIN(more, E_OK);
        text_reset(&line);
        if (rc >= 0 && json) {
            row_json(d->q, &line);
            printf("%s\n" STR_FMT, first ? "" : ",", STR_ARG(text_view(&line)));
        } else if (rc >= 0) {
            row_print(d->q, &line);
        }
        if (line.failed)
            rc = err_set(err, E_FATAL, "diff: no memory for a line");
        first = false;
    }
    if (rc >= 0)
        printf(json ? "\n],\n" : "\n");
    text_close(&line);
    return rc;
}

/* ---- the counts ---- */

static void totals_json(const struct diff *d)
{
    struct text t = {0};
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"before", "after", "batch"};
        text_f(&t, "\"%s\":", names[i]);
        if (d->parameters[i].ptr)
            text_json_str(&t, d->parameters[i]);
        else
            text_add(&t, STR("null"));
        text_char(&t, ',');
    }
    text_f(&t, "\"rows_before\":%lld,\"rows_after\":%lld,\"both\":%lld,\"same\":%lld",
           (long long)d->before, (long long)d->after, (long long)d->both, (long long)d->same);
    for (int i = 0; i < KINDS; i++)
        text_f(&t, ",\"%s\":%lld", kinds[i].name, (long long)d->found[i]);
    text_f(&t, ",\"completion_tokens\":[%lld,%lld],\"fails\":%s}\n", (long long)d->tokens[0],
           (long long)d->tokens[1], fails(d) ? "true" : "false");
    printf(STR_FMT, STR_ARG(text_view(&t)));
    text_close(&t);
}

static void totals_print(const struct diff *d)
{
    printf("%s: %lld rows, %lld tokens\n%s: %lld rows, %lld tokens\n", d->parameters[0].ptr,
           (long long)d->before, (long long)d->tokens[0], d->parameters[1].ptr, (long long)d->after,
           (long long)d->tokens[1]);
    printf("in both %lld, of these alike %lld\n", (long long)d->both, (long long)d->same);
    for (int i = 0; i < KINDS; i++)
        printf("  %-8s %9lld  %s%s\n", kinds[i].name, (long long)d->found[i], kinds[i].text,
               d->fail_on & 1u << i && d->found[i] ? "  <- fails" : "");
}

/* ---- options ---- */

static int parse_kinds(unsigned *out, const char *text, struct err *err)
{
    *out = 0;
    for (const char *at = text; *at;) {
        struct str word = {at, strcspn(at, ",")};
        int i = 0;
        while (i < KINDS && !str_eq(word, str_of(kinds[i].name)))
            i++;
        if (i < KINDS)
            *out |= 1u << i;
        else if (!str_eq(word, STR("none")))
            return err_set(err, E_USAGE,
                           "--fail-on: want missing, extra, request, failed, mended, changed, "
                           "longer, wrong, right or none, found \"%.*s\"",
                           (int)TR_MIN(word.len, (size_t)40), word.ptr);
        at += word.len + (at[word.len] == ',');
    }
    return E_OK;
}

static int compare(struct diff *d, const struct config *config, struct err *err)
{
    char longer[40], limit[32];
    const char *batch = config_text(config, "batch");
    int64_t most = config_int(config, "limit");
    bool json = config_flag(config, "json"), listed = config_flag(config, "list");
    if (config->n_operands != 2)
        return err_set(err, E_USAGE, "want two runs, as in `tranche diff main blue`, found %d",
                       config->n_operands);
    snprintf(longer, sizeof longer, "%.17g", config_real(config, "longer-than"));
    snprintf(limit, sizeof limit, "%lld", (long long)(most ? most : INT64_MAX));
    struct str all[] = {str_of(config->operands[0]), str_of(config->operands[1]), str_of(batch),
                        str_of(longer), str_of(limit)};
    memcpy(d->parameters, all, sizeof all);
    int rc = parse_kinds(&d->fail_on, config_text(config, "fail-on"), err);
    if (rc >= 0)
        rc = console_db(&d->q, config, QUERY_READ, err);
    if (rc >= 0)
        rc = read_totals(d, err);
    for (int side = 0; side < 2 && rc >= 0; side++)
        if ((side ? d->after : d->before) == 0)
            rc = err_set(err, E_USAGE, "%s: run %s has no rows%s%s", config_text(config, "db"),
                         config->operands[side], batch ? " in batch " : "", batch ? batch : "");
    if (rc >= 0 && json)
        putchar('{');
    if (rc >= 0 && listed)
        rc = list(d, json, err);
    if (rc >= 0 && json)
        totals_json(d);
    else if (rc >= 0)
        totals_print(d);
    return rc;
}

int command_diff(const struct config *config)
{
    struct err err = {0};
    struct diff d = {0};
    command_log_setup(config);
    int rc = compare(&d, config, &err);
    query_close(d.q);
    text_close(&d.sql);
    return rc < 0 ? command_failed(config, &err) : fails(&d) ? EXIT_STRICT : EXIT_WELL;
}
