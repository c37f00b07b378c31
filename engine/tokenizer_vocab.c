/* tokenizer_vocab: tokens by id, by key and by pair, and the byte-level alphabet. */
#include "engine/tokenizer_impl.h"

struct str tokenizer_key(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || id >= t->n_tokens || !(t->tokens[id].flags & TOKEN_PRESENT))
        return (struct str){NULL, 0};
    return (struct str){t->blob + t->tokens[id].key, t->tokens[id].key_len};
}

struct str tokenizer_text(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || id >= t->n_tokens || !(t->tokens[id].flags & TOKEN_PRESENT))
        return (struct str){NULL, 0};
    return (struct str){t->blob + t->tokens[id].text, t->tokens[id].text_len};
}

uint64_t tokenizer_hash(const char *ptr, size_t len)
{
    uint64_t low = 0, high = 0, h = 0;
    if (len < 16) {
        memcpy(&low, ptr, TR_MIN(len, 8));
        if (len > 8)
            memcpy(&high, ptr + 8, len - 8);
        return hash_words(low, high | (uint64_t)len << 56);
    }
    for (size_t i = 0; i + 16 <= len; i += 16) {
        memcpy(&low, ptr + i, 8);
        memcpy(&high, ptr + i + 8, 8);
        h = hash_words(low ^ h, high);
    }
    memcpy(&low, ptr + len - 16, 8);
    memcpy(&high, ptr + len - 8, 8);
    return hash_words(low ^ h, high ^ len);
}

int32_t tokenizer_find(const struct tokenizer *t, struct str key, bool raw)
{
    uint64_t hash = tokenizer_hash(key.ptr, key.len);
    uint32_t tag = (uint32_t)(hash >> 32);
    uint32_t i = (uint32_t)hash & t->slot_mask;
    for (int probes = 0; probes < TOKENIZER_PROBES_MAX; probes++, i = (i + 1) & t->slot_mask) {
        int32_t id = t->slots[i].id;
        if (id < 0)
            break;
        if (t->slots[i].tag == tag && ((t->tokens[id].flags & TOKEN_RAW) != 0) == raw &&
            str_eq(tokenizer_key(t, id), key))
            return id;
    }
    return -1;
}

bool tokenizer_slot_add(struct tokenizer *t, int32_t id)
{
    struct str key = tokenizer_key(t, id);
    uint64_t hash = tokenizer_hash(key.ptr, key.len);
    uint32_t i = (uint32_t)hash & t->slot_mask;
    for (int probes = 0; probes < TOKENIZER_PROBES_MAX; probes++, i = (i + 1) & t->slot_mask) {
        if (t->slots[i].id < 0) {
            t->slots[i] = (struct token_slot){(uint32_t)(hash >> 32), id};
            return true;
        }
    }
    return false;
}

uint64_t tokenizer_pair(const struct tokenizer *t, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    uint32_t i = (uint32_t)(hash >> 32) & t->pair_mask;
    for (int probes = 0; probes < TOKENIZER_PROBES_MAX; probes++, i = (i + 1) & t->pair_mask) {
        if (t->pairs[i].key == key)
            return t->pairs[i].value;
        if (t->pairs[i].key == UINT64_MAX)
            break;
    }
    return UINT64_MAX;
}

/* Byte-level BPE writes each byte as one visible character: 0x21-7E, A1-AC and AE-FF stand for
 * themselves, the other 68 bytes follow in order from U+0100. Returns the byte or -1. */
static int byte_of(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xFF && cp != 0xAD))
        return (int)cp;
    if (cp < 0x100 || cp >= 0x100 + 68)
        return -1;
    cp -= 0x100;
    if (cp <= 0x20)
        return (int)cp;
    if (cp <= 0x21 + 0xA0 - 0x7F)
        return (int)(cp - 0x21 + 0x7F);
    return 0xAD;
}

bool tokenizer_unmap(struct str s, char *out, size_t *len)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t used = 0, step;
    for (size_t i = 0; i < s.len; i += step) {
        int byte = byte_of(utf8_get(p + i, &step));
        if (byte < 0) {
            memcpy(out, s.ptr, s.len);
            *len = s.len;
            return false;
        }
        out[used++] = (char)byte;
    }
    *len = used;
    return true;
}

uint32_t tokenizer_blob_add(struct tokenizer *t, struct str s)
{
    CHECK(s.len <= t->blob_cap - t->blob_used);
    uint32_t at = (uint32_t)t->blob_used;
    if (s.len)
        memcpy(t->blob + at, s.ptr, s.len);
    t->blob_used += s.len;
    return at;
}
