//! What holds a sender back: the send buffer, the receiver's buffer, and congestion.
//!
//! As on Linux the two buffers are separate. The sender's holds a byte until the peer's system has
//! acknowledged it; the receiver's holds it until the peer's application has read it.

use super::recovery::Recovery;
use crate::kernel::retransmission_timeout;
use crate::kernel::segment::{SEGMENT, Segment};
use bytes::Bytes;
use cubenet_core::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Bytes that may be under way before the first is acknowledged (RFC 6928).
const INITIAL_WINDOW: u32 = 10 * SEGMENT as u32;

/// What is sent.
pub(super) struct Outgoing {
    pub(super) unsent: VecDeque<u8>,
    /// Bytes sent so far; the end counts as one.
    pub(super) sent: u64,
    /// What of that is acknowledged, and how far the peer's window reaches, as far as this end
    /// knows.
    pub(super) known: Acknowledgement,
    /// The acknowledgements that are under way, and when they come.
    pub(super) under_way: VecDeque<(Instant, Acknowledgement)>,
    /// What the peer has acknowledged last, whether that was lost or not.
    pub(super) latest: Acknowledgement,
    /// An acknowledgement is to be repeated.
    pub(super) repeats: bool,
    /// Bytes of the send buffer.
    pub(super) capacity: u32,
    /// Bytes of it that may be unsent.
    pub(super) max_unsent: u32,
    pub(super) congestion_window: u32,
    pub(super) slow_start_threshold: u32,
    /// While something is missing at the peer.
    pub(super) recovery: Option<Box<Recovery>>,
    pub(super) end: End,
    /// The owner waits for room.
    pub(super) wanted: bool,
    pub(super) dirty: bool,
    /// What was written leaves then: the work before it is not done.
    pub(super) departs: Instant,
    /// How often the peer was asked in vain whether its window has opened; `None` if it is not
    /// asked.
    pub(super) probes: Option<u8>,
    /// When it is looked at again.
    pub(super) armed: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    None,
    Asked,
    Sent,
}

/// What an acknowledgement says. It covers all that came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acknowledgement {
    /// Bytes that have arrived in order; the end counts as one.
    pub(super) arrived: u64,
    /// Bytes that have arrived out of order (as selective acknowledgements say).
    pub(super) early: u32,
    /// Bytes, from the first of the stream, up to which there is room.
    pub(super) room_to: u64,
}

impl Acknowledgement {
    /// Bytes that have arrived, in order or not.
    pub(super) fn delivered(self) -> u64 {
        self.arrived + u64::from(self.early)
    }
}

/// The buffers of a host's streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamBuffers {
    pub(crate) send: u32,
    pub(crate) max_unsent: u32,
    pub(crate) receive: u32,
    /// Whether the receive buffer of a stream grows if its reader keeps up.
    pub(crate) grows: bool,
}

impl StreamBuffers {
    /// What Linux chooses by itself: `net.ipv4.tcp_wmem`, and of `tcp_rmem` what a window may take.
    pub(crate) const ADAPTIVE: StreamBuffers = StreamBuffers {
        send: 4 << 20,
        max_unsent: DEFAULT_UNSENT,
        receive: 128 << 10,
        grows: true,
    };

    /// What Linux makes of `SO_SNDBUF` and `SO_RCVBUF` of `bytes`: twice as much, for data.
    pub(crate) fn fixed(bytes: usize) -> Self {
        let doubled = u32::try_from(bytes).unwrap_or(u32::MAX).saturating_mul(2);
        StreamBuffers {
            send: doubled.max(1),
            receive: doubled.max(1),
            grows: false,
            ..StreamBuffers::ADAPTIVE
        }
    }
}

/// As the driver over real sockets sets `TCP_NOTSENT_LOWAT`.
const DEFAULT_UNSENT: u32 = 128 << 10;
/// The most that a receive buffer grows to.
const MAX_RECEIVE: u32 = 3 << 20;

/// What is received.
pub(super) struct Incoming {
    /// Bytes that have come in order.
    pub(super) expected: u64,
    /// Segments that came out of order, and how many bytes they have.
    pub(super) early: BTreeMap<u64, Segment>,
    early_bytes: u32,
    pub(super) arrived: VecDeque<Bytes>,
    pub(super) unread: usize,
    pub(super) ended: bool,
    pub(super) stalled_until: Instant,
    /// Bytes, from the first of the stream, up to which room was advertised to the peer.
    advertised: u64,
    /// Bytes of the receive buffer.
    pub(super) capacity: u32,
    /// Whether that grows if the reader keeps up.
    pub(super) grows: bool,
    /// Bytes read since `read_since`.
    pub(super) read: u32,
    pub(super) read_since: Instant,
}

impl Outgoing {
    /// Nothing is sent yet, and nothing may be.
    pub(super) fn new(buffers: &StreamBuffers) -> Self {
        Outgoing {
            unsent: VecDeque::new(),
            sent: 0,
            known: Acknowledgement::default(),
            under_way: VecDeque::new(),
            latest: Acknowledgement::default(),
            repeats: false,
            capacity: buffers.send,
            max_unsent: buffers.max_unsent,
            congestion_window: INITIAL_WINDOW,
            slow_start_threshold: u32::MAX,
            recovery: None,
            end: End::None,
            wanted: false,
            dirty: false,
            departs: Instant::ZERO,
            probes: None,
            armed: Instant::NEVER,
        }
    }

    /// The peer has said in the handshake how much room it has.
    pub(super) fn set_window(&mut self, window: u32) {
        let opened = Acknowledgement {
            arrived: 0,
            early: 0,
            room_to: window.into(),
        };
        (self.known, self.latest) = (opened, opened);
    }

    /// Bytes sent that are not acknowledged.
    pub(super) fn outstanding(&self) -> u64 {
        self.sent - self.known.arrived
    }

    /// Bytes that the windows allow to send now.
    pub(super) fn allowed(&self) -> u64 {
        let receiver = self.known.room_to.saturating_sub(self.sent);
        receiver.min(self.uncongested())
    }

    /// Takes the acknowledgements that have come.
    pub(super) fn retire(&mut self, now: Instant) {
        while let Some((at, acknowledgement)) = self.under_way.front().copied() {
            if at > now {
                return;
            }
            self.under_way.pop_front();
            let delivered = acknowledgement.delivered();
            let bytes = delivered.saturating_sub(self.known.delivered());
            self.known = acknowledgement;
            self.handle_delivered(bytes);
        }
        if self.under_way.is_empty() && self.outstanding() == 0 {
            // An idle connection holds no buffer.
            self.under_way = VecDeque::new();
        }
    }

    /// Takes the first bytes that are unsent.
    pub(super) fn take_unsent(&mut self, len: usize) -> Vec<u8> {
        if len == self.unsent.len() {
            // An idle connection holds no buffer.
            return std::mem::take(&mut self.unsent).into();
        }
        let (first, second) = self.unsent.as_slices();
        let from_first = len.min(first.len());
        let bytes = [&first[..from_first], &second[..len - from_first]].concat();
        self.unsent.drain(..len);
        bytes
    }

    /// Bytes that a write may add.
    pub(super) fn room(&self) -> usize {
        let unsent = self.unsent.len();
        let held = unsent + self.outstanding() as usize;
        let in_all = (self.capacity as usize).saturating_sub(held);
        in_all.min((self.max_unsent as usize).saturating_sub(unsent))
    }

    /// Whether a writer that waits gets the notice that there is room: as on Linux, once a third of the
    /// buffer is free and less than half of what may be unsent is.
    pub(super) fn is_writable(&self) -> bool {
        let unsent = self.unsent.len() as u64;
        let held = unsent + self.outstanding();
        3 * held <= 2 * u64::from(self.capacity) && 2 * unsent < u64::from(self.max_unsent)
    }
}

/// So many losses of one segment, and the path is taken for dead.
const DEAD: u32 = 4;

/// Losses, and what they do to the pace.
impl Outgoing {
    /// Bytes sent that are on their way, as far as this end knows.
    fn in_flight(&self) -> u64 {
        let lost = self.recovery.as_ref().map_or(0, |recovery| recovery.lost);
        self.sent.saturating_sub(self.known.delivered() + lost)
    }

    /// Bytes that congestion allows to send now.
    pub(super) fn uncongested(&self) -> u64 {
        let (in_flight, window) = (self.in_flight(), u64::from(self.congestion_window));
        match &self.recovery {
            Some(recovery) if !recovery.after_timeout => {
                recovery.allowed(in_flight, u64::from(self.slow_start_threshold))
            }
            _ => window.saturating_sub(in_flight),
        }
    }

    /// So many bytes more have arrived at the peer.
    pub(super) fn handle_delivered(&mut self, bytes: u64) {
        if let Some(mut recovery) = self.recovery.take() {
            recovery.delivered += bytes;
            let (is_over, grows) = (self.known.arrived >= recovery.until, recovery.after_timeout);
            if is_over && !grows {
                self.congestion_window = self.slow_start_threshold;
            }
            if !is_over {
                self.recovery = Some(recovery);
            } else if !recovery.again.is_empty() {
                // Something of the next window was lost, too.
                let (again, lost) = (recovery.again, recovery.lost);
                self.recovery = Some(Box::new(self.begin_recovery(again, lost)));
            }
            if !grows {
                // The window grows again once what was lost has arrived.
                return;
            }
        }
        let window = u64::from(self.congestion_window);
        let grown = if self.congestion_window < self.slow_start_threshold {
            bytes
        } else {
            bytes * SEGMENT as u64 / window
        };
        self.congestion_window = (window + grown).min(1 << 24) as u32;
    }

    /// Something was sent, for the first time or again.
    pub(super) fn handle_sent(&mut self, bytes: u64) {
        if let Some(recovery) = &mut self.recovery {
            recovery.sent += bytes;
        }
    }

    /// A segment was lost, for the `attempt`th time. Returns after how long the sender notices. As on
    /// Linux: a round trip, if enough is under way that acknowledgements show the hole; two, if
    /// little is; a timeout, if nothing else is.
    pub(super) fn notices_after(&self, attempt: u32, round_trip: Duration) -> Duration {
        let outstanding = self.outstanding();
        if attempt >= DEAD || outstanding <= SEGMENT as u64 {
            let timeouts = attempt.checked_sub(DEAD).unwrap_or(attempt);
            retransmission_timeout(timeouts).max(round_trip * 2)
        } else if outstanding < 4 * SEGMENT as u64 {
            round_trip * 2
        } else {
            round_trip
        }
    }

    /// The sender notices that a segment was lost. It comes down to half of what was in flight, once
    /// for each window; to one segment after a timeout.
    pub(super) fn handle_loss(&mut self, segment: Segment) {
        let times_out = segment.attempt > DEAD || self.outstanding() <= SEGMENT as u64;
        let recovery = self.recovery.take();
        let mut recovery =
            recovery.unwrap_or_else(|| Box::new(self.begin_recovery(BTreeMap::new(), 0)));
        if times_out {
            recovery.after_timeout = true;
            self.congestion_window = SEGMENT as u32;
        }
        let len = segment.len();
        if recovery.again.insert(segment.at, segment).is_none() {
            recovery.lost += len;
        }
        self.recovery = Some(recovery);
    }

    /// Begins to send again what was lost, at half the pace.
    fn begin_recovery(&mut self, again: BTreeMap<u64, Segment>, lost: u64) -> Recovery {
        let from = self.in_flight();
        let half = u32::try_from(from / 2).unwrap_or(u32::MAX);
        self.slow_start_threshold = half.max(2 * SEGMENT as u32);
        Recovery {
            until: self.sent,
            from,
            delivered: 0,
            sent: 0,
            again,
            lost,
            after_timeout: false,
        }
    }

    /// The next segment to be sent again, if it may be.
    pub(super) fn take_again(&mut self) -> Option<Segment> {
        let (allowed, in_flight) = (self.uncongested(), self.in_flight());
        let recovery = self.recovery.as_mut()?;
        let (at, segment) = recovery.again.first_key_value()?;
        // With nothing in flight nothing else would ever let it go.
        if in_flight > 0 && segment.len() > allowed {
            return None;
        }
        let at = *at;
        let segment = recovery.again.remove(&at)?;
        recovery.lost -= segment.len();
        Some(segment)
    }

    /// Whether something waits to be sent again.
    pub(super) fn has_again(&self) -> bool {
        let recovery = self.recovery.as_ref();
        recovery.is_some_and(|recovery| !recovery.again.is_empty())
    }
}

impl Incoming {
    pub(super) fn new(buffers: &StreamBuffers) -> Self {
        Incoming {
            expected: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            arrived: VecDeque::new(),
            unread: 0,
            ended: false,
            stalled_until: Instant::ZERO,
            advertised: buffers.receive.into(),
            capacity: buffers.receive,
            grows: buffers.grows,
            read: 0,
            read_since: Instant::ZERO,
        }
    }

    /// Takes the segment that is next, and those behind it that came early.
    pub(super) fn take(&mut self, segment: Segment) {
        self.append(segment);
        while let Some(next) = self.early.remove(&self.expected) {
            self.early_bytes -= next.bytes.len() as u32;
            self.append(next);
        }
    }

    /// Keeps a segment that came early.
    pub(super) fn keep(&mut self, segment: Segment) {
        let len = segment.bytes.len() as u32;
        if self.early.insert(segment.at, segment).is_none() {
            self.early_bytes += len;
        }
    }

    fn append(&mut self, segment: Segment) {
        self.expected += segment.bytes.len() as u64;
        self.unread += segment.bytes.len();
        self.ended |= segment.end;
        if !segment.bytes.is_empty() {
            self.arrived.push_back(segment.bytes);
        }
    }

    /// What is to be acknowledged now. Room that was promised once stays promised.
    pub(super) fn acknowledge(&mut self) -> Acknowledgement {
        self.advertised = self.room_to();
        Acknowledgement {
            arrived: self.acknowledged(),
            early: self.early_bytes,
            room_to: self.advertised,
        }
    }

    /// Bytes that have arrived in order; the end counts as one.
    pub(super) fn acknowledged(&self) -> u64 {
        self.expected + u64::from(self.ended)
    }

    /// Bytes that there is room for.
    pub(super) fn free(&self) -> u64 {
        self.room_to() - self.expected
    }

    fn room_to(&self) -> u64 {
        let free = u64::from(self.capacity).saturating_sub(self.unread as u64);
        self.advertised.max(self.expected + free)
    }

    /// Whether the sender learns that reading has made room, before anything else arrives: as on
    /// Linux, if little was left and at least twice as much is now.
    pub(super) fn has_opened(&self) -> bool {
        let left = self.advertised.saturating_sub(self.expected);
        let now = self.free();
        2 * left <= u64::from(self.capacity) && now > 0 && now >= 2 * left
    }

    /// The application has read this many bytes.
    pub(super) fn handle_read(&mut self, bytes: usize) {
        self.unread -= bytes;
        self.read = self.read.saturating_add(bytes as u32);
    }

    /// Gives a reader that takes more than half of the buffer in a round trip a larger one.
    pub(super) fn grow(&mut self, round_trip: Duration, now: Instant) {
        if now.since(self.read_since) >= round_trip {
            let wanted = self.read.saturating_mul(2).min(MAX_RECEIVE);
            self.capacity = self.capacity.max(wanted);
            self.read = 0;
            self.read_since = now;
        }
    }

    /// The connection is over. What has arrived in order can still be read, unless the system
    /// throws it away.
    pub(super) fn fail(&mut self, throws_away: bool) {
        self.early = BTreeMap::new();
        self.early_bytes = 0;
        if throws_away {
            self.arrived = VecDeque::new();
            self.unread = 0;
            // Or its reader would take what is missing for everything.
            self.ended = false;
        }
    }
}
