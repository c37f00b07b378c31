/* source_kafka: the protocol's errors, injected by the client library's mock cluster, one at a
 * time. The source is driven as the worker's source thread drives it. */
#include "kafka_mock.h"

static struct source_lag lag(void)
{
    struct source_lag now;
    m.source->ops->lag(m.source, &now);
    return now;
}

static void claims_and_commits_what_is_done(void **state)
{
    (void)state;
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    assert_false(lag().joined);
    assert_int_equal(lag().messages, -1);
    turn_until(MESSAGES, 20);
    for (int i = 0; i < MESSAGES; i++) {
        assert_int_equal(m.jobs[i]->position, i + 1);
        assert_int_equal(m.jobs[i]->from_position, i);
        assert_int_equal(m.jobs[i]->sequence, i);
    }
    assert_true(lag().joined);
    assert_int_equal(lag().messages, MESSAGES);
    assert_int_equal(m.source->ops->ack(m.source, m.jobs + 1, MESSAGES - 1, &m.err), E_OK);
    assert_int_equal(kafka_watermark_value(&partition()->watermark), 0);
    assert_int_equal(lag().messages, MESSAGES);
    assert_int_equal(m.source->ops->ack(m.source, m.jobs, 1, &m.err), E_OK);
    assert_int_equal(lag().messages, 0);
    assert_int_equal(kafka_commit(kafka_of(m.source), true, &m.err), E_OK);
    assert_int_equal(partition()->sent, MESSAGES);
    assert_int_equal(group_lag(m.source), 0);
}

static void starts_where_the_sink_says(void **state)
{
    (void)state;
    produce(MESSAGES);
    m.from = 30;
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES - 30, 20);
    assert_int_equal(m.jobs[0]->position, 31);
    assert_int_equal(m.jobs[0]->from_position, 30);
}

static void a_position_behind_the_end_is_refused(void **state)
{
    (void)state;
    produce(MESSAGES);
    m.from = MESSAGES + 5;
    assert_int_equal(open_source(), E_OK);
    turn_for(6, MESSAGES);
    assert_int_equal(m.assigned, 1);
    assert_true(partition()->refused);
    assert_int_equal(m.n, 0);
    assert_int_equal(lag().messages, -1); /* there is no other */
}

/* Nothing is left to read but what cannot be read: who is to leave when idle leaves, and says so.
 */
static void a_refused_partition_does_not_keep_an_idle_worker(void **state)
{
    (void)state;
    produce(MESSAGES);
    m.from = MESSAGES + 5;
    m.opts.idle_exit_ns = SECOND;
    assert_int_equal(open_source(), E_OK);
    int rc = E_OK;
    int64_t until = clock_mono_ns(clock_system()) + 60 * SECOND;
    while (rc != E_FATAL && clock_mono_ns(clock_system()) < until)
        rc = turn(MESSAGES);
    assert_int_equal(rc, E_FATAL);
    assert_string_equal(m.err.type, SOURCE_REFUSED);
    assert_non_null(strstr(m.err.msg, "partition 0"));
    assert_int_equal(m.n, 0);
    assert_int_equal(group_lag(m.source), MESSAGES); /* nothing was acknowledged */
}

/* The mock sends partitions beside a topic's error, which no broker does, and a client from 2.1 to
 * one before 2.16 dies of it (2.3.0 and 2.8.0 seen to). tests/run/test_kafka_clients.py has a real
 * one.
 */
static void no_right_to_the_topic_is_fatal(void **state)
{
    (void)state;
    if (rd_kafka_version() >= 0x02010000 && rd_kafka_version() < 0x02100000)
        skip();
    rd_kafka_mock_topic_set_error(m.cluster, "t", RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    assert_int_equal(open_source(), E_FATAL);
    assert_non_null(strstr(m.err.msg, "authorization"));
}

static void an_unknown_topic_is_fatal(void **state)
{
    (void)state;
    rd_kafka_mock_topic_set_error(m.cluster, "t", RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    assert_int_equal(open_source(), E_FATAL);
    assert_non_null(strstr(m.err.msg, "tranche init"));
}

static void no_broker_is_worth_a_retry(void **state)
{
    (void)state;
    rd_kafka_mock_broker_set_down(m.cluster, 1);
    m.opts.connect_timeout_ns = SECOND;
    assert_int_equal(open_source(), E_RETRY);
}

static void no_right_to_the_group_is_fatal(void **state)
{
    (void)state;
    rd_kafka_mock_push_request_errors(
        m.cluster, JOIN_GROUP, 3, RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    assert_int_equal(open_source(), E_OK);
    int rc = E_OK;
    for (int i = 0; i < 100 && rc != E_FATAL; i++)
        rc = turn(MESSAGES);
    assert_int_equal(rc, E_FATAL);
    assert_non_null(strstr(m.err.msg, "GROUP_AUTHORIZATION_FAILED"));
    assert_string_equal(m.err.type, SOURCE_REFUSED);
}

/* A refused commit is sent again, whatever the refusal. */
static void refused_commits_are_sent_again(void **state)
{
    static const rd_kafka_resp_err_t codes[] = {
        RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        RD_KAFKA_RESP_ERR_NOT_COORDINATOR, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE};
    (void)state;
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES, 20);
    for (size_t i = 0; i < TR_COUNT(codes); i++) {
        assert_int_equal(m.source->ops->ack(m.source, m.jobs + i, 1, &m.err), E_OK);
        rd_kafka_mock_push_request_errors(m.cluster, OFFSET_COMMIT, 1, codes[i]);
        turn_for(4, MESSAGES);
        assert_int_equal(partition()->sent, i + 1);
    }
    rd_kafka_mock_clear_request_errors(m.cluster, OFFSET_COMMIT);
    assert_int_equal(m.source->ops->ack(m.source, m.jobs, MESSAGES, &m.err), E_OK);
    assert_int_equal(kafka_commit(kafka_of(m.source), true, &m.err), E_OK);
    assert_int_equal(group_lag(m.source), 0);
}

/* A zombie wakes: the group goes on without it. Its partitions are lost, and it joins again. */
static void a_member_that_was_thrown_out_joins_again(void **state)
{
    (void)state;
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES, 20);
    rd_kafka_mock_push_request_errors(m.cluster, HEARTBEAT, 1, RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
    m.from = 10;
    turn_until(MESSAGES + MESSAGES - 10, 20);
    assert_int_equal(m.lost, 1);
    assert_int_equal(m.assigned, 2);
    assert_int_equal(m.jobs[MESSAGES]->from_position, 10);
    /* The old deliveries end: only those of this assignment move the offset. */
    assert_int_equal(m.source->ops->ack(m.source, m.jobs, 11, &m.err), E_OK);
    assert_int_equal(kafka_watermark_value(&partition()->watermark), 10);
    assert_int_equal(m.source->ops->ack(m.source, m.jobs + MESSAGES, 1, &m.err), E_OK);
    assert_int_equal(kafka_watermark_value(&partition()->watermark), 11);
}

static void offsets_out_of_range_are_looked_up_again(void **state)
{
    (void)state;
    produce(MESSAGES);
    rd_kafka_mock_push_request_errors(m.cluster, FETCH, 1, RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE);
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES, 20);
    for (int i = 0; i < MESSAGES; i++)
        assert_int_equal(m.jobs[i]->position, i + 1);
}

static void a_broker_that_goes_and_comes_loses_nothing(void **state)
{
    (void)state;
    produce(MESSAGES / 2);
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES / 2, 20);
    rd_kafka_mock_broker_set_down(m.cluster, 1);
    turn_for(2, MESSAGES);
    rd_kafka_mock_broker_set_up(m.cluster, 1);
    produce(MESSAGES / 2);
    /* The client waits up to 10 s between its attempts to connect. */
    for (int s = 0; s < 60 && (m.n == 0 || m.jobs[m.n - 1]->position != MESSAGES); s++)
        turn_for(1, MESSAGES);
    for (int i = 0, want = 0; i < m.n; i++) { /* after a lost assignment from the start again */
        want = m.jobs[i]->position == 1 ? 1 : want + 1;
        assert_int_equal(m.jobs[i]->position, want);
    }
    assert_int_equal(m.jobs[m.n - 1]->position, MESSAGES);
}

static void no_room_pauses_and_loses_nothing(void **state)
{
    (void)state;
    assert_int_equal(open_source(), E_OK);
    turn_for(6, MESSAGES);
    assert_int_equal(m.assigned, 1);
    turn_for(1, 0);
    assert_true(kafka_of(m.source)->paused);
    produce(MESSAGES);
    turn_for(1, 0);
    (void)turn(MESSAGES / 4); /* less than half: the pause goes on */
    assert_true(kafka_of(m.source)->paused);
    assert_int_equal(m.n, 0);
    turn_until(MESSAGES, 20);
    for (int i = 0; i < MESSAGES; i++)
        assert_int_equal(m.jobs[i]->position, i + 1);
}

/* It was polled and did not fit: whoever has the partition next reads it again. */
static void what_is_held_back_goes_with_its_partition(void **state)
{
    struct source_budget small = {2, 10};
    bool drained;
    (void)state;
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    for (int i = 0; i < 400 && m.n == 0; i++)
        (void)turn(1);
    struct source_kafka *k = kafka_of(m.source);
    for (int i = 0; i < 200 && !k->held; i++)
        m.n +=
            m.source->ops->claim(m.source, &small, m.jobs + m.n, 2, SECOND / 20, &drained, &m.err);
    assert_non_null(k->held);
    rd_kafka_topic_partition_list_t *list = kafka_list_of(k, 0, 0);
    kafka_rebalance(k->rk, RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS, list, k);
    assert_non_null(k->revoking);
    struct source_budget large = {MESSAGES, 1 << 20};
    assert_int_equal(m.source->ops->claim(m.source, &large, m.jobs + m.n, MESSAGES, SECOND / 2,
                                          &drained, &m.err),
                     0);
    rd_kafka_topic_partition_list_destroy(list);
    /* What was handed out before still counts, until it is given back. */
    assert_int_equal(m.source->ops->ack(m.source, m.jobs, 1, &m.err), E_OK);
    assert_int_equal(kafka_watermark_value(&partition()->watermark), 1);
    assert_int_equal(m.source->ops->flushed(m.source, &m.err), E_OK);
    assert_false(partition()->owned);
}

static void every_named_error_has_its_class(void **state)
{
    static const struct {
        rd_kafka_resp_err_t code;
        int class;
    } cases[] = {{RD_KAFKA_RESP_ERR__FATAL, E_FATAL},
                 {RD_KAFKA_RESP_ERR__AUTHENTICATION, E_FATAL},
                 {RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED, E_FATAL},
                 {RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, E_FATAL},
                 {RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, E_FATAL},
                 {RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, E_FATAL},
                 {RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION, E_FATAL},
                 {RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL, E_FATAL},
                 {RD_KAFKA_RESP_ERR__PARTITION_EOF, E_OK},
                 {RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, E_OK},
                 {RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID, E_OK},
                 {RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, E_OK},
                 {RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED, E_OK},
                 {RD_KAFKA_RESP_ERR__TRANSPORT, E_RETRY},
                 {RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN, E_RETRY},
                 {RD_KAFKA_RESP_ERR__TIMED_OUT, E_RETRY},
                 {RD_KAFKA_RESP_ERR__RESOLVE, E_RETRY}};
    (void)state;
    for (size_t i = 0; i < TR_COUNT(cases); i++)
        assert_int_equal(kafka_error_class(cases[i].code), cases[i].class);
}

int main(void)
{
    const struct CMUnitTest tests[] = {MOCKED(claims_and_commits_what_is_done),
                                       MOCKED(starts_where_the_sink_says),
                                       MOCKED(a_position_behind_the_end_is_refused),
                                       MOCKED(a_refused_partition_does_not_keep_an_idle_worker),
                                       MOCKED(no_right_to_the_topic_is_fatal),
                                       MOCKED(an_unknown_topic_is_fatal),
                                       MOCKED(no_broker_is_worth_a_retry),
                                       MOCKED(no_right_to_the_group_is_fatal),
                                       MOCKED(refused_commits_are_sent_again),
                                       MOCKED(a_member_that_was_thrown_out_joins_again),
                                       MOCKED(offsets_out_of_range_are_looked_up_again),
                                       MOCKED(a_broker_that_goes_and_comes_loses_nothing),
                                       MOCKED(no_room_pauses_and_loses_nothing),
                                       MOCKED(what_is_held_back_goes_with_its_partition),
                                       cmocka_unit_test(every_named_error_has_its_class)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
