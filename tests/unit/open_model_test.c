/* open_model: options to engine settings, and the rules that a folder gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/lease_holder.h"
#include "tests/unit/models_root.h"
#include "worker/open_model.h"

static const char tiny_model[] = "examples/tiny-model";

static void options_of(struct config *c, struct model_opts *o, int argc, const char *const *args)
{
    char *argv[8] = {(char *)"tranche", (char *)"run"};
    struct err err = {0};
    for (int i = 0; i < argc; i++)
        argv[2 + i] = (char *)args[i];
    assert_int_equal(config_open(c, 2 + argc, argv, NULL, &err), E_OK);
    assert_int_equal(model_opts_from_config(o, c, &err), E_OK);
}

static void options_reach_the_engine(void **state)
{
    (void)state;
    const char *args[] = {"--engine=sim",         "--slots=7",    "--kv-bytes=1MiB",
                          "--prefix-sharing=off", "--isa=scalar", "--sim-step=2ms"};
    struct config c;
    struct model_opts o;
    options_of(&c, &o, (int)TR_COUNT(args), args);
    assert_null(o.dir);
    assert_int_equal(o.engine.kind, ENGINE_SIM);
    assert_int_equal(o.engine.slots, 7);
    assert_int_equal(o.engine.kv_bytes, 1 << 20);
    assert_true(o.engine.no_prefix_sharing);
    assert_int_equal(o.engine.isa, CPU_ISA_SCALAR);
    assert_int_equal(o.engine.sim.step_ns, 2000000);
    assert_int_equal(o.engine.sim.poison_id, -1);
    config_close(&c);
    options_of(&c, &o, 1, args);
    assert_int_equal(o.engine.isa, -1);
    assert_false(o.engine.no_prefix_sharing);
    config_close(&c);
}

static void a_real_engine_needs_a_folder(void **state)
{
    (void)state;
    char *argv[] = {(char *)"tranche", (char *)"run"};
    struct config c;
    struct model_opts o;
    struct err err = {0};
    assert_int_equal(config_open(&c, 2, argv, NULL, &err), E_OK);
    assert_int_equal(model_opts_from_config(&o, &c, &err), E_USAGE);
    assert_non_null(strstr(err.msg, "--model"));
    config_close(&c);
}

static void simulation_needs_nothing(void **state)
{
    (void)state;
    struct model_opts o = {.engine = {.kind = ENGINE_SIM}};
    struct loaded_model m;
    struct err err = {0};
    assert_int_equal(loaded_model_open(&m, &o, &err), E_OK);
    assert_null(m.model);
    assert_null(m.tokenizer);
    assert_null(m.chat_template);
    assert_string_equal(m.name, "sim");
    assert_int_equal(m.rules.n_eos_ids, 0);
    assert_int_equal(m.rules.think_close_id, -1);
    assert_int_equal(m.rules.n_think_close, 0);
    loaded_model_close(&m);
    loaded_model_close(&m);
    loaded_model_close(NULL);
}

static void check_rules(const struct loaded_model *m)
{
    const struct sequence_rules *r = &m->rules;
    char text[64];
    assert_ptr_equal(r->tokenizer, m->tokenizer);
    assert_true(r->n_eos_ids >= 1);
    assert_int_equal(r->eos_ids[0], tokenizer_eos_id(m->tokenizer));
    for (int32_t i = 0; i < r->n_eos_ids; i++)
        for (int32_t j = 0; j < i; j++)
            assert_int_not_equal(r->eos_ids[i], r->eos_ids[j]);
    assert_int_equal(r->think_close_id, tokenizer_token_id(m->tokenizer, STR("</think>")));
    assert_true(r->think_open_id >= 0 && r->think_close_id >= 0);
    size_t n = tokenizer_decode(m->tokenizer, r->think_close, (size_t)r->n_think_close, false, text,
                                sizeof text);
    assert_int_equal(n, strlen("\n</think>\n\n"));
    assert_memory_equal(text, "\n</think>\n\n", n);
    assert_ptr_equal(m->engine.rules.eos_ids, m->eos_ids);
    assert_ptr_equal(m->engine.model, m->model);
    assert_string_equal(m->name, "tiny-model");
    assert_non_null(m->chat_template);
}

static void folder_gives_the_rules(void **state)
{
    (void)state;
    const enum engine_kind kinds[] = {ENGINE_CPU, ENGINE_SIM};
    for (size_t i = 0; i < TR_COUNT(kinds); i++) {
        struct model_opts o = {.dir = tiny_model, .engine = {.kind = kinds[i]}};
        struct loaded_model m;
        struct err err = {0};
        int rc = loaded_model_open(&m, &o, &err);
        if (rc != E_OK)
            fail_msg("%s", err.msg);
        assert_true((m.model != NULL) == (kinds[i] == ENGINE_CPU));
        check_rules(&m);
        loaded_model_close(&m);
    }
}

static void nothing_stays_open_on_error(void **state)
{
    (void)state;
    struct model_opts o = {.dir = "/nonexistent/folder", .engine = {.kind = ENGINE_CPU}};
    struct loaded_model m;
    struct err err = {0};
    assert_int_equal(loaded_model_open(&m, &o, &err), E_FATAL);
    assert_non_null(strstr(err.msg, "/nonexistent/folder"));
    assert_null(m.model);
    o = (struct model_opts){.dir = tiny_model,
                            .chat_template = "/nonexistent/template",
                            .engine = {.kind = ENGINE_CPU}};
    err = (struct err){0};
    assert_true(loaded_model_open(&m, &o, &err) < 0);
    assert_non_null(strstr(err.msg, "/nonexistent/template"));
    assert_null(m.tokenizer);
}

static const char *const tiny_files[] = {"chat_template.jinja",    "config.json",
                                         "generation_config.json", "model.safetensors",
                                         "tokenizer.json",         "tokenizer_config.json"};

/* The tiny model by links, but `fifo` is a FIFO that nobody writes to. */
static void folder_with_fifo(const char *dir, const char *fifo)
{
    char here[PATH_MAX], to[3 * PATH_MAX], from[3 * PATH_MAX];
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(mkdir(dir, 0700), 0);
    for (size_t i = 0; i < TR_COUNT(tiny_files); i++) {
        snprintf(from, sizeof from, "%s/%s", dir, tiny_files[i]);
        snprintf(to, sizeof to, "%s/%s/%s", here, tiny_model, tiny_files[i]);
        if (strcmp(tiny_files[i], fifo) == 0)
            assert_int_equal(mkfifo(from, 0600), 0);
        else
            assert_int_equal(symlink(to, from), 0);
    }
}

static void a_fifo_is_refused_not_waited_for(void **state)
{
    (void)state;
    char dir[PATH_MAX], want[64];
    for (size_t i = 0; i < TR_COUNT(tiny_files); i++) {
        snprintf(dir, sizeof dir, "%s/%s.d", root, tiny_files[i]);
        folder_with_fifo(dir, tiny_files[i]);
        struct model_opts o = {.dir = dir, .engine = {.kind = ENGINE_CPU}};
        struct loaded_model m;
        struct err err = {0};
        alarm(20); /* ends the test where it waits */
        int rc = loaded_model_open(&m, &o, &err);
        alarm(0);
        snprintf(want, sizeof want, "/%s: want a regular file", tiny_files[i]);
        if (rc != E_FATAL || !strstr(err.msg, want))
            fail_msg("%s: code %d, \"%s\"", tiny_files[i], rc, err.msg);
    }
}

/* A file server's client may hold one on any file. */
static void a_lease_on_a_file_is_waited_for(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[2 * PATH_MAX], command[3 * PATH_MAX];
    snprintf(dir, sizeof dir, "%s/leased", root);
    snprintf(command, sizeof command, "cp -RL %s %s", tiny_model, dir);
    assert_int_equal(system(command), 0);
    for (size_t i = 0; i < TR_COUNT(tiny_files); i++) {
        struct model_opts o = {.dir = dir, .engine = {.kind = ENGINE_CPU}};
        struct loaded_model m;
        struct err err = {0};
        snprintf(path, sizeof path, "%s/%s", dir, tiny_files[i]);
        pid_t holder = lease_take(path);
        if (loaded_model_open(&m, &o, &err) != E_OK)
            fail_msg("%s: %s", tiny_files[i], err.msg);
        loaded_model_close(&m);
        assert_true(lease_given_up(holder));
    }
}

/* --chat-template <(...) */
static void a_named_template_may_be_a_pipe(void **state)
{
    (void)state;
    int ends[2];
    char path[64];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "piped", 5), 5);
    close(ends[1]);
    snprintf(path, sizeof path, "/dev/fd/%d", ends[0]);
    struct model_opts o = {
        .dir = tiny_model, .chat_template = path, .engine = {.kind = ENGINE_SIM}};
    struct loaded_model m;
    struct err err = {0};
    if (loaded_model_open(&m, &o, &err) != E_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(chat_template_bytes(m.chat_template), 5);
    loaded_model_close(&m);
    close(ends[0]);
}

static void hub_cache_is_named_after_the_repository(void **state)
{
    (void)state;
    struct model_opts o = {.dir = "/x/models--org--name-1.5B/snapshots/0123",
                           .engine = {.kind = ENGINE_SIM}};
    struct loaded_model m;
    struct err err = {0};
    assert_int_equal(loaded_model_open(&m, &o, &err), E_OK);
    assert_string_equal(m.name, "org/name-1.5B");
    loaded_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_reach_the_engine),
        cmocka_unit_test(a_real_engine_needs_a_folder),
        cmocka_unit_test(simulation_needs_nothing),
        cmocka_unit_test(folder_gives_the_rules),
        cmocka_unit_test(nothing_stays_open_on_error),
        cmocka_unit_test(a_fifo_is_refused_not_waited_for),
        cmocka_unit_test(a_lease_on_a_file_is_waited_for),
        cmocka_unit_test(a_named_template_may_be_a_pipe),
        cmocka_unit_test(hub_cache_is_named_after_the_repository),
    };
    return cmocka_run_group_tests(tests, models_root_make, models_root_remove);
}
