//! A connection inside one of its callbacks.

use crate::conn_info::ConnInfo;
use crate::shared::Shared;
use cubenet_core::{ConnectionId, Frame, Identity, Instant, Link, Reading, SendError, Transport};
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) struct CallbackLink<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) info: ConnInfo,
    pub(crate) identity: &'a Option<Arc<Identity>>,
    pub(crate) now: Instant,
}

impl CallbackLink<'_> {
    /// Whether messages are to be delivered.
    pub(crate) fn is_receiving(&self) -> bool {
        let (_, reading, _) = self.shared.at_point().look(self.info.key);
        reading == Reading::Deliver
    }
}

impl Link for CallbackLink<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.shared.at_point().send(self.info.key, message, None)
    }

    fn send_frame(&mut self, frame: &Frame) -> Result<(), SendError> {
        let mut world = self.shared.at_point();
        world.send(self.info.key, frame.payload(), Some(frame))
    }

    fn close(&mut self) {
        self.shared.at_point().close(self.info.key);
    }

    fn abort(&mut self) {
        self.shared.at_point().abort(self.info.key);
    }

    fn is_closed(&self) -> bool {
        let (state, ..) = self.shared.at_point().look(self.info.key);
        !state.accepts_messages()
    }

    fn transport(&self) -> Transport {
        self.info.transport
    }

    fn peer_addr(&self) -> SocketAddr {
        self.info.peer_addr
    }

    fn local_addr(&self) -> SocketAddr {
        self.info.local_addr
    }

    fn id(&self) -> ConnectionId {
        self.info.key.id
    }

    fn queued(&self) -> usize {
        let (_, _, queued) = self.shared.at_point().look(self.info.key);
        queued
    }

    fn pause(&mut self) {
        self.shared.at_point().set_paused(self.info.key, true);
    }

    fn resume(&mut self) {
        self.shared.at_point().set_paused(self.info.key, false);
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }
}
