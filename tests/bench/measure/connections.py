"""Many connections: coming and going, idle, and datagram peers without number."""

import resource
import socket
import subprocess
import sys

from measure import echo
from measure.machine import (BINARIES, LOAD_CORE, Row, cpu_seconds, free_port, in_turn, on,
                             program, resident_bytes, run, running, server)

IDLE = 15_000


def churn(kind, seconds, at_once=64):
    """Nanoseconds of the processor for a connection with one message."""
    port = free_port()
    connections = round(10_000 * seconds)
    with server(*echo.command(kind, "tcp", port, 1)) as process:
        before = cpu_seconds(process.pid)
        ended = int(run(on(LOAD_CORE, program("load"), "churn", port, connections, at_once)))
        return (cpu_seconds(process.pid) - before) / ended * 1e9


def peers_command(kind, port, count):
    if kind == "floor":
        return [program("floor"), "udp", port]
    return [BINARIES / "peers_server", port, count]


def peers(kind, count):
    port = free_port()
    return peers_of(peers_command(kind, port, count), port, count)


def peers_of(command, port, count, rounds=1):
    """For that many datagram peers, each of which is answered in turn: nanoseconds of the processor
    for a message, and bytes of memory for a peer."""
    load = on(LOAD_CORE, program("load"), "peers", port, count, rounds + 1)
    with server(*command) as process:
        empty = resident_bytes(process.pid)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with running(load, **pipes) as client:
            if int(client.stdout.readline()) < count * 0.99:
                sys.exit("more than one in a hundred datagrams were lost")
            memory = (resident_bytes(process.pid) - empty) / count
            before = cpu_seconds(process.pid)
            client.stdin.write("\n")
            client.stdin.flush()
            answered = sum(int(client.stdout.readline()) for _ in range(rounds))
            return (cpu_seconds(process.pid) - before) / answered * 1e9, memory


def peers_row(count, goal):
    return Row(f"peers-{count}", f"{count:,} UDP peers, one message each in turn", goal,
               lambda options: in_turn(
                   max(1, options.pairs // 2),
                   lambda: peers("floor", count)[0],
                   lambda: peers("cubenet", count)[0],
               ))


def peer_memory(_options, count=1_000_000):
    _, memory = peers("cubenet", count)
    print(f"\n{memory:.0f} bytes resident for each of {count:,} UDP peers, goal ≤ 160", flush=True)


def idle(_options):
    """Bytes of resident memory that an idle TCP connection adds to `echo`."""
    connections = min(IDLE, allow_descriptors() - 100)
    port = free_port()
    with server(*echo.command("cubenet", "tcp", port, 1)) as process:
        each = idle_of(process.pid, port, connections)
    print(f"\n{each:.0f} bytes resident for each of {connections:,} idle TCP connections, goal ≤ 160",
          flush=True)


def allow_descriptors():
    """As many descriptors as the system allows, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def idle_of(pid, port, connections, before_reading=lambda: None, already=1):
    """Bytes of resident memory that a connection with one message behind it adds to a server."""
    clients = []
    try:
        # Beside those that are there already, so that what the server has once is there, too.
        for nth in range(connections + already):
            if nth == already:
                before_reading()
                before = resident_bytes(pid)
            client = socket.create_connection(("127.0.0.1", port))
            clients.append(client)
            client.sendall(b"\0\1x")
            client.recv(3)
        before_reading()
        return (resident_bytes(pid) - before) / connections
    finally:
        for client in clients:
            client.close()


ROWS = [
    Row("churn", "connect, one message, close; 64 at once", 1.10, lambda options: in_turn(
        options.pairs,
        lambda: churn("floor", options.seconds),
        lambda: churn("cubenet", options.seconds),
    )),
    peers_row(1_000_000, 1.03),
    Row("peer-memory", "memory of a UDP peer", None, peer_memory),
    Row("idle", "memory of an idle TCP connection", None, idle),
]
