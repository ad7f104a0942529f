//! The memory of a network, which the caller gives.

use crate::error::Error;
use crate::id::{MAX_PORTS, MAX_STREAMS};
use crate::tcp::listeners::Listening;
use crate::tcp::stream::Stream;
use crate::udp::memory::{DatagramRing, PortParts};
use crate::udp::peer::{Peer, Remote};
use crate::udp::port::Port;
use cubenet_core::demux::Slot;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{LimitError, Limits};
use smoltcp::config::IFACE_NEIGHBOR_CACHE_COUNT;
use smoltcp::iface::SocketStorage;
use smoltcp::phy::Medium;
use smoltcp::socket::udp::PacketMetadata;

/// Everything that a [`Network`](crate::Network) keeps outside of itself.
pub struct Memory<'a, H> {
    pub(crate) sockets: &'a mut [SocketStorage<'a>],
    pub(crate) streams: StreamParts<'a, H>,
    pub(crate) ports: &'a mut [Option<Port<'a, H>>],
    pub(crate) hosts: usize,
    pub(crate) scratch: &'a mut [u8],
    pub(crate) pending_sends: &'a mut [u8],
}

impl<'a, H> Memory<'a, H> {
    /// `sockets`: one for each stream and each port, and one for each socket that the application
    /// adds to the [`Stack`](crate::Stack) for itself.
    ///
    /// `streams`: see [`StreamMemory::lend`].
    ///
    /// `scratch` holds one message while a callback has it, or what the callback sends meanwhile.
    /// At least as long as a transmit ring, as the longest message and its header, and as the
    /// longest datagram. See [`Bytes`].
    ///
    /// `hosts`: how many hosts of an Ethernet link the network talks with at once; all hosts behind
    /// a router count as one, the router. smoltcp's neighbour cache must have a place for each, or
    /// they evict each other, and ARP asks for each again and again. The cache has 8 places, unless
    /// the environment variable `SMOLTCP_IFACE_NEIGHBOR_CACHE_COUNT`, or smoltcp's feature for it,
    /// says otherwise at build time. Of no meaning on other links.
    pub fn new(
        sockets: &'a mut [SocketStorage<'a>],
        streams: StreamParts<'a, H>,
        scratch: &'a mut [u8],
        hosts: usize,
    ) -> Self {
        Memory {
            sockets,
            streams,
            ports: &mut [],
            hosts,
            scratch,
            pending_sends: &mut [],
        }
    }

    /// A place for each port that will be added with
    /// [`Network::add_port`](crate::Network::add_port). Default: none.
    #[must_use]
    pub fn with_ports(mut self, ports: &'a mut [Option<Port<'a, H>>]) -> Self {
        self.ports = ports;
        self
    }

    /// Holds what is sent on connections that are connecting, of all of them together: each message
    /// and 4 bytes. Default: nothing, so that such a `send` answers `Full`; `writable` is called
    /// once the peer has answered.
    #[must_use]
    pub fn with_pending_sends(mut self, memory: &'a mut [u8]) -> Self {
        self.pending_sends = memory;
        self
    }
}

/// The most stream listeners that an id can name.
const MAX_LISTENERS: usize = 32;

impl<H> Memory<'_, H> {
    /// Whether it fits together, and the limits fit it, over a device that carries datagrams of
    /// this length.
    pub(crate) fn check(
        &self,
        limits: &Limits,
        medium: Medium,
        max_datagram: usize,
    ) -> Result<(), Error> {
        let wrong = |problem| Err(Error::Memory { problem });
        let over = |limit, problem| Err(Error::Limits(LimitError::new(limit, problem)));
        let streams = self.streams.slots.len();
        let (receive, transmit) = self.streams.rings();
        let frame = HEADER_LEN + limits.max_message();
        // A window over 64 KB is advertised in larger steps than bytes, and the rest of one is lost.
        let step = 1 << (usize::BITS - receive.leading_zeros()).saturating_sub(16);
        if medium == Medium::Ethernet && self.hosts > IFACE_NEIGHBOR_CACHE_COUNT {
            return wrong(
                "`hosts` is more than smoltcp's neighbour cache has places for: build it with a \
                 larger SMOLTCP_IFACE_NEIGHBOR_CACHE_COUNT",
            );
        }
        if streams > MAX_STREAMS || self.ports.len() > MAX_PORTS {
            return wrong("there are 32,768 streams and 16 ports at most");
        }
        if self.streams.listeners.len() > MAX_LISTENERS {
            return wrong("there are 32 places for listeners at most");
        }
        if self.sockets.len() < streams + self.ports.len() {
            return wrong("`sockets` needs one for each stream and each port");
        }
        if streams > 0 && receive < frame + step - 1 {
            return over(
                "max_message",
                "it and 2 bytes must fit into a receive ring (and 1 more, above 64 KB)",
            );
        }
        if streams > 0 && transmit <= HEADER_LEN {
            return wrong("a transmit ring must be longer than 2 bytes");
        }
        if streams > 0 && self.scratch.len() < transmit.max(frame) {
            return wrong(
                "`scratch` must be as long as a transmit ring, and as `max_message` and 2 bytes",
            );
        }
        if !self.ports.is_empty() && limits.max_datagram() > max_datagram {
            return over("max_datagram", "the device cannot carry it in one frame");
        }
        if !self.ports.is_empty() && limits.max_datagram() > self.scratch.len() {
            return over("max_datagram", "it must fit into `scratch`");
        }
        Ok(())
    }
}

/// `N` bytes for rings, datagrams or the scratch. They begin where a word does: small
/// processors copy nearly twice as fast from there.
#[repr(align(4))]
#[derive(Debug)]
pub struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Bytes<N> {
    /// Memory that is not in use.
    pub const fn new() -> Self {
        Bytes([0; N])
    }

    /// Lends it to a network.
    pub const fn lend(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl<const N: usize> Default for Bytes<N> {
    fn default() -> Self {
        Bytes::new()
    }
}

/// What is to be known of `N` streams, and of `LISTENERS` addresses to listen on.
///
/// The rings are not in it, so that a `static` of them is all zeros, and takes no room in
/// flash.
pub struct StreamMemory<'a, H, const N: usize, const LISTENERS: usize = 1> {
    slots: [Stream<H>; N],
    listeners: [Option<Listening<'a, H>>; LISTENERS],
}

impl<'a, H, const N: usize, const LISTENERS: usize> StreamMemory<'a, H, N, LISTENERS> {
    /// Memory that is not in use.
    pub const fn new() -> Self {
        StreamMemory {
            slots: [const { Stream::new() }; N],
            listeners: [const { None }; LISTENERS],
        }
    }

    /// Lends it to a network, with the rings of all streams; each gets an `N`th.
    ///
    /// A receive ring holds a message until it is whole: it must be two bytes longer than the
    /// longest message that is to be received. A transmit ring holds what the peer has not
    /// confirmed: no message can be sent that is longer than it less two bytes.
    pub fn lend(&'a mut self, receive: &'a mut [u8], transmit: &'a mut [u8]) -> StreamParts<'a, H> {
        StreamParts::new(&mut self.slots, receive, transmit, &mut self.listeners)
    }
}

impl<H, const N: usize, const LISTENERS: usize> Default for StreamMemory<'_, H, N, LISTENERS> {
    fn default() -> Self {
        StreamMemory::new()
    }
}

/// Memory for streams, from [`StreamMemory`] or elsewhere.
pub struct StreamParts<'a, H> {
    pub(crate) slots: &'a mut [Stream<H>],
    pub(crate) receive: &'a mut [u8],
    pub(crate) transmit: &'a mut [u8],
    pub(crate) listeners: &'a mut [Option<Listening<'a, H>>],
}

impl<'a, H> StreamParts<'a, H> {
    /// As many streams as there are slots. The rings are cut out of `receive` and `transmit`,
    /// all of one length. As many addresses can be listened on as `listeners` is long.
    pub const fn new(
        slots: &'a mut [Stream<H>],
        receive: &'a mut [u8],
        transmit: &'a mut [u8],
        listeners: &'a mut [Option<Listening<'a, H>>],
    ) -> Self {
        StreamParts {
            slots,
            receive,
            transmit,
            listeners,
        }
    }

    /// Bytes of each receive ring, and of each transmit ring.
    pub(crate) fn rings(&self) -> (usize, usize) {
        let of_each = |bytes: &[u8]| bytes.len().checked_div(self.slots.len()).unwrap_or(0);
        (of_each(self.receive), of_each(self.transmit))
    }

    /// A network without streams.
    pub const fn none() -> Self {
        StreamParts::new(&mut [], &mut [], &mut [], &mut [])
    }
}

/// What is to be known of one port: a datagram socket with up to `PEERS` peers and room for
/// `DATAGRAMS` datagrams each way.
pub struct PortMemory<H, const PEERS: usize, const DATAGRAMS: usize> {
    peers: [Peer<H>; PEERS],
    slots: [Slot<Remote>; PEERS],
    heads: [u32; PEERS],
    metadata: Metadata<DATAGRAMS>,
}

/// What smoltcp keeps of the datagrams each way. Not all zeros, so it is made when it is lent: a `static`
/// of it takes no room in flash.
#[repr(u32)]
enum Metadata<const DATAGRAMS: usize> {
    NotYet = 0,
    Made([[PacketMetadata; DATAGRAMS]; 2]) = 1,
}

impl<const DATAGRAMS: usize> Metadata<DATAGRAMS> {
    fn make(&mut self) -> [&mut [PacketMetadata]; 2] {
        *self = Metadata::Made([[PacketMetadata::EMPTY; DATAGRAMS]; 2]);
        match self {
            Metadata::Made(metadata) => metadata.each_mut().map(|each| &mut each[..]),
            Metadata::NotYet => [&mut [], &mut []],
        }
    }
}

impl<H, const PEERS: usize, const DATAGRAMS: usize> PortMemory<H, PEERS, DATAGRAMS> {
    /// Memory that is not in use.
    pub const fn new() -> Self {
        PortMemory {
            peers: [const { Peer::EMPTY }; PEERS],
            slots: [Slot::FREE; PEERS],
            heads: [0; PEERS],
            metadata: Metadata::NotYet,
        }
    }

    /// Lends it to a network, with the bytes of the datagrams each way.
    ///
    /// A datagram that finds no room on arrival is lost, like any datagram on its way; one
    /// that finds none on its way out is refused with `Full`.
    pub fn lend<'a>(
        &'a mut self,
        receive: &'a mut [u8],
        transmit: &'a mut [u8],
    ) -> PortParts<'a, H> {
        let [incoming, outgoing] = self.metadata.make();
        PortParts {
            peers: &mut self.peers,
            slots: &mut self.slots,
            heads: &mut self.heads,
            incoming: DatagramRing::new(incoming, receive),
            outgoing: DatagramRing::new(outgoing, transmit),
        }
    }
}

impl<H, const PEERS: usize, const DATAGRAMS: usize> Default for PortMemory<H, PEERS, DATAGRAMS> {
    fn default() -> Self {
        PortMemory::new()
    }
}
