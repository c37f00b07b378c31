/* doctor_quota: whether a ResourceQuota keeps pods like ours from being made. */
#include <stdlib.h>

#include "worker/commands/doctor.h"

/* "16Gi", "500m", "3": the number, for comparing. */
static double quantity(const char *text)
{
    static const char *const suffixes[] = {"Ki", "Mi", "Gi", "Ti", "Pi", "k", "M", "G", "T", "m"};
    static const double factors[] = {
        1024.0, 1048576.0, 1073741824.0, 1099511627776.0, 1125899906842624.0, 1e3, 1e6,
        1e9,    1e12,      1e-3};
    char *end;
    double v = strtod(text, &end);
    for (size_t i = 0; i < TR_COUNT(suffixes); i++)
        if (strcmp(end, suffixes[i]) == 0)
            return v * factors[i];
    return v;
}

/* Behind "requests.", "limits.", "count/" or nothing, what each of our pods wants. */
static bool is_wanted(const char *name)
{
    static const char *const wanted[] = {"pods",   "jobs.batch",        "cpu",
                                         "memory", "ephemeral-storage", "nvidia.com/gpu"};
    size_t n = strlen(name);
    for (size_t i = 0; i < TR_COUNT(wanted); i++) {
        size_t tail = strlen(wanted[i]);
        if (n >= tail && strcmp(name + n - tail, wanted[i]) == 0 &&
            (n == tail || strchr("./", name[n - tail - 1])))
            return true;
    }
    return false;
}

bool doctor_quota_is_full(const json_t *quota, const char *name, const char *used, const char *most)
{
    const json_t *spec = json_object_get(quota, "spec");
    if (quantity(used) < quantity(most))
        return false;
    if (quantity(used) > 0)
        return true;
    /* None of none: somebody forbids it. Whether a quota for some pods only means ours, the event
     * of the one that it refuses tells. */
    return is_wanted(name) && !json_object_get(spec, "scopes") &&
           !json_object_get(spec, "scopeSelector");
}
