/* sqlstate: what a failed statement asks for, by its SQLSTATE (PostgreSQL manual, appendix A), and
 * the memory that this takes: how often, since when. Pure: no connection, no clock. */
#ifndef TRANCHE_WORKER_SINK_SQLSTATE_H
#define TRANCHE_WORKER_SINK_SQLSTATE_H

#include "worker/retry.h"

enum sql_action {
    SQL_WAIT,       /* the server is down, full or shutting down: reconnect, for ever */
    SQL_CONFLICT,   /* lost against another transaction: at once again */
    SQL_WRONG_NODE, /* it only reads: reconnect, to one that writes */
    SQL_TIMEOUT,    /* took too long: smaller statements */
    SQL_CONFIG,     /* role, database, schema: somebody has to mend it */
    SQL_DATA,       /* a row that the server cannot hold */
    SQL_UNKNOWN,
    SQL_ACTIONS
};
const char *sql_action_name(enum sql_action action);

/* code: five characters; NULL or "": the link failed before the server could answer. */
enum sql_action sqlstate_action(const char *code);

enum sql_step {
    SQL_AGAIN,   /* send the same at once */
    SQL_SMALLER, /* the same in statements of at most piece_rows */
    SQL_BISECT,  /* find the row */
    SQL_LATER,   /* wait_ns from now */
    SQL_GIVE_UP, /* nobody mended it in time */
};
struct sql_policy {
    struct retry retry;
    int conflicts, unknowns;
    int64_t config_since_ns; /* monotonic; -1: well */
    int32_t piece_rows, piece_rows_max;
};
void sql_policy_open(struct sql_policy *p, int32_t piece_rows_max, uint64_t seed);
enum sql_step sql_policy_failed(struct sql_policy *p, enum sql_action action, int64_t now_ns,
                                int64_t *wait_ns);
void sql_policy_succeeded(struct sql_policy *p); /* any statement */
/* The size of the pieces: one of so many rows got no answer in time; all of a commit went through.
 * A short statement that goes through says nothing about it. */
void sql_policy_narrow(struct sql_policy *p, int32_t rows);
void sql_policy_widen(struct sql_policy *p);

#endif
