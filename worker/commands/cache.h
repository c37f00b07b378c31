/* cache: what `tranche cache` copies of a model folder, how one file is copied and proven, and the
 * manifest beside the copies. */
#ifndef TRANCHE_WORKER_COMMANDS_CACHE_H
#define TRANCHE_WORKER_COMMANDS_CACHE_H

#include <sys/stat.h>

#include "engine/model.h"

#define CACHE_MANIFEST "tranche-cache.json"
enum { CACHE_NAME_CAP = 128 };

struct cache_file {
    char name[CACHE_NAME_CAP]; /* within the folder */
    int64_t bytes;
    char modified[40]; /* of the source's file: "seconds.nanoseconds" */
    char blob[65];     /* the SHA-256 that a hub's blob is named by; "": none */
    char sha256[65];   /* of the bytes; "": not known yet */
};
struct cache_list {
    struct cache_file *files; /* by rising name */
    size_t n;
    int64_t bytes;
};
void cache_list_close(struct cache_list *l); /* zeroed is legal */
/* The files that opening the model folder `dir` reads: configuration, tokenizer, template, index,
 * and of the weights those that `m`, opened from it, has. Links are followed. E_FATAL naming the
 * file: one that cannot be read, or is no file. */
int cache_list_source(struct cache_list *out, const char *dir, const struct model *m,
                      struct err *err) TR_MUSTCHECK;
/* Whether the source's file is still the one that was listed, by size and time. E_FATAL: it changed
 * meanwhile; names both. */
int cache_unchanged(const struct cache_file *f, const char *path, const struct stat *now,
                    struct err *err) TR_MUSTCHECK;
/* The same for each file of the folder `from`, by its name: files of two revisions are no model. */
int cache_all_unchanged(const struct cache_list *l, const char *from, struct err *err) TR_MUSTCHECK;
/* Gives what `fd` is open on the mode, whatever the umask was: who reads a volume is seldom who
 * wrote it. A file system that has modes of its own may grant more. As command_output_failed. */
int cache_set_mode(int fd, const char *path, mode_t mode, struct err *err) TR_MUSTCHECK;
/* NULL: none of that name. */
struct cache_file *cache_list_find(const struct cache_list *l, const char *name);
/* SHA-256 over name and sha256 of each file. */
void cache_list_sha256(const struct cache_list *l, char hex[65]);

/* Writes dir/CACHE_MANIFEST, readable by all and synced. Errors: as command_output_failed. */
int cache_manifest_write(const struct cache_list *l, const char *dir, struct err *err) TR_MUSTCHECK;
/* 1: read; 0: the folder has none. E_FATAL: it is not what cache_manifest_write writes. */
int cache_manifest_read(struct cache_list *out, const char *dir, struct err *err) TR_MUSTCHECK;

/* Bytes done, told every two seconds as the event `what`. */
struct cache_meter {
    const char *what;
    int64_t done, of, told_ns;
};
/* SHA-256 of a file's bytes. E_FATAL. */
int cache_hash(const char *path, char hex[65], struct cache_meter *m, struct err *err) TR_MUSTCHECK;
/* Copies from/NAME to to/NAME. What is there already is compared, and kept as far as it is equal.
 * Then the copy is synced, read again from the volume and held against what was read of the source;
 * f->sha256 is filled in. The copy can be read by all. E_FATAL: the source cannot be read, changed
 * since it was listed, or is not what its blob's name says; as command_output_failed: the copy. */
int cache_copy(const char *from, const char *to, struct cache_file *f, struct cache_meter *copied,
               struct cache_meter *checked, struct err *err) TR_MUSTCHECK;

/* Whether the folder `dest` holds what `source`, listed from the folder `from`, names: by dest's
 * manifest, or by its bytes where it has none. A source's file is read where neither its blob's
 * name nor size and time say what is in it. E_OK: equal; E_FATAL naming the file and both hashes.
 */
int cache_compare(struct cache_list *source, const char *from, const char *dest,
                  struct err *err) TR_MUSTCHECK;
/* E_FATAL naming a file that opening `dest` reads, as `read` lists it, and that `source` lacks. */
int cache_compare_names(const struct cache_list *read, const struct cache_list *source,
                        const char *dest, struct err *err) TR_MUSTCHECK;

#endif
