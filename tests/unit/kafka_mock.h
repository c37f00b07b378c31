/* kafka_mock: a Kafka source driven as the worker's source thread drives it, against the client
 * library's mock cluster of one broker with the topic "t" of one partition. */
#ifndef TRANCHE_TESTS_KAFKA_MOCK_H
#define TRANCHE_TESTS_KAFKA_MOCK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/job/job.h"
#include "worker/source/producer.h"
#include "worker/source/source_kafka.h"

/* Requests by their keys in the protocol. */
enum {
    PRODUCE = 0,
    FETCH = 1,
    LIST_OFFSETS = 2,
    OFFSET_COMMIT = 8,
    OFFSET_FETCH = 9,
    FIND_COORDINATOR = 10,
    JOIN_GROUP = 11,
    HEARTBEAT = 12,
    SYNC_GROUP = 14,
    INIT_PRODUCER_ID = 22,
    GROUP_HEARTBEAT = 68
};
enum { MESSAGES = 40 };
static const int64_t SECOND = 1000000000;

static struct mock {
    rd_kafka_t *rk;
    rd_kafka_mock_cluster_t *cluster;
    char url[256], config[64];
    struct source_opts opts;
    struct source *source;
    struct err err;
    int assigned, revoked, lost, gaps, starts;
    struct source_gap gap[SOURCE_GAPS_MAX];           /* the latest, at gaps % SOURCE_GAPS_MAX */
    struct source_start start[SOURCE_PARTITIONS_MAX]; /* the same */
    int64_t from;                                     /* what the sink has on record */
    struct job *jobs[MESSAGES * 4];
    int n;
} m;

static inline int64_t group_lag(const struct source *source)
{
    const struct source_kafka *k = (const struct source_kafka *)source;
    return kafka_client_lag(k->rk, k->topic, k->n_partitions);
}

static inline void produce(int n)
{
    for (int i = 0; i < n; i++) {
        char text[64];
        int len = snprintf(text, sizeof text, "{\"id\":\"%d\",\"prompt\":\"x\"}", i);
        assert_int_equal(rd_kafka_producev(m.rk, RD_KAFKA_V_TOPIC("t"), RD_KAFKA_V_PARTITION(0),
                                           RD_KAFKA_V_VALUE(text, (size_t)len),
                                           RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                                           RD_KAFKA_V_END),
                         0);
    }
    assert_int_equal(rd_kafka_flush(m.rk, 10000), 0);
}

/* The operator's file of the client's properties. */
static inline void configure(const char *text)
{
    FILE *f = fopen(m.config, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static inline void no_word(rd_kafka_t *rk, int code, const char *detail, void *opaque)
{
    (void)rk;
    (void)code;
    (void)detail;
    (void)opaque;
}

static inline int setup(void **state)
{
    char why[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    (void)state;
    m = (struct mock){.from = -1};
    rd_kafka_conf_set_log_cb(conf, NULL);
    rd_kafka_conf_set_error_cb(conf, no_word);
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    m.rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    m.cluster = rd_kafka_mock_cluster_new(m.rk, 1);
    rd_kafka_mock_topic_create(m.cluster, "t", 1, 1);
    rd_kafka_brokers_add(m.rk, rd_kafka_mock_cluster_bootstraps(m.cluster));
    snprintf(m.url, sizeof m.url, "kafka://%s/t", rd_kafka_mock_cluster_bootstraps(m.cluster));
    snprintf(m.config, sizeof m.config, "/tmp/source_kafka_test_XXXXXX");
    int fd = mkstemp(m.config);
    assert_true(fd >= 0);
    close(fd);
    configure("session.timeout.ms = 6000\nheartbeat.interval.ms = 200\n");
    m.opts = (struct source_opts){.url = m.url,
                                  .group = "g",
                                  .broker_config = m.config,
                                  .partition = -1,
                                  .connect_timeout_ns = 5 * SECOND};
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < m.n; i++)
        job_close(m.jobs[i]);
    source_close(m.source);
    rd_kafka_mock_cluster_destroy(m.cluster);
    rd_kafka_destroy(m.rk);
    unlink(m.config);
    return 0;
}

static inline int open_source(void)
{
    return source_open(&m.source, &m.opts, clock_system(), &m.err);
}

/* One round of the source thread; the class of what failed. */
static inline int turn(int64_t rows)
{
    struct source_service news;
    bool drained;
    int rc = m.source->ops->service(m.source, &news, &m.err);
    m.assigned += news.n_assigned;
    m.revoked += news.n_revoked;
    m.lost += news.n_lost;
    for (int32_t i = 0; i < news.n_gaps; i++)
        m.gap[m.gaps++ % SOURCE_GAPS_MAX] = news.gaps[i];
    for (int32_t i = 0; i < news.n_started; i++)
        m.start[m.starts++ % SOURCE_PARTITIONS_MAX] = news.started[i];
    for (int32_t i = 0; i < news.n_assigned; i++)
        (void)m.source->ops->start(m.source, news.assigned[i], m.from, &m.err);
    if (news.n_revoked)
        (void)m.source->ops->flushed(m.source, &m.err);
    struct source_budget budget = {rows, 1 << 20};
    if (rows == 0)
        return rc;
    int n = m.source->ops->claim(m.source, &budget, m.jobs + m.n, MESSAGES * 4 - m.n, SECOND / 20,
                                 &drained, &m.err);
    m.n += TR_MAX(n, 0);
    return n < 0 ? n : rc;
}

/* Turns until there are n jobs or the time is over. */
static inline void turn_until(int n, int64_t seconds)
{
    int64_t until = clock_mono_ns(clock_system()) + seconds * SECOND;
    while (m.n < n && clock_mono_ns(clock_system()) < until)
        assert_int_not_equal(turn(MESSAGES), E_FATAL);
    assert_int_equal(m.n, n);
}

static inline struct kafka_partition *partition(void)
{
    return &kafka_of(m.source)->partitions[0];
}

static inline void turn_for(double seconds, int64_t rows)
{
    int64_t until = clock_mono_ns(clock_system()) + (int64_t)(seconds * 1e9);
    while (clock_mono_ns(clock_system()) < until) {
        (void)turn(rows);
        if (!rows)
            clock_sleep_ns(clock_system(), SECOND / 50);
    }
}

/* `tranche seek` of every partition to one offset. */
static inline int seek_to(int64_t offset, struct err *err)
{
    struct seek_to to = {.kind = SEEK_TO_OFFSET, .value = offset};
    struct seek_move moves[SOURCE_PARTITIONS_MAX];
    char label[JOB_ORIGIN_MAX];
    int n = 0, rc = queue_seek(&m.opts, &to, false, moves, &n, label, err);
    return rc < 0 ? rc : queue_seek(&m.opts, &to, true, moves, &n, label, err);
}

#define MOCKED(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

#endif
