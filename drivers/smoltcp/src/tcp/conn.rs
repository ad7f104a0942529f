//! A stream connection, as its link and its stream see it.

use crate::id::Serial;
use cubenet_core::{Connection, Instant, RingDecoder};
use smoltcp::wire::IpEndpoint;

/// A stream connection: both halves, both addresses.
pub(crate) struct StreamConn {
    pub(crate) connection: Connection<RingDecoder>,
    /// Bytes that lay in the transmit ring at the last look, and were sent since.
    pub(super) queued: u32,
    pub(crate) serial: Serial,
    /// In one byte, since there is a connection of it for each stream.
    flags: u8,
    pub(crate) peer: IpEndpoint,
    pub(crate) local: IpEndpoint,
}

/// The peer has opened it.
const ACCEPTED: u8 = 1;
/// The application has asked for something from outside.
const NEEDS_POLL: u8 = 2;

impl StreamConn {
    fn new(
        connection: Connection<RingDecoder>,
        serial: Serial,
        peer: IpEndpoint,
        local: IpEndpoint,
        flags: u8,
    ) -> Self {
        StreamConn {
            connection,
            queued: 0,
            serial,
            flags: flags | NEEDS_POLL,
            peer,
            local,
        }
    }

    /// One that the peer has opened.
    pub(super) fn accepted(
        serial: Serial,
        peer: IpEndpoint,
        local: IpEndpoint,
        now: Instant,
    ) -> Self {
        let connection = Connection::accepted(RingDecoder::new(), now);
        StreamConn::new(connection, serial, peer, local, ACCEPTED)
    }

    /// One that this side opens.
    pub(super) fn connecting(
        serial: Serial,
        peer: IpEndpoint,
        local: IpEndpoint,
        now: Instant,
    ) -> Self {
        let connection = Connection::connecting(RingDecoder::new(), now);
        StreamConn::new(connection, serial, peer, local, 0)
    }

    /// Whether the peer has opened it.
    pub(super) fn was_accepted(&self) -> bool {
        self.flags & ACCEPTED != 0
    }

    /// Whether this side connects, and the peer has not answered.
    pub(super) fn is_connecting(&self) -> bool {
        self.connection.state().is_connecting()
    }

    /// Whether something was asked of it since the last poll.
    pub(super) fn needs_poll(&self) -> bool {
        self.flags & NEEDS_POLL != 0
    }

    /// Something is asked of it, or has been done.
    pub(super) fn set_needs_poll(&mut self, needs_poll: bool) {
        self.flags &= !NEEDS_POLL;
        self.flags |= if needs_poll { NEEDS_POLL } else { 0 };
    }

    /// So much waits to be acknowledged, after something was sent.
    pub(crate) fn handle_sent(&mut self, queued: usize, now: Instant) {
        self.queued = queued as u32;
        self.connection.send.handle_written(false, queued, now);
    }
}
