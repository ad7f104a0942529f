//! What a handler is handed: a connection and, as far as it can be reached meanwhile, its
//! socket.

use crate::network::shared::Context;
use crate::stack::address;
use crate::tcp::conn::StreamConn;
use crate::tcp::pending_sends::PendingSends;
use core::net::SocketAddr;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{Backlog, CloseReason, ConnectionId, Instant, Link, SendError, Transport};
use smoltcp::socket::tcp;

/// Where a stream's messages go.
pub(crate) enum Output<'l, 's> {
    /// Straight into the transmit ring.
    Ring(&'l mut tcp::Socket<'s>),
    /// Into the scratch, while the socket lends a message out of its receive ring.
    Held(&'l mut Held<'s>),
    /// To where frames wait until the peer has answered.
    PendingSends {
        frames: &'l mut PendingSends<'s>,
        /// Bytes that the transmit ring will hold.
        capacity: usize,
    },
    /// Nowhere: it is over.
    Nowhere,
}

/// Frames that wait for a socket to be given back.
pub(crate) struct Held<'l> {
    pub(crate) frames: &'l mut [u8],
    pub(crate) len: usize,
    /// Bytes in the transmit ring.
    pub(crate) queued: usize,
    /// Bytes that it can hold.
    pub(crate) capacity: usize,
}

impl Held<'_> {
    /// Adds a frame, for which there is room.
    fn push(&mut self, header: [u8; HEADER_LEN], message: &[u8]) {
        let frame = &mut self.frames[self.len..][..HEADER_LEN + message.len()];
        frame[..HEADER_LEN].copy_from_slice(&header);
        frame[HEADER_LEN..].copy_from_slice(message);
        self.len += frame.len();
    }
}

/// A stream, for its handler.
pub(crate) struct StreamLink<'l, 's> {
    pub(crate) conn: &'l mut StreamConn,
    pub(crate) output: Output<'l, 's>,
    pub(crate) context: Context<'l>,
    /// Its slot, as [`PendingSends`] knows it.
    pub(crate) slot: usize,
}

impl StreamLink<'_, '_> {
    /// What waits on the connection, and how much may.
    fn backlog(&self) -> Backlog {
        let (queued, capacity) = match &self.output {
            Output::Ring(socket) => (socket.send_queue(), socket.send_capacity()),
            Output::Held(held) => (held.queued + held.len, held.capacity),
            Output::PendingSends { frames, capacity } => (frames.queued(self.slot), *capacity),
            Output::Nowhere => (0, usize::MAX),
        };
        Backlog::fixed(queued, capacity)
    }
}

impl Link for StreamLink<'_, '_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let len = message.len();
        let backlog = self.backlog();
        let connection = &mut self.conn.connection;
        let header = connection.admit(len, backlog, self.context.limits)?;
        match &mut self.output {
            Output::Ring(socket) => {
                let _ = socket.send_slice(&header);
                let _ = socket.send_slice(message);
            }
            Output::Held(held) => held.push(header, message),
            Output::PendingSends { frames, .. } => {
                if !frames.push(self.slot, header, message) {
                    return Err(connection.send.handle_full());
                }
                return Ok(());
            }
            Output::Nowhere => return Err(SendError::Closed),
        }
        let queued = backlog.own + HEADER_LEN + len;
        self.conn.handle_sent(queued, self.context.now);
        Ok(())
    }

    fn close(&mut self) {
        self.conn.connection.close(self.context.now);
    }

    fn abort(&mut self) {
        self.conn.connection.abort(CloseReason::Local);
    }

    fn is_closed(&self) -> bool {
        !self.conn.connection.state().accepts_messages()
    }

    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    fn peer_addr(&self) -> SocketAddr {
        address(self.conn.peer)
    }

    fn local_addr(&self) -> SocketAddr {
        address(self.conn.local)
    }

    fn id(&self) -> ConnectionId {
        self.conn.serial.id(self.context.place)
    }

    fn queued(&self) -> usize {
        self.backlog().own
    }

    fn pause(&mut self) {
        self.conn.connection.recv.set_paused(true, self.context.now);
    }

    fn resume(&mut self) {
        self.conn
            .connection
            .recv
            .set_paused(false, self.context.now);
    }

    fn now(&self) -> Instant {
        self.context.now
    }
}
