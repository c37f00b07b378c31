/* cmd_cache: `tranche cache`: a model folder onto a volume that workers mount read-only. All is
 * done in DEST.partial, under the lock DEST.lock; DEST appears whole, by a rename, or not at all.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/commands/cache.h"
#include "worker/commands/commands.h"
#include "worker/commands/doctor.h"
#include "worker/open_model.h"
#include "worker/stop.h"

static const int64_t LOCK_PAUSE_NS = 200000000, LOCK_TOLD_NS = 10000000000;

struct cacher {
    char source[PATH_MAX]; /* resolved: of a hub cache the snapshot */
    char dest[PATH_MAX - 16], partial[PATH_MAX], lock[PATH_MAX], above[PATH_MAX];
    int lock_fd; /* -1: not ours */
    size_t removed;
    struct cache_list list;
};

static int name_paths(struct cacher *c, const char *dest, struct err *err)
{
    size_t n = strlen(dest);
    while (n > 1 && dest[n - 1] == '/')
        n--;
    if (n == 0 || n >= sizeof c->dest || (n == 1 && *dest == '/'))
        return err_set(err, E_USAGE, "want a folder to make, found \"%.60s\"", dest);
    snprintf(c->dest, sizeof c->dest, "%.*s", (int)n, dest);
    snprintf(c->partial, sizeof c->partial, "%s.partial", c->dest);
    snprintf(c->lock, sizeof c->lock, "%s.lock", c->dest);
    snprintf(c->above, sizeof c->above, "%s", c->dest);
    char *slash = strrchr(c->above, '/');
    if (!slash)
        snprintf(c->above, sizeof c->above, ".");
    else
        slash[slash == c->above] = '\0';
    return E_OK;
}

/* As a worker opens it. list: NULL, or what the folder's copy is to have. */
static int open_folder(const char *dir, char resolved[PATH_MAX], struct cache_list *list,
                       struct err *err)
{
    struct model_opts opts = {.dir = dir, .engine = {.kind = ENGINE_CPU}};
    struct loaded_model m;
    int rc = loaded_model_open(&m, &opts, err);
    if (rc < 0)
        return rc;
    if (resolved)
        snprintf(resolved, PATH_MAX, "%s", model_dir(m.model));
    if (list)
        rc = cache_list_source(list, model_dir(m.model), m.model, err);
    loaded_model_close(&m);
    return rc;
}

/* Calls `take` for each name in a folder, until one fails. */
static int each_entry(const char *dir, int (*take)(void *, const char *, struct err *), void *ctx,
                      struct err *err)
{
    DIR *d = opendir(dir);
    int rc = d ? E_OK : err_errno(err, E_FATAL, "%s", dir);
    for (struct dirent *e; rc == E_OK && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            rc = take(ctx, e->d_name, err);
    if (d)
        closedir(d);
    return rc;
}

static int count_entry(void *ctx, const char *name, struct err *err)
{
    (void)name, (void)err;
    ++*(int *)ctx;
    return E_OK;
}

/* A rename can put a folder where there is none, or an empty one, and nowhere else: told before
 * the hours of copying, not after them. */
static int check_place(const struct cacher *c, struct err *err)
{
    struct stat at, above;
    if (lstat(c->dest, &at) != 0)
        return errno == ENOENT ? E_OK : err_errno(err, E_FATAL, "%s", c->dest);
    if (S_ISLNK(at.st_mode))
        return err_set(
            err, E_USAGE,
            "%s: want a folder, or nothing, found a symbolic link: name what it links to", c->dest);
    if (stat(c->above, &above) != 0)
        return err_errno(err, E_FATAL, "%s", c->above);
    if (at.st_dev != above.st_dev)
        return err_set(err, E_USAGE,
                       "%s: want a folder on a volume, found where one is mounted: name a folder "
                       "in it",
                       c->dest);
    return E_OK;
}

static int compare_dest(struct cacher *c, struct err *err)
{
    struct cache_list read = {0};
    int rc = cache_compare(&c->list, c->source, c->dest, err);
    if (rc == E_OK)
        rc = open_folder(c->dest, NULL, &read, err);
    if (rc == E_OK)
        rc = cache_compare_names(&read, &c->list, c->dest, err);
    cache_list_close(&read);
    return rc;
}

/* *there: DEST holds what the source has. E_FATAL where it holds something else. */
static int look_for_dest(struct cacher *c, bool *there, struct err *err)
{
    struct stat st;
    int entries = 0;
    *there = false;
    if (stat(c->dest, &st) != 0)
        return errno == ENOENT ? check_place(c, err) : err_errno(err, E_FATAL, "%s", c->dest);
    if (!S_ISDIR(st.st_mode))
        return err_set(err, E_USAGE, "%s: want a folder, or nothing, found a file", c->dest);
    int rc = each_entry(c->dest, count_entry, &entries, err);
    if (rc < 0 || entries == 0)
        return rc < 0 ? rc : check_place(c, err);
    rc = compare_dest(c, err);
    *there = rc == E_OK;
    return rc;
}

static void tell_holder(const struct cacher *c, int fd)
{
    char holder[200];
    ssize_t n = pread(fd, holder, sizeof holder - 1, 0);
    holder[TR_MAX(n, 0)] = '\0';
    holder[strcspn(holder, "\n")] = '\0';
    LOG(LOG_INFO, "cache_waits", LOG_S("lock", c->lock), LOG_S("held_by", holder));
}

/* Waits until no other process has the file locked, and tells who does. */
static int wait_for_lock(const struct cacher *c, int fd, struct err *err)
{
    int64_t told = 0;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return command_output_failed(err, c->lock, "lock");
        int64_t now = clock_mono_ns(clock_system());
        if (told == 0 || now - told >= LOCK_TOLD_NS) {
            tell_holder(c, fd);
            told = now;
        }
        clock_sleep_ns(clock_system(), LOCK_PAUSE_NS);
    }
    return E_OK;
}

/* One writer at a time, also from several nodes. Who holds it removes it behind itself, so that the
 * name may be another file's by the time that a waiting process has the old one. */
static int take_lock(struct cacher *c, struct err *err)
{
    struct stat ours, named;
    char host[128] = "", holder[200];
    while (c->lock_fd < 0) {
        int fd = open(c->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
        if (fd < 0)
            return command_output_failed(err, c->lock, "make");
        int rc = wait_for_lock(c, fd, err);
        if (rc == E_OK && fstat(fd, &ours) == 0 && stat(c->lock, &named) == 0 &&
            ours.st_dev == named.st_dev && ours.st_ino == named.st_ino)
            c->lock_fd = fd;
        else
            close(fd);
        if (rc < 0)
            return rc;
    }
    gethostname(host, sizeof host - 1);
    int n = snprintf(holder, sizeof holder, "%s:%ld\n", host, (long)getpid());
    if (ftruncate(c->lock_fd, 0) != 0 || pwrite(c->lock_fd, holder, (size_t)n, 0) != n)
        LOG(LOG_WARN, "cache_lock_unnamed", LOG_S("lock", c->lock));
    return E_OK;
}

/* Of an earlier attempt at another model. */
static int remove_stranger(void *ctx, const char *name, struct err *err)
{
    struct cacher *c = ctx;
    char path[PATH_MAX + 300];
    if (cache_list_find(&c->list, name))
        return E_OK;
    snprintf(path, sizeof path, "%s/%s", c->partial, name);
    if (unlink(path) == 0)
        c->removed++;
    else if (errno != ENOENT) /* a listing of before */
        return command_output_failed(err, path, "remove");
    return E_OK;
}

/* Until a pass finds none: some servers' listings skip names while others are removed. */
static int remove_strangers(struct cacher *c, struct err *err)
{
    int rc;
    do {
        c->removed = 0;
        rc = each_entry(c->partial, remove_stranger, c, err);
    } while (rc == E_OK && c->removed);
    return rc;
}

static int make_partial(struct cacher *c, struct err *err)
{
    if (mkdir(c->partial, 0755) != 0 && errno != EEXIST)
        return command_output_failed(err, c->partial, "make");
    int fd = open(c->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return command_output_failed(err, c->partial, "open");
    int rc = cache_set_mode(fd, c->partial, 0755, err);
    close(fd);
    return rc == E_OK ? remove_strangers(c, err) : rc;
}

static int make_room(struct cacher *c, struct err *err)
{
    int64_t missing = 0, free_bytes;
    int rc = make_partial(c, err);
    for (size_t i = 0; i < c->list.n; i++) {
        char path[PATH_MAX + CACHE_NAME_CAP];
        struct stat st = {0};
        snprintf(path, sizeof path, "%s/%s", c->partial, c->list.files[i].name);
        if (stat(path, &st) != 0)
            st.st_size = 0;
        missing += TR_MAX(c->list.files[i].bytes - (int64_t)st.st_size, 0);
    }
    free_bytes = disk_free(c->partial);
    if (rc == E_OK && free_bytes >= 0 && free_bytes < missing)
        rc = err_typed(err, E_FATAL, COMMAND_OUTPUT,
                       "%s: want room for %lld bytes, the volume has %lld", c->partial,
                       (long long)missing, (long long)free_bytes);
    return rc;
}

static int sync_folder(const char *dir, struct err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* EINVAL: a file system that keeps names without being asked. */
    bool well = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    int rc = well ? E_OK : command_output_failed(err, dir, "sync");
    if (fd >= 0)
        close(fd);
    return rc;
}

static int fill(struct cacher *c, struct err *err)
{
    struct cache_meter copied = {.what = "cache_copying", .of = c->list.bytes};
    struct cache_meter checked = {.what = "cache_checking", .of = c->list.bytes};
    int rc = make_room(c, err);
    for (size_t i = 0; rc == E_OK && i < c->list.n; i++)
        rc = cache_copy(c->source, c->partial, &c->list.files[i], &copied, &checked, err);
    if (rc == E_OK)
        rc = cache_all_unchanged(&c->list, c->source, err);
    if (rc == E_OK)
        rc = cache_manifest_write(&c->list, c->partial, err);
    if (rc == E_OK)
        rc = sync_folder(c->partial, err);
    if (rc == E_OK)
        rc = open_folder(c->partial, NULL, NULL, err);
    if (rc == E_OK && rename(c->partial, c->dest) != 0)
        rc = command_output_failed(err, c->dest, "rename to");
    return rc == E_OK ? sync_folder(c->above, err) : rc;
}

static int cache(struct cacher *c, const struct config *config, bool *there, struct err *err)
{
    if (config->n_operands < 2)
        return err_set(err, E_USAGE, "want a model folder and where it goes, found %d of two",
                       config->n_operands);
    int rc = name_paths(c, config->operands[1], err);
    if (rc == E_OK)
        rc = open_folder(config->operands[0], c->source, &c->list, err);
    if (rc == E_OK)
        rc = look_for_dest(c, there, err);
    if (rc < 0 || *there)
        return rc;
    rc = take_lock(c, err);
    if (rc == E_OK) /* another one may have come first */
        rc = look_for_dest(c, there, err);
    if (rc == E_OK && !*there)
        rc = fill(c, err);
    return rc;
}

int command_cache(const struct config *config)
{
    struct err err = {0};
    struct cacher c = {.lock_fd = -1};
    bool there = false;
    char sha[65];
    command_log_setup(config);
    stop_catch(); /* the first process of a container dies of no signal that it does not catch */
    int rc = cache(&c, config, &there, &err);
    if (c.lock_fd >= 0) {
        unlink(c.lock);
        close(c.lock_fd);
    }
    if (rc == E_OK) {
        cache_list_sha256(&c.list, sha);
        printf("%s %s files=%zu bytes=%lld sha256=%s\n", there ? "found" : "cached", c.dest,
               c.list.n, (long long)c.list.bytes, sha);
    }
    cache_list_close(&c.list);
    return rc < 0 ? command_failed(config, &err) : EXIT_WELL;
}
