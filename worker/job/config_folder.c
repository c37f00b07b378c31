/* config_folder: see config_folder.h. */
#include "worker/job/config_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char DATA[] = "..data";
static const char DEFAULTS[] = "defaults.json", TEMPLATE[] = "chat_template.jinja";
static const char SYSTEM[] = "system", TXT[] = ".txt";

/* Fields of a request that an operator may set for jobs that leave them out: none that only one job
 * can mean (seed, n, logprobs, ...). */
static const char *const fields[] = {"max_tokens",
                                     "temperature",
                                     "top_p",
                                     "top_k",
                                     "min_p",
                                     "repetition_penalty",
                                     "frequency_penalty",
                                     "presence_penalty",
                                     "stop",
                                     "max_thinking_tokens",
                                     "loop_tokens"};

struct reading {
    const char *dir;
    int fd;
    size_t bytes;
    json_t *all;
    struct text text;
};

/* A file that vanished, or a refusal that passes, is read again later. */
static int failed(const struct reading *r, const char *name, struct err *err)
{
    bool passing = errno == ENOENT || errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
                   errno == ESTALE || errno == EIO;
    return err_errno(err, passing ? E_RETRY : E_USAGE, "%s/%s: cannot read", r->dir, name);
}

static int read_file(struct reading *r, const char *name, struct err *err)
{
    ssize_t n = 0;
    char *at;
    text_reset(&r->text);
    int fd = openat(r->fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == EWOULDBLOCK) /* its holder has been asked for it */
        return err_errno(err, E_RETRY, "%s/%s: another process has a lease", r->dir, name);
    if (fd < 0)
        return failed(r, name, err);
    while (r->bytes + r->text.len <= CONFIG_FOLDER_BYTES_MAX && (at = text_room(&r->text, 65536)) &&
           (n = read(fd, at, 65536)) > 0)
        r->text.len += (size_t)n;
    int rc = n < 0 ? failed(r, name, err) : E_OK;
    close(fd);
    r->bytes += r->text.len;
    if (rc == E_OK && r->text.failed)
        rc = err_set(err, E_RETRY, "%s/%s: no memory", r->dir, name);
    if (rc == E_OK && r->bytes > CONFIG_FOLDER_BYTES_MAX)
        rc = err_set(err, E_USAGE, "%s: want at most %d bytes in all files, found more by %s",
                     r->dir, CONFIG_FOLDER_BYTES_MAX, name);
    return rc;
}

static int take_defaults(struct reading *r, struct err *err)
{
    char where[PATH_MAX];
    struct err why = {0};
    const char *key;
    json_t *doc = NULL, *value;
    snprintf(where, sizeof where, "%s/%s", r->dir, DEFAULTS);
    if (json_parse(&doc, text_view(&r->text), where, &json_limits_job, &why) < 0)
        return err_set(err, E_USAGE, "%s", why.msg);
    int rc = json_is_object(doc) ? E_OK
                                 : err_set(err, E_USAGE, "%s: want an object, found %s", where,
                                           json_type_name(doc));
    json_object_foreach(doc, key, value)
    {
        size_t i = 0;
        while (i < TR_COUNT(fields) && strcmp(key, fields[i]) != 0)
            i++;
        if (i < TR_COUNT(fields) && !json_is_null(value))
            continue;
        const char *near = nearest_name(str_of(key), fields, TR_COUNT(fields));
        rc = i < TR_COUNT(fields)
                 ? err_set(err, E_USAGE, "%s: %s: want a value, found null", where, key)
                 : err_set(err, E_USAGE, "%s: %.60s: not a field that has a default here%s%s%s",
                           where, key, near ? "; do you mean " : "", near ? near : "",
                           near ? "?" : "");
    }
    if (rc < 0)
        json_decref(doc);
    else
        json_object_set_new(r->all, "defaults", doc);
    return rc;
}

/* The line end that editors put last is not meant. */
static int take_text(struct reading *r, const char *name, json_t *into, const char *key,
                     struct err *err)
{
    size_t len = r->text.len;
    while (into != r->all && len > 0 &&
           (r->text.ptr[len - 1] == '\n' || r->text.ptr[len - 1] == '\r'))
        len--;
    json_t *value = json_stringn(len ? r->text.ptr : "", len);
    if (!value || (len && memchr(r->text.ptr, 0, len))) {
        json_decref(value);
        return err_set(err, E_USAGE, "%s/%s: want UTF-8 without NUL characters", r->dir, name);
    }
    if (len == 0) {
        json_decref(value);
        return err_set(err, E_USAGE, "%s/%s: want some text, found none", r->dir, name);
    }
    json_object_set_new(into, key, value);
    return E_OK;
}

/* "system.txt", "system.BATCH.txt": whose it is; false: another name. */
static bool is_system(const char *name, char batch[NAME_MAX + 1])
{
    size_t len = strlen(name), head = sizeof SYSTEM - 1, tail = sizeof TXT - 1;
    if (len < head + tail || strncmp(name, SYSTEM, head) != 0 ||
        strcmp(name + len - tail, TXT) != 0)
        return false;
    size_t middle = len - head - tail;
    if (middle == 1 || (middle > 1 && name[head] != '.'))
        return false;
    snprintf(batch, NAME_MAX + 1, "%.*s", middle ? (int)middle - 1 : 0, name + head + 1);
    return true;
}

static int take_file(struct reading *r, const char *name, struct err *err)
{
    char batch[NAME_MAX + 1];
    bool system = is_system(name, batch), defaults = strcmp(name, DEFAULTS) == 0;
    if (!system && !defaults && strcmp(name, TEMPLATE) != 0)
        return err_set(err, E_USAGE, "%s/%.80s: want %s, %s, system.txt or system.BATCH.txt",
                       r->dir, name, DEFAULTS, TEMPLATE);
    int rc = read_file(r, name, err);
    if (rc < 0 || defaults)
        return rc < 0 ? rc : take_defaults(r, err);
    if (!system)
        return take_text(r, name, r->all, "chat_template", err);
    json_t *systems = json_object_get(r->all, "system");
    if (!systems) {
        systems = json_object();
        json_object_set_new(r->all, "system", systems);
    }
    return take_text(r, name, systems, batch, err);
}

static int open_data(const char *dir, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, DATA);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : err_errno(err, E_USAGE, "--job-config: %s: cannot read", dir);
}

int config_folder_read(json_t **out, const char *dir, struct err *err)
{
    struct reading r = {.dir = dir, .all = json_object()};
    r.fd = open_data(dir, err);
    DIR *listing = r.fd >= 0 ? fdopendir(r.fd) : NULL;
    int rc = listing || r.fd < 0 ? TR_MIN(r.fd, E_OK) : failed(&r, "", err);
    struct dirent *entry;
    while (rc >= 0 && (entry = readdir(listing)))
        if (entry->d_name[0] != '.')
            rc = take_file(&r, entry->d_name, err);
    if (listing)
        closedir(listing);
    else if (r.fd >= 0)
        close(r.fd);
    text_close(&r.text);
    if (rc < 0)
        json_decref(r.all);
    else
        *out = r.all;
    return rc < 0 ? rc : E_OK;
}

/* ---- has it changed? ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

void config_folder_mark(struct text *out, const char *dir, bool *linked)
{
    enum { FILES_MAX = 256, LINE = 400 };
    char path[PATH_MAX], target[PATH_MAX], (*lines)[LINE];
    struct dirent *entry;
    struct stat st;
    int n = 0;
    snprintf(path, sizeof path, "%s/%s", dir, DATA);
    ssize_t len = readlink(path, target, sizeof target);
    *linked = len >= 0;
    if (*linked) {
        text_add(out, (struct str){target, (size_t)len});
        return;
    }
    DIR *listing = opendir(dir);
    lines = mem_alloc(FILES_MAX, LINE);
    while (listing && lines && n < FILES_MAX && (entry = readdir(listing)))
        if (entry->d_name[0] != '.' && fstatat(dirfd(listing), entry->d_name, &st, 0) == 0)
            snprintf(lines[n++], LINE, "%s %llu %lld %lld.%09ld\n", entry->d_name,
                     (unsigned long long)st.st_ino, (long long)st.st_size,
                     (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    if (lines)
        qsort(lines, (size_t)n, LINE, by_name);
    for (int i = 0; i < n; i++)
        text_add(out, str_of(lines[i]));
    if (listing)
        closedir(listing);
    mem_free(lines);
}
