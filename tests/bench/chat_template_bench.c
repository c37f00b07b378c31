/* chat_template_bench: microseconds of a 20-turn render, and of compiling, per template folder or
 * file: chat_template_bench [FOLDER | FILE.jinja]... */
#include <stdio.h>
#include <stdlib.h>

#include "engine/chat_template.h"

enum { TURNS = 20, REPEATS = 200 };

/* Stands in for the real one, whose vocabulary has no part in this. */
struct tokenizer {
    int unused;
};

struct str tokenizer_named_token(const struct tokenizer *t, const char *name)
{
    (void)t;
    return strcmp(name, "bos_token") == 0 ? STR("<s>") : STR("</s>");
}

static json_t *conversation(void)
{
    json_t *messages = json_array();
    for (int i = 0; i < TURNS; i++) {
        json_t *user = json_pack("{s:s,s:s}", "role", "user", "content",
                                 "What is the capital of the country north of this one, and why?");
        json_t *reply =
            json_pack("{s:s,s:s}", "role", "assistant", "content",
                      "<think>\nLook at the map first.\n</think>\n\nIt is the big one.");
        json_array_append_new(messages, user);
        if (i + 1 < TURNS)
            json_array_append_new(messages, reply);
        else
            json_decref(reply);
    }
    return messages;
}

static int open_one(const char *path, struct chat_template **t, struct err *err)
{
    bool file = strstr(path, ".jinja") != NULL;
    return chat_template_open(t, path, file ? path : NULL, err);
}

static int bench(const char *path)
{
    const struct clock *clock = clock_system();
    struct chat_template *t = NULL;
    struct tokenizer tokenizer = {0};
    struct err err = {0};
    int64_t best = INT64_MAX, opening = clock_mono_ns(clock);
    size_t bytes = 0;
    if (open_one(path, &t, &err) < 0 || !t) {
        fprintf(stderr, "%s: %s\n", path, t ? err.msg : "no template");
        return 1;
    }
    opening = clock_mono_ns(clock) - opening;
    json_t *messages = conversation();
    struct chat_template_input in = {
        .messages = messages, .add_generation_prompt = true, .tokenizer = &tokenizer};
    for (int i = 0; i < REPEATS && err.code == 0; i++) {
        struct chat_template_output out;
        int64_t start = clock_mono_ns(clock);
        if (chat_template_render(t, &in, &out, &err) >= 0)
            bytes = out.text.len;
        chat_template_output_free(&out);
        best = TR_MIN(best, clock_mono_ns(clock) - start);
    }
    printf("%s: open %.0f us, %d turns render %.1f us, %zu bytes%s%s\n", path,
           (double)opening / 1e3, TURNS, (double)best / 1e3, bytes, err.code ? ", " : "", err.msg);
    json_decref(messages);
    chat_template_close(t);
    return err.code != 0;
}

int main(int argc, char **argv)
{
    static const char *const ours = "tests/golden/chat_template/r1_distill.jinja";
    int failed = 0;
    for (int i = 1; i < argc; i++)
        failed |= bench(argv[i]);
    return argc > 1 ? failed : bench(ours);
}
