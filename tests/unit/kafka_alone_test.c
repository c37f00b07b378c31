/* kafka_alone: a worker with --partition, of which the group knows nothing: its sign of life is
 * seen whatever the clocks say, and what it commits moves no offset that somebody else has put
 * there. */
#include "kafka_mock.h"

#include <pthread.h>

#include "worker/source/kafka_admin.h"

/* ---- a clock that runs faster, and whose wall clock is another machine's ---- */

enum { FASTER = 20 };
static int64_t apart_ns;

static int64_t fast_mono(void *ctx)
{
    (void)ctx;
    return clock_mono_ns(clock_system()) * FASTER;
}
static int64_t fast_wall(void *ctx)
{
    (void)ctx;
    return clock_wall_ns(clock_system()) + apart_ns;
}
static void fast_sleep(void *ctx, int64_t ns)
{
    (void)ctx;
    clock_sleep_ns(clock_system(), ns / FASTER);
}
static const struct clock fast = {fast_mono, fast_wall, fast_sleep, NULL};

static int setup_alone(void **state)
{
    int rc = setup(state);
    configure("");
    m.opts.partition = 0;
    apart_ns = 0;
    return rc;
}

#define ALONE(test) cmocka_unit_test_setup_teardown(test, setup_alone, teardown)

static void open_alone(void)
{
    if (source_open(&m.source, &m.opts, &fast, &m.err) != E_OK)
        fail_msg("%s", m.err.msg);
}

static void close_alone(void)
{
    source_close(m.source);
    m.source = NULL;
}

/* ---- what stands with the broker, asked and set by a handle of its own ---- */

static rd_kafka_topic_partition_list_t *one(const struct kafka_admin *a, int64_t offset)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, a->topic, 0)->offset = offset;
    return list;
}

static void admin(struct kafka_admin *a)
{
    struct source_url url;
    struct err err = {0};
    assert_int_equal(source_url_parse(&url, str_of(m.url), &err), E_OK);
    if (kafka_admin_open(a, &url, &m.opts, &err) != E_OK)
        fail_msg("%s", err.msg);
}

static void put(int64_t offset, const char *sign)
{
    struct kafka_admin a;
    admin(&a);
    rd_kafka_topic_partition_list_t *list = one(&a, offset);
    if (sign) {
        list->elems[0].metadata = rd_kafka_mem_malloc(a.rk, strlen(sign));
        memcpy(list->elems[0].metadata, sign, strlen(sign));
        list->elems[0].metadata_size = strlen(sign);
    }
    assert_int_equal(rd_kafka_commit(a.rk, list, 0), 0);
    rd_kafka_topic_partition_list_destroy(list);
    kafka_admin_close(&a);
}

static int64_t stands(bool *sign)
{
    struct kafka_admin a;
    admin(&a);
    rd_kafka_topic_partition_list_t *list = one(&a, RD_KAFKA_OFFSET_INVALID);
    assert_int_equal(rd_kafka_committed(a.rk, list, 20000), 0);
    int64_t offset = list->elems[0].offset;
    *sign = kafka_sign(list->elems[0].metadata, list->elems[0].metadata_size);
    rd_kafka_topic_partition_list_destroy(list);
    kafka_admin_close(&a);
    return offset;
}

/* ---- its sign ---- */

/* Turns until it has said that it is at work. */
static void turn_until_signed(void)
{
    bool sign = false;
    for (int i = 0; i < 100 && !sign; i++) {
        turn_for(0.1, MESSAGES);
        (void)stands(&sign);
    }
    assert_true(sign);
}

static atomic_bool stop;

static void *work_on(void *arg)
{
    (void)arg;
    while (!stop) {
        (void)turn(0);
        clock_sleep_ns(clock_system(), SECOND / 50);
    }
    return NULL;
}

/* It commits nothing new, as with one long job in hand; its clock is an hour behind, or ahead. */
static void one_at_work_is_seen_whatever_its_clock(void **state)
{
    (void)state;
    produce(MESSAGES);
    for (int i = 0; i < 2; i++) {
        struct err err = {0};
        pthread_t thread;
        apart_ns = (i ? 3600 : -3600) * SECOND;
        open_alone();
        turn_until(MESSAGES * (i + 1), 30);
        turn_until_signed();
        stop = false;
        assert_int_equal(pthread_create(&thread, NULL, work_on, NULL), 0);
        int rc = seek_to(9, &err);
        stop = true;
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(rc, E_FATAL);
        assert_non_null(strstr(err.msg, "a worker with --partition 0 is at work"));
        close_alone();
        assert_int_equal(seek_to(0, &err), E_OK); /* one that left is forgotten at once */
    }
}

/* Killed, it leaves its sign behind. */
static void one_that_was_killed_is_forgotten(void **state)
{
    static const char *const signs[] = {"tranche --partition 0123456789abcdef 7",
                                        "tranche --partition 32503680000", /* of the year 3000 */
                                        "another tool's own note", NULL};
    const struct seek_move move = {.partition = 0};
    (void)state;
    produce(MESSAGES);
    for (size_t i = 0; i < TR_COUNT(signs); i++) {
        struct kafka_admin a;
        struct err err = {0};
        put(3, signs[i]);
        admin(&a);
        int64_t began = clock_mono_ns(&fast);
        assert_int_equal(kafka_admin_alone(&a, &move, 1, &fast, &err), E_OK);
        bool waited = clock_mono_ns(&fast) - began >= KAFKA_SIGN_LOST_SECONDS * SECOND;
        assert_true(waited || i >= 2);
        kafka_admin_close(&a);
    }
    bool sign;
    assert_int_equal(stands(&sign), 3);
}

static void another_tools_note_is_no_sign(void **state)
{
    static const struct {
        const char *metadata;
        bool sign;
    } cases[] = {{"tranche --partition 0123456789abcdef 1", true},
                 {"tranche --partition ", false},
                 {"another tool's own note", false},
                 {"", false}};
    (void)state;
    assert_false(kafka_sign(NULL, 0));
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        assert_int_equal(kafka_sign(cases[i].metadata, strlen(cases[i].metadata)), cases[i].sign);
}

/* ---- an offset that somebody else has moved ---- */

static void turn_until_stands(int64_t want)
{
    bool sign;
    int64_t offset = -1;
    for (int i = 0; i < 200 && offset != want; i++) {
        turn_for(0.05, MESSAGES);
        offset = stands(&sign);
    }
    assert_int_equal(offset, want);
}

static void ack(int from, int n)
{
    assert_int_equal(m.source->ops->ack(m.source, m.jobs + from, (size_t)n, &m.err), E_OK);
}

/* By its sign of life, by what it acknowledges afterwards, and when it leaves. */
static void a_moved_offset_stays(void **state)
{
    enum { BEGIN = 30, DONE = 35 };
    static const int64_t to[] = {20, 38, BEGIN}; /* back, ahead, and where it had found it */
    (void)state;
    produce(MESSAGES);
    for (size_t i = 0; i < TR_COUNT(to); i++) {
        bool sign;
        int from = m.n;
        put(BEGIN, NULL);
        open_alone();
        turn_until(from + MESSAGES - BEGIN, 30);
        ack(from, DONE - BEGIN);
        turn_until_stands(DONE);
        put(to[i], NULL);
        turn_for(2.0 * KAFKA_SIGN_SECONDS / FASTER, MESSAGES);
        assert_int_equal(stands(&sign), to[i]);
        ack(from + DONE - BEGIN, 1);
        turn_for(0.5, MESSAGES);
        assert_int_equal(stands(&sign), to[i]);
        close_alone();
        assert_int_equal(stands(&sign), to[i]);
        assert_false(sign);
    }
}

/* One of the two stands still: its signs take nothing of the other's back. */
static void two_on_a_partition_take_nothing_back(void **state)
{
    bool sign;
    (void)state;
    produce(MESSAGES);
    open_alone();
    turn_until(MESSAGES, 30);
    turn_until_signed();
    struct source *first = m.source;
    open_alone();
    turn_until(2 * MESSAGES, 30);
    turn_until_signed();
    struct source *still = m.source;
    m.source = first;
    ack(0, 20);
    turn_until_stands(20);
    for (int i = 0; i < 4; i++) {
        m.source = i % 2 ? first : still;
        turn_for(1.5 * KAFKA_SIGN_SECONDS / FASTER, MESSAGES);
        assert_int_equal(stands(&sign), 20);
    }
    m.source = still;
    close_alone();
    assert_int_equal(stands(&sign), 20);
    m.source = first;
    ack(20, 10);
    close_alone();
    assert_int_equal(stands(&sign), 30);
    assert_false(sign);
}

/* The other one leaves, or is killed: what is done beyond it is acknowledged, else a queue that is
 * worked off would have a lag for ever. Its own progress is not taken back on the way there. */
static void one_goes_on_where_another_ended(void **state)
{
    (void)state;
    produce(MESSAGES);
    m.from = 0;
    for (int killed = 0; killed < 2; killed++) {
        bool sign;
        int from = m.n;
        open_alone();
        turn_until(from + MESSAGES, 30);
        turn_until_stands(0);
        struct source *first = m.source;
        open_alone();
        struct source *second = m.source;
        turn_until(from + 2 * MESSAGES, 30);
        m.source = first;
        ack(from, 20);
        turn_until_stands(20);
        if (!killed)
            close_alone();
        m.source = second;
        ack(from + MESSAGES, 10);
        turn_for(2.0 * KAFKA_SIGN_SECONDS / FASTER, MESSAGES);
        assert_int_equal(stands(&sign), 20);
        ack(from + MESSAGES + 10, MESSAGES - 10);
        turn_until_stands(MESSAGES);
        assert_int_equal(group_lag(m.source), 0);
        close_alone();
        if (killed) { /* its host is back */
            m.source = first;
            close_alone();
        }
        assert_int_equal(stands(&sign), MESSAGES);
        assert_false(sign);
    }
}

/* What stands there is not known: nothing is written, and it is asked again. */
static void without_an_answer_it_is_asked_again(void **state)
{
    (void)state;
    produce(MESSAGES);
    open_alone();
    turn_until(MESSAGES, 30);
    turn_until_signed();
    rd_kafka_mock_push_request_errors(m.cluster, OFFSET_FETCH, 2,
                                      RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
                                      RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
    ack(0, 20);
    turn_for(1, MESSAGES);
    turn_until_stands(20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {ALONE(one_at_work_is_seen_whatever_its_clock),
                                       ALONE(one_that_was_killed_is_forgotten),
                                       ALONE(a_moved_offset_stays),
                                       ALONE(two_on_a_partition_take_nothing_back),
                                       ALONE(one_goes_on_where_another_ended),
                                       ALONE(without_an_answer_it_is_asked_again),
                                       cmocka_unit_test(another_tools_note_is_no_sign)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
