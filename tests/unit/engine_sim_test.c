/* engine_sim: completions are pure functions of the job, through the real slots and rules. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/engine.h"
#include "tests/unit/tokenizer_fake.h"

enum { LEN = 256 };
struct job {
    int32_t prompt[8], ids[LEN];
    float logprobs[LEN];
    struct generated out;
    struct request r;
    struct finished end;
};

static struct engine *open_sim(const struct sim_opts *sim, int32_t slots)
{
    struct engine *e = NULL;
    struct err err = {0};
    struct engine_opts o = {.kind = ENGINE_SIM, .slots = slots, .sim = *sim};
    o.rules.think_open_id = o.rules.think_close_id = -1;
    assert_int_equal(engine_open(&e, &o, &err), E_OK);
    return e;
}

static void job_init(struct job *j, uint64_t tag)
{
    memset(j, 0, sizeof *j);
    for (int i = 0; i < 8; i++)
        j->prompt[i] = (int32_t)(hash_bytes(&tag, sizeof tag, (uint64_t)i) % 1000) + 1;
    j->out = (struct generated){.cap = LEN, .ids = j->ids, .logprobs = j->logprobs};
    j->r = (struct request){.tag = tag, .prompt = j->prompt, .n_prompt = 8, .out = &j->out};
    sampling_init(&j->r.sampling);
    j->r.sampling.max_tokens = LEN;
    j->r.sampling.params.n_top = 0;
    j->r.sampling.params.rng_key = tag * 77;
}

static void run(struct engine *e, struct job *jobs, int n)
{
    struct finished f[64];
    struct err err = {0};
    int sent = 0, done = 0;
    while (done < n) {
        while (sent < n && engine_submit(e, &jobs[sent].r, &err) == ENGINE_ACCEPTED)
            sent++;
        assert_int_equal(err.code, 0);
        int k = engine_step(e, f, 64, &err);
        assert_true(k >= 0);
        for (int i = 0; i < k; i++, done++)
            jobs[f[i].tag].end = f[i];
    }
    assert_true(engine_idle(e));
}

static void completion_is_a_function_of_the_job(void **state)
{
    (void)state;
    enum { N = 300 };
    struct job *a = calloc(N, sizeof *a), *b = calloc(N, sizeof *b);
    struct sim_opts sim = {.poison_id = -1, .tokens_mean = 40};
    struct engine *big = open_sim(&sim, 64), *one = open_sim(&sim, 1);
    int64_t total = 0;
    for (uint64_t i = 0; i < N; i++) {
        job_init(&a[i], i);
        job_init(&b[i], i);
    }
    run(big, a, N);
    run(one, b, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(a[i].end.end.reason, FINISH_STOP);
        assert_int_equal(a[i].out.n, b[i].out.n);
        assert_memory_equal(a[i].ids, b[i].ids, sizeof a[i].ids);
        assert_memory_equal(a[i].logprobs, b[i].logprobs, sizeof a[i].logprobs);
        total += a[i].out.n;
    }
    assert_true(total > N * 30 && total < N * 50);
    /* Another seed, another choice, another prompt: another completion. */
    struct job *j = b;
    for (int what = 0; what < 3; what++) {
        job_init(&j[0], 0);
        j[0].prompt[3] += what == 0;
        j[0].r.sampling.params.rng_key += what == 1;
        j[0].r.sampling.params.choice += what == 2;
        run(one, j, 1);
        assert_memory_not_equal(a[0].ids, j[0].ids, 4 * sizeof(int32_t));
    }
    engine_close(big);
    engine_close(one);
    free(a);
    free(b);
}

static void parked_and_resumed(void **state)
{
    (void)state;
    static struct job a, b;
    struct sim_opts sim = {.poison_id = -1, .tokens_mean = 60};
    struct engine *e = open_sim(&sim, 4);
    struct err err = {0};
    struct finished f;
    job_init(&a, 0);
    job_init(&b, 0);
    a.r.sampling.max_tokens = b.r.sampling.max_tokens = 50;
    a.r.sampling.ignore_eos = b.r.sampling.ignore_eos = true;
    run(e, &a, 1);
    assert_int_equal(a.end.end.reason, FINISH_LENGTH);
    for (int steps = 0, n = 0; n == 0; steps++) {
        assert_int_equal(engine_submit(e, &b.r, &err), ENGINE_ACCEPTED);
        for (int i = 0; i < steps % 9 && n == 0; i++)
            n = engine_step(e, &f, 1, &err);
        if (n == 0) {
            assert_true(engine_park(e, 0));
            assert_true(engine_idle(e));
        }
    }
    assert_int_equal(b.out.n, 50);
    assert_memory_equal(a.ids, b.ids, sizeof a.ids);
    assert_memory_equal(a.logprobs, b.logprobs, sizeof a.logprobs);
    assert_int_equal(engine_submit(e, &a.r, &err), ENGINE_ACCEPTED); /* stands at its end */
    assert_int_equal(engine_step(e, &f, 1, &err), 1);
    assert_int_equal(f.end.reason, FINISH_LENGTH);
    a.out.n = 0;
    assert_int_equal(engine_submit(e, &a.r, &err), ENGINE_ACCEPTED);
    assert_true(engine_cancel(e, 0));
    assert_false(engine_cancel(e, 0));
    assert_int_equal(engine_step(e, &f, 1, &err), 1);
    assert_int_equal(f.end.reason, FINISH_CANCELLED);
    engine_close(e);
}

static void a_share_fails(void **state)
{
    (void)state;
    enum { N = 1000 };
    struct job *a = calloc(N, sizeof *a);
    struct sim_opts sim = {.poison_id = -1, .tokens_mean = 4, .fail_share = 0.2};
    struct engine *e = open_sim(&sim, 64);
    int failed = 0;
    for (uint64_t i = 0; i < N; i++)
        job_init(&a[i], i);
    run(e, a, N);
    for (int i = 0; i < N; i++) {
        failed += a[i].end.end.reason == FINISH_FAILED;
        assert_int_equal(a[i].end.end.reason == FINISH_FAILED, a[i].end.err.code != 0);
    }
    assert_true(failed > N / 10 && failed < N * 3 / 10);
    engine_close(e);
    free(a);
}

static int signal_of(const struct sim_opts *sim)
{
    pid_t pid = fork();
    if (pid == 0) {
        static struct job j;
        (void)!freopen("/dev/null", "w", stderr);
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        job_init(&j, 0);
        alarm(1); /* ends a hang */
        run(open_sim(sim, 1), &j, 1);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void poison_and_crash_kill_the_process(void **state)
{
    (void)state;
    static struct job j;
    job_init(&j, 0);
    struct sim_opts sim = {.poison_id = j.prompt[5], .tokens_mean = 40};
    assert_int_equal(signal_of(&sim), SIGABRT);
    sim.poison = SIM_POISON_SEGFAULT;
    assert_int_equal(signal_of(&sim), SIGSEGV);
    sim.poison = SIM_POISON_HANG;
    assert_int_equal(signal_of(&sim), SIGALRM);
    sim.poison = SIM_POISON_EACH;
    assert_int_equal(signal_of(&sim), SIGABRT);
    sim.poison_id--;
    assert_int_equal(signal_of(&sim), SIGSEGV);
    sim.poison_id++;
    sim.poison = SIM_POISON_ABORT;
    sim.poison_id = -1;
    assert_int_equal(signal_of(&sim), 0);
    sim.crash_after_steps = 2;
    assert_int_equal(signal_of(&sim), SIGKILL);
}

static int64_t slept;
static int64_t fake_now(void *ctx)
{
    (void)ctx;
    return slept;
}
static void fake_sleep(void *ctx, int64_t ns)
{
    (void)ctx;
    slept += ns;
}

static void step_time_is_charged(void **state)
{
    (void)state;
    enum { N = 40 };
    const struct clock clock = {fake_now, fake_now, fake_sleep, NULL};
    static struct job jobs[N];
    struct engine *e = NULL;
    struct err err = {0};
    struct engine_opts o = {.kind = ENGINE_SIM, .slots = 7, .clock = &clock};
    o.rules.think_open_id = o.rules.think_close_id = -1;
    o.sim = (struct sim_opts){.step_ns = 1000003, .poison_id = -1};
    assert_int_equal(engine_open(&e, &o, &err), E_OK);
    slept = 0;
    for (uint64_t i = 0; i < N; i++)
        job_init(&jobs[i], i);
    run(e, jobs, N);
    int64_t sum = 0;
    for (int i = 0; i < N; i++)
        sum += jobs[i].end.device_ns;
    struct engine_stats stats;
    engine_stats(e, &stats);
    assert_int_equal(stats.device_ns, slept);
    assert_int_equal(sum, slept);
    assert_int_equal(slept, stats.steps * 1000003);
    /* Seven slots never fill a bucket of 16 with decode rows. */
    assert_int_equal((stats.rows + stats.padding_rows) % 16, 0);
    assert_true(stats.padding_rows > 0 && stats.padding_rows < 16 * stats.steps);
    engine_close(e);
}

static const char *const think_tokens[] = {"a", "b", "\x80", "<think>", "</think>", "<end>"};

static void readable_ids_and_thinking(void **state)
{
    (void)state;
    const char *tokens[200];
    for (int i = 0; i < 200; i++)
        tokens[i] = i < 6 ? think_tokens[i] : "x";
    const struct tokenizer t = {.tokens = tokens, .n = 200, .first_special = 1000};
    const int32_t eos[] = {5};
    struct engine *e = NULL;
    struct err err = {0};
    static struct job j;
    struct engine_opts o = {.kind = ENGINE_SIM, .slots = 1};
    o.rules = (struct sequence_rules){
        .tokenizer = &t, .eos_ids = eos, .n_eos_ids = 1, .think_open_id = 3, .think_close_id = 4};
    o.sim = (struct sim_opts){.poison_id = -1, .tokens_mean = 50};
    assert_int_equal(engine_open(&e, &o, &err), E_OK);
    for (uint64_t key = 0; key < 50; key++) {
        job_init(&j, 0);
        for (int i = 0; i < 8; i++)
            j.prompt[i] = i < 7 ? 0 : 3;
        j.r.sampling.params.rng_key = key;
        run(e, &j, 1);
        int closes = 0;
        for (int i = 0; i < j.out.n; i++) {
            assert_int_not_equal(j.ids[i], 2);
            closes += j.ids[i] == 4;
        }
        assert_int_equal(j.ids[j.out.n - 1], 5);
        assert_true(closes == 1 || j.out.n == 1);
    }
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(completion_is_a_function_of_the_job),
        cmocka_unit_test(parked_and_resumed),
        cmocka_unit_test(a_share_fails),
        cmocka_unit_test(poison_and_crash_kill_the_process),
        cmocka_unit_test(step_time_is_charged),
        cmocka_unit_test(readable_ids_and_thinking),
    };
    return cmocka_run_group_tests_name("engine_sim", tests, NULL, NULL);
}
