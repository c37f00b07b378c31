/* unicode: character classes, UTF-8 and Normalization Form C, as the tokenizer needs them.
 * The tables are generated (tools/gen_unicode.py) and pinned to one release of Hugging Face's
 * tokenizers: ids must not depend on the Unicode version that a distribution ships. */
#ifndef TRANCHE_ENGINE_UNICODE_H
#define TRANCHE_ENGINE_UNICODE_H

#include "engine/base.h"

enum unicode_flag {
    UNICODE_L = 1,      /* \p{L} */
    UNICODE_N = 2,      /* \p{N} */
    UNICODE_M = 4,      /* \p{M} */
    UNICODE_P = 8,      /* \p{P} */
    UNICODE_S = 16,     /* \p{S} */
    UNICODE_SPACE = 32, /* \s: the 25 of White_Space */
    UNICODE_WORD = 64,  /* \w */
    UNICODE_NFC = 128, /* has a combining class, or NFC may change it or join it to what precedes */
};

/* Two stages: 128 code points a block. */
extern const uint16_t unicode_block[8704];
extern const uint8_t unicode_flags[];
extern const uint32_t unicode_ccc[], unicode_decomp[], unicode_decomp_data[], unicode_pair_to[];
extern const uint16_t unicode_decomp_at[];
extern const uint64_t unicode_pair[];
extern const size_t unicode_ccc_n, unicode_decomp_n, unicode_pair_n;

/* Flags of a code point <= U+10FFFF. */
static inline unsigned unicode_class(uint32_t cp)
{
    return unicode_flags[((uint32_t)unicode_block[cp >> 7] << 7) | (cp & 127)];
}

/* Code point at p and its length in bytes. The text must be valid UTF-8 and p stand on a lead byte.
 */
static inline uint32_t utf8_get(const unsigned char *p, size_t *len)
{
    uint32_t c = p[0];
    if (c < 0x80) {
        *len = 1;
        return c;
    }
    if (c < 0xE0) {
        *len = 2;
        return (c & 0x1F) << 6 | (p[1] & 0x3Fu);
    }
    if (c < 0xF0) {
        *len = 3;
        return (c & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    }
    *len = 4;
    return (c & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

/* Writes a scalar value; returns 1..4 bytes. */
size_t utf8_put(char *out, uint32_t cp);

enum utf8_state { UTF8_VALID, UTF8_CUT, UTF8_INVALID };
/* Looks at the sequence that starts p[0..n), n >= 1. UTF8_VALID: *len bytes are a character.
 * UTF8_CUT: all n bytes begin a character that is not complete. UTF8_INVALID: *len bytes are a
 * maximal subpart of an ill-formed sequence (Unicode 16, §3.9, table 3-7). */
enum utf8_state utf8_look(const unsigned char *p, size_t n, size_t *len);

/* Bytes in front of the first ill-formed sequence: s.len when all of it is valid. *lead_max is the
 * greatest lead byte seen. */
size_t utf8_valid_prefix(struct str s, unsigned char *lead_max);

/* Work memory of nfc_normalize; zeroed at first, freed with nfc_buf_close. */
struct nfc_buf {
    uint32_t *cps, *sorted;
    size_t cap;
};
void nfc_buf_close(struct nfc_buf *buf); /* NULL is legal */

/* A place in the text that moves along: `at` is an input offset on entry and the output offset on
 * return; a place within a rewritten span moves to the span's end (`up`) or to its begin. */
struct nfc_mark {
    size_t at;
    bool up;
};

/* Length of the longest prefix that is known to be in NFC and to be left alone by what follows;
 * s.len when there is nothing to do. Valid UTF-8 only. */
size_t nfc_clean_prefix(struct str s);

enum { NFC_GROWTH_MAX = 3 }; /* UTF-8 bytes out per byte in (UAX #15, §7) */
/* Normalization Form C (UAX #15) of valid UTF-8 into out, which has room for NFC_GROWTH_MAX * s.len
 * bytes. Marks ascend by `at`. Returns the bytes written, or -1 when memory is refused. Linear. */
int64_t nfc_normalize(struct str s, char *out, struct nfc_buf *buf, struct nfc_mark *marks,
                      size_t n_marks) TR_MUSTCHECK;

#endif
