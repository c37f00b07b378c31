/* sampling: the rules of a sequence: when it ends, what is banned, what is forced. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/sampling.h"
#include "tests/unit/tokenizer_fake.h"

enum { EOS = 7, STOP_ID = 8, OPEN = 9, CLOSE = 10, NL = 5 };
static const char *const tokens[] = {" he",      "ll",      "o w",      "or",   "ld",    "\n",
                                     "ab",       "<|end|>", "<|stop|>", "<th>", "</th>", "\xE4",
                                     "\xBD\xA0", "\xFF",    "o",        NULL};
static const struct tokenizer fake = {.tokens = tokens, .n = 16, .first_special = 100};
static const int32_t eos_ids[] = {EOS};
static const struct sequence_rules rules = {.tokenizer = &fake,
                                            .eos_ids = eos_ids,
                                            .n_eos_ids = 1,
                                            .think_open_id = OPEN,
                                            .think_close_id = CLOSE,
                                            .think_close = {CLOSE, NL},
                                            .n_think_close = 2};

static struct sampling defaults(void)
{
    struct sampling s;
    sampling_init(&s);
    s.max_tokens = 1000;
    return s;
}

/* Runs ids through the rules; returns the 0-based id that ended it, or -1. */
static int run(const struct sampling *s, const int32_t *ids, int n, struct sequence_end *end)
{
    struct sequence_state st;
    sequence_begin(&st, &rules, ids, 0);
    for (int i = 0; i < n; i++) {
        *end = sequence_advance(&st, &rules, s, ids, i);
        if (end->reason != FINISH_NONE)
            return i;
    }
    return -1;
}
#define RUN(s, end, ...)                                                                           \
    run(&(s), (const int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / 4, &(end))

static void ids_end_a_sequence(void **state)
{
    (void)state;
    static const int32_t stop_ids[] = {STOP_ID};
    struct sampling s = defaults();
    struct sequence_end end;
    assert_int_equal(RUN(s, end, 0, 1, EOS, 1), 2);
    assert_int_equal(end.reason, FINISH_STOP);
    assert_int_equal(end.stop_id, EOS);
    assert_int_equal(end.stop_string, -1);
    s.ignore_eos = true;
    s.stop_ids = stop_ids;
    s.n_stop_ids = 1;
    assert_int_equal(RUN(s, end, EOS, EOS, STOP_ID), 2);
    assert_int_equal(end.stop_id, STOP_ID);
    s.max_tokens = 2;
    assert_int_equal(RUN(s, end, EOS, EOS, STOP_ID), 1);
    assert_int_equal(end.reason, FINISH_LENGTH);
    s.ignore_eos = false;
    s.max_tokens = 9;
    s.min_tokens = 2;
    assert_int_equal(RUN(s, end, EOS, EOS, 1), 1); /* the second may end it */
    int32_t banned[4];
    assert_int_equal(sequence_banned(&rules, &s, 1, banned, 4), 2);
    assert_int_equal(banned[0], EOS);
    assert_int_equal(banned[1], STOP_ID);
    assert_int_equal(sequence_banned(&rules, &s, 2, banned, 4), 0);
}

static void stop_strings_cut_the_text(void **state)
{
    (void)state;
    const struct str stops[] = {STR("world"), STR("lo"), STR("o w")};
    struct sampling s = defaults();
    struct sequence_end end;
    s.stop_strings = stops;
    s.n_stop_strings = 1;
    assert_int_equal(RUN(s, end, 0, 1, 2, 3, 4, 5), 4); /* " hello world" over four ids */
    assert_int_equal(end.reason, FINISH_STOP);
    assert_int_equal(end.stop_string, 0);
    assert_int_equal(end.stop_id, -1);
    assert_int_equal(end.raw_bytes, 7);
    s.include_stop_str = true;
    assert_int_equal(RUN(s, end, 0, 1, 2, 3, 4, 5), 4);
    assert_int_equal(end.raw_bytes, 12);
    s.include_stop_str = false;
    s.n_stop_strings = 3; /* two are found at the third id: the order of the list decides */
    assert_int_equal(RUN(s, end, 0, 1, 2, 3, 4), 2);
    assert_int_equal(end.stop_string, 1);
    assert_int_equal(end.raw_bytes, 4);
    s.min_tokens = 3; /* what ends within the first three ids does not count, now or later */
    assert_int_equal(RUN(s, end, 0, 1, 2, 3, 4), 4);
    assert_int_equal(end.stop_string, 0);
    s.min_tokens = 0;
    s.max_tokens = 3; /* a stop string on the last id is a stop */
    assert_int_equal(RUN(s, end, 0, 1, 2, 3, 4), 2);
    assert_int_equal(end.reason, FINISH_STOP);
}

static void text_is_cut_in_its_own_bytes(void **state)
{
    (void)state;
    static const struct tokenizer specials = {.tokens = tokens, .n = 16, .first_special = EOS};
    struct sequence_rules r = rules;
    const struct str stops[] = {STR("\xE4\xBD\xA0"), STR("ab")};
    struct sampling s = defaults();
    struct sequence_end end = {0};
    struct sequence_state st;
    s.stop_strings = stops;
    s.n_stop_strings = 2;
    /* " he", two bad bytes, a character in two halves: the stop string lies across them */
    const int32_t ids[] = {0, 13, 15, 13, 11, 12};
    assert_int_equal(run(&s, ids, 6, &end), 5);
    assert_int_equal(end.raw_bytes, 3 + 1 + 1);
    /* a cut-off lead byte before the match */
    const int32_t half[] = {11, 6};
    assert_int_equal(run(&s, half, 2, &end), 1);
    assert_int_equal(end.stop_string, 1);
    assert_int_equal(end.raw_bytes, 1);
    /* the leading space stays, a special token in between has no text */
    r.tokenizer = &specials;
    r.n_eos_ids = 0;
    const int32_t spaced[] = {0, EOS, 1, 6};
    sequence_begin(&st, &r, NULL, 0);
    for (int i = 0; i < 4; i++)
        end = sequence_advance(&st, &r, &s, spaced, i);
    assert_int_equal(end.stop_string, 1);
    assert_int_equal(end.raw_bytes, 5);
}

static void a_long_text_keeps_its_tail(void **state)
{
    (void)state;
    char stop[STOP_STRING_BYTES_MAX + 1];
    static int32_t ids[5000];
    for (size_t i = 0; i < sizeof stop; i += 2)
        memcpy(stop + i, "ab", 2 - (i + 1 == sizeof stop));
    memcpy(stop, "o", 1); /* "obabab...": 256 bytes over 129 ids */
    const struct str stops[] = {{stop, STOP_STRING_BYTES_MAX}};
    struct sampling s = defaults();
    struct sequence_end end;
    s.max_tokens = 5000;
    s.stop_strings = stops;
    s.n_stop_strings = 1;
    for (int i = 0; i < 5000; i++)
        ids[i] = i % 100 < 50 ? 6 : 1;
    assert_int_equal(run(&s, ids, 4000, &end), -1);
    stop[0] = 'a';
    for (int i = 3000; i < 5000; i++)
        ids[i] = 6;
    assert_int_equal(run(&s, ids, 5000, &end), 3127);
    assert_int_equal(end.raw_bytes, 6000);
}

static void thinking_is_closed_by_force(void **state)
{
    (void)state;
    const int32_t prompt[] = {1, CLOSE, OPEN, 5};
    struct sampling s = defaults();
    struct sequence_state st;
    sequence_begin(&st, &rules, prompt, 4);
    assert_true(st.thinking);
    s.max_thinking_tokens = 3;
    int32_t ids[] = {1, 2, 3, CLOSE, NL, 1, OPEN, 1, 1, CLOSE, 1};
    const int32_t forced[] = {-1, -1, -1, CLOSE, NL, -1, -1, -1, -1, -1, -1};
    for (int i = 0; i < 11; i++) {
        assert_int_equal(sequence_forced(&st, &rules, &s), forced[i]);
        assert_int_equal(sequence_advance(&st, &rules, &s, ids, i).reason, FINISH_NONE);
    }
    assert_false(st.thinking);
    sequence_begin(&st, &rules, prompt, 4);
    s.max_thinking_tokens = 0;
    assert_int_equal(sequence_forced(&st, &rules, &s), CLOSE); /* at once */
    sequence_begin(&st, &rules, prompt, 2);
    assert_false(st.thinking);
    assert_int_equal(sequence_forced(&st, &rules, &s), -1);
    s.max_thinking_tokens = -1;
    sequence_begin(&st, &rules, prompt, 4);
    assert_int_equal(sequence_forced(&st, &rules, &s), -1);
}

/* Whenever the rules say that the next forced id is known ahead, it is, whatever id comes. */
static void forced_is_known_one_step_ahead(void **state)
{
    (void)state;
    static const int32_t pool[] = {OPEN, CLOSE, NL, 1, 1, 1};
    uint64_t rng = 1;
    for (int round = 0; round < 2000; round++) {
        struct sampling s = defaults();
        struct sequence_state st;
        int32_t ids[40];
        s.max_thinking_tokens = round % 5 - 1;
        sequence_begin(&st, &rules, (const int32_t[]){OPEN}, round % 2);
        for (int i = 0; i < 40; i++) {
            bool depends = sequence_forced_depends(&st, &s);
            int32_t ahead = sequence_forced(&st, &rules, &s);
            rng = rng * 6364136223846793005u + 99;
            ids[i] = ahead >= 0 ? ahead : pool[(rng >> 40) % TR_COUNT(pool)];
            sequence_advance(&st, &rules, &s, ids, i);
            if (!depends && ahead < 0)
                assert_int_equal(sequence_forced(&st, &rules, &s), -1);
            else if (!depends)
                assert_true(s.max_thinking_tokens == 0 && st.n_forced > 0);
        }
    }
}

static void repetition_loops_end(void **state)
{
    (void)state;
    static int32_t ids[400];
    struct sampling s = defaults();
    struct sequence_end end;
    s.loop_tokens = 40; /* periods up to 10 */
    for (int period = 1; period <= 11; period++) {
        for (int i = 0; i < 400; i++)
            ids[i] = i < 100 ? i + 100 : (i - 100) % period + 20;
        int at = run(&s, ids, 400, &end);
        assert_int_equal(at, period <= 10 ? 139 : -1);
        assert_int_equal(end.reason, period <= 10 ? FINISH_LOOP : FINISH_NONE);
    }
    s.loop_tokens = 0;
    assert_int_equal(run(&s, ids, 400, &end), -1);
}

static void out_of_range_is_named(void **state)
{
    (void)state;
    struct sampling s = defaults();
    struct err err = {0};
    assert_int_equal(sampling_check(&s, &rules, 100, &err), E_OK);
    s.params.top_p = 1.5f;
    assert_int_equal(sampling_check(&s, &rules, 100, &err), E_JOB);
    assert_string_equal(err.type, "bad_params");
    assert_non_null(strstr(err.msg, "top_p is 1.5"));
    s = defaults();
    s.params.temperature = NAN;
    err = (struct err){0};
    assert_int_equal(sampling_check(&s, &rules, 100, &err), E_JOB);
    s = defaults();
    s.params.bias_ids = (const int32_t[]){100};
    s.params.bias = (const float[]){1};
    s.params.n_bias = 1;
    assert_int_equal(sampling_check(&s, &rules, 101, &err), E_OK);
    assert_int_equal(sampling_check(&s, &rules, 100, &err), E_JOB);
    s = defaults();
    s.max_thinking_tokens = 5;
    struct sequence_rules plain = rules;
    plain.think_close_id = -1;
    err = (struct err){0};
    assert_int_equal(sampling_check(&s, &plain, 100, &err), E_JOB);
    assert_string_equal(err.type, "unsupported");
    s = defaults();
    s.stop_strings = (const struct str[]){STR("x")};
    s.n_stop_strings = 1;
    plain.tokenizer = NULL;
    err = (struct err){0};
    assert_int_equal(sampling_check(&s, &plain, 100, &err), E_JOB);
    assert_string_equal(err.type, "unsupported");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_end_a_sequence),
        cmocka_unit_test(stop_strings_cut_the_text),
        cmocka_unit_test(text_is_cut_in_its_own_bytes),
        cmocka_unit_test(a_long_text_keeps_its_tail),
        cmocka_unit_test(thinking_is_closed_by_force),
        cmocka_unit_test(forced_is_known_one_step_ahead),
        cmocka_unit_test(repetition_loops_end),
        cmocka_unit_test(out_of_range_is_named),
    };
    return cmocka_run_group_tests_name("sampling", tests, NULL, NULL);
}
