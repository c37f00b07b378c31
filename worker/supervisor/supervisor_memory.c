/* supervisor_memory: see supervisor_memory.h. */
#include "worker/supervisor/supervisor_memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { FILE_BYTES = 4096 };

/* A small file of /proc or /sys; empty where it cannot be read. */
static struct str read_small(const char *path, char buf[FILE_BYTES])
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, buf, FILE_BYTES - 1);
    if (fd >= 0)
        close(fd);
    n = TR_MAX(n, 0);
    buf[n] = '\0';
    return (struct str){buf, (size_t)n};
}

int64_t memory_resident(pid_t pid)
{
    char path[64], buf[FILE_BYTES], *at;
    snprintf(path, sizeof path, "/proc/%ld/statm", (long)pid);
    struct str text = read_small(path, buf);
    if (text.len == 0)
        return 0;
    (void)strtoll(text.ptr, &at, 10); /* pages of address space */
    return strtoll(at, NULL, 10) * sysconf(_SC_PAGESIZE);
}

int64_t memory_kills_parse(struct str events)
{
    static const char name[] = "oom_kill ";
    const char *at = events.ptr, *end = at + events.len;
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((newline ? newline : end) - at);
        if (n > sizeof name - 1 && memcmp(at, name, sizeof name - 1) == 0)
            return strtoll(at + sizeof name - 1, NULL, 10);
        at += n + 1;
    }
    return -1;
}

bool memory_group_parse(struct str cgroups, struct str *path)
{
    const char *at = cgroups.ptr, *end = at + cgroups.len;
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((newline ? newline : end) - at);
        if (n >= 4 && memcmp(at, "0::/", 4) == 0) {
            *path = (struct str){at + 3, n - 3};
            return true;
        }
        at += n + 1;
    }
    return false;
}

int64_t memory_kills(void)
{
    char buf[FILE_BYTES], path[FILE_BYTES + 64];
    struct str group;
    if (!memory_group_parse(read_small("/proc/self/cgroup", buf), &group))
        return 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup" STR_FMT "/memory.events", STR_ARG(group));
    int64_t kills = memory_kills_parse(read_small(path, buf));
    return TR_MAX(kills, (int64_t)0);
}
