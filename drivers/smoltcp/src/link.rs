//! What a handler is handed: a connection and, as far as it can be reached meanwhile, its
//! socket.

use crate::common::Context;
use crate::early::Early;
use crate::port::{Flags, Remote};
use crate::stack::address;
use crate::stream::Ends;
use core::net::SocketAddr;
use cubenet_core::frame::{self, HEADER_LEN};
use cubenet_core::lifecycle::State;
use cubenet_core::send::Backlog;
use cubenet_core::{CloseReason, ConnectionId, Instant, Link, SendError, Transport};
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
    fn push(&mut self, part: &[u8]) {
        self.frames[self.len..][..part.len()].copy_from_slice(part);
        self.len += part.len();
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
    /// Bytes that the transmit ring can hold.
    fn capacity(&self) -> usize {
        match &self.output {
            Output::Ring(socket) => socket.send_capacity(),
            Output::Held(held) => held.capacity,
            Output::Early { capacity, .. } => *capacity,
            Output::Nowhere => usize::MAX,
        }
    }

    fn has_room(&self, len: usize) -> bool {
        let size = HEADER_LEN + len;
        match &self.output {
            Output::Ring(socket) => socket.send_queue() + size <= socket.send_capacity(),
            Output::Held(held) => {
                held.queued + held.len + size <= held.capacity
                    && held.len + size <= held.frames.len()
            }
            Output::Early { frames, capacity } => {
                frames.queued(self.slot) + size <= *capacity && frames.has_room(len)
            }
            Output::Nowhere => false,
        }
    }
}

impl Link for StreamLink<'_, '_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let len = message.len();
        let limits = self.context.limits;
        let ring = self.capacity() - HEADER_LEN;
        let takes = matches!(self.ends.sender.state(), State::Connecting | State::Open);
        if takes && len > ring && len <= limits.max_message {
            return Err(SendError::TooLong { len, limit: ring });
        }
        let queued = self.queued();
        // What has no room is refused, as if all that may be queued were.
        let own = if self.has_room(len) {
            queued
        } else {
            usize::MAX / 2
        };
        let backlog = Backlog { own, total: own };
        self.ends.sender.admit(len, backlog, limits)?;
        let header = frame::header(len).unwrap_or_default();
        match &mut self.output {
            Output::Ring(socket) => {
                let _ = socket.send_slice(&header);
                let _ = socket.send_slice(message);
            }
            Output::Held(held) => {
                held.push(&header);
                held.push(message);
            }
            Output::Early { frames, .. } => {
                frames.push(self.slot, message);
                return Ok(());
            }
            Output::Nowhere => return Err(SendError::Closed),
        }
        self.ends
            .queued(self.context.now, queued + HEADER_LEN + len);
        Ok(())
    }

    fn close(&mut self) {
        let queued = self.queued();
        self.ends.sender.close(self.context.now, queued);
    }

    fn abort(&mut self) {
        self.ends.sender.abort(CloseReason::Local);
    }

    fn is_closed(&self) -> bool {
        !matches!(self.ends.sender.state(), State::Connecting | State::Open)
    }

    fn peer(&self) -> SocketAddr {
        address(self.ends.peer)
    }

    fn local(&self) -> SocketAddr {
        address(self.ends.local)
    }

    fn id(&self) -> ConnectionId {
        self.ends.serial.id(self.context.place)
    }

    fn queued(&self) -> usize {
        match &self.output {
            Output::Ring(socket) => socket.send_queue(),
            Output::Held(held) => held.queued + held.len,
            Output::Early { frames, .. } => frames.queued(self.slot),
            Output::Nowhere => 0,
        }
    }

    fn pause(&mut self) {
        self.ends.pause();
    }

    fn resume(&mut self) {
        self.ends.resume(self.context.now);
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
    pub(crate) flags: &'l mut Flags,
    pub(crate) context: Context<'l>,
}

impl Link for PeerLink<'_, '_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let len = message.len();
        let ring = self.socket.payload_send_capacity();
        let state = if self.is_closed() {
            State::Draining
        } else {
            State::Open
        };
        if state == State::Open && len > ring && len <= self.context.limits.max_datagram {
            return Err(SendError::TooLong { len, limit: ring });
        }
        // Whether it fits is the ring's to say.
        cubenet_core::send::admit(
            state,
            Transport::Udp,
            len,
            Backlog::default(),
            self.context.limits,
        )?;
        if self.remote.send(self.socket, message) {
            return Ok(());
        }
        self.flags.set(Flags::STARVED);
        Err(SendError::Full)
    }

    fn close(&mut self) {
        self.flags.set(Flags::CLOSING);
    }

    fn abort(&mut self) {
        self.flags.set(Flags::ABORTED);
    }

    fn is_closed(&self) -> bool {
        self.flags.has(Flags::CLOSING | Flags::ABORTED)
    }

    fn peer(&self) -> SocketAddr {
        address(self.remote.endpoint)
    }

    fn local(&self) -> SocketAddr {
        SocketAddr::new(self.remote.local.into(), self.socket.endpoint().port)
    }

    fn id(&self) -> ConnectionId {
        self.id
    }

    fn queued(&self) -> usize {
        self.socket.send_queue()
    }

    fn pause(&mut self) {
        self.flags.set(Flags::PAUSED);
    }

    fn resume(&mut self) {
        self.flags.clear(Flags::PAUSED);
    }

    fn now(&self) -> Instant {
        self.context.now
    }
}
