/* chat_template_fuzz: any bytes as a template, compiled and, where that works, rendered with fixed
 * messages. Pieces must cover the text. */
#include <stdlib.h>

#include "engine/chat_template.h"

struct tokenizer {
    int unused;
};

struct str tokenizer_named_token(const struct tokenizer *t, const char *name)
{
    (void)t;
    return strcmp(name, "bos_token") == 0 ? STR("<s>") : (struct str){NULL, 0};
}

static const char request[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\" Be brief. \"},"
    "{\"role\":\"user\",\"content\":\"W\xC3\xB6rld \xE4\xBD\xA0 <x>\\n\"},"
    "{\"role\":\"assistant\",\"content\":\"<think>\\na\\n</think>\\n\\nb\",\"tool_calls\":[{\"id\":"
    "\"abc123xyz\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,"
    "null,true]}}}]},{\"role\":\"tool\",\"content\":\"7\"},{\"role\":\"user\",\"content\":\"\"}],"
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],"
    "\"kwargs\":{\"n\":7,\"s\":\"abc\",\"xs\":[3,1,2],\"d\":{\"b\":1,\"a\":2},\"t\":true,\"f\":2.5}"
    "}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *doc;
    struct chat_template *t = NULL;
    struct chat_template_output out = {0};
    struct tokenizer tokenizer = {0};
    struct err err = {0};
    size_t at = 0;
    if (!doc && json_parse(&doc, str_of(request), "request", &json_limits_job, &err) < 0)
        abort();
    if (chat_template_compile(&t, (struct str){(const char *)data, size}, "t", &err) < 0)
        return 0;
    struct chat_template_input in = {
        .messages = json_object_get(doc, "messages"),
        .tools = json_object_get(doc, "tools"),
        .kwargs = json_object_get(doc, "kwargs"),
        .add_generation_prompt = size % 2 == 0,
        .continue_final_message = size % 8 == 7,
        .tokenizer = &tokenizer,
        .date_ns = size % 3 == 0 ? 1700000000123456789 : 0,
    };
    if (chat_template_render(t, &in, &out, &err) >= 0) {
        for (size_t i = 0; i < out.n_pieces; i++)
            at += out.pieces[i].text.len;
        if (at != out.text.len)
            abort();
    }
    chat_template_output_free(&out);
    chat_template_close(t);
    return 0;
}
