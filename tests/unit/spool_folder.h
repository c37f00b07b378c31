/* spool_folder: a spool in a folder of its own, rows for it, and a sink that remembers what it was
 * given. Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_SPOOL_FOLDER_H
#define TRANCHE_TESTS_SPOOL_FOLDER_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/sink/spool.h"

static char dir[64];

/* ---- a sink that remembers ---- */
enum { KEPT_MAX = 4096 };
static struct kept {
    char id[64], answer[64];
} kept[KEPT_MAX];
static int n_kept, n_dead, n_lost, fail_at, commits;

static int keep(struct sink *s, const struct commit *c, struct commit_counts *counts,
                struct err *err)
{
    (void)s;
    commits++;
    if (fail_at && commits >= fail_at)
        return err_set(err, E_RETRY, "injected");
    assert_int_equal(c->n_progress, 0);
    *counts = (struct commit_counts){.inserted = (int64_t)c->n_results,
                                     .dead_letters = (int64_t)c->n_dead_letters};
    for (size_t i = 0; i < c->n_results && n_kept < KEPT_MAX; i++, n_kept++) {
        const struct result *r = c->results[i];
        snprintf(kept[n_kept].id, 64, STR_FMT, STR_ARG(r->key.custom_id));
        snprintf(kept[n_kept].answer, 64, STR_FMT, (int)TR_MIN(r->answer.len, (size_t)60),
                 r->answer.ptr ? r->answer.ptr : "");
    }
    n_dead += (int)c->n_dead_letters;
    n_lost += (int)c->n_lost_ranges;
    return E_OK;
}
static const struct sink_ops ops = {.name = "keeper", .commit = keep};
static struct sink sink = {.ops = &ops};

static void forget(void)
{
    n_kept = n_dead = n_lost = fail_at = commits = 0;
}

/* ---- set-up ---- */
static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/tranche-spool-XXXXXX");
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    forget();
    return mkdtemp(dir) == NULL;
}

static void sweep(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s/*", dir);
    assert_int_equal(system(command), 0);
}

static int tear_down(void **state)
{
    (void)state;
    sweep();
    return rmdir(dir);
}

static struct spool_opts opts(void)
{
    return (struct spool_opts){
        .dir = dir, .bytes = 64 << 20, .owner = {1, STR("postgres:llm"), STR("main")}};
}

static struct spool *open_with(struct spool_opts o)
{
    struct spool *s = NULL;
    struct err err = {0};
    if (spool_open(&s, &o, &err) < 0)
        fail_msg("%s", err.msg);
    return s;
}

static struct result row(const char *id, const char *answer)
{
    struct result r = {.key = {STR("main"), STR("b"), str_of(id)},
                       .answer = str_of(answer),
                       .correct = -1,
                       .attempts = 1,
                       .finished_ns = 1769860800123000000};
    sha256_of(str_of(id), r.request_sha256);
    return r;
}

static void append_rows(struct spool *s, int from, int n)
{
    struct result rows[64];
    const struct result *at[64];
    char ids[64][16];
    struct err err = {0};
    assert_true(n <= 64);
    for (int i = 0; i < n; i++) {
        snprintf(ids[i], sizeof ids[i], "j%d", from + i);
        rows[i] = row(ids[i], ids[i]);
        at[i] = &rows[i];
    }
    struct commit c = {.results = at, .n_results = (size_t)n};
    if (spool_append(s, &c, &err) < 0)
        fail_msg("%s", err.msg);
}

static int replay(struct spool *s, struct spool_replayed *done, struct err *err)
{
    *done = (struct spool_replayed){0};
    *err = (struct err){0};
    return spool_replay(s, &sink, done, err);
}

/* Ids j<from>.. in order, each with its own answer. */
static void expect_kept(int from, int n)
{
    assert_int_equal(n_kept, n);
    for (int i = 0; i < n; i++) {
        char id[64];
        snprintf(id, sizeof id, "j%d", from + i);
        assert_string_equal(kept[i].id, id);
        assert_string_equal(kept[i].answer, id);
    }
}

static size_t read_file(const char *name, char *out, size_t cap)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = fread(out, 1, cap, f);
    fclose(f);
    return n;
}

static void write_file(const char *name, const char *bytes, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static bool is_there(const char *name)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return stat(path, &st) == 0;
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

#endif
