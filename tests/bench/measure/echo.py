"""An echo in the callback."""

import json
import subprocess
import sys

from measure.machine import (EXAMPLES, LOAD_CORE, Row, cpu_seconds, free_port, in_turn, on, program,
                             run, server)

# transport, connections, window, bytes, and the goal.
LOADS = [
    ("tcp", 1, 1, 64, 1.00),
    ("tcp", 64, 1, 64, 1.00),
    ("tcp", 64, 32, 64, 1.00),
    ("tcp", 64, 4, 1024, 1.00),
    ("tcp", 8, 4, 16384, 0.95),
    ("udp", 64, 1, 64, 1.00),
]
# UDP with peers that send and receive each datagram by itself.
DATAGRAMS = ("udp", 8, 32, 200, 0.65)
# With two workers, each with a core that it shares with the load.
WORKERS_TCP = ("tcp", 64, 8, 64, 1.02)
WORKERS_UDP = ("udp", 64, 8, 64, 1.02)
BOTH_CORES = "0,1"


def command(kind, transport, port, workers):
    if kind == "floor":
        return [program("floor"), transport, port, *([workers] if workers > 1 else [])]
    words = ["--listen", f"127.0.0.1:{port}", "--transport", transport, "--workers", workers]
    return [EXAMPLES / "echo", *words]


def load(port, transport, connections, window, size, seconds):
    """Keeps a server busy. Returns how many messages it answered."""
    words = ["--json", "--connect", f"127.0.0.1:{port}", "--transport", transport]
    words += ["--seconds", seconds, "--connections", connections, "--window", window, "--size", size]
    full = on(LOAD_CORE, EXAMPLES / "load", *words)
    done = subprocess.run(full, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          timeout=seconds + 60)
    result = json.loads(done.stdout)
    if done.returncode != 0:
        sys.exit(f"the load failed: {result}")
    return result["messages"]


def single_datagrams(port, _, connections, window, size, seconds):
    words = ["datagrams", port, connections, window, size, seconds]
    return int(run(on(LOAD_CORE, program("load"), *words)))


def cost(kind, plan, seconds, workers=1, make_load=load):
    """Nanoseconds of the server's processor for a message."""
    transport, *rest, _ = plan
    port = free_port()
    core = BOTH_CORES if workers > 1 else "0"
    with server(*command(kind, transport, port, workers), core=core) as process:
        before = cpu_seconds(process.pid)
        messages = make_load(port, transport, *rest, seconds)
        return (cpu_seconds(process.pid) - before) / messages * 1e9


def row(plan, workers=1, make_load=load, note="", name=""):
    transport, connections, window, size, goal = plan
    shape = f"{connections}×{window}×{size}"
    return Row(
        name=f"{name}{transport}-{connections}x{window}x{size}",
        title=f"{transport.upper()} {shape}{note}",
        goal=goal,
        measure=lambda options: in_turn(
            options.pairs,
            lambda: cost("floor", plan, options.seconds, workers, make_load),
            lambda: cost("cubenet", plan, options.seconds, workers, make_load),
        ),
    )


ROWS = [
    *[row(plan) for plan in LOADS],
    row(DATAGRAMS, make_load=single_datagrams, note=", single datagrams"),
    row(WORKERS_TCP, workers=2, note=", two workers", name="workers-"),
    row(WORKERS_UDP, workers=2, make_load=single_datagrams, note=", two workers", name="workers-"),
]
