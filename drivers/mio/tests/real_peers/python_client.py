"""Python's ssl as a client: python_client.py AUTHORITY NAME [CERTIFICATE KEY] PORT

Sends messages of every awkward size to an echo server, over both versions of TLS, and comes back with
its session each time.
"""

import select
import socket
import ssl
import struct
import sys

MESSAGES = [bytes(n % 251 for n in range(size)) for size in (0, 1, 2, 255, 256, 65534, 65535)]


def frame(message):
    return struct.pack("!H", len(message)) + message


def receive(stream, length):
    received = b""
    while len(received) < length:
        some = stream.recv(length - len(received))
        assert some, "the stream ended early"
        received += some
    return received


def exchange(stream, sent):
    """Sends and receives at once. From one thread: OpenSSL's connections are not for two."""
    stream.setblocking(False)
    at, received = 0, b""
    while len(received) < len(sent):
        waits = True
        try:
            if at < len(sent):
                at += stream.send(sent[at : at + 16384])
                waits = False
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        try:
            some = stream.recv(65536)
            assert some, "the stream ended early"
            received += some
            waits = False
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if waits:
            ready = select.select([stream], [stream] if at < len(sent) else [], [], 20)
            assert ready != ([], [], []), "nothing comes back"
    stream.settimeout(20)
    return received


def talk(context, name, port, session):
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    with context.wrap_socket(plain, server_hostname=name, session=session) as stream:
        reused = stream.session_reused
        for message in MESSAGES:
            stream.sendall(frame(message))
            assert receive(stream, len(message) + 2) == frame(message), len(message)
        everything = b"".join(map(frame, MESSAGES))
        assert exchange(stream, everything) == everything
        # Each byte is a record.
        small = b"".join(frame(message) for message in MESSAGES if len(message) < 1000)
        for at in range(len(small)):
            stream.sendall(small[at : at + 1])
        assert receive(stream, len(small)) == small
        session = stream.session
        # An end in order: both sides say close_notify.
        stream.unwrap().close()
    return session, reused


authority, name, *certificate, port = sys.argv[1:]
for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
    context = ssl.create_default_context(cafile=authority)
    context.minimum_version = context.maximum_version = version
    if certificate:
        context.load_cert_chain(*certificate)
    session, reused = talk(context, name, int(port), None)
    assert not reused, version
    _, reused = talk(context, name, int(port), session)
    assert reused, version
print("ok")
