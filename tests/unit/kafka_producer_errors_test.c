/* kafka_producer_errors: the errors that the Kafka producer and the operator's commands name,
 * injected by the client library's mock cluster. What is asserted: the class, that nothing counts
 * as confirmed that the broker has not taken, that an offset moves where it may and nowhere else.
 * See kafka_errors_test.c. */
#include "kafka_mock.h"

#include "worker/source/kafka_admin.h"
#include "worker/source/kafka_producer.h"

static struct producer *out;

static int setup_producer(void **state)
{
    out = NULL;
    int rc = setup(state);
    configure("");
    m.opts.partition = 0;
    return rc;
}

static int teardown_producer(void **state)
{
    producer_close(out);
    return teardown(state);
}

#define OUT(test) cmocka_unit_test_setup_teardown(test, setup_producer, teardown_producer)

static void push(int16_t request, size_t n, rd_kafka_resp_err_t code)
{
    rd_kafka_resp_err_t codes[64];
    assert_true(n <= TR_COUNT(codes));
    for (size_t i = 0; i < n; i++)
        codes[i] = code;
    rd_kafka_mock_push_request_errors_array(m.cluster, request, n, codes);
}

static void open_producer(void)
{
    assert_int_equal(producer_open(&out, &m.opts, &m.err), E_OK);
}

static int send_some(int n)
{
    int rc = E_OK;
    for (int i = 0; rc >= 0 && i < n; i++)
        rc = out->ops->send(out, STR("k"), STR("{\"prompt\":\"x\"}"), &m.err);
    return rc < 0 ? rc : out->ops->flush(out, &m.err);
}

/* ---- produce ---- */

static void errors_that_end_lose_and_double_nothing(void **state)
{
    static const rd_kafka_resp_err_t codes[] = {
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE};
    int32_t made = 0;
    (void)state;
    configure("retry.backoff.ms = 50\n");
    push(INIT_PRODUCER_ID, 2, RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS);
    open_producer();
    for (size_t i = 0; i < TR_COUNT(codes); i++) {
        push(PRODUCE, 1, codes[i]);
        assert_int_equal(send_some(5), E_OK);
        made += 5;
        assert_int_equal(out->ops->confirmed(out), made);
    }
    assert_int_equal(open_source(), E_OK);
    turn_until(made, 30);
}

static void refusals_are_fatal(void **state)
{
    static const struct {
        int16_t request;
        rd_kafka_resp_err_t code;
        const char *words;
    } cases[] = {{PRODUCE, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "uthoriz"},
                 {INIT_PRODUCER_ID, RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, "luster"}};
    for (size_t i = 0; i < TR_COUNT(cases); i++) {
        assert_int_equal(setup_producer(state), 0);
        push(cases[i].request, 20, cases[i].code);
        /* Who may have no producer id can be told so while it still opens. */
        int rc = producer_open(&out, &m.opts, &m.err);
        assert_int_equal(rc == E_OK ? send_some(1) : rc, E_FATAL);
        assert_non_null(strstr(m.err.msg, cases[i].words));
        assert_true(rc == E_OK || cases[i].request == INIT_PRODUCER_ID);
        if (rc == E_OK) {
            assert_int_equal(out->ops->confirmed(out), 0);
            assert_int_equal(send_some(1), E_FATAL);
        }
        assert_int_equal(teardown_producer(state), 0);
    }
}

/* The client's word and the broker's, whose limit is the operator's. */
static void a_message_that_is_too_large_is_told_as_that(void **state)
{
    (void)state;
    char *big = mem_alloc(9 << 20, 1);
    assert_non_null(big);
    memset(big, 'x', 9 << 20);
    open_producer();
    assert_int_equal(out->ops->send(out, STR("k"), (struct str){big, 9 << 20}, &m.err), E_FATAL);
    assert_string_equal(m.err.type, "too_large"); /* RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE */
    assert_int_equal(out->ops->confirmed(out), 0);
    mem_free(big);
    m.err = (struct err){0};
    assert_int_equal(send_some(2), E_OK); /* it alone was too much */
    push(PRODUCE, 5, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    assert_int_equal(send_some(1), E_FATAL);
    assert_string_equal(m.err.type, "too_large");
    assert_int_equal(out->ops->confirmed(out), 2);
}

/* RD_KAFKA_RESP_ERR__QUEUE_FULL: the client's own queue has no room; the caller waits. */
static void no_room_in_the_client_waits(void **state)
{
    (void)state;
    configure("queue.buffering.max.messages = 10\n");
    rd_kafka_mock_broker_set_rtt(m.cluster, 1, 20);
    open_producer();
    assert_int_equal(send_some(100), E_OK);
    assert_int_equal(out->ops->confirmed(out), 100);
}

/* The topic goes while it is written to: RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC is the client's word for
 * the broker's UNKNOWN_TOPIC_OR_PART. */
static void a_topic_that_goes_takes_nothing_along(void **state)
{
    (void)state;
    configure("topic.metadata.refresh.interval.ms = 100\ntopic.metadata.propagation.max.ms = 0\n"
              "message.timeout.ms = 20000\n");
    open_producer();
    assert_int_equal(send_some(2), E_OK);
    rd_kafka_mock_topic_set_error(m.cluster, "t", RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    int rc = E_OK, made = 2;
    for (int i = 0; rc >= 0 && i < 100; i++) {
        clock_sleep_ns(clock_system(), SECOND / 10);
        rc = send_some(1);
        made += rc >= 0;
    }
    assert_true(rc < 0);
    assert_int_equal(out->ops->confirmed(out), made);
    assert_non_null(strstr(m.err.msg, rd_kafka_err2str(RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC)));
}

/* ---- seek, scan, backlog ---- */

static int64_t backlog(void)
{
    struct backlog left = {0};
    assert_int_equal(queue_backlog(&m.opts, &left, &m.err), E_OK);
    return left.lag;
}

static void a_seek_beside_workers_is_refused(void **state)
{
    static const rd_kafka_resp_err_t codes[] = {RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
                                                RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
                                                RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS};
    (void)state;
    produce(MESSAGES);
    assert_int_equal(seek_to(5, &m.err), E_OK);
    for (size_t i = 0; i < TR_COUNT(codes); i++) {
        m.err = (struct err){0};
        push(OFFSET_COMMIT, 1, codes[i]);
        assert_int_equal(seek_to(9, &m.err), E_FATAL);
        assert_non_null(strstr(m.err.msg, "running workers"));
        assert_int_equal(backlog(), MESSAGES - 5);
    }
    push(OFFSET_FETCH, 1, RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    assert_int_equal(seek_to(9, &m.err), E_FATAL);
    push(OFFSET_FETCH, 1, RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    assert_int_equal(backlog(), -1);
    assert_int_equal(seek_to(9, &m.err), E_OK);
    assert_int_equal(backlog(), MESSAGES - 9);
}

static int count(void *ctx, struct job *job, struct err *err)
{
    (void)err;
    job_close(job);
    ++*(int *)ctx;
    return E_OK;
}

static int scan(int *n)
{
    struct scan_range all = {.to = {SCAN_OFFSET, MESSAGES}};
    *n = 0;
    m.err = (struct err){0};
    return queue_scan(&m.opts, &all, count, n, &m.err);
}

static void a_scan_reads_all_or_says_why_not(void **state)
{
    int n;
    (void)state;
    produce(MESSAGES);
    push(FETCH, 2, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
    assert_int_equal(scan(&n), E_OK);
    assert_int_equal(n, MESSAGES);
    push(FETCH, 50, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    assert_int_equal(scan(&n), E_FATAL);
    assert_int_equal(n, 0);
    rd_kafka_mock_clear_request_errors(m.cluster, FETCH);
    /* RD_KAFKA_RESP_ERR__TIMED_OUT: nothing comes, for as long as a scan waits. */
    rd_kafka_mock_broker_push_request_error_rtts(m.cluster, 1, FETCH, 1, 0, 13000);
    assert_int_equal(scan(&n), E_RETRY);
    assert_int_equal(n, 0);
    assert_non_null(strstr(m.err.msg, rd_kafka_err2str(RD_KAFKA_RESP_ERR__TIMED_OUT)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {OUT(errors_that_end_lose_and_double_nothing),
                                       cmocka_unit_test(refusals_are_fatal),
                                       OUT(a_message_that_is_too_large_is_told_as_that),
                                       OUT(no_room_in_the_client_waits),
                                       OUT(a_topic_that_goes_takes_nothing_along),
                                       OUT(a_seek_beside_workers_is_refused),
                                       OUT(a_scan_reads_all_or_says_why_not)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
