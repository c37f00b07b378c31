/* model_hash: the SHA-256 that names a model folder's weights. Computed on a thread of its own at
 * low priority, so that it never delays a token, and kept in the user's cache folder by path, size
 * and time of change, so that it is computed once. */
#ifndef TRANCHE_WORKER_MODEL_HASH_H
#define TRANCHE_WORKER_MODEL_HASH_H

#include "engine/base.h"

struct model_hash;
/* Starts on `dir`. Takes a hash from the cache at once where it holds. */
int model_hash_open(struct model_hash **out, const char *dir, struct err *err) TR_MUSTCHECK;
/* 64 hex digits, or NULL while it is not known. Any thread. */
const char *model_hash_get(void *model_hash);
void model_hash_close(struct model_hash *h); /* stops early; NULL is legal */

/* SHA-256 over name and content hash of every *.safetensors file, in order of name. *stop ends it.
 */
int model_hash_compute(const char *dir, char hex[65], const bool *stop,
                       struct err *err) TR_MUSTCHECK;

/* Tells checkpoints apart in milliseconds, on every machine alike: SHA-256 over name, size, head
 * and samples of every *.safetensors file. Not a proof of equality: model_hash is. E_FATAL:
 * unreadable.
 */
int model_mark(const char *dir, char hex[65], struct err *err) TR_MUSTCHECK;

#endif
