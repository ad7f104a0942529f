//! Stream sockets: a small TCP. SYNs are answered or refused, bytes go in segments that can
//! be lost and are sent again, three things hold the sender back (its own buffer, the receiver's,
//! and congestion), and either end can be closed, reset, or vanish.
//!
//! Left out, since no handler can tell: sequence numbers of the handshake, delayed acknowledgement,
//! Nagle's algorithm.

mod handshake;
mod recovery;
mod segments;
mod window;

use super::host::{HostId, specified};
use super::nat::Side;
use super::segment::{Control, Header};
use super::{Event, Kernel, Key, Socket};
use crate::error::Refusal;
use bytes::Bytes;
use cubenet_core::{CloseReason, Instant, Transport};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
pub(crate) use window::StreamBuffers;
use window::{End, Incoming, Outgoing};

/// How long a socket that was closed goes on sending.
const LINGER: Duration = Duration::from_secs(60);
/// How long a full buffer stays full for no reason.
const HELD_UP: Duration = Duration::from_millis(1);

pub(crate) struct ListenSocket {
    pub(crate) host: HostId,
    port: u16,
    /// `None` for all of the host's.
    address: Option<IpAddr>,
    max_backlog: usize,
    /// Half-open connections: the third packet has not come.
    half_open: usize,
    /// Connections that were not accepted yet.
    backlog: VecDeque<Key>,
}

pub(crate) struct StreamSocket {
    pub(crate) host: HostId,
    port: u16,
    /// Which of its host's addresses it has.
    address: u16,
    pub(super) nat: Side,
    pub(super) remote: SocketAddr,
    pub(super) remote_host: HostId,
    phase: Phase,
    /// The peer's socket, which answers the SYN, and answers it again if it is sent again.
    pub(super) accepted_by: Option<Key>,
    /// It has its port to itself, and does not share a listener's.
    owns_port: bool,
    /// It ended its direction before its peer did.
    ends_first: bool,
    /// While it is half open: its listener, and how often the SYN-ACK was sent again.
    handshake: Option<(Key, u8)>,
    /// It counts as a descriptor of its host.
    accepted: bool,
    /// No application owns it any more; it only sends what is left.
    orphan: bool,
    failed: Option<CloseReason>,
    /// For an orphan: the bytes acknowledged at the last check.
    lingered_at: u64,
    out: Outgoing,
    inc: Incoming,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting { attempt: u32 },
    Open(Key),
}

/// What a read gave.
pub(crate) enum Read {
    Bytes(Bytes),
    Nothing,
    /// The peer ended its direction.
    End,
    Failed(CloseReason),
}

impl StreamSocket {
    /// What a segment says that it sends now, beside its data.
    pub(super) fn header(&self) -> Header {
        Header {
            // The first of a handshake counts as one.
            seq: 1 + self.out.sent,
            ack: Some(1 + self.inc.acknowledged()),
            window: self.inc.free(),
            ..Header::default()
        }
    }

    /// What its peer, which is gone, acknowledges in a last segment.
    pub(super) fn acknowledgeable(&self) -> u64 {
        1 + self.out.latest.arrived
    }

    pub(super) fn peer(&self) -> Option<Key> {
        match self.phase {
            Phase::Open(peer) => Some(peer),
            Phase::Connecting { .. } => None,
        }
    }
}

impl Kernel {
    pub(super) fn stream(&mut self, key: Key) -> Option<&mut StreamSocket> {
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
        at: SocketAddr,
        max_backlog: usize,
    ) -> Result<(Key, SocketAddr), Refusal> {
        let local = self.host_mut(host).take_bound(Transport::Tcp, at)?;
        let (port, address) = (local.port(), specified(at.ip()));
        let key = self.insert(Socket::Listen(Box::new(ListenSocket {
            host,
            port,
            address,
            max_backlog,
            half_open: 0,
            backlog: VecDeque::new(),
        })));
        let host = self.host_mut(host);
        host.set_bound(Transport::Tcp, port, address, key.slot);
        Ok((key, local))
    }

    /// Connects. Returns the socket and its address.
    pub(crate) fn connect(
        &mut self,
        host: HostId,
        to: SocketAddr,
    ) -> Result<(Key, SocketAddr), Refusal> {
        let now = self.now;
        let port = self.host_mut(host).take_ephemeral(to, now)?;
        let local = self.host(host).address_towards(to.ip());
        let address = self.host(host).number_of(local);
        let remote_host = self.host_at(to.ip());
        let buffers = self.host(host).stream_buffers;
        let key = self.insert(Socket::Stream(Box::new(StreamSocket {
            host,
            port,
            address,
            nat: Side::Open,
            remote: to,
            remote_host,
            phase: Phase::Connecting { attempt: 0 },
            accepted_by: None,
            owns_port: true,
            ends_first: false,
            handshake: None,
            accepted: true,
            orphan: false,
            failed: None,
            lingered_at: 0,
            out: Outgoing::new(&buffers),
            inc: Incoming::new(&buffers),
        })));
        self.send_syn(key);
        Ok((key, SocketAddr::new(local, port)))
    }

    /// Whether the handshake of a stream is complete.
    pub(crate) fn is_established(&mut self, key: Key) -> bool {
        let socket = self.stream(key);
        socket.is_some_and(|socket| socket.peer().is_some())
    }

    /// Between which addresses a stream goes: its own, its peer's.
    pub(crate) fn ends(&mut self, key: Key) -> Option<(SocketAddr, SocketAddr)> {
        let socket = self.stream(key)?;
        let (host, port, address) = (socket.host, socket.port, socket.address);
        let remote = socket.remote;
        let local = self.host(host).numbered(address);
        Some((SocketAddr::new(local, port), remote))
    }

    /// The next connection in the backlog, if there is one.
    pub(crate) fn accept(&mut self, listener: Key) -> Result<Option<Key>, Refusal> {
        let Some(Socket::Listen(socket)) = self.socket(listener) else {
            return Ok(None);
        };
        let host = socket.host;
        if socket.backlog.is_empty() {
            return Ok(None);
        }
        let at = &self.hosts[host.0 as usize];
        let rate = at.faults.accept_failure();
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
            self.charge(host, true, 0);
        }
        Ok(accepted)
    }

    /// Writes `parts`, as far as there is room. An owner whose bytes are not all taken gets a notice when
    /// there is room again.
    pub(crate) fn write(&mut self, key: Key, parts: &[&[u8]]) -> Result<usize, CloseReason> {
        let now = self.now;
        let Some(host) = self.host_of(key) else {
            return Err(CloseReason::Reset);
        };
        let faults = &self.hosts[host.0 as usize].faults;
        let (full, partial) = (faults.full_buffer(), faults.partial_write());
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
        let is_dirty = taken > 0 && !std::mem::replace(&mut out.dirty, true);
        // What the socket that is served sends leaves with one write.
        let is_own = self.iteration.socket == Some(key);
        let calls = !(is_own && std::mem::replace(&mut self.iteration.has_written, true));
        self.charge(host, calls, taken);
        let departs = self.departure();
        if is_dirty && departs > now {
            if let Some(socket) = self.stream(key) {
                socket.out.departs = departs;
            }
            self.events.push(departs, Event::Transmit(key));
        } else if is_dirty {
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
        let short_read = self.hosts[host.0 as usize].faults.short_read();
        let short = self.random.chance(short_read);
        let Some(Socket::Stream(socket)) = self.socket(key) else {
            return Read::Failed(CloseReason::Reset);
        };
        if socket.inc.stalled_until > now {
            return Read::Nothing;
        }
        // What had arrived before a failure comes before it, as on Linux.
        let Some(mut bytes) = socket.inc.arrived.pop_front() else {
            socket.inc.arrived = VecDeque::new();
            return match socket.failed {
                _ if socket.inc.ended => Read::End,
                Some(reason) => Read::Failed(reason),
                None => Read::Nothing,
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
        let remote_host = socket.remote_host;
        let peer = socket.peer().filter(|_| socket.failed.is_none());
        socket.inc.handle_read(bytes.len());
        let mut has_opened = socket.inc.has_opened();
        if socket.inc.grows {
            let round_trip = self.paths.conditions(remote_host, host).latency() * 2;
            if let Some(socket) = self.stream(key) {
                socket.inc.grow(round_trip, now);
                has_opened = socket.inc.has_opened();
            }
        }
        let is_first = !std::mem::replace(&mut self.iteration.has_read, true);
        self.charge(host, is_first, bytes.len());
        if has_opened
            && let Some(peer) = peer
            && let Some(socket) = self.stream(key)
        {
            let acknowledgement = socket.inc.acknowledge();
            self.acknowledge(peer, acknowledgement);
        }
        Read::Bytes(bytes)
    }

    /// Whether the peer's system has acknowledged everything, the FIN included.
    pub(crate) fn is_acknowledged(&mut self, key: Key) -> bool {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return false;
        };
        socket.out.retire(now);
        socket.out.end == End::Sent && socket.out.outstanding() == 0
    }

    /// Why a stream is over, if it is.
    pub(crate) fn failure(&mut self, key: Key) -> Option<CloseReason> {
        match self.stream(key) {
            Some(socket) => socket.failed,
            None => Some(CloseReason::Reset),
        }
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
            socket.ends_first = !socket.inc.ended;
            // What was written just now leaves in its time, and the end behind it.
            if !socket.out.dirty {
                self.transmit(key);
            }
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
        let connecting = matches!(socket.phase, Phase::Connecting { .. });
        if connecting || socket.failed.is_some() || reset || unread {
            return self.reset(key);
        }
        socket.orphan = true;
        socket.lingered_at = u64::MAX;
        self.shutdown(key);
        self.events.push(now.after(LINGER), Event::Forget(key));
        self.forget_if_done(key);
    }

    /// Removes a stream and tells its peer, if that can be reached.
    fn reset(&mut self, key: Key) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        let peer = socket.peer().filter(|_| socket.failed.is_none());
        // No port waits after a reset.
        socket.ends_first = false;
        if let Some(peer) = peer {
            self.send_reset(key, peer);
        }
        self.drop_stream(key);
    }

    /// Tells `to` that its connection with `by` is over.
    fn send_reset(&mut self, by: Key, to: Key) {
        if let Some(at) = self.carry_control_to(to, Control::Reset) {
            let (by, reason) = (Some(by), CloseReason::Reset);
            self.events.push(at, Event::Fail { to, by, reason });
        }
    }

    pub(crate) fn drop_stream(&mut self, key: Key) {
        let Some(Socket::Stream(socket)) = self.remove(key) else {
            return;
        };
        if let Some((listener, _)) = socket.handshake {
            self.leave_half_open(listener);
        }
        let now = self.now;
        let host = self.host_mut(socket.host);
        if socket.owns_port {
            let waits = socket.ends_first && socket.failed.is_none();
            host.release_ephemeral(socket.remote, socket.port, waits, now);
        } else if socket.accepted {
            host.release_descriptor();
        }
    }

    /// The time of an orphan, a closed socket with data left to send, is over. As on Linux it gets more
    /// time if some of the data was acknowledged meanwhile.
    pub(crate) fn linger(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        socket.out.retire(now);
        let arrived = socket.out.known.arrived;
        if std::mem::replace(&mut socket.lingered_at, arrived) == arrived {
            return self.drop_stream(key);
        }
        self.events.push(now.after(LINGER), Event::Forget(key));
    }

    fn close_listener(&mut self, key: Key) {
        let Some(Socket::Listen(listener)) = self.remove(key) else {
            return;
        };
        for waiting in listener.backlog {
            self.reset(waiting);
        }
        let host = self.host_mut(listener.host);
        host.release_bound(Transport::Tcp, listener.port, listener.address);
    }

    /// An orphan is done once the peer has everything, the end included.
    fn forget_if_done(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key).filter(|socket| socket.orphan) else {
            return;
        };
        socket.out.retire(now);
        if socket.out.end == End::Sent && socket.out.outstanding() == 0 {
            self.drop_stream(key);
        }
    }
}
