/* envelope: what a message says beside its body, put into it, so that it can be sent again as the
 * same job: its id and deadline may have stood in headers, or its id been its place in a queue. */
#ifndef TRANCHE_WORKER_JOB_ENVELOPE_H
#define TRANCHE_WORKER_JOB_ENVELOPE_H

#include "worker/job/job.h"

struct envelope {
    struct str run, batch_id; /* instead of the message's own; ptr NULL: those stay */
    struct str id;            /* where the message names none; ptr NULL: none */
    struct str deadline;      /* a header's value, where the message names none; ptr NULL: none */
};
/* The payload as JSON with all that in it; what the request hash covers stays as it is where there
 * is a body. E_JOB: the payload is no JSON object, its id is none that a job can have, it has
 * become too large; E_FATAL: no memory. Pure but for memory. */
int envelope_put(struct str payload, const struct envelope *e, struct text *out,
                 struct err *err) TR_MUSTCHECK;
/* The value of the last header `name` in a row's or letter's `source`, appended to out. False: it
 * has none. Pure but for memory. */
bool envelope_header(struct str source, const char *name, struct text *out);

#endif
