"""A Kafka broker as operators run it: TLS, client certificates, SCRAM, an authorizer."""
import shutil

from authority import certificates, expire
from kafka_broker import Broker, free_ports

SECURE = """
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
SSL://127.0.0.1:{ssl},SASL_SSL://127.0.0.1:{sasl},OLD://127.0.0.1:{old}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SSL://localhost:{ssl},SASL_SSL://localhost:{sasl},\
OLD://localhost:{old}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,OLD:SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={tls}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={tls}/ca.crt
listener.name.ssl.ssl.client.auth=required
listener.name.old.ssl.keystore.type=PEM
listener.name.old.ssl.keystore.location={tls}/old.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:CN=worker
"""


class SecureBroker(Broker):
    """PLAINTEXT for the tests themselves, SSL with client certificates, SASL_SSL with SCRAM, OLD
    with a certificate that has expired, and an authorizer that lets user `scram` do nothing that it
    was not granted."""

    def __init__(self, folder):
        self.tls = certificates(folder / "tls")
        (self.tls / "broker.pem").write_text((self.tls / "server.key").read_text() +
                                             (self.tls / "server.crt").read_text())
        old = expire(certificates(folder / "old-tls"))  # another authority's, and out of date
        (self.tls / "old.pem").write_text((old / "server.key").read_text() +
                                          (old / "server.crt").read_text())
        (self.tls / "old-ca.crt").write_text((old / "ca.crt").read_text())
        self.ssl, self.sasl, self.old = free_ports(3)
        super().__init__(folder)
        lines = open(self.properties).read().splitlines()
        controller = next(x for x in lines if x.startswith("listeners=")).rsplit(":", 1)[1]
        kept = [x for x in lines if not x.startswith(("listeners=", "advertised.listeners="))]
        with open(self.properties, "w") as f:
            f.write("\n".join(kept) + SECURE.format(port=self.port, controller=controller,
                                                    ssl=self.ssl, sasl=self.sasl, old=self.old,
                                                    tls=self.tls))
        shutil.rmtree(f"{self.folder}/data")
        self.java("kafka.tools.StorageTool", "format", "-t", "dHJhbmNoZS10ZXN0cy0wMQ", "-c",
                  self.properties, "--add-scram", "SCRAM-SHA-512=[name=scram,password=geheim]")

    def grant(self, *rules):
        """Through the broker's own admin client, as an operator would."""
        for rule in rules:
            self.java("org.apache.kafka.tools.AclCommand", "--bootstrap-server", self.address,
                      "--add", "--allow-principal", "User:scram", *rule)

    def take(self, *rules):
        for rule in rules:
            self.java("org.apache.kafka.tools.AclCommand", "--bootstrap-server", self.address,
                      "--remove", "--force", "--allow-principal", "User:scram", *rule)
