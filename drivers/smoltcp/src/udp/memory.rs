//! The memory of a datagram socket, which the caller gives.

use crate::udp::peer::{Peer, Remote};
use cubenet_core::demux::Slot;
use smoltcp::socket::udp::PacketMetadata;

/// Memory for one port, from [`PortMemory`](crate::PortMemory) or elsewhere.
pub struct PortParts<'a, H> {
    pub(crate) peers: &'a mut [Peer<H>],
    pub(crate) slots: &'a mut [Slot<Remote>],
    pub(crate) heads: &'a mut [u32],
    pub(crate) incoming: DatagramRing<'a>,
    pub(crate) outgoing: DatagramRing<'a>,
}

/// Room for datagrams.
pub struct DatagramRing<'a> {
    pub(crate) entries: &'a mut [PacketMetadata],
    pub(crate) bytes: &'a mut [u8],
}

impl<'a> DatagramRing<'a> {
    /// One of `entries` for each datagram, and `bytes` for all together.
    pub const fn new(entries: &'a mut [PacketMetadata], bytes: &'a mut [u8]) -> Self {
        DatagramRing { entries, bytes }
    }
}

impl<'a, H> PortParts<'a, H> {
    /// As many peers as `peers` and `slots` are long; as many `heads` as peers are right.
    pub const fn new(
        peers: &'a mut [Peer<H>],
        slots: &'a mut [Slot<Remote>],
        heads: &'a mut [u32],
        incoming: DatagramRing<'a>,
        outgoing: DatagramRing<'a>,
    ) -> Self {
        PortParts {
            peers,
            slots,
            heads,
            incoming,
            outgoing,
        }
    }
}
