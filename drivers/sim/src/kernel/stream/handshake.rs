//! How a stream opens: SYN, SYN-ACK and ACK, which can be refused, lost and sent again.

use super::window::{Incoming, Outgoing};
use super::{Phase, StreamSocket};
use crate::kernel::nat::Side;
use crate::kernel::segment::Control;
use crate::kernel::{Event, Kernel, Key, Notice, Socket};
use crate::trace::Record;
use cubenet_core::{CloseReason, Transport};
use std::net::SocketAddr;
use std::time::Duration;

/// A SYN is sent again after a second each so many times (as Linux's
/// `tcp_syn_linear_timeouts`), and after twice as long as before from then on.
const LINEAR_SYNS: u32 = 4;
/// After this many attempts a connect fails (as with Linux's `tcp_syn_retries`).
const MAX_SYNS: u32 = 6 + LINEAR_SYNS;
/// After this many more SYN-ACKs a half-open connection is dropped (as Linux's `tcp_synack_retries`).
const MAX_SYN_ACKS: u8 = 5;

impl Kernel {
    pub(crate) fn send_syn(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        let Phase::Connecting { attempt } = socket.phase else {
            return;
        };
        if socket.failed.is_some() {
            return;
        }
        if attempt >= MAX_SYNS {
            let reason = CloseReason::Timeout(cubenet_core::Timeout::Connect);
            return self.fail(key, reason);
        }
        socket.phase = Phase::Connecting {
            attempt: attempt + 1,
        };
        let (from, to, remote) = (socket.host, socket.remote_host, socket.remote);
        let window = socket.inc.capacity.into();
        let Some((local, _)) = self.ends(key) else {
            return;
        };
        let wait = Duration::from_secs(1 << attempt.saturating_sub(LINEAR_SYNS));
        self.events.push(now.after(wait), Event::SynAgain(key));
        let seen = self.seen_at(from, Transport::Tcp, local, remote);
        let inside = self.host(to).nat;
        let is_reachable = inside.is_none() || inside == self.host(from).nat;
        let Some(seen_at) = seen.filter(|_| is_reachable) else {
            // A router drops it.
            self.traffic.packets += 1;
            self.traffic.lost += 1;
            return;
        };
        if seen_at != local
            && let Some(socket) = self.stream(key)
        {
            socket.nat = Side::Inside;
        }
        self.traffic.packets += 1;
        let carried = self.paths.carry(from, to, 60, now, &mut self.random);
        self.capture_syn(key, (seen_at, remote), window, carried);
        match carried.intact() {
            Some(at) => self.events.push(
                at,
                Event::Syn {
                    to: remote,
                    from: key,
                    seen_at,
                },
            ),
            None => self.traffic.lost += 1,
        }
    }

    /// A SYN has arrived.
    pub(crate) fn syn_arrived(&mut self, to: SocketAddr, from: Key, seen_at: SocketAddr) {
        self.record(Record::Syn, from, &[]);
        let host = self.host_at(to.ip());
        let Some(Socket::Stream(client)) = self.socket(from) else {
            return;
        };
        let (client_host, window) = (client.host, client.inc.capacity);
        let is_connecting =
            matches!(client.phase, Phase::Connecting { .. }) && client.failed.is_none();
        let accepted_by = client.accepted_by;
        let nat = match client.nat {
            Side::Inside => Side::Outside,
            _ => Side::Open,
        };
        if !is_connecting || !self.host(host).alive {
            return;
        }
        if let Some(by) = accepted_by
            && self.stream(by).is_some()
        {
            return self.send_syn_ack(by);
        }
        let rate = self.paths.conditions(client_host, host).refuse();
        let listener = self.listener(host, Transport::Tcp, to);
        let refused = self.random.chance(rate);
        self.traffic.refused += u64::from(refused && listener.is_some());
        let listener = listener.filter(|_| !refused);
        let Some((listener, Socket::Listen(socket))) =
            listener.and_then(|key| Some((key, self.socket(key)?)))
        else {
            if let Some(at) = self.carry_control_to(from, Control::Reset) {
                let reason = CloseReason::Refused;
                let (to, by) = (from, None);
                self.events.push(at, Event::Fail { to, by, reason });
            }
            return;
        };
        if socket.backlog.len() + socket.half_open >= socket.max_backlog {
            return;
        }
        let buffers = self.host(host).stream_buffers;
        let mut out = Outgoing::new(&buffers);
        out.set_window(window);
        let accepted = self.insert(Socket::Stream(Box::new(StreamSocket {
            host,
            port: to.port(),
            address: self.host(host).number_of(to.ip()),
            nat,
            remote: seen_at,
            remote_host: client_host,
            phase: Phase::Open(from),
            accepted_by: None,
            owns_port: false,
            ends_first: false,
            handshake: Some((listener, 0)),
            accepted: false,
            orphan: false,
            failed: None,
            lingered_at: 0,
            out,
            inc: Incoming::new(&buffers),
        })));
        if let Some(Socket::Listen(socket)) = self.socket(listener) {
            socket.half_open += 1;
        }
        if let Some(client) = self.stream(from) {
            client.accepted_by = Some(accepted);
        }
        self.send_syn_ack(accepted);
    }

    /// Sends a SYN-ACK. If it is lost, either end tries again.
    fn send_syn_ack(&mut self, by: Key) {
        let Some(socket) = self.stream(by) else {
            return;
        };
        let Some(to) = socket.peer() else {
            return;
        };
        let Some(socket) = self.stream(by) else {
            return;
        };
        let window = socket.inc.capacity;
        match self.carry_control_to(to, Control::SynAck) {
            Some(at) => self.events.push(at, Event::SynAck { to, by, window }),
            None => self.syn_ack_later(by),
        }
    }

    /// Sends the SYN-ACK of a half-open connection again after a while, unless the third packet has
    /// come by then. If no packet of the handshake is lost there is no need for that.
    fn syn_ack_later(&mut self, by: Key) {
        let socket = self.stream(by);
        if let Some((_, attempt)) = socket.and_then(|socket| socket.handshake) {
            let again = self.now.after(Duration::from_secs(1 << attempt));
            self.events.push(again, Event::SynAckAgain(by));
        }
    }

    pub(crate) fn retransmit_syn_ack(&mut self, by: Key) {
        let Some(socket) = self.stream(by) else {
            return;
        };
        let Some((listener, attempt)) = socket.handshake else {
            return;
        };
        if attempt >= MAX_SYN_ACKS {
            return self.drop_stream(by);
        }
        socket.handshake = Some((listener, attempt + 1));
        self.send_syn_ack(by);
    }

    /// A connection is half open no longer.
    pub(super) fn leave_half_open(&mut self, listener: Key) {
        if let Some(Socket::Listen(socket)) = self.socket(listener) {
            socket.half_open -= 1;
        }
    }

    /// The third packet has come: the connection waits to be accepted.
    pub(crate) fn handshake_done(&mut self, by: Key) {
        let Some(socket) = self.stream(by) else {
            return;
        };
        let Some((listener, _)) = socket.handshake.take() else {
            return;
        };
        self.leave_half_open(listener);
        if let Some(Socket::Listen(socket)) = self.socket(listener) {
            socket.backlog.push_back(by);
            return self.notify(listener, Notice::Acceptable);
        }
        // The listener was closed.
        self.reset(by);
    }

    /// Sends the third packet of a handshake. If it is lost, the peer answers again, or the first
    /// segment takes its place.
    fn send_ack(&mut self, key: Key) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        let Some(peer) = socket.peer() else {
            return;
        };
        match self.carry_control_to(peer, Control::Acknowledgement) {
            Some(at) => self.events.push(at, Event::Ack(peer)),
            None => self.syn_ack_later(peer),
        }
    }

    /// A SYN-ACK has arrived.
    pub(crate) fn syn_ack_arrived(&mut self, to: Key, by: Key, window: u32) {
        self.record(Record::SynAck, to, &[]);
        match self.stream(to) {
            Some(socket) if socket.phase == Phase::Open(by) => self.send_ack(to),
            Some(socket) if socket.peer().is_none() && socket.failed.is_none() => {
                socket.phase = Phase::Open(by);
                socket.out.set_window(window);
                self.send_ack(to);
                self.notify(to, Notice::Connected);
            }
            // It gave up meanwhile, and says so if it runs.
            _ => {
                let Some(client) = self.stream(by).map(|socket| socket.remote_host) else {
                    return;
                };
                if !self.host(client).alive {
                    return self.syn_ack_later(by);
                }
                self.send_reset(to, by);
                // In case the reset is lost.
                self.syn_ack_later(by);
            }
        }
    }
}
