"""What a failed case keeps of the Kafka broker: its log since the case began, every thread's stack,
who leads the offsets, how the group stands, and the offsets' own segments. A broker that answers
nothing is a finding too, so no question here may fail or last."""
import os
import shutil
import signal
import time

import confluent_kafka
import confluent_kafka.admin

OFFSETS = "__consumer_offsets"
ANSWER_S = 5


def group_partition(group, partitions):
    """Of the offsets' topic: Java's hash of the name, without its sign."""
    value = 0
    for unit in group:
        value = (value * 31 + ord(unit)) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >> 31 else value
    return 0 if signed == -(1 << 31) else abs(signed) % partitions


def ask(lines, what, question):
    began = time.monotonic()
    try:
        answers = question()
    except Exception as why:  # whatever it is, it is the answer
        answers = [f"{type(why).__name__}: {why}"]
    lines.append(f"{what} ({time.monotonic() - began:.1f} s)")
    lines.extend(f"    {answer}" for answer in answers)


def leaders(admin, topic):
    found = admin.list_topics(topic, timeout=ANSWER_S)
    yield f"brokers {sorted(found.brokers)} controller {found.controller_id}"
    for number, p in sorted(found.topics[topic].partitions.items()):
        yield f"partition {number} leader {p.leader} isr {p.isrs} error {p.error}"


def standing(admin, group):
    for g in admin.list_groups(group, timeout=ANSWER_S):
        yield f"{g.id} state {g.state} protocol {g.protocol_type}/{g.protocol} error {g.error}"
        for m in g.members:
            yield f"member {m.id} client {m.client_id} host {m.client_host}"


def ends(client, topic, partitions):
    for p in partitions:
        low, high = client.get_watermark_offsets(confluent_kafka.TopicPartition(topic, p),
                                                 timeout=ANSWER_S)
        yield f"partition {p} from {low} high watermark {high}"


def committed(client, topic, partitions):
    places = [confluent_kafka.TopicPartition(topic, p) for p in partitions]
    for t in client.committed(places, timeout=ANSWER_S):
        yield f"partition {t.partition} offset {t.offset} error {t.error}"


def state(address, topic, partitions, group, offsets_partitions=4):
    """The answers, as lines."""
    options = {"bootstrap.servers": address, "log_level": 0, "socket.timeout.ms": ANSWER_S * 1000}
    admin = confluent_kafka.admin.AdminClient(options)
    client = confluent_kafka.Consumer({**options, "group.id": group, "enable.auto.commit": False})
    ours = group_partition(group, offsets_partitions)
    lines = [f"{time.strftime('%Y-%m-%dT%H:%M:%S')} group {group}: {OFFSETS}-{ours}"]
    try:
        ask(lines, f"leaders of {OFFSETS}", lambda: list(leaders(admin, OFFSETS)))
        ask(lines, f"leaders of {topic}", lambda: list(leaders(admin, topic)))
        ask(lines, "the group", lambda: list(standing(admin, group)))
        ask(lines, "its offsets", lambda: list(committed(client, topic, range(partitions))))
        ask(lines, f"ends of {OFFSETS}", lambda: list(ends(client, OFFSETS, [ours])))
        ask(lines, f"ends of {topic}", lambda: list(ends(client, topic, range(partitions))))
    finally:
        client.close()
    return lines


def copy_offsets(data, to):
    """Segments and checkpoints; the indices are large and say nothing that these do not."""
    for folder, _, names in os.walk(data):
        inside = os.path.relpath(folder, data)
        if inside != "." and not inside.startswith(OFFSETS):
            continue
        for name in names:
            if name.endswith((".log", ".snapshot")) or "checkpoint" in name:
                os.makedirs(os.path.join(to, inside), exist_ok=True)
                shutil.copy(os.path.join(folder, name), os.path.join(to, inside, name))


def keep(broker, queue, to, since):
    """Into the folder `to`; `since`: the size that the broker's log had when the case began."""
    os.makedirs(to, exist_ok=True)
    lines = []
    if broker.process and broker.process.poll() is None:
        ask(lines, "state", lambda: state(broker.address, queue.name, queue.partitions, queue.group))
        broker.process.send_signal(signal.SIGQUIT)  # the JVM writes its threads into its log
        time.sleep(2)
    else:
        lines.append("the broker does not run")
    ask(lines, "copies", lambda: copy_offsets(f"{broker.folder}/data", f"{to}/data") or [])
    with open(f"{to}/state.txt", "w") as f:
        f.write("\n".join(lines) + "\n")
    with open(broker.log, "rb") as source, open(f"{to}/server.log", "wb") as f:
        source.seek(since)
        shutil.copyfileobj(source, f)
