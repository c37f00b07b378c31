/* control_group: what the kernel's control groups grant this process. Version 2, version 1 and the
 * two side by side; every group from its own up to the top counts, and the least of them holds.
 *
 * A container may see its group as the top ("0::/"), or the host's path with only its own group
 * mounted there: so the top of the mount is always read, and what is not there is passed over. */
#ifndef TRANCHE_ENGINE_CONTROL_GROUP_H
#define TRANCHE_ENGINE_CONTROL_GROUP_H

#include "engine/base.h"

struct control_group {
    int64_t memory_limit; /* bytes: the least of memory.max and memory.high; -1: none */
    int64_t memory_left;  /* least distance of a limit from what is used, without file pages that
                             the kernel can drop (inactive_file); -1: no limit */
    int64_t oom_kills;    /* processes of the own group killed for memory so far; -1: not known */
    double cpus;          /* CPUs' worth of time that it grants; 0: all */
};
/* `root`: "" of the machine; of a test a folder that holds proc/self/cgroup and sys/fs/cgroup. */
void control_group_read(struct control_group *out, const char *root);
/* Whole CPUs of `cpus` that the quota lets run all the time, at least one. */
int32_t control_group_threads(const struct control_group *g, int32_t cpus);

#endif
