//! What the threads of a network share of one connection.
//!
//! The worker that owns a connection reads it and holds the only strong reference to its
//! [`Shared`] part. Others reach that through weak ones, so that a handle which outlives
//! its connection keeps nothing of it open.
//!
//! Whoever sends does so under the lock in here. The worker needs no lock as long as
//! nobody else has a handle: [`Shared::with`].

use crate::address::CompactAddr;
use crate::common::{Common, next_id};
use crate::datagram::DatagramSocket;
use crate::listening::Home;
use crate::seat::SeatState;
use crate::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::{self, Route, Source};
use crate::wake::Wake;
use cubenet_core::{
    Action, Backlog, CloseReason, ConnectionId, DatagramHalf, Frame, Instant, Limits, Reading,
    SendError, SendHalf, SendQueue, State, Transport, connection, frame,
};
use mio::net::TcpStream;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::{Arc, PoisonError};

/// The most pieces of a queue handed to the system in one call.
const MAX_SLICES: usize = 16;

/// A connection, as its worker and the handles of the application see it.
pub(crate) struct Shared {
    pub(crate) core: Core,
    out: Mutex<Out>,
}

/// The part that can be read without the lock.
pub(crate) struct Core {
    pub(crate) wire: Wire,
    peer: CompactAddr,
    pub(crate) id: ConnectionId,
    /// The entry of a stream; the slot of a datagram connection in its socket.
    number: u32,
    /// A copy of the lifecycle's state, changed under the lock.
    state: AtomicU8,
    paused: AtomicBool,
    pub(crate) seat: SeatState,
    /// Whether the worker has been asked to look at it.
    pub(crate) wake: Wake,
    /// Bytes that wait to be sent. A copy for a stream, the count itself for datagrams.
    /// `Limits::max_queued` is checked to fit.
    queued: AtomicU32,
}

/// Where a worker keeps a connection: its own entry, or that of its datagram socket and the
/// slot in there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) entry: u32,
    pub(crate) slot: u32,
}

/// What carries the connection, and the way to its worker.
pub(crate) enum Wire {
    Stream {
        stream: TcpStream,
        /// The worker that owns the connection, and its limits.
        home: Arc<Home>,
    },
    /// Boxed, so that a stream pays nothing for it.
    Datagrams(Box<OnSocket>),
}

/// A datagram connection's share of its socket.
pub(crate) struct OnSocket {
    pub(crate) socket: Arc<DatagramSocket>,
    /// Which of this machine's addresses the peer speaks to, if the socket has several: the
    /// answers must come from there.
    pub(crate) source: Option<Source>,
    /// The largest datagrams that are sent to it in runs: more than the way to it carries in one
    /// piece cannot be.
    pub(crate) max_segment: AtomicU16,
}

/// The sending half: what is changed under the lock.
pub(crate) struct Out {
    pub(crate) half: Half,
    /// What the system would not take yet. Allocated while there is something.
    queue: Option<Box<SendQueue>>,
    /// The error that ended the connection, to be reported by its worker.
    error: Option<io::Error>,
}

/// The core's part of it.
pub(crate) enum Half {
    Stream(SendHalf),
    Datagrams(DatagramHalf),
}

impl Half {
    pub(crate) fn state(&self) -> State {
        match self {
            Half::Stream(half) => half.state(),
            Half::Datagrams(half) => half.state(),
        }
    }

    pub(crate) fn abort(&mut self, reason: CloseReason) {
        match self {
            Half::Stream(half) => half.abort(reason),
            Half::Datagrams(half) => half.abort(reason),
        }
    }

    /// What is to be done next, while so much waits.
    pub(crate) fn poll_action(&mut self, queued: usize) -> Action {
        match self {
            Half::Stream(half) => half.poll_action(queued),
            Half::Datagrams(half) => half.poll_action(queued),
        }
    }

    pub(crate) fn handle_fin_sent(&mut self) {
        match self {
            Half::Stream(half) => half.handle_fin_sent(),
            Half::Datagrams(half) => half.handle_fin_sent(),
        }
    }

    pub(crate) fn poll_writable(&mut self, backlog: Backlog, limits: &Limits) -> bool {
        match self {
            Half::Stream(half) => half.poll_writable(backlog, limits),
            Half::Datagrams(half) => half.poll_writable(backlog, limits),
        }
    }

    fn admit(
        &mut self,
        len: usize,
        backlog: Backlog,
        limits: &Limits,
    ) -> Result<[u8; frame::HEADER_LEN], SendError> {
        match self {
            Half::Stream(half) => half.admit(len, backlog, limits),
            Half::Datagrams(half) => half.admit(len, backlog, limits).map(|()| [0; 2]),
        }
    }

    /// That of a stream.
    pub(crate) fn stream(&mut self) -> Option<&mut SendHalf> {
        match self {
            Half::Stream(half) => Some(half),
            Half::Datagrams(_) => None,
        }
    }

    /// That of a datagram connection.
    pub(crate) fn datagrams(&mut self) -> Option<&mut DatagramHalf> {
        match self {
            Half::Stream(_) => None,
            Half::Datagrams(half) => Some(half),
        }
    }
}

/// Framed bytes on their way to a stream.
#[derive(Clone, Copy)]
pub(crate) enum Outgoing<'a> {
    /// Frames that were gathered.
    Gathered(&'a [u8]),
    /// A header and its payload.
    Parts([u8; frame::HEADER_LEN], &'a [u8]),
    /// A payload whose header is known once it is admitted.
    Payload(&'a [u8]),
    /// A frame whose bytes can be shared.
    Frame(&'a Frame),
}

const STATES: [State; 5] = [
    State::Connecting,
    State::Open,
    State::Draining,
    State::Finishing,
    State::Closed,
];

impl Shared {
    pub(crate) fn new(wire: Wire, peer: SocketAddr, number: u32, half: Half) -> Arc<Self> {
        let core = Core {
            id: next_id(),
            wire,
            peer: peer.into(),
            number,
            state: AtomicU8::new(half.state() as u8),
            paused: AtomicBool::new(false),
            seat: SeatState::new(),
            wake: Wake::new(),
            queued: AtomicU32::new(0),
        };
        let out = Out {
            half,
            queue: None,
            error: None,
        };
        Arc::new(Shared {
            core,
            out: Mutex::new(out),
        })
    }

    /// Does `change` with the sending half, then makes its new state known. Takes no lock
    /// if nobody else can reach the connection.
    pub(crate) fn with<R>(this: &mut Arc<Self>, change: impl FnOnce(&Core, &mut Out) -> R) -> R {
        if let Some(alone) = Arc::get_mut(this) {
            let out = alone.out.get_mut().unwrap_or_else(PoisonError::into_inner);
            let answer = change(&alone.core, out);
            alone.core.publish(out);
            return answer;
        }
        this.locked(change)
    }

    /// The same for those who cannot tell whether they are alone.
    pub(crate) fn locked<R>(&self, change: impl FnOnce(&Core, &mut Out) -> R) -> R {
        let mut out = self.lock();
        let answer = change(&self.core, &mut out);
        self.core.publish(&out);
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        // Nothing in here can be left half done by a panic: the state is copied last.
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends from outside the connection's callbacks: at once if nothing waits.
    pub(crate) fn send(self: &Arc<Self>, payload: &[u8]) -> Result<(), SendError> {
        match &self.core.wire {
            Wire::Stream { .. } => self.send_stream(payload.len(), Outgoing::Payload(payload)),
            Wire::Datagrams(on) => {
                // Under the lock, so that no close datagram can overtake it.
                self.locked(|core, out| {
                    let limits = core.limits();
                    out.half.admit(payload.len(), core.backlog(), limits)?;
                    on.socket.send(self, payload);
                    Ok(())
                })?;
                self.core.common().count_sent(payload.len());
                Ok(())
            }
        }
    }

    /// The same for a frame, whose bytes are shared if they have to wait.
    pub(crate) fn send_frame(self: &Arc<Self>, frame: &Frame) -> Result<(), SendError> {
        match &self.core.wire {
            Wire::Stream { .. } => self.send_stream(frame.payload().len(), Outgoing::Frame(frame)),
            Wire::Datagrams(_) => self.send(frame.payload()),
        }
    }

    fn send_stream(&self, len: usize, outgoing: Outgoing<'_>) -> Result<(), SendError> {
        let needs_worker = self.locked(|core, out| {
            let header = out.half.admit(len, core.backlog(), core.limits())?;
            let outgoing = match outgoing {
                Outgoing::Payload(payload) => Outgoing::Parts(header, payload),
                framed => framed,
            };
            Ok(out.transmit(core, outgoing))
        })?;
        self.core.common().count_sent(len);
        if needs_worker {
            self.core.attend();
        }
        Ok(())
    }

    /// Asks the sending half itself, so that it remembers whom it owes a `writable`.
    pub(crate) fn admit_locked(&self, len: usize) -> Result<[u8; frame::HEADER_LEN], SendError> {
        self.locked(|core, out| out.half.admit(len, core.backlog(), core.limits()))
    }

    /// Delivers what was sent, then closes. The worker must look at it next: it finds that
    /// nothing waits any more, and sends a datagram peer its close datagram, behind whatever
    /// callbacks have gathered.
    pub(crate) fn close(&self) {
        self.locked(|core, out| match &mut out.half {
            Half::Stream(half) => half.close(core.common().now()),
            Half::Datagrams(half) => half.close(),
        });
    }

    /// Has the system reset a stream when it is closed, so that its peer does not take what has
    /// arrived for everything.
    pub(crate) fn reset(&self) {
        if let Wire::Stream { stream, .. } = &self.core.wire {
            let at_once = Some(std::time::Duration::ZERO);
            let _ = socket2::SockRef::from(stream).set_linger(at_once);
        }
    }

    /// The application turned the connection away, after it had sent what is queued and this many
    /// bytes more. Returns how the socket is to be closed.
    pub(crate) fn turn_away(&self, gathered: usize) -> Action {
        self.locked(|core, out| match &mut out.half {
            Half::Stream(half) => half.turn_away(core.queued() + gathered),
            Half::Datagrams(half) => {
                half.abort(CloseReason::Local);
                half.poll_action(0)
            }
        })
    }

    /// Closes at once. The worker must look at it next.
    pub(crate) fn abort(&self, reason: CloseReason) {
        self.locked(|_, out| out.half.abort(reason));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Mostly that has been done; a connection that the application turned away has not had
        // an end of its own.
        let out = self.out.get_mut().unwrap_or_else(PoisonError::into_inner);
        out.discard(&self.core);
    }
}

impl Wire {
    fn home(&self) -> &Arc<Home> {
        match self {
            Wire::Stream { home, .. } => home,
            Wire::Datagrams(on) => &on.socket.home,
        }
    }
}

impl OnSocket {
    fn local_addr(&self) -> SocketAddr {
        let local = self.socket.local;
        match self.source {
            Some(source) => source.with_port(local.port()),
            None => local,
        }
    }
}

impl Core {
    /// Its worker, and its limits.
    pub(crate) fn home(&self) -> &Home {
        self.wire.home()
    }

    /// Its limits: those of its listener, if that has any of its own.
    pub(crate) fn limits(&self) -> &Limits {
        &self.home().limits
    }

    /// What all threads of the network share.
    pub(crate) fn common(&self) -> &Common {
        &self.home().worker.common
    }

    /// Where its worker finds it.
    pub(crate) fn place(&self) -> Place {
        match &self.wire {
            Wire::Stream { .. } => Place {
                entry: self.number,
                slot: 0,
            },
            Wire::Datagrams(on) => Place {
                entry: on.socket.entry(),
                slot: self.number,
            },
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match self.wire {
            Wire::Stream { .. } => Transport::Tcp,
            Wire::Datagrams(_) => Transport::Udp,
        }
    }

    /// The peer's address as the socket knows it.
    pub(crate) fn raw_peer(&self) -> SocketAddr {
        self.peer.into()
    }

    /// Between which addresses datagrams to the peer go.
    pub(crate) fn route(&self) -> Route {
        let source = match &self.wire {
            Wire::Stream { .. } => None,
            Wire::Datagrams(on) => on.source,
        };
        Route {
            to: self.raw_peer(),
            source,
        }
    }

    /// The peer's address as people write it: an IPv4 peer of a dual-stack socket has an
    /// IPv4 address.
    pub(crate) fn peer_addr(&self) -> SocketAddr {
        canonical(self.raw_peer())
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        let local = match &self.wire {
            Wire::Stream { stream, .. } => stream.local_addr().ok(),
            Wire::Datagrams(on) => Some(on.local_addr()),
        };
        canonical(local.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))))
    }

    pub(crate) fn state(&self) -> State {
        STATES[usize::from(self.state.load(Acquire))]
    }

    /// Whether messages may be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.state().accepts_messages()
    }

    /// What is done with the peer's bytes.
    pub(crate) fn reading(&self) -> Reading {
        connection::reading(self.state(), self.is_paused())
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Relaxed)
    }

    /// Returns whether that is new; then the worker must look at it next.
    pub(crate) fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Relaxed) != paused
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Relaxed) as usize
    }

    /// What waits, on it and on all connections.
    pub(crate) fn backlog(&self) -> Backlog {
        Backlog::growing(self.queued(), self.common().queued_total())
    }

    /// Asks the worker to look at the connection.
    pub(crate) fn attend(&self) {
        if self.wake.ask() {
            self.home().worker.attend(self.place(), self.id);
        }
    }

    /// Datagrams of this connection began to wait, or no longer do.
    /// Returns the sum over all connections.
    pub(crate) fn add_queued(&self, bytes: usize) -> usize {
        self.queued.fetch_add(bytes as u32, Relaxed);
        self.common().add_queued(bytes)
    }

    pub(crate) fn sub_queued(&self, bytes: usize) {
        self.queued.fetch_sub(bytes as u32, Relaxed);
        self.common().sub_queued(bytes);
    }

    /// Makes the state known. Released, so that whoever reads it reads no older `queued`.
    fn publish(&self, out: &Out) {
        self.state.store(out.half.state() as u8, Release);
    }
}

impl Out {
    /// Bytes that wait, by the queue itself.
    fn queued(&self, core: &Core) -> usize {
        match &core.wire {
            Wire::Stream { .. } => self.queue.as_ref().map_or(0, |queue| queue.len()),
            Wire::Datagrams(_) => core.queued(),
        }
    }

    /// What is to be done next. To be asked once everything that callbacks sent was handed over.
    pub(crate) fn poll_action(&mut self, core: &Core) -> Action {
        self.half.poll_action(self.queued(core))
    }

    /// Hands framed bytes to the stream, and keeps what it does not take. Returns whether
    /// the worker must look at the connection: something waits that did not before, or it
    /// has closed.
    pub(crate) fn transmit(&mut self, core: &Core, outgoing: Outgoing<'_>) -> bool {
        let state = self.half.state();
        let Wire::Stream { stream, .. } = &core.wire else {
            return false;
        };
        if state == State::Closed {
            return false;
        }
        let mut sent = 0;
        let waited = self.queue.is_some();
        if !waited && state != State::Connecting {
            match write_some(stream, outgoing) {
                Ok(written) if written == outgoing.len() => return false,
                Ok(written) => sent = written,
                Err(error) => {
                    self.fail(error);
                    return true;
                }
            }
        }
        self.keep(core, outgoing, sent);
        !waited || self.half.state() == State::Closed
    }

    fn keep(&mut self, core: &Core, outgoing: Outgoing<'_>, sent: usize) {
        let common = core.common();
        let queue = self.queue.get_or_insert_default();
        outgoing.queue_rest(queue, sent);
        let queued = queue.len();
        let total = common.add_queued(outgoing.len() - sent);
        core.queued.store(queued as u32, Relaxed);
        if let Half::Stream(half) = &mut self.half {
            let backlog = Backlog::growing(queued, total);
            half.handle_queued(sent > 0, backlog, common.now(), core.limits());
        }
    }

    /// Writes what waits, as far as the stream takes it.
    pub(crate) fn flush(&mut self, core: &Core, now: Instant) {
        let Wire::Stream { stream, .. } = &core.wire else {
            return;
        };
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
            match sys::write(stream, &slices[..count]) {
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
        core.common().sub_queued(progress);
        core.queued.store(queued as u32, Relaxed);
        match outcome {
            Ok(()) => {
                if let Half::Stream(half) = &mut self.half {
                    half.handle_written(progress > 0, queued, now);
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Forgets what waits: the connection is over.
    pub(crate) fn discard(&mut self, core: &Core) {
        if let Some(queue) = self.queue.take() {
            core.common().sub_queued(queue.len());
            core.queued.store(0, Relaxed);
        }
    }

    /// The socket failed. The worker reports the error when it closes the connection. What was
    /// being sent is lost, so it must not end in order.
    pub(crate) fn fail(&mut self, error: io::Error) {
        self.half.abort(failure(&error));
        self.error.get_or_insert(error);
    }

    /// What the system said when the connection failed.
    pub(crate) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }
}

impl Outgoing<'_> {
    fn len(&self) -> usize {
        match self {
            Outgoing::Gathered(bytes) => bytes.len(),
            Outgoing::Parts(header, payload) => header.len() + payload.len(),
            Outgoing::Payload(payload) => frame::HEADER_LEN + payload.len(),
            Outgoing::Frame(frame) => frame.as_bytes().len(),
        }
    }

    /// What is left after the first `sent` bytes, in two pieces.
    fn rest(&self, sent: usize) -> [&[u8]; 2] {
        match self {
            Outgoing::Gathered(bytes) | Outgoing::Payload(bytes) => [&bytes[sent..], &[]],
            Outgoing::Frame(frame) => [&frame.as_bytes()[sent..], &[]],
            Outgoing::Parts(header, payload) => {
                let of_header = sent.min(header.len());
                [&header[of_header..], &payload[sent - of_header..]]
            }
        }
    }

    fn queue_rest(&self, queue: &mut SendQueue, sent: usize) {
        if let Outgoing::Frame(frame) = self {
            return queue.push_frame(frame, sent);
        }
        for piece in self.rest(sent) {
            queue.push(piece);
        }
    }
}

/// Writes until everything is written or the stream takes no more; returns how much it took.
fn write_some(stream: &TcpStream, outgoing: Outgoing<'_>) -> io::Result<usize> {
    let mut sent = 0;
    while sent < outgoing.len() {
        match sys::write(stream, &outgoing.rest(sent).map(IoSlice::new)) {
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

/// An IPv4 address that a dual-stack socket shows as IPv6, as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => {
            // The scope is part of a link-local address, the flow label of none.
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into()
        }
        _ => SocketAddr::new(address.ip().to_canonical(), address.port()),
    }
}

impl Common {
    /// A message accepted outside the workers' tallies.
    fn count_sent(&self, len: usize) {
        self.totals.messages_out.fetch_add(1, Relaxed);
        self.totals.bytes_out.fetch_add(len as u64, Relaxed);
    }
}
