/* job_config: the directory of defaults, template and system prompts; revisions and their names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/lease_holder.h"
#include "worker/job/config_folder.h"
#include "worker/job/prepare.h"

static char folder[64];
static struct loaded_model model; /* no folder: a byte is a token */
static struct prepare_context context;
static struct job_config_base base;
static struct prepare_scratch scratch;

static int set_up(void **state)
{
    (void)state;
    struct err err = {0};
    strcpy(folder, "/tmp/tranche-config-XXXXXX");
    assert_non_null(mkdtemp(folder));
    model.rules = (struct sequence_rules){.think_open_id = -1, .think_close_id = -1};
    context = (struct prepare_context){
        .model = &model,
        .params = {.default_max_tokens = 2048, .vocab_size = 256, .max_model_len = 400},
        .defaults = {STR("main"), STR("b")}};
    base = (struct job_config_base){.prepare = &context, .dir = folder};
    job_config_base_hash(&base, true);
    return prepare_scratch_open(&scratch, &model, &err);
}

static int tear_down(void **state)
{
    (void)state;
    char command[100];
    prepare_scratch_close(&scratch);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void put(const char *name, const char *text)
{
    char path[300];
    snprintf(path, sizeof path, "%.60s/%.100s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct job_config *load(void)
{
    struct job_config *c = NULL;
    struct err err = {0};
    if (job_config_load(&c, &base, &err) != E_OK)
        fail_msg("%s", err.msg);
    return c;
}

static void expect_refused(const char *part, const char *other)
{
    struct job_config *c = NULL;
    struct err err = {0};
    int rc = job_config_load(&c, &base, &err);
    if (rc != E_USAGE || !strstr(err.msg, part) || !strstr(err.msg, other))
        fail_msg("want \"%s\" and \"%s\", got %d: %s", part, other, rc, err.msg);
}

static struct job *prepare(struct job_config *c, const char *line)
{
    struct job *job = job_open(strlen(line));
    memcpy((char *)(uintptr_t)job->message.ptr, line, strlen(line));
    job->config = job_config_hold(c);
    prepare_job(job, &context, &scratch);
    return job;
}

static bool prompt_is(const struct job *job, const char *text)
{
    bool same =
        job->err.code == 0 && job->n_prompts == 1 && job->prompts[0].n == (int32_t)strlen(text);
    for (size_t i = 0; same && text[i]; i++)
        same = job->prompts[0].ids[i] == (unsigned char)text[i];
    return same;
}

static void a_revision_names_its_content(void **state)
{
    (void)state;
    struct job_config *empty = load(), *again = load();
    assert_string_equal(empty->revision, again->revision);
    put("defaults.json", "{\"temperature\": 0.5, \"max_tokens\": 9}");
    struct job_config *one = load();
    put("defaults.json", "{ \"max_tokens\":9,\"temperature\":0.5 }"); /* another spelling */
    struct job_config *same = load();
    put("system.txt", "Be brief.\n");
    struct job_config *two = load();
    assert_string_not_equal(empty->revision, one->revision);
    assert_string_equal(one->revision, same->revision);
    assert_string_not_equal(one->revision, two->revision);
    struct job_config *all[] = {empty, again, one, same, two};
    for (size_t i = 0; i < TR_COUNT(all); i++) {
        struct job_config *opened = NULL;
        struct err err = {0};
        assert_int_equal(
            job_config_open(&opened, &base, all[i]->revision, text_view(&all[i]->content), &err),
            E_OK);
        assert_string_equal(opened->revision, all[i]->revision);
        job_config_release(opened);
        job_config_release(all[i]);
    }
}

static void contents_of_others_are_not_taken(void **state)
{
    (void)state;
    struct job_config *one = load(), *opened = NULL;
    struct job_config_base other = base;
    struct err err = {0};
    assert_int_equal(
        job_config_open(&opened, &base, "0123456789abcdef", text_view(&one->content), &err),
        E_FATAL);
    assert_string_equal(err.type, "damaged");
    job_config_base_hash(&other, false); /* --generation-config=false */
    err = (struct err){0};
    assert_int_equal(
        job_config_open(&opened, &other, one->revision, text_view(&one->content), &err), E_FATAL);
    assert_string_equal(err.type, "base");
    job_config_release(one);
}

static void defaults_stand_in_and_requests_win(void **state)
{
    (void)state;
    put("defaults.json", "{\"max_tokens\":9,\"temperature\":0.25,\"stop\":[\"END\"],\"top_k\":4}");
    struct job_config *c = load();
    struct job *chat = prepare(c, "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":"
                                  "\"x\"}],\"top_k\":7}");
    const struct sampling *s = &chat->params.sampling;
    assert_int_equal(s->max_tokens, 9);
    assert_true(s->params.temperature == 0.25f && s->params.top_k == 7);
    assert_int_equal(s->n_stop_strings, 1);
    struct job *text = prepare(c, "{\"id\":\"b\",\"prompt\":\"x\"}");
    assert_int_equal(text->params.sampling.max_tokens, 16); /* OpenAI's, as without a default */
    assert_int_equal(text->params.sampling.params.top_k, 4);
    /* The bytes that are hashed are the request's own. */
    assert_null(strstr(chat->request.ptr, "temperature"));
    job_close(chat);
    job_close(text);
    job_config_release(c);
}

/* A default limit is cut to the context, where one that was asked for is refused. */
static void a_default_limit_gives_way(void **state)
{
    (void)state;
    put("defaults.json", "{\"max_tokens\": 5000}");
    struct job_config *c = load();
    struct job *job =
        prepare(c, "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_int_equal(job->err.code, 0);
    assert_int_equal(job->params.sampling.max_tokens, 400 - (int)strlen("user: x\n"));
    job_close(job);
    job_config_release(c);
}

static void system_prompts_go_to_chats_without_one(void **state)
{
    (void)state;
    put("system.txt", "All.\n");
    put("system.sums.txt", "Sums.");
    put(".system.txt.swp", "an editor's");
    struct job_config *c = load();
    static const struct {
        const char *line, *prompt;
    } cases[] = {
        {"{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
         "system: All.\nuser: x\n"},
        {"{\"id\":\"a\",\"batch_id\":\"sums\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"
         "}",
         "system: Sums.\nuser: x\n"},
        {"{\"id\":\"a\",\"messages\":[{\"role\":\"developer\",\"content\":\"own\"},{\"role\":"
         "\"user\",\"content\":\"x\"}]}",
         "system: own\nuser: x\n"},
        {"{\"id\":\"a\",\"prompt\":\"x\"}", "x"},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct job *job = prepare(c, cases[i].line);
        if (!prompt_is(job, cases[i].prompt))
            fail_msg("case %zu: %s", i, job->err.msg);
        job_close(job);
    }
    job_config_release(c);
}

/* The same message under another revision: its key and hash untouched, everything else anew. */
static void a_job_is_prepared_again(void **state)
{
    (void)state;
    put("system.txt", "One.");
    struct job_config *one = load();
    put("system.txt", "Two.");
    put("defaults.json", "{\"max_tokens\": 3}");
    struct job_config *two = load();
    struct job *job = prepare(two, "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":"
                                   "\"/v1/chat/completions\",\"body\":{\"messages\":[{\"role\":"
                                   "\"user\",\"content\":\"x\"}]}}");
    const char *request = job->request.ptr, *id = job->custom_id.ptr;
    int64_t seed = job->params.seed;
    assert_true(prompt_is(job, "system: Two.\nuser: x\n"));
    assert_int_equal(job->params.sampling.max_tokens, 3);
    job_config_release(job->config);
    job->config = job_config_hold(one);
    prepare_again(job, &context, &scratch);
    assert_true(prompt_is(job, "system: One.\nuser: x\n"));
    assert_true(job->request.ptr == request && job->custom_id.ptr == id);
    assert_true(job->params.sampling.max_tokens > 3 && job->params.seed == seed);
    job_close(job);
    job_config_release(one);
    job_config_release(two);
}

static void what_is_broken_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text, *part, *other;
    } cases[] = {
        {"defaults.json", "{\"temperature\": }", "defaults.json", "line 1"},
        {"defaults.json", "[]", "want an object", "array"},
        {"defaults.json", "{\"temprature\": 1}", "temprature", "do you mean temperature?"},
        {"defaults.json", "{\"seed\": 1}", "seed", "not a field that has a default"},
        {"defaults.json", "{\"top_p\": null}", "top_p", "null"},
        {"defaults.json", "{\"top_p\": 2}", "top_p: want 0 to 1", "got 2"},
        {"defaults.json", "{\"max_thinking_tokens\": 2}", "max_thinking_tokens", "no <think>"},
        {"defaults.yaml", "x", "defaults.yaml", "want defaults.json"},
        {"system.txt", "", "system.txt", "want some text"},
        {"system.txt", "\xff", "system.txt", "UTF-8"},
        {"system..txt", "x", "system..txt", "want defaults.json"},
    };
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        char path[300];
        put(cases[i].name, cases[i].text);
        expect_refused(cases[i].part, cases[i].other);
        snprintf(path, sizeof path, "%.60s/%.100s", folder, cases[i].name);
        unlink(path);
    }
    char *large = mem_alloc(500, 1);
    memset(large, 'a', 450);
    put("system.long.txt", large); /* a byte is a token, the context has 400 */
    expect_refused("a chat of batch long fails under it", "467");
    mem_free(large);
}

/* Nor is the reading thread held: the holder is asked, and the folder read again later. */
static void a_lease_is_no_refusal(void **state)
{
    (void)state;
    char path[300];
    json_t *doc = NULL;
    struct err err = {0};
    put("system.txt", "one");
    snprintf(path, sizeof path, "%.60s/system.txt", folder);
    pid_t holder = lease_take(path);
    if (config_folder_read(&doc, folder, &err) != E_RETRY)
        fail_msg("code %d, \"%s\"", err.code, err.msg);
    assert_true(lease_given_up(holder));
    job_config_release(load());
}

/* As the kubelet does it: what the link named when the reading began is what is read. */
static void a_link_is_followed_once(void **state)
{
    (void)state;
    char path[300], to[300];
    struct text before = {0}, after = {0};
    bool linked = true;
    config_folder_mark(&before, folder, &linked);
    assert_false(linked);
    for (int i = 1; i <= 2; i++) {
        char name[20];
        snprintf(name, sizeof name, "..%d", i);
        snprintf(path, sizeof path, "%.60s/%.100s", folder, name);
        assert_int_equal(mkdir(path, 0755), 0);
        snprintf(path, sizeof path, "..%d/system.txt", i);
        put(path, i == 1 ? "one" : "two");
        snprintf(path, sizeof path, "%.60s/..tmp", folder);
        snprintf(to, sizeof to, "%.60s/..data", folder);
        assert_int_equal(symlink(name, path), 0);
        assert_int_equal(rename(path, to), 0);
        struct job_config *c = load();
        struct str text = job_config_system(c, STR("b"));
        assert_true(str_eq(text, i == 1 ? STR("one") : STR("two")));
        text_reset(&after);
        config_folder_mark(&after, folder, &linked);
        assert_true(linked && str_eq(text_view(&after), str_of(name)));
        job_config_release(c);
    }
    text_close(&before);
    text_close(&after);
}

int main(void)
{
#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(a_revision_names_its_content),
        WITH_FOLDER(contents_of_others_are_not_taken),
        WITH_FOLDER(defaults_stand_in_and_requests_win),
        WITH_FOLDER(a_default_limit_gives_way),
        WITH_FOLDER(system_prompts_go_to_chats_without_one),
        WITH_FOLDER(a_job_is_prepared_again),
        WITH_FOLDER(what_is_broken_is_refused),
        WITH_FOLDER(a_lease_is_no_refusal),
        WITH_FOLDER(a_link_is_followed_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
