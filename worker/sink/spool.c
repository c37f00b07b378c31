/* spool: see spool.h. Replaying is in spool_replay.c. */
#include "worker/sink/spool_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"

enum { LOCK_TRIES = 20 };
static const int64_t LOCK_PAUSE_NS = 100000000;
static const size_t WRITE_BYTES = 1 << 20, SEGMENT_BYTES = 16 << 20;

void spool_path(const struct spool *s, uint32_t number, const char *suffix,
                char out[SPOOL_PATH_MAX])
{
    snprintf(out, SPOOL_PATH_MAX, "%s/%08u.%s", s->dir, number, suffix);
}

int64_t spool_size(const struct spool *s, uint32_t number)
{
    char path[SPOOL_PATH_MAX];
    struct stat st;
    spool_path(s, number, "seg", path);
    return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

void spool_remove(struct spool *s, uint32_t number)
{
    char path[SPOOL_PATH_MAX];
    spool_path(s, number, "seg", path);
    if (unlink(path) != 0 && errno != ENOENT)
        LOG(LOG_WARN, "spool_not_removed", LOG_S("segment", path), LOG_S("why", strerror(errno)));
}

bool spool_empty(const struct spool *s)
{
    return !s || s->first == s->next;
}

int64_t spool_bytes(const struct spool *s)
{
    return s ? s->bytes : 0;
}

int64_t spool_limit(const struct spool *s)
{
    return s ? s->limit : 0;
}

/* ---- open ---- */

/* One process a folder; the file's content says which. */
static int lock_dir(struct spool *s, struct err *err)
{
    char path[SPOOL_PATH_MAX], holder[32] = "";
    snprintf(path, sizeof path, "%s/lock", s->dir);
    s->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock < 0)
        return err_errno(err, E_USAGE, "--spool-dir: %s", path);
    bool ours = false; /* who was killed just now may hold it for a moment */
    for (int i = 0; !ours && i < LOCK_TRIES; i++) {
        if (i)
            clock_sleep_ns(clock_system(), LOCK_PAUSE_NS);
        ours = flock(s->lock, LOCK_EX | LOCK_NB) == 0;
    }
    if (!ours) {
        ssize_t n = pread(s->lock, holder, sizeof holder - 1, 0);
        holder[TR_MAX(n, 0)] = '\0';
        holder[strcspn(holder, "\n")] = '\0';
        return err_set(err, E_USAGE,
                       "--spool-dir: %s: want a folder of its own for each worker, found it in use "
                       "by process %s",
                       s->dir, holder);
    }
    int n = snprintf(holder, sizeof holder, "%ld\n", (long)getpid());
    if (ftruncate(s->lock, 0) != 0 || pwrite(s->lock, holder, (size_t)n, 0) != n)
        LOG(LOG_WARN, "spool_lock_unnamed", LOG_S("path", path));
    return E_OK;
}

static bool number_of(const char *name, uint32_t *out)
{
    uint64_t v = 0;
    if (strlen(name) != 12 || strcmp(name + 8, ".seg") != 0)
        return false;
    for (int i = 0; i < 8; i++) {
        if (name[i] < '0' || name[i] > '9')
            return false;
        v = v * 10 + (uint64_t)(name[i] - '0');
    }
    *out = (uint32_t)v;
    return true;
}

/* first and next from the names that are there. */
static int find_segments(struct spool *s, struct err *err)
{
    DIR *dir = opendir(s->dir);
    uint32_t number, low = UINT32_MAX, high = 0;
    if (!dir)
        return err_errno(err, E_USAGE, "--spool-dir: %s", s->dir);
    for (struct dirent *e; (e = readdir(dir));)
        if (number_of(e->d_name, &number)) {
            low = TR_MIN(low, number);
            high = TR_MAX(high, number);
            s->bytes += TR_MAX(spool_size(s, number), (int64_t)0);
        }
    closedir(dir);
    s->first = low == UINT32_MAX ? 1 : low;
    s->next = s->own = low == UINT32_MAX ? 1 : high + 1;
    return E_OK;
}

static int differs(const char *path, const char *what, struct str want, struct str found,
                   struct err *err)
{
    return err_set(err, E_USAGE,
                   "--spool-dir: %s: want rows of %s \"%.60s\", found \"%.*s\"; start that worker "
                   "once more, or move the file away (its jobs will run again)",
                   path, what, want.ptr ? want.ptr : "", (int)TR_MIN(found.len, (size_t)60),
                   found.ptr ? found.ptr : "");
}

int spool_owner_check(const char *path, struct str bytes, const struct spool_owner *want,
                      struct err *err)
{
    struct spool_row row;
    size_t at = SPOOL_MAGIC_BYTES;
    if (bytes.len >= SPOOL_MAGIC_BYTES &&
        memcmp(bytes.ptr, spool_magic, SPOOL_MAGIC_BYTES - 1) == 0 &&
        bytes.ptr[SPOOL_MAGIC_BYTES - 1] != spool_magic[SPOOL_MAGIC_BYTES - 1])
        return differs(path, "format", str_of(spool_magic),
                       (struct str){bytes.ptr, SPOOL_MAGIC_BYTES}, err);
    if (bytes.len < SPOOL_MAGIC_BYTES || memcmp(bytes.ptr, spool_magic, SPOOL_MAGIC_BYTES) != 0 ||
        spool_next(bytes, &at, &row) != SPOOL_ROW || row.kind != SPOOL_OWNER)
        return 0;
    char has[16], wants[16];
    snprintf(has, sizeof has, "%d", row.owner.schema);
    snprintf(wants, sizeof wants, "%d", want->schema);
    if (row.owner.schema != want->schema)
        return differs(path, "schema", str_of(wants), str_of(has), err);
    if (!str_eq(row.owner.database, want->database))
        return differs(path, "database", want->database, row.owner.database, err);
    if (!str_eq(row.owner.run, want->run))
        return differs(path, "run", want->run, row.owner.run, err);
    return (int)at;
}

/* Refuses other people's rows before anything else happens. A head that cannot be read tells
 * nothing: replay puts that file aside. */
static int check_owners(struct spool *s, struct err *err)
{
    char path[SPOOL_PATH_MAX], head[4096];
    int rc = E_OK;
    for (uint32_t i = s->first; rc >= 0 && i < s->next; i++) {
        spool_path(s, i, "seg", path);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : pread(fd, head, sizeof head, 0);
        if (n > 0)
            rc = spool_owner_check(path, (struct str){head, (size_t)n}, &s->owner, err);
        if (fd >= 0)
            close(fd);
    }
    return TR_MIN(rc, E_OK);
}

int spool_open(struct spool **out, const struct spool_opts *opts, struct err *err)
{
    struct spool *s = mem_alloc(1, sizeof *s);
    if (!s)
        return err_set(err, E_FATAL, "spool: no memory");
    s->lock = s->fd = s->dir_fd = -1;
    s->owner = opts->owner;
    s->limit = opts->bytes;
    int rc = E_OK;
    if (strlen(opts->dir) >= sizeof s->dir)
        rc = err_set(err, E_USAGE, "--spool-dir: want at most %zu bytes, found %zu",
                     sizeof s->dir - 1, strlen(opts->dir));
    snprintf(s->dir, sizeof s->dir, "%s", opts->dir);
    if (rc >= 0 && mkdir(s->dir, 0700) != 0 && errno != EEXIST)
        rc = err_errno(err, E_USAGE, "--spool-dir: cannot make %s", s->dir);
    if (rc >= 0)
        rc = lock_dir(s, err);
    s->dir_fd = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (rc >= 0)
        rc = find_segments(s, err);
    if (rc >= 0)
        rc = check_owners(s, err);
    if (rc < 0) {
        spool_close(s);
        return rc;
    }
    if (!spool_empty(s))
        LOG(LOG_INFO, "spool_found", LOG_S("dir", s->dir), LOG_I("bytes", s->bytes));
    *out = s;
    return E_OK;
}

void spool_close(struct spool *s)
{
    if (!s)
        return;
    spool_end_segment(s);
    if (s->dir_fd >= 0)
        close(s->dir_fd);
    if (s->lock >= 0)
        close(s->lock);
    text_close(&s->buffer);
    mem_free(s);
}

/* ---- append ---- */

static int disk(const struct spool *s, const char *what, struct err *err)
{
    int why = errno;
    return err_typed(err, E_RETRY, "spool_disk", "spool: %s: cannot %s: %s", s->dir, what,
                     strerror(why));
}

void spool_end_segment(struct spool *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    s->length = 0;
}

/* Writes what the buffer holds behind the segment's end. */
static int write_out(struct spool *s, struct err *err)
{
    size_t done = 0;
    if (s->buffer.failed)
        return err_typed(err, E_RETRY, "spool_disk", "spool: %s: no memory for a row", s->dir);
    if (s->bytes + (int64_t)s->buffer.len > s->limit)
        return err_typed(err, E_RETRY, "spool_full",
                         "spool: %s: want room for %zu bytes, %lld of %lld are taken", s->dir,
                         s->buffer.len, (long long)s->bytes, (long long)s->limit);
    while (done < s->buffer.len) {
        ssize_t n = pwrite(s->fd, s->buffer.ptr + done, s->buffer.len - done, s->length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return disk(s, "write a segment", err);
        done += (size_t)n;
        s->length += n;
        s->bytes += n;
    }
    text_reset(&s->buffer);
    return E_OK;
}

static int begin_segment(struct spool *s, struct err *err)
{
    char path[SPOOL_PATH_MAX];
    spool_path(s, s->next, "seg", path);
    s->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (s->fd < 0)
        return disk(s, "make a segment", err);
    s->next++;
    text_reset(&s->buffer);
    text_add(&s->buffer, (struct str){spool_magic, SPOOL_MAGIC_BYTES});
    spool_put_owner(&s->buffer, &s->owner);
    int rc = write_out(s, err);
    if (rc >= 0 && fsync(s->fd) != 0)
        rc = disk(s, "sync a segment", err);
    if (rc >= 0 && s->dir_fd >= 0 && fsync(s->dir_fd) != 0)
        rc = disk(s, "sync the folder", err);
    return rc;
}

/* The buffer goes to the disk where it is long; `all`: whatever it holds, and what is there is
 * synced, also where the last row has filled the buffer and was written already. */
static int pass_on(struct spool *s, bool all, struct err *err)
{
    if (!all && s->buffer.len < WRITE_BYTES && !s->buffer.failed)
        return E_OK;
    int rc = write_out(s, err);
    if (rc >= 0 && (all || s->length >= (int64_t)SEGMENT_BYTES) && fdatasync(s->fd) != 0)
        rc = disk(s, "sync a segment", err);
    if (rc >= 0 && !all && s->length >= (int64_t)SEGMENT_BYTES) {
        spool_end_segment(s);
        rc = begin_segment(s, err);
    }
    return rc;
}

static int put_rows(struct spool *s, const struct commit *c, struct err *err)
{
    int rc = E_OK;
    for (size_t i = 0; i < c->n_results && rc >= 0; i++) {
        spool_put_result(&s->buffer, c->results[i]);
        rc = pass_on(s, false, err);
    }
    for (size_t i = 0; i < c->n_dead_letters && rc >= 0; i++) {
        spool_put_dead_letter(&s->buffer, &c->dead_letters[i]);
        rc = pass_on(s, false, err);
    }
    for (size_t i = 0; i < c->n_lost_ranges && rc >= 0; i++) {
        spool_put_lost_range(&s->buffer, &c->lost_ranges[i]);
        rc = pass_on(s, false, err);
    }
    return rc < 0 ? rc : pass_on(s, true, err);
}

/* Back to what stood there before an append that failed. After a failed sync nobody knows what the
 * disk has of the segment, so nothing more is put behind it. What could not be taken back is
 * replayed besides: harmless. */
static void undo(struct spool *s, uint32_t number, int64_t length, int64_t bytes)
{
    char path[SPOOL_PATH_MAX];
    spool_end_segment(s);
    for (; s->next > number; s->next--)
        spool_remove(s, s->next - 1);
    s->bytes = bytes;
    if (number == 0 || length == 0)
        return;
    spool_path(s, number - 1, "seg", path);
    if (truncate(path, length) != 0)
        LOG(LOG_WARN, "spool_not_truncated", LOG_S("segment", path), LOG_S("why", strerror(errno)));
}

int spool_append(struct spool *s, const struct commit *c, struct err *err)
{
    if (s->length >=
        (int64_t)SEGMENT_BYTES) /* small appends have filled it: replay reads it whole */
        spool_end_segment(s);
    int64_t length = s->length, bytes = s->bytes;
    uint32_t number = s->next;
    int rc = s->fd < 0 ? begin_segment(s, err) : E_OK;
    if (rc >= 0)
        rc = put_rows(s, c, err);
    text_reset(&s->buffer);
    if (rc < 0) {
        undo(s, number, length, bytes);
        return rc;
    }
    s->owed += (int64_t)(c->n_results + c->n_dead_letters + c->n_lost_ranges);
    return E_OK;
}
