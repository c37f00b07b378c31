/* show: see show.h. */
#include "worker/commands/show.h"

#include <errno.h>

#include "worker/commands/console.h"

enum { CELL_BYTES = 1024 };

/* Starts a statement about the batch; false: it cannot be, and standard error says why. */
static bool ask(struct query *q, const char *sql, const struct str *parameters, int n)
{
    struct err err = {0};
    if (query_start(q, sql, parameters, n, &err) >= 0)
        return true;
    fprintf(stderr, "tranche run: --show: %s\n", err.msg);
    return false;
}

static bool next(struct query *q)
{
    struct err err = {0};
    int more = query_next(q, &err);
    if (more < 0)
        fprintf(stderr, "tranche run: --show: %s\n", err.msg);
    return more > 0;
}

static void put_cell(FILE *out, const struct query *q, int column, int width)
{
    char cell[CELL_BYTES];
    struct str text = query_text(q, column);
    size_t n = TR_MIN(text.len, sizeof cell - 1);
    if (n)
        memcpy(cell, text.ptr, n);
    cell[n] = '\0';
    console_cell(out, cell, width);
}

#define SHOWN                                                                                      \
    "SELECT custom_id, status, completion_tokens, CASE correct WHEN 1 THEN 'yes' WHEN 0 THEN "     \
    "'no' ELSE '' END, coalesce(answer, error_code || ': ' || error_detail, '(no answer: ' || "    \
    "finish_reason || ')') FROM results WHERE run=$1 AND batch_id=$2 ORDER BY "

static void show_table(struct query *q, const struct run_opts *o, const struct str key[2],
                       FILE *out)
{
    static const char *const heads[] = {"custom_id", "status", "tokens", "correct", "answer"};
    static const int widths[] = {18, 9, 6, 7, 60};
    char limit[16];
    snprintf(limit, sizeof limit, "%d", o->show);
    struct str parameters[] = {key[0], key[1], str_of(limit)};
    const char *sql = query_is_postgres(q)
                          ? SHOWN "(source::json->>'position')::bigint LIMIT CAST($3 AS bigint)"
                          : SHOWN "json_extract(source, '$.position') LIMIT CAST($3 AS integer)";
    if (!ask(q, sql, parameters, 3))
        return;
    fputc('\n', out);
    for (size_t i = 0; i < TR_COUNT(heads); i++)
        console_cell(out, heads[i], widths[i]);
    fputc('\n', out);
    while (next(q)) {
        for (size_t i = 0; i < TR_COUNT(heads); i++)
            put_cell(out, q, (int)i, widths[i]);
        fputc('\n', out);
    }
}

static void show_counts(struct query *q, const struct str key[2], FILE *out)
{
    fputc('\n', out);
    bool asked = ask(q,
                     "SELECT status, coalesce(error_code, ''), count(*), sum(correct), "
                     "count(correct) FROM results WHERE run=$1 AND batch_id=$2 GROUP BY 1, 2 "
                     "ORDER BY 3 DESC, 1, 2",
                     key, 2);
    while (asked && next(q)) {
        put_cell(out, q, 0, 11);
        put_cell(out, q, 1, 20);
        fprintf(out, "%8lld", (long long)query_int(q, 2));
        if (query_int(q, 4) > 0)
            fprintf(out, "   correct %lld of %lld", (long long)query_int(q, 3),
                    (long long)query_int(q, 4));
        fputc('\n', out);
    }
    asked = ask(q,
                "SELECT reason, count(*) FROM dead_letters WHERE run=$1 AND batch_id=$2 GROUP BY 1 "
                "ORDER BY 1",
                key, 2);
    while (asked && next(q)) {
        console_cell(out, "dead letter", 11);
        put_cell(out, q, 0, 20);
        fprintf(out, "%8lld\n", (long long)query_int(q, 1));
    }
}

void show_rows(const struct run_opts *o, const char *run, const char *batch, FILE *out)
{
    struct query *q;
    struct err err = {0};
    struct postgres_opts db = o->postgres;
    struct str key[] = {str_of(run), str_of(batch)};
    db.url = o->db;
    db.clock = clock_system();
    if (query_open(&q, &db, QUERY_READ, &err) < 0) {
        fprintf(stderr, "tranche run: --show: %s\n", err.msg);
        return;
    }
    show_table(q, o, key, out);
    show_counts(q, key, out);
    bool sqlite = !query_is_postgres(q);
    const char *ask_with = sqlite ? "sqlite3 -box" : "psql", *schema = sqlite ? "" : "tranche.";
    const char *flag = sqlite ? "" : "-c ";
    fprintf(out,
            "\nNext:\n"
            "  %s '%s' %s\"SELECT * FROM %sv_failures\"\n"
            "  %s export --db '%s' --batch %s --output %s.out.jsonl\n"
            "  %s '%s' %s\"SELECT custom_id, reasoning, answer FROM %sresults WHERE correct = 0 "
            "LIMIT 3\"\n",
            ask_with, o->db, flag, schema, program_invocation_name, o->db, batch, batch, ask_with,
            o->db, flag, schema);
    query_close(q);
}
