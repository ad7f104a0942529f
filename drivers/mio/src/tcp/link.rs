//! A stream connection inside one of its callbacks.

use crate::conn::info::Conn;
use crate::tcp::shared::StreamShared;
use crate::write_batch::WriteBatch;
use cubenet_core::{
    CloseReason, ConnectionId, Frame, Identity, Instant, Link, SendError, Transport,
};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) struct StreamLink<'a> {
    pub(crate) shared: &'a Arc<StreamShared>,
    pub(crate) batch: &'a RefCell<WriteBatch>,
    pub(crate) now: Instant,
}

impl Link for StreamLink<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.batch.borrow_mut().send(self.shared, message)
    }

    fn send_frame(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.batch.borrow_mut().send_frame(self.shared, frame)
    }

    fn close(&mut self) {
        self.batch.borrow_mut().close(self.shared);
    }

    fn abort(&mut self) {
        abort(self.batch, self.shared);
    }

    fn is_closed(&self) -> bool {
        !self.shared.info().is_open()
    }

    fn transport(&self) -> Transport {
        Transport::Tcp
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

    fn identity(&self) -> Option<Arc<Identity>> {
        self.shared.identity()
    }

    fn queued(&self) -> usize {
        self.shared.info().queued() + self.batch.borrow().gathered()
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

/// Aborts a stream from inside one of its callbacks.
pub(crate) fn abort(batch: &RefCell<WriteBatch>, shared: &StreamShared) {
    batch.borrow_mut().discard_frames(shared);
    shared.abort(CloseReason::Local);
}
