/* sample: the generator against its published vectors, the draw against known distributions, and
 * the order of the steps, one by one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define COUNT(a) (int)(sizeof(a) / sizeof(a)[0])

static const struct sample_params neutral = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_top = -1};

static void *take(size_t bytes)
{
    void *p = malloc(bytes);
    assert_non_null(p);
    memset(p, 0xee, bytes); /* scratch holds anything */
    return p;
}

/* One token from a copy of the logits, with every vector unit; all must agree to the bit. */
static struct sample_token sample_all(const float *logits, int v, const struct sample_row *row)
{
    struct sample_token first = {0};
    float *copy = take((size_t)v * sizeof *copy);
    void *scratch = take(sample_scratch_bytes(v));
    for (enum cpu_isa isa = CPU_ISA_SCALAR; isa <= CPU_ISA_AVX512; isa++) {
        const struct cpu_ops *ops = cpu_ops_of(isa);
        struct sample_token token;
        if (!ops)
            continue;
        memcpy(copy, logits, (size_t)v * sizeof *copy);
        sample_with(ops, copy, v, row, &token, scratch);
        if (isa == CPU_ISA_SCALAR)
            first = token;
        assert_int_equal(token.id, first.id);
        assert_int_equal(token.n_top, first.n_top);
        assert_memory_equal(&token.logprob, &first.logprob, sizeof token.logprob);
        assert_memory_equal(token.top_ids, first.top_ids, (size_t)token.n_top * 4);
        assert_memory_equal(token.top_logprobs, first.top_logprobs, (size_t)token.n_top * 4);
    }
    free(copy);
    free(scratch);
    return first;
}
static int32_t pick(const float *logits, int v, const struct sample_params *params)
{
    struct sample_row row = {.params = params, .forced = -1};
    return sample_all(logits, v, &row).id;
}

/* The ids that `draws` draws at successive positions give, as counts[v]. */
static void tally(const float *logits, int v, struct sample_row row, int draws, int *counts)
{
    float *copy = take((size_t)v * sizeof *copy);
    void *scratch = take(sample_scratch_bytes(v));
    int32_t *output = calloc((size_t)draws, sizeof *output); /* penalties are off: ids are free */
    assert_non_null(output);
    row.output = output;
    row.forced = -1;
    memset(counts, 0, (size_t)v * sizeof *counts);
    for (int i = 0; i < draws; i++) {
        struct sample_token token;
        memcpy(copy, logits, (size_t)v * sizeof *copy);
        row.n_output = i;
        sample_cpu(copy, v, &row, &token, scratch);
        assert_in_range(token.id, 0, v - 1);
        counts[token.id]++;
    }
    free(copy);
    free(scratch);
    free(output);
}

/* Pearson's statistic against weights; the limit is the mean plus five deviations of chi-square,
 * beyond which a true sampler lands less than once in ten thousand seeds. */
static void fits(const int *counts, const double *weights, int v, int draws)
{
    double total = 0, chi = 0;
    int freedom = -1;
    for (int i = 0; i < v; i++)
        total += weights[i];
    for (int i = 0; i < v; i++) {
        double want = draws * weights[i] / total;
        if (weights[i] <= 0) {
            assert_int_equal(counts[i], 0);
            continue;
        }
        chi += (counts[i] - want) * (counts[i] - want) / want;
        freedom++;
    }
    if (freedom > 0 && !(chi < freedom + 5 * sqrt(2.0 * freedom)))
        fail_msg("chi-square %.1f with %d degrees of freedom", chi, freedom);
}
static double misfit(const int *counts, const double *weights, int v, int draws)
{
    double total = 0, chi = 0;
    for (int i = 0; i < v; i++)
        total += weights[i];
    for (int i = 0; i < v; i++) {
        double want = draws * weights[i] / total;
        chi += (counts[i] - want) * (counts[i] - want) / want;
    }
    return chi;
}

/* The known answers of the Random123 distribution (kat_vectors, philox4x32 10). */
static void philox_gives_the_published_vectors(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4];
        uint64_t key;
        uint32_t out[4];
    } known[] = {
        {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         0xffffffffffffffff,
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         0x299f31d0a4093822,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (enum cpu_isa isa = CPU_ISA_SCALAR; isa <= CPU_ISA_AVX512; isa++)
        for (int i = 0; i < COUNT(known); i++) {
            uint32_t in[4][16], out[4][16];
            if (!cpu_ops_of(isa))
                continue;
            for (int word = 0; word < 4; word++)
                for (int lane = 0; lane < 16; lane++)
                    in[word][lane] = known[i].counter[word] ^ (lane == 5 ? 0 : (uint32_t)lane);
            cpu_ops_of(isa)->philox(out, (const uint32_t(*)[16])in, known[i].key);
            for (int word = 0; word < 4; word++) {
                assert_int_equal(out[word][5], known[i].out[word]);
                assert_int_equal(out[word][0], known[i].out[word]);
                assert_int_not_equal(out[word][1], known[i].out[word]);
            }
        }
}

static void draws_follow_the_distribution(void **state)
{
    (void)state;
    enum { V = 100, N = 20000 };
    float logits[V];
    double weights[V];
    int counts[V];
    static const float temperatures[] = {0.5f, 1.0f, 2.0f};
    for (int t = 0; t < COUNT(temperatures); t++) {
        struct sample_params params = neutral;
        params.temperature = temperatures[t];
        params.rng_key = 0x1234567890abcdefu + (uint64_t)t;
        for (int i = 0; i < V; i++) {
            logits[i] = 3 + (float)(i * 37 % V) * 0.02f;
            weights[i] = exp((double)logits[i] / (double)temperatures[t]);
        }
        tally(logits, V, (struct sample_row){.params = &params}, N, counts);
        fits(counts, weights, V, N);
        /* The test can fail: a distribution 5 % off in half of its tokens is told apart. */
        for (int i = 0; i < V; i += 2)
            weights[i] *= 1.1;
        assert_true(misfit(counts, weights, V, N) > 99 + 3 * sqrt(2.0 * 99) / 2);
    }
}

static void draws_differ_by_choice_key_and_position(void **state)
{
    (void)state;
    enum { V = 1000 };
    float logits[V] = {0};
    int same = 0;
    int32_t last = -1;
    for (uint32_t i = 0; i < 300; i++) {
        struct sample_params params = neutral;
        params.choice = i % 3 == 0 ? i : 0;
        params.rng_key = i % 3 == 1 ? (uint64_t)i << 32 : 7;
        struct sample_row row = {
            .params = &params, .forced = -1, .n_output = i % 3 == 2 ? (int)i : 0};
        static const int32_t output[300];
        row.output = output;
        int32_t id = sample_all(logits, V, &row).id;
        assert_int_equal(sample_all(logits, V, &row).id, id);
        same += id == last;
        last = id;
    }
    assert_in_range(same, 0, 6); /* 0.3 expected */
}

/* Joint use of the settings, against an independent count of survivors. */
static void cuts_keep_the_right_tokens(void **state)
{
    (void)state;
    enum { V = 24, N = 12000 };
    float logits[V];
    double p[V];
    int counts[V];
    for (int i = 0; i < V; i++)
        logits[i] = logf((float)(1 + i * 7 % V)); /* weights 1..24, shuffled */
    const struct {
        int top_k;
        float top_p, min_p;
        int kept; /* heaviest tokens that must survive */
    } cases[] = {
        {5, 1, 0, 5},
        {0, 0.5f, 0, 8}, /* 24+..+17 = 164 of 300, 24+..+18 = 147 */
        {0, 0.48f, 0, 7},
        {0, 1, 0.49f, 13},   /* weights 12..24 */
        {10, 0.5f, 0, 5},    /* of 195: 24+23+22+21 = 90, with 20: 110 */
        {10, 0.3f, 0.9f, 1}, /* weights 22..24 are 69: 24 reaches 20.7 */
        {0, 1e-9f, 0, 1},
        {1, 1, 0, 1},
        {0, 1, 1.0f, 1},
        {0, 0.0f, 0, 1},
        {200, 0.9999999f, 0, 24},
    };
    for (int c = 0; c < COUNT(cases); c++) {
        struct sample_params params = neutral;
        params.top_k = cases[c].top_k;
        params.top_p = cases[c].top_p;
        params.min_p = cases[c].min_p;
        params.rng_key = 99 + (uint64_t)c;
        for (int i = 0; i < V; i++) {
            int weight = 1 + i * 7 % V;
            p[i] = weight > V - cases[c].kept ? weight : 0;
        }
        tally(logits, V, (struct sample_row){.params = &params}, N, counts);
        fits(counts, p, V, N);
        for (int i = 0; i < V; i++)
            assert_true(p[i] <= 0 || counts[i] > 0);
    }
}

static void ties_are_settled_by_id(void **state)
{
    (void)state;
    enum { V = 40, N = 4000 };
    float logits[V];
    int counts[V];
    for (int i = 0; i < V; i++)
        logits[i] = i % 4 == 1 ? 2.0f : i % 4 == 2 ? -2.0f : -50.0f;
    struct sample_params params = neutral;
    params.temperature = 0;
    assert_int_equal(pick(logits, V, &params), 1);
    params = neutral;
    params.top_k = 3; /* the third has nine equals: all ten stay */
    double ten[V];
    for (int i = 0; i < V; i++)
        ten[i] = i % 4 == 1;
    tally(logits, V, (struct sample_row){.params = &params}, N, counts);
    fits(counts, ten, V, N);
    params.top_p = 0.35f; /* of ten equals the four of lowest id reach it */
    for (int i = 0; i < V; i++)
        ten[i] = i % 4 == 1 && i < 16;
    tally(logits, V, (struct sample_row){.params = &params}, N, counts);
    fits(counts, ten, V, N);
}

/* Each step moves a greedy choice only if it comes where vLLM has it. */
static void steps_come_in_order(void **state)
{
    (void)state;
    float logits[20] = {0};
    const int32_t prompt[] = {3, 3, 4}, output[] = {5, 5, 5, 6}, banned[] = {7};
    const int32_t bias_ids[] = {7, 5};
    const float bias[] = {100, 4};
    struct sample_params params = neutral;
    params.temperature = 0;
    struct sample_row row = {.params = &params,
                             .prompt = prompt,
                             .n_prompt = 3,
                             .output = output,
                             .n_output = 4,
                             .forced = -1};
    /* A bias does not bring a banned id back. */
    params.bias_ids = bias_ids;
    params.bias = bias;
    params.n_bias = 1;
    row.banned = banned;
    row.n_banned = 1;
    logits[2] = 1;
    assert_int_equal(sample_all(logits, 20, &row).id, 2);
    row.n_banned = 0;
    assert_int_equal(sample_all(logits, 20, &row).id, 7);
    /* Repetition after bias: (2 + 4) / 2 = 3 < 3.5; before it would be 2 / 2 + 4 = 5. */
    params.n_bias = 2;
    params.repetition_penalty = 2;
    row.n_banned = 1;
    logits[5] = 2;
    logits[2] = 3.5f;
    assert_int_equal(sample_all(logits, 20, &row).id, 2);
    logits[2] = 2.9f;
    assert_int_equal(sample_all(logits, 20, &row).id, 5);
    /* Repetition before frequency: 6 / 2 - 3 * 0.5 = 1.5; after: (6 - 1.5) / 2 = 2.25. */
    params.frequency_penalty = 0.5f;
    logits[2] = 2.0f;
    assert_int_equal(sample_all(logits, 20, &row).id, 2);
    logits[2] = 1.4f;
    assert_int_equal(sample_all(logits, 20, &row).id, 5);
    /* Presence once, whatever the count: 1.5 - 1 = 0.5. */
    params.presence_penalty = 1;
    logits[2] = 0.6f;
    assert_int_equal(sample_all(logits, 20, &row).id, 2);
    logits[2] = 0.4f;
    assert_int_equal(sample_all(logits, 20, &row).id, 5);
}

static void penalties_look_where_they_should(void **state)
{
    (void)state;
    float logits[20];
    const int32_t prompt[] = {3, 3}, output[] = {5};
    struct sample_params params = neutral;
    params.temperature = 0;
    struct sample_row row = {.params = &params,
                             .prompt = prompt,
                             .n_prompt = 2,
                             .output = output,
                             .n_output = 1,
                             .forced = -1};
    /* Frequency and presence leave the prompt alone; repetition counts it, once. */
    for (int i = 0; i < 20; i++)
        logits[i] = -9;
    logits[3] = 2;
    logits[5] = 3;
    params.presence_penalty = 2;
    assert_int_equal(sample_all(logits, 20, &row).id, 3);
    params.presence_penalty = 0;
    params.repetition_penalty = 1.5f;
    logits[5] = -8;
    logits[8] = 1.3f;
    assert_int_equal(sample_all(logits, 20, &row).id, 3); /* 2 / 1.5 = 1.33 */
    logits[8] = 1.4f;
    assert_int_equal(sample_all(logits, 20, &row).id, 8);
    /* A negative logit is multiplied: -1 becomes -1.5. */
    for (int i = 0; i < 20; i++)
        logits[i] = -9;
    logits[3] = -1;
    logits[8] = -1.4f;
    assert_int_equal(sample_all(logits, 20, &row).id, 8);
    logits[8] = -1.6f;
    assert_int_equal(sample_all(logits, 20, &row).id, 3);
    /* Penalties that overflow leave a choice, and the raw logprob. */
    params.repetition_penalty = 1e-38f;
    params.frequency_penalty = 2;
    params.n_top = 0;
    logits[3] = 50;
    struct sample_token token = sample_all(logits, 20, &row);
    assert_int_equal(token.id, 3);
    assert_true(fabsf(token.logprob) < 1e-6f);
    params.temperature = 1;
    assert_int_equal(sample_all(logits, 20, &row).id, 3);
}

static void temperature_has_a_floor(void **state)
{
    (void)state;
    enum { V = 2, N = 20000 };
    const float logits[V] = {0.0f, 0.02f};
    int counts[V];
    struct sample_params params = neutral;
    params.temperature = 1e-4f; /* raised to 0.01: odds exp(2), not exp(200) */
    tally(logits, V, (struct sample_row){.params = &params}, N, counts);
    fits(counts, (double[]){1, exp(2.0)}, V, N);
    params.temperature = 0.9e-5f; /* greedy */
    tally(logits, V, (struct sample_row){.params = &params}, 200, counts);
    assert_int_equal(counts[1], 200);
}

static void min_p_sees_the_temperature(void **state)
{
    (void)state;
    /* At T = 2 the second token has weight exp(-1) = 0.37 of the first; at T = 1 it has 0.14. */
    const float logits[2] = {0.0f, -2.0f};
    int counts[2];
    struct sample_params params = neutral;
    params.min_p = 0.3f;
    tally(logits, 2, (struct sample_row){.params = &params}, 300, counts);
    assert_int_equal(counts[1], 0);
    params.temperature = 2;
    tally(logits, 2, (struct sample_row){.params = &params}, 3000, counts);
    fits(counts, (double[]){1, exp(-1.0)}, 2, 3000);
}

static void logprobs_are_raw(void **state)
{
    (void)state;
    enum { V = 1003 };
    static float logits[V];
    double sum = 0;
    for (int i = 0; i < V; i++) {
        logits[i] = (float)(i * 389 % V) * 0.01f - 30;
        sum += exp((double)logits[i]);
    }
    logits[7] = logits[8]; /* a tie: the lower id first */
    sum += exp((double)logits[7]) - exp((double)((float)(7 * 389 % V) * 0.01f - 30));
    const int32_t bias_ids[] = {42};
    const float bias[] = {50};
    struct sample_params params = neutral;
    params.temperature = 0;
    params.n_top = 20;
    params.bias_ids = bias_ids;
    params.bias = bias;
    params.n_bias = 1;
    struct sample_row row = {.params = &params, .forced = -1};
    struct sample_token token = sample_all(logits, V, &row);
    assert_int_equal(token.id, 42);
    assert_true(fabs((double)token.logprob - ((double)logits[42] - log(sum))) < 1e-5);
    assert_int_equal(token.n_top, 20);
    for (int i = 0; i < 20; i++) {
        int32_t id = token.top_ids[i];
        assert_true(fabs((double)token.top_logprobs[i] - ((double)logits[id] - log(sum))) < 1e-5);
        int above = 0;
        for (int j = 0; j < V; j++)
            above += logits[j] > logits[id] || (logits[j] == logits[id] && j < id);
        assert_int_equal(above, i);
    }
    row.forced = 9;
    token = sample_all(logits, V, &row);
    assert_int_equal(token.id, 9);
    assert_true(fabs((double)token.logprob - ((double)logits[9] - log(sum))) < 1e-5);
    struct sample_token prompt;
    logprobs_cpu(logits, V, 9, 3, &prompt);
    assert_int_equal(prompt.id, 9);
    assert_memory_equal(&prompt.logprob, &token.logprob, sizeof prompt.logprob);
    assert_int_equal(prompt.n_top, 3);
    assert_memory_equal(prompt.top_ids, token.top_ids, 12);
}

static void bad_rows_give_no_token(void **state)
{
    (void)state;
    enum { V = 70 };
    float logits[V] = {0};
    struct sample_params params = neutral;
    params.n_top = 2;
    static const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2 * V; i++) {
        logits[i / 2] = bad[i % 2];
        struct sample_row row = {.params = &params, .forced = i % 5 == 0 ? 3 : -1};
        struct sample_token token = sample_all(logits, V, &row);
        assert_int_equal(token.id, -1);
        assert_int_equal(token.n_top, 0);
        logits[i / 2] = 0;
    }
    int32_t banned[V];
    for (int i = 0; i < V; i++)
        banned[i] = i;
    struct sample_row row = {.params = &params, .forced = -1, .banned = banned, .n_banned = V};
    assert_int_equal(sample_all(logits, V, &row).id, -1);
    row.n_banned = V - 1; /* all but the last */
    for (int t = 0; t < 3; t++) {
        params.temperature = (float)t;
        params.top_p = 0.1f;
        assert_int_equal(sample_all(logits, V, &row).id, V - 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_vectors),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(draws_differ_by_choice_key_and_position),
        cmocka_unit_test(cuts_keep_the_right_tokens),
        cmocka_unit_test(ties_are_settled_by_id),
        cmocka_unit_test(steps_come_in_order),
        cmocka_unit_test(penalties_look_where_they_should),
        cmocka_unit_test(temperature_has_a_floor),
        cmocka_unit_test(min_p_sees_the_temperature),
        cmocka_unit_test(logprobs_are_raw),
        cmocka_unit_test(bad_rows_give_no_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
