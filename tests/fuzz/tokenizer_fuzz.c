/* Any bytes as tokenizer.json: refused with a message, or a tokenizer that encodes and decodes. */
#include "engine/tokenizer_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct str text = STR("a<t>  ab\u0301c \xE4\xB8\xAD 12'll\n");
    int32_t ids[64];
    char back[256];
    struct err err = {0};
    struct tokenizer *t = NULL;
    int rc =
        tokenizer_parse(&t, (struct str){(const char *)data, size}, (struct str){NULL, 0}, &err);
    CHECK(rc == E_OK || (rc == E_FATAL && err.msg[0] && !t));
    if (rc != E_OK)
        return 0;
    struct tokenizer_scratch *s = tokenizer_scratch_open(t);
    CHECK(s);
    int64_t n = tokenizer_encode(t, s, text, TOKENIZER_ADD_SPECIAL, ids, TR_COUNT(ids), &err);
    CHECK(n >= 0);
    size_t n_ids = TR_MIN((size_t)n, TR_COUNT(ids));
    for (size_t i = 0; i < n_ids; i++)
        CHECK(ids[i] >= 0 && ids[i] < tokenizer_vocab_size(t));
    tokenizer_decode(t, ids, n_ids, true, back, sizeof back);
    tokenizer_scratch_close(s);
    tokenizer_close(t);
    return 0;
}
