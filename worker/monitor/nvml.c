/* nvml: see nvml.h. */
#include "worker/monitor/nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

enum { SUCCESS = 0, INSUFFICIENT_SIZE = 7, TEMPERATURE_GPU = 0, NVLINKS_MAX = 18, PIDS_MAX = 256 };

typedef struct device *handle;
struct memory_info {
    unsigned long long total, free, used;
};
struct utilization {
    unsigned gpu, memory;
};
struct process_info {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
};

struct nvml {
    void *library;
    handle devices[NVML_DEVICES_MAX];
    int n;
    bool begun;
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error_string)(int);
    int (*driver_version)(char *, unsigned);
    int (*cuda_version)(int *);
    int (*count)(unsigned *);
    int (*by_index)(unsigned, handle *);
    int (*name)(handle, char *, unsigned);
    int (*memory)(handle, struct memory_info *);
    int (*utilization)(handle, struct utilization *);
    int (*temperature)(handle, int, unsigned *);
    int (*processes)(handle, unsigned *, struct process_info *);
    int (*capability)(handle, int *, int *);
    int (*pcie_width)(handle, unsigned *);
    int (*pcie_width_max)(handle, unsigned *);
    int (*nvlink)(handle, unsigned, unsigned *);
    int (*ancestor)(handle, handle, int *);
};

/* A function that is absent stays NULL: older drivers have fewer. */
static void find_all(struct nvml *n)
{
    const struct {
        const char *name;
        void *to;
    } all[] = {{"nvmlInit_v2", &n->init},
               {"nvmlShutdown", &n->shutdown},
               {"nvmlErrorString", &n->error_string},
               {"nvmlSystemGetDriverVersion", &n->driver_version},
               {"nvmlSystemGetCudaDriverVersion", &n->cuda_version},
               {"nvmlDeviceGetCount_v2", &n->count},
               {"nvmlDeviceGetHandleByIndex_v2", &n->by_index},
               {"nvmlDeviceGetName", &n->name},
               {"nvmlDeviceGetMemoryInfo", &n->memory},
               {"nvmlDeviceGetUtilizationRates", &n->utilization},
               {"nvmlDeviceGetTemperature", &n->temperature},
               {"nvmlDeviceGetComputeRunningProcesses_v3", &n->processes},
               {"nvmlDeviceGetCudaComputeCapability", &n->capability},
               {"nvmlDeviceGetCurrPcieLinkWidth", &n->pcie_width},
               {"nvmlDeviceGetMaxPcieLinkWidth", &n->pcie_width_max},
               {"nvmlDeviceGetNvLinkState", &n->nvlink},
               {"nvmlDeviceGetTopologyCommonAncestor", &n->ancestor}};
    for (size_t i = 0; i < TR_COUNT(all); i++) {
        void *found = dlsym(n->library, all[i].name);
        memcpy(all[i].to, &found, sizeof found); /* ISO C has no cast for this */
    }
}

int nvml_open(struct nvml **out, struct err *err)
{
    struct nvml *n = *out = mem_alloc(1, sizeof *n);
    unsigned count = 0;
    if (!n)
        return err_set(err, E_RETRY, "nvml: no memory");
    *n = (struct nvml){.library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)};
    if (!n->library)
        return err_set(err, E_RETRY, "no NVIDIA driver: libnvidia-ml.so.1 is not to be found");
    find_all(n);
    if (!n->init || !n->shutdown || !n->count || !n->by_index)
        return err_set(err, E_RETRY, "libnvidia-ml.so.1 is not one that we know");
    int code = n->init();
    n->begun = code == SUCCESS;
    if (code == SUCCESS)
        code = n->count(&count);
    if (code != SUCCESS)
        return err_set(err, E_RETRY, "the NVIDIA driver does not answer: %s",
                       n->error_string ? n->error_string(code) : "no reason given");
    for (unsigned i = 0; i < count && n->n < NVML_DEVICES_MAX; i++)
        if (n->by_index(i, &n->devices[n->n]) == SUCCESS)
            n->n++;
    return E_OK;
}

void nvml_close(struct nvml *n)
{
    if (!n)
        return;
    if (n->begun)
        n->shutdown();
    if (n->library)
        dlclose(n->library);
    mem_free(n);
}

int nvml_devices(const struct nvml *n)
{
    return n->n;
}

void nvml_driver(const struct nvml *n, char version[NVML_NAME_MAX], int *cuda)
{
    if (!n->driver_version || n->driver_version(version, NVML_NAME_MAX) != SUCCESS)
        snprintf(version, NVML_NAME_MAX, "unknown");
    if (!n->cuda_version || n->cuda_version(cuda) != SUCCESS)
        *cuda = 0;
}

/* The list grows between two questions; what does not fit counts, but is not looked through. */
static void count_processes(const struct nvml *n, handle d, struct nvml_reading *out)
{
    struct process_info list[PIDS_MAX];
    unsigned count = PIDS_MAX;
    int code = n->processes ? n->processes(d, &count, list) : -1;
    if (code != SUCCESS && code != INSUFFICIENT_SIZE)
        return;
    out->processes = (int)count;
    for (unsigned i = 0; code == SUCCESS && i < TR_MIN(count, (unsigned)PIDS_MAX); i++)
        out->ours = out->ours || list[i].pid == (unsigned)getpid();
}

void nvml_read(const struct nvml *n, int device, struct nvml_reading *out)
{
    handle d = n->devices[device];
    struct memory_info memory;
    struct utilization use;
    unsigned celsius;
    *out = (struct nvml_reading){-1, -1, -1, -1, -1, -1, false};
    if (n->memory && n->memory(d, &memory) == SUCCESS) {
        out->memory = (int64_t)memory.total;
        out->memory_used = (int64_t)memory.used;
    }
    if (n->utilization && n->utilization(d, &use) == SUCCESS) {
        out->gpu_percent = (int)use.gpu;
        out->controller_percent = (int)use.memory;
    }
    if (n->temperature && n->temperature(d, TEMPERATURE_GPU, &celsius) == SUCCESS)
        out->celsius = (int)celsius;
    count_processes(n, d, out);
}

void nvml_card(const struct nvml *n, int device, struct nvml_card *out)
{
    handle d = n->devices[device];
    unsigned v;
    *out = (struct nvml_card){.name = "unknown", .major = -1, .pcie_width = -1};
    if (n->name && n->name(d, out->name, NVML_NAME_MAX) != SUCCESS)
        snprintf(out->name, sizeof out->name, "unknown");
    if (!n->capability || n->capability(d, &out->major, &out->minor) != SUCCESS)
        out->major = -1;
    if (n->pcie_width && n->pcie_width(d, &v) == SUCCESS)
        out->pcie_width = (int)v;
    out->pcie_width_max =
        n->pcie_width_max && n->pcie_width_max(d, &v) == SUCCESS ? (int)v : out->pcie_width;
    for (unsigned link = 0; n->nvlink && link < NVLINKS_MAX; link++)
        out->nvlinks += n->nvlink(d, link, &v) == SUCCESS && v == 1;
}

const char *nvml_between(const struct nvml *n, int one, int other)
{
    static const struct {
        int level;
        const char *text;
    } levels[] = {{0, "one board"},        {10, "one PCIe switch"}, {20, "several PCIe switches"},
                  {30, "one host bridge"}, {40, "one CPU socket"},  {50, "two CPU sockets"}};
    int level;
    if (!n->ancestor || n->ancestor(n->devices[one], n->devices[other], &level) != SUCCESS)
        return "a way that the driver does not tell";
    for (size_t i = 0; i < TR_COUNT(levels); i++)
        if (level <= levels[i].level)
            return levels[i].text;
    return "two CPU sockets";
}
