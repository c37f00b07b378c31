/* dead_letters: dead letters as an operator picks them, and how one becomes a message again. */
#ifndef TRANCHE_WORKER_SINK_DEAD_LETTERS_H
#define TRANCHE_WORKER_SINK_DEAD_LETTERS_H

#include "worker/sink/query.h"

enum { REDRIVES_MAX = 3, FILTER_BYTES_MAX = 1024 };

/* Which ones: every field that is given must be equal. */
enum letter_field { LETTER_RUN, LETTER_BATCH, LETTER_ID, LETTER_REASON, LETTER_KEY, LETTER_FIELDS };
enum letter_state { LETTER_ANY, LETTER_OPEN, LETTER_REDRIVEN };
struct letter_filter {
    struct str fields[LETTER_FIELDS]; /* {NULL,0}: any; pieces of the parsed text */
    enum letter_state state;
    bool state_named; /* the text said it */
};
/* "reason=crashed,batch=b,state=open": names run, batch, id, reason, key, state. A value may hold
 * no comma. Pure. E_USAGE names what was not understood. */
int letter_filter_parse(struct letter_filter *f, struct str text, struct err *err) TR_MUSTCHECK;
/* The condition for LETTER_FIELDS parameters $1.. and the state; a constant. */
const char *letter_filter_sql(enum letter_state state);

/* The run that a letter of `run` is sent again in: "main" -> "main~1" -> "main~2" -> "main~3",
 * because `run` has its row already and a row never changes. E_JOB: it was sent again REDRIVES_MAX
 * times. Pure. */
int redrive_run(struct str run, struct text *out, struct err *err) TR_MUSTCHECK;

#endif
