/* config_watch: a thread that looks at the directory of --job-config once a second, and when it has
 * changed loads and checks the new revision there, off every thread that a job passes through. What
 * holds goes to the worker as EVENT_CONFIG; what does not is logged and counted once, and the
 * revision before goes on.
 *
 * It asks rather than listens: a change is one readlink (of the kubelet's `..data`), which costs
 * microseconds; inotify watches an inode, says nothing on NFS and other network mounts, and would
 * gain a second where the kubelet itself takes up to a minute and a half. */
#ifndef TRANCHE_WORKER_CONFIG_WATCH_H
#define TRANCHE_WORKER_CONFIG_WATCH_H

#include "worker/job/job_config.h"
#include "worker/queue.h"

struct config_watch;
struct config_watch_opts {
    const struct job_config_base *base; /* base->dir set; borrowed */
    const char *revision;               /* of what was loaded from it at the start */
    struct queue *events;
    int64_t every_ns; /* 0: 1 s */
};
int config_watch_open(struct config_watch **out, const struct config_watch_opts *opts,
                      struct err *err) TR_MUSTCHECK;
void config_watch_close(struct config_watch *w); /* waits for the thread; NULL is legal */

#endif
