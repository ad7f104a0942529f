//! The sending side of a stream connection, which is changed under its lock: what may be sent,
//! and what the system would not take yet.

use crate::conn::info::Conn;
use crate::sys;
use crate::tcp::batch::FLUSH_BYTES;
use crate::tcp::conn::StreamConn;
use crate::tcp::gathered::{Gathered, Spare};
use crate::tcp::layers::{Layers, with_wire};
use crate::user::catch_panic;
use cubenet_core::connection::send;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{
    Action, Backlog, CloseReason, Frame, Instant, Layered, SendError, SendHalf, SendQueue, State,
};
use mio::net::TcpStream;
use std::io::{self, IoSlice};

/// The most pieces of a queue handed to the system in one call.
const MAX_SLICES: usize = 16;

pub(crate) struct SendState {
    pub(crate) half: SendHalf,
    /// What only some connections have, some of the time. Allocated while there is any of it.
    rare: Option<Box<Rare>>,
}

/// What a connection has if the system does not take everything, if it failed, if it has layers, or
/// while a batch of the application's gathers for it.
#[derive(Default)]
pub(crate) struct Rare {
    /// What the system would not take yet.
    queue: SendQueue,
    /// Frames that leave when a batch ends, behind the queue.
    gathered: Gathered,
    /// The error that ended the connection, to be reported by its worker.
    error: Option<io::Error>,
    layers: Option<Layers>,
}

/// What connections need while they gather.
pub(crate) type SpareRares = Spare<Rare>;

impl SendState {
    pub(super) fn new(half: SendHalf, layers: Option<Layers>) -> Self {
        let rare = layers.map(|layers| {
            Box::new(Rare {
                layers: Some(layers),
                ..Rare::default()
            })
        });
        SendState { half, rare }
    }

    /// Bytes that wait: for the system, for the end of a batch, or for the handshake of the layers.
    fn queued(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| {
            let layers = rare.layers.as_ref();
            let pending = layers.map_or(0, |layers| layers.layered.pending());
            rare.queue.len() + rare.gathered.len() + pending
        })
    }

    /// Whether the system has not taken everything.
    fn waits(&self) -> bool {
        let rare = self.rare.as_ref();
        rare.is_some_and(|rare| !rare.queue.is_empty())
    }

    /// Lets go of what there is nothing in any more.
    fn trim(&mut self, spare: Option<&mut SpareRares>) {
        let rare = self.rare.take_if(|rare| {
            rare.queue.is_empty()
                && rare.gathered.len() == 0
                && rare.error.is_none()
                && rare.layers.is_none()
        });
        if let (Some(mut rare), Some(spare)) = (rare, spare) {
            rare.gathered.forget_batch();
            spare.keep(rare);
        }
    }

    /// What is to be done next. To be asked once everything that callbacks sent was handed over.
    pub(super) fn poll_action(&mut self) -> Action {
        self.half.poll_action(self.queued())
    }

    /// Hands framed bytes to the stream, and keeps what it does not take. Returns whether
    /// the worker must look at the connection: something waits that did not before, or it
    /// has closed.
    pub(crate) fn transmit(&mut self, conn: &StreamConn, buf: WriteBuf<'_>) -> bool {
        let mut needs_worker = false;
        if self.rare.is_some() {
            // What a batch has gathered was sent before.
            needs_worker = self.flush_gathered(conn, None);
        }
        if self.half.state() == State::Closed {
            return needs_worker;
        }
        let is_layered = self.rare.as_ref().is_some_and(|rare| rare.layers.is_some());
        needs_worker
            | if is_layered {
                self.transmit_layered(conn, buf)
            } else {
                self.write(conn, buf, 0)
            }
    }

    /// The same for what is to be on the wire, of which layers have added `overhead` bytes.
    fn write(&mut self, conn: &StreamConn, buf: WriteBuf<'_>, overhead: usize) -> bool {
        let state = self.half.state();
        let mut sent = 0;
        let waited = self.waits();
        if state == State::Closed {
            // The last word of a layer: what the stream does not take of it is lost.
            if !waited {
                let _ = write_some(&conn.stream, buf);
            }
            return false;
        }
        if !waited && state.is_connected() {
            match write_some(&conn.stream, buf) {
                Ok(written) if written == buf.len() => return false,
                Ok(written) => sent = written,
                Err(error) => {
                    self.fail(error);
                    return true;
                }
            }
        }
        self.keep(conn, buf, sent, overhead);
        !waited || self.half.state() == State::Closed
    }

    fn keep(&mut self, conn: &StreamConn, buf: WriteBuf<'_>, sent: usize, overhead: usize) {
        let network = conn.network();
        let rare = self.rare.get_or_insert_default();
        buf.queue_rest(&mut rare.queue, sent);
        let queued = self.queued();
        let total = conn.home().add_queued(buf.len() - sent);
        conn.info().set_queued(queued);
        let backlog = Backlog::growing(queued, total).without_overhead(overhead);
        self.half
            .handle_queued(sent > 0, backlog, network.now(), conn.limits());
    }

    /// Writes what waits, as far as the stream takes it.
    pub(super) fn flush(&mut self, conn: &StreamConn, now: Instant) {
        let Some(Rare { queue, .. }) = self.rare.as_deref_mut() else {
            return;
        };
        if queue.is_empty() {
            return;
        }
        let mut progress = 0;
        let outcome = loop {
            if queue.is_empty() {
                break Ok(());
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(queue.chunks()) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            match sys::write(&conn.stream, &slices[..count]) {
                Ok(written) => {
                    queue.advance(written);
                    progress += written;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break Ok(()),
                    io::ErrorKind::Interrupted => {}
                    _ => break Err(error),
                },
            }
        };
        self.trim(None);
        let queued = self.queued();
        conn.home().sub_queued(progress);
        conn.info().set_queued(queued);
        match outcome {
            // What a batch gathers has not been tried: it does not wait for the system.
            Ok(()) => {
                let waiting = queued - self.gathered();
                self.half.handle_written(progress > 0, waiting, now);
            }
            Err(error) => self.fail(error),
        }
    }

    /// Forgets what waits: the connection is over.
    pub(super) fn discard(&mut self, conn: &StreamConn) {
        let queued = self.queued();
        if queued > 0 {
            conn.home().sub_queued(queued);
            conn.info().set_queued(0);
        }
        if let Some(rare) = &mut self.rare {
            rare.queue = SendQueue::new();
            drop(rare.gathered.take());
            if let Some(layers) = &mut rare.layers {
                layers.discard();
            }
        }
    }

    /// The socket failed. The worker reports the error when it closes the connection. What was
    /// being sent is lost, so it must not end in order.
    pub(super) fn fail(&mut self, error: io::Error) {
        self.half.abort(failure(&error));
        let rare = self.rare.get_or_insert_default();
        rare.error.get_or_insert(error);
    }

    /// What the system said when the connection failed, or a layer.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        let rare = self.rare.as_mut()?;
        let error = rare.error.take();
        error.or_else(|| rare.layers.as_mut()?.take_error())
    }

    /// The layers, if there are any.
    pub(super) fn layers(&mut self) -> Option<&mut Layers> {
        self.rare.as_mut()?.layers.as_mut()
    }
}

/// What is gathered for a batch of the application's.
impl SendState {
    /// Gathers a message for this batch. Returns whether the worker must look at the connection, and,
    /// if the message was accepted, whether the batch must remember it.
    pub(crate) fn gather(
        &mut self,
        conn: &StreamConn,
        payload: &[u8],
        batch: u64,
        spare: &mut SpareRares,
    ) -> (bool, Result<bool, SendError>) {
        let (mut needs_worker, header) = self.admit(conn, payload.len(), Some(spare));
        let header = match header {
            Ok(header) => header,
            Err(error) => return (needs_worker, Err(error)),
        };
        let rare = self.rare.get_or_insert_with(|| spare.take());
        let is_new = rare.gathered.push(header, payload, batch, spare);
        let is_long = rare.gathered.len() >= FLUSH_BYTES;
        let total = conn.home().add_queued(header.len() + payload.len());
        conn.info().set_queued(self.queued());
        // A first message is admitted even where there is no room, so it must leave.
        if is_long || total > conn.limits().max_queued_total() {
            needs_worker |= self.flush_gathered(conn, Some(spare));
        }
        (needs_worker, Ok(is_new))
    }

    /// Admits a message. What a batch has gathered is not in its way, only what the system does not
    /// take: it leaves first, if there is no room beside it. Returns whether the worker must look at
    /// the connection, and the answer.
    pub(crate) fn admit(
        &mut self,
        conn: &StreamConn,
        len: usize,
        spare: Option<&mut SpareRares>,
    ) -> (bool, Result<[u8; HEADER_LEN], SendError>) {
        let answer = send::admit(self.half.state(), len, conn.backlog(), conn.limits());
        if answer != Err(SendError::Full) {
            return (false, answer);
        }
        let needs_worker = self.flush_gathered(conn, spare);
        (
            needs_worker,
            self.half.admit(len, conn.backlog(), conn.limits()),
        )
    }

    /// Bytes that are gathered.
    fn gathered(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.gathered.len())
    }

    /// Hands what was gathered to the stream. Returns whether the worker must look at the
    /// connection: something waits that did not before, it closes, or its handler waits for room.
    pub(crate) fn flush_gathered(
        &mut self,
        conn: &StreamConn,
        mut spare: Option<&mut SpareRares>,
    ) -> bool {
        let Some(rare) = self.rare.as_deref_mut() else {
            return false;
        };
        // Of one that has closed it is lost, and counts until that is settled: it must not end in order.
        if rare.gathered.len() == 0 || self.half.state() == State::Closed {
            return false;
        }
        let bytes = rare.gathered.take();
        conn.home().sub_queued(bytes.len());
        let needs_worker = self.transmit(conn, WriteBuf::Gathered(&bytes));
        conn.info().set_queued(self.queued());
        if let Some(spare) = &mut spare {
            spare.keep_buffer(bytes);
        }
        self.trim(spare);
        // While they were gathered, it could not end in order.
        needs_worker || self.half.state() != State::Open || self.half.owes_writable()
    }
}

/// What a stream with layers does besides. Whatever a layer has for the wire is written at once, so
/// that it leaves in order.
impl SendState {
    /// Hands framed bytes to the layers, and what they make of it to the stream.
    fn transmit_layered(&mut self, conn: &StreamConn, buf: WriteBuf<'_>) -> bool {
        let pieces = buf.rest(0);
        let waiting = self.change_layers(conn, |layered, half, wire| {
            let before = layered.pending();
            layered.handle_output(half, &pieces, wire);
            layered.pending() - before
        });
        let waiting = waiting.unwrap_or_default();
        if waiting > 0 {
            // Until the handshake is complete.
            let (queued, network) = (self.queued(), conn.network());
            let total = conn.home().add_queued(waiting);
            conn.info().set_queued(queued);
            let backlog = Backlog::growing(queued, total);
            self.half
                .handle_queued(false, backlog, network.now(), conn.limits());
        }
        self.half.state() == State::Closed || self.waits()
    }

    /// Changes the layers, if there are any, and writes what they have for the wire.
    pub(super) fn change_layers<R>(
        &mut self,
        conn: &StreamConn,
        change: impl FnOnce(&mut Layered, &mut SendHalf, &mut Vec<u8>) -> R,
    ) -> Option<R> {
        // A stream without layers pays this test.
        self.layers()?;
        with_wire(|wire| {
            let layers = self.rare.as_mut()?.layers.as_mut()?;
            let pending = layers.layered.pending();
            let half = &mut self.half;
            let changed = catch_panic(|| change(&mut layers.layered, half, wire));
            // What waited for the handshake is on the wire now, or dropped.
            let gone = pending.saturating_sub(layers.layered.pending());
            let overhead = layers.layered.overhead(wire.len());
            let state = self.half.state();
            if !state.is_connecting() && !state.is_handshaking() {
                layers.end_handshake();
            }
            conn.home().sub_queued(gone);
            let changed = changed.map_err(|panic| {
                // Its worker reports it, without the lock.
                let problem = format!("a layer panicked: {}", panic.text());
                layers.panicked = Some(io::Error::other(problem));
                wire.clear();
                self.half.abort(CloseReason::Panicked);
            });
            if !wire.is_empty() {
                self.write(conn, WriteBuf::Gathered(wire), overhead);
            }
            if gone > 0 {
                conn.info().set_queued(self.queued());
            }
            changed.ok()
        })
    }

    /// When a layer in its handshake takes too long.
    pub(super) fn layered_timeout(&self) -> Instant {
        let layers = self.rare.as_ref().and_then(|rare| rare.layers.as_ref());
        layers.map_or(Instant::NEVER, |layers| {
            layers.layered.poll_timeout(&self.half)
        })
    }

    /// Ends this side's direction of the layers. Returns whether the FIN may follow: nothing waits.
    pub(super) fn close_layers(&mut self, conn: &StreamConn) -> bool {
        self.change_layers(conn, |layered, _, wire| layered.handle_close(wire));
        !self.waits()
    }
}

/// Framed bytes on their way to a stream.
#[derive(Clone, Copy)]
pub(crate) enum WriteBuf<'a> {
    /// Frames that were gathered.
    Gathered(&'a [u8]),
    /// A header and its payload.
    Parts([u8; HEADER_LEN], &'a [u8]),
    /// A frame whose bytes can be shared.
    Frame(&'a Frame),
}

impl WriteBuf<'_> {
    fn len(&self) -> usize {
        match self {
            WriteBuf::Gathered(bytes) => bytes.len(),
            WriteBuf::Parts(header, payload) => header.len() + payload.len(),
            WriteBuf::Frame(frame) => frame.as_bytes().len(),
        }
    }

    /// What is left after the first `sent` bytes, in two pieces.
    fn rest(&self, sent: usize) -> [&[u8]; 2] {
        match self {
            WriteBuf::Gathered(bytes) => [&bytes[sent..], &[]],
            WriteBuf::Frame(frame) => [&frame.as_bytes()[sent..], &[]],
            WriteBuf::Parts(header, payload) => {
                let of_header = sent.min(header.len());
                [&header[of_header..], &payload[sent - of_header..]]
            }
        }
    }

    fn queue_rest(&self, queue: &mut SendQueue, sent: usize) {
        if let WriteBuf::Frame(frame) = self {
            return queue.push_frame(frame, sent);
        }
        for piece in self.rest(sent) {
            queue.push(piece);
        }
    }
}

/// Writes until everything is written or the stream takes no more; returns how much it took.
fn write_some(stream: &TcpStream, buf: WriteBuf<'_>) -> io::Result<usize> {
    let mut sent = 0;
    while sent < buf.len() {
        match sys::write(stream, &buf.rest(sent).map(IoSlice::new)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => sent += written,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => break,
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(sent)
}

/// What an error of a stream means for its connection.
pub(crate) fn failure(error: &io::Error) -> CloseReason {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset};
    match error.kind() {
        ConnectionRefused => CloseReason::Refused,
        // The last is what a peer that vanished becomes when TCP gives up on it.
        ConnectionReset | ConnectionAborted | BrokenPipe | io::ErrorKind::TimedOut => {
            CloseReason::Reset
        }
        _ => CloseReason::Io,
    }
}
