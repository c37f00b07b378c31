/* tokenizer_impl: what the tokenizer's files share. Nothing outside engine/tokenizer*.c and the
 * tokenizer's own tests includes it. */
#ifndef TRANCHE_ENGINE_TOKENIZER_IMPL_H
#define TRANCHE_ENGINE_TOKENIZER_IMPL_H

#include "engine/json.h"
#include "engine/tokenizer.h"
#include "engine/unicode.h"

enum {
    TOKENIZER_IDS_MAX = 1 << 21,  /* largest id + 1; real vocabularies stay below 300,000 */
    TOKENIZER_ADDED_MAX = 16384,  /* added tokens; real vocabularies have up to a few thousand */
    TOKENIZER_TEXT_MAX = 1 << 28, /* bytes of one text: positions are 32 bits */
    TOKENIZER_TEMPLATE_MAX = 8,   /* ids in front of or behind a text */
    /* Slots that one key or pair may be away from its own. Tables are at most three quarters full:
     * of 2^21 keys one in 10^10 times the farthest is beyond 600. */
    TOKENIZER_PROBES_MAX = 1024,
    BPE_SHORT_MAX = 64, /* symbols: up to here a plain scan beats a heap */
    WORD_KEY_MAX = 31,  /* bytes: longer pre-tokens are not cached */
    WORD_IDS_MAX = 7,
    WORD_CACHE_BITS = 14, /* 1 MiB a thread */
};

/* How a text is cut in front of BPE: the one known set of regular expressions each stands for. */
enum split_kind {
    SPLIT_NONE,     /* the whole text is one piece */
    SPLIT_QWEN2,    /* single digits */
    SPLIT_LLAMA3,   /* the same with up to three digits */
    SPLIT_DEEPSEEK, /* three expressions, one after the other */
    SPLIT_GPT2,     /* ByteLevel's own (use_regex) */
    SPLIT_WORDS,    /* SentencePiece style: in front of each run of U+2581, where that is exact */
};

enum token_flag {
    TOKEN_PRESENT = 1,
    TOKEN_RAW = 2,     /* key holds characters outside the byte alphabet: no text ever maps to it */
    TOKEN_WHOLE = 4,   /* a piece equal to this token encodes to it alone */
    TOKEN_SPECIAL = 8, /* dropped by skip_special */
    TOKEN_BYTE = 16,   /* <0xXX> of byte fallback */
};

/* key: what encoding looks up; text: what decoding writes. Offsets into tokenizer.blob. */
struct token {
    uint32_t key, text;
    uint16_t key_len, text_len;
    uint8_t flags;
};

/* Open-addressing tables, power-of-two sizes, at most half full. */
struct token_slot {
    uint32_t tag; /* upper half of the hash */
    int32_t id;   /* -1: free */
};
struct pair_slot {
    uint64_t key;   /* left << 32 | right; UINT64_MAX: free */
    uint64_t value; /* rank << 32 | resulting id */
};

struct added_token {
    struct str content; /* as in the file */
    struct str pattern; /* what is looked for: content, normalized where the token says so */
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};
/* Trie of added tokens: children of a node are a list linked by `next`. */
struct added_node {
    uint32_t child, next; /* 0: none */
    int32_t token;        /* index into tokenizer.added, or -1 */
    unsigned char byte;
};
struct added_set {
    struct added_node *nodes; /* [0] is the root */
    uint32_t n_nodes;
    uint32_t first[256]; /* root's child by first byte, 0: none */
    int only;            /* the only first byte there is, or -1 */
};

struct tokenizer {
    char *blob; /* keys and texts of all tokens, contents of added tokens, names */
    size_t blob_used, blob_cap;
    struct token *tokens; /* [n_tokens], holes have no TOKEN_PRESENT */
    int32_t n_tokens;
    struct token_slot *slots;
    uint32_t slot_mask;
    struct pair_slot *pairs;
    uint32_t pair_mask;
    int32_t byte_id[256]; /* id of each byte's own symbol, or of <0xXX> */
    uint64_t *byte_pair;  /* byte-level: tokenizer_pair of the symbols of two bytes [256*256] */

    struct added_token *added;
    int32_t n_added;
    struct added_set raw, normalized; /* matched before and after the normalizer */

    bool byte_level; /* else SentencePiece style with byte fallback */
    bool nfc;
    bool metaspace; /* prepend U+2581, then replace every space by it */
    bool ignore_merges;
    enum split_kind split;

    bool has_template;
    int32_t before[TOKENIZER_TEMPLATE_MAX], after[TOKENIZER_TEMPLATE_MAX];
    int n_before, n_after;
    bool add_bos, add_eos; /* tokenizer_config.json; they count where there is no template */
    int32_t bos_id, eos_id;
    struct str named[4]; /* bos, eos, pad, unk: texts in blob */
};

struct word_entry { /* 64 bytes, one cache line */
    uint64_t
        key[4]; /* the pre-token's bytes, its length in the top byte of the last word; 0: free */
    int32_t ids[WORD_IDS_MAX];
    int32_t n;
};

/* A range [begin, end) of the text in which added tokens are looked for. */
struct text_range {
    size_t begin, end;
};

/* Memory that grows with the longest text seen and is kept. */
struct grow {
    void *ptr;
    size_t cap;
};

struct tokenizer_scratch {
    struct word_entry *words;
    struct grow joined, normal; /* char: concatenated pieces; normalized text */
    struct grow ids;            /* int32_t: symbols of one piece */
    struct grow links, heap;    /* BPE of long pieces */
    struct grow ranges, inner;  /* struct text_range */
    struct grow marks;          /* struct nfc_mark */
    struct nfc_buf nfc;
};
/* Room for n items of `size` bytes; contents are lost when it grows. NULL when memory is refused.
 */
void *grow_reserve(struct grow *g, size_t n, size_t size);

/* ---- tokenizer.c ---- */
/* tokenizer_open from memory. config.ptr == NULL: there is no tokenizer_config.json. */
int tokenizer_parse(struct tokenizer **out, struct str json, struct str config,
                    struct err *err) TR_MUSTCHECK;

/* ---- tokenizer_json.c: the two huge sections, read without a tree ---- */
struct json_span {
    size_t begin, end; /* of the value in the document; 0,0: absent */
    size_t n_strings;  /* inside it */
};
struct tokenizer_spans {
    struct json_span vocab, merges;
};
/* Finds model.vocab and model.merges and copies the document without their contents ("{}", "[]")
 * into rest, which has room for json.len bytes; returns the bytes written. Checks no more than it
 * must to find them: the caller parses the rest strictly, the readers below check the spans. */
size_t tokenizer_json_cut(struct str json, struct tokenizer_spans *spans, char *rest);
/* Fills t->tokens, slots, blob. */
int tokenizer_read_vocab(struct tokenizer *t, struct str json, const struct json_span *span,
                         int32_t n_added_max, struct err *err) TR_MUSTCHECK;
/* Fills t->pairs. */
int tokenizer_read_merges(struct tokenizer *t, struct str json, const struct json_span *span,
                          struct err *err) TR_MUSTCHECK;

/* ---- tokenizer_config.c: everything else ---- */
int tokenizer_read_pipeline(struct tokenizer *t, const json_t *doc, struct err *err) TR_MUSTCHECK;
int tokenizer_read_post(struct tokenizer *t, const json_t *doc, struct err *err) TR_MUSTCHECK;
int tokenizer_read_config(struct tokenizer *t, const json_t *config, struct err *err) TR_MUSTCHECK;
/* "tokenizer.json: FIELD: want WANT, file has VALUE" */
int tokenizer_bad_field(struct err *err, const char *field, const char *want, const json_t *have);

/* ---- tokenizer_vocab.c: tokens by id, key and pair ---- */
struct str tokenizer_key(const struct tokenizer *t, int32_t id);
struct str tokenizer_text(const struct tokenizer *t, int32_t id);
static inline uint64_t hash_words(uint64_t a, uint64_t b)
{
    unsigned __int128 m = (unsigned __int128)(a ^ 0x9E3779B97F4A7C15u) * (b ^ 0xD1B54A32D192ED03u);
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}
uint64_t tokenizer_hash(const char *ptr, size_t len);
/* The token with this key, or -1. `raw` as TOKEN_RAW. */
int32_t tokenizer_find(const struct tokenizer *t, struct str key, bool raw);
/* rank << 32 | id, or UINT64_MAX. */
uint64_t tokenizer_pair(const struct tokenizer *t, int32_t left, int32_t right);
/* Byte-level form of a token's string: out[0..*len) gets its bytes and the result is true, or the
 * string holds a character outside the alphabet (or lies in a SentencePiece-style file), is copied
 * as it is, and the result is false. out has room for s.len bytes. */
bool tokenizer_unmap(struct str s, char *out, size_t *len);
/* Appends to blob, which has the room. */
uint32_t tokenizer_blob_add(struct tokenizer *t, struct str s);
/* False where TOKENIZER_PROBES_MAX slots are taken: keys made to collide. */
bool tokenizer_slot_add(struct tokenizer *t, int32_t id) TR_MUSTCHECK;

/* ---- tokenizer_split.c ---- */
/* Finds the split of a list of regular expressions; SPLIT_NONE when it is none that we know. */
enum split_kind split_find(const char *const *patterns, size_t n);
struct splitter {
    const unsigned char *at, *end;
    const unsigned char *segment_end; /* DeepSeek: end of the piece that the first two cuts left */
    enum split_kind kind;
};
/* Length of the next piece; call while at < end. Moves `at`. */
size_t split_next(struct splitter *s);

/* ---- tokenizer_bpe.c ---- */
/* Ids of one piece, cache aside, in s->ids. Returns the count or -1 when memory is refused. */
int64_t bpe_piece(const struct tokenizer *t, struct tokenizer_scratch *s, struct str piece);
/* Fills byte_pair. */
int bpe_build(struct tokenizer *t, struct err *err) TR_MUSTCHECK;
/* Sets TOKEN_WHOLE for every token that BPE rebuilds from its own bytes. */
void bpe_mark_whole(struct tokenizer *t);

/* ---- tokenizer_added.c ---- */
int added_read(struct tokenizer *t, const json_t *doc, struct err *err) TR_MUSTCHECK;
int added_build(struct tokenizer *t, struct err *err) TR_MUSTCHECK;
struct added_match {
    size_t begin, end; /* with the spaces that lstrip and rstrip take */
    size_t next;       /* where the search goes on */
    int32_t id;
};
/* The first match in text[from..to) that stands (single_word looks beyond the range; lstrip does
 * not reach back past `floor`). False when there is none. */
bool added_next(const struct tokenizer *t, const struct added_set *set, struct str text,
                size_t from, size_t to, size_t floor, struct added_match *match);

#endif
