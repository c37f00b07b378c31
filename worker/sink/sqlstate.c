/* sqlstate: see sqlstate.h. */
#include "worker/sink/sqlstate.h"

enum { CONFLICTS_MAX = 5, UNKNOWNS_MAX = 3 };
static const int64_t WAIT_MIN_NS = 100000000, WAIT_MAX_NS = 30000000000;
static const int64_t CONFIG_WAIT_NS = 30000000000, CONFIG_MAX_NS = 600000000000;

/* The longest prefix that fits wins. */
static const struct rule {
    const char *prefix;
    enum sql_action action;
} rules[] = {
    {"08", SQL_WAIT},          /* connection exceptions */
    {"57P01", SQL_WAIT},       /* admin_shutdown */
    {"57P02", SQL_WAIT},       /* crash_shutdown */
    {"57P03", SQL_WAIT},       /* cannot_connect_now */
    {"53000", SQL_WAIT},       /* insufficient_resources */
    {"53100", SQL_WAIT},       /* disk_full */
    {"53200", SQL_WAIT},       /* out_of_memory */
    {"53300", SQL_WAIT},       /* too_many_connections */
    {"53400", SQL_WAIT},       /* configuration_limit_exceeded */
    {"58", SQL_WAIT},          /* system error: I/O, missing file */
    {"55P03", SQL_WAIT},       /* lock_not_available */
    {"55006", SQL_WAIT},       /* object_in_use */
    {"40001", SQL_CONFLICT},   /* serialization_failure */
    {"40P01", SQL_CONFLICT},   /* deadlock_detected */
    {"25006", SQL_WRONG_NODE}, /* read_only_sql_transaction */
    {"57014", SQL_TIMEOUT},    /* query_canceled: statement_timeout */
    {"28", SQL_CONFIG},        /* invalid authorization */
    {"3D000", SQL_CONFIG},     /* no such database */
    {"42501", SQL_CONFIG},     /* insufficient_privilege */
    {"42P01", SQL_CONFIG},     /* undefined_table */
    {"3F000", SQL_CONFIG},     /* no such schema */
    {"42703", SQL_CONFIG},     /* undefined_column */
    {"0A000", SQL_CONFIG},     /* feature_not_supported */
    {"22", SQL_DATA},          /* data exceptions: bytes, ranges */
    {"23", SQL_DATA},          /* integrity constraints */
    {"54000", SQL_DATA},       /* program_limit_exceeded: an index key, 1 GB */
    {"21000", SQL_DATA},       /* cardinality_violation */
};

const char *sql_action_name(enum sql_action action)
{
    static const char *const names[SQL_ACTIONS] = {"wait",   "conflict", "wrong_node", "timeout",
                                                   "config", "data",     "unknown"};
    CHECK(action < SQL_ACTIONS);
    return names[action];
}

enum sql_action sqlstate_action(const char *code)
{
    enum sql_action action = SQL_UNKNOWN;
    size_t longest = 0;
    if (!code || !*code)
        return SQL_WAIT;
    for (size_t i = 0; i < TR_COUNT(rules); i++) {
        size_t n = strlen(rules[i].prefix);
        if (n > longest && strncmp(code, rules[i].prefix, n) == 0) {
            action = rules[i].action;
            longest = n;
        }
    }
    return action;
}

void sql_policy_open(struct sql_policy *p, int32_t piece_rows_max, uint64_t seed)
{
    CHECK(piece_rows_max > 0);
    *p = (struct sql_policy){
        .config_since_ns = -1, .piece_rows = piece_rows_max, .piece_rows_max = piece_rows_max};
    retry_open(&p->retry, WAIT_MIN_NS, WAIT_MAX_NS, seed);
}

static enum sql_step later(struct sql_policy *p, int64_t *wait_ns)
{
    *wait_ns = retry_wait_ns(&p->retry);
    return SQL_LATER;
}

static enum sql_step config(struct sql_policy *p, int64_t now_ns, int64_t *wait_ns)
{
    if (p->config_since_ns < 0)
        p->config_since_ns = now_ns;
    *wait_ns = CONFIG_WAIT_NS;
    return now_ns - p->config_since_ns >= CONFIG_MAX_NS ? SQL_GIVE_UP : SQL_LATER;
}

enum sql_step sql_policy_failed(struct sql_policy *p, enum sql_action action, int64_t now_ns,
                                int64_t *wait_ns)
{
    *wait_ns = 0;
    if (action != SQL_CONFIG)
        p->config_since_ns = -1;
    switch (action) {
    case SQL_CONFLICT:
        return p->conflicts++ < CONFLICTS_MAX ? SQL_AGAIN : later(p, wait_ns);
    case SQL_TIMEOUT:
        if (p->piece_rows == 1)
            return later(p, wait_ns);
        p->piece_rows /= 2;
        return SQL_SMALLER;
    case SQL_CONFIG:
        return config(p, now_ns, wait_ns);
    case SQL_DATA:
        return SQL_BISECT;
    case SQL_UNKNOWN:
        return ++p->unknowns < UNKNOWNS_MAX ? SQL_AGAIN : later(p, wait_ns);
    default:
        return later(p, wait_ns);
    }
}

void sql_policy_succeeded(struct sql_policy *p)
{
    retry_reset(&p->retry);
    p->conflicts = p->unknowns = 0;
    p->config_since_ns = -1;
}

void sql_policy_narrow(struct sql_policy *p, int32_t rows)
{
    p->piece_rows = TR_MAX(TR_MIN(p->piece_rows, rows) / 2, 1);
}

void sql_policy_widen(struct sql_policy *p)
{
    p->piece_rows = TR_MIN(p->piece_rows * 2, p->piece_rows_max);
}
