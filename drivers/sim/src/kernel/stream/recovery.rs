//! What a sender does about losses: it sends again what was lost, and no faster than what it sends
//! arrives (proportional rate reduction, RFC 6937).

use super::window::Outgoing;
use super::{SEGMENT, Segment};
use crate::kernel::retransmission_timeout;
use std::collections::BTreeMap;
use std::time::Duration;

/// So many losses of one segment, and the path is taken for dead.
const DEAD: u32 = 4;

/// While something is missing at the peer.
pub(super) struct Recovery {
    /// It is over once everything before this has arrived.
    until: u64,
    /// Bytes in flight when it began.
    from: u64,
    /// Bytes that have arrived since.
    delivered: u64,
    /// Bytes sent since.
    sent: u64,
    /// What is to be sent again, by its place in the stream, and how much that is.
    again: BTreeMap<u64, Segment>,
    lost: u64,
    /// A timeout began it: the window is one segment, and grows as at the beginning of a stream.
    after_timeout: bool,
}

impl Recovery {
    /// Bytes that may be sent, with so many in flight and a window to come down to.
    fn allowed(&self, in_flight: u64, threshold: u64) -> u64 {
        if in_flight > threshold {
            let share = self.delivered * threshold / self.from.max(1);
            return share.saturating_sub(self.sent);
        }
        let limit = self.delivered.saturating_sub(self.sent) + SEGMENT as u64;
        (threshold - in_flight).min(limit)
    }
}

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
