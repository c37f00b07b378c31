/* redis_reply: stream replies through hiredis's reader, whole and in single bytes; error classes;
 * what a wrong or hostile reply gets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/source/redis_reply.h"

/* NULL: not a whole or not a legal reply. */
static redisReply *parse(const char *text, size_t step)
{
    redisReader *r = redis_reader_open();
    void *reply = NULL;
    assert_non_null(r);
    size_t n = strlen(text);
    for (size_t at = 0; at < n && !reply; at += step) {
        assert_int_equal(redisReaderFeed(r, text + at, TR_MIN(step, n - at)), REDIS_OK);
        if (redisReaderGetReply(r, &reply) != REDIS_OK)
            break;
    }
    redisReaderFree(r);
    return reply;
}

static const char one_stream[] =
    "*1\r\n*2\r\n$4\r\njobs\r\n*3\r\n"
    "*2\r\n$3\r\n1-0\r\n*2\r\n$3\r\njob\r\n$2\r\n{}\r\n"
    "*2\r\n$3\r\n1-1\r\n*4\r\n$1\r\na\r\n$1\r\nb\r\n$3\r\njob\r\n$0\r\n\r\n"
    "*2\r\n$3\r\n2-7\r\n*-1\r\n";

static void entries_of_a_read(void **state)
{
    (void)state;
    for (size_t step = 1; step <= sizeof one_stream; step += 17) {
        redisReply *reply = parse(one_stream, step);
        const redisReply *entries;
        struct redis_entry e;
        struct err err = {0};
        assert_non_null(reply);
        assert_int_equal(redis_read_entries(reply, &entries, &err), E_OK);
        assert_int_equal(entries->elements, 3);
        assert_int_equal(redis_entry_parse(entries->element[0], &e, &err), E_OK);
        assert_true(str_eq(e.job, STR("{}")) && !e.gone && e.bytes == 5);
        assert_true(e.id.ms == 1 && e.id.seq == 0 && str_eq(e.id_text, STR("1-0")));
        assert_int_equal(redis_entry_parse(entries->element[1], &e, &err), E_OK);
        assert_true(e.job.ptr && e.job.len == 0 && e.id.seq == 1);
        assert_int_equal(redis_entry_parse(entries->element[2], &e, &err), E_OK);
        assert_true(e.gone && !e.job.ptr && e.id.ms == 2 && e.id.seq == 7);
        freeReplyObject(reply);
    }
}

static void an_entry_without_the_field(void **state)
{
    (void)state;
    redisReply *reply = parse("*2\r\n$3\r\n1-0\r\n*2\r\n$4\r\njobs\r\n$2\r\n{}\r\n", 100);
    struct redis_entry e;
    struct err err = {0};
    assert_int_equal(redis_entry_parse(reply, &e, &err), E_OK);
    assert_true(!e.gone && !e.job.ptr);
    freeReplyObject(reply);
}

static void nothing_came(void **state)
{
    (void)state;
    redisReply *reply = parse("*-1\r\n", 100);
    const redisReply *entries;
    struct err err = {0};
    assert_int_equal(redis_read_entries(reply, &entries, &err), E_OK);
    assert_null(entries);
    freeReplyObject(reply);
}

static void another_shape_is_an_error(void **state)
{
    (void)state;
    static const char *const texts[] = {":1\r\n",
                                        "*0\r\n",
                                        "*2\r\n:1\r\n:2\r\n",
                                        "*1\r\n:1\r\n",
                                        "*1\r\n*2\r\n$1\r\na\r\n:1\r\n",
                                        "*1\r\n*1\r\n$1\r\na\r\n"};
    static const char *const entries[] = {":1\r\n",
                                          "*2\r\n:1\r\n*0\r\n",
                                          "*2\r\n$1\r\n1\r\n*0\r\n",
                                          "*2\r\n$3\r\n1-0\r\n:3\r\n",
                                          "*2\r\n$3\r\n1-0\r\n*1\r\n$1\r\na\r\n",
                                          "*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n:1\r\n"};
    for (size_t i = 0; i < TR_COUNT(texts); i++) {
        redisReply *reply = parse(texts[i], 100);
        const redisReply *found;
        struct redis_autoclaim a;
        struct err err = {0};
        assert_int_equal(redis_read_entries(reply, &found, &err), E_RETRY);
        assert_string_equal(err.type, "redis_reply");
        assert_int_equal(redis_autoclaim_parse(reply, &a, &err), E_RETRY);
        freeReplyObject(reply);
    }
    for (size_t i = 0; i < TR_COUNT(entries); i++) {
        redisReply *reply = parse(entries[i], 100);
        struct redis_entry e;
        struct err err = {0};
        assert_int_equal(redis_entry_parse(reply, &e, &err), E_RETRY);
        freeReplyObject(reply);
    }
}

static void a_length_that_asks_for_the_machine(void **state)
{
    (void)state;
    assert_null(parse("*1048577\r\n", 100));
    assert_null(parse("*2147483647\r\n", 100));
    assert_null(parse("$-5\r\n", 100));
    assert_null(parse("?\r\n", 100));
}

static void autoclaim_of_two_versions(void **state)
{
    (void)state;
    struct redis_autoclaim a;
    struct err err = {0};
    redisReply *reply = parse("*3\r\n$3\r\n5-1\r\n*0\r\n*2\r\n$3\r\n1-0\r\n$3\r\n1-1\r\n", 100);
    assert_int_equal(redis_autoclaim_parse(reply, &a, &err), E_OK);
    assert_true(a.cursor.ms == 5 && a.cursor.seq == 1 && a.deleted->elements == 2);
    assert_int_equal(a.entries->elements, 0);
    freeReplyObject(reply);
    reply = parse("*2\r\n$3\r\n0-0\r\n*1\r\n*-1\r\n", 100);
    assert_int_equal(redis_autoclaim_parse(reply, &a, &err), E_OK);
    assert_true(a.cursor.ms == 0 && !a.deleted && a.entries->elements == 1);
    freeReplyObject(reply);
}

static void groups(void **state)
{
    (void)state;
    static const char text[] =
        "*2\r\n"
        "*6\r\n$4\r\nname\r\n$1\r\nf\r\n$7\r\npending\r\n:9\r\n$3\r\nlag\r\n:8\r\n"
        "*6\r\n$4\r\nname\r\n$1\r\ng\r\n$7\r\npending\r\n:3\r\n$3\r\nlag\r\n$-1\r\n";
    struct redis_group_info info;
    struct err err = {0};
    redisReply *reply = parse(text, 7);
    assert_int_equal(redis_group_info_parse(reply, STR("g"), &info, &err), E_OK);
    assert_true(info.found && info.pending == 3 && info.lag == -1);
    assert_int_equal(redis_group_info_parse(reply, STR("f"), &info, &err), E_OK);
    assert_true(info.found && info.pending == 9 && info.lag == 8);
    assert_int_equal(redis_group_info_parse(reply, STR("h"), &info, &err), E_OK);
    assert_false(info.found);
    freeReplyObject(reply);
}

static void ids(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "-",
                                      "1",
                                      "1-",
                                      "-1",
                                      "1-2-3",
                                      "18446744073709551616-0",
                                      "0-99999999999999999999",
                                      "+1-2",
                                      "1 -2",
                                      "a-b"};
    struct redis_id id;
    char text[REDIS_ID_TEXT];
    for (size_t i = 0; i < TR_COUNT(bad); i++)
        assert_false(redis_id_parse(str_of(bad[i]), &id));
    assert_true(redis_id_parse(STR("18446744073709551615-18446744073709551615"), &id));
    redis_id_text(id, text);
    assert_string_equal(text, "18446744073709551615-18446744073709551615");
}

static void faults(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum redis_fault fault;
    } cases[] = {
        {"NOGROUP No such key 'jobs' or consumer group 'g'", REDIS_FAULT_NOGROUP},
        {"BUSYGROUP Consumer Group name already exists", REDIS_FAULT_BUSYGROUP},
        {"READONLY You can't write against a read only replica.", REDIS_FAULT_READONLY},
        {"UNBLOCKED force unblock from blocking operation", REDIS_FAULT_READONLY},
        {"LOADING Redis is loading the dataset in memory", REDIS_FAULT_LOADING},
        {"MASTERDOWN Link with MASTER is down", REDIS_FAULT_LOADING},
        {"OOM command not allowed when used memory > 'maxmemory'.", REDIS_FAULT_OOM},
        {"NOAUTH Authentication required.", REDIS_FAULT_AUTH},
        {"WRONGPASS invalid username-password pair or user is disabled.", REDIS_FAULT_AUTH},
        {"ERR invalid password", REDIS_FAULT_AUTH},
        {"NOPERM this user has no permissions to run the 'xack' command", REDIS_FAULT_NOPERM},
        {"MOVED 3999 127.0.0.1:6381", REDIS_FAULT_MOVED},
        {"WRONGTYPE Operation against a key", REDIS_FAULT_WRONGTYPE},
        {"BUSY Redis is busy running a script.", REDIS_FAULT_BUSY},
        {"MISCONF Errors writing to the AOF file", REDIS_FAULT_BUSY},
        {"NOREPLICAS Not enough good replicas to write.", REDIS_FAULT_BUSY},
        {"ERR max number of clients reached", REDIS_FAULT_BUSY},
        {"ERR Error running script (call to f_0): -READONLY You can't", REDIS_FAULT_READONLY},
        {"ERR unknown command", REDIS_FAULT_OTHER},
        {"READONLYISH no", REDIS_FAULT_OTHER},
        {"", REDIS_FAULT_OTHER}};
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        assert_int_equal(redis_fault_of(str_of(cases[i].text)), cases[i].fault);
    assert_string_equal(redis_fault_name(REDIS_FAULT_OTHER), "other");
    struct redis_host to;
    assert_true(redis_moved_parse(STR("MOVED 3999 127.0.0.1:6381"), &to));
    assert_true(strcmp(to.name, "127.0.0.1") == 0 && to.port == 6381);
    assert_false(redis_moved_parse(STR("MOVED 3999"), &to));
    assert_false(redis_moved_parse(STR("MOVED 3999 :6381"), &to));
    assert_false(redis_moved_parse(STR("ASK 3999 127.0.0.1:6381"), &to));
}

static void info_lines(void **state)
{
    (void)state;
    struct str info = STR("# Server\r\nredis_version:7.0.15\r\n\r\naof_enabled:1\r\nlast:x");
    assert_true(str_eq(redis_info_value(info, "redis_version"), STR("7.0.15")));
    assert_true(str_eq(redis_info_value(info, "aof_enabled"), STR("1")));
    assert_true(str_eq(redis_info_value(info, "last"), STR("x")));
    assert_null(redis_info_value(info, "redis").ptr);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_of_a_read),
        cmocka_unit_test(an_entry_without_the_field),
        cmocka_unit_test(nothing_came),
        cmocka_unit_test(another_shape_is_an_error),
        cmocka_unit_test(a_length_that_asks_for_the_machine),
        cmocka_unit_test(autoclaim_of_two_versions),
        cmocka_unit_test(groups),
        cmocka_unit_test(ids),
        cmocka_unit_test(faults),
        cmocka_unit_test(info_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
