/* spool_impl: what spool.c and spool_replay.c share. Nobody else includes this. */
#ifndef TRANCHE_WORKER_SINK_SPOOL_IMPL_H
#define TRANCHE_WORKER_SINK_SPOOL_IMPL_H

#include "worker/sink/spool.h"

enum { SPOOL_DIR_MAX = 3072, SPOOL_PATH_MAX = SPOOL_DIR_MAX + 32 };

struct spool {
    char dir[SPOOL_DIR_MAX];
    struct spool_owner owner;
    int64_t limit, bytes;      /* of all segments */
    uint32_t first, next, own; /* segments first..next-1; from `own` on written by this process */
    int lock, dir_fd, fd;      /* fd: the segment that is being written (next - 1), or -1 */
    int64_t length;            /* of that one */
    int64_t owed;              /* rows of this process that are not committed yet */
    struct text buffer;
};
/* DIR/00000017.SUFFIX */
void spool_path(const struct spool *s, uint32_t number, const char *suffix,
                char out[SPOOL_PATH_MAX]);
int64_t spool_size(const struct spool *s, uint32_t number); /* bytes; -1: not there */
void spool_remove(struct spool *s, uint32_t number);
void spool_end_segment(struct spool *s); /* the next append begins a new one */
/* The owner's record at the head of a segment: the place behind it; 0: cannot be read; E_USAGE:
 * another's. */
int spool_owner_check(const char *path, struct str bytes, const struct spool_owner *want,
                      struct err *err) TR_MUSTCHECK;

#endif
