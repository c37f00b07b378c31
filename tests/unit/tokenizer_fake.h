/* tokenizer_fake: a tokenizer of a few hand-made tokens for tests of the rules that read text. It
 * stands in for the real one at link time: include it in one file of a test only. */
#ifndef TRANCHE_TESTS_TOKENIZER_FAKE_H
#define TRANCHE_TESTS_TOKENIZER_FAKE_H

#include <stdio.h>

#include "engine/tokenizer.h"

struct tokenizer {
    const char *const *tokens; /* NULL: an id without text */
    int32_t n, first_special;
};

struct str tokenizer_token_bytes(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n ? str_of(t->tokens[id]) : (struct str){NULL, 0};
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return id >= t->first_special;
}

int32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n;
}

/* Only as much of UTF-8 as the tests use: ASCII, and two- and three-byte characters. */
size_t utf8_repair(struct str s, char *buf, size_t cap, bool *changed)
{
    size_t n = 0;
    *changed = false;
    for (size_t i = 0; i < s.len;) {
        unsigned char c = (unsigned char)s.ptr[i];
        size_t want = c < 0x80 ? 1 : c >= 0xE0 ? 3 : c >= 0xC2 ? 2 : 0, have = want > 0;
        while (have > 0 && have < want && i + have < s.len &&
               ((unsigned char)s.ptr[i + have] & 0xC0) == 0x80)
            have++;
        bool good = want > 0 && have == want;
        const char *from = good ? s.ptr + i : "\xEF\xBF\xBD";
        size_t len = good ? want : 3;
        for (size_t k = 0; k < len; k++, n++) {
            if (n < cap)
                buf[n] = from[k];
        }
        *changed = *changed || !good;
        i += have > 0 ? have : 1;
    }
    return n;
}

#endif
