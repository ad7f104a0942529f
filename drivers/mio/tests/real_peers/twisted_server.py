"""Twisted's Int16StringReceiver as an echo server, on a port that it prints.

Over TLS: twisted_server.py CERTIFICATE KEY

Ends with its input. A message `drip` makes it answer byte by byte from then on.
"""

import struct
import sys

from twisted.internet import endpoints, protocol, reactor, stdio
from twisted.protocols.basic import Int16StringReceiver


class Echo(Int16StringReceiver):
    def connectionMade(self):
        self.transport.setTcpNoDelay(True)
        self.dripping = False
        self.backlog = b""

    def stringReceived(self, string):
        if string == b"drip":
            self.dripping = True
        elif self.dripping:
            idle = not self.backlog
            self.backlog += struct.pack("!H", len(string)) + string
            if idle:
                self.drip()
        else:
            self.sendString(string)

    def drip(self):
        self.transport.write(self.backlog[:1])
        self.backlog = self.backlog[1:]
        if self.backlog:
            reactor.callLater(0, self.drip)


class UntilInputEnds(protocol.Protocol):
    def connectionLost(self, reason=protocol.connectionDone):
        if reactor.running:
            reactor.stop()


def listening(port):
    print(f"listening on tcp 127.0.0.1:{port.getHost().port}", flush=True)


factory = protocol.Factory.forProtocol(Echo)
if len(sys.argv) > 2:
    certificate, key = sys.argv[1:]
    description = f"ssl:0:interface=127.0.0.1:certKey={certificate}:privateKey={key}"
    endpoint = endpoints.serverFromString(reactor, description)
else:
    endpoint = endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
endpoint.listen(factory).addCallback(listening)
stdio.StandardIO(UntilInputEnds())
reactor.run()
