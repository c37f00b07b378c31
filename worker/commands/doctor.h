/* doctor: what `tranche doctor` collects: one verdict for each check, and memory against needs. */
#ifndef TRANCHE_WORKER_COMMANDS_DOCTOR_H
#define TRANCHE_WORKER_COMMANDS_DOCTOR_H

#include <jansson.h>

#include "worker/open_model.h"

enum verdict { VERDICT_OK, VERDICT_WARN, VERDICT_FAULT, VERDICTS };

struct doctor {
    const struct config *config;
    struct model_opts opts;
    json_t *checks;     /* [{"check","verdict","text","mend"}] in the order they were made */
    json_t *memory;     /* [{"what","bytes"}] */
    int64_t park_bytes; /* what a drain would park at most; 0: not known */
    int counts[VERDICTS];
};
/* Records one check. `mend` says what to do about it; NULL where there is nothing to do. */
void doctor_report(struct doctor *d, enum verdict verdict, const char *check, const char *mend,
                   const char *fmt, ...) TR_PRINTF(5, 6);
void doctor_memory_line(struct doctor *d, const char *what, int64_t bytes);

/* Bytes this process may still take: what the system has free, within its control groups. -1 where
 * the system does not say. */
int64_t memory_available(void);
/* What its control group grants at most; -1: no limit. */
int64_t memory_limit(void);
int64_t disk_free(const char *dir); /* bytes for this user; -1: no such folder */
/* CPUs this process may run on, and the share of them that its control group grants (0: all). */
int cpus_allowed(double *quota);
int threads_chosen(void); /* what an engine with --threads=0 takes of them */

void doctor_cpu(struct doctor *d);
void doctor_gpu(struct doctor *d);    /* driver, cards, topology */
void doctor_limits(struct doctor *d); /* control group, spool, grace */
void doctor_database(struct doctor *d);
bool doctor_postgres(struct doctor *d); /* false: --db names no server */
void doctor_model(struct doctor *d);    /* folder, config, weights, tokenizer, template, memory */
void doctor_queue(struct doctor *d);    /* --source, where it is given */
/* kubectl's JSON in a file, "-": standard input. */
void doctor_cluster(struct doctor *d, const char *path);
/* A pod's terminationGracePeriodSeconds against the grace of the workers in it: of their flags,
 * their environment, or a config file in a ConfigMap among `items`. `object`: the pod's name to
 * say. */
void doctor_pod_grace(struct doctor *d, const char *object, const json_t *pod, const json_t *items);

/* `name` of a ResourceQuota, `used` of `most`, leaves nothing to take. One of 0 that is not used
 * forbids it: that is full only where our pods want it. */
bool doctor_quota_is_full(const json_t *quota, const char *name, const char *used,
                          const char *most);

/* A server's clock (wall, ns), read between `before` and `after` of ours. */
void doctor_skew(struct doctor *d, const char *who, int64_t theirs, int64_t before, int64_t after);

struct x509_st;
/* When it ends, Unix seconds; -1: it does not say. */
int64_t certificate_end(const struct x509_st *certificate);
void doctor_certificate(struct doctor *d, const char *whose, int64_t end);
/* The certificates of a PEM file; one that cannot be read is passed over. */
void doctor_certificate_file(struct doctor *d, const char *path);

#endif
