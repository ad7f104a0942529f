//! Stream sockets: a small TCP. Calls are answered or refused, bytes go in segments that can
//! be lost and are sent again, two windows hold the sender back (the receiver's buffer and
//! congestion), and either end can be closed, reset, or vanish.
//!
//! Left out, since no handler can tell: sequence numbers of the handshake, acknowledgements
//! as packets of their own (they are credits that take the latency of the way back),
//! selective acknowledgement, delayed acknowledgement, Nagle's algorithm.

use super::host::HostId;
use super::{Event, Kernel, Key, Notice, Socket, retransmission_timeout};
use crate::error::Refusal;
use crate::trace::Record;
use bytes::Bytes;
use cubenet_core::{CloseReason, Instant, Transport};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes of a segment, at most: an Ethernet frame less the headers.
const SEGMENT: usize = 1_448;
/// Bytes that may be under way before the first is acknowledged (RFC 6928).
const INITIAL_WINDOW: u32 = 10 * SEGMENT as u32;
/// After this many attempts a segment is given up, and the connection with it (as Linux's
/// `tcp_retries2`).
const MAX_ATTEMPTS: u32 = 15;
/// After this many attempts a call is given up (as Linux's `tcp_syn_retries`).
const MAX_CALLS: u32 = 6;
/// How long a socket that was closed goes on sending.
const LINGER: Duration = Duration::from_secs(60);
/// How long a full buffer stays full for no reason.
const HELD_UP: Duration = Duration::from_millis(1);

/// A piece of a stream on its way.
pub(crate) struct Segment {
    to: Key,
    from: Key,
    /// Bytes of the stream before it.
    at: u64,
    bytes: Bytes,
    /// Whether the stream ends behind it.
    end: bool,
    attempt: u32,
}

pub(crate) struct ListenSocket {
    pub(crate) host: HostId,
    port: u16,
    max_backlog: usize,
    /// Calls that were answered and not accepted.
    backlog: VecDeque<Key>,
}

pub(crate) struct StreamSocket {
    pub(crate) host: HostId,
    port: u16,
    remote: SocketAddr,
    remote_host: HostId,
    phase: Phase,
    /// Who answers its call; a call that is made again is answered by the same.
    answered: Option<Key>,
    /// It has its port to itself, and does not share a listener's.
    owns_port: bool,
    /// It counts as a descriptor of its host.
    accepted: bool,
    /// Nobody owns it any more; it only sends what is left.
    orphan: bool,
    failed: Option<CloseReason>,
    out: Outgoing,
    inc: Incoming,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Calling { attempt: u32 },
    Open(Key),
}

/// What is sent.
struct Outgoing {
    unsent: VecDeque<u8>,
    /// Bytes sent so far.
    sent: u64,
    /// Bytes sent that the peer has not read.
    outstanding: u32,
    /// When the peer's word comes that it has read this many.
    credits: VecDeque<(Instant, u32)>,
    /// The send buffer.
    capacity: u32,
    /// The peer's receive buffer.
    window: u32,
    congestion_window: u32,
    slow_start_threshold: u32,
    /// Losses among the bytes before this have been answered.
    recovered: u64,
    end: End,
    /// The owner waits for room.
    wanted: bool,
    dirty: bool,
    /// When it is looked at again.
    armed: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    None,
    Asked,
    Sent,
}

/// What is received.
struct Incoming {
    /// Bytes that have come in order.
    expected: u64,
    /// What came before its turn.
    early: BTreeMap<u64, Segment>,
    arrived: VecDeque<Bytes>,
    unread: usize,
    ended: bool,
    stalled_until: Instant,
}

/// What a read gave.
pub(crate) enum Read {
    Bytes(Bytes),
    Nothing,
    /// The peer ended its direction.
    End,
    Failed(CloseReason),
}

impl Outgoing {
    fn new(capacity: u32, window: u32) -> Self {
        Outgoing {
            unsent: VecDeque::new(),
            sent: 0,
            outstanding: 0,
            credits: VecDeque::new(),
            capacity,
            window,
            congestion_window: INITIAL_WINDOW,
            slow_start_threshold: u32::MAX,
            recovered: 0,
            end: End::None,
            wanted: false,
            dirty: false,
            armed: Instant::NEVER,
        }
    }

    /// Takes the credits that have come.
    fn retire(&mut self, now: Instant) {
        while let Some((at, bytes)) = self.credits.front().copied() {
            if at > now {
                return;
            }
            self.credits.pop_front();
            self.outstanding = self.outstanding.saturating_sub(bytes);
            let window = self.congestion_window;
            let grown = if window < self.slow_start_threshold {
                bytes
            } else {
                (u64::from(bytes) * SEGMENT as u64 / u64::from(window)) as u32
            };
            self.congestion_window = window.saturating_add(grown).min(1 << 24);
        }
        if self.credits.is_empty() && self.outstanding == 0 {
            // An idle connection holds no buffer.
            self.credits = VecDeque::new();
        }
    }

    fn room(&self) -> usize {
        (self.capacity as usize).saturating_sub(self.unsent.len() + self.outstanding as usize)
    }

    /// A segment was lost. Returns when it is sent again.
    fn lost(&mut self, segment: &Segment, round_trip: Duration) -> Duration {
        let timeout = retransmission_timeout(segment.attempt).max(round_trip * 2);
        let half = (self.outstanding / 2).max(2 * SEGMENT as u32);
        if segment.attempt > 0 || self.outstanding < 4 * SEGMENT as u32 {
            self.slow_start_threshold = half;
            self.congestion_window = SEGMENT as u32;
            return timeout;
        }
        // Enough comes behind it to tell the sender soon.
        if segment.at >= self.recovered {
            self.slow_start_threshold = half;
            self.congestion_window = half;
            self.recovered = self.sent;
        }
        round_trip
    }
}

impl Incoming {
    fn new() -> Self {
        Incoming {
            expected: 0,
            early: BTreeMap::new(),
            arrived: VecDeque::new(),
            unread: 0,
            ended: false,
            stalled_until: Instant::ZERO,
        }
    }

    fn take(&mut self, segment: Segment) -> usize {
        self.expected += segment.bytes.len() as u64;
        self.unread += segment.bytes.len();
        self.ended |= segment.end;
        let len = segment.bytes.len();
        if len > 0 {
            self.arrived.push_back(segment.bytes);
        }
        len
    }
}

impl StreamSocket {
    fn peer(&self) -> Option<Key> {
        match self.phase {
            Phase::Open(peer) => Some(peer),
            Phase::Calling { .. } => None,
        }
    }
}

impl Kernel {
    fn stream(&mut self, key: Key) -> Option<&mut StreamSocket> {
        match self.socket(key)? {
            Socket::Stream(socket) => Some(socket),
            _ => None,
        }
    }

    // What an owner asks for.

    /// Listens for streams.
    pub(crate) fn listen(
        &mut self,
        host: HostId,
        port: u16,
        max_backlog: usize,
    ) -> Result<(Key, SocketAddr), Refusal> {
        let port = self.host_mut(host).take_port(Transport::Tcp, port)?;
        let key = self.insert(Socket::Listen(Box::new(ListenSocket {
            host,
            port,
            max_backlog,
            backlog: VecDeque::new(),
        })));
        self.host_mut(host).bind(Transport::Tcp, port, key.slot);
        Ok((key, self.host(host).at(port)))
    }

    /// Begins a call.
    pub(crate) fn call(&mut self, host: HostId, to: SocketAddr) -> Result<Key, Refusal> {
        let port = self.host_mut(host).take_port(Transport::Tcp, 0)?;
        let remote_host = self.host_at(to.ip());
        let capacity = self.host(host).stream_buffer as u32;
        let key = self.insert(Socket::Stream(Box::new(StreamSocket {
            host,
            port,
            remote: to,
            remote_host,
            phase: Phase::Calling { attempt: 0 },
            answered: None,
            owns_port: true,
            accepted: true,
            orphan: false,
            failed: None,
            out: Outgoing::new(capacity, capacity),
            inc: Incoming::new(),
        })));
        self.send_call(key);
        Ok(key)
    }

    /// Between which addresses a stream goes: its own, its peer's.
    pub(crate) fn ends(&mut self, key: Key) -> Option<(SocketAddr, SocketAddr)> {
        let socket = self.stream(key)?;
        let (host, port, remote) = (socket.host, socket.port, socket.remote);
        Some((self.host(host).at(port), remote))
    }

    /// The next call that waits, if there is one.
    pub(crate) fn accept(&mut self, listener: Key) -> Result<Option<Key>, Refusal> {
        let Some(Socket::Listen(socket)) = self.socket(listener) else {
            return Ok(None);
        };
        let host = socket.host;
        if socket.backlog.is_empty() {
            return Ok(None);
        }
        let at = &self.hosts[host.0 as usize];
        let rate = at.faults.accept_failure;
        if at.descriptors >= at.max_descriptors || self.random.chance(rate) {
            self.traffic.accept_failed += 1;
            return Err(Refusal::NoDescriptor);
        }
        let Some(Socket::Listen(socket)) = self.socket(listener) else {
            return Ok(None);
        };
        let accepted = socket.backlog.pop_front();
        if let Some(stream) = accepted.and_then(|key| self.stream(key)) {
            stream.accepted = true;
            self.host_mut(host).descriptors += 1;
        }
        Ok(accepted)
    }

    /// Writes `parts`, as far as there is room. Whoever is given less than all is told when
    /// there is room again.
    pub(crate) fn write(&mut self, key: Key, parts: &[&[u8]]) -> Result<usize, CloseReason> {
        let now = self.now;
        let Some(host) = self.host_of(key) else {
            return Err(CloseReason::Reset);
        };
        let faults = &self.hosts[host.0 as usize].faults;
        let (full, partial) = (faults.full_buffer, faults.partial_write);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut most = len;
        if self.random.chance(full) {
            most = 0;
        } else if len > 1 && self.random.chance(partial) {
            most = 1 + self.random.below(len as u64 - 1) as usize;
        }
        let held_up = most < len;
        self.traffic.held_up += u64::from(held_up);
        let Some(socket) = self.stream(key) else {
            return Err(CloseReason::Reset);
        };
        if let Some(reason) = socket.failed {
            return Err(reason);
        }
        let out = &mut socket.out;
        out.retire(now);
        let taken = most.min(out.room());
        let mut left = taken;
        for part in parts {
            let piece = &part[..left.min(part.len())];
            out.unsent.extend(piece);
            left -= piece.len();
        }
        out.wanted |= taken < len;
        if taken > 0 && !out.dirty {
            out.dirty = true;
            self.dirty.push(key);
        }
        if held_up {
            self.events.push(now.after(HELD_UP), Event::Transmit(key));
        } else if taken < len {
            self.arm(key);
        }
        Ok(taken)
    }

    /// Reads what has arrived, or a part of it.
    pub(crate) fn read(&mut self, key: Key) -> Read {
        let now = self.now;
        let Some(host) = self.host_of(key) else {
            return Read::Failed(CloseReason::Reset);
        };
        let short_read = self.hosts[host.0 as usize].faults.short_read;
        let short = self.random.chance(short_read);
        let Some(Socket::Stream(socket)) = self.socket(key) else {
            return Read::Failed(CloseReason::Reset);
        };
        if let Some(reason) = socket.failed {
            return Read::Failed(reason);
        }
        if socket.inc.stalled_until > now {
            return Read::Nothing;
        }
        let Some(mut bytes) = socket.inc.arrived.pop_front() else {
            socket.inc.arrived = VecDeque::new();
            return if socket.inc.ended {
                Read::End
            } else {
                Read::Nothing
            };
        };
        if short && bytes.len() > 1 {
            let at = 1 + self.random.below(bytes.len() as u64 - 1) as usize;
            let rest = bytes.split_off(at);
            if let Some(socket) = self.stream(key) {
                socket.inc.arrived.push_front(rest);
            }
        }
        let Some(socket) = self.stream(key) else {
            return Read::Nothing;
        };
        socket.inc.unread -= bytes.len();
        if let Some(peer) = socket.peer() {
            self.credit(peer, key, bytes.len() as u32, 0);
        }
        Read::Bytes(bytes)
    }

    /// Until when the reader of a stream that has something to read stands still.
    pub(crate) fn stalled_until(&mut self, key: Key) -> Instant {
        let socket = self.stream(key).filter(|socket| socket.inc.unread > 0);
        socket.map_or(Instant::ZERO, |socket| socket.inc.stalled_until)
    }

    /// Ends our direction, behind what was written.
    pub(crate) fn shutdown(&mut self, key: Key) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        if socket.out.end == End::None {
            socket.out.end = End::Asked;
            self.transmit(key);
        }
    }

    /// Gives a socket up. What was written still goes out, unless it is to be `reset` or
    /// leaves something unread.
    pub(crate) fn close(&mut self, key: Key, reset: bool) {
        let now = self.now;
        match self.socket(key) {
            Some(Socket::Listen(_)) => return self.close_listener(key),
            Some(Socket::Stream(_)) => {}
            Some(Socket::Datagrams(_)) => return self.close_datagrams(key),
            None => return,
        }
        let Some(socket) = self.stream(key) else {
            return;
        };
        let unread = socket.inc.unread > 0;
        let calling = matches!(socket.phase, Phase::Calling { .. });
        if calling || socket.failed.is_some() || reset || unread {
            return self.reset(key);
        }
        socket.orphan = true;
        self.shutdown(key);
        self.events.push(now.after(LINGER), Event::Forget(key));
        self.forget_if_done(key);
    }

    /// Removes a stream and tells its peer, if that can be reached.
    fn reset(&mut self, key: Key) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        let (host, remote_host) = (socket.host, socket.remote_host);
        let peer = socket.peer().filter(|_| socket.failed.is_none());
        self.drop_stream(key);
        if let Some(peer) = peer {
            self.send_reset(host, remote_host, key, peer);
        }
    }

    /// Tells `to` that its connection with `by` is over.
    fn send_reset(&mut self, host: HostId, remote_host: HostId, by: Key, to: Key) {
        if let Some(at) = self.reaches(host, remote_host) {
            let (by, reason) = (Some(by), CloseReason::Reset);
            self.events.push(at, Event::Fail { to, by, reason });
        }
    }

    fn drop_stream(&mut self, key: Key) {
        let Some(Socket::Stream(socket)) = self.remove(key) else {
            return;
        };
        let host = self.host_mut(socket.host);
        if socket.owns_port {
            host.release_port(Transport::Tcp, socket.port);
        } else if socket.accepted {
            host.release_descriptor();
        }
    }

    fn close_listener(&mut self, key: Key) {
        let Some(Socket::Listen(listener)) = self.remove(key) else {
            return;
        };
        for waiting in listener.backlog {
            self.reset(waiting);
        }
        let host = self.host_mut(listener.host);
        host.release_port(Transport::Tcp, listener.port);
    }

    pub(crate) fn forget(&mut self, key: Key) {
        self.drop_stream(key);
    }

    /// An orphan is done once the peer has everything, the end included.
    fn forget_if_done(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key).filter(|socket| socket.orphan) else {
            return;
        };
        socket.out.retire(now);
        if socket.out.end == End::Sent && socket.out.outstanding == 0 {
            self.drop_stream(key);
        }
    }

    // Calls.

    fn send_call(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        let Phase::Calling { attempt } = socket.phase else {
            return;
        };
        if socket.failed.is_some() {
            return;
        }
        if attempt >= MAX_CALLS {
            let reason = CloseReason::Timeout(cubenet_core::Timeout::Connect);
            return self.fail(key, reason);
        }
        socket.phase = Phase::Calling {
            attempt: attempt + 1,
        };
        let (from, to, remote) = (socket.host, socket.remote_host, socket.remote);
        self.traffic.packets += 1;
        match self.paths.carry(from, to, 60, now, &mut self.random) {
            Some(at) => self.events.push(
                at,
                Event::Call {
                    to: remote,
                    from: key,
                },
            ),
            None => self.traffic.lost += 1,
        }
        let again = now.after(Duration::from_secs(1 << attempt));
        self.events.push(again, Event::CallAgain(key));
    }

    pub(crate) fn call_again(&mut self, key: Key) {
        self.send_call(key);
    }

    /// A call has arrived.
    pub(crate) fn called(&mut self, to: SocketAddr, from: Key) {
        self.record(Record::Call, from, &[]);
        let host = self.host_at(to.ip());
        let Some((caller_address, _)) = self.ends(from) else {
            return;
        };
        let Some(Socket::Stream(caller)) = self.socket(from) else {
            return;
        };
        let (caller_host, window) = (caller.host, caller.out.capacity);
        let calling = matches!(caller.phase, Phase::Calling { .. }) && caller.failed.is_none();
        let answered = caller.answered;
        if !calling || !self.host(host).alive {
            return;
        }
        if let Some(by) = answered
            && self.stream(by).is_some()
        {
            return self.answer(host, caller_host, by, from);
        }
        let rate = self.paths.conditions(caller_host, host).refuse;
        let listener = self.listener(Transport::Tcp, to);
        let refused = self.random.chance(rate);
        self.traffic.refused += u64::from(refused && listener.is_some());
        let listener = listener.filter(|_| !refused);
        let Some((listener, Socket::Listen(socket))) =
            listener.and_then(|key| Some((key, self.socket(key)?)))
        else {
            if let Some(at) = self.reaches(host, caller_host) {
                let reason = CloseReason::Refused;
                let (to, by) = (from, None);
                self.events.push(at, Event::Fail { to, by, reason });
            }
            return;
        };
        if socket.backlog.len() >= socket.max_backlog {
            return;
        }
        let capacity = self.host(host).stream_buffer as u32;
        let accepted = self.insert(Socket::Stream(Box::new(StreamSocket {
            host,
            port: to.port(),
            remote: caller_address,
            remote_host: caller_host,
            phase: Phase::Open(from),
            answered: None,
            owns_port: false,
            accepted: false,
            orphan: false,
            failed: None,
            out: Outgoing::new(capacity, window),
            inc: Incoming::new(),
        })));
        if let Some(Socket::Listen(socket)) = self.socket(listener) {
            socket.backlog.push_back(accepted);
        }
        self.notify(listener, Notice::Acceptable);
        if let Some(caller) = self.stream(from) {
            caller.answered = Some(accepted);
        }
        self.answer(host, caller_host, accepted, from);
    }

    /// Answers a call. If the answer is lost, the caller calls again.
    fn answer(&mut self, host: HostId, caller_host: HostId, by: Key, to: Key) {
        match self.reaches(host, caller_host) {
            Some(at) => self.events.push(at, Event::Answer { to, by }),
            None => self.traffic.lost += 1,
        }
    }

    /// Our call was answered.
    pub(crate) fn answered(&mut self, to: Key, by: Key) {
        self.record(Record::Answer, to, &[]);
        let window = self.stream(by).map(|socket| socket.out.capacity);
        match self.stream(to) {
            Some(socket) if socket.phase == Phase::Open(by) => {}
            Some(socket) if socket.peer().is_none() && socket.failed.is_none() => {
                socket.phase = Phase::Open(by);
                socket.out.window = window.unwrap_or(socket.out.window);
                self.notify(to, Notice::Connected);
            }
            // It gave up meanwhile.
            _ => {
                let Some(socket) = self.stream(by) else {
                    return;
                };
                let (host, remote) = (socket.host, socket.remote_host);
                self.send_reset(remote, host, to, by);
            }
        }
    }

    // Segments.

    /// Sends what the windows allow, and sees to it that the rest follows.
    pub(crate) fn transmit(&mut self, key: Key) {
        let now = self.now;
        loop {
            let Some(socket) = self.stream(key) else {
                return;
            };
            let out = &mut socket.out;
            out.dirty = false;
            if out.armed <= now {
                out.armed = Instant::NEVER;
            }
            out.retire(now);
            let Phase::Open(to) = socket.phase else {
                return;
            };
            if socket.failed.is_some() {
                return;
            }
            let allowed = out.window.min(out.congestion_window);
            let free = allowed.saturating_sub(out.outstanding) as usize;
            let len = out.unsent.len().min(SEGMENT).min(free);
            let end = len == out.unsent.len() && out.end == End::Asked;
            if len == 0 && !end {
                break;
            }
            let bytes: Vec<u8> = out.unsent.drain(..len).collect();
            let bytes = Bytes::from(bytes);
            if out.unsent.is_empty() {
                // An idle connection holds no buffer.
                out.unsent = VecDeque::new();
            }
            let at = out.sent;
            out.sent += len as u64;
            // The end counts as a byte, so that its arrival shows.
            out.outstanding += len as u32 + u32::from(end);
            if end {
                out.end = End::Sent;
            }
            self.send_segment(Segment {
                to,
                from: key,
                at,
                bytes,
                end,
                attempt: 0,
            });
        }
        self.tell_writable(key);
        self.arm(key);
    }

    /// Whoever waits for room is told when there is some.
    fn tell_writable(&mut self, key: Key) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        if socket.out.wanted && socket.out.room() > 0 {
            socket.out.wanted = false;
            self.notify(key, Notice::Writable);
        }
    }

    /// Looks at a socket again when the next credit comes, if that matters.
    fn arm(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        let out = &mut socket.out;
        let waits = out.wanted || !out.unsent.is_empty() || out.end != End::None;
        let Some((at, _)) = out.credits.front().copied().filter(|_| waits) else {
            return self.forget_if_done(key);
        };
        // A credit that has come and was not taken yet is due now.
        let at = at.max(now);
        if at < out.armed {
            out.armed = at;
            self.events.push(at, Event::Transmit(key));
        }
    }

    fn send_segment(&mut self, segment: Segment) {
        let now = self.now;
        let Some(socket) = self.stream(segment.from) else {
            return;
        };
        let (from, to) = (socket.host, socket.remote_host);
        let conditions = self.paths.conditions(from, to);
        let (reset, half_open) = (conditions.reset, conditions.half_open);
        self.traffic.packets += 1;
        if self.random.chance(half_open) {
            self.traffic.reset += 1;
            return self.fail(segment.from, CloseReason::Reset);
        }
        if self.random.chance(reset) {
            self.traffic.reset += 1;
            self.send_reset(from, to, segment.from, segment.to);
            return self.fail(segment.from, CloseReason::Reset);
        }
        let len = segment.bytes.len() + 52;
        match self.paths.carry(from, to, len, now, &mut self.random) {
            Some(at) => self.events.push(at, Event::Segment(segment)),
            None => self.segment_lost(segment),
        }
    }

    fn segment_lost(&mut self, mut segment: Segment) {
        let now = self.now;
        self.traffic.lost += 1;
        self.record(Record::Lost, segment.from, &[]);
        let Some(socket) = self.stream(segment.from) else {
            return;
        };
        let (from, to) = (socket.host, socket.remote_host);
        let latency = self.paths.conditions(from, to).latency;
        let Some(socket) = self.stream(segment.from) else {
            return;
        };
        let wait = socket.out.lost(&segment, latency * 2);
        segment.attempt += 1;
        self.events.push(now.after(wait), Event::SendAgain(segment));
    }

    pub(crate) fn send_again(&mut self, segment: Segment) {
        if segment.attempt >= MAX_ATTEMPTS {
            return self.fail(segment.from, CloseReason::Reset);
        }
        if self.stream(segment.from).is_some() {
            self.traffic.sent_again += 1;
            self.send_segment(segment);
        }
    }

    pub(crate) fn arrived(&mut self, segment: Segment) {
        self.record(Record::Segment, segment.to, &segment.bytes);
        let (key, from) = (segment.to, segment.from);
        let Some(socket) = self.stream(key).filter(|socket| socket.failed.is_none()) else {
            return self.arrived_nowhere(segment);
        };
        if socket.orphan && !segment.bytes.is_empty() {
            // Nobody will read it, and the peer has to know.
            return self.reset(key);
        }
        if socket.peer() != Some(from) {
            // It came before the answer did; it comes again.
            return self.segment_lost(segment);
        }
        let inc = &mut socket.inc;
        if segment.at != inc.expected {
            inc.early.insert(segment.at, segment);
            return;
        }
        let mut ends = segment.end;
        inc.take(segment);
        while let Some(next) = inc.early.remove(&inc.expected) {
            ends |= next.end;
            inc.take(next);
        }
        let (host, unread) = (socket.host, socket.inc.unread);
        if ends {
            self.credit(from, key, 1, 0);
        }
        self.tell_readable(key, host, unread);
        self.forget_if_done(key);
    }

    /// A reader may stand still for a while first.
    fn tell_readable(&mut self, key: Key, host: HostId, unread: usize) {
        let now = self.now;
        let faults = &self.hosts[host.0 as usize].faults;
        let (rate, longest) = (faults.stall, faults.stall_for);
        if unread > 0 && self.random.chance(rate) {
            let until = now.after(self.random.duration(longest));
            self.traffic.stalled += 1;
            if let Some(socket) = self.stream(key) {
                socket.inc.stalled_until = socket.inc.stalled_until.max(until);
            }
            return self
                .events
                .push(until, Event::Notice(key, Notice::Readable));
        }
        self.notify(key, Notice::Readable);
    }

    /// The socket that a segment was for is gone: nobody is there, or its host says so.
    fn arrived_nowhere(&mut self, segment: Segment) {
        let Some(sender) = self.stream(segment.from) else {
            return;
        };
        let (from, to) = (sender.host, sender.remote_host);
        if self.host(to).alive {
            self.send_reset(to, from, segment.to, segment.from);
        } else {
            self.segment_lost(segment);
        }
    }

    /// `by` has read what `to` sent. The word takes its time, and is given again if the way
    /// is cut.
    pub(crate) fn credit(&mut self, to: Key, by: Key, bytes: u32, attempt: u32) {
        let now = self.now;
        let Some(reader) = self.stream(by) else {
            return;
        };
        let (from, remote) = (reader.host, reader.remote_host);
        if self.stream(to).is_none() || attempt >= MAX_ATTEMPTS {
            return;
        }
        let Some(at) = self.reaches(from, remote) else {
            let again = Event::Credit {
                to,
                by,
                bytes,
                attempt: attempt + 1,
            };
            let at = now.after(retransmission_timeout(attempt));
            return self.events.push(at, again);
        };
        let Some(writer) = self.stream(to) else {
            return;
        };
        writer.out.credits.push_back((at, bytes));
        self.arm(to);
    }

    /// The other end, or the network in its name, says that the connection is over.
    pub(crate) fn failed_by(&mut self, key: Key, by: Option<Key>, reason: CloseReason) {
        let peer = self.stream(key).and_then(|socket| socket.peer());
        if peer == by {
            self.fail(key, reason);
        }
    }

    /// The connection is over; its owner is told.
    fn fail(&mut self, key: Key, reason: CloseReason) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        if socket.failed.is_some() {
            return;
        }
        socket.failed = Some(reason);
        socket.inc = Incoming::new();
        socket.out.unsent = VecDeque::new();
        let (orphan, accepted) = (socket.orphan, socket.accepted);
        self.record(Record::Reset, key, &[]);
        if orphan {
            self.drop_stream(key);
        } else if accepted {
            self.notify(key, Notice::Failed);
        }
    }
}
