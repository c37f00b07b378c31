/* spool: what was appended comes back field for field; torn at every byte, flipped at every byte,
 * full, replayed twice, another's, used by two. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
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

/* ---- cases ---- */

static void every_field_comes_back(void **state)
{
    (void)state;
    struct spool *s = open_with(opts());
    struct result r = row("x", "answer\n\xF0\x9F\x98\x80");
    r.status = RESULT_FAILED;
    r.reasoning = (struct str){NULL, 0};
    r.finish_reason = STR("");
    r.correct = 1;
    r.prompt_tokens = 7;
    r.completion_tokens = INT32_MAX;
    r.sanitized = true;
    r.raw = (struct str){"\0\xFF", 2};
    r.has_seed = true;
    r.seed = INT64_MIN;
    r.device_seconds = 0.1;
    r.started_ns = -5;
    memset(r.output_sha256, 0xAB, 32);
    const struct result *at = &r;
    struct dead_letter d = {.source_key = STR("main/b/x:1"),
                            .key = {STR("main"), STR("b"), {NULL, 0}},
                            .reason = STR("id_conflict"),
                            .payload = {"\0{", 2},
                            .attempts = 3,
                            .seen_ns = 9};
    struct lost_range l = {STR("main"), STR("g"), STR("kafka://h/t"), STR("retention"), 3, 10, 20};
    struct commit c = {.results = &at,
                       .n_results = 1,
                       .dead_letters = &d,
                       .n_dead_letters = 1,
                       .lost_ranges = &l,
                       .n_lost_ranges = 1};
    struct err err = {0};
    assert_int_equal(spool_append(s, &c, &err), E_OK);
    spool_close(s);

    /* By the reader itself, whose bytes stay. */
    char bytes[4096];
    struct spool_row found;
    size_t n = read_file("00000001.seg", bytes, sizeof bytes), pos = SPOOL_MAGIC_BYTES;
    struct str all = {bytes, n};
    assert_int_equal(spool_next(all, &pos, &found), SPOOL_ROW);
    assert_int_equal(found.kind, SPOOL_OWNER);
    assert_int_equal(spool_next(all, &pos, &found), SPOOL_ROW);
    assert_int_equal(found.kind, SPOOL_RESULT);
    assert_true(str_eq(found.result.answer, r.answer) && str_eq(found.result.raw, r.raw));
    assert_true(found.result.reasoning.ptr == NULL && found.result.finish_reason.ptr != NULL);
    assert_int_equal(found.result.finish_reason.len, 0);
    assert_int_equal(found.result.status, RESULT_FAILED);
    assert_int_equal(found.result.correct, 1);
    assert_int_equal(found.result.prompt_tokens, 7);
    assert_int_equal(found.result.completion_tokens, INT32_MAX);
    assert_true(found.result.sanitized && found.result.has_seed);
    assert_true(found.result.seed == INT64_MIN && found.result.started_ns == -5);
    assert_true(found.result.device_seconds == 0.1 && found.result.finished_ns == r.finished_ns);
    assert_memory_equal(found.result.request_sha256, r.request_sha256, 32);
    assert_memory_equal(found.result.output_sha256, r.output_sha256, 32);
    assert_int_equal(spool_next(all, &pos, &found), SPOOL_ROW);
    assert_int_equal(found.kind, SPOOL_DEAD_LETTER);
    assert_true(str_eq(found.dead_letter.payload, d.payload) &&
                str_eq(found.dead_letter.reason, d.reason));
    assert_true(found.dead_letter.key.custom_id.ptr == NULL && found.dead_letter.attempts == 3);
    assert_int_equal(spool_next(all, &pos, &found), SPOOL_ROW);
    assert_int_equal(found.kind, SPOOL_LOST_RANGE);
    assert_true(found.lost_range.from == 10 && found.lost_range.to == 20 &&
                found.lost_range.partition == 3 && str_eq(found.lost_range.reason, l.reason));
    assert_int_equal(spool_next(all, &pos, &found), SPOOL_END);

    s = open_with(opts()); /* and by the sink, from the next process */
    struct spool_replayed done;
    assert_false(spool_empty(s));
    assert_int_equal(replay(s, &done, &err), E_OK);
    assert_true(done.rows == 3 && n_kept == 1 && n_dead == 1 && n_lost == 1);
    assert_true(spool_empty(s) && !is_there("00000001.seg"));
    spool_close(s);
}

static void rows_of_this_process_and_of_the_one_before(void **state)
{
    (void)state;
    struct spool_replayed done;
    struct err err = {0};
    struct spool *s = open_with(opts());
    append_rows(s, 0, 10);
    append_rows(s, 10, 10);
    spool_close(s);
    s = open_with(opts());
    append_rows(s, 20, 5);
    assert_true(spool_bytes(s) > 0);
    fail_at = 1;
    assert_int_equal(replay(s, &done, &err), E_RETRY); /* still away */
    assert_int_equal(n_kept, 0);
    append_rows(s, 25, 5);
    fail_at = 0;
    assert_int_equal(replay(s, &done, &err), E_OK);
    expect_kept(0, 30);
    assert_int_equal(done.counts.inserted, 30);
    assert_true(spool_empty(s) && spool_bytes(s) == 0);
    append_rows(s, 30, 1); /* the next outage */
    forget();
    assert_int_equal(replay(s, &done, &err), E_OK);
    expect_kept(30, 1);
    spool_close(s);
}

/* The sink dies between two transactions of one segment; a process dies between COMMIT and the
 * segment's removal. */
static void replayed_twice(void **state)
{
    (void)state;
    char bytes[1 << 16];
    struct spool_replayed done;
    struct err err;
    struct spool *s = open_with(opts());
    for (int i = 0; i < 20; i++)
        append_rows(s, i * 64, 64);
    fail_at = 2;
    assert_int_equal(replay(s, &done, &err), E_RETRY);
    assert_int_equal(n_kept, 512);
    forget();
    assert_int_equal(replay(s, &done, &err), E_OK);
    expect_kept(0, 1280); /* the first 512 again: the sink drops them */
    forget();
    append_rows(s, 0, 3);
    size_t n = read_file("00000002.seg", bytes, sizeof bytes);
    assert_int_equal(replay(s, &done, &err), E_OK);
    spool_close(s);
    write_file("00000002.seg", bytes, n);
    forget();
    s = open_with(opts());
    assert_int_equal(replay(s, &done, &err), E_OK);
    expect_kept(0, 3);
    spool_close(s);
}

static void torn_at_every_byte(void **state)
{
    (void)state;
    char bytes[8192];
    struct spool *s = open_with(opts());
    append_rows(s, 0, 3);
    spool_close(s);
    size_t n = read_file("00000001.seg", bytes, sizeof bytes), ends[4] = {0}, at;
    struct spool_row found;
    at = SPOOL_MAGIC_BYTES;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(spool_next((struct str){bytes, n}, &at, &found), SPOOL_ROW);
        ends[i] = at;
    }
    assert_int_equal(at, n);
    for (size_t cut = 0; cut < n; cut++) {
        struct spool_replayed done;
        struct err err;
        int whole = (cut >= ends[1]) + (cut >= ends[2]);
        sweep();
        write_file("00000001.seg", bytes, cut);
        forget();
        s = open_with(opts());
        assert_int_equal(replay(s, &done, &err), E_OK);
        expect_kept(0, whole);
        assert_true(spool_empty(s) && !is_there("00000001.seg"));
        bool at_end = cut == ends[0] || cut == ends[1] || cut == ends[2];
        if (cut >= ends[0])
            assert_int_equal(done.torn_bytes > 0, !at_end);
        if (cut % 97 == 0) { /* and it can be used; syncs take their time */
            append_rows(s, 50, 1);
            forget();
            assert_int_equal(replay(s, &done, &err), E_OK);
            expect_kept(50, 1);
        }
        spool_close(s);
    }
}

/* One flipped byte costs at most its own record (or the segment, where it hits the head), is told,
 * and never yields a row that was not written. */
static void flipped_at_every_byte(void **state)
{
    (void)state;
    char bytes[8192];
    struct spool *s = open_with(opts());
    append_rows(s, 0, 3);
    spool_close(s);
    size_t n = read_file("00000001.seg", bytes, sizeof bytes), head = SPOOL_MAGIC_BYTES;
    struct spool_row found;
    assert_int_equal(spool_next((struct str){bytes, n}, &head, &found), SPOOL_ROW);
    for (size_t i = 0; i < n; i++) {
        struct spool_replayed done;
        struct err err = {0};
        struct spool_opts o = opts();
        sweep();
        bytes[i] = (char)(bytes[i] ^ 0x40);
        write_file("00000001.seg", bytes, n);
        bytes[i] = (char)(bytes[i] ^ 0x40);
        forget();
        s = NULL;
        int rc = spool_open(&s, &o, &err);
        if (rc < 0) { /* "TRSPOOL1" became another version's magic */
            assert_true(i == SPOOL_MAGIC_BYTES - 1 && rc == E_USAGE);
            continue;
        }
        assert_int_equal(replay(s, &done, &err), E_OK);
        assert_int_equal(done.damaged + (done.torn_bytes > 0), 1);
        assert_int_equal(n_kept, i < head ? 0 : 2);
        for (int k = 0; k < n_kept; k++)
            assert_string_equal(kept[k].id, kept[k].answer);
        assert_int_equal(is_there("00000001.bad"), i < head);
        spool_close(s);
    }
}

/* Rows of our own that cannot be read back: their jobs are in our hands and must not be
 * acknowledged. */
static void own_rows_that_vanish_are_fatal(void **state)
{
    (void)state;
    char bytes[8192], path[128];
    struct spool_replayed done;
    struct err err;
    for (int how = 0; how < 2; how++) {
        sweep();
        forget();
        struct spool *s = open_with(opts());
        append_rows(s, 0, 3);
        size_t n = read_file("00000001.seg", bytes, sizeof bytes);
        bytes[n - 100] ^= 1;
        write_file("00000001.seg", bytes, n);
        snprintf(path, sizeof path, "%s/00000001.seg", dir);
        if (how == 1)
            assert_int_equal(unlink(path), 0);
        assert_int_equal(replay(s, &done, &err), E_FATAL);
        assert_string_equal(err.type, "spool_damaged");
        assert_int_equal(n_kept, how == 0 ? 2 : 0); /* what can be read is committed */
        assert_true(spool_empty(s));
        spool_close(s);
    }
}

static void full_takes_all_of_a_commit_or_nothing(void **state)
{
    (void)state;
    struct spool_replayed done;
    struct err err = {0};
    struct spool_opts o = opts();
    o.bytes = 40000;
    struct spool *s = open_with(o);
    append_rows(s, 0, 5);
    int64_t before = spool_bytes(s);
    static char large[39000];
    memset(large, 'x', sizeof large - 1);
    struct result r[2] = {row("small", "small"), row("large", large)};
    const struct result *at[2] = {&r[0], &r[1]};
    struct commit c = {.results = at, .n_results = 2};
    assert_int_equal(spool_append(s, &c, &err), E_RETRY);
    assert_string_equal(err.type, "spool_full");
    assert_int_equal(spool_bytes(s), before);
    append_rows(s, 5, 1); /* what fits still goes in */
    assert_int_equal(replay(s, &done, &err), E_OK);
    expect_kept(0, 6);
    spool_close(s);
    s = open_with(o); /* an empty one that cannot take even the head */
    spool_close(s);
    o.bytes = 10;
    s = open_with(o);
    err = (struct err){0};
    assert_int_equal(spool_append(s, &c, &err), E_RETRY);
    assert_true(spool_empty(s) && spool_bytes(s) == 0);
    spool_close(s);
}

/* More than a segment; the files are bounded, the rows all there. */
static void many_segments(void **state)
{
    (void)state;
    enum { ROWS = 40, BYTES = 1 << 20 };
    struct spool_replayed done;
    struct err err = {0};
    struct spool *s = open_with(opts());
    char *big = malloc(BYTES + 1);
    assert_non_null(big);
    memset(big, 'y', BYTES);
    big[BYTES] = '\0';
    char ids[ROWS][16];
    struct result r[ROWS];
    const struct result *at[ROWS];
    for (int i = 0; i < ROWS; i++) {
        snprintf(ids[i], sizeof ids[i], "j%d", i);
        r[i] = row(ids[i], ids[i]);
        r[i].raw = str_of(big);
        at[i] = &r[i];
    }
    struct commit c = {.results = at, .n_results = ROWS};
    assert_int_equal(spool_append(s, &c, &err), E_OK);
    assert_true(is_there("00000002.seg") && is_there("00000003.seg"));
    int64_t before = spool_bytes(s);
    assert_true(before > ROWS * BYTES);
    assert_int_equal(spool_append(s, &c, &err), E_RETRY); /* 80 MiB into 64: full, all taken back */
    assert_int_equal(spool_bytes(s), before);
    assert_int_equal(replay(s, &done, &err), E_OK);
    expect_kept(0, ROWS);
    assert_false(is_there("00000001.seg") || is_there("00000003.seg"));
    spool_close(s);
    free(big);
}

static void refuse(struct spool_opts o, const char *a, const char *b)
{
    struct spool *s = NULL;
    struct err err = {0};
    assert_int_equal(spool_open(&s, &o, &err), E_USAGE);
    if (!strstr(err.msg, a) || !strstr(err.msg, b))
        fail_msg("want \"%s\" and \"%s\" in: %s", a, b, err.msg);
}

static void anothers_rows_are_refused(void **state)
{
    (void)state;
    struct spool *s = open_with(opts());
    append_rows(s, 0, 1);
    spool_close(s);
    struct spool_opts o = opts();
    o.owner.run = STR("blue");
    refuse(o, "\"blue\"", "\"main\"");
    o = opts();
    o.owner.database = STR("postgres:other");
    refuse(o, "\"postgres:other\"", "\"postgres:llm\"");
    o = opts();
    o.owner.schema = 2;
    refuse(o, "schema \"2\"", "found \"1\"");
    char bytes[8192];
    size_t n = read_file("00000001.seg", bytes, sizeof bytes);
    bytes[7] = '2';
    write_file("00000001.seg", bytes, n);
    refuse(opts(), "TRSPOOL1", "TRSPOOL2");
    assert_true(is_there("00000001.seg"));
}

static void two_processes_do_not_share(void **state)
{
    (void)state;
    struct spool *s = open_with(opts());
    char pid[32];
    snprintf(pid, sizeof pid, "process %ld", (long)getpid());
    refuse(opts(), pid, dir);
    spool_close(s);
    s = open_with(opts());
    spool_close(s);
}

static void a_disk_that_refuses(void **state)
{
    (void)state;
    struct rlimit old, small;
    struct err err = {0};
    struct spool_replayed done;
    struct spool *s = open_with(opts());
    append_rows(s, 0, 2);
    int64_t before = spool_bytes(s);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){(rlim_t)before + 100, old.rlim_max}; /* in the middle of a record */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    struct result r = row("a", "a");
    const struct result *at = &r;
    struct commit c = {.results = &at, .n_results = 1};
    assert_int_equal(spool_append(s, &c, &err), E_RETRY);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_string_equal(err.type, "spool_disk");
    assert_int_equal(spool_bytes(s), before);
    append_rows(s, 2, 2);
    assert_int_equal(replay(s, &done, &err), E_OK);
    assert_int_equal(done.torn_bytes + done.damaged, 0);
    expect_kept(0, 4);
    spool_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_field_comes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(rows_of_this_process_and_of_the_one_before, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(replayed_twice, set_up, tear_down),
        cmocka_unit_test_setup_teardown(torn_at_every_byte, set_up, tear_down),
        cmocka_unit_test_setup_teardown(flipped_at_every_byte, set_up, tear_down),
        cmocka_unit_test_setup_teardown(own_rows_that_vanish_are_fatal, set_up, tear_down),
        cmocka_unit_test_setup_teardown(full_takes_all_of_a_commit_or_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(many_segments, set_up, tear_down),
        cmocka_unit_test_setup_teardown(anothers_rows_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_processes_do_not_share, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_disk_that_refuses, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
