"""The same over TLS, beside the better of two floors with OpenSSL (floor_tls.c).

Versions and suites are what both sides choose: TLS 1.3, AES-256-GCM, X25519, ECDSA with P-256.
"""

import contextlib
import functools
import json
import os
import pathlib
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from measure import machine
from measure.machine import EXAMPLES, LOAD_CORE, Row, cpu_seconds, free_port, on, program, resident_bytes

# transport, connections, window, bytes, and the goal.
LOADS = [
    ("tcp", 64, 1, 64, 0.92),
    ("tcp", 64, 32, 64, 0.90),
    ("tcp", 64, 4, 1024, 0.92),
    ("tcp", 8, 4, 16384, 0.97),
]
SERVERS = ["C, descriptor", "C, scratch", "cubenet"]
NAME = "game.test"


@functools.cache
def folder():
    """A folder with a certificate, for this run."""
    temporary = tempfile.TemporaryDirectory()
    folder.kept = temporary
    path = pathlib.Path(temporary.name)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "30", "-subj", f"/CN={NAME}"]
    command += ["-addext", f"subjectAltName=DNS:{NAME}", "-addext", "basicConstraints=CA:FALSE"]
    command += ["-keyout", path / "key.pem", "-out", path / "certificate.pem"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return path


@contextlib.contextmanager
def serving(server):
    """A server over TLS, and its address."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    files = [folder() / "certificate.pem", folder() / "key.pem"]
    if server.startswith("C, "):
        kind = {"C, descriptor": "fd", "C, scratch": "bio"}[server]
        command = [program("floor_tls"), kind, port, *files]
    else:
        command = [EXAMPLES / "echo", "--listen", address, "--transport", "tcp", "--workers", "1"]
        command += ["--tls-cert", files[0], "--tls-key", files[1]]
    with machine.server(*command) as process:
        yield process, address


def trust():
    """What `load` is told of TLS."""
    return ["--server-name", NAME, "--tls-ca", folder() / "certificate.pem"]


def cost(server, load, seconds):
    """Nanoseconds of the server's processor for a message."""
    _, connections, window, size, _ = load
    with serving(server) as (process, address):
        command = on(LOAD_CORE, EXAMPLES / "load", "--json", *trust(), "--connect", address,
                     "--seconds", seconds, "--connections", connections, "--window", window,
                     "--size", size)
        before = cpu_seconds(process.pid)
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             timeout=seconds + 60)
        result = json.loads(run.stdout)
        if run.returncode != 0:
            sys.exit(f"{server}: the load failed: {result}")
        return (cpu_seconds(process.pid) - before) / result["messages"] * 1e9


class Talker:
    """A client of TLS with one connection after another, or one that stays."""

    def __init__(self, address):
        self.address = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        self.context = ssl.create_default_context(cafile=folder() / "certificate.pem")
        self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN

    def connect(self, session=None):
        plain = socket.create_connection(self.address, timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(plain, server_hostname=NAME, session=session)

    @staticmethod
    def talk(stream):
        stream.sendall(b"\0\1x")
        received = b""
        while len(received) < 3:
            some = stream.recv(3 - len(received))
            if not some:
                raise EOFError("the server has ended the connection")
            received += some


def handshakes(server, count=400):
    """Microseconds of server CPU for a connection with a message, whole and resumed."""
    with serving(server) as (process, address):
        talker = Talker(address)
        first = talker.connect()
        talker.talk(first)
        session = first.session
        first.close()
        costs = []
        for resumes in [False, True]:
            before = cpu_seconds(process.pid)
            for _ in range(count):
                stream = talker.connect(session if resumes else None)
                talker.talk(stream)
                if stream.session_reused != resumes:
                    sys.exit(f"{server}: the session was {'not ' * resumes}resumed")
                # Tickets are good once.
                session = stream.session
                stream.close()
            costs.append((cpu_seconds(process.pid) - before) / count * 1e6)
        return costs


def idle(server, connections=2_000):
    """Bytes of resident memory that an idle connection with TLS adds."""
    clients = []
    try:
        with serving(server) as (process, address):
            talker = Talker(address)
            for nth in range(connections + 200):
                # What the server has once is there after the first.
                if nth == 200:
                    time.sleep(0.5)
                    before = resident_bytes(process.pid)
                client = talker.connect()
                talker.talk(client)
                clients.append(client)
            time.sleep(0.5)
            return (resident_bytes(process.pid) - before) / connections
    finally:
        for client in clients:
            client.close()


def arrival(server, arriving=1_000):
    """Round trips, one begun each millisecond, of a connection while others arrive: their 99th
    percentile and the longest, in milliseconds."""
    with serving(server) as (_, address):
        stream = Talker(address).connect()
        took = []
        over = threading.Event()

        def ping():
            try:
                while not over.is_set():
                    begun = time.perf_counter()
                    Talker.talk(stream)
                    took.append((time.perf_counter() - begun) * 1e3)
                    time.sleep(max(0, 0.001 - (time.perf_counter() - begun)))
            except (EOFError, OSError) as error:
                took.clear()
                print(f"{server}: {error}", file=sys.stderr)

        thread = threading.Thread(target=ping, daemon=True)
        command = on(LOAD_CORE, "nice", EXAMPLES / "load", *trust(), "--connect", address,
                     "--connections", arriving, "--seconds", "0.1")
        load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        thread.start()
        try:
            if load.wait(timeout=60) != 0:
                sys.exit(f"{server}: not all clients that arrived were served")
        finally:
            load.kill()
            over.set()
            thread.join(timeout=60)
        if not took:
            sys.exit(f"{server}: the connection that was there was not served")
        took.sort()
        return took[len(took) * 99 // 100], took[-1]


def messages(load, options):
    """What a message costs the better floor, and cubenet, and the ratio."""
    runs = []
    for nth in range(options.pairs):
        order = SERVERS if nth % 2 == 0 else SERVERS[::-1]
        run = {server: cost(server, load, options.seconds) for server in order}
        runs.append([run[server] for server in SERVERS])
    columns = [statistics.median(column) for column in zip(*runs)]
    better = columns.index(min(columns[:2]))
    ratio = statistics.median(run[2] / run[better] for run in runs)
    return columns[better], columns[2], ratio


def connections(options):
    """Prints what handshakes cost, an idle connection occupies, and arrivals do to others."""
    # The load, and what this makes of it, beside the server.
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    print("\n| with TLS | C, descriptor | C, scratch | cubenet | goal |")
    print("| --- | --- | --- | --- | --- |")
    rows = {server: [] for server in SERVERS}
    for _ in range(options.pairs):
        for server in SERVERS:
            whole, resumed = handshakes(server)
            rows[server].append((whole, resumed, *arrival(server)))
    for at, (name, unit, goal) in enumerate([
        ("CPU of a whole handshake", "µs", "≤ 200"),
        ("CPU of a resumed handshake", "µs", "≤ 170"),
        ("99th percentile of round trips while 1,000 arrive", "ms", "≤ 5"),
        ("the longest of these", "ms", ""),
    ]):
        medians = [statistics.median(row[at] for row in rows[server]) for server in SERVERS]
        cells = " | ".join(f"{value:,.1f} {unit}" for value in medians)
        print(f"| {name} | {cells} | {goal} |", flush=True)
    cells = " | ".join(f"{idle(server):,.0f} bytes" for server in SERVERS)
    print(f"| memory of an idle connection | {cells} | ≤ 4,096 |", flush=True)
    os.sched_setaffinity(0, range(os.cpu_count()))


def row(load):
    transport, connections, window, size, goal = load
    shape = f"{connections}×{window}×{size}"
    return Row(f"tls-{transport}-{connections}x{window}x{size}", f"TLS over TCP {shape}", goal,
               lambda options: messages(load, options))


ROWS = [
    *[row(load) for load in LOADS],
    Row("tls-connections", "TLS: handshakes, memory, arrivals", None, connections),
]
