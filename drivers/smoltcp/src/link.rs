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

/// How full the way out is.
struct Room {
    /// Bytes that wait.
    queued: usize,
    /// Bytes that may wait.
    capacity: usize,
    /// Whether the message fits.
    fits: bool,
}

impl StreamLink<'_, '_> {
    /// How full the way out is, for a message of `len` bytes.
    fn room(&self, len: usize) -> Room {
        let (queued, capacity, fits) = match &self.output {
            Output::Ring(socket) => (socket.send_queue(), socket.send_capacity(), true),
            Output::Held(held) => (held.queued + held.len, held.capacity, true),
            Output::Early { frames, capacity } => {
                (frames.queued(self.slot), *capacity, frames.has_room(len))
            }
            Output::Nowhere => (0, usize::MAX, true),
        };
        Room {
            queued,
            capacity,
            fits: fits && queued + HEADER_LEN + len <= capacity,
        }
    }
}

impl Link for StreamLink<'_, '_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let len = message.len();
        let limits = self.context.limits;
        let room = self.room(len);
        let ring = room.capacity - HEADER_LEN;
        if len > ring && len <= limits.max_message && !self.is_closed() {
            return Err(SendError::TooLong { len, limit: ring });
        }
        // What does not fit is refused, as if all that may be queued were.
        let own = if room.fits {
            room.queued
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
            Output::Held(held) => held.push(header, message),
            Output::Early { frames, .. } => {
                frames.push(self.slot, message);
                return Ok(());
            }
            Output::Nowhere => return Err(SendError::Closed),
        }
        let queued = room.queued + HEADER_LEN + len;
        self.ends.queued(self.context.now, queued);
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
        self.room(0).queued
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
        self.flags.is_closed()
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
