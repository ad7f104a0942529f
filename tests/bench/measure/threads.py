"""What threads of the application send."""

import subprocess
import sys
import time

from measure import echo
from measure.machine import (BINARIES, LOAD_CORE, SERVER_CORE, Row, cpu_seconds, free_port, in_turn,
                             on, program, running, server)


def ticks(kind, mode, peers, period, seconds):
    """Nanoseconds of the processor for a message of a tick that sends to that many peers."""
    port = free_port()
    count = max(2, round(seconds * 1e3 / period))
    sender = program("floor_ticks") if kind == "floor" else BINARIES / "ticks"
    words = on(SERVER_CORE, sender, mode, port, peers, count, period)
    transport = "udp" if mode.startswith("udp") else "tcp"
    sink = on(LOAD_CORE, program("load"), "sink", transport, port, peers)
    with running(words, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(0.3)
        with running(sink):
            printed, _ = process.communicate(timeout=120)
    sent, failed, took = map(int, printed.split())
    if failed > 0:
        sys.exit(f"{mode}: {failed} of {sent + failed} messages found no room")
    return took / sent


def answers(kind, seconds):
    """Nanoseconds of the processor for an answer from another thread."""
    port = free_port()
    command = [program("floor_answers"), port]
    if kind != "floor":
        command = [BINARIES / "ticks", "answers", port]
    with server(*command) as process:
        before = cpu_seconds(process.pid)
        messages = echo.load(port, "tcp", 64, 32, 64, seconds)
        return (cpu_seconds(process.pid) - before) / messages * 1e9


def tick_row(name, title, floor, cubenet, peers, period, goal):
    return Row(name, title, goal, lambda options: in_turn(
        options.pairs,
        lambda: ticks("floor", floor, peers, period, options.seconds),
        lambda: ticks("cubenet", cubenet, peers, period, options.seconds),
    ))


ROWS = [
    Row("answers", "answers from another thread, TCP 64×32×64", 0.15, lambda options: in_turn(
        options.pairs,
        lambda: answers("floor", options.seconds),
        lambda: answers("cubenet", options.seconds),
    )),
    tick_row("tick-tcp", "5 messages of 40 bytes to each of 1,000, in a batch; floor: one write each",
             "tcp-gathered", "tcp-gathered", 1_000, 20, 1.05),
    tick_row("tick-udp", "a datagram of 40 bytes to each of 1,000, in a batch; floor: `sendmmsg` of 64",
             "udp-gathered", "udp-gathered", 1_000, 20, 1.05),
    tick_row("broadcast-1000", "a frame of 200 bytes to each of 1,000", "broadcast", "broadcast",
             1_000, 20, 1.00),
    tick_row("broadcast-8000", "a frame of 200 bytes to each of 8,000", "broadcast", "broadcast",
             8_000, 150, 1.02),
]
