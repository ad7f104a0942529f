"""Python's ssl as an echo server, on a port that it prints: python_server.py CERTIFICATE KEY [AUTHORITY]

With an authority its clients must show a certificate. Ends with its input. A message `drip` makes it
answer byte by byte from then on.
"""

import socket
import ssl
import struct
import sys
import threading


def receive(stream, length):
    received = b""
    while len(received) < length:
        some = stream.recv(length - len(received))
        if not some:
            raise EOFError
        received += some
    return received


def echo(context, plain):
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    drips = False
    try:
        with context.wrap_socket(plain, server_side=True) as stream:
            while True:
                header = receive(stream, 2)
                message = receive(stream, struct.unpack("!H", header)[0])
                if message == b"drip":
                    drips = True
                elif drips:
                    frame = header + message
                    for at in range(len(frame)):
                        stream.sendall(frame[at : at + 1])
                else:
                    stream.sendall(header + message)
    except (EOFError, OSError):
        plain.close()


certificate, key, *authority = sys.argv[1:]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)
if authority:
    context.load_verify_locations(authority[0])
    context.verify_mode = ssl.CERT_REQUIRED
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(f"listening on tcp 127.0.0.1:{listener.getsockname()[1]}", flush=True)


def accept():
    while True:
        plain, _ = listener.accept()
        threading.Thread(target=echo, args=(context, plain), daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
sys.stdin.read()
