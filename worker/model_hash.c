/* model_hash: see model_hash.h. Cache: $XDG_CACHE_HOME/tranche/hashes (or ~/.cache/...), one line a
 * folder: "<hex> <stamp>", the stamp being a hash of path, names, sizes and times. A cache that
 * cannot be read or written costs a computation, nothing else. */
#include "worker/model_hash.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/log.h"
#include "engine/plain_file.h"
#include "worker/cache_folder.h"
#include "worker/job/text.h"

enum { FILES_MAX = 4096, BLOCK = 1 << 20 };

struct model_hash {
    pthread_t thread;
    atomic_bool ready;
    bool stop; /* written once, read by the thread between blocks */
    char dir[PATH_MAX], hex[65], stamp[65];
};

static int only_weights(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    return n > 12 && strcmp(e->d_name + n - 12, ".safetensors") == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name); /* not the locale's order */
}

/* SHA-256 of one file's bytes. */
static int hash_file(const char *path, uint8_t out[32], const bool *stop, struct err *err)
{
    int rc = E_OK;
    EVP_MD_CTX *h = EVP_MD_CTX_new();
    char *block = mem_alloc(BLOCK, 1);
    int fd = plain_file_open(AT_FDCWD, path); /* no FIFO is waited for */
    ssize_t n = 0;
    if (!h || !block || fd < 0 || EVP_DigestInit_ex(h, EVP_sha256(), NULL) != 1)
        rc = err_errno(err, E_FATAL, "%s: cannot hash", path);
    while (rc == E_OK && (n = read(fd, block, BLOCK)) > 0) {
        EVP_DigestUpdate(h, block, (size_t)n);
        if (__atomic_load_n(stop, __ATOMIC_RELAXED))
            rc = err_set(err, E_RETRY, "%s: stopped", path);
    }
    if (rc == E_OK && n < 0)
        rc = err_errno(err, E_FATAL, "%s: cannot read", path);
    if (rc == E_OK)
        EVP_DigestFinal_ex(h, out, NULL);
    if (fd >= 0)
        close(fd);
    mem_free(block);
    EVP_MD_CTX_free(h);
    return rc;
}

/* Over the folder's weight files: contents, or (stat_only) path, size and time. */
static int fold(const char *dir, char hex[65], bool stat_only, const bool *stop, struct err *err)
{
    struct dirent **files = NULL;
    struct text all = {0};
    int n = scandir(dir, &files, only_weights, by_name), rc = E_OK;
    if (n < 0)
        return err_errno(err, E_FATAL, "%s: cannot list", dir);
    if (n == 0 || n > FILES_MAX)
        rc = err_set(err, E_FATAL, "%s: want 1 to %d safetensors files, found %d", dir, FILES_MAX,
                     n);
    for (int i = 0; rc == E_OK && i < n; i++) {
        char path[PATH_MAX + 300], one[65];
        uint8_t sha[32];
        struct stat st = {0};
        snprintf(path, sizeof path, "%s/%s", dir, files[i]->d_name);
        if (stat_only) {
            rc = stat(path, &st) == 0 ? E_OK : err_errno(err, E_FATAL, "%s: cannot stat", path);
            text_f(&all, "%s %lld %lld.%09ld\n", path, (long long)st.st_size,
                   (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
        } else {
            rc = hash_file(path, sha, stop, err);
            sha256_hex(sha, one);
            text_f(&all, "%s %s\n", files[i]->d_name, one);
        }
    }
    uint8_t sha[32];
    sha256_of(text_view(&all), sha);
    sha256_hex(sha, hex);
    for (int i = 0; i < n; i++)
        free(files[i]);
    free(files);
    text_close(&all);
    return rc;
}

int model_hash_compute(const char *dir, char hex[65], const bool *stop, struct err *err)
{
    return fold(dir, hex, false, stop, err);
}

/* False: there is no home. */
static bool cache_path(char *out, size_t cap, const char *file)
{
    const char *folder = cache_folder();
    return folder && (size_t)snprintf(out, cap, "%s/%s", folder, file) < cap;
}

static bool cache_read(struct model_hash *h)
{
    char path[PATH_MAX], hex[65], line[200];
    if (!cache_path(path, sizeof path, h->stamp))
        return false;
    FILE *f = fopen(path, "re");
    bool found = f && fgets(line, sizeof line, f) && sscanf(line, "%64[0-9a-f]", hex) == 1 &&
                 strlen(hex) == 64;
    if (f)
        fclose(f);
    if (found)
        memcpy(h->hex, hex, sizeof hex);
    return found;
}

static void cache_write(const struct model_hash *h)
{
    char path[PATH_MAX], fresh[PATH_MAX + 32];
    if (!cache_path(path, sizeof path, h->stamp))
        return;
    snprintf(fresh, sizeof fresh, "%s.%d", path, (int)getpid());
    FILE *f = fopen(fresh, "we");
    if (!f)
        return;
    fprintf(f, "%s\n", h->hex);
    if (fclose(f) != 0 || rename(fresh, path) != 0)
        unlink(fresh);
}

static void *hash_main(void *arg)
{
    struct model_hash *h = arg;
    struct err err = {0};
    char hex[65];
    /* Linux keeps nice values by thread. */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
    int64_t start = clock_mono_ns(clock_system());
    int rc = model_hash_compute(h->dir, hex, &h->stop, &err);
    if (rc == E_OK) {
        memcpy(h->hex, hex, sizeof hex);
        atomic_store(&h->ready, true);
        cache_write(h);
        LOG(LOG_INFO, "model_hashed", LOG_S("sha256", h->hex),
            LOG_F("seconds", (double)(clock_mono_ns(clock_system()) - start) / 1e9));
    } else if (rc != E_RETRY) {
        LOG(LOG_WARN, "model_hash_failed", LOG_S("error", err.msg));
    }
    return NULL;
}

int model_hash_open(struct model_hash **out, const char *dir, struct err *err)
{
    struct model_hash *h = mem_alloc(1, sizeof *h);
    if (!h)
        return err_set(err, E_FATAL, "model hash: no memory");
    snprintf(h->dir, sizeof h->dir, "%s", dir);
    int rc = fold(dir, h->stamp, true, &h->stop, err);
    if (rc == E_OK && cache_read(h))
        atomic_store(&h->ready, true);
    else if (rc == E_OK && pthread_create(&h->thread, NULL, hash_main, h) != 0)
        rc = err_set(err, E_FATAL, "model hash: cannot start a thread");
    if (rc != E_OK) {
        mem_free(h);
        return rc;
    }
    *out = h;
    return E_OK;
}

const char *model_hash_get(void *model_hash)
{
    struct model_hash *h = model_hash;
    return h && atomic_load(&h->ready) ? h->hex : NULL;
}

void model_hash_close(struct model_hash *h)
{
    if (!h)
        return;
    __atomic_store_n(&h->stop, true, __ATOMIC_RELAXED);
    if (h->thread)
        pthread_join(h->thread, NULL);
    mem_free(h);
}
