/* gpu_watch: a thread that asks the driver about its GPUs every few seconds and tells metrics.h. On
 * its own, because a card that has fallen off its bus may keep whoever asks. */
#ifndef TRANCHE_WORKER_MONITOR_GPU_WATCH_H
#define TRANCHE_WORKER_MONITOR_GPU_WATCH_H

#include "engine/base.h"

struct gpu_watch;
/* NULL: there is no driver, or no thread to be had; its metrics then have no samples. */
struct gpu_watch *gpu_watch_open(void);
void gpu_watch_close(struct gpu_watch *g); /* NULL is legal */

#endif
