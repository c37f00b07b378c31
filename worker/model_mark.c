/* model_mark: see model_hash.h. Of each file: the first 64 KiB (the head with its offsets) and 512
 * pieces of 64 bytes spread evenly. A fine-tuned checkpoint differs nearly everywhere, one with a
 * merged adapter in every twentieth weight or more, so that all 512 would have to miss. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/plain_file.h"
#include "worker/job/text.h"
#include "worker/model_hash.h"

enum { HEAD_BYTES = 64 << 10, PIECES = 512, PIECE_BYTES = 64, FILES_MAX = 4096 };

static int only_weights(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    return n > 12 && strcmp(e->d_name + n - 12, ".safetensors") == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name); /* not the locale's order */
}

static void add_piece(struct text *t, int fd, int64_t at, size_t bytes, bool *failed)
{
    char *to = text_room(t, bytes);
    ssize_t n = to ? pread(fd, to, bytes, at) : -1;
    *failed = *failed || n < 0;
    t->len += n > 0 ? (size_t)n : 0;
}

/* SHA-256 of what is looked at of one file. */
static int mark_file(const char *path, struct text *scratch, char hex[65], struct err *err)
{
    uint8_t sha[32];
    struct stat st;
    bool failed = false;
    int fd = plain_file_open(AT_FDCWD, path); /* no FIFO is waited for */
    if (fd < 0 || fstat(fd, &st) != 0) {
        int rc = err_errno(err, E_FATAL, "%s: cannot read", path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    text_reset(scratch);
    text_f(scratch, "%lld\n", (long long)st.st_size);
    add_piece(scratch, fd, 0, HEAD_BYTES, &failed);
    for (int64_t i = 1; i <= PIECES; i++)
        add_piece(scratch, fd, (int64_t)st.st_size / (PIECES + 1) * i, PIECE_BYTES, &failed);
    close(fd);
    sha256_of(text_view(scratch), sha);
    sha256_hex(sha, hex);
    return failed || scratch->failed ? err_set(err, E_FATAL, "%s: cannot read", path) : E_OK;
}

int model_mark(const char *dir, char hex[65], struct err *err)
{
    struct dirent **files = NULL;
    struct text all = {0}, scratch = {0};
    int n = scandir(dir, &files, only_weights, by_name), rc = E_OK;
    if (n < 0)
        return err_errno(err, E_FATAL, "%s: cannot list", dir);
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX + 300], one[65];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]->d_name);
        if (rc == E_OK)
            rc = mark_file(path, &scratch, one, err);
        if (rc == E_OK)
            text_f(&all, "%s %s\n", files[i]->d_name, one);
        free(files[i]);
    }
    free(files);
    uint8_t sha[32];
    sha256_of(text_view(&all), sha);
    sha256_hex(sha, hex);
    text_close(&scratch);
    text_close(&all);
    return rc;
}
