/* plain_file: opens the files of a model, which others may hold or have put there. */
#ifndef TRANCHE_ENGINE_PLAIN_FILE_H
#define TRANCHE_ENGINE_PLAIN_FILE_H

#include "engine/base.h"

/* Opens `path` (relative to the folder `dir`, or AT_FDCWD) to read, as open(2). A FIFO is not
 * waited for: it opens at once, for the caller to refuse by fstat. A regular file under a lease of
 * another process (a file server's) is waited for: its holder gives it up, or the kernel takes it
 * after fs.lease-break-time (45 s). Returns a descriptor, which the caller closes; -1 with errno.
 */
int plain_file_open(int dir, const char *path) TR_MUSTCHECK;

#endif
