"""Twisted's Int16StringReceiver as a client: twisted_client.py PORT

Over TLS: twisted_client.py AUTHORITY NAME PORT

Sends messages of every awkward size to an echo server, in bulk and byte by byte.
"""

import struct
import sys

from twisted.internet import endpoints, protocol, reactor
from twisted.protocols.basic import Int16StringReceiver

MESSAGES = [bytes(n % 251 for n in range(size)) for size in (0, 1, 2, 255, 256, 65534, 65535)]


class Client(Int16StringReceiver):
    def connectionMade(self):
        self.transport.setTcpNoDelay(True)
        self.expected = MESSAGES + MESSAGES
        for message in MESSAGES:
            self.sendString(message)

    def drip(self, frames):
        # One byte for each turn of the reactor, so that each is a write of its own.
        if frames:
            self.transport.write(frames[:1])
            reactor.callLater(0, self.drip, frames[1:])

    def stringReceived(self, string):
        expected = self.expected.pop(0)
        if string != expected:
            fail(f"{len(string)} bytes came back for {len(expected)}")
        elif len(self.expected) == len(MESSAGES):
            small = [message for message in MESSAGES if len(message) < 1000]
            self.expected = list(small)
            self.drip(b"".join(struct.pack("!H", len(m)) + m for m in small))
        elif not self.expected:
            print("ok")
            self.transport.loseConnection()

    def connectionLost(self, reason=protocol.connectionDone):
        if reactor.running:
            reactor.stop()


def fail(what):
    print(what)
    if reactor.running:
        reactor.stop()


point = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", int(sys.argv[-1]))
if len(sys.argv) > 2:
    from twisted.internet import ssl

    with open(sys.argv[1], encoding="ascii") as authority:
        trusted = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(authority.read())])
    options = ssl.optionsForClientTLS(sys.argv[2], trustRoot=trusted)
    point = endpoints.wrapClientTLS(options, point)
endpoints.connectProtocol(point, Client()).addErrback(fail)
reactor.callLater(30, fail, "it took too long")
reactor.run()
