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

/// Room for datagrams: one entry for each, and bytes for all together.
pub type DatagramRing<'a> = (&'a mut [PacketMetadata], &'a mut [u8]);

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
