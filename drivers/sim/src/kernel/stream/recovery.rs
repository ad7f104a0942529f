//! What a sender does about losses: it sends again what was lost, and no faster than what it sends
//! arrives (proportional rate reduction, RFC 6937).

use crate::kernel::segment::{SEGMENT, Segment};
use std::collections::BTreeMap;

/// While something is missing at the peer.
pub(super) struct Recovery {
    /// It is over once everything before this has arrived.
    pub(super) until: u64,
    /// Bytes in flight when it began.
    pub(super) from: u64,
    /// Bytes that have arrived since.
    pub(super) delivered: u64,
    /// Bytes sent since.
    pub(super) sent: u64,
    /// What is to be sent again, by its place in the stream, and how much that is.
    pub(super) again: BTreeMap<u64, Segment>,
    pub(super) lost: u64,
    /// A timeout began it: the window is one segment, and grows as at the beginning of a stream.
    pub(super) after_timeout: bool,
}

impl Recovery {
    /// Bytes that may be sent, with so many in flight and a window to come down to.
    pub(super) fn allowed(&self, in_flight: u64, threshold: u64) -> u64 {
        if in_flight > threshold {
            let share = self.delivered * threshold / self.from.max(1);
            return share.saturating_sub(self.sent);
        }
        let limit = self.delivered.saturating_sub(self.sent) + SEGMENT as u64;
        (threshold - in_flight).min(limit)
    }
}
