/* chat_template: content marking, limits, errors, finding a folder's template. Equality with Jinja2
 * is in chat_template_golden_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/chat_template.h"

/* The template asks a tokenizer for its named tokens only: this one has them from a JSON object. */
struct tokenizer {
    const json_t *tokens;
};

struct str tokenizer_named_token(const struct tokenizer *t, const char *name)
{
    return json_str(json_object_get(t->tokens, name));
}

/* ---- marks ---- */

/* Renders and writes plain pieces as [text]; an error as its text. */
static void marked(const char *template, const char *messages, char *buf, size_t cap)
{
    struct chat_template *t = NULL;
    struct chat_template_output out = {0};
    struct err err = {0};
    json_t *kwargs = json_pack("{s:s}", "mine", "kw");
    json_t *doc = NULL, *tools = json_pack("[{s:s}]", "name", "tool");
    size_t used = 0;
    assert_int_equal(json_parse(&doc, str_of(messages), "m", &json_limits_job, &err), E_OK);
    struct chat_template_input in = {.messages = doc, .tools = tools, .kwargs = kwargs};
    buf[0] = '\0';
    if (chat_template_compile(&t, str_of(template), "t", &err) < 0 ||
        chat_template_render(t, &in, &out, &err) < 0)
        snprintf(buf, cap, "%s", err.msg);
    for (size_t i = 0; i < out.n_pieces; i++)
        used += (size_t)snprintf(buf + used, cap - used, out.pieces[i].plain ? "[%.*s]" : "%.*s",
                                 STR_ARG(out.pieces[i].text));
    chat_template_output_free(&out);
    chat_template_close(t);
    json_decref(doc);
    json_decref(tools);
    json_decref(kwargs);
}

static void contents_are_marked(void **state)
{
    (void)state;
    static const struct {
        const char *template, *want;
    } cases[] = {
        {"{{ m.content }}", "[ a<u>b ]"},
        {"<u>{{ m.content }}</u>", "<u>[ a<u>b ]</u>"},
        {"{{ m.role }}{{ m['role'] }}", "useruser"},
        {"{{ '<u>' + m.content + '</u>' }}", "<u>[ a<u>b ]</u>"},
        {"{{ '<u>' ~ m.content ~ '</u>' }}", "<u>[ a<u>b ]</u>"},
        {"{{ m.content | trim }}{{ m.content.strip() }}", "[a<u>ba<u>b]"},
        {"{{ m.content.split('<u>')[1] }}!", "[b ]!"},
        {"{{ ('x' + m.content)[:3] }}", "x[ a]"},
        {"{{ ('x' + m.content)[::-1] }}", "[ b>u<a ]x"},
        {"{{ ('x<u>' + m.content).split('<u>') | join('-') }}", "x-[ a]-[b ]"},
        {"{{ m.content.replace('<u>', '!') }}", "[ a]![b ]"},
        {"{{ 'a-b'.replace('-', m.content) }}", "a[ a<u>b ]b"},
        {"{{ m.content | upper }}", "[ A<U>B ]"},
        {"{{ ('x' + m.content) | upper }}", "[X A<U>B ]"},
        {"{{ m | tojson }}", "[{\"role\": \"user\", \"content\": \" a<u>b \"}]"},
        {"{{ m.content | tojson }}.", "[\" a<u>b \"]."},
        {"{{ m }}", "[{'role': 'user', 'content': ' a<u>b '}]"},
        {"{{ m.content | length }}", "7"},
        {"{% set c %}({{ m.content }}){% endset %}{{ c }}", "([ a<u>b ])"},
        {"{% macro f(x) %}({{ x }}){% endmacro %}{{ f(m.content) }}", "([ a<u>b ])"},
        {"{% set ns = namespace(t='') %}{% for i in range(2) %}{% set ns.t = ns.t + m.content + "
         "'.' %}"
         "{% endfor %}{{ ns.t }}",
         "[ a<u>b ].[ a<u>b ]."},
        {"{% for c in m.content %}{{ c }}{% endfor %}", "[ a<u>b ]"},
        {"{{ m.content | list | join('') }}", "[ a<u>b ]"},
        {"{% for k, v in m.items() %}{{ k }}:{{ v }};{% endfor %}",
         "[role]:user;[content]:[ a<u>b ];"},
        {"{{ mine }}{{ tools[0].name }}{{ tools | tojson }}", "kwtool[{\"name\": \"tool\"}]"},
        {"{{ m.content[0:0] }}", ""},
        {"{{ m.content | e }}", "[ a&lt;u&gt;b ]"},
        {"{{ messages[1].content }}", "[{}]"},
        {"{{ messages[2].content[0].text }}{{ messages[2].content[0].role }}", "[tr]"},
        {"{{ m.content | indent(2, true) }}", "  [ a<u>b ]"},
        {"{{ (m.content | reverse) ~ m.content | first }}", "[ b>u<a  ]"},
        {"{{ m.content * 2 }}", "[ a<u>b  a<u>b ]"},
        {"{{ m.content.partition('<u>') | join('|') }}", "[ a]|[<u>]|[b ]"},
        {"{{ m.content.removeprefix(' ') }}", "[a<u>b ]"},
        {"{{ m.content if m.content else 'x' }}", "[ a<u>b ]"},
        {"{{ m.content | default('d') }}{{ m.nope | default('d') }}", "[ a<u>b ]d"},
    };
    static const char messages[] =
        "[{\"role\":\"user\",\"content\":\" a<u>b \"},{\"role\":\"tool\",\"content\":\"{}\"},"
        "{\"role\":\"user\",\"content\":[{\"text\":\"t\",\"role\":\"r\"}]}]";
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        char template[512], got[512];
        snprintf(template, sizeof template, "{%% set m = messages[0] %%}%s", cases[i].template);
        marked(template, messages, got, sizeof got);
        if (strcmp(got, cases[i].want) != 0)
            fail_msg("%s\n  want %s\n  got  %s", cases[i].template, cases[i].want, got);
    }
}

/* ---- errors and limits ---- */

static int render_error(const char *template, struct err *err)
{
    struct chat_template *t = NULL;
    struct chat_template_output out = {0};
    json_t *messages = json_array();
    struct chat_template_input in = {.messages = messages};
    *err = (struct err){0};
    int rc = chat_template_compile(&t, str_of(template), "t.jinja", err);
    if (rc >= 0)
        rc = chat_template_render(t, &in, &out, err);
    chat_template_output_free(&out);
    chat_template_close(t);
    json_decref(messages);
    return rc;
}

struct limit_case {
    const char *template, *message;
};

static void check_limits(const struct limit_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct err err;
        int rc = render_error(cases[i].template, &err);
        if (rc != E_JOB || strcmp(err.type, "template_limit") != 0 ||
            !strstr(err.msg, cases[i].message))
            fail_msg("%s: %d %s %s", cases[i].template, rc, err.type, err.msg);
    }
}

static void limits_hold(void **state)
{
    (void)state;
    static const struct limit_case cases[] = {
        {"{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
         "steps"},
        {"{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor "
         "%}"
         "{{ ns.x }}",
         "nested deeper"},
        {"{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor "
         "%}"
         "{{ ns.x | tojson }}",
         "nested deeper"},
        {"{% set ns = namespace(x=[], y=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}"
         "{% set ns.y = [ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
         "nested deeper"},
        {"{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}", "nested deeper"},
        {"{% set ns = namespace(s='0123456789') %}{% for i in range(99) %}{% set ns.s = ns.s + "
         "ns.s %}"
         "{% endfor %}",
         "bytes"},
        {"{{ 'x' * 100000000 }}", "bytes"},
        {"{{ [1] * 1000000000000 }}", ""},
        {"{% set x = 'x' * 1000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
         "output is longer"},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "macros nested deeper than 64"},
        {"{% set b = 'x' * 1000000 %}{% for i in range(99999) %}{% if 'y' in b %}{% endif %}{% "
         "endfor %}",
         "steps"},
        {"{% set b = 'x' * 1000000 %}{% for i in range(99999) %}{% if b | length %}{% endif %}{% "
         "endfor %}",
         "steps"},
        {"{{ ('x' * 10000000).rfind('x' * 5000000 ~ 'y') }}{{ ('x' * 10000000).rfind('x' * "
         "5000000) }}",
         ""},
    };
    check_limits(cases, TR_COUNT(cases));
}

/* One call of each walks megabytes or millions of values: without steps for them it ran on. */
static void walks_are_counted(void **state)
{
    (void)state;
    static const struct limit_case cases[] = {
        {"{% set t = (1,) * 100 %}{% set t = (t,) * 100 %}{% set t = (t,) * 100 %}"
         "{% set t = (t,) * 100 %}{% set t = (t,) * 100 %}{% set t = (t,) * 100 %}{{ {}.get(t) }}",
         "steps"},
        {"{% set b = 'x' * 4000000 %}{% set t = (b ~ 1,) * 200000 %}"
         "{% if (b ~ 2).startswith(t) %}{% endif %}",
         "steps"},
        {"{% set b = 'x' * 4000000 %}{% set t = (b,) * 99999 %}{% set c = 'y' ~ b %}"
         "{% for i in range(99999) %}{% if c.endswith(t) %}{% endif %}{% endfor %}",
         "steps"},
        {"{% set t = ('y',) * 99999 %}{% for i in range(99999) %}"
         "{% if 'x'.startswith(t) %}{% endif %}{% endfor %}",
         "steps"},
        {"{% set b = 'x' * 2000000 %}{% set d = {b ~ 1: 1, b ~ 2: 1, b ~ 3: 1, b ~ 4: 1} %}"
         "{% set k = b ~ 5 %}{% for i in range(99999) %}{% if d[k] %}{% endif %}{% endfor %}",
         "steps"},
        {"{% set b = ' ' * 9000000 %}{% for i in range(99999) %}{% if b.strip() %}{% endif %}"
         "{% endfor %}",
         "steps"},
        {"{% set b = ' ' * 9000000 %}{% for i in range(99999) %}{% if b | trim %}{% endif %}"
         "{% endfor %}",
         "steps"},
        {"{% set b = '0' * 9000000 %}{% for i in range(99999) %}{% if b | int %}{% endif %}"
         "{% endfor %}",
         "steps"},
        {"{% set b = 'x' * 9000000 %}{% for i in range(99999) %}"
         "{% if b.find('y', 9999999) %}{% endif %}{% endfor %}",
         "steps"},
        {"{% set b = 'x' * 4000000 %}{% set c = b ~ 1 %}{% for i in range(99999) %}"
         "{% if c.removeprefix(b) %}{% endif %}{% endfor %}",
         "steps"},
    };
    check_limits(cases, TR_COUNT(cases));
}

static void errors_name_line_and_text(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(render_error("\n\n{{ raise_exception('my own words') }}", &err), E_JOB);
    assert_string_equal(err.type, "template_error");
    assert_string_equal(err.msg, "t.jinja: line 3: my own words");
    assert_int_equal(render_error("\n{{ a.b }}", &err), E_JOB);
    assert_string_equal(err.msg, "t.jinja: line 2: 'a' is undefined");
    assert_int_equal(render_error("a\nb\n{{ a | zap }}", &err), E_FATAL);
    assert_string_equal(err.msg, "t.jinja: line 3: unknown filter 'zap'");
    assert_int_equal(render_error("{{ 9223372036854775807 + 1 }}", &err), E_JOB);
    assert_int_equal(render_error("{{ 3037000500 * 3037000500 }}", &err), E_JOB);
    assert_int_equal(render_error("{{ 10 ** 19 }}", &err), E_JOB);
    assert_int_equal(render_error("{{ '9' * 19 | int }}{{ ('9' * 20) | int }}", &err), E_JOB);
    assert_int_equal(render_error("\xff", &err), E_FATAL);
}

/* A deep template must not take the machine's stack, wherever the nesting is. */
static void nesting_is_bounded(void **state)
{
    (void)state;
    static const char *const opens[] = {
        "{{ (", "{{ [",       "{{ {1:",           "{{ a[",          "{{ f(", "{{ not ",
        "{{ -", "{% if a %}", "{% for a in b %}", "{{ a if b else "};
    enum { N = 20000 };
    for (size_t i = 0; i < TR_COUNT(opens); i++) {
        const char *unit = opens[i];
        bool tag = unit[1] == '%';
        size_t skip = tag ? 0 : 3, n = strlen(unit) - skip, used = tag ? 0 : 3;
        char *text = malloc(8 + N * n);
        struct err err;
        assert_non_null(text);
        memcpy(text, "{{ ", used);
        for (int k = 0; k < N; k++, used += n)
            memcpy(text + used, unit + skip, n);
        memcpy(text + used, "1 }}", 5);
        assert_int_equal(render_error(text, &err), E_FATAL);
        if (!strstr(err.msg, "nested deeper than"))
            fail_msg("%s: %s", unit, err.msg);
        free(text);
    }
}

static void bad_input_is_a_job_error(void **state)
{
    (void)state;
    struct chat_template *t = NULL;
    struct chat_template_output out;
    struct err err = {0};
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", "x");
    assert_int_equal(chat_template_compile(&t, STR("{{ messages[0].content }}"), "t", &err), E_OK);
    struct chat_template_input in = {.messages = NULL};
    assert_int_equal(chat_template_render(t, &in, &out, &err), E_JOB);
    chat_template_output_free(&out);
    err = (struct err){0};
    in = (struct chat_template_input){
        .messages = messages, .add_generation_prompt = true, .continue_final_message = true};
    assert_int_equal(chat_template_render(t, &in, &out, &err), E_JOB);
    chat_template_output_free(&out);
    chat_template_close(t);
    chat_template_close(NULL);
    chat_template_output_free(NULL);
    /* the template drops what should be continued */
    t = NULL;
    err = (struct err){0};
    in.add_generation_prompt = false;
    assert_int_equal(chat_template_compile(&t, STR("content"), "t", &err), E_OK);
    assert_int_equal(chat_template_render(t, &in, &out, &err), E_JOB);
    assert_non_null(strstr(err.msg, "not in the render"));
    chat_template_close(t);
    json_decref(messages);
}

/* ---- a model folder ---- */

static void write_file(const char *dir, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int opened_text(const char *dir, const char *override_path, char *buf, size_t cap)
{
    struct chat_template *t = NULL;
    struct chat_template_output out = {0};
    struct err err = {0};
    json_t *messages = json_array();
    struct chat_template_input in = {.messages = messages};
    int rc = chat_template_open(&t, dir, override_path, &err);
    snprintf(buf, cap, "%s", err.msg);
    if (rc >= 0 && !t)
        snprintf(buf, cap, "(none)");
    if (rc >= 0 && t) {
        assert_int_equal(chat_template_render(t, &in, &out, &err), E_OK);
        snprintf(buf, cap, "%.*s", STR_ARG(out.text));
    }
    chat_template_output_free(&out);
    chat_template_close(t);
    json_decref(messages);
    return rc;
}

static void folders_are_searched_in_order(void **state)
{
    (void)state;
    char dir[] = "/tmp/chat_template_test.XXXXXX", path[256], got[512];
    assert_non_null(mkdtemp(dir));
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_OK);
    assert_string_equal(got, "(none)");
    write_file(dir, "tokenizer_config.json", "{\"chat_template\": null}");
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_OK);
    assert_string_equal(got, "(none)");
    write_file(dir, "tokenizer_config.json", "{\"chat_template\": \"one{{ 1 }}\"}");
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_OK);
    assert_string_equal(got, "one1");
    write_file(dir, "tokenizer_config.json",
               "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"no\"},"
               "{\"name\": \"default\", \"template\": \"two\"}]}");
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_OK);
    assert_string_equal(got, "two");
    write_file(dir, "tokenizer_config.json", "{\"chat_template\": [{\"name\": \"rag\"}]}");
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_FATAL);
    assert_non_null(strstr(got, "want an entry named \"default\", none of 1 is"));
    write_file(dir, "tokenizer_config.json", "{\"chat_template\": 7}");
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_FATAL);
    assert_non_null(strstr(got, "want string or array, file has integer"));
    write_file(dir, "tokenizer_config.json", "{");
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_FATAL);
    write_file(dir, "chat_template.jinja", "three\n");
    assert_int_equal(opened_text(dir, NULL, got, sizeof got), E_OK);
    assert_string_equal(got, "three");
    snprintf(path, sizeof path, "%s/my.jinja", dir);
    assert_int_equal(opened_text(dir, path, got, sizeof got), E_FATAL);
    assert_non_null(strstr(got, "my.jinja: no such file"));
    write_file(dir, "my.jinja", "{{ 1 }}\n\n{% zap %}");
    assert_int_equal(opened_text(dir, path, got, sizeof got), E_FATAL);
    assert_non_null(strstr(got, "my.jinja: line 3: unknown tag 'zap'"));
    write_file(dir, "my.jinja", "four");
    assert_int_equal(opened_text(dir, path, got, sizeof got), E_OK);
    assert_string_equal(got, "four");
    unlink(path);
    snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contents_are_marked),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(walks_are_counted),
        cmocka_unit_test(errors_name_line_and_text),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(bad_input_is_a_job_error),
        cmocka_unit_test(folders_are_searched_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
