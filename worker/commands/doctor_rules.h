/* doctor_rules: what Kubernetes says of pods that do not run, and what mends it. Data alone. */
#ifndef TRANCHE_WORKER_COMMANDS_DOCTOR_RULES_H
#define TRANCHE_WORKER_COMMANDS_DOCTOR_RULES_H

#include "worker/commands/doctor.h"

/* Where a text stands. */
enum cluster_place {
    PLACE_SCHEDULING, /* a pod's condition PodScheduled */
    PLACE_WAITING,    /* a container's state.waiting */
    PLACE_ENDED,      /* a container's last words, where it ended badly */
    PLACE_POD,        /* a pod's own reason: evicted, refused by its node */
    PLACE_EVENT,      /* any other event */
};
struct cluster_rule {
    enum cluster_place place;
    const char *reason; /* how the reason begins; "": any */
    const char *words;  /* what stands in the message; "": any */
    const char *check;
    enum verdict verdict;
    const char *cause, *mend;
};
/* Words of the rule for taints that have none of their own. */
#define CLUSTER_OTHER_TAINT "untolerated taint"
/* In order: the first one that fits speaks. Of PLACE_SCHEDULING each one that fits. */
extern const struct cluster_rule cluster_rules[];
extern const size_t cluster_rule_count;

struct cluster_exit {
    int code;
    enum verdict verdict;
    const char *cause, *mend; /* mend NULL: none is needed */
};
extern const struct cluster_exit cluster_exits[];
extern const size_t cluster_exit_count;

#endif
