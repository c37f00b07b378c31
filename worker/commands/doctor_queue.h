/* doctor_queue: the two brokers' ends of the doctor. Nothing here changes what is on a broker. */
#ifndef TRANCHE_WORKER_COMMANDS_DOCTOR_QUEUE_H
#define TRANCHE_WORKER_COMMANDS_DOCTOR_QUEUE_H

#include "worker/commands/doctor.h"
#include "worker/source/source_open.h"

void doctor_kafka(struct doctor *d, const struct source_url *url, const struct source_opts *opts);
void doctor_redis(struct doctor *d, const struct source_url *url, const struct source_opts *opts);
/* What mends a link whose failure reads so; `otherwise` where the words say nothing. */
const char *doctor_link_mend(const struct err *err, const char *otherwise);

#endif
