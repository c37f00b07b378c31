/* doctor_gpu: driver, cards and how they are joined, as NVIDIA's own library tells it: nothing is
 * taken of a card. */
#include <stdio.h>

#include "worker/commands/doctor.h"
#include "worker/monitor/nvml.h"

enum { CUDA_MIN = 12000, AMPERE = 8, HOPPER = 9, HOT = 85 };
static const int64_t USED_WARN = (int64_t)1 << 30;

static void look_at_card(struct doctor *d, const struct nvml *n, int i)
{
    struct nvml_card card;
    struct nvml_reading r;
    nvml_card(n, i, &card);
    nvml_read(n, i, &r);
    if (card.major >= 0 && card.major < AMPERE)
        doctor_report(d, VERDICT_WARN, "device",
                      "take a card of Ampere's generation or a later one, or --device=cpu",
                      "GPU %d, %s: want compute capability 8.0 or later (bf16), found %d.%d", i,
                      card.name, card.major, card.minor);
    else if (r.memory_used > USED_WARN || r.processes > 0)
        doctor_report(d, VERDICT_WARN, "device",
                      "end what runs there, or let the device plugin give each pod its own card",
                      "GPU %d, %s: %.1f of %.1f GiB are in use, by %d processes", i, card.name,
                      (double)r.memory_used / 1073741824, (double)r.memory / 1073741824,
                      TR_MAX(r.processes, 0));
    else
        doctor_report(d, VERDICT_OK, "device", NULL, "GPU %d, %s: %.1f GiB, free%s", i, card.name,
                      (double)r.memory / 1073741824,
                      card.major >= 0 && card.major != HOPPER ? "; no Hopper: portable kernels"
                                                              : "");
    if (r.celsius >= HOT)
        doctor_report(d, VERDICT_WARN, "device", "look at the machine's cooling: it slows down",
                      "GPU %d: %d degrees", i, r.celsius);
    if (card.pcie_width > 0 && card.pcie_width < card.pcie_width_max)
        doctor_report(d, VERDICT_WARN, "topology", "seat the card anew, or look at its slot",
                      "GPU %d: %d PCIe lanes of %d: weights load as much slower", i,
                      card.pcie_width, card.pcie_width_max);
}

/* A line for each way of meeting that occurs, with its pairs. */
static void look_at_topology(struct doctor *d, const struct nvml *n)
{
    struct nvml_card card;
    for (int i = 0; i < nvml_devices(n); i++) {
        char pairs[160] = "";
        size_t len = 0;
        nvml_card(n, i, &card);
        for (int k = i + 1; k < nvml_devices(n) && len < sizeof pairs - 40; k++)
            len += (size_t)snprintf(pairs + len, sizeof pairs - len, "%s%d by %s",
                                    len ? ", " : "; meets GPU ", k, nvml_between(n, i, k));
        doctor_report(d, VERDICT_OK, "topology", NULL, "GPU %d: %d NVLinks up, %d PCIe lanes%s", i,
                      card.nvlinks, card.pcie_width, pairs);
    }
}

void doctor_gpu(struct doctor *d)
{
    struct nvml *n = NULL;
    struct err err = {0};
    char version[NVML_NAME_MAX];
    int cuda;
    bool wanted = strncmp(config_text(d->config, "device"), "cuda", 4) == 0;
    if (nvml_open(&n, &err) < 0) {
        if (wanted)
            doctor_report(d, VERDICT_FAULT, "driver",
                          "install NVIDIA's driver on the node; in a pod: the limit nvidia.com/gpu "
                          "and, where the runtime wants it, runtimeClassName nvidia",
                          "%s", err.msg);
        nvml_close(n);
        return;
    }
    nvml_driver(n, version, &cuda);
    if (cuda && cuda < CUDA_MIN)
        doctor_report(d, VERDICT_FAULT, "driver", "install a newer driver on the node",
                      "driver %s: want CUDA 12.0 or newer, found %d.%d", version, cuda / 1000,
                      cuda % 1000 / 10);
    else
        doctor_report(d, VERDICT_OK, "driver", NULL, "driver %s, CUDA %d.%d", version, cuda / 1000,
                      cuda % 1000 / 10);
    if (nvml_devices(n) == 0)
        doctor_report(d, wanted ? VERDICT_FAULT : VERDICT_WARN, "device",
                      "give the pod the limit nvidia.com/gpu",
                      "the driver answers, and shows this process no GPU");
    for (int i = 0; i < nvml_devices(n); i++)
        look_at_card(d, n, i);
    look_at_topology(d, n);
    nvml_close(n);
}
