#!/usr/bin/python3
"""A private PostgreSQL in a folder of its own: unix socket and a loopback port, gone afterwards.

  with Server() as server: server.url("app"), server.connect("app"), ...

By hand: tests/run/postgres_server.py COMMAND...  runs COMMAND with TRANCHE_TEST_POSTGRES set.
"""
import contextlib
import glob
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time


def programs():
    """The newest server on this machine; Debian keeps it out of the path. Another one's bin folder
    can stand in TRANCHE_TEST_POSTGRES_BIN (tools/postgres.sh)."""
    if named := os.environ.get("TRANCHE_TEST_POSTGRES_BIN"):
        return pathlib.Path(named)
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[-2]))
    if not found:
        raise RuntimeError("want a PostgreSQL server (tools/install.sh test), found none")
    return pathlib.Path(found[-1])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """Superuser `postgres`, by the socket without a password, by TCP with one (scram)."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-pg-"))
        self.data, self.port = self.folder / "data", free_port()
        self.bin = programs()
        # The server refuses to run as root.
        self.user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        os.chmod(self.folder, 0o755)
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")

    def as_user(self, *command):
        prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        return subprocess.run([*prefix, *map(str, command)], cwd="/", check=True, timeout=120,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)

    def __enter__(self):
        self.as_user(self.bin / "initdb", "-D", self.data, "-U", "postgres", "-E", "UTF8",
                     "--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256",
                     "--no-sync")
        with open(self.data / "postgresql.conf", "a") as f:
            f.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\n"
                    f"unix_socket_directories = '{self.folder}'\nmax_connections = 40\n"
                    "shared_buffers = 64MB\nautovacuum = off\n")
        self.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self):
        self.as_user(self.bin / "pg_ctl", "-D", self.data, "-l", self.folder / "log", "-w",
                     "-t", "60", "start")

    def stop(self, mode="fast"):
        """Back when the process is gone: pg_ctl is content once its pid file is."""
        process = pathlib.Path("/proc") / (self.data / "postmaster.pid").read_text().split()[0]
        self.as_user(self.bin / "pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")
        end = time.monotonic() + 60
        while process.exists() and time.monotonic() < end:
            time.sleep(0.01)

    def reload(self):
        self.as_user(self.bin / "pg_ctl", "-D", self.data, "reload")

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def connect(self, database="postgres", user="postgres"):
        import psycopg2  # tools/demo.py starts a server without it
        link = psycopg2.connect(host=str(self.folder), port=self.port, dbname=database, user=user)
        link.autocommit = True
        return link

    def ask(self, database, query, *values, user="postgres"):
        with contextlib.closing(self.connect(database, user)) as link, link.cursor() as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchall() if cursor.description else None

    def url(self, database, user="postgres", host=None, port=None, **parameters):
        """By the socket; host="127.0.0.1": by TCP."""
        where = f"{host}:{port or self.port}" if host else ""
        if not host:
            parameters |= {"host": self.folder, "port": self.port}
        query = "&".join(f"{k}={v}" for k, v in parameters.items())
        return f"postgres://{user}@{where}/{database}" + (f"?{query}" if query else "")


if __name__ == "__main__":
    with Server() as private:
        sys.exit(subprocess.run(sys.argv[1:], check=False, env={
            **os.environ, "TRANCHE_TEST_POSTGRES": private.url("postgres")}).returncode)
