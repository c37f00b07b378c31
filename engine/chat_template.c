/* chat_template: see chat_template.h. Finds and compiles a model folder's template, turns a request
 * into template variables, and cuts the render into pieces at the edges of message contents. The
 * language itself is in jinja_*.c. */
#include "engine/chat_template.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#include "engine/jinja_eval.h"
#include "engine/jinja_text.h"
#include "engine/plain_file.h"

enum { TEMPLATE_BYTES_MAX = 1 << 20 };

static const char *const special_tokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                             "pad_token", "cls_token", "mask_token"};

/* What Hugging Face appends to the last message to find its end again. */
static const struct str continue_tag = {"CONTINUE_FINAL_MESSAGE_TAG ", 27};

struct chat_template {
    char *name;
    char sha256[65];
    int64_t bytes;
    bool mentions_content; /* Hugging Face refuses continue_final_message otherwise */
    struct jinja_heap heap;
    struct jinja_program program;
};

/* ---- compiling ---- */

static bool valid_utf8(struct str text)
{
    utf8proc_int32_t cp;
    for (size_t at = 0; at < text.len;) {
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text.ptr + at,
                                              (utf8proc_ssize_t)(text.len - at), &cp);
        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

static int hash_text(struct str text, char out[65], struct err *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int n = 0;
    if (!EVP_Digest(text.ptr ? text.ptr : "", text.len, digest, &n, EVP_sha256(), NULL) || n != 32)
        return err_set(err, E_FATAL, "sha256 is not available");
    for (unsigned int i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
    return E_OK;
}

int chat_template_compile(struct chat_template **out, struct str text, const char *name,
                          struct err *err)
{
    int rc = E_FATAL;
    size_t name_len = strlen(name);
    if (text.len > TEMPLATE_BYTES_MAX)
        return err_set(err, E_FATAL, "%s: template of %zu bytes, the limit is %d", name, text.len,
                       TEMPLATE_BYTES_MAX);
    if (!valid_utf8(text))
        return err_set(err, E_FATAL, "%s: template is not valid UTF-8", name);
    struct chat_template *t = mem_alloc(1, sizeof *t);
    if (!t)
        return err_set(err, E_FATAL, "%s: out of memory", name);
    jinja_heap_open(&t->heap, JINJA_HEAP_MAX);
    t->name = mem_alloc(name_len + 1, 1);
    if (!t->name) {
        err_set(err, E_FATAL, "%s: out of memory", name);
        goto out;
    }
    memcpy(t->name, name, name_len);
    t->bytes = (int64_t)text.len;
    struct jinja_source source = {&t->heap, t->name, err};
    if (hash_text(text, t->sha256, err) < 0 || jinja_parse(&source, text, &t->program) < 0)
        goto out;
    t->mentions_content = jinja_text_find(jinja_plain(text), STR("content"), 0) != SIZE_MAX;
    *out = t;
    rc = E_OK;
out:
    if (rc < 0)
        chat_template_close(t);
    return rc;
}

void chat_template_close(struct chat_template *t)
{
    if (!t)
        return;
    jinja_heap_close(&t->heap);
    mem_free(t->name);
    mem_free(t);
}

const char *chat_template_sha256(const struct chat_template *t)
{
    return t->sha256;
}

const char *chat_template_name(const struct chat_template *t)
{
    return t->name;
}

int64_t chat_template_bytes(const struct chat_template *t)
{
    return t->bytes;
}

const char *chat_template_missing_token(const struct chat_template *t, const struct tokenizer *tok)
{
    for (size_t i = 0; i < TR_COUNT(special_tokens); i++)
        if (jinja_name_id(&t->program, str_of(special_tokens[i])) >= 0 &&
            !tokenizer_named_token(tok, special_tokens[i]).ptr)
            return special_tokens[i];
    return NULL;
}

/* ---- finding ---- */

/* *out stays NULL where there is no such file. `piped`: it may be a pipe, and is waited for. */
static int open_file(struct chat_template **out, const char *path, bool piped, struct err *err)
{
    int rc = E_OK;
    char *text = NULL;
    size_t used = 0;
    struct stat st;
    int fd = piped ? open(path, O_RDONLY | O_CLOEXEC) : plain_file_open(AT_FDCWD, path);
    if (fd < 0)
        return errno == ENOENT ? E_OK : err_errno(err, E_FATAL, "%s: cannot open", path);
    if (!piped && (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))) {
        rc = err_set(err, E_FATAL, "%s: want a regular file", path);
        goto out;
    }
    text = mem_alloc(TEMPLATE_BYTES_MAX + 1, 1);
    if (!text) {
        rc = err_set(err, E_FATAL, "%s: out of memory", path);
        goto out;
    }
    for (ssize_t n = 1; n > 0 && used <= TEMPLATE_BYTES_MAX; used += n > 0 ? (size_t)n : 0) {
        n = read(fd, text + used, TEMPLATE_BYTES_MAX + 1 - used);
        if (n < 0 && errno == EINTR) {
            n = 1;
            used--;
        } else if (n < 0) {
            rc = err_errno(err, E_FATAL, "%s: cannot read", path);
            goto out;
        }
    }
    rc = chat_template_compile(out, (struct str){text, used}, path, err);
out:
    mem_free(text);
    close(fd);
    return rc;
}

/* chat_template of tokenizer_config.json: a string, or a list of {name, template}. */
static int find_in_config(const json_t *config, const char *path, struct str *text, struct err *err)
{
    const json_t *found = json_object_get(config, "chat_template"), *entry;
    size_t i;
    *text = (struct str){NULL, 0};
    if (!found || json_is_null(found))
        return E_OK;
    if (json_is_string(found)) {
        *text = json_str(found);
        return E_OK;
    }
    if (!json_is_array(found))
        return err_set(err, E_FATAL, "%s: chat_template: want string or array, file has %s", path,
                       json_type_name(found));
    json_array_foreach(found, i, entry)
    {
        const json_t *template = json_object_get(entry, "template");
        if (!str_eq(json_str(json_object_get(entry, "name")), STR("default")))
            continue;
        if (!json_is_string(template))
            return err_set(err, E_FATAL,
                           "%s: chat_template[%zu].template: want string, file has %s", path, i,
                           json_type_name(template));
        *text = json_str(template);
        return E_OK;
    }
    return err_set(err, E_FATAL,
                   "%s: chat_template: want an entry named \"default\", none of %zu is", path,
                   json_array_size(found));
}

static int open_config(struct chat_template **out, const char *path, struct err *err)
{
    char name[PATH_MAX + 32];
    struct str text;
    json_t *config = NULL;
    if (access(path, F_OK) != 0 && errno == ENOENT)
        return E_OK;
    int rc = json_parse_file(&config, path, &json_limits_file, err);
    if (rc < 0) {
        err->code = E_FATAL; /* the folder is broken, not a job */
        return E_FATAL;
    }
    rc = find_in_config(config, path, &text, err);
    snprintf(name, sizeof name, "%s: chat_template", path);
    if (rc >= 0 && text.ptr)
        rc = chat_template_compile(out, text, name, err);
    json_decref(config);
    return rc;
}

int chat_template_open(struct chat_template **out, const char *model_dir, const char *override_path,
                       struct err *err)
{
    char path[PATH_MAX];
    *out = NULL;
    if (override_path) {
        int rc = open_file(out, override_path, true, err);
        if (rc >= 0 && !*out)
            rc = err_set(err, E_FATAL, "%s: no such file", override_path);
        return rc;
    }
    if (snprintf(path, sizeof path, "%s/chat_template.jinja", model_dir) >= (int)sizeof path)
        return err_set(err, E_FATAL, "model folder: path longer than %zu bytes", sizeof path);
    if (open_file(out, path, false, err) < 0)
        return E_FATAL;
    if (*out)
        return E_OK;
    if (snprintf(path, sizeof path, "%s/tokenizer_config.json", model_dir) >= (int)sizeof path)
        return err_set(err, E_FATAL, "model folder: path longer than %zu bytes", sizeof path);
    return open_config(out, path, err);
}

/* ---- variables ---- */

/* Strings and keys are borrowed from the JSON; `marked`: they are message content. */
static int from_json(struct jinja_run *run, const json_t *json, bool marked, int depth,
                     struct jinja_value *out);

static struct jinja_value text_value(struct str s, bool marked)
{
    struct jinja_text t = jinja_plain(s);
    t.marks = marked ? &jinja_marks_all : NULL;
    return jinja_string(t);
}

static int from_array(struct jinja_run *run, const json_t *json, bool marked, int depth,
                      struct jinja_value *out)
{
    size_t n = json_array_size(json);
    if (jinja_list_new(run, JINJA_LIST, n, out) < 0)
        return E_JOB;
    for (size_t i = 0; i < n; i++)
        if (from_json(run, json_array_get(json, i), marked, depth + 1, &out->as.list->items[i]) < 0)
            return E_JOB;
    return E_OK;
}

static int from_object(struct jinja_run *run, const json_t *json, bool marked, int depth,
                       struct jinja_value *out)
{
    /* Jansson's iterators want a mutable object and do not change it */
    json_t *object = (json_t *)(uintptr_t)json;
    if (jinja_dict_new(run, JINJA_DICT, json_object_size(json), out) < 0)
        return E_JOB;
    struct jinja_dict *dict = out->as.dict;
    for (void *it = json_object_iter(object); it; it = json_object_iter_next(object, it)) {
        struct str key = str_of(json_object_iter_key(it));
        dict->keys[dict->n] = text_value(key, marked);
        /* depth 1: a message; its role is the program's word, checked by the caller */
        bool role = depth == 1 && str_eq(key, STR("role"));
        if (from_json(run, json_object_iter_value(it), marked && !role, depth + 1,
                      &dict->values[dict->n]) < 0)
            return E_JOB;
        dict->n++;
    }
    return E_OK;
}

static int from_json(struct jinja_run *run, const json_t *json, bool marked, int depth,
                     struct jinja_value *out)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_limit(run, "JSON nested deeper than %d", JINJA_VALUE_DEPTH_MAX);
    if (jinja_step(run, 1) < 0)
        return E_JOB;
    *out = jinja_none();
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return from_object(run, json, marked, depth, out);
    case JSON_ARRAY:
        return from_array(run, json, marked, depth, out);
    case JSON_STRING:
        *out = text_value(json_str(json), marked);
        break;
    case JSON_INTEGER:
        *out = jinja_int(json_integer_value(json));
        break;
    case JSON_REAL:
        *out = jinja_float(json_real_value(json));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = jinja_bool(json_is_true(json));
        break;
    default:
        break;
    }
    return E_OK;
}

static void set_global(struct jinja_exec *ex, const char *name, struct jinja_value value)
{
    int id = jinja_name_id(ex->program, str_of(name));
    if (id < 0)
        return;
    ex->run.globals[id] = value;
    ex->run.globals_set[id] = true;
}

static int set_json(struct jinja_exec *ex, const char *name, const json_t *json, bool marked)
{
    struct jinja_value value = jinja_none();
    if (json && from_json(&ex->run, json, marked, 0, &value) < 0)
        return E_JOB;
    set_global(ex, name, value);
    return E_OK;
}

static int set_variables(struct jinja_exec *ex, const struct chat_template_input *in)
{
    json_t *kwargs = (json_t *)(uintptr_t)in->kwargs;
    for (int id = 0; id < ex->program->n_names; id++) {
        int function = jinja_function_find(ex->program->names[id]);
        if (function < 0 || (!in->date_ns && str_eq(ex->program->names[id], STR("strftime_now"))))
            continue;
        ex->run.globals[id] =
            (struct jinja_value){.type = JINJA_FUNCTION, .which = (uint8_t)function};
        ex->run.globals_set[id] = true;
    }
    for (size_t i = 0; in->tokenizer && i < TR_COUNT(special_tokens); i++) {
        struct str token = tokenizer_named_token(in->tokenizer, special_tokens[i]);
        if (token.ptr)
            set_global(ex, special_tokens[i], text_value(token, false));
    }
    set_global(ex, "add_generation_prompt", jinja_bool(in->add_generation_prompt));
    set_global(ex, "documents", jinja_none());
    if (set_json(ex, "tools", in->tools, false) < 0)
        return E_JOB;
    for (void *it = kwargs ? json_object_iter(kwargs) : NULL; it;
         it = json_object_iter_next(kwargs, it))
        if (set_json(ex, json_object_iter_key(it), json_object_iter_value(it), false) < 0)
            return E_JOB;
    return E_OK;
}

/* ---- continue_final_message, as Hugging Face does it ---- */

/* The string that is to be continued: the last message's content, or the last text in its list. */
static int final_text(struct jinja_run *run, struct jinja_list *messages, struct jinja_value **out)
{
    struct jinja_value *last = messages->n ? &messages->items[messages->n - 1] : NULL;
    *out = NULL;
    if (last && last->type == JINJA_DICT &&
        jinja_dict_str(run, last->as.dict, STR("content"), out) < 0)
        return E_JOB;
    if (!*out || (*out)->type != JINJA_LIST)
        return E_OK;
    const struct jinja_list *blocks = (*out)->as.list;
    *out = NULL;
    for (size_t i = blocks->n; i-- > 0 && !*out;)
        if (blocks->items[i].type == JINJA_DICT &&
            jinja_dict_str(run, blocks->items[i].as.dict, STR("text"), out) < 0)
            return E_JOB;
    return E_OK;
}

static int tag_final(struct jinja_exec *ex, const struct chat_template *t,
                     const struct chat_template_input *in, struct jinja_value *messages,
                     struct jinja_text *final)
{
    struct jinja_value *text;
    if (final_text(&ex->run, messages->as.list, &text) < 0)
        return E_JOB;
    if (in->add_generation_prompt)
        return jinja_fail(&ex->run,
                          "continue_final_message and add_generation_prompt exclude each other");
    if (!t->mentions_content || !text || text->type != JINJA_STRING)
        return jinja_fail(&ex->run, "continue_final_message: the last message has no text content");
    *final = text->as.text;
    return jinja_concat(&ex->run, *final, jinja_plain(continue_tag), &text->as.text);
}

static int cut_final(struct jinja_exec *ex, struct jinja_text final, struct jinja_text *render)
{
    struct str bare = {continue_tag.ptr, continue_tag.len - 1};
    struct str wanted = jinja_str(jinja_text_strip(final, NULL, JINJA_LEFT | JINJA_RIGHT));
    size_t at = jinja_text_rfind(*render, bare);
    if (at == SIZE_MAX || jinja_text_find(*render, wanted, 0) == SIZE_MAX)
        return jinja_fail(&ex->run,
                          "continue_final_message: the last message is not in the render");
    bool spaced = render->len - at > bare.len && render->ptr[at + bare.len] == ' ';
    *render = jinja_cut(*render, 0, at);
    if (!spaced) /* the template strips contents, so it would have stripped the tag's place, too */
        *render = jinja_text_strip(*render, NULL, JINJA_RIGHT);
    return E_OK;
}

/* ---- output ---- */

static int make_output(struct jinja_run *run, struct jinja_text render,
                       struct chat_template_output *out)
{
    size_t n_max = 2 * (render.marks ? render.marks->n : 0) + 1, at = 0, n = 0;
    size_t head = n_max * sizeof *out->pieces;
    char *block = mem_alloc(head + render.len, 1);
    if (!block)
        return err_set(run->err, E_RETRY, "%s: out of memory for %zu bytes", run->name, render.len);
    struct tokenizer_piece *pieces = (struct tokenizer_piece *)(void *)block;
    char *text = block + head;
    if (render.len)
        memcpy(text, render.ptr, render.len);
    for (size_t i = 0; render.marks && i < render.marks->n; i++) {
        size_t begin = render.marks->spans[i].begin;
        size_t end = TR_MIN(render.marks->spans[i].end, render.len);
        if (begin >= render.len)
            break;
        if (begin > at)
            pieces[n++] = (struct tokenizer_piece){{text + at, begin - at}, false};
        pieces[n++] = (struct tokenizer_piece){{text + begin, end - begin}, true};
        at = end;
    }
    if (at < render.len)
        pieces[n++] = (struct tokenizer_piece){{text + at, render.len - at}, false};
    *out = (struct chat_template_output){pieces, n, {text, render.len}};
    return E_OK;
}

static int render(struct jinja_exec *ex, const struct chat_template *t,
                  const struct chat_template_input *in, struct jinja_text *text)
{
    struct jinja_run *run = &ex->run;
    struct jinja_builder output = {.max = CHAT_TEMPLATE_OUTPUT_MAX};
    struct jinja_text final = {0};
    struct jinja_value messages;
    size_t n = (size_t)t->program.n_names;
    run->globals = jinja_alloc(run, n, sizeof *run->globals);
    run->globals_set = jinja_alloc(run, n, sizeof *run->globals_set);
    if (!run->globals || !run->globals_set || set_variables(ex, in) < 0)
        return E_JOB;
    if (!json_is_array(in->messages))
        return jinja_fail(run, "messages: want array, got %s", json_type_name(in->messages));
    if (from_json(run, in->messages, true, 0, &messages) < 0 ||
        (in->continue_final_message && tag_final(ex, t, in, &messages, &final) < 0))
        return E_JOB;
    set_global(ex, "messages", messages);
    run->out = &output;
    int flow = jinja_exec_items(ex, &ex->root, t->program.items, t->program.n_items);
    if (flow < 0 || jinja_built(run, &output, text) < 0)
        return E_JOB;
    return in->continue_final_message ? cut_final(ex, final, text) : E_OK;
}

int chat_template_render(const struct chat_template *t, const struct chat_template_input *in,
                         struct chat_template_output *out, struct err *err)
{
    struct jinja_exec ex = {.run = {.name = t->name, .line = 1, .date_ns = in->date_ns, .err = err},
                            .program = &t->program};
    struct jinja_text text;
    *out = (struct chat_template_output){0};
    jinja_heap_open(&ex.run.heap, JINJA_HEAP_MAX);
    int rc = render(&ex, t, in, &text);
    if (rc >= 0)
        rc = make_output(&ex.run, text, out);
    jinja_heap_close(&ex.run.heap);
    return rc;
}

void chat_template_output_free(struct chat_template_output *out)
{
    if (!out)
        return;
    mem_free(out->pieces);
    *out = (struct chat_template_output){0};
}
