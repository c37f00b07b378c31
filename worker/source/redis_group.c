/* redis_group: see redis_group.h. */
#include "worker/source/redis_group.h"

static const int64_t REPLY_NS = 5000000000;

/* ARGV: group, consumer, idle ms, ids. 512 ids stay far below Lua's limit for unpack. */
static const char touch_script[] =
    "local lost, mine = {}, {}\n"
    "for i = 4, #ARGV do\n"
    "  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])\n"
    "  local to = #p > 0 and mine or lost\n"
    "  to[#to + 1] = ARGV[i]\n"
    "end\n"
    "if #mine > 0 then\n"
    "  mine[#mine + 1] = 'IDLE'\n"
    "  mine[#mine + 1] = ARGV[3]\n"
    "  mine[#mine + 1] = 'JUSTID'\n"
    "  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))\n"
    "end\n"
    "return lost\n";

/* ARGV: keep in ms. Ids are compared as digits: their halves have 64 bits, a Lua number 53. The
 * last delivered entry itself stays: a stream whose newest entries are gone reports no lag. */
static const char trim_script[] =
    "local function less(a, b)\n"
    "  local a1, a2 = string.match(a, '(%d+)-(%d+)')\n"
    "  local b1, b2 = string.match(b, '(%d+)-(%d+)')\n"
    "  if #a1 ~= #b1 then return #a1 < #b1 end\n"
    "  if a1 ~= b1 then return a1 < b1 end\n"
    "  if #a2 ~= #b2 then return #a2 < #b2 end\n"
    "  return a2 < b2\n"
    "end\n"
    "local t = redis.call('TIME')\n"
    "local low = string.format('%.0f-0', math.max(0, t[1] * 1000 + math.floor(t[2] / 1000)"
    " - ARGV[1]))\n"
    "local groups = redis.call('XINFO', 'GROUPS', KEYS[1])\n"
    "if #groups == 0 then return 0 end\n"
    "for _, g in ipairs(groups) do\n"
    "  local f = {}\n"
    "  for i = 1, #g, 2 do f[g[i]] = g[i + 1] end\n"
    "  local need = f['last-delivered-id']\n"
    "  if f['pending'] > 0 then\n"
    "    local first = redis.call('XPENDING', KEYS[1], f['name'])[2]\n"
    "    if less(first, need) then need = first end\n"
    "  end\n"
    "  if less(need, low) then low = need end\n"
    "end\n"
    "return redis.call('XTRIM', KEYS[1], 'MINID', '=', low)\n";

/* ARGV: group, consumer, idle ms, ours. Pending is looked at in the same instant as the removal. */
static const char reap_script[] =
    "local n = 0\n"
    "for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do\n"
    "  local f = {}\n"
    "  for i = 1, #c, 2 do f[c[i]] = c[i + 1] end\n"
    "  local me = f['name'] == ARGV[2]\n"
    "  if f['pending'] == 0 and ((me and ARGV[4] == '1') or\n"
    "      (not me and f['idle'] > tonumber(ARGV[3]))) then\n"
    "    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], f['name'])\n"
    "    n = n + 1\n"
    "  end\n"
    "end\n"
    "return n\n";

/* ARGV: group. At "$" a server counts no lag before the group has read up to an end of the stream,
 * and a scaler takes that for none: so it is told what the group is past (7.0 on). */
static const char create_at_end_script[] =
    "local n\n"
    "local info = redis.pcall('XINFO', 'STREAM', KEYS[1])\n"
    "for i = 1, #info, 2 do\n"
    "  if info[i] == 'entries-added' then n = info[i + 1] end\n"
    "end\n"
    "if not n then return redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '$', 'MKSTREAM') end\n"
    "return redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '$', 'MKSTREAM', 'ENTRIESREAD', n)\n";

/* ARGV: group, idle ms. 1, or the name of a consumer that reads. */
static const char drop_script[] =
    "local all = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])\n"
    "if all['err'] then return all end\n"
    "for _, c in ipairs(all) do\n"
    "  local f = {}\n"
    "  for i = 1, #c, 2 do f[c[i]] = c[i + 1] end\n"
    "  if f['idle'] <= tonumber(ARGV[2]) then return f['name'] end\n"
    "end\n"
    "return redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])\n";

static void start_script(struct redis_group *g, const char *script)
{
    redis_args_start(&g->args, "EVAL");
    redis_args_text(&g->args, script);
    redis_args_text(&g->args, "1");
    redis_args_add(&g->args, g->stream);
}

/* Sends g->args; the integer of the reply, or 0 when it is none. */
static int integer_command(struct redis_group *g, struct err *err)
{
    redisReply *reply;
    int rc = redis_command(g->connection, &reply, &g->args, REPLY_NS, err);
    if (rc == E_OK && reply->type == REDIS_REPLY_INTEGER)
        rc = (int)TR_MIN(TR_MAX(reply->integer, 0LL), (long long)INT32_MAX);
    if (reply)
        freeReplyObject(reply);
    return rc;
}

int redis_group_create(struct redis_group *g, bool from_end, bool *created, struct err *err)
{
    struct err why = {0};
    if (from_end) {
        start_script(g, create_at_end_script);
        redis_args_add(&g->args, g->group);
    } else {
        redis_args_start(&g->args, "XGROUP");
        redis_args_text(&g->args, "CREATE");
        redis_args_add(&g->args, g->stream);
        redis_args_add(&g->args, g->group);
        redis_args_text(&g->args, "0");
        redis_args_text(&g->args, "MKSTREAM");
    }
    int rc = integer_command(g, &why);
    *created = rc >= 0;
    if (rc < 0 && redis_last_fault(g->connection) == REDIS_FAULT_BUSYGROUP)
        return E_OK;
    return rc < 0 ? err_typed(err, rc, why.type, "%s", why.msg) : E_OK;
}

int redis_group_drop(struct redis_group *g, int64_t idle_ns, bool *dropped, struct err *err)
{
    redisReply *reply;
    struct err why = {0};
    *dropped = false;
    idle_ns = TR_MAX(idle_ns, (int64_t)REDIS_GONE_NS);
    start_script(g, drop_script);
    redis_args_add(&g->args, g->group);
    redis_args_int(&g->args, idle_ns / 1000000);
    int rc = redis_command(g->connection, &reply, &g->args, REPLY_NS, &why);
    if (rc < 0) {
        bool none = redis_last_fault(g->connection) == REDIS_FAULT_NOGROUP ||
                    strstr(why.msg, "no such key") != NULL;
        return none ? E_OK : err_typed(err, rc, why.type, "%s", why.msg);
    }
    *dropped = reply->type == REDIS_REPLY_INTEGER && reply->integer == 1;
    if (reply->type == REDIS_REPLY_STRING)
        rc =
            err_set(err, E_RETRY,
                    "redis: group \"" STR_FMT "\": want nobody in it, found the consumer \"%.*s\", "
                    "heard of in the last %lld s",
                    STR_ARG(g->group), (int)TR_MIN(reply->len, (size_t)64), reply->str,
                    (long long)(idle_ns / 1000000000));
    freeReplyObject(reply);
    return TR_MIN(rc, E_OK);
}

int redis_group_info(struct redis_group *g, struct redis_group_info *out, struct err *err)
{
    redisReply *reply;
    struct err why = {0};
    *out = (struct redis_group_info){.lag = -1, .pending = -1};
    redis_args_start(&g->args, "XINFO");
    redis_args_text(&g->args, "GROUPS");
    redis_args_add(&g->args, g->stream);
    int rc = redis_command(g->connection, &reply, &g->args, REPLY_NS, &why);
    if (rc == E_FATAL && strstr(why.msg, "no such key"))
        return E_OK;
    if (rc < 0)
        return err_typed(err, rc, why.type, "%s", why.msg);
    rc = redis_group_info_parse(reply, g->group, out, err);
    freeReplyObject(reply);
    return rc;
}

int redis_group_read(struct redis_group *g, redisReply **out, const struct redis_id *from,
                     size_t count, int64_t block_ns, struct err *err)
{
    int64_t block_ms = TR_MIN(block_ns / 1000000, (int64_t)2000);
    redis_args_start(&g->args, "XREADGROUP");
    redis_args_text(&g->args, "GROUP");
    redis_args_add(&g->args, g->group);
    redis_args_add(&g->args, g->consumer);
    redis_args_text(&g->args, "COUNT");
    redis_args_int(&g->args, (int64_t)count);
    if (!from && block_ms > 0) { /* BLOCK 0 would be for ever */
        redis_args_text(&g->args, "BLOCK");
        redis_args_int(&g->args, block_ms);
    }
    redis_args_text(&g->args, "STREAMS");
    redis_args_add(&g->args, g->stream);
    if (from)
        redis_args_id(&g->args, *from);
    else
        redis_args_text(&g->args, ">");
    return redis_command(g->connection, out, &g->args, block_ms * 1000000 + REPLY_NS, err);
}

int redis_group_present(struct redis_group *g, struct err *err)
{
    redisReply *reply;
    struct redis_id behind_all = {.ms = UINT64_MAX};
    int rc = redis_group_read(g, &reply, &behind_all, 1, 0, err);
    if (reply)
        freeReplyObject(reply);
    return rc;
}

int redis_group_autoclaim(struct redis_group *g, redisReply **out, struct redis_id cursor,
                          size_t count, int64_t idle_ns, struct err *err)
{
    redis_args_start(&g->args, "XAUTOCLAIM");
    redis_args_add(&g->args, g->stream);
    redis_args_add(&g->args, g->group);
    redis_args_add(&g->args, g->consumer);
    redis_args_int(&g->args, idle_ns / 1000000);
    redis_args_id(&g->args, cursor);
    redis_args_text(&g->args, "COUNT");
    redis_args_int(&g->args, (int64_t)count);
    return redis_command(g->connection, out, &g->args, REPLY_NS, err);
}

int redis_group_ack(struct redis_group *g, const struct redis_id *ids, size_t n, struct err *err)
{
    CHECK(n <= REDIS_IDS_MAX);
    redis_args_start(&g->args, "XACK");
    redis_args_add(&g->args, g->stream);
    redis_args_add(&g->args, g->group);
    for (size_t i = 0; i < n; i++)
        redis_args_id(&g->args, ids[i]);
    return integer_command(g, err);
}

int redis_group_touch(struct redis_group *g, const struct redis_id *ids, size_t n, int64_t idle_ms,
                      struct redis_id *lost, struct err *err)
{
    redisReply *reply;
    int found = 0;
    CHECK(n <= REDIS_IDS_MAX);
    start_script(g, touch_script);
    redis_args_add(&g->args, g->group);
    redis_args_add(&g->args, g->consumer);
    redis_args_int(&g->args, idle_ms);
    for (size_t i = 0; i < n; i++)
        redis_args_id(&g->args, ids[i]);
    int rc = redis_command(g->connection, &reply, &g->args, REPLY_NS, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements && i < n; i++)
        if (redis_id_parse(redis_text(reply->element[i]), &lost[found]))
            found++;
    freeReplyObject(reply);
    return found;
}

int redis_group_trim(struct redis_group *g, int64_t keep_ns, struct err *err)
{
    start_script(g, trim_script);
    redis_args_int(&g->args, keep_ns / 1000000);
    return integer_command(g, err);
}

int redis_group_reap(struct redis_group *g, int64_t idle_ns, bool ours, struct err *err)
{
    start_script(g, reap_script);
    redis_args_add(&g->args, g->group);
    redis_args_add(&g->args, g->consumer);
    redis_args_int(&g->args, idle_ns / 1000000);
    redis_args_text(&g->args, ours ? "1" : "0");
    return integer_command(g, err);
}
