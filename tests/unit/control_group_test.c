/* control_group over recorded layouts: /proc/self/cgroup and /sys/fs/cgroup as containers of both
 * versions show them, written below a folder. */
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/control_group.h"

static const int64_t MIB = 1 << 20;
/* What version 1 writes for none. */
#define NONE_V1 "9223372036854771712\n"

static char root[64];

static int set_up(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/control_group_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int take_away(const char *path, const struct stat *st, int flag, struct FTW *at)
{
    (void)st;
    (void)flag;
    (void)at;
    return remove(path);
}

static int tear_down(void **state)
{
    (void)state;
    return nftw(root, take_away, 16, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static struct control_group look(void)
{
    struct control_group g;
    control_group_read(&g, root);
    return g;
}

static void expect(int64_t limit, int64_t left, int64_t kills, double cpus)
{
    struct control_group g = look();
    assert_int_equal(g.memory_limit, limit);
    assert_int_equal(g.memory_left, left);
    assert_int_equal(g.oom_kills, kills);
    assert_float_equal(g.cpus, cpus, 1e-9);
}

static void nothing_is_no_limit(void **state)
{
    (void)state;
    expect(-1, -1, -1, 0);
    put("proc/self/cgroup", "garbage\n7\n:\n::\n0:\n0::");
    put("sys/fs/cgroup/memory.max", "");
    expect(-1, -1, -1, 0);
    put("proc/self/cgroup", "0::/\n");
    put("sys/fs/cgroup/memory.max", "max\n");
    put("sys/fs/cgroup/memory.high", "max\n");
    put("sys/fs/cgroup/memory.current", "1048576\n");
    put("sys/fs/cgroup/cpu.max", "max 100000\n");
    expect(-1, -1, -1, 0);
}

/* A container with a namespace of its own: its group is the top. */
static void a_container_of_version_2(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/\n");
    put("sys/fs/cgroup/memory.max", "268435456\n");
    put("sys/fs/cgroup/memory.high", "max\n");
    put("sys/fs/cgroup/memory.current", "104857600\n");
    put("sys/fs/cgroup/memory.stat", "anon 52428800\nfile 52428800\nactive_file 4194304\n"
                                     "inactive_file 41943040\n");
    put("sys/fs/cgroup/memory.events",
        "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 9\n");
    put("sys/fs/cgroup/cpu.max", "250000 100000\n");
    /* 256 MiB less 100 of which 40 can be dropped. */
    expect(256 * MIB, 196 * MIB, 4, 2.5);
    put("sys/fs/cgroup/memory.high", "134217728\n");
    expect(128 * MIB, 68 * MIB, 4, 2.5);
    put("sys/fs/cgroup/memory.stat", "anon 104857600\n");
    put("sys/fs/cgroup/memory.current", "134217729\n");
    expect(128 * MIB, 0, 4, 2.5);
    put("sys/fs/cgroup/memory.events", "oom 3\noom_group_kill 9\n");
    expect(128 * MIB, 0, -1, 2.5);
}

/* A service of a host, or a pod as the host sees it: each group up to the top may say less. */
static void nested_groups_of_version_2(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/kubepods.slice/pod1/worker\n");
    put("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    put("sys/fs/cgroup/kubepods.slice/memory.max", "1073741824\n");
    put("sys/fs/cgroup/kubepods.slice/memory.current", "1052770304\n"); /* 20 MiB are left to all */
    put("sys/fs/cgroup/kubepods.slice/cpu.max", "max 100000\n");
    put("sys/fs/cgroup/kubepods.slice/memory.events", "oom_kill 99\n");
    put("sys/fs/cgroup/kubepods.slice/pod1/memory.max", "536870912\n");
    put("sys/fs/cgroup/kubepods.slice/pod1/memory.current", "104857600\n");
    put("sys/fs/cgroup/kubepods.slice/pod1/cpu.max", "150000 100000\n");
    put("sys/fs/cgroup/kubepods.slice/pod1/worker/memory.max", "max\n");
    put("sys/fs/cgroup/kubepods.slice/pod1/worker/memory.current", "1048576\n");
    put("sys/fs/cgroup/kubepods.slice/pod1/worker/memory.events", "oom 0\noom_kill 0\n");
    put("sys/fs/cgroup/kubepods.slice/pod1/worker/cpu.max", "400000 100000\n");
    put("sys/fs/cgroup/other/memory.max", "1\n");
    expect(512 * MIB, 20 * MIB, 0, 1.5);
    /* The host's path, where only the own group is mounted; and one outside of the namespace. */
    put("proc/self/cgroup", "0::/system.slice/docker-abc.scope\n");
    put("sys/fs/cgroup/memory.max", "67108864\n");
    put("sys/fs/cgroup/memory.current", "0\n");
    expect(64 * MIB, 64 * MIB, -1, 0);
    put("proc/self/cgroup", "0::/../other\n");
    expect(64 * MIB, 64 * MIB, -1, 0);
}

static void put_v1(const char *below, const char *limit, const char *used, const char *quota)
{
    const char *names[] = {"memory.limit_in_bytes", "memory.usage_in_bytes", "cpu.cfs_quota_us",
                           "cpu.cfs_period_us"};
    const char *texts[] = {limit, used, quota, "100000\n"};
    char path[256];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "sys/fs/cgroup/%s%s/%s", i < 2 ? "memory" : "cpu", below,
                 names[i]);
        put(path, texts[i]);
    }
}

static const char lines_v1[] = "11:cpuset:/docker/abc\n9:name=systemd:/docker/abc\n"
                               "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"
                               "2:net_cls,net_prio:/\n0::/system.slice/containerd.service\n";

static void nested_groups_of_version_1(void **state)
{
    (void)state;
    put("proc/self/cgroup", lines_v1);
    put_v1("", NONE_V1, "8589934592\n", "-1\n");
    expect(-1, -1, -1, 0);
    put_v1("/docker", NONE_V1, "1073741824\n", "300000\n");
    put_v1("/docker/abc", "268435456\n", "104857600\n", "50000\n");
    put("sys/fs/cgroup/memory/docker/abc/memory.stat",
        "cache 1\ninactive_file 1\ntotal_inactive_file 41943040\n");
    put("sys/fs/cgroup/memory/docker/abc/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    expect(256 * MIB, 196 * MIB, 2, 0.5);
    put_v1("/docker", "134217728\n", "83886080\n", "-1\n");
    expect(128 * MIB, 48 * MIB, 2, 0.5);
    /* Beside it version 2's tree, which has no controller then. */
    put("sys/fs/cgroup/unified/system.slice/containerd.service/memory.max", "1\n");
    put("sys/fs/cgroup/system.slice/containerd.service/memory.max", "1\n");
    expect(128 * MIB, 48 * MIB, 2, 0.5);
}

/* The host's path; mounted is the own group alone. */
static void a_container_of_version_1(void **state)
{
    (void)state;
    put("proc/self/cgroup", lines_v1);
    put_v1("", "268435456\n", "104857600\n", "200000\n");
    expect(256 * MIB, 156 * MIB, -1, 2);
}

/* Named like a controller, and a group of version 2. */
static void a_group_named_memory(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/memory\n");
    put("sys/fs/cgroup/memory/memory.max", "268435456\n");
    put("sys/fs/cgroup/memory/memory.current", "1048576\n");
    put("sys/fs/cgroup/cpu.max", "100000 100000\n");
    expect(256 * MIB, 255 * MIB, -1, 1);
}

/* A slice counts every pod's. The top is the own group where the own path is not mounted. */
static void kills_are_of_the_own_group(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/kubepods.slice/pod1\n");
    put("sys/fs/cgroup/memory.events", "oom_kill 7\n");
    expect(-1, -1, 7, 0);
    put("sys/fs/cgroup/kubepods.slice/memory.events", "oom_kill 99\n");
    expect(-1, -1, 7, 0);
    put("sys/fs/cgroup/kubepods.slice/pod1/cgroup.procs", "1\n");
    expect(-1, -1, -1, 0);
    put("sys/fs/cgroup/kubepods.slice/pod1/memory.events", "oom_kill 3\n");
    expect(-1, -1, 3, 0);
}

static void threads_fit_the_quota(void **state)
{
    (void)state;
    static const struct {
        double cpus;
        int32_t of, want;
    } cases[] = {{0, 8, 8}, {2.5, 8, 2}, {0.5, 8, 1}, {8, 8, 8}, {100, 8, 8}, {1, 1, 1}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        struct control_group g = {.cpus = cases[i].cpus};
        assert_int_equal(control_group_threads(&g, cases[i].of), cases[i].want);
    }
}

int main(void)
{
#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(nothing_is_no_limit),        IN_A_FOLDER(a_container_of_version_2),
        IN_A_FOLDER(nested_groups_of_version_2), IN_A_FOLDER(nested_groups_of_version_1),
        IN_A_FOLDER(a_container_of_version_1),   IN_A_FOLDER(a_group_named_memory),
        IN_A_FOLDER(kills_are_of_the_own_group), cmocka_unit_test(threads_fit_the_quota),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
