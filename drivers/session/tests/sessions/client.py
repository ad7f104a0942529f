"""A client of a session, written from the book's chapter on sessions. It sends numbers that count up,
expects each of them back once and in order, and loses its connection again and again.

client.py PORT MESSAGES SEED
"""

import random
import socket
import struct
import sys

LOGIN, RESUME, MESSAGE, ACK, END = 1, 2, 3, 4, 5
WELCOME, RESUMED, REFUSED, ENDED, ASK = 17, 18, 19, 20, 21
VERSION = 1
# Messages that are not acknowledged, at most.
WINDOW = 100


class Cut(Exception):
    """The connection is gone."""


class Session:
    def __init__(self, port, credentials):
        self.port, self.credentials = port, credentials
        self.token, self.attempt, self.received, self.sent = None, 0, 0, 0
        self.unacknowledged = []
        self.socket, self.bytes = None, b""

    def connect(self):
        """Goes on with the session, or logs in."""
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.bytes = b""
        if self.token is None:
            self.say(bytes([LOGIN, VERSION]) + self.credentials)
        else:
            self.attempt += 1
            numbers = struct.pack(">QQ", self.attempt, self.received)
            self.say(bytes([RESUME, VERSION]) + self.token + numbers)
        packet = self.hear()
        if packet[0] == WELCOME:
            self.token = packet[1:33]
        elif packet[0] == RESUMED:
            self.token = packet[1:33]
            self.acknowledged(struct.unpack(">Q", packet[33:])[0])
        else:
            sys.exit(f"refused: {packet}")
        self.say(bytes([ACK]) + struct.pack(">Q", self.received))
        for number, payload in self.unacknowledged:
            self.say(bytes([MESSAGE]) + struct.pack(">Q", number) + payload)

    def cut(self):
        """Loses the connection, with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def say(self, packet):
        try:
            self.socket.sendall(struct.pack(">H", len(packet)) + packet)
        except OSError as error:
            raise Cut from error

    def read(self, size):
        while len(self.bytes) < size:
            try:
                more = self.socket.recv(65536)
            except OSError as error:
                raise Cut from error
            if not more:
                raise Cut
            self.bytes += more
        taken, self.bytes = self.bytes[:size], self.bytes[size:]
        return taken

    def hear(self):
        return self.read(struct.unpack(">H", self.read(2))[0])

    def acknowledged(self, number):
        assert number <= self.sent, "an acknowledgement of what was not sent"
        self.unacknowledged = [one for one in self.unacknowledged if one[0] > number]

    def send(self, payload):
        self.sent += 1
        self.unacknowledged.append((self.sent, payload))
        self.say(bytes([MESSAGE]) + struct.pack(">Q", self.sent) + payload)

    def receive(self):
        """The next message; None if it was something else."""
        packet = self.hear()
        if packet[0] == ACK:
            self.acknowledged(struct.unpack(">Q", packet[1:])[0])
        elif packet[0] == ASK:
            self.say(bytes([ACK]) + struct.pack(">Q", self.received))
        elif packet[0] == MESSAGE:
            number = struct.unpack(">Q", packet[1:9])[0]
            if number <= self.received:
                return None
            assert number == self.received + 1, "a gap"
            self.received = number
            self.say(bytes([ACK]) + struct.pack(">Q", number))
            return packet[9:]
        else:
            sys.exit(f"unexpected: {packet}")
        return None


def main(port, messages, seed):
    chance = random.Random(seed)
    session = Session(port, b"open sesame")
    echoed, cuts = 0, 0
    session.connect()
    while echoed < messages:
        try:
            if chance.random() < 0.01:
                session.cut()
                cuts += 1
                session.connect()
            while session.sent < messages and len(session.unacknowledged) < WINDOW:
                session.send(struct.pack(">Q", session.sent + 1))
            payload = session.receive()
            if payload is not None:
                echoed += 1
                assert payload == struct.pack(">Q", echoed), "out of order"
        except Cut:
            session.connect()
    session.say(bytes([END]))
    assert session.hear()[0] in (ACK, ENDED)
    print(f"{echoed} messages over {cuts + 1} connections")


main(*map(int, sys.argv[1:]))
