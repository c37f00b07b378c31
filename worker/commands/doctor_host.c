/* doctor_host: the machine's side of the doctor: CPU, memory, database file, disk. */
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "engine/control_group.h"
#include "worker/commands/doctor.h"

#define NFS_MAGIC  0x6969u     /* statfs(2) */
#define SMB2_MAGIC 0xFE534D42u /* statfs(2) */
#define MIB        ((int64_t)1 << 20)

/* First line of a small file that starts with `key`; false when there is none. */
static bool file_line(const char *path, const char *key, char *line, size_t cap)
{
    FILE *f = fopen(path, "r");
    bool found = false;
    while (f && !found && fgets(line, (int)cap, f))
        found = strncmp(line, key, strlen(key)) == 0;
    if (f)
        fclose(f);
    if (found)
        line[strcspn(line, "\n")] = '\0';
    return found;
}

int64_t memory_limit(void)
{
    struct control_group group;
    control_group_read(&group, "");
    return group.memory_limit;
}

int64_t disk_free(const char *dir)
{
    struct statvfs v;
    return statvfs(dir, &v) == 0 ? (int64_t)v.f_bavail * (int64_t)v.f_frsize : -1;
}

int64_t memory_available(void)
{
    char line[128];
    int64_t system = -1;
    if (file_line("/proc/meminfo", "MemAvailable:", line, sizeof line))
        system = strtoll(line + strlen("MemAvailable:"), NULL, 10) * 1024;
    struct control_group group;
    control_group_read(&group, "");
    if (group.memory_left < 0)
        return system;
    return system < 0 ? group.memory_left : TR_MIN(system, group.memory_left);
}

int cpus_allowed(double *quota)
{
    cpu_set_t set;
    struct control_group group;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    control_group_read(&group, "");
    *quota = group.cpus;
    return n;
}

int threads_chosen(void)
{
    double quota;
    int cpus = cpus_allowed(&quota);
    return control_group_threads(&(struct control_group){.cpus = quota}, cpus);
}

static void cpu_features(char *out, size_t cap)
{
    static const char *const names[] = {"avx2",     "fma",         "f16c",    "avx512f",
                                        "avx512bw", "avx512_bf16", "amx_bf16"};
    static char line[8192];
    size_t n = 0;
    out[0] = '\0';
    if (!file_line("/proc/cpuinfo", "flags", line, sizeof line))
        return;
    for (size_t i = 0; i < TR_COUNT(names); i++) {
        char word[32];
        snprintf(word, sizeof word, " %s", names[i]);
        for (const char *p = line; (p = strstr(p, word)) != NULL; p++) {
            if (p[strlen(word)] != ' ' && p[strlen(word)] != '\0')
                continue;
            n += (size_t)snprintf(out + n, cap - n, "%s%s", n ? " " : "", names[i]);
            break;
        }
    }
}

void doctor_cpu(struct doctor *d)
{
    char features[128], line[256];
    const char *model = "CPU";
    double quota;
    int cpus = cpus_allowed(&quota);
    int64_t asked = config_int(d->config, "threads");
    int64_t threads = asked ? asked : threads_chosen();
    enum cpu_isa best = cpu_isa_best();
    if (file_line("/proc/cpuinfo", "model name", line, sizeof line) && strchr(line, ':'))
        model = strchr(line, ':') + 2;
    cpu_features(features, sizeof features);
    if (best == CPU_ISA_SCALAR)
        doctor_report(d, VERDICT_WARN, "cpu", "run on a CPU with AVX2 (x86-64-v3)",
                      "%s: no AVX2, so the scalar kernels run, many times slower", model);
    else
        doctor_report(d, VERDICT_OK, "cpu", NULL, "%s: %s kernels (%s)", model,
                      config_choice(d->config, "isa") ? config_text(d->config, "isa")
                                                      : cpu_isa_name(best),
                      features);
    if (threads > cpus)
        doctor_report(d, VERDICT_WARN, "threads",
                      "--threads=0 takes one for each CPU that it may use",
                      "want at most the %d CPUs of this process, found --threads=%lld", cpus,
                      (long long)threads);
    else if (quota > 0 && quota < (double)threads)
        doctor_report(d, VERDICT_WARN, "threads",
                      "raise the container's CPU limit, or set --threads to it rounded down",
                      "%lld threads, but the control group grants %.1f CPUs: they would be stopped "
                      "in mid-step",
                      (long long)threads, quota);
    else
        doctor_report(d, VERDICT_OK, "threads", NULL, "%lld of %d CPUs", (long long)threads, cpus);
}

static void check_disk(struct doctor *d, const char *dir)
{
    struct statvfs v;
    struct statfs f;
    if (statvfs(dir, &v) != 0) {
        doctor_report(d, VERDICT_FAULT, "disk", "name a folder that exists with --db", "%s: %s",
                      dir, strerror(errno));
        return;
    }
    int64_t bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
    enum verdict verdict = bytes < 64 * MIB     ? VERDICT_FAULT
                           : bytes < 1024 * MIB ? VERDICT_WARN
                                                : VERDICT_OK;
    doctor_report(d, verdict, "disk",
                  verdict == VERDICT_OK ? NULL : "free space, or put --db on another disk",
                  "%lld MiB free in %s (a row takes about 2 to 20 KiB)", (long long)(bytes / MIB),
                  dir);
    if (statfs(dir, &f) == 0 &&
        ((uint32_t)f.f_type == NFS_MAGIC || (uint32_t)f.f_type == SMB2_MAGIC))
        doctor_report(d, VERDICT_WARN, "disk", "put --db on a local disk",
                      "%s is a network file system: SQLite's locks are not reliable there", dir);
}

static void folder_of(char *dir, size_t cap, const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(dir, cap, ".");
    else
        snprintf(dir, cap, "%.*s", (int)TR_MAX(slash - path, 1), path);
}

/* The one integer that a statement gives; -1 when it cannot run. */
static int64_t query_integer(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *s = NULL;
    int64_t v = -1;
    if (sqlite3_prepare_v2(db, sql, -1, &s, NULL) == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW)
        v = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return v;
}

static void check_schema(struct doctor *d, sqlite3 *db, const char *path)
{
    int rc = sqlite3_exec(db, "BEGIN IMMEDIATE; ROLLBACK", NULL, NULL, NULL);
    if (rc == SQLITE_BUSY) {
        doctor_report(d, VERDICT_WARN, "database", "let the other run end, or name another --db",
                      "%s: another process is writing to it", path);
    } else if (rc != SQLITE_OK) {
        doctor_report(d, VERDICT_FAULT, "database",
                      rc == SQLITE_NOTADB ? "name another file with --db: this one is left alone"
                                          : "make file and folder writable, or name another --db",
                      "%s: %s", path, sqlite3_errmsg(db));
    } else if (query_integer(db, "SELECT count(*) FROM sqlite_schema") == 0) {
        doctor_report(d, VERDICT_OK, "database", NULL, "%s: empty; a run makes the tables", path);
    } else {
        int64_t version = query_integer(db, "SELECT max(version) FROM schema_migrations");
        int64_t rows = query_integer(db, "SELECT count(*) FROM results");
        if (version < 0 || rows < 0)
            doctor_report(d, VERDICT_FAULT, "database", "name another file with --db",
                          "%s: a database, but not one of tranche's", path);
        else
            doctor_report(d, VERDICT_OK, "database", NULL, "%s: schema %lld, %lld rows, writable",
                          path, (long long)version, (long long)rows);
    }
}

void doctor_database(struct doctor *d)
{
    const char *path = config_text(d->config, "db");
    char dir[PATH_MAX];
    struct stat st;
    sqlite3 *db = NULL;
    if (doctor_postgres(d))
        return;
    folder_of(dir, sizeof dir, path);
    if (stat(path, &st) != 0) {
        if (access(dir, W_OK | X_OK) == 0)
            doctor_report(d, VERDICT_OK, "database", NULL, "%s: none yet; a run makes it", path);
        else
            doctor_report(d, VERDICT_FAULT, "database",
                          "make the folder, or name a writable one with --db",
                          "%s: cannot be made: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        doctor_report(d, VERDICT_FAULT, "database", "name a file with --db", "%s: no regular file",
                      path);
    } else if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) {
        doctor_report(d, VERDICT_FAULT, "database", "make it writable, or name another --db",
                      "%s: %s", path, db ? sqlite3_errmsg(db) : "no memory");
    } else {
        check_schema(d, db, path);
    }
    sqlite3_close(db);
    check_disk(d, dir);
}
