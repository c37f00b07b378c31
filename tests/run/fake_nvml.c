/* fake_nvml: a libnvidia-ml.so.1 that says what its environment tells it to, for machines without a
 * GPU. Built by test_gpu_metrics.py. Structures as in NVIDIA's NVML API reference. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9 };
static int initialized;
static long handles[8];

static long value(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}
static int ready(void)
{
    return initialized ? SUCCESS : UNINITIALIZED;
}
int nvmlInit_v2(void)
{
    if (value("FAKE_NO_DRIVER", 0))
        return DRIVER_NOT_LOADED;
    initialized++;
    return SUCCESS;
}
int nvmlShutdown(void)
{
    initialized--;
    return SUCCESS;
}
const char *nvmlErrorString(int code)
{
    return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Error";
}
int nvmlSystemGetDriverVersion(char *out, unsigned cap)
{
    snprintf(out, cap, "560.35.03");
    return ready();
}
int nvmlSystemGetCudaDriverVersion(int *out)
{
    *out = (int)value("FAKE_CUDA", 12060);
    return ready();
}
int nvmlDeviceGetCount_v2(unsigned *out)
{
    *out = (unsigned)value("FAKE_GPUS", 1);
    return ready();
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, long **out)
{
    handles[i] = i;
    *out = &handles[i];
    return ready();
}
int nvmlDeviceGetName(long *d, char *out, unsigned cap)
{
    snprintf(out, cap, "Fake H100 %ld", *d);
    return ready();
}
int nvmlDeviceGetMemoryInfo(long *d, struct memory_info *out)
{
    unsigned long long used = (unsigned long long)value("FAKE_USED_MIB", 512) << 20;
    *out = (struct memory_info){80ull << 30, (80ull << 30) - used, used + (unsigned long long)*d};
    return ready();
}
int nvmlDeviceGetUtilizationRates(long *d, struct utilization *out)
{
    (void)d;
    if (value("FAKE_NO_RATES", 0))
        return NOT_SUPPORTED;
    *out = (struct utilization){(unsigned)value("FAKE_BUSY", 93),
                                (unsigned)value("FAKE_CONTROLLER", 71)};
    return ready();
}
int nvmlDeviceGetTemperature(long *d, int sensor, unsigned *out)
{
    (void)d, (void)sensor;
    if (value("FAKE_SLOW_S", 0))
        sleep((unsigned)value("FAKE_SLOW_S", 0));
    *out = (unsigned)value("FAKE_CELSIUS", 61);
    return ready();
}
/* FAKE_FOREIGN processes, and the caller's own where FAKE_OURS says so. */
int nvmlDeviceGetComputeRunningProcesses_v3(long *d, unsigned *n, struct process_info *out)
{
    unsigned foreign = (unsigned)value("FAKE_FOREIGN", 0), ours = (unsigned)value("FAKE_OURS", 0);
    (void)d;
    for (unsigned i = 0; i < foreign + ours && i < *n; i++)
        out[i] = (struct process_info){i < foreign ? 1 : (unsigned)getpid(), 1 << 20, 0, 0};
    *n = foreign + ours;
    return ready();
}
int nvmlDeviceGetCudaComputeCapability(long *d, int *major, int *minor)
{
    (void)d;
    *major = (int)value("FAKE_MAJOR", 9);
    *minor = 0;
    return ready();
}
int nvmlDeviceGetCurrPcieLinkWidth(long *d, unsigned *out)
{
    (void)d;
    *out = (unsigned)value("FAKE_LANES", 16);
    return ready();
}
int nvmlDeviceGetMaxPcieLinkWidth(long *d, unsigned *out)
{
    (void)d;
    *out = 16;
    return ready();
}
int nvmlDeviceGetNvLinkState(long *d, unsigned link, unsigned *out)
{
    (void)d;
    *out = link < (unsigned)value("FAKE_NVLINKS", 18);
    return ready();
}
int nvmlDeviceGetTopologyCommonAncestor(long *one, long *other, int *out)
{
    (void)one, (void)other;
    *out = (int)value("FAKE_LEVEL", 50);
    return ready();
}
