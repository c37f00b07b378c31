/* supervisor_memory: see supervisor_memory.h. */
#include "worker/supervisor/supervisor_memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/control_group.h"

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

int64_t memory_kills(void)
{
    struct control_group group;
    control_group_read(&group, "");
    return TR_MAX(group.oom_kills, (int64_t)0);
}
