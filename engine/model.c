/* model: the folder. Configuration and weights are read by model_config.c and weights.c. */
#include "engine/model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"
#include "engine/plain_file.h"
#include "engine/weights.h"

enum { CONFIG_BYTES_MAX = 1 << 20, COMMIT_MAX = 128 };

struct model {
    char dir[PATH_MAX];
    struct model_config config;
    struct generation_defaults generation;
    struct weights *weights;
    int64_t weight_bytes;
};

static bool join(char path[static PATH_MAX], const char *dir, const char *name)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, name);
    return n > 0 && n < PATH_MAX;
}

static bool has_entry(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    return join(path, dir, name) && lstat(path, &st) == 0;
}

/* A small text file of the folder, whole. `optional`: absent is the empty text. */
static int read_text(const char *dir, const char *name, bool optional, struct str *out,
                     struct err *err)
{
    char path[PATH_MAX], *text = NULL;
    size_t used = 0;
    struct stat st;
    int rc = E_OK;
    *out = (struct str){NULL, 0};
    if (!join(path, dir, name))
        return err_set(err, E_FATAL, "%s: want a path below %d bytes", name, PATH_MAX);
    /* a FIFO is refused below, not waited for */
    int fd = plain_file_open(AT_FDCWD, path);
    if (fd < 0 && optional && !has_entry(dir, name))
        return E_OK;
    if (fd < 0)
        return err_errno(err, E_FATAL, "%s: cannot open", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > CONFIG_BYTES_MAX) {
        rc = err_set(err, E_FATAL, "%s: want a regular file of at most %d bytes, it has %lld", path,
                     CONFIG_BYTES_MAX, (long long)st.st_size);
        goto out;
    }
    text = mem_alloc((size_t)st.st_size, 1);
    while (text && used < (size_t)st.st_size) {
        ssize_t got = read(fd, text + used, (size_t)st.st_size - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            rc = err_errno(err, E_FATAL, "%s: cannot read", path);
            goto out;
        }
        if (got == 0)
            break;
        used += (size_t)got;
    }
    if (!text)
        rc = err_set(err, E_FATAL, "%s: cannot take %lld bytes", path, (long long)st.st_size);
out:
    close(fd);
    if (rc == E_OK)
        *out = (struct str){text, used};
    else
        mem_free(text);
    return rc;
}

/* The one folder below DIR/snapshots, or the one that refs/main names. */
static int pick_snapshot(const char *dir, char name[static COMMIT_MAX], struct err *err)
{
    char path[PATH_MAX];
    struct str main_ref = {NULL, 0};
    int found = 0;
    if (has_entry(dir, "refs/main") && read_text(dir, "refs/main", true, &main_ref, err) != E_OK)
        return E_FATAL;
    size_t n = main_ref.len;
    while (n > 0 && (main_ref.ptr[n - 1] == '\n' || main_ref.ptr[n - 1] == '\r'))
        n--;
    DIR *d = join(path, dir, "snapshots") ? opendir(path) : NULL;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.' || strlen(e->d_name) >= COMMIT_MAX)
            continue;
        snprintf(name, COMMIT_MAX, "%s", e->d_name);
        found++;
        if (str_eq(str_of(e->d_name), (struct str){main_ref.ptr, n})) {
            found = 1;
            break;
        }
    }
    if (d)
        closedir(d);
    mem_free((void *)main_ref.ptr);
    if (found == 1)
        return E_OK;
    return err_set(err, E_FATAL,
                   "%s/snapshots: want one snapshot or refs/main to name one, found %d", dir,
                   found);
}

int model_find(char out[PATH_MAX], const char *dir, struct err *err)
{
    char given[PATH_MAX], below[PATH_MAX], commit[COMMIT_MAX];
    struct stat st;
    if (stat(dir, &st) != 0)
        return err_errno(err, E_FATAL, "model folder %s", dir);
    if (!S_ISDIR(st.st_mode))
        return err_set(err, E_FATAL, "model folder %s: want a folder, it is a file", dir);
    if (!realpath(dir, given))
        return err_errno(err, E_FATAL, "model folder %s", dir);
    if (!has_entry(given, "config.json") && has_entry(given, "snapshots")) {
        if (pick_snapshot(given, commit, err) != E_OK)
            return E_FATAL;
        if (!join(below, given, "snapshots") || !join(out, below, commit))
            return err_set(err, E_FATAL, "model folder %s: want a shorter path", dir);
    } else {
        memcpy(out, given, PATH_MAX);
    }
    if (!has_entry(out, "config.json"))
        return err_set(err, E_FATAL, "model folder %s: want config.json in it, there is none", out);
    return E_OK;
}

static double seconds_since(int64_t start_ns)
{
    return (double)(clock_mono_ns(clock_system()) - start_ns) * 1e-9;
}

static int open_config(struct model *m, struct err *err)
{
    struct str config = {NULL, 0}, generation = {NULL, 0};
    int64_t start_ns = clock_mono_ns(clock_system());
    int rc;
    if ((rc = read_text(m->dir, "config.json", false, &config, err)) != E_OK ||
        (rc = read_text(m->dir, "generation_config.json", true, &generation, err)) != E_OK ||
        (rc = model_config_parse(&m->config, config, err)) != E_OK)
        goto out;
    rc = generation_config_parse(&m->generation, &m->config, generation, err);
    if (rc == E_OK)
        LOG(LOG_INFO, "model_config_read", LOG_S("path", m->dir), LOG_S("family", m->config.family),
            LOG_I("bytes", config.len + generation.len), LOG_F("seconds", seconds_since(start_ns)));
out:
    mem_free((void *)config.ptr);
    mem_free((void *)generation.ptr);
    return rc;
}

static int open_weights(struct model *m, struct err *err)
{
    int64_t start_ns = clock_mono_ns(clock_system());
    int rc;
    if ((rc = weights_open(&m->weights, m->dir, err)) != E_OK ||
        (rc = weights_check(m->weights, &m->config, &m->weight_bytes, err)) != E_OK)
        return rc;
    LOG(LOG_INFO, "model_headers_read", LOG_S("path", m->dir),
        LOG_I("files", weights_n_files(m->weights)),
        LOG_I("bytes", weights_header_bytes(m->weights)),
        LOG_F("seconds", seconds_since(start_ns)));
    return E_OK;
}

int model_open(struct model **out, const char *dir, struct err *err)
{
    struct model *m = mem_alloc(1, sizeof *m);
    int rc;
    if (!m)
        return err_set(err, E_FATAL, "model: cannot take %zu bytes", sizeof *m);
    if ((rc = model_find(m->dir, dir, err)) != E_OK || (rc = open_config(m, err)) != E_OK ||
        (rc = open_weights(m, err)) != E_OK) {
        model_close(m);
        return rc;
    }
    *out = m;
    return E_OK;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    weights_close(m->weights);
    mem_free(m);
}

const struct model_config *model_config(const struct model *m)
{
    return &m->config;
}

const struct generation_defaults *model_generation(const struct model *m)
{
    return &m->generation;
}

const char *model_dir(const struct model *m)
{
    return m->dir;
}

int64_t model_weight_bytes(const struct model *m)
{
    return m->weight_bytes;
}

const struct weights *model_weights(const struct model *m)
{
    return m->weights;
}
