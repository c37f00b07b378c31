/* cache_copy: see cache.h. One block at a time through hash and comparison to the volume. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/commands/cache.h"
#include "worker/commands/commands.h"
#include "worker/job/text.h"

enum { BLOCK = 1 << 20 };
static const int64_t TOLD_NS = 2000000000;

struct copying {
    int from, to;
    char from_path[PATH_MAX], to_path[PATH_MAX];
    int64_t at, bytes;
    int64_t there; /* bytes that the copy had before; what lies behind `at` is not compared yet */
    char *block, *old;
    EVP_MD_CTX *sha;
};

static void tell(struct cache_meter *m, const char *path, int64_t bytes)
{
    int64_t now = clock_mono_ns(clock_system());
    m->done += bytes;
    if (m->told_ns == 0)
        m->told_ns = now;
    if (now - m->told_ns < TOLD_NS)
        return;
    m->told_ns = now;
    LOG(LOG_INFO, m->what, LOG_S("file", path), LOG_I("bytes", m->done), LOG_I("of", m->of));
}

/* n bytes, or fewer at the file's end; -1 with errno. */
static ssize_t read_all(int fd, char *to, size_t n, int64_t at)
{
    size_t have = 0;
    while (have < n) {
        ssize_t got = pread(fd, to + have, n - have, at + (int64_t)have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        have += (size_t)got;
    }
    return (ssize_t)have;
}

static bool write_all(int fd, const char *from, size_t n, int64_t at)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pwrite(fd, from + done, n - done, at + (int64_t)done);
        if (got < 0 && errno != EINTR)
            return false;
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static EVP_MD_CTX *digest_open(void)
{
    EVP_MD_CTX *h = EVP_MD_CTX_new();
    if (h && EVP_DigestInit_ex(h, EVP_sha256(), NULL) == 1)
        return h;
    EVP_MD_CTX_free(h);
    return NULL;
}

static void digest_hex(EVP_MD_CTX *h, char hex[65])
{
    uint8_t sha[32];
    EVP_DigestFinal_ex(h, sha, NULL);
    sha256_hex(sha, hex);
}

int cache_hash(const char *path, char hex[65], struct cache_meter *m, struct err *err)
{
    EVP_MD_CTX *h = digest_open();
    char *block = mem_alloc(BLOCK, 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = E_OK;
    int64_t at = 0;
    ssize_t n = 0;
    if (fd < 0)
        rc = err_errno(err, E_FATAL, "%s: cannot read", path);
    else if (!h || !block)
        rc = err_set(err, E_FATAL, "%s: no memory to hash it", path);
    while (rc == E_OK && (n = read_all(fd, block, BLOCK, at)) > 0) {
        EVP_DigestUpdate(h, block, (size_t)n);
        at += n;
        tell(m, path, n);
    }
    if (rc == E_OK && n < 0)
        rc = err_errno(err, E_FATAL, "%s: cannot read byte %lld", path, (long long)at);
    if (rc == E_OK)
        digest_hex(h, hex);
    if (fd >= 0)
        close(fd);
    mem_free(block);
    EVP_MD_CTX_free(h);
    return rc;
}

static int copy_block(struct copying *k, struct err *err)
{
    size_t n = (size_t)TR_MIN((int64_t)BLOCK, k->bytes - k->at);
    ssize_t got = read_all(k->from, k->block, n, k->at);
    if (got < 0)
        return err_errno(err, E_FATAL, "%s: cannot read byte %lld", k->from_path, (long long)k->at);
    if ((size_t)got < n)
        return err_set(err, E_FATAL, "%s: want %lld bytes, found %lld: it changed meanwhile",
                       k->from_path, (long long)k->bytes, (long long)(k->at + got));
    EVP_DigestUpdate(k->sha, k->block, n);
    if (k->at < k->there && read_all(k->to, k->old, n, k->at) == (ssize_t)n &&
        memcmp(k->old, k->block, n) == 0) {
        k->at += (int64_t)n;
        return E_OK;
    }
    if (k->at < k->there && ftruncate(k->to, k->at) != 0)
        return command_output_failed(err, k->to_path, "shorten");
    k->there = TR_MIN(k->there, k->at);
    if (!write_all(k->to, k->block, n, k->at))
        return err_typed(err, E_FATAL, COMMAND_OUTPUT,
                         "%s: cannot write, %lld of %lld bytes are there: %s", k->to_path,
                         (long long)k->at, (long long)k->bytes, strerror(errno));
    k->at += (int64_t)n;
    return E_OK;
}

/* That the bytes are those of one state of the source: asked before the first and after the last.
 */
static int check_source(const struct copying *k, const struct cache_file *f, struct err *err)
{
    struct stat st;
    if (fstat(k->from, &st) != 0)
        return err_errno(err, E_FATAL, "%s", k->from_path);
    return cache_unchanged(f, k->from_path, &st, err);
}

static int copy_open(struct copying *k, const char *from, const char *to,
                     const struct cache_file *f, struct err *err)
{
    struct stat st;
    *k = (struct copying){.from = -1, .to = -1, .bytes = f->bytes};
    int a = snprintf(k->from_path, sizeof k->from_path, "%s/%s", from, f->name);
    int b = snprintf(k->to_path, sizeof k->to_path, "%s/%s", to, f->name);
    if (a >= PATH_MAX || b >= PATH_MAX)
        return err_set(err, E_FATAL, "%s: want paths below %d bytes", f->name, PATH_MAX);
    k->block = mem_alloc(BLOCK, 1);
    k->old = mem_alloc(BLOCK, 1);
    k->sha = digest_open();
    if (!k->block || !k->old || !k->sha)
        return err_set(err, E_FATAL, "%s: no memory to copy it", k->from_path);
    k->from = open(k->from_path, O_RDONLY | O_CLOEXEC);
    if (k->from < 0)
        return err_errno(err, E_FATAL, "%s: cannot read", k->from_path);
    int rc = check_source(k, f, err);
    if (rc < 0)
        return rc;
    k->to = open(k->to_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (k->to < 0 || fstat(k->to, &st) != 0)
        return command_output_failed(err, k->to_path, "write");
    k->there = st.st_size;
    if (k->there > k->bytes) {
        k->there = k->bytes;
        if (ftruncate(k->to, k->bytes) != 0)
            return command_output_failed(err, k->to_path, "shorten");
    }
    return cache_set_mode(k->to, k->to_path, 0644, err);
}

/* On the volume, and read from there again, not from this machine's memory. */
static int check_copy(struct copying *k, struct cache_file *f, struct cache_meter *checked,
                      struct err *err)
{
    char back[65];
    digest_hex(k->sha, f->sha256);
    if (*f->blob && strcmp(f->blob, f->sha256) != 0)
        return err_set(err, E_FATAL,
                       "%s: want sha256 %s, as its blob is named, found %s: fetch it again",
                       f->name, f->blob, f->sha256);
    if (fsync(k->to) != 0)
        return command_output_failed(err, k->to_path, "sync");
    posix_fadvise(k->to, 0, 0, POSIX_FADV_DONTNEED);
    int rc = cache_hash(k->to_path, back, checked, err);
    if (rc >= 0 && strcmp(back, f->sha256) != 0)
        rc = err_typed(err, E_FATAL, COMMAND_OUTPUT,
                       "%s: want sha256 %s, as it was written, read back %s", f->name, f->sha256,
                       back);
    return rc;
}

int cache_copy(const char *from, const char *to, struct cache_file *f, struct cache_meter *copied,
               struct cache_meter *checked, struct err *err)
{
    struct copying k;
    int rc = copy_open(&k, from, to, f, err);
    while (rc == E_OK && k.at < k.bytes) {
        int64_t before = k.at;
        rc = copy_block(&k, err);
        tell(copied, k.to_path, k.at - before);
    }
    if (rc == E_OK)
        rc = check_source(&k, f, err);
    if (rc == E_OK)
        rc = check_copy(&k, f, checked, err);
    if (k.from >= 0)
        close(k.from);
    if (k.to >= 0 && close(k.to) != 0 && rc == E_OK)
        rc = command_output_failed(err, k.to_path, "write");
    mem_free(k.block);
    mem_free(k.old);
    EVP_MD_CTX_free(k.sha);
    return rc;
}
