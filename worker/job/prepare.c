/* prepare: see prepare.h. The pool is in pool.c. */
#include "worker/job/prepare.h"

#include "worker/job/share.h"

int prepare_scratch_open(struct prepare_scratch *s, const struct loaded_model *model,
                         struct err *err)
{
    *s = (struct prepare_scratch){0};
    if (!model->tokenizer)
        return E_OK;
    s->tokenizer = tokenizer_scratch_open(model->tokenizer);
    return s->tokenizer ? E_OK : err_set(err, E_FATAL, "tokenizer: no memory for a thread");
}

void prepare_scratch_close(struct prepare_scratch *s)
{
    tokenizer_scratch_close(s->tokenizer);
    text_close(&s->text);
    text_close(&s->joined);
    mem_free(s->ids);
    *s = (struct prepare_scratch){0};
}

static bool ids_room(struct prepare_scratch *s, size_t n)
{
    if (n <= s->ids_cap)
        return true;
    size_t cap = TR_MAX(n, s->ids_cap * 2);
    int32_t *grown = mem_alloc(cap, sizeof *grown);
    if (!grown)
        return false;
    mem_free(s->ids);
    s->ids = grown;
    s->ids_cap = cap;
    return true;
}

/* ids[0..n) become the job's next prompt. */
static void add_prompt(struct job *job, const int32_t *ids, size_t n,
                       const struct loaded_model *model)
{
    int32_t *copy = job_alloc(job, TR_MAX(n, (size_t)1) * sizeof *copy);
    if (!copy) {
        err_set(&job->err, E_RETRY, "no memory for a prompt of %zu tokens", n);
        return;
    }
    if (n)
        memcpy(copy, ids, n * sizeof *copy);
    else
        job_fail(job, "bad_value", "prompt: want at least one token, got none");
    bool thinking = false;
    const struct sequence_rules *rules = &model->rules;
    for (size_t i = n; rules->think_open_id >= 0 && i-- > 0;)
        if (ids[i] == rules->think_open_id || ids[i] == rules->think_close_id) {
            thinking = ids[i] == rules->think_open_id;
            break;
        }
    job->prompts[job->n_prompts++] = (struct job_prompt){copy, (int32_t)n, thinking};
}

/* Encodes pieces into s->ids; the count, or -1 with job->err. */
static int64_t encode(struct job *job, const struct prepare_context *ctx, struct prepare_scratch *s,
                      const struct tokenizer_piece *pieces, size_t n)
{
    const struct tokenizer *t = ctx->model->tokenizer;
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += pieces[i].text.len;
    if (bytes > JOB_PROMPT_BYTES_MAX) {
        job_fail(job, "prompt_too_long", "the prompt has %zu bytes, the limit is %d", bytes,
                 JOB_PROMPT_BYTES_MAX);
        return -1;
    }
    int64_t got = (int64_t)bytes;
    unsigned flags = job->params.add_special ? TOKENIZER_ADD_SPECIAL : 0;
    for (int attempt = 0; attempt < 2; attempt++) {
        if (!ids_room(s, (size_t)(attempt ? got : TR_MAX(got / 2, (int64_t)64)))) {
            err_set(&job->err, E_RETRY, "no memory for %lld tokens", (long long)got);
            return -1;
        }
        if (t)
            got = tokenizer_encode_pieces(t, s->tokenizer, pieces, n, flags, s->ids, s->ids_cap,
                                          &job->err);
        if (got <= (int64_t)s->ids_cap)
            break;
    }
    int64_t to = 0;
    for (size_t i = 0; !t && i < n; i++)
        for (size_t k = 0; k < pieces[i].text.len; k++)
            s->ids[to++] = (unsigned char)pieces[i].text.ptr[k];
    return got;
}

/* ---- chat ---- */

/* Content parts become one string, joined by newlines, as vLLM's string format does. NULL: job->err
 * is set. */
static json_t *join_parts(struct job *job, const json_t *parts, size_t message,
                          struct prepare_scratch *s)
{
    text_reset(&s->joined);
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        struct str type = json_str(json_object_get(part, "type"));
        struct str text = json_str(json_object_get(part, "text"));
        if (!str_eq(type, STR("text")) || !text.ptr) {
            job_fail(job,
                     type.ptr && !str_eq(type, STR("text")) ? "unsupported_content" : "bad_field",
                     "messages[%zu].content[%zu]: want {\"type\":\"text\",\"text\":...}, got type "
                     "\"%.*s\"",
                     message, i, (int)TR_MIN(type.len, 40), type.ptr ? type.ptr : "");
            return NULL;
        }
        if (i)
            text_char(&s->joined, '\n');
        text_add(&s->joined, text);
    }
    json_t *joined = json_stringn(s->joined.len ? s->joined.ptr : "", s->joined.len);
    if (!joined || s->joined.failed)
        err_set(&job->err, E_RETRY, "no memory for message contents");
    return joined;
}

static bool message_fields_known(struct job *job, const json_t *message, size_t at)
{
    static const char *const known[] = {"role", "content", "name", "reasoning_content"};
    static const char *const unsupported[] = {"tool_calls", "tool_call_id", "function_call",
                                              "audio", "refusal"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)message, key, value)
    {
        bool fine = json_is_null(value), refused = false;
        for (size_t i = 0; i < TR_COUNT(known); i++)
            fine = fine || strcmp(key, known[i]) == 0;
        for (size_t i = 0; i < TR_COUNT(unsupported); i++)
            refused = refused || strcmp(key, unsupported[i]) == 0;
        if (fine)
            continue;
        const char *near = refused ? NULL : nearest_name(str_of(key), known, TR_COUNT(known));
        job_fail(job, refused ? "unsupported_field" : "unknown_field",
                 "messages[%zu].%.60s: %s%s%s%s", at, key,
                 refused ? "known, but not supported" : "unknown field",
                 near ? "; do you mean " : "", near ? near : "", near ? "?" : "");
        return false;
    }
    return true;
}

/* One message with string content; a new reference, or NULL with job->err. "developer" is what
 * newer OpenAI models call "system". */
static json_t *take_message(struct job *job, json_t *message, size_t at, struct prepare_scratch *s)
{
    struct str role = json_str(json_object_get(message, "role"));
    json_t *content = json_object_get(message, "content"), *plain = NULL;
    if (!json_is_object(message) || !role.ptr) {
        job_fail(job, "bad_field", "messages[%zu]: want an object with role and content, got %s",
                 at, json_is_object(message) ? "no role" : json_type_name(message));
        return NULL;
    }
    bool developer = str_eq(role, STR("developer"));
    if (!developer && !str_eq(role, STR("system")) && !str_eq(role, STR("user")) &&
        !str_eq(role, STR("assistant"))) {
        bool tool = str_eq(role, STR("tool")) || str_eq(role, STR("function"));
        job_fail(job, tool ? "unsupported_field" : "bad_value",
                 "messages[%zu].role: want system, user or assistant, got \"%.*s\"", at,
                 (int)TR_MIN(role.len, 40), role.ptr);
        return NULL;
    }
    if (!message_fields_known(job, message, at))
        return NULL;
    if (json_is_array(content)) {
        plain = join_parts(job, content, at, s);
        if (!plain)
            return NULL;
    } else if (!json_is_string(content)) {
        job_fail(job, content ? "bad_field" : "missing_field",
                 "messages[%zu].content: want a string or an array of text parts, got %s", at,
                 json_type_name(content));
        return NULL;
    }
    if (!plain && !developer)
        return json_incref(message);
    json_t *copy = json_copy(message);
    if (plain)
        json_object_set_new(copy, "content", plain);
    if (developer)
        json_object_set_new(copy, "role", json_string("system"));
    return copy;
}

static json_t *take_messages(struct job *job, struct prepare_scratch *s)
{
    json_t *given = json_object_get(job->body, "messages");
    size_t n = json_array_size(given);
    if (!json_is_array(given) || n < 1 || n > JOB_MESSAGES_MAX) {
        if (json_is_array(given))
            job_fail(job, "bad_value", "messages: want 1 to %d messages, got %zu", JOB_MESSAGES_MAX,
                     n);
        else
            job_fail(job, given ? "bad_field" : "missing_field", "messages: want an array, got %s",
                     json_type_name(given));
        return NULL;
    }
    json_t *messages = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *one = take_message(job, json_array_get(given, i), i, s);
        if (!one || json_array_append_new(messages, one) != 0) {
            json_decref(messages);
            return NULL;
        }
    }
    return messages;
}

/* A chat without a system message gets the one of its batch, or of all chats. */
static void add_system(const struct job *job, json_t *messages)
{
    struct str text =
        job->config ? job_config_system(job->config, job->batch_id) : (struct str){NULL, 0};
    for (size_t i = 0; text.ptr && i < json_array_size(messages); i++)
        if (str_eq(json_str(json_object_get(json_array_get(messages, i), "role")), STR("system")))
            return;
    if (!text.ptr)
        return;
    /* A copy: the revision's own is read by other threads. */
    json_array_insert_new(
        messages, 0, json_pack("{s:s, s:s%}", "role", "system", "content", text.ptr, text.len));
}

/* Without a model folder there is no template: the simulated engine gets "role: content" lines. */
static void render_plainly(const json_t *messages, struct text *out)
{
    text_reset(out);
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i);
        text_add(out, json_str(json_object_get(m, "role")));
        text_add(out, STR(": "));
        text_add(out, json_str(json_object_get(m, "content")));
        text_char(out, '\n');
    }
}

static void prepare_chat(struct job *job, const struct prepare_context *ctx,
                         struct prepare_scratch *s)
{
    const struct loaded_model *model = ctx->model;
    const struct chat_template *template =
        job->config ? job->config->chat_template : model->chat_template;
    struct chat_template_output out = {0};
    json_t *messages = take_messages(job, s);
    if (!messages)
        return;
    add_system(job, messages);
    if (!model->tokenizer) {
        render_plainly(messages, &s->text);
        struct tokenizer_piece piece = {text_view(&s->text), true};
        int64_t n = encode(job, ctx, s, &piece, 1);
        if (n >= 0)
            add_prompt(job, s->ids, (size_t)n, model);
        goto out;
    }
    if (!template) {
        job_fail(job, "no_chat_template",
                 "the model folder has no chat template; send a prompt to "
                 "/v1/completions");
        goto out;
    }
    struct chat_template_input in = {.messages = messages,
                                     .kwargs = job->params.template_kwargs,
                                     .add_generation_prompt = !job->params.continue_final,
                                     .continue_final_message = job->params.continue_final,
                                     .tokenizer = model->tokenizer};
    if (chat_template_render(template, &in, &out, &job->err) != E_OK)
        goto out;
    for (size_t i = 0; !ctx->plain_content && i < out.n_pieces; i++)
        out.pieces[i].plain = false;
    int64_t n = encode(job, ctx, s, out.pieces, out.n_pieces);
    if (n >= 0)
        add_prompt(job, s->ids, (size_t)n, model);
out:
    chat_template_output_free(&out);
    json_decref(messages);
}

/* ---- completions ---- */

static void take_text_prompt(struct job *job, const struct prepare_context *ctx,
                             struct prepare_scratch *s, const json_t *value)
{
    struct tokenizer_piece piece = {json_str(value), false};
    int64_t n = encode(job, ctx, s, &piece, 1);
    if (n >= 0)
        add_prompt(job, s->ids, (size_t)n, ctx->model);
}

static void take_id_prompt(struct job *job, const struct prepare_context *ctx,
                           struct prepare_scratch *s, const json_t *value)
{
    size_t n = json_array_size(value);
    if (!ids_room(s, n)) {
        err_set(&job->err, E_RETRY, "no memory for %zu tokens", n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(value, i);
        json_int_t id = json_integer_value(one);
        if (!json_is_integer(one) || id < 0 || id >= ctx->params.vocab_size) {
            job_fail(job, "bad_value", "prompt: token %zu: want an id of 0 to %d, got %s%lld", i,
                     ctx->params.vocab_size - 1, json_is_integer(one) ? "" : json_type_name(one),
                     (long long)id);
            return;
        }
        s->ids[i] = (int32_t)id;
    }
    add_prompt(job, s->ids, n, ctx->model);
}

/* prompt: "text", ["text", ...], [id, ...] or [[id, ...], ...] */
static void prepare_completion(struct job *job, const struct prepare_context *ctx,
                               struct prepare_scratch *s)
{
    const json_t *prompt = json_object_get(job->body, "prompt");
    const json_t *first = json_array_get(prompt, 0);
    bool ids = json_is_integer(first), many = json_is_array(prompt) && !ids;
    size_t n = many ? json_array_size(prompt) : 1;
    if (!json_is_string(prompt) && !json_is_array(prompt)) {
        job_fail(job, prompt ? "bad_field" : "missing_field",
                 "prompt: want a string, strings, ids or arrays of ids, got %s",
                 json_type_name(prompt));
        return;
    }
    if (n < 1 || n * (size_t)job->params.n > JOB_CHOICES_MAX) {
        job_fail(job, "bad_value", "prompt: want 1 to %d prompts times n, got %zu times %d",
                 JOB_CHOICES_MAX, n, job->params.n);
        return;
    }
    job->prompts = job_alloc(job, n * sizeof *job->prompts);
    for (size_t i = 0; i < n && job->err.code == 0; i++) {
        const json_t *one = many ? json_array_get(prompt, i) : prompt;
        if (!job->prompts)
            err_set(&job->err, E_RETRY, "no memory for %zu prompts", n);
        else if (json_is_string(one))
            take_text_prompt(job, ctx, s, one);
        else if (json_is_array(one))
            take_id_prompt(job, ctx, s, one);
        else
            job_fail(job, "bad_field", "prompt[%zu]: want a string or an array of ids, got %s", i,
                     json_type_name(one));
    }
}

/* Behind the parse: parameters, prompts, limits. The document goes. */
static void read_body(struct job *job, const struct prepare_context *ctx, struct prepare_scratch *s)
{
    const struct params_context *params = job->config ? &job->config->params : &ctx->params;
    if (job->err.code == 0)
        params_parse(job, params);
    if (job->err.code == 0 && job->kind == JOB_CHAT) {
        job->prompts = job_alloc(job, sizeof *job->prompts);
        if (job->prompts)
            prepare_chat(job, ctx, s);
        else
            err_set(&job->err, E_RETRY, "no memory for a prompt");
    } else if (job->err.code == 0) {
        prepare_completion(job, ctx, s);
    }
    if (job->err.code == 0)
        params_fit(job, params, &s->text);
    json_decref(job->doc);
    job->doc = job->body = NULL;
    job->params.template_kwargs = NULL;
}

/* What is not whole goes again: a stop string or half a prompt less would be another job. */
static void prepare_body(struct job *job, const struct prepare_context *ctx,
                         struct prepare_scratch *s)
{
    struct job_chunk *mark = job->chunks;
    int64_t before = mem_refused();
    read_body(job, ctx, s);
    if (mem_refused() == before)
        return;
    job_drop_chunks(job, mark);
    job->params = (struct job_params){0};
    job->params_json = (struct str){NULL, 0};
    job->prompts = NULL;
    job->n_prompts = 0;
    job->err = (struct err){0};
    err_set(&job->err, E_RETRY, "no memory to prepare it");
}

/* Nobody else knows the job yet. False: a key or hash of what there was would be another's. */
static bool parse(struct job *job, const struct prepare_context *ctx, struct prepare_scratch *s)
{
    const struct job given = *job;
    int64_t before = mem_refused();
    job_parse(job, &ctx->defaults, &s->text);
    if (mem_refused() == before)
        return true;
    json_decref(job->doc);
    job_drop_chunks(job, given.chunks);
    *job = given;
    return false;
}

void prepare_job(struct job *job, const struct prepare_context *ctx, struct prepare_scratch *s)
{
    if (job->tombstone)
        return;
    job->unread = !parse(job, ctx, s);
    if (job->unread)
        return;
    job->passed_over = ctx->share > 0 && !share_takes(job->custom_id, ctx->share);
    if (!job->passed_over)
        prepare_body(job, ctx, s);
}

void prepare_again(struct job *job, const struct prepare_context *ctx, struct prepare_scratch *s)
{
    job->params = (struct job_params){0};
    job->prompts = NULL;
    job->n_prompts = 0;
    job_parse_again(job);
    prepare_body(job, ctx, s);
}

/* The next `count` 4-byte elements of base, or NULL while only counting. */
static void *carve(char *base, size_t *used, size_t count)
{
    void *at = base && count ? base + *used : NULL;
    *used += count * 4;
    return at;
}

/* Bytes of a choice's output; with a base, its arrays are placed there. */
static size_t place_output(struct job_choice *c, const struct job_prompt *prompt, char *base)
{
    struct generated *g = &c->out;
    const struct sampling *s = &c->sampling;
    size_t cap = (size_t)s->max_tokens, n = (size_t)prompt->n, used = 0;
    size_t top = (size_t)TR_MAX(s->params.n_top, 0), best = (size_t)TR_MAX(s->prompt_logprobs, 0);
    g->cap = s->max_tokens;
    g->ids = carve(base, &used, cap);
    g->logprobs = carve(base, &used, s->params.n_top >= 0 ? cap : 0);
    g->top_ids = carve(base, &used, cap * top);
    g->top_logprobs = carve(base, &used, cap * top);
    g->prompt_logprobs = carve(base, &used, s->prompt_logprobs >= 0 ? n : 0);
    g->prompt_top_ids = carve(base, &used, n * best);
    g->prompt_top_logprobs = carve(base, &used, n * best);
    return (used + 15) & ~(size_t)15;
}

static struct job_choice choice_of(struct job *job, int32_t i)
{
    int32_t n = job->params.n;
    struct job_choice c = {
        .job = job, .prompt = i / n, .index = i % n, .sampling = job->params.sampling};
    c.sampling.params.choice = (uint32_t)i; /* prompts of one job draw apart as choices do */
    if (c.index != 0)
        c.sampling.prompt_logprobs = -1; /* the prompt's are the same for every choice */
    return c;
}

/* The output comes first: where it is refused nothing else has been taken, however often it is
 * asked for. */
int prepare_choices(struct job *job, struct err *err)
{
    int32_t total = job->n_prompts * job->params.n;
    size_t bytes = 0;
    for (int32_t i = 0; i < total; i++) {
        struct job_choice c = choice_of(job, i);
        bytes += place_output(&c, &job->prompts[c.prompt], NULL);
    }
    job->output = mem_alloc(bytes, 1);
    job->choices = job->output ? job_alloc(job, (size_t)total * sizeof *job->choices) : NULL;
    if (!job->choices) {
        mem_free(job->output);
        job->output = NULL;
        return err_set(err, E_RETRY, "no memory for the output of %d choices, %zu bytes", total,
                       bytes);
    }
    job->output_bytes = bytes;
    bytes = 0;
    for (int32_t i = 0; i < total; i++) {
        struct job_choice *c = &job->choices[i];
        *c = choice_of(job, i);
        bytes += place_output(c, &job->prompts[c->prompt], (char *)job->output + bytes);
    }
    job->n_choices = job->n_left = total;
    return E_OK;
}
