/* tokenizer: text <-> token ids with the semantics of a Hugging Face tokenizer.json.
 * Byte-level BPE (Qwen2, Llama 3, DeepSeek-V3 splits) and SentencePiece-style BPE with byte
 * fallback. Ids equal Hugging Face's `tokenizers` on every valid UTF-8 input; no regex engine; time
 * is linear in the input (BPE on one piece is O(n log n)). Everything not understood is an error at
 * open that names file, field and value.
 *
 * Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units" (BPE).
 * An open tokenizer is read-only: share it between threads. Each encoding thread brings its own
 * tokenizer_scratch, which also holds that thread's word cache (the cache never changes a result).
 */
#ifndef TRANCHE_ENGINE_TOKENIZER_H
#define TRANCHE_ENGINE_TOKENIZER_H

#include "engine/base.h"

struct tokenizer;
struct tokenizer_scratch;

/* Reads tokenizer.json and, where present, tokenizer_config.json of a model folder.
 * Errors: E_FATAL naming file, field, both values. On success *out is owned by the caller. */
int tokenizer_open(struct tokenizer **out, const char *model_dir, struct err *err) TR_MUSTCHECK;
void tokenizer_close(struct tokenizer *t); /* NULL is legal */

/* Scratch memory of one thread; NULL when memory is refused. */
struct tokenizer_scratch *tokenizer_scratch_open(const struct tokenizer *t);
void tokenizer_scratch_close(struct tokenizer_scratch *s); /* NULL is legal */

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL =
        1,                    /* post-processor, or bos where tokenizer_config says add_bos_token */
    TOKENIZER_PLAIN_TEXT = 2, /* added tokens in the text are plain text: no token injection */
};
/* Encodes valid UTF-8 (NULs allowed). Returns the number of ids the text has; only the first `cap`
 * are written, so a return value above cap means: call again with more room. E_JOB when `text` is
 * no valid UTF-8, or E_RETRY when memory is refused. */
int64_t tokenizer_encode(const struct tokenizer *t, struct tokenizer_scratch *s, struct str text,
                         unsigned flags, int32_t *ids, size_t cap, struct err *err) TR_MUSTCHECK;

/* A piece of text with its own flags: the chat template's output with message contents marked. */
struct tokenizer_piece {
    struct str text;
    bool plain; /* added tokens inside are plain text */
};
/* Encodes the concatenation of pieces. Splitting at added tokens happens in non-plain pieces only;
 * text on both sides of a plain/non-plain edge still joins in one pre-token, so with no added token
 * in any plain piece the ids equal those of the concatenated text. Returns as tokenizer_encode. */
int64_t tokenizer_encode_pieces(const struct tokenizer *t, struct tokenizer_scratch *s,
                                const struct tokenizer_piece *pieces, size_t n_pieces,
                                unsigned flags, int32_t *ids, size_t cap,
                                struct err *err) TR_MUSTCHECK;

/* ---- ids -> text ---- */
enum {
    TOKENIZER_TOKEN_BYTES_MAX = 1024
}; /* longest token any tokenizer may hold, checked at open */

/* The exact bytes of one id: may be half a character. {NULL,0} for ids without a token (padding
 * rows of the embedding). For SentencePiece-style vocabularies a leading space is kept; the caller
 * of tokenizer_decode gets it stripped. Borrowed until close. */
struct str tokenizer_token_bytes(const struct tokenizer *t, int32_t id);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

/* Decodes as Hugging Face's decode does: bytes concatenated, every maximal invalid subpart replaced
 * by U+FFFD. Returns the bytes the text has; at most `cap` are written, no NUL is added. A return
 * above cap means: call again with more room. clean_up_tokenization_spaces is never applied. */
size_t tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                        char *buf, size_t cap);

/* Id of an added token or vocabulary entry by its exact text ("</think>"); -1 when there is none.
 */
int32_t tokenizer_token_id(const struct tokenizer *t, struct str text);

/* Highest id + 1 that has a token (151,665 for R1-Distill-Qwen, whose embedding has 151,936 rows).
 */
int32_t tokenizer_vocab_size(const struct tokenizer *t);

/* From tokenizer_config.json (or the post-processor); -1 when absent. */
int32_t tokenizer_bos_id(const struct tokenizer *t);
int32_t tokenizer_eos_id(const struct tokenizer *t);

/* Named special tokens for the chat template ("bos_token", "eos_token", "pad_token", "unk_token"):
 * their text, {NULL,0} when the config has none. Borrowed until close. */
struct str tokenizer_named_token(const struct tokenizer *t, const char *name);

/* Replaces every maximal invalid UTF-8 subpart by U+FFFD (Unicode 16, §3.9). *changed says whether
 * anything was replaced. Returns as tokenizer_decode. */
size_t utf8_repair(struct str bytes, char *buf, size_t cap, bool *changed);

#endif
