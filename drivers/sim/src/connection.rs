//! The application's handle of a connection.

use crate::world::{Place, Shared};
use cubenet_core::{ConnectionId, Frame, SendError, Transport};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

/// A handle of a connection, to keep, clone and use between the steps of a simulation or in
/// any callback. No call blocks.
///
/// It may outlive its connection. Then it is an inert value: [`is_closed`] is true and sends
/// fail with [`SendError::Closed`].
///
/// [`is_closed`]: Connection::is_closed
#[derive(Clone)]
pub struct Connection {
    shared: Weak<Shared>,
    place: Place,
    id: ConnectionId,
    transport: Transport,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Connection {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        place: Place,
        id: ConnectionId,
        transport: Transport,
        (local, peer): (SocketAddr, SocketAddr),
    ) -> Self {
        Connection {
            shared: Arc::downgrade(shared),
            place,
            id,
            transport,
            local,
            peer,
        }
    }

    /// Sends `message`, all of it or nothing. On a connection that is still being called,
    /// messages are queued until it opens.
    pub fn send(&self, message: impl AsRef<[u8]>) -> Result<(), SendError> {
        let shared = self.shared.upgrade().ok_or(SendError::Closed)?;
        shared
            .at_point()
            .send(self.place, self.id, message.as_ref(), None)
    }

    /// Sends a message that was framed once, to go to many.
    pub fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        let shared = self.shared.upgrade().ok_or(SendError::Closed)?;
        shared
            .at_point()
            .send(self.place, self.id, frame.payload(), Some(frame))
    }

    /// Delivers what was sent, then closes. Nothing more is received.
    pub fn close(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.at_point().close(self.place, self.id);
        }
    }

    /// Closes at once. What is queued is lost, and a stream's peer sees a reset.
    pub fn abort(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.at_point().abort(self.place, self.id);
        }
    }

    /// Whether it was closed from this side or has ended.
    pub fn is_closed(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return true;
        };
        let (state, ..) = shared.at_point().look(self.place, self.id);
        !state.accepts_messages()
    }

    /// Stops delivering messages. A stream's peer is held up, and its silence does not time
    /// out. Datagrams that arrive meanwhile are dropped; a datagram peer that is silent
    /// times out all the same.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Delivers messages again.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        if let Some(shared) = self.shared.upgrade() {
            shared.at_point().set_paused(self.place, self.id, paused);
        }
    }

    /// Bytes that were accepted and that the socket has not taken, headers included.
    pub fn queued(&self) -> usize {
        let Some(shared) = self.shared.upgrade() else {
            return 0;
        };
        let (_, _, queued) = shared.at_point().look(self.place, self.id);
        queued
    }

    /// What carries it.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The address of this end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// A number that no other connection of the simulation has had or will have.
    pub fn id(&self) -> ConnectionId {
        self.id
    }
}

cubenet_core::impl_handle!(Connection);

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection {
            id,
            transport,
            peer,
            local,
            ..
        } = self;
        write!(f, "Connection({id} {transport} {local} to {peer})")
    }
}
