/* kafka_errors: each error of the protocol that the Kafka source names, injected by the client
 * library's mock cluster where the broker would send it. What is asserted: its class, that nothing
 * is acknowledged that has no row, that no message is skipped, and that the source goes on when the
 * error ends. tests/lint/kafka_errors.py holds this file against the code.
 *
 * The producer's and the operator's are in kafka_producer_errors_test.c.
 * Named by the code and caused elsewhere, because a mock cluster knows no CreateTopics:
 * elsewhere: TOPIC_ALREADY_EXISTS: tests/run/test_kafka_clients.py test_init_again */
#include "kafka_mock.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>

/* The mock group's first join takes 3 s, in which nothing beats, and each further one the session's
 * time less one second. */
static const char quick[] = "session.timeout.ms = 4000\nheartbeat.interval.ms = 100\n"
                            "reconnect.backoff.max.ms = 500\nretry.backoff.ms = 50\n";
static const int BY_BROKER_FROM = 0x020f00ff;

static int setup_quick(void **state)
{
    int rc = setup(state);
    configure(quick);
    return rc;
}

#define QUICK(test) cmocka_unit_test_setup_teardown(test, setup_quick, teardown)

/* What the group has on record, asked by a client that is no member; < 0: nothing. */
static int64_t committed(void)
{
    char why[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_set(conf, "bootstrap.servers", rd_kafka_mock_cluster_bootstraps(m.cluster), why,
                      sizeof why);
    rd_kafka_conf_set(conf, "group.id", "g", why, sizeof why);
    rd_kafka_conf_set_log_cb(conf, NULL);
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    assert_non_null(rk);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, "t", 0);
    assert_int_equal(rd_kafka_committed(rk, list, 20000), RD_KAFKA_RESP_ERR_NO_ERROR);
    int64_t at = list->elems[0].offset;
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_destroy(rk);
    return at;
}

static void push(int16_t request, size_t n, rd_kafka_resp_err_t code)
{
    rd_kafka_resp_err_t codes[64];
    assert_true(n <= TR_COUNT(codes));
    for (size_t i = 0; i < n; i++)
        codes[i] = code;
    rd_kafka_mock_push_request_errors_array(m.cluster, request, n, codes);
}

static void set_aside(int16_t request)
{
    rd_kafka_mock_clear_request_errors(m.cluster, request);
}

/* Turns until one says E_FATAL, and that it stays so; nothing was handed out or acknowledged. */
static void expect_fatal(const char *words)
{
    int64_t until = clock_mono_ns(clock_system()) + 30 * SECOND;
    int rc = E_OK;
    while (rc != E_FATAL && clock_mono_ns(clock_system()) < until)
        rc = turn(MESSAGES);
    assert_int_equal(rc, E_FATAL);
    assert_non_null(strstr(m.err.msg, words));
    m.err = (struct err){0};
    assert_int_equal(turn(MESSAGES), E_FATAL);
    assert_non_null(strstr(m.err.msg, words));
    assert_int_equal(m.n, 0);
    assert_true(committed() < 0);
}

static void ack(int from, int n)
{
    assert_int_equal(m.source->ops->ack(m.source, m.jobs + from, (size_t)n, &m.err), E_OK);
}

/* ---- errors that end the source ---- */

static void a_group_that_refuses_us_is_fatal(void **state)
{
    static const rd_kafka_resp_err_t codes[] = {RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED,
                                                RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
                                                RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
                                                RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
                                                RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION,
                                                RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL};
    for (size_t i = 0; i < TR_COUNT(codes); i++) {
        assert_int_equal(setup_quick(state), 0);
        produce(3);
        push(JOIN_GROUP, 20, codes[i]);
        assert_int_equal(open_source(), E_OK);
        expect_fatal(rd_kafka_err2name(codes[i]));
        assert_int_equal(teardown(state), 0);
    }
}

static void a_topic_that_may_not_be_read_is_fatal(void **state)
{
    (void)state;
    m.opts.partition = 0;
    produce(3);
    push(FETCH, 50, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    assert_int_equal(open_source(), E_OK);
    expect_fatal("TOPIC_AUTHORIZATION_FAILED");
}

/* One partition alone joins no group: only the questions about its offsets meet the refusal. */
static void a_group_whose_offsets_may_not_be_read_is_fatal(void **state)
{
    (void)state;
    m.opts.partition = 0;
    produce(3);
    push(OFFSET_FETCH, 1, RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    assert_int_equal(open_source(), E_OK);
    expect_fatal("GROUP_AUTHORIZATION_FAILED");
}

static void a_group_whose_offsets_may_not_be_written_is_fatal(void **state)
{
    (void)state;
    m.opts.partition = 0;
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES, 30);
    push(OFFSET_COMMIT, 50, RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    int64_t before = committed();
    ack(0, MESSAGES);
    int rc = E_OK;
    for (int i = 0; i < 200 && rc != E_FATAL; i++)
        rc = turn(MESSAGES);
    assert_int_equal(rc, E_FATAL);
    assert_int_equal(committed(), before);
}

/* RD_KAFKA_RESP_ERR__FATAL: the library's handle is no good any more. */
static void an_error_of_the_client_as_a_whole_is_fatal(void **state)
{
    (void)state;
    m.opts.partition = 0;
    assert_int_equal(open_source(), E_OK);
    assert_int_equal(rd_kafka_test_fatal_error(kafka_of(m.source)->rk,
                                               RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, "for a test"),
                     RD_KAFKA_RESP_ERR_NO_ERROR);
    expect_fatal("_FATAL");
}

/* A broker that knows no mechanism by the login's name. Each request begins with its length, key,
 * version and correlation id, each answer with its length and that id. */
static void *refuse_logins(void *arg)
{
    enum { API_VERSIONS = 18, SASL_HANDSHAKE = 17, UNSUPPORTED_VERSION = 35, NO_MECHANISM = 33 };
    int listener = *(int *)arg, fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        unsigned char request[512];
        while (recv(fd, request, sizeof request, 0) >= 14) {
            bool asks = request[5] == API_VERSIONS, old = request[7] == 0;
            unsigned char answer[20] = {0, 0, 0, asks && old ? 16 : 10};
            memcpy(answer + 4, request + 8, 4);
            answer[9] = !asks ? NO_MECHANISM : old ? 0 : UNSUPPORTED_VERSION;
            if (asks && old) { /* one request, in its version 0 */
                answer[13] = 1;
                answer[15] = SASL_HANDSHAKE;
            }
            if (send(fd, answer, 4U + answer[3], MSG_NOSIGNAL) < 0)
                break;
        }
        close(fd);
    }
    return NULL;
}

static void a_login_that_is_refused_is_fatal(void **state)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t thread;
    (void)state;
    assert_int_equal(bind(listener, (struct sockaddr *)&at, size), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &size), 0);
    assert_int_equal(pthread_create(&thread, NULL, refuse_logins, &listener), 0);
    snprintf(m.url, sizeof m.url, "kafka://127.0.0.1:%d/t", ntohs(at.sin_port));
    configure("security.protocol = sasl_plaintext\nsasl.mechanism = PLAIN\nsasl.username = u\n"
              "sasl.password = geheim\n");
    m.opts.connect_timeout_ns = 30 * SECOND;
    int64_t begun = clock_mono_ns(clock_system());
    assert_int_equal(open_source(), E_FATAL); /* RD_KAFKA_RESP_ERR__AUTHENTICATION */
    assert_true(clock_mono_ns(clock_system()) - begun < 25 * SECOND);
    assert_null(strstr(m.err.msg, "geheim"));
    shutdown(listener, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(listener);
}

/* ---- errors that end ---- */

/* RD_KAFKA_RESP_ERR__TIMED_OUT: the time was over before anybody could answer. */
static void an_answer_that_comes_too_late_is_worth_a_retry(void **state)
{
    int64_t patience = m.opts.connect_timeout_ns;
    (void)state;
    m.opts.partition = 0;
    m.opts.connect_timeout_ns = 0;
    assert_int_equal(open_source(), E_RETRY);
    assert_non_null(strstr(m.err.msg, rd_kafka_err2str(RD_KAFKA_RESP_ERR__TIMED_OUT)));
    m.err = (struct err){0};
    m.opts.connect_timeout_ns = 6 * patience;
    rd_kafka_mock_broker_set_rtt(m.cluster, 1, 200);
    produce(3);
    assert_int_equal(open_source(), E_OK);
    turn_until(3, 30);
}

/* The log's end comes as an error, RD_KAFKA_RESP_ERR__PARTITION_EOF, and so does the word that the
 * broker has no such offset (OFFSET_OUT_OF_RANGE, which the client hands on as
 * RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, because we let it choose no other). */
static void fetches_that_fail_skip_nothing(void **state)
{
    static const rd_kafka_resp_err_t codes[] = {
        RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,      RD_KAFKA_RESP_ERR__TRANSPORT,
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,    RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,     RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT};
    (void)state;
    assert_int_equal(open_source(), E_OK);
    produce(2);
    turn_until(2, 30);
    for (int i = 0; i < (int)TR_COUNT(codes); i++) {
        push(FETCH, 2, codes[i]);
        produce(3);
        turn_until(2 + 3 * (i + 1), 30);
    }
    for (int i = 0; i < m.n; i++)
        assert_int_equal(m.jobs[i]->position, i + 1);
    for (int i = 0; i < 100 && !partition()->ended; i++)
        (void)turn(MESSAGES);
    assert_true(partition()->ended);
    assert_int_equal(m.lost + m.revoked + m.gaps, 0);
    ack(1, m.n - 1); /* the first has no row yet */
    turn_for(1.5, MESSAGES);
    assert_true(committed() <= 0);
    ack(0, 1);
    assert_int_equal(kafka_commit(kafka_of(m.source), true, &m.err), E_OK);
    assert_int_equal(committed(), m.n);
}

/* Every step of a join fails once or twice. */
static void a_join_that_stumbles_arrives(void **state)
{
    (void)state;
    push(FIND_COORDINATOR, 2, RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE);
    push(JOIN_GROUP, 1, RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS);
    push(SYNC_GROUP, 1, RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS);
    push(OFFSET_FETCH, 1, RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS);
    push(LIST_OFFSETS, 1, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES, 60);
    for (int i = 0; i < MESSAGES; i++)
        assert_int_equal(m.jobs[i]->position, i + 1);
    assert_true(committed() <= 0);
}

/* Where it starts is not known while the broker does not say; then it is read from there. */
static void no_answer_about_offsets_starts_nothing(void **state)
{
    (void)state;
    m.opts.partition = 0;
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    push(LIST_OFFSETS, 60, RD_KAFKA_RESP_ERR_INVALID_REQUEST);
    for (int i = 0; i < 3; i++) {
        (void)turn(0);
        assert_false(partition()->started);
    }
    assert_int_equal(turn(0), E_RETRY);
    set_aside(LIST_OFFSETS);
    turn_until(MESSAGES, 60);
    assert_int_equal(m.jobs[0]->position, 1);
}

/* A commit that is refused is no commit, here or there, and comes again with the next. */
static void refused_commits_change_nothing(void **state)
{
    static const rd_kafka_resp_err_t codes[] = {
        RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
        RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE};
    (void)state;
    m.opts.partition = 0; /* a member would be thrown out: see the next */
    produce(MESSAGES);
    assert_int_equal(open_source(), E_OK);
    turn_until(MESSAGES, 30);
    for (int i = 0; i < (int)TR_COUNT(codes); i++) {
        ack(i, 1);
        push(OFFSET_COMMIT, 1, codes[i]);
        assert_int_equal(kafka_commit(kafka_of(m.source), true, &m.err), E_RETRY);
        assert_int_equal(partition()->sent, -1);
        assert_true(committed() <= i);
        assert_int_equal(kafka_commit(kafka_of(m.source), true, &m.err), E_OK);
        assert_int_equal(committed(), i + 1);
    }
}

/* ---- the group goes on without us ---- */

/* The assignment ends with RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS, lost where the group has thrown us
 * out, and comes back with RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS; read again is what has no row. */
static void thrown_out_of_the_group(int16_t request, rd_kafka_resp_err_t code)
{
    int first = m.n, assigned = m.assigned, lost = m.lost;
    int64_t at = m.n ? m.jobs[m.n - 1]->position : 0;
    ack(first - 1, 1);
    m.from = at - 2; /* the sink has rows up to here: two are to be done again */
    if (request == OFFSET_COMMIT) {
        push(OFFSET_COMMIT, 1, code);
        assert_int_equal(kafka_commit(kafka_of(m.source), true, &m.err), E_RETRY);
    } else {
        push(request, 1, code);
    }
    turn_until(first + 2, 60);
    assert_int_equal(m.lost, lost + 1);
    assert_int_equal(m.assigned, assigned + 1);
    assert_int_equal(m.jobs[first]->position, at - 1);
    assert_int_equal(m.jobs[first + 1]->position, at);
}

static void members_that_are_thrown_out_join_again(void **state)
{
    (void)state;
    produce(10);
    assert_int_equal(open_source(), E_OK);
    turn_until(10, 60);
    ack(0, 9);
    thrown_out_of_the_group(HEARTBEAT, RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
    thrown_out_of_the_group(HEARTBEAT, RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION);
    thrown_out_of_the_group(OFFSET_COMMIT, RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION);
    ack(0, m.n);
    assert_int_equal(kafka_commit(kafka_of(m.source), true, &m.err), E_OK);
    assert_int_equal(committed(), 10);
}

/* Others come: what is done is committed before the partition is given back. */
static void a_rebalance_commits_what_is_done_first(void **state)
{
    (void)state;
    produce(10);
    assert_int_equal(open_source(), E_OK);
    turn_until(10, 60);
    ack(0, 6);
    m.from = 6;
    push(HEARTBEAT, 1, RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS);
    bool whole = !kafka_of(m.source)->cooperative; /* else it keeps what it would get back */
    for (int i = 0; i < 600 && whole && !m.revoked; i++)
        assert_int_not_equal(turn(MESSAGES), E_FATAL);
    /* Who keeps its partition commits in passing, and the broker has it a little later. */
    for (int i = 0; i < 600 && !whole && committed() != 6; i++)
        assert_int_not_equal(turn(MESSAGES), E_FATAL);
    assert_int_equal(committed(), 6);
    produce(5);
    turn_until(whole ? 10 + 4 + 5 : 10 + 5, 60);
    assert_int_equal(m.lost, 0);
    assert_int_equal(m.revoked, whole ? 1 : 0);
    assert_int_equal(m.jobs[m.n - 1]->position, 15);
}

/* The worker stood still for too long (RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED). */
static void a_poll_that_comes_late_joins_again(void **state)
{
    (void)state;
    configure("session.timeout.ms = 4000\nheartbeat.interval.ms = 100\n"
              "max.poll.interval.ms = 4000\n");
    produce(4);
    assert_int_equal(open_source(), E_OK);
    turn_until(4, 60);
    ack(0, 2);
    m.from = 2;
    int64_t before = committed();
    clock_sleep_ns(clock_system(), 6 * SECOND);
    assert_int_equal(committed(), before);
    turn_until(6, 60);
    assert_int_equal(m.lost, 1);
    assert_int_equal(m.jobs[4]->position, 3);
    assert_int_equal(m.jobs[5]->position, 4);
}

/* ---- groups whose partitions the broker assigns ---- */

static void a_broker_that_cannot_assign_gets_members_that_can(void **state)
{
    static const rd_kafka_resp_err_t codes[] = {
        RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION, RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND,
        RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL, RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE};
    if (rd_kafka_version() < BY_BROKER_FROM)
        skip(); /* this client library asks no broker for it */
    for (size_t i = 0; i < TR_COUNT(codes); i++) {
        assert_int_equal(setup(state), 0);
        configure("");
        produce(3);
        if (codes[i] == RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE) /* what the client says */
            rd_kafka_mock_set_apiversion(m.cluster, GROUP_HEARTBEAT, -1, -1);
        else
            push(GROUP_HEARTBEAT, 20, codes[i]);
        assert_int_equal(open_source(), E_OK);
        assert_true(kafka_of(m.source)->by_broker);
        turn_until(3, 60);
        assert_false(kafka_of(m.source)->by_broker);
        assert_int_equal(m.jobs[0]->position, 1);
        assert_int_equal(teardown(state), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_group_that_refuses_us_is_fatal),
        QUICK(a_topic_that_may_not_be_read_is_fatal),
        QUICK(a_group_whose_offsets_may_not_be_read_is_fatal),
        QUICK(a_group_whose_offsets_may_not_be_written_is_fatal),
        QUICK(an_error_of_the_client_as_a_whole_is_fatal),
        MOCKED(a_login_that_is_refused_is_fatal),
        QUICK(an_answer_that_comes_too_late_is_worth_a_retry),
        QUICK(fetches_that_fail_skip_nothing),
        QUICK(a_join_that_stumbles_arrives),
        QUICK(no_answer_about_offsets_starts_nothing),
        QUICK(refused_commits_change_nothing),
        QUICK(members_that_are_thrown_out_join_again),
        QUICK(a_rebalance_commits_what_is_done_first),
        QUICK(a_poll_that_comes_late_joins_again),
        cmocka_unit_test(a_broker_that_cannot_assign_gets_members_that_can)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
