//! What a handler is handed: a connection and, as far as it can be reached meanwhile, its
//! socket.

use crate::common::Context;
use crate::early::Early;
use crate::port::Remote;
use crate::stack::address;
use crate::stream::Ends;
use core::net::SocketAddr;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{Backlog, CloseReason, ConnectionId, DatagramHalf, Instant, Link, SendError};
use smoltcp::socket::{tcp, udp};

/// Where a stream's messages go.
pub(crate) enum Output<'l, 's> {
    /// Straight into the transmit ring.
    Ring(&'l mut tcp::Socket<'s>),
    /// Into the scratch, while the socket lends a message out of its receive ring.
    Held(&'l mut Held<'s>),
    /// To where frames wait until the call is answered.
    Early {
        frames: &'l mut Early<'s>,
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
    pub(crate) ends: &'l mut Ends,
    pub(crate) output: Output<'l, 's>,
    pub(crate) context: Context<'l>,
    /// Its slot, as [`Early`] knows it.
    pub(crate) slot: usize,
}

impl StreamLink<'_, '_> {
    /// What waits on the connection, and how much may.
    fn backlog(&self) -> Backlog {
        let (queued, capacity) = match &self.output {
            Output::Ring(socket) => (socket.send_queue(), socket.send_capacity()),
            Output::Held(held) => (held.queued + held.len, held.capacity),
            Output::Early { frames, capacity } => (frames.queued(self.slot), *capacity),
            Output::Nowhere => (0, usize::MAX),
        };
        Backlog::fixed(queued, capacity)
    }
}

impl Link for StreamLink<'_, '_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let len = message.len();
        let backlog = self.backlog();
        let connection = &mut self.ends.connection;
        let header = connection.admit(len, backlog, self.context.limits)?;
        match &mut self.output {
            Output::Ring(socket) => {
                let _ = socket.send_slice(&header);
                let _ = socket.send_slice(message);
            }
            Output::Held(held) => held.push(header, message),
            Output::Early { frames, .. } => {
                if !frames.push(self.slot, header, message) {
                    return Err(connection.send.handle_full());
                }
                return Ok(());
            }
            Output::Nowhere => return Err(SendError::Closed),
        }
        let queued = backlog.own + HEADER_LEN + len;
        self.ends.queued(self.context.now, queued);
        Ok(())
    }

    fn close(&mut self) {
        self.ends.connection.close(self.context.now);
    }

    fn abort(&mut self) {
        self.ends.connection.abort(CloseReason::Local);
    }

    fn is_closed(&self) -> bool {
        !self.ends.connection.state().accepts_messages()
    }

    fn peer_addr(&self) -> SocketAddr {
        address(self.ends.peer)
    }

    fn local_addr(&self) -> SocketAddr {
        address(self.ends.local)
    }

    fn id(&self) -> ConnectionId {
        self.ends.serial.id(self.context.place)
    }

    fn queued(&self) -> usize {
        self.backlog().own
    }

    fn pause(&mut self) {
        self.ends.connection.recv.set_paused(true, self.context.now);
    }

    fn resume(&mut self) {
        self.ends
            .connection
            .recv
            .set_paused(false, self.context.now);
    }

    fn now(&self) -> Instant {
        self.context.now
    }
}

/// A datagram peer, for its handler.
pub(crate) struct PeerLink<'l, 's> {
    pub(crate) socket: &'l mut udp::Socket<'s>,
    pub(crate) remote: Remote,
    pub(crate) id: ConnectionId,
    pub(crate) half: &'l mut DatagramHalf,
    pub(crate) context: Context<'l>,
}

impl Link for PeerLink<'_, '_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        // All peers of the port share its ring, so what waits there is no peer's own.
        let backlog = Backlog::fixed(0, self.socket.payload_send_capacity());
        self.half
            .admit(message.len(), backlog, self.context.limits)?;
        if self.remote.send(self.socket, message) {
            return Ok(());
        }
        Err(self.half.handle_full())
    }

    fn close(&mut self) {
        self.half.close();
    }

    fn abort(&mut self) {
        self.half.abort(CloseReason::Local);
    }

    fn is_closed(&self) -> bool {
        !self.half.state().accepts_messages()
    }

    fn peer_addr(&self) -> SocketAddr {
        address(self.remote.endpoint)
    }

    fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.remote.local.into(), self.socket.endpoint().port)
    }

    fn id(&self) -> ConnectionId {
        self.id
    }

    fn queued(&self) -> usize {
        self.socket.send_queue()
    }

    fn pause(&mut self) {
        self.half.set_paused(true);
    }

    fn resume(&mut self) {
        self.half.set_paused(false);
    }

    fn now(&self) -> Instant {
        self.context.now
    }
}
