//! A datagram peer: its address, and its connection.

use crate::id::Serial;
use core::hash::{Hash, Hasher};
use cubenet_core::{DatagramHalf, State};
use smoltcp::socket::udp;
use smoltcp::wire::{IpAddress, IpEndpoint};

/// A peer's address, and the one of ours that it spoke to.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    pub(crate) endpoint: IpEndpoint,
    pub(crate) local: IpAddress,
}

impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint
    }
}

impl Eq for Remote {}

impl Hash for Remote {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.endpoint.hash(state);
    }
}

impl Remote {
    /// Sends a datagram; `false` if the ring has no room for it.
    pub(crate) fn send(&self, socket: &mut udp::Socket<'_>, datagram: &[u8]) -> bool {
        let mut metadata = udp::UdpMetadata::from(self.endpoint);
        metadata.local_address = Some(self.local);
        socket.send_slice(datagram, metadata).is_ok()
    }
}

/// Whether a peer's connection asks for something to be done.
pub(super) fn wants_poll(half: DatagramHalf) -> bool {
    half.owes_writable() || half.state() != State::Open
}

/// A place for one peer's connection.
#[derive(Debug)]
pub struct Peer<H> {
    pub(super) serial: Serial,
    pub(super) half: DatagramHalf,
    pub(super) handler: Option<H>,
}

impl<H> Peer<H> {
    /// A place that is not used.
    pub const EMPTY: Peer<H> = Peer {
        serial: Serial::NONE,
        half: DatagramHalf::new(),
        handler: None,
    };
}
