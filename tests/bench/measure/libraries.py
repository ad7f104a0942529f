"""The same echo server over the libraries that a user would otherwise take: each on one thread, with
frames of a 2-byte length, as small as its own examples, and with the answers of a batch in one write
where the library has a way to."""

import array
import contextlib
import dataclasses
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import typing

from measure import connections, echo
from measure.machine import (LOAD_CORE, ROOT, TARGET, build, cpu_seconds, free_port, on, program, run,
                             running, server)

FOLDER = ROOT / "tests/bench/libraries"
BUILT = TARGET / "libraries"
PACKAGES = ["gcc", "g++", "libc6-dev", "util-linux", "libasio-dev", "libuv1-dev", "libenet-dev",
            "erlang-base", "default-jdk-headless", "libnetty-java"]
NETTY = ":".join(f"/usr/share/java/netty-{part}.jar"
                 for part in ("buffer", "codec", "common", "handler", "resolver", "transport"))
# What compiles while it runs is warm after so many times the warm-up of the others.
SLOW_TO_WARM = 10
# Answers of `pace` that are looked at.
QUANTILES = [0.5, 0.9, 0.99, 0.999]
PACE_CONNECTIONS, PACE_RATE = 64, 20_000
# Of transport, connections, window and bytes.
SHAPES = [("tcp", 64, 1, 64), ("tcp", 64, 32, 64), ("tcp", 8, 4, 16384), ("udp", 64, 1, 64)]
CONNECTIONS = [16, 64, 256, 1_024, 4_096, 16_384]
PEERS = [1_000, 10_000, 100_000, 1_000_000, 2_000_000]
# ENet has 12 bits for a peer.
ENET_PEERS = [1_000, 4_000]
# Those of the shapes, and of the runs before whose end it has not noticed: it looks at every slot.
ENET_SLOTS = 256
PEERS_AT_ONCE = 64


@dataclasses.dataclass
class Library:
    """A library, and how its server is run for a port."""

    name: str
    tcp: typing.Optional[typing.Callable] = None
    udp: typing.Optional[typing.Callable] = None
    warm: int = 1


def java(port):
    # Those that compile stay, so that their time is not lost with them.
    threads = "-XX:-UseDynamicNumberOfCompilerThreads"
    return ["java", threads, "-Xmx2g", "-cp", f"{NETTY}:{BUILT}", "NettyServer", port]


def erlang(port):
    # Schedulers that do not spin before they sleep, and as many sockets as the others.
    still = ["+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"]
    return ["erl", "+S", "1", *still, "+Q", "65536", "-noshell", "-pa", BUILT,
            "-s", "frame_echo", "start", port]


ENET = "ENet"
LIBRARIES = [
    Library("cubenet", lambda port: echo.command("cubenet", "tcp", port, 1),
            lambda port: echo.command("cubenet", "udp", port, 1)),
    Library("tokio", lambda port: [BUILT / "release/tokio_server", "tcp", port],
            lambda port: [BUILT / "release/tokio_server", "udp", port]),
    Library("Asio", lambda port: [BUILT / "asio_server", port]),
    Library("libuv", lambda port: [BUILT / "libuv_server", port]),
    Library("message-io", lambda port: [BUILT / "release/message_io_server", "tcp", port],
            lambda port: [BUILT / "release/message_io_server", "udp", port]),
    Library("Netty", java, warm=SLOW_TO_WARM),
    Library("Erlang", erlang),
    Library(ENET, None, lambda port: [BUILT / "enet", "server", port, ENET_SLOTS]),
]


def install():
    """Installs those of Debian's packages that are missing."""
    if shutil.which("dpkg-query") is None:
        print(f"no dpkg here: what Debian calls {', '.join(PACKAGES)} must be installed", file=sys.stderr)
        return
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}"]
    missing = [one for one in PACKAGES
               if subprocess.run([*query, one], capture_output=True, text=True).stdout[:9] != "installed"]
    if not missing:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    if as_root and shutil.which("sudo") is None:
        sys.exit(f"no root and no sudo: install {' '.join(missing)}, then try again")
    as_root += ["env", "DEBIAN_FRONTEND=noninteractive"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([*as_root, "apt-get", "update", "-qq"], **quiet)
    words = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
    subprocess.run([*as_root, *words], **quiet)


def build_all():
    build(("floor",), ("load",))
    cargo = ["cargo", "build", "--quiet", "--release", "--locked"]
    env = {**os.environ, "CARGO_TARGET_DIR": str(BUILT)}
    subprocess.run(cargo, cwd=FOLDER, env=env, check=True)
    for compiler, source, *libraries in [
        (["c++", "-std=c++20"], "asio_server.cpp", "-pthread"),
        (["cc"], "libuv_server.c", "-luv"),
        (["cc"], "enet.c", "-lenet"),
    ]:
        output = BUILT / source.split(".")[0]
        command = [*compiler, "-O2", "-Wall", "-Wextra", "-o", output, FOLDER / source, *libraries]
        subprocess.run(command, check=True)
    subprocess.run(["erlc", "-o", BUILT, FOLDER / "frame_echo.erl"], check=True)
    subprocess.run(["javac", "-cp", NETTY, "-d", BUILT, FOLDER / "NettyServer.java"], check=True)


def versions():
    """What was measured, by name."""
    def of_package(name):
        words = ["dpkg-query", "--show", "--showformat", "${Version}", name]
        text = run(words) if shutil.which("dpkg-query") else "?"
        return text.split(":")[-1].split("-")[0].split("+")[0]

    lock = (FOLDER / "Cargo.lock").read_text()

    def of_crate(name):
        return lock.split(f'name = "{name}"\nversion = "')[1].split('"')[0]

    return {
        "tokio": of_crate("tokio"),
        "Asio": of_package("libasio-dev"),
        "libuv": of_package("libuv1-dev"),
        "message-io": of_crate("message-io"),
        "Netty": of_package("libnetty-java"),
        "Erlang": "OTP " + of_package("erlang-base"),
        ENET: of_package("libenet-dev"),
    }


@contextlib.contextmanager
def started(command, port, transport):
    """A server once it listens. It is pinned, and what it says of itself is not shown."""
    with running(on("0", *command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        # A datagram server does not answer before there is a peer.
        end = time.monotonic() + (30 if transport == "tcp" else 0.5)
        while time.monotonic() < end:
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended with status {process.returncode}")
            if transport == "tcp":
                with (contextlib.suppress(OSError),
                      socket.create_connection(("127.0.0.1", port)) as probe):
                    # One that had this very port for its own would reach itself.
                    if probe.getsockname() != probe.getpeername():
                        break
            time.sleep(0.05)
        else:
            if transport == "tcp":
                sys.exit(f"{command[0]} does not listen on port {port}")
        yield process


@contextlib.contextmanager
def all_started(transport, except_for=()):
    """Every library's server for a transport: the library, its port and its process."""
    with contextlib.ExitStack() as stack:
        servers = []
        for library in LIBRARIES:
            command = getattr(library, transport)
            if command is not None and library.name not in except_for:
                port = free_port()
                process = stack.enter_context(started(command(port), port, transport))
                servers.append((library, port, process))
        yield servers


def enet_load(port, peers, at_once, size, seconds, pid):
    """Messages that were answered, and seconds of the server's processor for them."""
    command = on(LOAD_CORE, BUILT / "enet", "load", port, peers, at_once, size, seconds)
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        if client.stdout.readline() != "connected\n":
            sys.exit("the load of ENet did not connect")
        before = cpu_seconds(pid)
        client.stdin.write("\n")
        client.stdin.flush()
        answered = int(client.stdout.readline() or sys.exit("the load of ENet has failed"))
        return answered, cpu_seconds(pid) - before


def cost(library, port, process, shape, seconds):
    """Nanoseconds of the server's processor for a message."""
    transport, count, window, size = shape
    if library.name == ENET:
        answered, spent = enet_load(port, count, count * window, size, seconds, process.pid)
    else:
        before = cpu_seconds(process.pid)
        answered = echo.load(port, transport, count, window, size, seconds)
        spent = cpu_seconds(process.pid) - before
    return spent / answered * 1e9


def rotated(servers, nth):
    """In another order each round: none always comes behind the same one."""
    nth %= len(servers)
    return servers[nth:] + servers[:nth]


def costs(shape, options):
    """Of every library, the median of as many runs as there are rounds; the libraries take turns."""
    # Connects, and the last answers, which come too late to be counted, are small beside so many.
    seconds = max(options.seconds, shape[1] / 3_000)
    with all_started(shape[0]) as servers:
        for library, port, process in servers:
            cost(library, port, process, shape, options.warm_up * library.warm)
        runs = {library.name: [] for library, _, _ in servers}
        for nth in range(options.rounds):
            for library, port, process in rotated(servers, nth):
                runs[library.name].append(cost(library, port, process, shape, seconds))
    return {name: statistics.median(values) for name, values in runs.items()}


def processor(options):
    panels = []
    for shape in SHAPES:
        transport, *rest = shape
        title = f"{transport.upper()} {'×'.join(map(str, rest))}"
        bars = [bar(*one) for one in costs(shape, options).items()]
        panels.append({"title": title, "bars": bars})
    return panels


def bar(name, value):
    return {"name": name, "value": round(value, 1)}


def line(name, points):
    return {"name": name, "points": [[x, round(y, 2)] for x, y in points]}


def latency(options):
    """Microseconds since a message was due, by quantile: the medians of the rounds, since the machine
    may hold up one of them."""
    def pace(port, seconds):
        words = on(LOAD_CORE, program("load"), "pace", port, PACE_CONNECTIONS, PACE_RATE, seconds)
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
        took = sorted(array.array("I", done.stdout))
        return [took[min(int(quantile * len(took)), len(took) - 1)] / 1e3 for quantile in QUANTILES]

    with all_started("tcp") as servers:
        runs = {library.name: [] for library, _, _ in servers}
        for library, port, _ in servers:
            pace(port, options.warm_up * library.warm)
        for nth in range(options.rounds):
            for library, port, _ in rotated(servers, nth):
                runs[library.name].append(pace(port, options.seconds))
    return [line(name, zip(QUANTILES, map(statistics.median, zip(*rounds))))
            for name, rounds in runs.items()]


def memory(options):
    """Bytes of resident memory that an idle connection adds."""
    bars = []
    for library in LIBRARIES:
        if library.tcp is None:
            continue
        port = free_port()
        with started(library.tcp(port), port, "tcp") as process:
            # What the collector has not got to yet is not what a connection takes.
            collect = ["jcmd", str(process.pid), "GC.run"] if library.name == "Netty" else ["true"]
            count = min(options.idle, connections.allow_descriptors() - 100)
            # Beside some, for what a server takes once: its code, its pools.
            some = count // 5
            idle = (process.pid, port, count - some, lambda: run(collect), some)
            each = connections.idle_of(*idle)
            bars.append(bar(library.name, each))
    return bars


def by_connections(options):
    counts = [count for count in CONNECTIONS
              if count <= min(options.most_connections, connections.allow_descriptors() - 100)]
    columns = {count: costs(("tcp", count, 1, 64), options) for count in counts}
    names = columns[counts[0]]
    return [line(name, [(count, columns[count][name]) for count in counts]) for name in names]


def peers_round(name, count):
    """Nanoseconds of the server's processor for a message of one of many peers."""
    port = free_port()
    # As many messages as the largest that is quick, at least.
    rounds = max(1, 200_000 // count)
    if name == ENET:
        command = [BUILT / "enet", "server", port, count]
        with server(*command) as process:
            answered, spent = enet_load(port, count, PEERS_AT_ONCE, 64, 1, process.pid)
            return spent / answered * 1e9
    if name == "tokio":
        command = [BUILT / "release/tokio_server", "udp", port]
    else:
        command = connections.peers_command("floor" if name == FLOOR else name, port, count)
    return connections.peers_of(command, port, count, rounds)[0]


FLOOR = "by hand, without a table"


def by_peers(options):
    counts = [count for count in PEERS if count <= options.most_peers]
    of = {"cubenet": counts, "tokio": counts, FLOOR: counts, ENET: ENET_PEERS}
    points = {name: [] for name in of}
    for count in sorted({*counts, *ENET_PEERS}):
        names = [name for name in of if count in of[name]]
        runs = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                runs[name].append(peers_round(name, count))
        for name in names:
            points[name].append((count, statistics.median(runs[name])))
    return [line(name, some) for name, some in points.items()]


def machine():
    model = "unknown processor"
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo", encoding="utf-8") as text:
            models = [one.split(":")[1].strip() for one in text if one.startswith("model name")]
            model = models[0] if models else model
    return f"{model}, Linux {'.'.join(os.uname().release.split('.')[:2])}"
