//! What all connections of a network share.

use crate::id::{Place, Serial, Serials};
use crate::tcp::pending_sends::PendingSends;
use cubenet_core::{Instant, Limits, Link, OpenConnections, Transport};

/// Called for each new connection; returns its handler, or `None` to refuse it. May be called many
/// times and shared by several listeners. It is given the connection's [`Link`]; the driver for
/// servers gives a handle.
pub type Accepted<'a, H> = &'a (dyn Fn(&mut dyn Link) -> Option<H> + Send + Sync + 'a);

/// What a network has done so far. Each number counts up and wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Connections that a listener admitted.
    pub accepted: u32,
    /// Connects that were answered.
    pub connected: u32,
    /// Connections that ended, and connects that failed.
    pub closed: u32,
    /// Connections that were refused: by the application, or because there was no room.
    pub refused: u32,
    /// Messages and datagrams delivered.
    pub received: u32,
    /// Datagrams that arrived and were dropped: of peers that were not admitted or cannot be
    /// answered, over the limit, or during a pause.
    pub dropped: u32,
    /// Times a port's datagrams were given up, since none of them left for three seconds,
    /// or for the write stall time, if that is shorter.
    pub stalled: u32,
}

/// What all connections of a network share.
pub(crate) struct Shared<'a> {
    pub(crate) limits: Limits,
    /// The time of this poll, or of this call from outside.
    pub(crate) now: Instant,
    pub(crate) open: OpenConnections,
    /// Accepted streams that one address may have.
    pub(crate) streams_per_address: usize,
    pub(crate) serials: Serials,
    pub(crate) counts: Counts,
    /// Holds what a callback is lent, or what it sends meanwhile.
    pub(crate) scratch: &'a mut [u8],
    pub(crate) pending_sends: PendingSends<'a>,
    /// Timeouts are looked at in this poll.
    pub(crate) timeouts_due: bool,
    /// A timeout began for what is no connection.
    pub(crate) timeout_set: bool,
    /// Something waits for a frame to be sent: a stream whose connection is over, or a datagram
    /// peer for room.
    pub(crate) unsent: bool,
    /// Peers are reached by routes and hardware addresses.
    pub(crate) is_ethernet: bool,
    /// There are datagrams on their way out.
    pub(crate) datagrams: bool,
    /// There is something to do that no frame and no timer announces.
    pub(crate) poll_again: bool,
}

impl Shared<'_> {
    /// It is `now`, or still the moment that it was, if the clock was set back.
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Takes room for one connection more, if there is any.
    pub(crate) fn reserve(&mut self, transport: Transport) -> Option<Serial> {
        let has_room = self.open.try_add(transport, &self.limits);
        has_room.then(|| self.serials.next())
    }

    /// The part of the network that a link needs.
    pub(crate) fn context(&self, place: Place) -> Context<'_> {
        Context {
            limits: &self.limits,
            now: self.now,
            place,
        }
    }
}

/// What a link knows beside its connection.
#[derive(Clone, Copy)]
pub(crate) struct Context<'l> {
    pub(crate) limits: &'l Limits,
    pub(crate) now: Instant,
    pub(crate) place: Place,
}
