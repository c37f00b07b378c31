/* Fuzzes what a Redis server and an operator can send us. The first byte chooses: RESP replies
 * through the reader and every parser of stream replies; a URL; a config file. */
#include "worker/source/redis_reply.h"
#include "worker/source/source_open.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look_at(const redisReply *reply)
{
    const redisReply *entries = NULL;
    struct redis_autoclaim claimed = {0};
    struct redis_group_info info;
    struct redis_host host;
    struct err err = {0};
    if (redis_read_entries(reply, &entries, &err) == E_OK && entries)
        for (size_t i = 0; i < entries->elements; i++) {
            struct redis_entry e;
            struct err each = {0};
            int rc = redis_entry_parse(entries->element[i], &e, &each);
            CHECK(rc == E_OK || (rc == E_RETRY && each.msg[0]));
            if (rc == E_OK) {
                struct redis_id again;
                char text[REDIS_ID_TEXT];
                redis_id_text(e.id, text);
                CHECK(redis_id_parse(str_of(text), &again) && redis_id_eq(again, e.id));
                CHECK(e.bytes >= e.job.len);
            }
        }
    if (redis_autoclaim_parse(reply, &claimed, &err) == E_OK)
        CHECK(claimed.entries && claimed.entries->type == REDIS_REPLY_ARRAY);
    if (redis_group_info_parse(reply, STR("g"), &info, &err) == E_OK && !info.found)
        CHECK(info.pending == -1);
    struct str text = redis_text(reply);
    CHECK(redis_fault_name(redis_fault_of(text)));
    if (redis_moved_parse(text, &host))
        CHECK(host.name[0] && host.port > 0 && host.port < 65536);
    (void)redis_info_value(text, "redis_version");
}

static void replies(const char *bytes, size_t n)
{
    redisReader *r = redis_reader_open();
    void *reply = NULL;
    CHECK(r);
    for (size_t at = 0; at < n; at += 61) {
        if (redisReaderFeed(r, bytes + at, TR_MIN(n - at, (size_t)61)) != REDIS_OK)
            break;
        while (redisReaderGetReply(r, &reply) == REDIS_OK && reply) {
            look_at(reply);
            freeReplyObject(reply);
            reply = NULL;
        }
        if (r->err)
            break;
    }
    redisReaderFree(r);
}

static void urls(struct str text)
{
    struct source_url url;
    struct redis_settings s;
    struct err err = {0};
    redis_settings_init(&s);
    int rc = source_url_parse(&url, text, &err);
    if (rc == E_OK)
        rc = redis_settings_url(&s, url.scheme, url.hosts, &err);
    CHECK(rc == E_OK || (rc == E_USAGE && err.msg[0]));
    for (int i = 0; rc == E_OK && i < s.n_hosts; i++)
        CHECK(s.hosts[i].name[0] && s.hosts[i].port > 0 && s.hosts[i].port < 65536);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *bytes = (const char *)data + 1;
    if (size == 0)
        return 0;
    if (data[0] == 'u') {
        urls((struct str){bytes, size - 1});
    } else if (data[0] == 'c') {
        struct redis_settings s;
        struct err err = {0};
        redis_settings_init(&s);
        int rc = redis_settings_parse(&s, (struct str){bytes, size - 1}, "file", &err);
        CHECK(rc == E_OK || (rc == E_USAGE && err.msg[0]));
        CHECK(s.lease_ns >= 1000000000 && s.trim_keep_ns >= -1);
    } else {
        replies(bytes, size - 1);
    }
    return 0;
}
