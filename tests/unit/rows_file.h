/* rows_file: the SQLite file of one test of the worker, and questions to it beside the worker's own
 * connection. Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_ROWS_FILE_H
#define TRANCHE_TESTS_ROWS_FILE_H

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base.h"

static char rows_path[64];

static void rows_file_open(void)
{
    strcpy(rows_path, "/tmp/tranche-rows-XXXXXX");
    int fd = mkstemp(rows_path);
    assert_true(fd >= 0);
    close(fd);
}

static void rows_file_remove(void)
{
    static const char *const suffix[] = {"", "-wal", "-shm"};
    for (size_t i = 0; i < TR_COUNT(suffix); i++) {
        char name[80];
        snprintf(name, sizeof name, "%s%s", rows_path, suffix[i]);
        unlink(name);
    }
}

/* As fixtures. */
static inline int rows_file_set_up(void **state)
{
    (void)state;
    rows_file_open();
    return 0;
}
static inline int rows_file_tear_down(void **state)
{
    (void)state;
    rows_file_remove();
    return 0;
}

/* The first column of the first row; -1 where there is none, as of a statement that changes. */
static int64_t ask(const char *sql)
{
    sqlite3 *db;
    sqlite3_stmt *st;
    assert_int_equal(sqlite3_open(rows_path, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 10000);
    if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    int rc = sqlite3_step(st);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    int64_t n = rc == SQLITE_ROW ? sqlite3_column_int64(st, 0) : -1;
    sqlite3_finalize(st);
    sqlite3_close(db);
    return n;
}

#endif
