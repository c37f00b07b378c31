"""A private Redis server in a folder of its own, and the questions that tests ask of a stream."""
import os
import signal
import socket
import subprocess
import time

import redis

from authority import certificates, expire  # noqa: F401: many take them from here


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, folder, *options, port=None, tls=None, password=None):
        self.folder, self.options, self.tls, self.password = folder, options, tls, password
        self.port = port or free_port()
        self.process = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self):
        command = ["redis-server", "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
                   "--appendonly", "yes", "--appendfsync", "always", "--logfile",
                   str(self.folder / "redis.log")]
        command += ["--port", "0", "--tls-port", str(self.port)] if self.tls else \
            ["--port", str(self.port)]
        if self.tls:
            command += ["--tls-cert-file", str(self.tls / "server.crt"), "--tls-key-file",
                        str(self.tls / "server.key"), "--tls-ca-cert-file", str(self.tls / "ca.crt")]
        self.process = subprocess.Popen(command + list(self.options), stdout=subprocess.DEVNULL)
        wait_until(self.answers, 20)

    def client(self, **more):
        if self.tls:
            more = {"ssl": True, "ssl_ca_certs": str(self.tls / "ca.crt"),
                    "ssl_certfile": str(self.tls / "client.crt"),
                    "ssl_keyfile": str(self.tls / "client.key"), **more}
        return redis.Redis(host="localhost" if self.tls else "127.0.0.1", port=self.port,
                           password=self.password, decode_responses=True, **more)

    def answers(self):
        try:
            return self.client().ping()
        except (redis.exceptions.BusyLoadingError, redis.exceptions.ConnectionError):
            return False

    def url(self, stream="jobs", scheme=None):
        scheme = scheme or ("rediss" if self.tls else "redis")
        return f"{scheme}://{'localhost' if self.tls else '127.0.0.1'}:{self.port}/{stream}"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def wait_until(condition, timeout_s, every_s=0.02):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {condition}"
        time.sleep(every_s)


def group(client, stream="jobs", name="g"):
    """{'lag', 'pending', ...} of one group."""
    return next(g for g in client.xinfo_groups(stream) if g["name"] == name)


def at_rest(client, stream="jobs", name="g"):
    g = group(client, stream, name)
    return g["lag"] == 0 and g["pending"] == 0


def acknowledged(client, stream="jobs", name="g"):
    """Ids that were delivered and are pending for nobody, in one instant."""
    pipe = client.pipeline(transaction=True)
    pipe.xinfo_groups(stream)
    pipe.xpending_range(stream, name, "-", "+", 1000000)
    pipe.xrange(stream, "-", "+")
    groups, pending, entries = pipe.execute()
    last = next(g["last-delivered-id"] for g in groups if g["name"] == name)
    key = lambda i: tuple(map(int, i.split("-")))
    held = {p["message_id"] for p in pending}
    return {e[0] for e in entries if key(e[0]) <= key(last)} - held
