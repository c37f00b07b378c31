/* nvml: what the driver says of its GPUs. NVIDIA's libnvidia-ml.so.1 comes with the driver and is
 * looked for when the process runs: no build needs it, and a machine without one has no GPUs. It
 * opens no CUDA context and takes no memory of a card. Interface: NVIDIA's NVML API reference. */
#ifndef TRANCHE_WORKER_MONITOR_NVML_H
#define TRANCHE_WORKER_MONITOR_NVML_H

#include "engine/base.h"

enum { NVML_DEVICES_MAX = 8, NVML_NAME_MAX = 96 };

struct nvml; /* one at a time in a process */
/* E_RETRY naming why: no such library, or it finds no driver. nvml_close in either case. */
int nvml_open(struct nvml **out, struct err *err) TR_MUSTCHECK;
void nvml_close(struct nvml *n); /* NULL is legal */

/* GPUs that this process may see, at most NVML_DEVICES_MAX; in a pod those that it was given. */
int nvml_devices(const struct nvml *n);
/* "560.35.03"; the newest CUDA that the driver knows, as 12060 (0: it does not say). */
void nvml_driver(const struct nvml *n, char version[NVML_NAME_MAX], int *cuda);

/* -1 where the driver does not say. */
struct nvml_reading {
    int64_t memory, memory_used; /* bytes */
    int gpu_percent;             /* share of the last moments in which a kernel ran */
    int controller_percent;      /* in which memory was read or written */
    int celsius;
    int processes; /* that compute on it */
    bool ours;     /* this process is one of them; never so where ids are of another namespace */
};
void nvml_read(const struct nvml *n, int device, struct nvml_reading *out);

struct nvml_card {
    char name[NVML_NAME_MAX];
    int major, minor;               /* compute capability */
    int pcie_width, pcie_width_max; /* lanes */
    int nvlinks;                    /* that are up */
};
void nvml_card(const struct nvml *n, int device, struct nvml_card *out);
/* How two of them meet: "one board", "one PCIe switch", ..., "two CPU sockets". */
const char *nvml_between(const struct nvml *n, int one, int other);

#endif
