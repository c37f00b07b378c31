/* The benchmark's arithmetic, against figures worked out apart from it (DeepSeek-R1-Distill-Qwen-
 * 1.5B, 790 TFLOP/s, 4.3 TB/s) and against its own definition summed token by token. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/bench/bench_roofline.h"

static struct roofline r1(void)
{
    struct model_config c = {.hidden = 1536,
                             .inner = 8960,
                             .n_layers = 28,
                             .n_heads = 12,
                             .n_kv_heads = 2,
                             .head_dim = 128,
                             .vocab_size = 151936};
    struct roofline r;
    roofline_init(&r, &c, 790e12, 4.3e12);
    return r;
}

static void near(double got, double want, double share)
{
    if (!(fabs(got - want) <= share * fabs(want)))
        fail_msg("got %.9g, want %.9g within %g", got, want, share);
}

static void the_models_constants(void **state)
{
    (void)state;
    struct roofline r = r1();
    near(r.body, 1.3102e9, 1e-4);
    near(r.head, 233373696, 0);
    near(r.kv_bytes, 28672, 0);
    near(r.pair_ops, 172032, 0);
    near(roofline_weights_seconds(&r), 3.0871e9 / 4.3e12, 1e-4);
}

/* Thousands of tokens a second as published in the design: 111, 77, 63, 88. */
static void the_four_workloads(void **state)
{
    (void)state;
    struct roofline r = r1();
    double seconds = 0, tokens = 0;
    near(128 / roofline_seconds(&r, 0, 128, 128), 111e3, 0.01);
    near(1024 / roofline_seconds(&r, 0, 512, 1024), 77e3, 0.01);
    near(64 / roofline_seconds(&r, 1000, 100, 64), 88e3, 0.01);
    for (uint32_t i = 1; i <= 20000; i++) {
        int32_t n = lognormal_length(i, 1024, 0.8, 8192);
        seconds += roofline_seconds(&r, 0, 512, n);
        tokens += n;
    }
    near(tokens / seconds, 63e3, 0.02);
}

/* A request's work is the sum of its tokens' work: so the work of any window of a run adds up. */
static void token_by_token(void **state)
{
    (void)state;
    struct roofline r = r1();
    const double s = 1000, p = 100, g = 64, c = r.gemm_flops, w = r.copy_Bps;
    double t = 2 * r.body * p / c + r.pair_ops * (s * p + p * p / 2) / r.attention_flops;
    for (int j = 1; j <= g; j++) {
        t += 2 * r.head / c + 4 * r.vocab / w + 2 * (r.body + r.head) / r.rows / w;
        if (j == g)
            break; /* the last token out is not computed on */
        t += 2 * r.body / c + r.pair_ops * s / r.attention_flops;
        t += r.kv_bytes * (p + j + s / r.rows) / w;
    }
    near(roofline_seconds(&r, s, p, g), t, 1e-12);
    assert_true(roofline_seconds(&r, s, p, 0) == 0);
    double before = 0;
    for (int j = 1; j <= g; j++) {
        double now = roofline_seconds(&r, s, p, j);
        assert_true(now > before);
        before = now;
    }
}

static void shares_of_a_run(void **state)
{
    (void)state;
    struct run_shares s;
    struct run_moments m = {
        .start = {.at = 10},
        .full = {.at = 12, .work = 1, .tokens = 100, .busy = 1, .idle = 5},
        .refilled = {.at = 22, .work = 9, .tokens = 900, .busy = 10.9, .idle = 5.1},
        .end = {.at = 30, .work = 10, .tokens = 1000, .busy = 15, .idle = 8}};
    run_shares(&s, &m);
    near(s.out_tok_s, 50, 1e-12);
    near(s.share_r_seq_whole, 0.5, 1e-12);
    near(s.r_seq_tok_s, 100, 1e-12);
    near(s.out_tok_s_steady, 80, 1e-12);
    near(s.share_r_seq, 0.8, 1e-12);
    near(s.gpu_idle_share, 0.01, 1e-9);
    near(s.steady_seconds, 10, 1e-12);
    near(s.drain_seconds, 8, 1e-12);
}

static void a_run_without_a_steady_state(void **state)
{
    (void)state;
    struct run_shares s;
    struct run_moments m = {.start = {.at = 10}, .end = {.at = 12, .work = 1, .tokens = 10}};
    run_shares(&s, &m);
    near(s.out_tok_s, 5, 1e-12);
    assert_true(s.out_tok_s_steady == 0 && s.share_r_seq == 0 && s.gpu_idle_share == 0);
    m.full = m.refilled = (struct moment){.at = 11, .work = 1, .tokens = 1};
    run_shares(&s, &m);
    assert_true(s.share_r_seq == 0 && s.steady_seconds == 0);
    run_shares(&s, &(struct run_moments){0});
    assert_true(s.out_tok_s == 0 && s.r_seq_tok_s == 0);
}

static void lengths_are_lognormal(void **state)
{
    (void)state;
    enum { N = 50000 };
    double sum = 0, below = 0;
    for (uint32_t i = 1; i <= N; i++) {
        int32_t n = lognormal_length(i, 1024, 0.8, 8192);
        assert_true(n >= 1 && n <= 8192);
        assert_int_equal(n, lognormal_length(i, 1024, 0.8, 8192));
        sum += n;
        below += n < 744; /* the median: 1024 exp(-0.32) */
    }
    near(sum / N, 1010, 0.02); /* the cap takes a little off the mean */
    near(below / N, 0.5, 0.02);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_models_constants),
        cmocka_unit_test(the_four_workloads),
        cmocka_unit_test(token_by_token),
        cmocka_unit_test(shares_of_a_run),
        cmocka_unit_test(a_run_without_a_steady_state),
        cmocka_unit_test(lengths_are_lognormal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
