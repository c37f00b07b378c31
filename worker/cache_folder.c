/* cache_folder: see cache_folder.h. */
#include "worker/cache_folder.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char folder[PATH_MAX];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find(void)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (base && base[0] == '/')
        snprintf(folder, sizeof folder, "%s", base);
    else if (home && home[0] == '/')
        snprintf(folder, sizeof folder, "%s/.cache", home);
    else
        return;
    mkdir(folder, 0700);
    size_t n = strlen(folder);
    snprintf(folder + n, sizeof folder - n, "/tranche");
    mkdir(folder, 0700);
}

const char *cache_folder(void)
{
    pthread_once(&once, find);
    return folder[0] ? folder : NULL;
}
