/* spool: full, replayed twice, damaged, another's, used by two, on a disk that refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <sys/resource.h>

#include "tests/unit/spool_folder.h"

/* Linked with --wrap=fdatasync (CMakeLists.txt). */
static int n_synced;
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    n_synced++;
    return __real_fdatasync(fd);
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

/* One row of its own, n bytes larger than a small one. */
static int append_large(struct spool *s, int i, size_t n)
{
    char id[16], *large = malloc(n + 1);
    struct err err = {0};
    assert_non_null(large);
    memset(large, 'z', n);
    large[n] = '\0';
    snprintf(id, sizeof id, "j%d", i);
    struct result r = row(id, id);
    r.raw = str_of(large);
    const struct result *at = &r;
    struct commit c = {.results = &at, .n_results = 1};
    int rc = spool_append(s, &c, &err);
    free(large);
    return rc;
}

/* A last row that fills the buffer is written before its commit's end: the sync must follow. */
static void each_append_is_synced(void **state)
{
    (void)state;
    const size_t sizes[] = {2 << 20, 100, 1 << 20, 3 << 20};
    struct spool *s = open_with(opts());
    for (int i = 0; i < (int)TR_COUNT(sizes); i++) {
        n_synced = 0;
        assert_int_equal(append_large(s, i, sizes[i]), E_OK);
        assert_true(n_synced > 0);
    }
    spool_close(s);
}

/* Replay reads a segment whole: small appends must not let one grow to the spool's limit. */
static void small_appends_fill_many_segments(void **state)
{
    (void)state;
    enum { ROWS = 40, BYTES = 900000 };
    struct spool_replayed done;
    struct err err = {0};
    char path[128];
    struct stat st;
    int n = 0;
    struct spool *s = open_with(opts());
    for (int i = 0; i < ROWS; i++)
        assert_int_equal(append_large(s, i, BYTES), E_OK);
    for (;; n++) {
        snprintf(path, sizeof path, "%s/%08d.seg", dir, n + 1);
        if (stat(path, &st) != 0)
            break;
        assert_in_range(st.st_size, 1, 17 << 20);
    }
    assert_int_equal(n, 3);
    assert_int_equal(replay(s, &done, &err), E_OK);
    expect_kept(0, ROWS);
    spool_close(s);
}

/* What is refused behind a full segment leaves that segment whole. */
static void refused_behind_a_full_segment(void **state)
{
    (void)state;
    struct spool_replayed done;
    struct err err = {0};
    struct spool_opts o = opts();
    o.bytes = 17500000; /* 19 rows, which fill a segment, and not a 20th */
    struct spool *s = open_with(o);
    for (int i = 0; i < 19; i++)
        assert_int_equal(append_large(s, i, 900000), E_OK);
    int64_t before = spool_bytes(s);
    assert_in_range(before, 16 << 20, o.bytes);
    assert_int_equal(append_large(s, 19, 900000), E_RETRY);
    assert_int_equal(spool_bytes(s), before);
    assert_false(is_there("00000002.seg"));
    assert_int_equal(append_large(s, 19, 100), E_OK); /* what fits still goes in */
    assert_int_equal(replay(s, &done, &err), E_OK);
    assert_int_equal(done.torn_bytes + done.damaged, 0);
    expect_kept(0, 20);
    spool_close(s);
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
        WITH_FOLDER(rows_of_this_process_and_of_the_one_before),
        WITH_FOLDER(replayed_twice),
        WITH_FOLDER(own_rows_that_vanish_are_fatal),
        WITH_FOLDER(full_takes_all_of_a_commit_or_nothing),
        WITH_FOLDER(many_segments),
        WITH_FOLDER(each_append_is_synced),
        WITH_FOLDER(small_appends_fill_many_segments),
        WITH_FOLDER(refused_behind_a_full_segment),
        WITH_FOLDER(anothers_rows_are_refused),
        WITH_FOLDER(two_processes_do_not_share),
        WITH_FOLDER(a_disk_that_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
