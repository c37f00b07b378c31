/* parked_state: what is written comes back bit for bit; what is broken or of something else is
 * refused with its reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "worker/job/parked_state.h"

enum { CAP = 300, TOP = 20, PROMPT = 40 };
struct room {
    struct generated g;
    int32_t ids[CAP], top_ids[CAP * TOP], prompt_top_ids[PROMPT * TOP];
    float logprobs[CAP], top[CAP * TOP], prompt[PROMPT], prompt_top[PROMPT * TOP];
};

static void point(struct room *r, const struct parked_shape *s, int32_t cap)
{
    r->g = (struct generated){.cap = cap,
                              .ids = r->ids,
                              .logprobs = s->n_top >= 0 ? r->logprobs : NULL,
                              .top_ids = s->n_top > 0 ? r->top_ids : NULL,
                              .top_logprobs = s->n_top > 0 ? r->top : NULL,
                              .prompt_logprobs = s->prompt_top >= 0 ? r->prompt : NULL,
                              .prompt_top_ids = s->prompt_top > 0 ? r->prompt_top_ids : NULL,
                              .prompt_top_logprobs = s->prompt_top > 0 ? r->prompt_top : NULL};
}

static float any_float(void)
{
    static const float odd[] = {-INFINITY, -0.0f, 1e-40f, -9999};
    return rand() % 8 == 0 ? odd[rand() % 4] : -(float)rand() / (float)(1 + rand() % 1000);
}

static int32_t any_id(void)
{
    return rand() % 4 ? rand() % 151936 : rand() % 2 ? rand() % 128 : INT32_MAX - rand() % 2;
}

static int32_t any_top_id(void)
{
    return rand() % 8 ? any_id() : -1;
}

static void fill(struct room *r, int32_t n)
{
    for (int i = 0; i < CAP; i++) {
        r->ids[i] = any_id();
        r->logprobs[i] = any_float();
    }
    for (int i = 0; i < CAP * TOP; i++) {
        r->top_ids[i] = any_top_id();
        r->top[i] = any_float();
    }
    for (int i = 0; i < PROMPT; i++)
        r->prompt[i] = any_float();
    for (int i = 0; i < PROMPT * TOP; i++) {
        r->prompt_top_ids[i] = any_top_id();
        r->prompt_top[i] = any_float();
    }
    r->g.n = n;
}

static void expect_same(const struct room *a, const struct room *b, const struct parked_shape *s)
{
    size_t n = (size_t)a->g.n, top = (size_t)TR_MAX(s->n_top, 0);
    size_t best = (size_t)TR_MAX(s->prompt_top, 0), prompt = (size_t)s->n_prompt;
    assert_int_equal(b->g.n, a->g.n);
    assert_memory_equal(a->ids, b->ids, n * 4);
    if (s->n_top >= 0)
        assert_memory_equal(a->logprobs, b->logprobs, n * 4);
    assert_memory_equal(a->top_ids, b->top_ids, n * top * 4);
    assert_memory_equal(a->top, b->top, n * top * 4);
    if (s->prompt_top >= 0)
        assert_memory_equal(a->prompt, b->prompt, prompt * 4);
    assert_memory_equal(a->prompt_top_ids, b->prompt_top_ids, prompt * best * 4);
    assert_memory_equal(a->prompt_top, b->prompt_top, prompt * best * 4);
}

static struct parked_shape any_shape(void)
{
    struct parked_shape s = {.n_top = rand() % (TOP + 2) - 1,
                             .prompt_top = rand() % 2 ? rand() % (TOP + 2) - 1 : -1,
                             .n_prompt = 1 + rand() % PROMPT};
    for (int i = 0; i < 32; i++) {
        s.request_sha256[i] = (uint8_t)rand();
        s.engine_sha256[i] = (uint8_t)rand();
    }
    return s;
}

static void every_shape_comes_back_bit_for_bit(void **state)
{
    (void)state;
    static struct room a, b;
    struct text out = {0};
    for (int round = 0; round < 400; round++) {
        struct parked_shape s = any_shape();
        struct parked_life life = {rand(), rand() % 2 ? rand() : 0, rand() % 9}, back;
        struct err err = {0};
        int32_t n = round % 10 ? rand() % CAP : 0;
        point(&a, &s, CAP);
        fill(&a, n);
        text_reset(&out);
        text_add(&out, STR("before"));
        size_t bytes = parked_state_write(&out, &s, &life, &a.g);
        assert_true(bytes > 0 && out.len == bytes + 6);
        memset(&b, 0xAB, sizeof b);
        point(&b, &s, n);
        struct str in = {out.ptr + 6, bytes};
        if (parked_state_read(in, &s, &back, &b.g, &err) != E_OK)
            fail_msg("%s", err.msg);
        expect_same(&a, &b, &s);
        assert_memory_equal(&life, &back, sizeof life.device_ns + sizeof life.started_ns);
        assert_int_equal(life.n_cached, back.n_cached);
    }
    text_close(&out);
}

static void ids_alone_take_little_room(void **state)
{
    (void)state;
    static struct room a;
    struct parked_shape s = {.n_top = -1, .prompt_top = -1, .n_prompt = 5};
    struct parked_life life = {0};
    struct text out = {0};
    point(&a, &s, CAP);
    for (int i = 0; i < CAP; i++)
        a.ids[i] = rand() % 151936;
    a.g.n = CAP;
    assert_true(parked_state_write(&out, &s, &life, &a.g) <= 112 + 3 * CAP);
    text_close(&out);
}

static void expect_refused(struct str in, const struct parked_shape *s, int32_t cap,
                           const char *type)
{
    static struct room b;
    struct parked_life life;
    struct err err = {0};
    point(&b, s, cap);
    b.g.n = 7;
    assert_int_equal(parked_state_read(in, s, &life, &b.g, &err), E_JOB);
    assert_string_equal(err.type, type);
    assert_int_equal(b.g.n, 0);
}

static void what_is_not_ours_is_refused(void **state)
{
    (void)state;
    static struct room a;
    struct parked_shape s = {.n_top = 2, .prompt_top = 1, .n_prompt = 5}, other;
    struct parked_life life = {1, 2, 3};
    struct text out = {0};
    point(&a, &s, CAP);
    fill(&a, 50);
    parked_state_write(&out, &s, &life, &a.g);
    struct str in = text_view(&out);
    other = s;
    other.request_sha256[31] ^= 1;
    expect_refused(in, &other, CAP, "other_request");
    other = s;
    other.engine_sha256[0] ^= 1;
    expect_refused(in, &other, CAP, "other_engine");
    other = s;
    other.n_top = 3;
    expect_refused(in, &other, CAP, "other_request");
    other = s;
    other.n_prompt = 6;
    expect_refused(in, &other, CAP, "other_request");
    expect_refused(in, &s, 49, "no_room");
    out.ptr[3]++;
    expect_refused(in, &s, CAP, "other_version");
    out.ptr[3]--;
    for (size_t i = 0; i < in.len; i++) { /* every byte counts */
        out.ptr[i] ^= 4;
        if (i != 3)
            expect_refused(in, &s, CAP, "broken_state");
        out.ptr[i] ^= 4;
        expect_refused((struct str){in.ptr, i}, &s, CAP, "broken_state");
    }
    text_close(&out);
}

/* The three names are told apart, also where one ends in what another begins with. */
static void engine_hash_keeps_its_parts_apart(void **state)
{
    (void)state;
    uint8_t a[32], b[32];
    parked_engine_sha256("ab", "c", "", a);
    parked_engine_sha256("a", "bc", "", b);
    assert_memory_not_equal(a, b, 32);
    parked_engine_sha256("ab", "c", NULL, b);
    assert_memory_equal(a, b, 32);
    parked_engine_sha256("ab", "c", "w", b);
    assert_memory_not_equal(a, b, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_comes_back_bit_for_bit),
        cmocka_unit_test(ids_alone_take_little_room),
        cmocka_unit_test(what_is_not_ours_is_refused),
        cmocka_unit_test(engine_hash_keeps_its_parts_apart),
    };
    srand(1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
