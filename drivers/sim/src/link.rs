//! A connection inside one of its callbacks.

use crate::world::{Place, Shared};
use cubenet_core::{ConnectionId, Frame, Instant, Link, Reading, SendError};
use std::net::SocketAddr;

pub(crate) struct CallbackLink<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) place: Place,
    pub(crate) id: ConnectionId,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) now: Instant,
}

impl CallbackLink<'_> {
    /// Whether messages are to be delivered.
    pub(crate) fn is_heard(&self) -> bool {
        let (_, reading, _) = self.shared.at_point().look(self.place, self.id);
        reading == Reading::Deliver
    }
}

impl Link for CallbackLink<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let mut world = self.shared.at_point();
        world.send(self.place, self.id, message, None)
    }

    fn send_frame(&mut self, frame: &Frame) -> Result<(), SendError> {
        let mut world = self.shared.at_point();
        world.send(self.place, self.id, frame.payload(), Some(frame))
    }

    fn close(&mut self) {
        self.shared.at_point().close(self.place, self.id);
    }

    fn abort(&mut self) {
        self.shared.at_point().abort(self.place, self.id);
    }

    fn is_closed(&self) -> bool {
        let (state, ..) = self.shared.at_point().look(self.place, self.id);
        !state.accepts_messages()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn id(&self) -> ConnectionId {
        self.id
    }

    fn queued(&self) -> usize {
        let (_, _, queued) = self.shared.at_point().look(self.place, self.id);
        queued
    }

    fn pause(&mut self) {
        self.shared.at_point().set_paused(self.place, self.id, true);
    }

    fn resume(&mut self) {
        self.shared
            .at_point()
            .set_paused(self.place, self.id, false);
    }

    fn now(&self) -> Instant {
        self.now
    }
}
