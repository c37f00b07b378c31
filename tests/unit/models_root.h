/* models_root: a folder for the models that a test makes. Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_MODELS_ROOT_H
#define TRANCHE_TESTS_MODELS_ROOT_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "engine/log.h"

static char root[] = "/tmp/tranche_models_XXXXXX";

/* Both are fixtures of a group too. 0, or -1: the folder cannot be made or removed. */
static int models_root_make(void **state)
{
    (void)state;
    log_setup(LOG_ERROR, LOG_LOGFMT, 2);
    return mkdtemp(root) ? 0 : -1;
}

static int models_root_remove_one(const char *path, const struct stat *st, int kind,
                                  struct FTW *ftw)
{
    (void)st, (void)kind, (void)ftw;
    return remove(path);
}

static int models_root_remove(void **state)
{
    (void)state;
    return nftw(root, models_root_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
