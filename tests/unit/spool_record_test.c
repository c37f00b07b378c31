/* spool_record: what was appended comes back field for field; torn at every byte, flipped at every
 * byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/spool_folder.h"

static void read_next(struct str all, size_t *at, enum spool_kind want, struct spool_row *found)
{
    assert_int_equal(spool_next(all, at, found), SPOOL_ROW);
    assert_int_equal(found->kind, want);
}

static void expect_result(const struct result *found, const struct result *want)
{
    assert_true(str_eq(found->answer, want->answer) && str_eq(found->raw, want->raw));
    assert_true(found->reasoning.ptr == NULL && found->finish_reason.ptr != NULL);
    assert_int_equal(found->finish_reason.len, 0);
    assert_int_equal(found->status, want->status);
    assert_int_equal(found->correct, want->correct);
    assert_int_equal(found->prompt_tokens, want->prompt_tokens);
    assert_int_equal(found->completion_tokens, want->completion_tokens);
    assert_true(found->sanitized && found->has_seed);
    assert_true(found->seed == want->seed && found->started_ns == want->started_ns);
    assert_true(found->device_seconds == want->device_seconds &&
                found->finished_ns == want->finished_ns);
    assert_memory_equal(found->request_sha256, want->request_sha256, 32);
    assert_memory_equal(found->output_sha256, want->output_sha256, 32);
}

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
    read_next(all, &pos, SPOOL_OWNER, &found);
    read_next(all, &pos, SPOOL_RESULT, &found);
    expect_result(&found.result, &r);
    read_next(all, &pos, SPOOL_DEAD_LETTER, &found);
    assert_true(str_eq(found.dead_letter.payload, d.payload) &&
                str_eq(found.dead_letter.reason, d.reason));
    assert_true(found.dead_letter.key.custom_id.ptr == NULL && found.dead_letter.attempts == 3);
    read_next(all, &pos, SPOOL_LOST_RANGE, &found);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(every_field_comes_back),
        WITH_FOLDER(torn_at_every_byte),
        WITH_FOLDER(flipped_at_every_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
