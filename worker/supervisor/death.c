/* death: see death.h. */
#include "worker/supervisor/death.h"

#include <signal.h>

static const struct {
    const char *name;
    int signal;
} causes[DEATH_CAUSES] = {
    [DEATH_NONE] = {"none", 0},
    [DEATH_OUTSIDE] = {"outside", 0},
    [DEATH_SIGABRT] = {"SIGABRT", SIGABRT},
    [DEATH_SIGBUS] = {"SIGBUS", SIGBUS},
    [DEATH_SIGFPE] = {"SIGFPE", SIGFPE},
    [DEATH_SIGILL] = {"SIGILL", SIGILL},
    [DEATH_SIGSEGV] = {"SIGSEGV", SIGSEGV},
    [DEATH_SIGSYS] = {"SIGSYS", SIGSYS},
    [DEATH_SIGTRAP] = {"SIGTRAP", SIGTRAP},
    [DEATH_HANG] = {"hang", 0},
    [DEATH_MEMORY] = {"memory", 0},
    [DEATH_ENGINE] = {"engine", 0},
};

const char *death_cause_name(enum death_cause cause)
{
    CHECK(cause < DEATH_CAUSES);
    return causes[cause].name;
}

enum death_cause death_cause_find(struct str name)
{
    for (int i = DEATH_NONE; i < DEATH_CAUSES; i++)
        if (name.ptr && str_eq(name, str_of(causes[i].name)))
            return (enum death_cause)i;
    return DEATH_NONE;
}

enum death_cause death_cause_of_signal(int number)
{
    for (int i = DEATH_OUTSIDE + 1; i < DEATH_CAUSES; i++)
        if (number > 0 && causes[i].signal == number)
            return (enum death_cause)i;
    return DEATH_OUTSIDE;
}
