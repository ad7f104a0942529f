//! A datagram connection inside one of its callbacks.

use crate::conn::info::Conn;
use crate::udp::socket::PeerShared;
use crate::write_batch::WriteBatch;
use cubenet_core::{CloseReason, ConnectionId, Instant, Link, SendError, Transport};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) struct PeerLink<'a> {
    pub(crate) shared: &'a Arc<PeerShared>,
    pub(crate) batch: &'a RefCell<WriteBatch>,
    pub(crate) now: Instant,
}

impl Link for PeerLink<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.batch.borrow_mut().send_datagram(self.shared, message)
    }

    fn close(&mut self) {
        // Datagrams are gathered in order, and so will be the one that closes.
        self.shared.close();
    }

    fn abort(&mut self) {
        abort(self.batch, self.shared);
    }

    fn is_closed(&self) -> bool {
        !self.shared.info().is_open()
    }

    fn transport(&self) -> Transport {
        Transport::Udp
    }

    fn peer_addr(&self) -> SocketAddr {
        self.shared.info().peer_addr()
    }

    fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr()
    }

    fn id(&self) -> ConnectionId {
        self.shared.info().id
    }

    fn queued(&self) -> usize {
        self.shared.info().queued() + self.batch.borrow().gathered_to(self.shared)
    }

    fn pause(&mut self) {
        self.shared.info().set_paused(true);
    }

    fn resume(&mut self) {
        self.shared.info().set_paused(false);
    }

    fn now(&self) -> Instant {
        self.now
    }
}

/// Aborts a connection from inside a callback of its socket's.
pub(crate) fn abort(batch: &RefCell<WriteBatch>, shared: &PeerShared) {
    batch.borrow_mut().discard_datagrams(shared);
    shared.abort(CloseReason::Local);
}
