/* redis_reply: see redis_reply.h. */
#include "worker/source/redis_reply.h"

#include <stdio.h>

/* hiredis's own functions are static: taken from the first reader, which opens before any thread.
 */
static redisReplyObjectFunctions bounded, whole;

#if HIREDIS_MAJOR < 1 /* Debian 12's counts are int; Ubuntu 24.04's and Debian 13's are not */
typedef int element_count;
#else
typedef size_t element_count;
#endif

static void *create_array(const redisReadTask *task, element_count elements)
{
    return (size_t)elements <= REDIS_ELEMENTS_MAX ? whole.createArray(task, elements) : NULL;
}

redisReader *redis_reader_open(void)
{
    redisReader *r = redisReaderCreate();
    if (!r)
        return NULL;
    if (!whole.createArray) {
        whole = *r->fn;
        bounded = whole;
        bounded.createArray = create_array;
    }
    r->fn = &bounded;
    return r;
}

static const struct {
    const char *word;
    enum redis_fault fault;
} words[] = {
    {"NOGROUP", REDIS_FAULT_NOGROUP},
    {"BUSYGROUP", REDIS_FAULT_BUSYGROUP},
    {"UNBLOCKED", REDIS_FAULT_READONLY},
    {"READONLY", REDIS_FAULT_READONLY},
    {"LOADING", REDIS_FAULT_LOADING},
    {"MASTERDOWN", REDIS_FAULT_LOADING},
    {"CLUSTERDOWN", REDIS_FAULT_LOADING},
    {"TRYAGAIN", REDIS_FAULT_LOADING},
    {"OOM", REDIS_FAULT_OOM},
    {"NOAUTH", REDIS_FAULT_AUTH},
    {"WRONGPASS", REDIS_FAULT_AUTH},
    {"NOPERM", REDIS_FAULT_NOPERM},
    {"MOVED", REDIS_FAULT_MOVED},
    {"ASK", REDIS_FAULT_LOADING},
    {"WRONGTYPE", REDIS_FAULT_WRONGTYPE},
    {"BUSY", REDIS_FAULT_BUSY},
    {"NOREPLICAS", REDIS_FAULT_BUSY},
    {"MISCONF", REDIS_FAULT_BUSY},
};

enum redis_fault redis_fault_of(struct str m)
{
    const char *space = m.len ? memchr(m.ptr, ' ', m.len) : NULL;
    struct str word = {m.ptr, space ? (size_t)(space - m.ptr) : m.len};
    for (size_t i = 0; i < TR_COUNT(words); i++)
        if (str_eq(word, str_of(words[i].word)))
            return words[i].fault;
    /* Older servers: "ERR max number of clients reached", "ERR invalid password". */
    if (m.len >= 16 && memcmp(m.ptr, "ERR max number o", 16) == 0)
        return REDIS_FAULT_BUSY;
    if (m.len >= 16 && memcmp(m.ptr, "ERR invalid pass", 16) == 0)
        return REDIS_FAULT_AUTH;
    /* An error inside a script carries the script's words in front. */
    for (size_t i = 0; i < TR_COUNT(words) && m.len; i++) {
        char inside[24];
        int n = snprintf(inside, sizeof inside, " -%s ", words[i].word);
        if (memmem(m.ptr, m.len, inside, (size_t)n))
            return words[i].fault;
    }
    return REDIS_FAULT_OTHER;
}

const char *redis_fault_name(enum redis_fault fault)
{
    static const char *const names[] = {"none",    "nogroup",   "busygroup", "readonly",
                                        "loading", "oom",       "auth",      "noperm",
                                        "moved",   "wrongtype", "busy",      "other"};
    return names[fault];
}

bool redis_moved_parse(struct str m, struct redis_host *out)
{
    const char *space = m.len ? memrchr(m.ptr, ' ', m.len) : NULL;
    struct err err = {0};
    if (redis_fault_of(m) != REDIS_FAULT_MOVED || !space)
        return false;
    struct str host = {space + 1, m.len - (size_t)(space + 1 - m.ptr)};
    return host.len && memchr(host.ptr, ':', host.len) &&
           redis_host_parse(out, host, 6379, &err) == E_OK;
}

/* 1 to 20 digits without overflow. */
static bool parse_u64(struct str s, uint64_t *out)
{
    uint64_t n = 0;
    if (s.len == 0 || s.len > 20)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        uint64_t digit = (uint64_t)(unsigned char)s.ptr[i] - '0';
        if (digit > 9 || __builtin_mul_overflow(n, (uint64_t)10, &n) ||
            __builtin_add_overflow(n, digit, &n))
            return false;
    }
    *out = n;
    return true;
}

bool redis_id_parse(struct str text, struct redis_id *out)
{
    const char *dash = text.len ? memchr(text.ptr, '-', text.len) : NULL;
    if (!dash)
        return false;
    size_t n = (size_t)(dash - text.ptr);
    return parse_u64((struct str){text.ptr, n}, &out->ms) &&
           parse_u64((struct str){dash + 1, text.len - n - 1}, &out->seq);
}

void redis_id_text(struct redis_id id, char out[REDIS_ID_TEXT])
{
    snprintf(out, REDIS_ID_TEXT, "%llu-%llu", (unsigned long long)id.ms,
             (unsigned long long)id.seq);
}

static int wrong(struct err *err, const char *what)
{
    return err_typed(err, E_RETRY, "redis_reply", "redis: want %s, got another reply", what);
}

int redis_entry_parse(const redisReply *reply, struct redis_entry *out, struct err *err)
{
    *out = (struct redis_entry){0};
    if (!reply || reply->type != REDIS_REPLY_ARRAY || reply->elements != 2)
        return wrong(err, "a stream entry of id and fields");
    const redisReply *fields = reply->element[1];
    out->id_text = redis_text(reply->element[0]);
    if (!redis_id_parse(out->id_text, &out->id))
        return wrong(err, "a stream id");
    if (fields->type == REDIS_REPLY_NIL) {
        out->gone = true;
        return E_OK;
    }
    if (fields->type != REDIS_REPLY_ARRAY || fields->elements % 2 != 0)
        return wrong(err, "fields in pairs");
    for (size_t i = 0; i < fields->elements; i += 2) {
        struct str name = redis_text(fields->element[i]);
        struct str value = redis_text(fields->element[i + 1]);
        if (!name.ptr || !value.ptr)
            return wrong(err, "fields of strings");
        out->bytes += name.len + value.len;
        if (!out->job.ptr && str_eq(name, STR("job")))
            out->job = value;
        else if (str_eq(name, STR("tranche.copies")))
            out->copies = value;
    }
    return E_OK;
}

int redis_read_entries(const redisReply *reply, const redisReply **out, struct err *err)
{
    *out = NULL;
    if (reply->type == REDIS_REPLY_NIL)
        return E_OK;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 1)
        return wrong(err, "one stream");
    const redisReply *stream = reply->element[0];
    if (stream->type != REDIS_REPLY_ARRAY || stream->elements != 2 ||
        stream->element[1]->type != REDIS_REPLY_ARRAY)
        return wrong(err, "a stream's name and entries");
    *out = stream->element[1];
    return E_OK;
}

int redis_autoclaim_parse(const redisReply *reply, struct redis_autoclaim *out, struct err *err)
{
    *out = (struct redis_autoclaim){0};
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements < 2 || reply->elements > 3 ||
        !redis_id_parse(redis_text(reply->element[0]), &out->cursor) ||
        reply->element[1]->type != REDIS_REPLY_ARRAY ||
        (reply->elements == 3 && reply->element[2]->type != REDIS_REPLY_ARRAY))
        return wrong(err, "cursor, entries and deleted ids");
    out->entries = reply->element[1];
    out->deleted = reply->elements == 3 ? reply->element[2] : NULL;
    return E_OK;
}

int redis_group_info_parse(const redisReply *reply, struct str group, struct redis_group_info *out,
                           struct err *err)
{
    *out = (struct redis_group_info){.lag = -1, .pending = -1};
    if (reply->type != REDIS_REPLY_ARRAY)
        return wrong(err, "groups");
    for (size_t i = 0; i < reply->elements; i++) {
        const redisReply *g = reply->element[i];
        struct redis_group_info found = {.lag = -1, .pending = -1};
        if (g->type != REDIS_REPLY_ARRAY || g->elements % 2 != 0)
            return wrong(err, "a group's fields in pairs");
        for (size_t k = 0; k < g->elements; k += 2) {
            struct str name = redis_text(g->element[k]);
            const redisReply *value = g->element[k + 1];
            bool number = value->type == REDIS_REPLY_INTEGER;
            if (str_eq(name, STR("name")))
                found.found = str_eq(redis_text(value), group);
            else if (str_eq(name, STR("lag")) && number)
                found.lag = value->integer;
            else if (str_eq(name, STR("pending")) && number)
                found.pending = value->integer;
            else if (str_eq(name, STR("last-delivered-id")) &&
                     !redis_id_parse(redis_text(value), &found.last))
                return wrong(err, "an id last delivered");
        }
        if (found.found)
            *out = found;
    }
    return E_OK;
}

struct str redis_info_value(struct str info, const char *name)
{
    size_t n = strlen(name);
    while (info.len > 0) {
        const char *end = memchr(info.ptr, '\n', info.len);
        struct str line = {info.ptr, end ? (size_t)(end - info.ptr) : info.len};
        size_t used = line.len + (end != NULL);
        if (line.len > n && memcmp(line.ptr, name, n) == 0 && line.ptr[n] == ':') {
            struct str value = {line.ptr + n + 1, line.len - n - 1};
            while (value.len && value.ptr[value.len - 1] == '\r')
                value.len--;
            return value;
        }
        info.ptr += used;
        info.len -= used;
    }
    return (struct str){NULL, 0};
}
