//! What holds a sender back: the send buffer, the receiver's buffer, and congestion.

use super::{SEGMENT, Segment};
use crate::kernel::retransmission_timeout;
use bytes::Bytes;
use cubenet_core::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Bytes that may be under way before the first is acknowledged (RFC 6928).
const INITIAL_WINDOW: u32 = 10 * SEGMENT as u32;

/// What is sent.
pub(super) struct Outgoing {
    pub(super) unsent: VecDeque<u8>,
    /// Bytes sent so far.
    pub(super) sent: u64,
    /// Bytes sent that the peer has not read.
    pub(super) outstanding: u32,
    /// When the peer's word comes that it has read this many.
    pub(super) credits: VecDeque<(Instant, u32)>,
    /// Bytes that the peer has read, and whose acknowledgements were lost.
    pub(super) owed: u32,
    /// An acknowledgement is to be repeated.
    pub(super) repeats: bool,
    /// The send buffer.
    pub(super) capacity: u32,
    /// The peer's receive buffer.
    pub(super) window: u32,
    pub(super) congestion_window: u32,
    pub(super) slow_start_threshold: u32,
    /// Losses among the bytes before this have been answered.
    pub(super) recovered: u64,
    pub(super) end: End,
    /// The owner waits for room.
    pub(super) wanted: bool,
    pub(super) dirty: bool,
    /// When it is looked at again.
    pub(super) armed: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    None,
    Asked,
    Sent,
}

/// What is received.
pub(super) struct Incoming {
    /// Bytes that have come in order.
    pub(super) expected: u64,
    /// What came before its turn.
    pub(super) early: BTreeMap<u64, Segment>,
    pub(super) arrived: VecDeque<Bytes>,
    pub(super) unread: usize,
    pub(super) ended: bool,
    pub(super) stalled_until: Instant,
}

impl Outgoing {
    pub(super) fn new(capacity: u32, window: u32) -> Self {
        Outgoing {
            unsent: VecDeque::new(),
            sent: 0,
            outstanding: 0,
            credits: VecDeque::new(),
            owed: 0,
            repeats: false,
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
    pub(super) fn retire(&mut self, now: Instant) {
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

    pub(super) fn room(&self) -> usize {
        (self.capacity as usize).saturating_sub(self.unsent.len() + self.outstanding as usize)
    }

    /// A segment was lost. Returns when it is sent again.
    pub(super) fn lost(&mut self, segment: &Segment, round_trip: Duration) -> Duration {
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
    pub(super) fn new() -> Self {
        Incoming {
            expected: 0,
            early: BTreeMap::new(),
            arrived: VecDeque::new(),
            unread: 0,
            ended: false,
            stalled_until: Instant::ZERO,
        }
    }

    pub(super) fn take(&mut self, segment: Segment) -> usize {
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
