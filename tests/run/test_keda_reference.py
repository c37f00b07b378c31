"""The reference of KEDA's rules against vectors that were worked out by hand from its source, and
against the states of a Redis group in which its lag is wrong or unknown."""
import pytest

from keda_reference import KafkaTrigger, Partition, RedisLag, hpa, scaled_job
from redis_server import Server


def kafka(lags, **options):
    return KafkaTrigger(threshold=500, **options).read([Partition(0, lag) for lag in lags])


@pytest.mark.parametrize("lags, options, want", [
    ([1250] * 8, {}, (4000, True)),                        # capped at the partitions
    ([1250] * 8, {"allow_idle": True}, (10000, True)),
    ([10000] + [0] * 7, {}, (4000, True)),
    ([10000] + [0] * 7, {"with_lag_only": True}, (500, True)),   # a hot partition feeds one pod
    ([100] * 7, {"even": True}, (3500, True)),             # 7 has no divisor but 1 and 7
    ([100] * 8, {"even": True}, (1000, True)),
    ([0] * 8, {"even": True}, (500, False)),               # a value, and nothing active
    ([0] * 8, {}, (0, False)),
    ([1] + [0] * 7, {}, (1, True)),
    ([30] * 2, {"activation": 60}, (60, False)),
    ([31] * 2, {"activation": 61}, (62, True)),
    ([4499] + [0] * 7, {}, (4499, True)),                  # whole division: 8 is not above 8
    ([4500] + [0] * 7, {}, (4000, True)),
])
def test_kafka_caps(lags, options, want):
    assert kafka(lags, **options) == want


@pytest.mark.parametrize("options, want", [
    ({}, (2, True)),                                       # latest: one for each, for ever
    ({"zero_on_invalid": True}, (0, False)),
    ({"earliest": True}, (700, True)),                     # the whole end, deleted messages too
    ({"earliest": True, "zero_on_invalid": True}, (0, False)),
])
def test_kafka_without_a_position(options, want):
    none = [Partition(None, 700), Partition(None, 0), Partition(40, 40)]
    assert KafkaTrigger(threshold=500, **options).read(none) == want


def test_kafka_refuses_what_excludes_itself():
    for options in ({"with_lag_only": True, "allow_idle": True}, {"threshold": 0},
                    {"with_lag_only": True, "even": True}, {"activation": -1}):
        with pytest.raises(ValueError):
            KafkaTrigger(**options)


@pytest.mark.parametrize("queue, running, pending, want", [
    (4000, 0, 0, (8, 8, 8)), (4000, 4, 0, (4, 4, 4)), (4000, 4, 4, (4, 4, 0)),
    (600, 2, 0, (0, 2, 2)), (600, 2, 2, (0, 0, 2)), (0, 3, 0, (0, 0, 0)), (1, 0, 0, (1, 1, 1)),
    (90000, 0, 0, (8, 8, 8)), (90000, 8, 8, (0, 0, 0)),
])
def test_scaled_job(queue, running, pending, want):
    made = [scaled_job(queue, running, pending, 500, 8, s) for s in ("default", "accurate", "eager")]
    assert tuple(made) == want


@pytest.mark.parametrize("metric, replicas, want", [
    (0, 0, 0), (9000, 0, 0),                               # from zero: KEDA's, not the HPA's
    (1200, 1, 3), (9000, 1, 5), (9000, 4, 8), (9000, 8, 8),
    (540, 1, 1),                                           # within a tenth of the target
    (0, 5, 5), (600, 5, 5),                                # scaleDown: Disabled
])
def test_hpa(metric, replicas, want):
    assert hpa(metric, replicas, 500, 8) == want


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def read(client, n, acked=()):
    got = client.xreadgroup("g", "c", {"s": ">"}, count=n)[0][1]
    assert len(got) == n
    for i in acked:
        client.xack("s", "g", f"{i}-0")


def out_of_order(c):
    read(c, 6, acked=(5, 6))
    c.xdel("s", "5-0", "6-0")


def out_of_order_then_read_on(c):
    out_of_order(c)
    read(c, 2)


def in_order(c):
    read(c, 4, acked=(1, 2, 3, 4))
    c.xdel("s", "1-0", "2-0", "3-0", "4-0")


def undelivered(c):
    read(c, 2)
    c.xdel("s", "7-0")


def trimmed_behind(c):
    read(c, 5, acked=(1, 2, 3, 4, 5))
    c.xtrim("s", minid="6-0", approximate=False)


def trimmed_before(c):
    read(c, 2)
    c.xtrim("s", maxlen=3, approximate=False)


def replay_blind(c):
    read(c, 6)
    c.xgroup_setid("s", "g", "3-0")


def replay_counted(c):
    read(c, 6)
    c.execute_command("XGROUP", "SETID", "s", "g", "3-0", "ENTRIESREAD", "3")


# (what is done to ten entries) -> the lag that Redis 7.0 gives, pending, messages that are stored
STATES = [(in_order, 6, 0, 6), (out_of_order, None, 4, 8), (out_of_order_then_read_on, 2, 6, 8),
          (undelivered, None, 2, 9), (trimmed_behind, 5, 0, 5), (trimmed_before, 8, 2, 3),
          (replay_blind, None, 6, 10), (replay_counted, 7, 6, 10)]


@pytest.mark.parametrize("do, lag, pending, stored", STATES, ids=[s[0].__name__ for s in STATES])
def test_redis_states(server, do, lag, pending, stored):
    """Why a worker never deletes an entry, trims from one place only, and replays with a count."""
    client = server.client()
    client.delete("s")
    for i in range(1, 11):
        client.xadd("s", {"job": "x"}, id=f"{i}-0")
    client.xgroup_create("s", "g", "0")
    do(client)
    queued, inflight = (RedisLag(client, "s", "g", mode) for mode in ("lag", "pending"))
    if tuple(map(int, client.info()["redis_version"].split(".")[:2])) == (7, 0):
        assert client.xinfo_groups("s")[0]["lag"] == lag
    # Unknown is no error to KEDA: it reads as an empty queue.
    known = client.xinfo_groups("s")[0]["lag"]
    assert queued.read() == ((0, False) if known is None else (known, known > 0))
    assert queued.nulls == (known is None)
    assert inflight.read() == (pending, pending > 0) and client.xlen("s") == stored


def test_redis_without_a_group(server):
    client = server.client()
    client.delete("s")
    queued, inflight = (RedisLag(client, "s", "g", mode) for mode in ("lag", "pending"))
    assert queued.read() == (0, False)
    with pytest.raises(Exception, match="NOGROUP"):
        inflight.read()
    for _ in range(10):
        client.xadd("s", {"job": "x"})
    assert queued.read() == (10, True), "from zero before anyone has made the group"
    with pytest.raises(Exception, match="NOGROUP"):
        inflight.read()
    client.xgroup_create("s", "g", "0")
    assert queued.read() == (10, True) and inflight.read() == (0, False)
    assert RedisLag(client, "s", "g", "lag", activation=10).read() == (10, False)
