/* doctor_limits: what the container grants: memory, CPU, and the folders and times that a worker is
 * given. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/commands/doctor.h"

static const int64_t MIB = (int64_t)1 << 20, GRACE_MIN_NS = 10000000000;

static void look_at_memory(struct doctor *d)
{
    int64_t limit = memory_limit(), own = config_int(d->config, "memory-limit");
    if (limit < 0)
        return;
    doctor_memory_line(d, "limit of the control group", limit);
    if (own >= limit)
        doctor_report(d, VERDICT_WARN, "limits",
                      "set --memory-limit below it, so that someone is left to record why",
                      "--memory-limit is %lld MiB, the control group grants %lld MiB",
                      (long long)(own / MIB), (long long)(limit / MIB));
    else
        doctor_report(d, VERDICT_OK, "limits", NULL, "the control group grants %lld MiB of memory",
                      (long long)(limit / MIB));
}

static void look_at_spool(struct doctor *d)
{
    const char *dir = config_text(d->config, "spool-dir");
    int64_t want = config_int(d->config, "spool-bytes");
    struct stat st;
    if (!dir)
        return;
    int64_t have = disk_free(dir);
    if (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode))
        doctor_report(d, VERDICT_FAULT, "spool", "make the folder", "%s: %s", dir,
                      S_ISDIR(st.st_mode) ? strerror(errno) : "no folder");
    else if (access(dir, W_OK | X_OK) != 0)
        doctor_report(d, VERDICT_FAULT, "spool",
                      "give it to this user: chown, or fsGroup of the pod",
                      "%s: user %d cannot write: owner %d, mode %03o", dir, (int)geteuid(),
                      (int)st.st_uid, (unsigned)(st.st_mode & 07777));
    else if (have >= 0 && have < want)
        doctor_report(d, VERDICT_WARN, "spool", "lower --spool-bytes, or take a larger volume",
                      "%s: --spool-bytes is %lld MiB, %lld MiB are free", dir,
                      (long long)(want / MIB), (long long)(have / MIB));
    else
        doctor_report(d, VERDICT_OK, "spool", NULL, "%s: %lld MiB free", dir,
                      (long long)(have / MIB));
}

static void look_at_grace(struct doctor *d)
{
    int64_t grace = config_int(d->config, "grace");
    if (grace < GRACE_MIN_NS)
        doctor_report(d, VERDICT_WARN, "grace",
                      "--grace 30s or more, and terminationGracePeriodSeconds 20 s above it",
                      "%.1f s at SIGTERM: a step and its parking may not fit, and what runs would "
                      "begin anew",
                      (double)grace / 1e9);
}

void doctor_limits(struct doctor *d)
{
    look_at_memory(d);
    look_at_spool(d);
    look_at_grace(d);
}
