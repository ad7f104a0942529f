//! The application's handle of a connection.

use crate::link;
use crate::output::Output;
use crate::shared::Shared;
use cubenet_core::{CloseReason, ConnectionId, Frame, Handle, SendError, Transport};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

/// A handle of a connection, to keep, clone and send to other threads. No call blocks.
///
/// It may outlive its connection. Then it is an inert value: [`is_closed`] is true, sends
/// fail with [`SendError::Closed`], and it holds no descriptor and no buffer.
///
/// Messages that one thread sends arrive in the order it sent them. Those of several
/// threads arrive whole, in some order.
///
/// [`is_closed`]: Connection::is_closed
#[derive(Clone)]
pub struct Connection {
    shared: Weak<Shared>,
    id: ConnectionId,
    transport: Transport,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Connection {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Connection {
            shared: Arc::downgrade(shared),
            id: shared.core.id,
            transport: shared.core.transport(),
            peer: shared.core.peer_addr(),
            local: shared.core.local_addr(),
        }
    }

    /// Sends `message`, all of it or nothing. What the system does not take at once is
    /// queued, up to [`max_queued`](crate::Limits::max_queued) bytes.
    ///
    /// On a connection that is still being called, messages are queued until it opens.
    /// From inside the connection's own callbacks this is the same as sending on the link.
    pub fn send(&self, message: impl AsRef<[u8]>) -> Result<(), SendError> {
        // The application's own code, which may use this connection.
        let message = message.as_ref();
        let shared = self.shared.upgrade().ok_or(SendError::Closed)?;
        match Output::gathering_for(&shared.core) {
            Some(output) => output.borrow_mut().send(&shared, message),
            None => shared.send(message),
        }
    }

    /// Sends a message that was framed once, to go to many. If it has to wait, its bytes
    /// are shared, not copied.
    pub fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        let shared = self.shared.upgrade().ok_or(SendError::Closed)?;
        match Output::gathering_for(&shared.core) {
            Some(output) => link::send_frame(&output, &shared, frame),
            None => shared.send_frame(frame),
        }
    }

    /// Delivers what was sent, then closes. Nothing more is received. Does nothing if the
    /// connection is closed or closing.
    pub fn close(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        if !shared.core.is_open() {
            return;
        }
        match Output::gathering_for(&shared.core) {
            Some(output) => link::close(&output, &shared),
            None => shared.close(),
        }
        shared.core.attend();
    }

    /// Closes at once. What is queued is lost, and a stream's peer sees a reset.
    pub fn abort(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        match Output::gathering_for(&shared.core) {
            Some(output) => link::abort(&output, &shared),
            None => shared.abort(CloseReason::Local),
        }
        shared.core.attend();
    }

    /// Whether it was closed from this side or has ended.
    pub fn is_closed(&self) -> bool {
        let shared = self.shared.upgrade();
        !shared.is_some_and(|shared| shared.core.is_open())
    }

    /// Stops delivering messages. A stream's peer is held up by TCP, and its silence does not
    /// time out. Datagrams that arrive meanwhile are dropped; a datagram peer that is silent
    /// times out all the same. Messages that the worker is delivering right now may still
    /// come.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Delivers messages again.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        if let Some(shared) = self.shared.upgrade()
            && shared.core.set_paused(paused)
        {
            shared.core.attend();
        }
    }

    /// Bytes that were accepted and have not gone out, headers included.
    pub fn queued(&self) -> usize {
        let Some(shared) = self.shared.upgrade() else {
            return 0;
        };
        match Output::gathering_for(&shared.core) {
            Some(output) => output.borrow().queued(&shared.core),
            None => shared.core.queued(),
        }
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

    /// A number that no other connection in this process has had or will have.
    pub fn id(&self) -> ConnectionId {
        self.id
    }
}

impl Handle for Connection {
    fn send(&self, message: &[u8]) -> Result<(), SendError> {
        Connection::send(self, message)
    }

    fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        Connection::send_frame(self, frame)
    }

    fn close(&self) {
        Connection::close(self);
    }

    fn abort(&self) {
        Connection::abort(self);
    }

    fn is_closed(&self) -> bool {
        Connection::is_closed(self)
    }

    fn pause(&self) {
        Connection::pause(self);
    }

    fn resume(&self) {
        Connection::resume(self);
    }

    fn queued(&self) -> usize {
        Connection::queued(self)
    }

    fn transport(&self) -> Transport {
        Connection::transport(self)
    }

    fn peer_addr(&self) -> SocketAddr {
        Connection::peer_addr(self)
    }

    fn local_addr(&self) -> SocketAddr {
        Connection::local_addr(self)
    }

    fn id(&self) -> ConnectionId {
        Connection::id(self)
    }
}

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
