/* parked_state: a sequence that was taken off an engine between two tokens, as bytes for the
 * `parked` table. Pure functions over bytes and caller's arrays.
 *
 * Format, little-endian, version 1:
 *   0  "TPK" and the version as one byte
 *   4  u8 n_top + 1 (0: no logprobs) · u8 prompt_top + 1 (0: none) · u16 zero
 *   8  u32 n ids · u32 prompt ids whose logprobs follow (0 without prompt_top)
 *  16  i64 device_ns · i64 started_ns · u32 n_cached · u32 zero
 *  40  request_sha256 [32] · engine_sha256 [32]
 * 104  ids as LEB128 [n] · logprobs f32 [n] · top ids LEB128 [n, n_top] · top logprobs f32
 *      [n, n_top] · of the prompt: logprobs f32 · top ids LEB128 · top logprobs f32
 *  end  the first 8 bytes of the SHA-256 over everything before
 * Which token comes next, thinking, penalties, stop strings and the RNG follow from these ids and
 * the request (sampling.h), so nothing else is kept. */
#ifndef TRANCHE_WORKER_JOB_PARKED_STATE_H
#define TRANCHE_WORKER_JOB_PARKED_STATE_H

#include "engine/engine.h"
#include "worker/job/text.h"

/* What a state belongs to; another one of any of these must not go on from it. */
struct parked_shape {
    uint8_t request_sha256[32];
    uint8_t engine_sha256[32]; /* parked_engine_sha256 */
    int32_t n_top, prompt_top; /* of the sampling: -1: none */
    int32_t n_prompt;
};
/* What the row will tell of the sequence's earlier life. */
struct parked_life {
    int64_t device_ns;
    int64_t started_ns; /* wall clock; 0: never */
    int32_t n_cached;
};

/* Names everything but the request that the next token depends on. weights: any text that tells
 * checkpoints apart; NULL counts as empty. */
void parked_engine_sha256(const char *fingerprint, const char *config_revision, const char *weights,
                          uint8_t out[32]);

/* Appends the state to *out (out->failed: memory was refused). Returns the bytes appended. */
size_t parked_state_write(struct text *out, const struct parked_shape *shape,
                          const struct parked_life *life, const struct generated *g);

/* Fills *life and g's arrays and n; g->cap is the room, g's other pointers are set where the shape
 * asks for them. Errors: E_JOB with a type, and g->n is then 0: "broken_state" (length, checksum,
 * number out of range), "other_version", "other_request" (hash or shape), "other_engine"
 * (fingerprint, config revision or weights), "no_room" (more ids than cap). */
int parked_state_read(struct str bytes, const struct parked_shape *want, struct parked_life *life,
                      struct generated *g, struct err *err) TR_MUSTCHECK;

#endif
