/* redis_reply: what a RESP reply means: error classes, stream ids, stream entries. Pure functions
 * over hiredis's reply trees; fuzzed through the reader. It sends nothing.
 * Protocol: RESP2; commands as of Redis 7.0. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_REPLY_H
#define TRANCHE_WORKER_SOURCE_REDIS_REPLY_H

#include <hiredis.h>

#include "worker/source/redis_settings.h"

/* hiredis's parser with a bound on array lengths: its own takes the memory that a header asks for.
 * NULL: no memory. Close with redisReaderFree. */
enum { REDIS_ELEMENTS_MAX = 1 << 20 };
redisReader *redis_reader_open(void);

/* What an error reply asks of us. */
enum redis_fault {
    REDIS_FAULT_NONE,
    REDIS_FAULT_NOGROUP,   /* stream or group is gone */
    REDIS_FAULT_BUSYGROUP, /* the group is there already */
    REDIS_FAULT_READONLY,  /* a replica: resolve and connect again */
    REDIS_FAULT_LOADING,   /* starting, or without its master: wait */
    REDIS_FAULT_OOM,       /* maxmemory: wait */
    REDIS_FAULT_AUTH,      /* NOAUTH, WRONGPASS: read the secret again */
    REDIS_FAULT_NOPERM,    /* the ACL user may not */
    REDIS_FAULT_MOVED,     /* a cluster's other node has it */
    REDIS_FAULT_WRONGTYPE, /* the key holds no stream */
    REDIS_FAULT_BUSY,      /* a script blocks the server, or too few replicas: wait */
    REDIS_FAULT_OTHER,
};
enum redis_fault redis_fault_of(struct str message);
const char *redis_fault_name(enum redis_fault fault);
/* "MOVED 3999 127.0.0.1:6381". False: no such text. */
bool redis_moved_parse(struct str message, struct redis_host *out);

struct redis_id {
    uint64_t ms, seq;
};
enum { REDIS_ID_TEXT = 42 }; /* room for "18446744073709551615-18446744073709551615" and a NUL */
bool redis_id_parse(struct str text, struct redis_id *out); /* exactly "MS-SEQ" */
void redis_id_text(struct redis_id id, char out[REDIS_ID_TEXT]);
static inline bool redis_id_eq(struct redis_id a, struct redis_id b)
{
    return a.ms == b.ms && a.seq == b.seq;
}

/* One entry of a stream. Borrowed from the reply. */
struct redis_entry {
    struct redis_id id;
    struct str id_text;
    struct str job;    /* value of the field `job`; ptr NULL: there is none */
    struct str copies; /* of the field `tranche.copies`, which the outbox writes */
    bool gone;         /* its fields are no more: trimmed or deleted while pending */
    size_t bytes;      /* of all fields */
};
/* E_RETRY: not an entry. */
int redis_entry_parse(const redisReply *reply, struct redis_entry *out,
                      struct err *err) TR_MUSTCHECK;

/* The entries array of XREADGROUP on one stream; *out NULL: none came. E_RETRY: another shape. */
int redis_read_entries(const redisReply *reply, const redisReply **out,
                       struct err *err) TR_MUSTCHECK;
struct redis_autoclaim {
    struct redis_id cursor;    /* 0-0: the scan is through */
    const redisReply *entries; /* array */
    const redisReply *deleted; /* array: ids whose data was trimmed while pending; NULL: none */
};
int redis_autoclaim_parse(const redisReply *reply, struct redis_autoclaim *out,
                          struct err *err) TR_MUSTCHECK;
/* XINFO GROUPS: what of this group; found false: it is not there. lag -1: not known. */
struct redis_group_info {
    bool found;
    int64_t lag, pending;
    struct redis_id last; /* last delivered */
};
int redis_group_info_parse(const redisReply *reply, struct str group, struct redis_group_info *out,
                           struct err *err) TR_MUSTCHECK;
/* The value of "name:" in INFO's text; ptr NULL: absent. */
struct str redis_info_value(struct str info, const char *name);

static inline struct str redis_text(const redisReply *r)
{
    return r && (r->type == REDIS_REPLY_STRING || r->type == REDIS_REPLY_STATUS ||
                 r->type == REDIS_REPLY_ERROR)
               ? (struct str){r->str, r->len}
               : (struct str){NULL, 0};
}

#endif
