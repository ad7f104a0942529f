//! Counters of what one network did.

use cubenet_core::CloseReason;
use std::time::Duration;

/// What a network has done since it started. The names mean what they mean on the other
/// drivers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Connections open now, those being called included.
    pub open: usize,
    /// Bytes accepted by `send` that wait to be sent now.
    pub queued_bytes: usize,
    /// Bytes of input held now: partial frames, and what was read before a pause and has not
    /// been delivered.
    pub held_bytes: usize,
    /// Connections that peers opened and the application admitted.
    pub accepted: u64,
    /// Connections that this side opened.
    pub connected: u64,
    /// Calls that were not answered.
    pub connect_failed: u64,
    /// Connections turned away: by the application, or because the table was full.
    pub refused: u64,
    /// Times that `accept` failed for lack of descriptors.
    pub accept_failed: u64,
    /// Messages received and handed to a handler.
    pub messages_in: u64,
    /// Messages accepted by `send`.
    pub messages_out: u64,
    /// Bytes of the messages received, without headers.
    pub bytes_in: u64,
    /// Bytes of the messages accepted, without headers.
    pub bytes_out: u64,
    /// Datagrams dropped: longer than the limit.
    pub dropped_too_long: u64,
    /// Datagrams dropped: from a new peer, and the table was full.
    pub dropped_table_full: u64,
    /// Datagrams dropped: from a new peer that the application did not admit, or to a
    /// listener that was closed.
    pub dropped_not_admitted: u64,
    /// Datagrams dropped: empty, from nobody known.
    pub dropped_empty: u64,
    /// Datagrams dropped: their connection was paused.
    pub dropped_paused: u64,
    /// Datagrams dropped: accepted by `send`, and there was no room for them.
    pub dropped_not_sent: u64,
    /// How long its workers were busy, all together, with what has a [cost](crate::Costs).
    pub busy: Duration,
    /// Callbacks that panicked.
    pub panics: u64,
    /// Connections closed, by [`CloseReason::kind`].
    pub closed_by: [u64; CloseReason::KINDS],
}

impl Metrics {
    /// Connections closed for this reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed_by[reason.kind()]
    }
}
