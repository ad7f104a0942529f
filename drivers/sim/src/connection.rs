//! The application's handle of a connection.

use crate::conn_info::ConnInfo;
use crate::shared::Shared;
use cubenet_core::{ConnectionId, Frame, Identity, SendError, Transport};
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
    info: ConnInfo,
}

impl Connection {
    pub(crate) fn new(shared: Weak<Shared>, info: ConnInfo) -> Self {
        Connection { shared, info }
    }

    /// Sends `message`, all of it or nothing. While the connection is
    /// connecting, messages are queued until it opens.
    pub fn send(&self, message: impl AsRef<[u8]>) -> Result<(), SendError> {
        let message = message.as_ref();
        let shared = self.shared.upgrade().ok_or(SendError::Closed)?;
        shared.at_point().send(self.info.key, message, None)
    }

    /// Sends a message that was framed once, to go to many.
    pub fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        let shared = self.shared.upgrade().ok_or(SendError::Closed)?;
        let mut world = shared.at_point();
        world.send(self.info.key, frame.payload(), Some(frame))
    }

    /// Delivers what was sent, then closes. Nothing more is received.
    pub fn close(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.at_point().close(self.info.key);
        }
    }

    /// Closes at once. What is queued is lost, and a stream's peer sees a reset.
    pub fn abort(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.at_point().abort(self.info.key);
        }
    }

    /// Whether it was closed from this side or has ended.
    pub fn is_closed(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return true;
        };
        let (state, ..) = shared.at_point().look(self.info.key);
        !state.accepts_messages()
    }

    /// Stops delivering messages. TCP holds up a stream's peer, and its idle timeout does not run.
    /// Datagrams that arrive meanwhile are dropped; a datagram peer that is idle times out all the
    /// same.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Delivers messages again.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        if let Some(shared) = self.shared.upgrade() {
            shared.at_point().set_paused(self.info.key, paused);
        }
    }

    /// Bytes that were accepted and that the socket has not taken, headers included.
    pub fn queued(&self) -> usize {
        let Some(shared) = self.shared.upgrade() else {
            return 0;
        };
        let (_, _, queued) = shared.at_point().look(self.info.key);
        queued
    }

    /// What carries it.
    pub fn transport(&self) -> Transport {
        self.info.transport
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.info.peer_addr
    }

    /// The address of this end.
    pub fn local_addr(&self) -> SocketAddr {
        self.info.local_addr
    }

    /// A number that no other connection of the simulation has had or will have.
    pub fn id(&self) -> ConnectionId {
        self.info.key.id
    }

    /// What the layers of the connection, such as TLS, have learned in their handshake. `None` before
    /// it is complete, once the connection has closed, and without layers.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        let shared = self.shared.upgrade()?;
        shared.at_point().identity(self.info.key)
    }
}

cubenet_core::impl_handle!(Connection, {
    fn identity(&self) -> Option<Arc<Identity>> {
        Connection::identity(self)
    }
});

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConnInfo {
            key,
            transport,
            local_addr,
            peer_addr,
        } = self.info;
        write!(
            f,
            "Connection({} {transport} {local_addr} to {peer_addr})",
            key.id
        )
    }
}
