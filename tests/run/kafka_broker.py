"""A private Apache Kafka (KRaft, one node) on a free port of this machine, in a folder of its own."""
import os
import signal
import socket
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CLUSTER = "dHJhbmNoZS10ZXN0cy0wMQ"
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={folder}/data
num.partitions=3
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=200
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=1500
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=300
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=100
log.initial.task.delay.ms=500
log.cleaner.enable=false
num.network.threads=2
num.io.threads=2
"""

LOGGING = ["-Dorg.slf4j.simpleLogger.showDateTime=true",
           "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS"]


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Broker:
    def __init__(self, folder):
        self.folder = str(folder)
        jars = subprocess.run([f"{ROOT}/tools/kafka.sh"], check=True, stdout=subprocess.PIPE,
                              timeout=600).stdout.decode().strip()
        self.classpath = f"{ROOT}/{jars}/libs/*"
        self.port, controller = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.properties = f"{self.folder}/server.properties"
        self.log = f"{self.folder}/server.log"
        os.makedirs(self.folder, exist_ok=True)
        with open(self.properties, "w") as f:
            f.write(PROPERTIES.format(port=self.port, controller=controller, folder=self.folder))
        self.java("kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", self.properties)
        self.process = None

    def command(self, *args):
        return ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
                self.classpath, *args]

    def java(self, *args):
        subprocess.run(self.command(*args), check=True, timeout=120, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    def launch(self):
        """Does not wait until it answers."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(*LOGGING, "kafka.Kafka", self.properties),
                                            stdout=log, stderr=log, cwd=self.folder,
                                            start_new_session=True)

    def start(self):
        self.launch()
        until = time.monotonic() + 90
        while time.monotonic() < until:
            assert self.process.poll() is None, open(self.log).read()[-3000:]
            answer = subprocess.run(["kcat", "-b", self.address, "-L", "-m", "2"],
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if answer.returncode == 0 and b"1 brokers" in answer.stdout:
                return self
            time.sleep(0.3)
        raise AssertionError("the broker did not start within 90 s")

    def kill(self, how=signal.SIGKILL):
        if self.process:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def produce(self, topic, lines, *options):
        subprocess.run(["kcat", "-b", self.address, "-P", "-t", topic, *options], check=True,
                       input="".join(line + "\n" for line in lines).encode(), timeout=120)
