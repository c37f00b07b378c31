/* cache_list: see cache.h. Which files a copy has, what its manifest says of them, and whether two
 * folders hold the same. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/json.h"
#include "engine/weights.h"
#include "worker/commands/cache.h"
#include "worker/commands/commands.h"
#include "worker/job/text.h"

/* What opening a folder reads beside the weights; the first one must be there. */
static const char *const texts[] = {"config.json",         "generation_config.json",
                                    "tokenizer.json",      "tokenizer_config.json",
                                    "chat_template.jinja", "model.safetensors.index.json"};

void cache_list_close(struct cache_list *l)
{
    mem_free(l->files);
    *l = (struct cache_list){0};
}

struct cache_file *cache_list_find(const struct cache_list *l, const char *name)
{
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->files[i].name, name) == 0)
            return &l->files[i];
    return NULL;
}

void cache_list_sha256(const struct cache_list *l, char hex[65])
{
    struct text all = {0};
    uint8_t sha[32];
    for (size_t i = 0; i < l->n; i++)
        text_f(&all, "%s %s\n", l->files[i].name, l->files[i].sha256);
    sha256_of(text_view(&all), sha);
    sha256_hex(sha, hex);
    text_close(&all);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct cache_file *)a)->name, ((const struct cache_file *)b)->name);
}

static int join(char path[PATH_MAX], const char *dir, const char *name, struct err *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) < PATH_MAX)
        return E_OK;
    return err_set(err, E_FATAL, "%s: want a path below %d bytes", name, PATH_MAX);
}

static bool is_sha256(const char *text)
{
    return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64;
}

/* A hub cache names the blob of a large file by its SHA-256 (that of a small one by git's hash). */
static void find_blob(struct cache_file *f, const char *path)
{
    char real[PATH_MAX];
    const char *name = realpath(path, real) ? strrchr(real, '/') : NULL;
    if (!name || name - real < 6 || strncmp(name - 6, "/blobs", 6) != 0 || !is_sha256(name + 1))
        return;
    memcpy(f->blob, name + 1, sizeof f->blob);
}

static void print_time(char to[40], const struct stat *st)
{
    snprintf(to, 40, "%lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
}

int cache_unchanged(const struct cache_file *f, const char *path, const struct stat *now,
                    struct err *err)
{
    char modified[40];
    print_time(modified, now);
    if (f->bytes == (int64_t)now->st_size && strcmp(f->modified, modified) == 0)
        return E_OK;
    return err_set(err, E_FATAL,
                   "%s: want %lld bytes, modified at %s, as when it was listed, found %lld, at %s: "
                   "it changed meanwhile; cache it again when it is whole",
                   path, (long long)f->bytes, f->modified, (long long)now->st_size, modified);
}

int cache_all_unchanged(const struct cache_list *l, const char *from, struct err *err)
{
    int rc = E_OK;
    for (size_t i = 0; rc == E_OK && i < l->n; i++) {
        char path[PATH_MAX];
        struct stat st;
        rc = join(path, from, l->files[i].name, err);
        if (rc == E_OK && stat(path, &st) != 0)
            rc = err_errno(err, E_FATAL, "%s: is gone meanwhile", path);
        else if (rc == E_OK)
            rc = cache_unchanged(&l->files[i], path, &st, err);
    }
    return rc;
}

static int add_file(struct cache_list *l, const char *dir, const char *name, bool wanted,
                    struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    int rc = join(path, dir, name, err);
    if (rc < 0)
        return rc;
    if (!wanted && lstat(path, &st) != 0 && errno == ENOENT)
        return E_OK;
    if (stat(path, &st) != 0) /* a link to a blob that is gone too */
        return err_errno(err, E_FATAL, "%s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, E_FATAL, "%s: want a file, found none", path);
    struct cache_file *f = &l->files[l->n++];
    *f = (struct cache_file){.bytes = st.st_size};
    snprintf(f->name, sizeof f->name, "%s", name);
    print_time(f->modified, &st);
    find_blob(f, path);
    l->bytes += f->bytes;
    return E_OK;
}

int cache_list_source(struct cache_list *out, const char *dir, const struct model *m,
                      struct err *err)
{
    const struct weights *w = model_weights(m);
    size_t n = weights_n_files(w);
    int rc = E_OK;
    *out = (struct cache_list){.files = mem_alloc(TR_COUNT(texts) + n, sizeof *out->files)};
    if (!out->files)
        return err_set(err, E_FATAL, "%s: no memory for a list of %zu files", dir, n);
    for (size_t i = 0; rc == E_OK && i < TR_COUNT(texts); i++)
        rc = add_file(out, dir, texts[i], i == 0, err);
    for (size_t i = 0; rc == E_OK && i < n; i++)
        rc = add_file(out, dir, weights_file_name(w, i), true, err);
    qsort(out->files, out->n, sizeof *out->files, by_name);
    return rc;
}

/* ---- the manifest ---- */

int cache_set_mode(int fd, const char *path, mode_t mode, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return command_output_failed(err, path, "look at");
    if ((st.st_mode & 07777) == mode || fchmod(fd, mode) == 0 || (st.st_mode & mode) == mode)
        return E_OK;
    return command_output_failed(err, path, "set the mode of");
}

int cache_manifest_write(const struct cache_list *l, const char *dir, struct err *err)
{
    char path[PATH_MAX], sha[65];
    json_t *files = json_array(), *doc;
    int rc = join(path, dir, CACHE_MANIFEST, err);
    cache_list_sha256(l, sha);
    for (size_t i = 0; i < l->n; i++)
        json_array_append_new(files,
                              json_pack("{s:s, s:I, s:s, s:s}", "name", l->files[i].name, "bytes",
                                        (json_int_t)l->files[i].bytes, "sha256", l->files[i].sha256,
                                        "modified", l->files[i].modified));
    doc = json_pack("{s:i, s:s, s:o}", "tranche_cache", 1, "sha256", sha, "files", files);
    CHECK(doc);
    FILE *f = rc < 0 ? NULL : fopen(path, "we");
    if (rc >= 0 && !f)
        rc = command_output_failed(err, path, "write");
    if (f) {
        rc = cache_set_mode(fileno(f), path, 0644, err);
        bool whole = json_dumpf(doc, f, JSON_INDENT(2)) == 0 && fputc('\n', f) != EOF &&
                     fflush(f) == 0 && fsync(fileno(f)) == 0;
        if (!whole && rc >= 0)
            rc = command_output_failed(err, path, "write");
        if (fclose(f) != 0 && rc >= 0)
            rc = command_output_failed(err, path, "write");
    }
    json_decref(doc);
    return rc;
}

static int read_entry(struct cache_file *f, const json_t *entry, const char *path, struct err *err)
{
    struct str name = json_str(json_object_get(entry, "name"));
    const json_t *bytes = json_object_get(entry, "bytes");
    const char *sha = json_string_value(json_object_get(entry, "sha256"));
    const char *modified = json_string_value(json_object_get(entry, "modified"));
    if (!name.len || name.len >= sizeof f->name || memchr(name.ptr, '/', name.len) ||
        !json_is_integer(bytes) || !sha || !is_sha256(sha) || !modified)
        return err_set(err, E_FATAL, "%s: files: want name, bytes, sha256 and modified, found %s",
                       path, json_type_name(entry));
    f->bytes = json_integer_value(bytes);
    snprintf(f->name, sizeof f->name, "%s", name.ptr);
    snprintf(f->sha256, sizeof f->sha256, "%s", sha);
    snprintf(f->modified, sizeof f->modified, "%s", modified);
    return E_OK;
}

int cache_manifest_read(struct cache_list *out, const char *dir, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    json_t *doc = NULL, *entry;
    size_t i;
    int rc = join(path, dir, CACHE_MANIFEST, err);
    *out = (struct cache_list){0};
    if (rc < 0 || (stat(path, &st) != 0 && errno == ENOENT))
        return rc;
    if (json_parse_file(&doc, path, &json_limits_file, err) < 0)
        return err->code = E_FATAL;
    json_t *files = json_object_get(doc, "files");
    if (!json_is_array(files) || json_integer_value(json_object_get(doc, "tranche_cache")) != 1)
        rc = err_set(err, E_FATAL, "%s: want \"tranche_cache\": 1 and an array \"files\", found %s",
                     path, json_type_name(files));
    else if (!(out->files = mem_alloc(json_array_size(files) + 1, sizeof *out->files)))
        rc = err_set(err, E_FATAL, "%s: no memory to read it", path);
    if (rc >= 0) {
        json_array_foreach(files, i, entry)
        {
            if (rc >= 0)
                rc = read_entry(&out->files[out->n++], entry, path, err);
        }
    }
    for (i = 0; i < out->n; i++)
        out->bytes += out->files[i].bytes;
    json_decref(doc);
    if (rc < 0)
        cache_list_close(out);
    return rc < 0 ? rc : 1;
}

/* ---- two folders ---- */

/* What `dest` holds of one file: from its manifest, which its size must bear out, or from its
 * bytes.
 */
static int look_at(struct cache_file *have, const struct cache_list *manifest, const char *dest,
                   struct cache_meter *m, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    const struct cache_file *said = cache_list_find(manifest, have->name);
    int rc = join(path, dest, have->name, err);
    if (rc < 0)
        return rc;
    if (stat(path, &st) != 0)
        return err_errno(err, E_FATAL, "%s: is there without %s", dest, have->name);
    if (manifest->files && !said)
        return err_set(err, E_FATAL, "%s: is there, and its manifest has no %s", dest, have->name);
    have->bytes = st.st_size;
    if (!said)
        return cache_hash(path, have->sha256, m, err);
    if (said->bytes != have->bytes)
        return err_set(err, E_FATAL,
                       "%s: want %lld bytes, as the manifest beside it says, found %lld: move the "
                       "folder away, then cache it again",
                       path, (long long)said->bytes, (long long)have->bytes);
    *have = *said;
    return E_OK;
}

static int compare_file(struct cache_file *f, const char *from, const struct cache_list *manifest,
                        const char *dest, struct cache_meter *m, struct err *err)
{
    char path[PATH_MAX];
    struct cache_file have = {0};
    memcpy(have.name, f->name, sizeof have.name);
    int rc = look_at(&have, manifest, dest, m, err);
    if (rc == E_OK)
        rc = join(path, from, f->name, err);
    if (rc < 0)
        return rc;
    if (*f->blob)
        memcpy(f->sha256, f->blob, sizeof f->sha256);
    else if (f->bytes == have.bytes && strcmp(f->modified, have.modified) == 0)
        memcpy(f->sha256, have.sha256, sizeof f->sha256);
    else if ((rc = cache_hash(path, f->sha256, m, err)) < 0)
        return rc;
    if (strcmp(f->sha256, have.sha256) == 0)
        return E_OK;
    return err_set(err, E_FATAL,
                   "%s: sha256 %s there, %s in the source: %s is of other content and stays as it "
                   "is",
                   f->name, have.sha256, f->sha256, dest);
}

int cache_compare(struct cache_list *source, const char *from, const char *dest, struct err *err)
{
    struct cache_list manifest;
    struct cache_meter meter = {.what = "cache_hashing", .of = source->bytes};
    int rc = TR_MIN(cache_manifest_read(&manifest, dest, err), E_OK);
    for (size_t i = 0; rc == E_OK && i < source->n; i++)
        rc = compare_file(&source->files[i], from, &manifest, dest, &meter, err);
    for (size_t i = 0; rc == E_OK && i < manifest.n; i++)
        if (!cache_list_find(source, manifest.files[i].name))
            rc = err_set(err, E_FATAL, "%s: has %s (sha256 %s), which the source has not; it stays",
                         dest, manifest.files[i].name, manifest.files[i].sha256);
    cache_list_close(&manifest);
    return rc;
}

int cache_compare_names(const struct cache_list *read, const struct cache_list *source,
                        const char *dest, struct err *err)
{
    for (size_t i = 0; i < read->n; i++)
        if (!cache_list_find(source, read->files[i].name))
            return err_set(err, E_FATAL,
                           "%s: has %s, which a worker would read and the source has not; it stays",
                           dest, read->files[i].name);
    return E_OK;
}
