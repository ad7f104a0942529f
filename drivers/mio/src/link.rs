//! A connection inside one of its callbacks.

use crate::output::Output;
use crate::shared::{Shared, Wire};
use cubenet_core::queue::SHARE_FROM;
use cubenet_core::{CloseReason, ConnectionId, Frame, Instant, Link, SendError};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) struct CallbackLink<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) output: &'a RefCell<Output>,
    pub(crate) now: Instant,
}

impl Link for CallbackLink<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.output.borrow_mut().send(self.shared, message)
    }

    fn send_frame(&mut self, frame: &Frame) -> Result<(), SendError> {
        send_frame(self.output, self.shared, frame)
    }

    fn close(&mut self) {
        close(self.output, self.shared);
    }

    fn abort(&mut self) {
        abort(self.output, self.shared);
    }

    fn is_closed(&self) -> bool {
        !self.shared.core.is_open()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.shared.core.peer_addr()
    }

    fn local_addr(&self) -> SocketAddr {
        self.shared.core.local_addr()
    }

    fn id(&self) -> ConnectionId {
        self.shared.core.id
    }

    fn queued(&self) -> usize {
        self.output.borrow().queued(&self.shared.core)
    }

    fn pause(&mut self) {
        self.shared.core.set_paused(true);
    }

    fn resume(&mut self) {
        self.shared.core.set_paused(false);
    }

    fn now(&self) -> Instant {
        self.now
    }
}

/// Sends a shared frame from inside a callback of its connection.
pub(crate) fn send_frame(
    output: &RefCell<Output>,
    shared: &Arc<Shared>,
    frame: &Frame,
) -> Result<(), SendError> {
    let mut output = output.borrow_mut();
    let long = frame.as_bytes().len() >= SHARE_FROM;
    if !long || !matches!(shared.core.wire, Wire::Stream { .. }) {
        return output.send(shared, frame.payload());
    }
    // Too long to be worth gathering: it goes out by itself, behind what was gathered.
    output.flush_frames(shared);
    shared.send_frame(frame)
}

/// Closes a connection from inside one of its callbacks, or of its socket's.
pub(crate) fn close(output: &RefCell<Output>, shared: &Arc<Shared>) {
    if shared.core.is_open() {
        output.borrow_mut().before_close(shared);
        shared.close();
    }
}

/// Aborts a connection from inside one of its callbacks, or of its socket's.
pub(crate) fn abort(output: &RefCell<Output>, shared: &Shared) {
    output.borrow_mut().discard(shared);
    shared.abort(CloseReason::Local);
}
