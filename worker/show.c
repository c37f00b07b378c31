/* show: see show.h. */
#include "worker/show.h"

#include <errno.h>
#include <sqlite3.h>

#include "worker/console.h"

static sqlite3_stmt *query(sqlite3 *db, const char *sql, const char *run, const char *batch)
{
    sqlite3_stmt *st = NULL;
    if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK)
        return NULL;
    sqlite3_bind_text(st, 1, run, -1, SQLITE_STATIC);
    sqlite3_bind_text(st, 2, batch, -1, SQLITE_STATIC);
    return st;
}

static void show_table(sqlite3 *db, const struct run_opts *o, const char *run, const char *batch,
                       FILE *out)
{
    static const char *const heads[] = {"custom_id", "status", "tokens", "correct", "answer"};
    static const int widths[] = {18, 9, 6, 7, 60};
    sqlite3_stmt *st = query(
        db,
        "SELECT custom_id, status, completion_tokens, CASE correct WHEN 1 THEN 'yes' WHEN 0 THEN "
        "'no' ELSE '' END, coalesce(answer, error_code || ': ' || error_detail, '(no answer: ' || "
        "finish_reason || ')') FROM results WHERE run=?1 AND batch_id=?2 ORDER BY "
        "json_extract(source, '$.position') LIMIT ?3",
        run, batch);
    if (!st)
        return;
    sqlite3_bind_int(st, 3, o->show);
    fputc('\n', out);
    for (size_t i = 0; i < TR_COUNT(heads); i++)
        console_cell(out, heads[i], widths[i]);
    fputc('\n', out);
    while (sqlite3_step(st) == SQLITE_ROW) {
        for (size_t i = 0; i < TR_COUNT(heads); i++)
            console_cell(out, (const char *)sqlite3_column_text(st, (int)i), widths[i]);
        fputc('\n', out);
    }
    sqlite3_finalize(st);
}

static void show_counts(sqlite3 *db, const char *run, const char *batch, FILE *out)
{
    sqlite3_stmt *st = query(db,
                             "SELECT status, coalesce(error_code, ''), count(*), sum(correct), "
                             "count(correct) FROM results WHERE run=?1 AND batch_id=?2 GROUP BY 1, "
                             "2 ORDER BY 3 DESC",
                             run, batch);
    fputc('\n', out);
    while (st && sqlite3_step(st) == SQLITE_ROW) {
        console_cell(out, (const char *)sqlite3_column_text(st, 0), 11);
        console_cell(out, (const char *)sqlite3_column_text(st, 1), 20);
        fprintf(out, "%8lld", (long long)sqlite3_column_int64(st, 2));
        if (sqlite3_column_int64(st, 4) > 0)
            fprintf(out, "   correct %lld of %lld", (long long)sqlite3_column_int64(st, 3),
                    (long long)sqlite3_column_int64(st, 4));
        fputc('\n', out);
    }
    sqlite3_finalize(st);
    st = query(db,
               "SELECT reason, count(*) FROM dead_letters WHERE run=?1 AND batch_id=?2 GROUP BY 1",
               run, batch);
    while (st && sqlite3_step(st) == SQLITE_ROW) {
        console_cell(out, "dead letter", 11);
        console_cell(out, (const char *)sqlite3_column_text(st, 0), 20);
        fprintf(out, "%8lld\n", (long long)sqlite3_column_int64(st, 1));
    }
    sqlite3_finalize(st);
}

void show_rows(const struct run_opts *o, const char *run, const char *batch, FILE *out)
{
    sqlite3 *db = NULL;
    if (sqlite3_open_v2(o->db, &db, SQLITE_OPEN_READONLY, NULL) == SQLITE_OK) {
        show_table(db, o, run, batch, out);
        show_counts(db, run, batch, out);
        fprintf(
            out,
            "\nNext:\n"
            "  sqlite3 -box %s \"SELECT * FROM v_failures\"\n"
            "  %s export --db %s --batch %s --output %s.out.jsonl\n"
            "  sqlite3 -box %s \"SELECT custom_id, reasoning, answer FROM results WHERE correct "
            "= 0 LIMIT 3\"\n",
            o->db, program_invocation_name, o->db, batch, batch, o->db);
    }
    sqlite3_close(db);
}
