//! The sending side of a stream connection, which is changed under its lock: what may be sent,
//! and what the system would not take yet.

use crate::conn::info::Conn;
use crate::sys;
use crate::tcp::conn::StreamConn;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{Action, Backlog, CloseReason, Frame, Instant, SendHalf, SendQueue, State};
use mio::net::TcpStream;
use std::io::{self, IoSlice};

/// The most pieces of a queue handed to the system in one call.
const MAX_SLICES: usize = 16;

pub(crate) struct SendState {
    pub(crate) half: SendHalf,
    /// What the system would not take yet. Allocated while there is something.
    queue: Option<Box<SendQueue>>,
    /// The error that ended the connection, to be reported by its worker.
    error: Option<io::Error>,
}

impl SendState {
    pub(super) fn new(half: SendHalf) -> Self {
        SendState {
            half,
            queue: None,
            error: None,
        }
    }

    /// What is to be done next. To be asked once everything that callbacks sent was handed over.
    pub(super) fn poll_action(&mut self) -> Action {
        let queued = self.queue.as_ref().map_or(0, |queue| queue.len());
        self.half.poll_action(queued)
    }

    /// Hands framed bytes to the stream, and keeps what it does not take. Returns whether
    /// the worker must look at the connection: something waits that did not before, or it
    /// has closed.
    pub(crate) fn transmit(&mut self, conn: &StreamConn, buf: WriteBuf<'_>) -> bool {
        let state = self.half.state();
        if state == State::Closed {
            return false;
        }
        let mut sent = 0;
        let waited = self.queue.is_some();
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
        self.keep(conn, buf, sent);
        !waited || self.half.state() == State::Closed
    }

    fn keep(&mut self, conn: &StreamConn, buf: WriteBuf<'_>, sent: usize) {
        let network = conn.network();
        let queue = self.queue.get_or_insert_default();
        buf.queue_rest(queue, sent);
        let queued = queue.len();
        let total = network.add_queued(buf.len() - sent);
        conn.info().set_queued(queued);
        let backlog = Backlog::growing(queued, total);
        self.half
            .handle_queued(sent > 0, backlog, network.now(), conn.limits());
    }

    /// Writes what waits, as far as the stream takes it.
    pub(super) fn flush(&mut self, conn: &StreamConn, now: Instant) {
        let Some(queue) = &mut self.queue else {
            return;
        };
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
        let queued = queue.len();
        if queued == 0 {
            self.queue = None;
        }
        conn.network().sub_queued(progress);
        conn.info().set_queued(queued);
        match outcome {
            Ok(()) => self.half.handle_written(progress > 0, queued, now),
            Err(error) => self.fail(error),
        }
    }

    /// Forgets what waits: the connection is over.
    pub(super) fn discard(&mut self, conn: &StreamConn) {
        if let Some(queue) = self.queue.take() {
            conn.network().sub_queued(queue.len());
            conn.info().set_queued(0);
        }
    }

    /// The socket failed. The worker reports the error when it closes the connection. What was
    /// being sent is lost, so it must not end in order.
    pub(super) fn fail(&mut self, error: io::Error) {
        self.half.abort(failure(&error));
        self.error.get_or_insert(error);
    }

    /// What the system said when the connection failed.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
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
