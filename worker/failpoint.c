/* failpoint: see failpoint.h. */
#include "worker/failpoint.h"

#ifdef TRANCHE_FAILPOINTS
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { RULES_MAX = 16, NAME_MAX_BYTES = 47, USAGE = 64 };

enum action {
    ACTION_KILL,
    ACTION_POD,
    ACTION_SEGV,
    ACTION_STOP,
    ACTION_EXIT,
    ACTION_SLEEP,
    ACTION_ERROR
};
static const char *const action_names[] = {"kill", "pod", "segv", "stop", "exit", "sleep", "error"};

static struct rule {
    char name[NAME_MAX_BYTES + 1];
    enum action action;
    long value, at;
    bool onward;
    atomic_long hits;
} rules[RULES_MAX];
static int n_rules;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void refuse(const char *spec)
{
    dprintf(STDERR_FILENO, "TRANCHE_FAIL: cannot read \"%s\"\n", spec);
    _exit(USAGE);
}

/* "NAME:ACTION[=VALUE][@N[+]]" */
static void parse_rule(struct rule *r, const char *spec)
{
    char action[16] = "";
    int used = 0;
    if (sscanf(spec, "%47[a-z0-9_.]:%15[a-z]%n", r->name, action, &used) != 2)
        refuse(spec);
    size_t kind = 0;
    while (kind < TR_COUNT(action_names) && strcmp(action, action_names[kind]) != 0)
        kind++;
    if (kind == TR_COUNT(action_names))
        refuse(spec);
    r->action = (enum action)kind;
    r->value = r->action == ACTION_EXIT ? 70 : 0;
    r->at = 1;
    char *rest = (char *)(uintptr_t)(spec + used);
    if (*rest == '=')
        r->value = strtol(rest + 1, &rest, 10);
    if (*rest == '@')
        r->at = strtol(rest + 1, &rest, 10);
    r->onward = *rest == '+';
    rest += r->onward;
    if (*rest || r->at < 1)
        refuse(spec);
}

static void parse(void)
{
    char spec[1024];
    const char *all = getenv("TRANCHE_FAIL");
    while (all && *all) {
        size_t n = strcspn(all, ",");
        if (n_rules == RULES_MAX || n >= sizeof spec)
            refuse(all);
        snprintf(spec, sizeof spec, "%.*s", (int)n, all);
        parse_rule(&rules[n_rules++], spec);
        all += n + (all[n] == ',');
    }
}

static int act(const struct rule *r, long hit, struct err *err)
{
    struct timespec time = {r->value / 1000, r->value % 1000 * 1000000};
    dprintf(STDERR_FILENO, "failpoint %s %s hit=%ld\n", r->name, action_names[r->action], hit);
    switch (r->action) {
    case ACTION_KILL:
        return kill(getpid(), SIGKILL), pause();
    case ACTION_POD:
        return kill(0, SIGKILL), pause();
    case ACTION_SEGV:
        return raise(SIGSEGV), pause();
    case ACTION_STOP:
        kill(getpid(), SIGSTOP);
        break;
    case ACTION_EXIT:
        _exit((int)r->value);
    case ACTION_SLEEP:
        nanosleep(&time, NULL);
        break;
    case ACTION_ERROR:
        if (err)
            return err_set(err, E_RETRY, "failpoint %s", r->name);
        break;
    }
    return E_OK;
}

int failpoint_hit(const char *name, struct err *err)
{
    pthread_once(&once, parse);
    int rc = E_OK;
    for (int i = 0; i < n_rules && rc == E_OK; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->name, name) != 0)
            continue;
        long hit = atomic_fetch_add(&r->hits, 1) + 1;
        if (hit == r->at || (r->onward && hit > r->at))
            rc = act(r, hit, err);
    }
    return rc;
}
#endif
