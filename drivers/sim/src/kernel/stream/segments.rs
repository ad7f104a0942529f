//! What goes over an open stream: segments, lost and sent again, acknowledgements, and the end.

use super::Phase;
use super::window::{Acknowledgement, End};
use crate::kernel::nat::{Passage, Side};
use crate::kernel::segment::{Control, HEADERS, Segment};
use crate::kernel::{Event, HostId, Kernel, Key, Notice, retransmission_timeout};
use crate::trace::Record;
use bytes::Bytes;
use cubenet_core::{CloseReason, Instant};
use std::collections::VecDeque;

/// After this many attempts a segment is given up, and the connection with it (as Linux's
/// `tcp_retries2`).
const MAX_ATTEMPTS: u32 = 15;

/// Bytes of a segment, at most, on a path with packets of `mtu`.
fn segment_len(mtu: usize) -> usize {
    mtu.saturating_sub(HEADERS).max(1)
}

impl Kernel {
    /// Sends what the windows allow, and sees to it that the rest follows.
    pub(crate) fn transmit(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        let (host, remote_host) = (socket.host, socket.remote_host);
        let most = segment_len(self.paths.conditions(host, remote_host).mtu());
        loop {
            let Some(socket) = self.stream(key) else {
                return;
            };
            let out = &mut socket.out;
            if out.dirty && out.departs > now {
                // An event says when.
                break;
            }
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
            if let Some(segment) = out.take_again() {
                out.handle_sent(segment.len());
                self.traffic.sent_again += 1;
                self.send_segment(segment);
                continue;
            }
            if out.has_again() {
                break;
            }
            let len = out.unsent.len().min(most).min(out.allowed() as usize);
            let end = len == out.unsent.len() && out.end == End::Asked;
            // Part of a segment waits until the windows allow all of it, unless nothing else is
            // under way that opens them.
            let is_cut = len < most.min(out.unsent.len()) && out.outstanding() > 0;
            if is_cut || len == 0 && !end {
                break;
            }
            let bytes = Bytes::from(out.take_unsent(len));
            let at = out.sent;
            // The end counts as a byte, so that its arrival shows.
            out.sent += len as u64 + u64::from(end);
            out.handle_sent(len as u64);
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
        self.ask_for_room(key);
    }

    /// If the peer's window is closed and nothing is under way that would open it, the peer is asked
    /// again and again.
    fn ask_for_room(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        let out = &mut socket.out;
        let waits = !out.unsent.is_empty() || out.end == End::Asked;
        let is_shut = out.outstanding() == 0 && out.under_way.is_empty() && out.allowed() == 0;
        if waits && is_shut && out.probes.is_none() && !out.dirty {
            out.probes = Some(0);
            self.events
                .push(now.after(retransmission_timeout(0)), Event::Probe(key));
        }
    }

    /// Probes a window that is closed. The peer's host answers with an acknowledgement, or with RST if
    /// the connection is gone.
    pub(crate) fn probe(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        socket.out.retire(now);
        let is_shut = socket.out.outstanding() == 0 && socket.out.allowed() == 0;
        let (peer, remote_host, host) = (socket.peer(), socket.remote_host, socket.host);
        let asked = socket.out.probes.take();
        let (Some(asked), Some(peer), None) = (asked, peer, socket.failed) else {
            return;
        };
        if !is_shut {
            return self.transmit(key);
        }
        if u32::from(asked) >= MAX_ATTEMPTS {
            // One that answers will say by itself when there is room.
            return if self.stream(peer).is_none() {
                self.fail(key, CloseReason::Reset);
            };
        }
        socket.out.probes = Some(asked + 1);
        let wait = retransmission_timeout(asked.into());
        self.events.push(now.after(wait), Event::Probe(key));
        if self.carry_control(host, remote_host).is_none() {
            return;
        }
        match self.stream(peer) {
            Some(reader) => {
                let acknowledgement = reader.inc.acknowledge();
                self.acknowledge(key, acknowledgement);
            }
            None => self.send_reset(peer, key),
        }
    }

    /// An owner that waits for room gets a notice when there is some.
    pub(super) fn tell_writable(&mut self, key: Key) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        if socket.out.wanted && socket.out.is_writable() {
            socket.out.wanted = false;
            self.notify(key, Notice::Writable);
        }
    }

    /// Looks at a socket again when the next acknowledgement comes, if that matters.
    pub(super) fn arm(&mut self, key: Key) {
        let now = self.now;
        let Some(socket) = self.stream(key) else {
            return;
        };
        let out = &mut socket.out;
        let waits = out.wanted || !out.unsent.is_empty() || out.end != End::None || out.has_again();
        let Some((at, _)) = out.under_way.front().copied().filter(|_| waits) else {
            return self.forget_if_done(key);
        };
        // One that has come and was not taken yet is due now.
        let at = at.max(now);
        if at < out.armed {
            out.armed = at;
            self.events.push(at, Event::Transmit(key));
        }
    }

    pub(super) fn send_segment(&mut self, segment: Segment) {
        let now = self.now;
        let Some(socket) = self.stream(segment.from) else {
            return;
        };
        let (from, to) = (socket.host, socket.remote_host);
        let has_nat = socket.nat != Side::Open;
        let conditions = self.paths.conditions(from, to);
        let (reset, half_open) = (conditions.reset(), conditions.half_open());
        self.traffic.packets += 1;
        if has_nat {
            match self.passage_to(segment.to) {
                Passage::Through => {}
                Passage::Dropped => return self.segment_lost(segment),
                Passage::Unknown => return self.sent_from_an_unknown_address(segment),
            }
        }
        if self.random.chance(half_open) {
            self.traffic.reset += 1;
            return self.fail(segment.from, CloseReason::Reset);
        }
        if self.random.chance(reset) {
            self.traffic.reset += 1;
            self.send_reset(segment.from, segment.to);
            return self.fail(segment.from, CloseReason::Reset);
        }
        let len = segment.bytes.len() + HEADERS;
        let carried = self.paths.carry(from, to, len, now, &mut self.random);
        self.capture_segment(&segment, carried);
        match carried.intact() {
            Some(at) => self.events.push(at, Event::Segment(segment)),
            None => self.segment_lost(segment),
        }
    }

    /// The peer's host does not know the address that a router gives this sender now: it answers
    /// with a reset.
    fn sent_from_an_unknown_address(&mut self, segment: Segment) {
        let now = self.now;
        let Some(socket) = self.stream(segment.from) else {
            return;
        };
        let (from, to) = (socket.host, socket.remote_host);
        let len = segment.bytes.len() + HEADERS;
        let there = self.paths.carry(from, to, len, now, &mut self.random);
        let Some(there) = there.intact().filter(|_| self.host(to).alive) else {
            return self.segment_lost(segment);
        };
        let Some(back) = self.carry_control(to, from) else {
            return self.segment_lost(segment);
        };
        let (to, by) = (segment.from, Some(segment.to));
        let reason = CloseReason::Reset;
        let at = there.after(back.since(now));
        self.events.push(at, Event::Fail { to, by, reason });
    }

    pub(super) fn segment_lost(&mut self, mut segment: Segment) {
        let now = self.now;
        self.traffic.lost += 1;
        self.record(Record::Lost, segment.from, &[]);
        let Some(socket) = self.stream(segment.from) else {
            return;
        };
        let (from, to) = (socket.host, socket.remote_host);
        let there = self.paths.delay(from, to, now);
        let back = self.paths.delay(to, from, now);
        let Some(socket) = self.stream(segment.from) else {
            return;
        };
        let wait = socket.out.notices_after(segment.attempt, there + back);
        segment.attempt += 1;
        self.events.push(now.after(wait), Event::SendAgain(segment));
    }

    pub(crate) fn send_again(&mut self, segment: Segment) {
        if segment.attempt >= MAX_ATTEMPTS {
            return self.fail(segment.from, CloseReason::Reset);
        }
        let key = segment.from;
        if let Some(socket) = self.stream(key) {
            socket.out.handle_loss(segment);
            self.transmit(key);
        }
    }

    pub(crate) fn arrived(&mut self, segment: Segment) {
        self.record(Record::Segment, segment.to, &segment.bytes);
        let (key, from) = (segment.to, segment.from);
        let Some(socket) = self.stream(key).filter(|socket| socket.failed.is_none()) else {
            return self.arrived_nowhere(segment);
        };
        if socket.orphan && !segment.bytes.is_empty() {
            // It will not be read, and the peer has to know.
            return self.reset(key);
        }
        if socket.peer() != Some(from) {
            // It came before the SYN-ACK did; it comes again.
            return self.segment_lost(segment);
        }
        if socket.handshake.is_some() {
            // The client sends data, so the SYN-ACK has reached it.
            self.handshake_done(key);
        }
        let Some(socket) = self.stream(key) else {
            return self.arrived_nowhere(segment);
        };
        let inc = &mut socket.inc;
        if segment.at != inc.expected {
            inc.keep(segment);
            let acknowledgement = inc.acknowledge();
            return self.acknowledge(from, acknowledgement);
        }
        inc.take(segment);
        let acknowledgement = socket.inc.acknowledge();
        let (host, unread) = (socket.host, socket.inc.unread);
        self.acknowledge(from, acknowledgement);
        self.tell_readable(key, host, unread);
        self.forget_if_done(key);
    }

    /// A reader may stand still for a while first.
    pub(super) fn tell_readable(&mut self, key: Key, host: HostId, unread: usize) {
        let now = self.now;
        let faults = &self.hosts[host.0 as usize].faults;
        let (rate, longest) = (faults.stall(), faults.stall_for());
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

    /// The socket that a segment was for is gone: its host is, too, or answers with RST.
    pub(super) fn arrived_nowhere(&mut self, segment: Segment) {
        let Some(sender) = self.stream(segment.from) else {
            return;
        };
        let to = sender.remote_host;
        if self.host(to).alive {
            self.send_reset(segment.to, segment.from);
        } else {
            self.segment_lost(segment);
        }
    }

    /// Acknowledges what `to` has sent. If the acknowledgement is lost, the next one covers it; if
    /// none follows, it is repeated after a retransmission timeout, as if `to` had sent its last
    /// segment again.
    pub(super) fn acknowledge(&mut self, to: Key, acknowledgement: Acknowledgement) {
        if let Some(writer) = self.stream(to) {
            writer.out.latest = acknowledgement;
            self.send_acknowledgement(to, 0);
        }
    }

    pub(crate) fn acknowledge_again(&mut self, to: Key, attempt: u32) {
        let Some(writer) = self.stream(to) else {
            return;
        };
        let out = &mut writer.out;
        out.repeats = false;
        let last = out.under_way.back().map_or(out.known, |(_, last)| *last);
        if last == out.latest {
            return;
        }
        if attempt >= MAX_ATTEMPTS {
            return self.fail(to, CloseReason::Reset);
        }
        let reader_host = writer.remote_host;
        if self.host(reader_host).alive {
            return self.send_acknowledgement(to, attempt);
        }
        // The reader's host does not run, so it repeats nothing.
        if let Some(writer) = self.stream(to) {
            writer.out.repeats = true;
            let again = self.now.after(retransmission_timeout(attempt));
            let attempt = attempt + 1;
            self.events
                .push(again, Event::AcknowledgeAgain { to, attempt });
        }
    }

    fn send_acknowledgement(&mut self, to: Key, attempt: u32) {
        let now = self.now;
        let at = self.carry_control_to(to, Control::Acknowledgement);
        let Some(writer) = self.stream(to) else {
            return;
        };
        let out = &mut writer.out;
        let Some(at) = at else {
            if !std::mem::replace(&mut out.repeats, true) {
                let again = now.after(retransmission_timeout(attempt));
                let attempt = attempt + 1;
                self.events
                    .push(again, Event::AcknowledgeAgain { to, attempt });
            }
            return;
        };
        // An acknowledgement covers all before it, so none arrives before an earlier one.
        let at = out.under_way.back().map_or(at, |(last, _)| at.max(*last));
        out.under_way.push_back((at, out.latest));
        let is_looked_at = out.armed <= at && out.armed > now;
        if !is_looked_at {
            self.arm(to);
        }
    }

    /// The other end, or the network in its name, says that the connection is over.
    pub(crate) fn failed_by(&mut self, key: Key, by: Option<Key>, reason: CloseReason) {
        let peer = self.stream(key).and_then(|socket| socket.peer());
        if peer == by {
            self.fail(key, reason);
        }
    }

    /// The connection is over; its owner gets a notice.
    pub(super) fn fail(&mut self, key: Key, reason: CloseReason) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        if socket.failed.is_some() {
            return;
        }
        socket.failed = Some(reason);
        socket.out.unsent = VecDeque::new();
        let (orphan, accepted, host) = (socket.orphan, socket.accepted, socket.host);
        let half_open = socket.handshake.is_some();
        let rate = self.host(host).faults.reset_loses_unread();
        let throws_away = self.random.chance(rate);
        if let Some(socket) = self.stream(key) {
            socket.inc.fail(throws_away);
        }
        self.record(Record::Reset, key, &[]);
        if orphan || half_open {
            self.drop_stream(key);
        } else if accepted {
            self.notify(key, Notice::Failed);
        }
    }
}
