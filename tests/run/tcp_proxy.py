"""A TCP proxy on loopback that hurts the link: cuts it behind a byte or a word, or swallows all."""
import socket
import struct
import threading


class Proxy:
    """Forwards to (host, port). `rule(direction, data, passed)` is called with "up" or "down" before
    data is forwarded, and answers how much of it may pass; less than all of it cuts the link, None
    swallows everything from there on."""

    def __init__(self, host, port, rule):
        self.target, self.rule = (host, port), rule
        self.links = self.cuts = 0
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()
                continue
            self.links += 1
            for way in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self.pump, args=way, daemon=True).start()

    def pump(self, source, sink, direction):
        passed = 0
        try:
            while data := source.recv(65536):
                allowed = self.rule(direction, data, passed)
                if allowed is None:
                    threading.Event().wait()
                sink.sendall(data[:allowed])
                passed += allowed
                if allowed < len(data):
                    self.cut(source, sink)
                    return
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self, *ends):
        self.cuts += 1
        for end in ends:
            # A reset, not a goodbye.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
