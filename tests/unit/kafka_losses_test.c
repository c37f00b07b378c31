/* kafka_losses: where messages could be passed over without a word: memory that is refused, a
 * broker that goes while it is asked where to go on, a log that lost its beginning. */
#include "kafka_mock.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

/* What mem_alloc asks; the client library asks malloc. */
#ifndef SANITIZED
static _Thread_local int64_t refuse_in; /* allocations of this thread; 0: none is refused */
extern void *__libc_memalign(size_t, size_t);
void *aligned_alloc(size_t align, size_t n)
{
    if (refuse_in > 0 && --refuse_in == 0)
        return NULL;
    return __libc_memalign(align, n);
}

/* Everything is acknowledged, and the ring of open offsets is to grow at the fifth message. */
static void settle_all(void)
{
    struct kafka_watermark *w = &partition()->watermark;
    assert_int_equal(m.source->ops->ack(m.source, m.jobs, (size_t)m.n, &m.err), E_OK);
    for (int i = 0; i < m.n; i++)
        job_close(m.jobs[i]);
    m.n = 0;
    mem_free(w->ring);
    w->cap = 4;
    w->first = w->n = 0;
    w->ring = mem_alloc(w->cap, sizeof *w->ring);
    assert_non_null(w->ring);
}

/* Each allocation of a claim in turn is refused: what was claimed stands, the message comes again
 * or an error comes in its place, and nothing is committed past it. */
static void a_message_that_is_refused_memory_is_not_passed_over(void **state)
{
    enum { ROUND = 6 };
    bool refused = true, behind_others = false;
    (void)state;
    assert_int_equal(open_source(), E_OK);
    produce(1);
    turn_until(1, 30);
    int64_t at = 1;
    for (int64_t k = 1; refused; k++, at += ROUND) {
        settle_all();
        assert_int_equal(kafka_watermark_value(&partition()->watermark), at);
        produce(ROUND);
        clock_sleep_ns(clock_system(), SECOND / 10); /* the fetch brings them together */
        int64_t until = clock_mono_ns(clock_system()) + 30 * SECOND;
        refuse_in = k;
        while (m.n < ROUND && clock_mono_ns(clock_system()) < until) {
            int before = m.n;
            bool armed = refuse_in > 0;
            int rc = turn(MESSAGES);
            behind_others |= armed && refuse_in == 0 && m.n > before && m.n < ROUND;
            if (rc == E_FATAL) /* nothing was in hand: the worker ends and reads it again */
                assert_non_null(strstr(m.err.msg, "no memory"));
        }
        refused = refuse_in == 0;
        refuse_in = 0;
        assert_int_equal(m.n, ROUND);
        for (int i = 0; i < ROUND; i++) {
            assert_int_equal(m.jobs[i]->from_position, at + i);
            assert_int_equal(m.jobs[i]->position, at + i + 1);
            assert_int_equal(m.jobs[i]->sequence, at + i);
        }
    }
    assert_true(behind_others);
}
#endif

/* As the client does once it has said that an offset is out of range, which it says once. */
static void stop_fetching(struct source_kafka *k)
{
    rd_kafka_topic_partition_list_t *list = kafka_list_of(k, 0, 0);
    if (strcmp(rd_kafka_rebalance_protocol(k->rk), "COOPERATIVE") == 0)
        assert_null(rd_kafka_incremental_unassign(k->rk, list));
    else
        assert_int_equal(rd_kafka_assign(k->rk, NULL), RD_KAFKA_RESP_ERR_NO_ERROR);
    rd_kafka_topic_partition_list_destroy(list);
}

static void a_question_that_fails_behind_a_reset_is_asked_again(void **state)
{
    rd_kafka_resp_err_t codes[40];
    (void)state;
    for (size_t i = 0; i < TR_COUNT(codes); i++)
        codes[i] = RD_KAFKA_RESP_ERR_INVALID_REQUEST; /* the client asks no second time by itself */
    assert_int_equal(open_source(), E_OK);
    produce(1);
    turn_until(1, 30);
    stop_fetching(kafka_of(m.source));
    rd_kafka_mock_push_request_errors_array(m.cluster, LIST_OFFSETS, TR_COUNT(codes), codes);
    assert_int_equal(kafka_start_again(kafka_of(m.source), 0, &m.err), E_RETRY);
    produce(MESSAGES - 1);
    turn_for(2, MESSAGES);
    assert_int_equal(m.n, 1);
    rd_kafka_mock_clear_request_errors(m.cluster, LIST_OFFSETS);
    turn_until(MESSAGES, 30);
    for (int i = 0; i < MESSAGES; i++)
        assert_int_equal(m.jobs[i]->position, i + 1);
    assert_int_equal(m.gaps, 0);
}

/* As much as the mock broker keeps and more: the log loses its beginning. */
static void outgrow(const char *topic, int32_t partition)
{
    static char text[900000];
    memset(text, 'x', sizeof text);
    for (int i = 0; i < 8; i++)
        assert_int_equal(
            rd_kafka_producev(m.rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(partition),
                              RD_KAFKA_V_VALUE(text, sizeof text),
                              RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END),
            0);
    assert_int_equal(rd_kafka_flush(m.rk, 60000), 0);
}

static int64_t beginning(const char *topic, int32_t partition)
{
    int64_t low, high;
    assert_int_equal(rd_kafka_query_watermark_offsets(m.rk, topic, partition, &low, &high, 20000),
                     RD_KAFKA_RESP_ERR_NO_ERROR);
    return low;
}

/* The gap, and where reading goes on: on record together. */
static void assert_told(int gap, int start, int32_t partition, int64_t from, int64_t to)
{
    assert_int_equal(m.gap[gap].partition, partition);
    assert_int_equal(m.gap[gap].from, from);
    assert_int_equal(m.gap[gap].to, to);
    assert_int_equal(m.start[start].partition, partition);
    assert_int_equal(m.start[start].position, to);
}

static void every_partition_that_expired_is_told(void **state)
{
    enum { PARTITIONS = 20 };
    (void)state;
    rd_kafka_mock_topic_create(m.cluster, "u", PARTITIONS, 1);
    snprintf(m.url, sizeof m.url, "kafka://%s/u", rd_kafka_mock_cluster_bootstraps(m.cluster));
    for (int32_t p = 0; p < PARTITIONS; p++)
        outgrow("u", p);
    m.from = 0;
    assert_int_equal(open_source(), E_OK);
    int64_t until = clock_mono_ns(clock_system()) + 60 * SECOND;
    while (m.gaps < PARTITIONS && clock_mono_ns(clock_system()) < until)
        assert_int_not_equal(turn(0), E_FATAL);
    assert_int_equal(m.gaps, PARTITIONS);
    assert_int_equal(m.starts, PARTITIONS);
    for (int32_t p = 0; p < PARTITIONS; p++)
        assert_told(p, p, p, 0, beginning("u", p));
}

static void what_expires_while_paused_is_told(void **state)
{
    (void)state;
    assert_int_equal(open_source(), E_OK);
    int64_t until = clock_mono_ns(clock_system()) + 60 * SECOND;
    while (!kafka_of(m.source)->paused && clock_mono_ns(clock_system()) < until)
        turn_for(0.2, partition()->started ? 0 : MESSAGES);
    assert_true(kafka_of(m.source)->paused);
    outgrow("t", 0);
    int64_t low = beginning("t", 0);
    assert_true(low > 0);
    turn_until((int)(8 - low), 60);
    assert_int_equal(m.gaps, 1);
    assert_int_equal(m.starts, 2); /* the first: nothing was on record */
    assert_told(0, 1, 0, 0, low);
    assert_int_equal(m.jobs[0]->from_position, low);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifndef SANITIZED
        MOCKED(a_message_that_is_refused_memory_is_not_passed_over),
#endif
        MOCKED(a_question_that_fails_behind_a_reset_is_asked_again),
        MOCKED(every_partition_that_expired_is_told),
        MOCKED(what_expires_while_paused_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
