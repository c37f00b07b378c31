/* doctor: what `tranche doctor` collects: one verdict for each check, and memory against needs. */
#ifndef TRANCHE_WORKER_COMMANDS_DOCTOR_H
#define TRANCHE_WORKER_COMMANDS_DOCTOR_H

#include <jansson.h>

#include "worker/open_model.h"

enum verdict { VERDICT_OK, VERDICT_WARN, VERDICT_FAULT, VERDICTS };

struct doctor {
    const struct config *config;
    struct model_opts opts;
    json_t *checks; /* [{"check","verdict","text","mend"}] in the order they were made */
    json_t *memory; /* [{"what","bytes"}] */
    int counts[VERDICTS];
};
/* Records one check. `mend` says what to do about it; NULL where there is nothing to do. */
void doctor_report(struct doctor *d, enum verdict verdict, const char *check, const char *mend,
                   const char *fmt, ...) TR_PRINTF(5, 6);
void doctor_memory_line(struct doctor *d, const char *what, int64_t bytes);

/* Bytes this process may still take: what the system has free, within its control groups. -1 where
 * the system does not say. */
int64_t memory_available(void);
/* CPUs this process may run on, and the share of them that its control group grants (0: all). */
int cpus_allowed(double *quota);

void doctor_cpu(struct doctor *d);
void doctor_database(struct doctor *d);
bool doctor_postgres(struct doctor *d); /* false: --db names no server */
void doctor_model(struct doctor *d);    /* folder, config, weights, tokenizer, template, memory */

#endif
