/* control_group: see control_group.h. */
#include "engine/control_group.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Version 1 writes "no limit" as the greatest whole number of pages. */
#define NO_LIMIT (INT64_MAX / 2)
enum { FILE_BYTES = 8192, PATH_BYTES = 4096, FOLDER_BYTES = PATH_BYTES + 512 };

/* Where a controller's groups lie, and ours below. */
struct place {
    char mount[FOLDER_BYTES], path[PATH_BYTES]; /* path "": the top, else "/a/b" */
    bool v1;
};

/* A small file of the kernel; "" where it cannot be read. */
static const char *read_file(char buf[FILE_BYTES], const char *folder, const char *name)
{
    char path[FOLDER_BYTES + PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, buf, FILE_BYTES - 1);
    if (fd >= 0)
        close(fd);
    buf[TR_MAX(n, 0)] = '\0';
    return buf;
}

/* The number behind `key` at the start of a line; -1: no such line, or "max". */
static int64_t number_of(const char *text, const char *key)
{
    const size_t n = strlen(key);
    while (*text) {
        if (strncmp(text, key, n) == 0) {
            char *end;
            long long v = strtoll(text + n, &end, 10);
            return end == text + n || v < 0 ? -1 : (int64_t)v;
        }
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    return -1;
}

static int64_t file_number(const char *folder, const char *name, const char *key)
{
    char buf[FILE_BYTES];
    return number_of(read_file(buf, folder, name), key);
}

/* Whether a list of names with commas holds this one. */
static bool lists(const char *names, size_t n, const char *name)
{
    for (size_t at = 0; at < n;) {
        size_t word = strcspn(names + at, ",:");
        if (word == strlen(name) && strncmp(names + at, name, word) == 0)
            return true;
        at += word + 1;
    }
    return false;
}

static void take_path(struct place *p, const char *path)
{
    size_t n = strcspn(path, "\n");
    while (n > 0 && path[n - 1] == '/')
        n--;
    if (n >= sizeof p->path || memmem(path, n, "/..", 3))
        n = 0; /* outside of what is mounted here */
    memcpy(p->path, path, n);
    p->path[n] = '\0';
}

/* The path behind "N:NAMES:" of a line whose names hold `controller`, or, for "", are none: version
 * 2's. NULL: no such line. */
static const char *path_of(const char *line, const char *controller)
{
    for (; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        const char *names = line + strcspn(line, ":\n");
        if (*names != ':')
            continue;
        names++;
        size_t n = strcspn(names, ":\n");
        if (names[n] == ':' && (*controller ? lists(names, n, controller) : n == 0))
            return names + n + 1;
    }
    return NULL;
}

/* Version 1's goes before version 2's, where it is mounted. */
static void find(struct place *p, const char *root, const char *controller)
{
    char buf[FILE_BYTES], proc[FOLDER_BYTES];
    struct stat st;
    *p = (struct place){.v1 = false};
    snprintf(proc, sizeof proc, "%s/proc/self", root);
    const char *lines = read_file(buf, proc, "cgroup"), *path = path_of(lines, controller);
    snprintf(p->mount, sizeof p->mount, "%s/sys/fs/cgroup/%s", root, controller);
    p->v1 = path && stat(p->mount, &st) == 0;
    if (!p->v1) {
        snprintf(p->mount, sizeof p->mount, "%s/sys/fs/cgroup", root);
        path = path_of(lines, "");
    }
    take_path(p, path ? path : "");
}

static int64_t least(int64_t a, int64_t b)
{
    return a < 0 ? b : b < 0 ? a : TR_MIN(a, b);
}

static void look_at_memory(struct control_group *g, const char *folder, bool v1)
{
    int64_t limit =
        v1 ? file_number(folder, "memory.limit_in_bytes", "")
           : least(file_number(folder, "memory.max", ""), file_number(folder, "memory.high", ""));
    int64_t used = file_number(folder, v1 ? "memory.usage_in_bytes" : "memory.current", "");
    if (limit < 0 || limit > NO_LIMIT)
        return;
    g->memory_limit = least(g->memory_limit, limit);
    if (used < 0)
        return;
    int64_t cached =
        file_number(folder, "memory.stat", v1 ? "total_inactive_file " : "inactive_file ");
    used -= TR_MIN(TR_MAX(cached, 0), used);
    g->memory_left = least(g->memory_left, TR_MAX(limit - used, 0));
}

static void look_at_cpu(struct control_group *g, const char *folder, bool v1)
{
    char buf[FILE_BYTES];
    int64_t quota, period;
    if (v1) {
        quota = file_number(folder, "cpu.cfs_quota_us", "");
        period = file_number(folder, "cpu.cfs_period_us", "");
    } else {
        const char *text = read_file(buf, folder, "cpu.max");
        quota = number_of(text, "");
        period = number_of(text + strcspn(text, " "), "");
    }
    if (quota <= 0 || period <= 0)
        return;
    double cpus = (double)quota / (double)period;
    g->cpus = g->cpus > 0 ? TR_MIN(g->cpus, cpus) : cpus;
}

/* From the own group to the top of the mount. */
static void walk(struct control_group *g, struct place *p,
                 void (*look)(struct control_group *, const char *, bool))
{
    char folder[FOLDER_BYTES + PATH_BYTES];
    for (;;) {
        snprintf(folder, sizeof folder, "%s%s", p->mount, p->path);
        look(g, folder, p->v1);
        char *slash = strrchr(p->path, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

/* A parent counts the kills of all its children: of the own group, or none. */
static int64_t kills_of(const struct place *p)
{
    char folder[FOLDER_BYTES + PATH_BYTES];
    struct stat st;
    snprintf(folder, sizeof folder, "%s%s", p->mount, p->path);
    return file_number(stat(folder, &st) == 0 ? folder : p->mount,
                       p->v1 ? "memory.oom_control" : "memory.events", "oom_kill ");
}

void control_group_read(struct control_group *out, const char *root)
{
    struct place p;
    *out = (struct control_group){-1, -1, -1, 0};
    find(&p, root, "memory");
    out->oom_kills = kills_of(&p);
    walk(out, &p, look_at_memory);
    find(&p, root, "cpu");
    walk(out, &p, look_at_cpu);
}

int32_t control_group_threads(const struct control_group *g, int32_t cpus)
{
    return g->cpus > 0 && g->cpus < cpus ? TR_MAX((int32_t)g->cpus, 1) : cpus;
}
