"""Building and running what is measured, and reading what it took."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGET = ROOT / "target"
EXAMPLES = TARGET / "release/examples"
BINARIES = TARGET / "release"
SERVER_CORE, LOAD_CORE = "0", "1"


@dataclasses.dataclass
class Row:
    """Something that is measured."""

    name: str
    title: str
    # The ratio to the floor that is aimed at; None if `measure` prints a table of its own.
    goal: typing.Optional[float]
    # With the options: what the floor and cubenet cost, or a table of its own.
    measure: typing.Callable
    unit: str = "ns"


def build(*sources):
    """Builds what the rows run: the examples, the servers of this folder, and programs in C."""
    for package, what in [("cubenet-mio", "--examples"), ("cubenet-bench", "--bins")]:
        cargo = ["cargo", "build", "--quiet", "--release", "-p", package, what]
        subprocess.run(cargo, cwd=ROOT, check=True)
    for source, *libraries in sources:
        flags = ["-O2", "-Wall", "-Wextra", "-pthread", "-o", program(source)]
        command = [os.environ.get("CC", "cc"), *flags, ROOT / f"tests/bench/{source}.c", *libraries]
        subprocess.run(command, check=True)


def program(source):
    """The program that is built of a source in C."""
    return TARGET / f"bench_{source}"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def on(core, *command):
    """A command that is pinned to a core, or to several."""
    return [str(word) for word in ("taskset", "-c", core, *command)]


@contextlib.contextmanager
def running(command, **options):
    """A process, which is ended."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def server(*command, core=SERVER_CORE):
    """A server, pinned, once it has had time to listen."""
    with running(on(core, *command), stdout=subprocess.DEVNULL) as process:
        time.sleep(0.3)
        yield process


def run(command, **options):
    """What a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{command}: status {done.returncode}")
    return done.stdout


def cpu_seconds(pid):
    """Time on a processor of all threads, from the scheduler's own books."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident_bytes(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def in_turn(pairs, floor, cubenet):
    """Measures both that often, in turn. Returns the medians of both, and that of their ratios."""
    runs = []
    for nth in range(pairs):
        order = [floor, cubenet] if nth % 2 == 0 else [cubenet, floor]
        values = {measure: measure() for measure in order}
        runs.append((values[floor], values[cubenet]))
    ratio = statistics.median(ours / theirs for theirs, ours in runs)
    theirs, ours = (statistics.median(column) for column in zip(*runs))
    return theirs, ours, ratio
