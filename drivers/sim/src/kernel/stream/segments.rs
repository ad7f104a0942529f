//! What goes over an open stream: segments, lost and sent again, credits for what was read,
//! and the end.

use super::window::{End, Incoming};
use super::{Phase, SEGMENT, Segment};
use crate::kernel::{Event, HostId, Kernel, Key, Notice, retransmission_timeout};
use crate::trace::Record;
use bytes::Bytes;
use cubenet_core::{CloseReason, Instant};
use std::collections::VecDeque;

/// After this many attempts a segment is given up, and the connection with it (as Linux's
/// `tcp_retries2`).
const MAX_ATTEMPTS: u32 = 15;

impl Kernel {
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
    pub(super) fn tell_writable(&mut self, key: Key) {
        let Some(socket) = self.stream(key) else {
            return;
        };
        if socket.out.wanted && socket.out.room() > 0 {
            socket.out.wanted = false;
            self.notify(key, Notice::Writable);
        }
    }

    /// Looks at a socket again when the next credit comes, if that matters.
    pub(super) fn arm(&mut self, key: Key) {
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

    pub(super) fn send_segment(&mut self, segment: Segment) {
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

    pub(super) fn segment_lost(&mut self, mut segment: Segment) {
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
        if socket.handshake.is_some() {
            // The caller sends data, so the answer has reached it.
            self.confirmed(key);
        }
        let Some(socket) = self.stream(key) else {
            return self.arrived_nowhere(segment);
        };
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
            self.credit(from, 1);
        }
        self.tell_readable(key, host, unread);
        self.forget_if_done(key);
    }

    /// A reader may stand still for a while first.
    pub(super) fn tell_readable(&mut self, key: Key, host: HostId, unread: usize) {
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
    pub(super) fn arrived_nowhere(&mut self, segment: Segment) {
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

    /// The peer of `to` has read this much of what it sent, and acknowledges it. If the
    /// acknowledgement is lost, the next one covers it; if none follows, it is repeated after a
    /// retransmission timeout, as if `to` had sent its last segment again.
    pub(crate) fn credit(&mut self, to: Key, bytes: u32) {
        if let Some(writer) = self.stream(to) {
            writer.out.owed += bytes;
            self.send_credit(to, 0);
        }
    }

    pub(crate) fn credit_again(&mut self, to: Key, attempt: u32) {
        let Some(writer) = self.stream(to) else {
            return;
        };
        writer.out.repeats = false;
        if writer.out.owed > 0 && attempt >= MAX_ATTEMPTS {
            return self.fail(to, CloseReason::Reset);
        }
        self.send_credit(to, attempt);
    }

    fn send_credit(&mut self, to: Key, attempt: u32) {
        let now = self.now;
        let Some(writer) = self.stream(to).filter(|writer| writer.out.owed > 0) else {
            return;
        };
        let (from, remote) = (writer.remote_host, writer.host);
        let at = self.carry_control(from, remote);
        let Some(writer) = self.stream(to) else {
            return;
        };
        let out = &mut writer.out;
        let Some(at) = at else {
            if !std::mem::replace(&mut out.repeats, true) {
                let again = now.after(retransmission_timeout(attempt));
                let attempt = attempt + 1;
                self.events.push(again, Event::CreditAgain { to, attempt });
            }
            return;
        };
        // An acknowledgement covers all before it, so none arrives before an earlier one.
        let at = out.credits.back().map_or(at, |(last, _)| at.max(*last));
        let bytes = std::mem::take(&mut out.owed);
        out.credits.push_back((at, bytes));
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
    pub(super) fn fail(&mut self, key: Key, reason: CloseReason) {
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
        let half_open = socket.handshake.is_some();
        self.record(Record::Reset, key, &[]);
        if orphan || half_open {
            self.drop_stream(key);
        } else if accepted {
            self.notify(key, Notice::Failed);
        }
    }
}
