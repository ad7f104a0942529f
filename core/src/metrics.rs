//! What a network has done, as every driver that counts tells it.

use crate::connection::{ByReason, CloseReason};
use core::fmt;

/// What a network has done since it started. A snapshot: the numbers are each right, but a driver
/// with threads does not read them all at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Connections open now, those that are connecting included.
    pub open: u64,
    /// Of those, the connections whose layers are in their handshake.
    pub handshaking: u64,
    /// Bytes accepted by `send` that wait to be sent now.
    pub queued_bytes: u64,
    /// Bytes of input held now: frames of which a part has arrived, and bytes that were read and
    /// not yet delivered.
    pub held_bytes: u64,
    /// Connections that peers opened and the application admitted.
    pub accepted: u64,
    /// Connections that this side opened.
    pub connected: u64,
    /// Connects that failed, or that this side closed before they were complete.
    pub connect_failed: u64,
    /// Connections turned away: by the application, or because the table was full.
    pub refused: u64,
    /// Connections refused by `AddressLimits`; also counted in [`refused`](Metrics::refused).
    pub refused_by_address: u64,
    /// Connections refused by `max_handshakes`; also counted in [`refused`](Metrics::refused).
    pub refused_by_handshakes: u64,
    /// Times that `accept` failed for lack of descriptors or memory.
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
    /// Datagrams dropped: from a new peer that the application or its admission hook did not
    /// admit, or to a listener that was closed.
    pub dropped_not_admitted: u64,
    /// Datagrams dropped: empty, from an unknown peer or where empty datagrams close nothing.
    pub dropped_empty: u64,
    /// Datagrams dropped: their connection was paused.
    pub dropped_paused: u64,
    /// Datagrams dropped: accepted by `send` and refused by the transport.
    pub dropped_not_sent: u64,
    /// Callbacks that panicked.
    pub panics: u64,
    /// Connections closed, by the reason.
    pub closed_by: ByReason<u64>,
}

impl Metrics {
    /// How many connections closed for this kind of reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        *self.closed_by.get(reason)
    }

    /// How many connections closed.
    pub fn closed_total(&self) -> u64 {
        self.closed_by.iter().map(|(_, count)| count).sum()
    }

    /// How many datagrams were dropped.
    pub fn dropped_total(&self) -> u64 {
        self.dropped().iter().map(|(_, count)| count).sum()
    }

    fn dropped(&self) -> [(&'static str, u64); 6] {
        [
            ("too long", self.dropped_too_long),
            ("table full", self.dropped_table_full),
            ("not admitted", self.dropped_not_admitted),
            ("empty", self.dropped_empty),
            ("paused", self.dropped_paused),
            ("not sent", self.dropped_not_sent),
        ]
    }
}

/// One line a group; kinds of close and of drop that never happened are left out.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "connections: {} open, {} accepted, {} connected, {} refused, {} connects failed",
            self.open, self.accepted, self.connected, self.refused, self.connect_failed
        )?;
        write!(f, "closed: {}", self.closed_total())?;
        for (name, count) in self.closed_by.iter().filter(|(_, count)| **count > 0) {
            write!(f, ", {name} {count}")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "messages: {} in ({} bytes), {} out ({} bytes), {} bytes queued, {} held",
            self.messages_in,
            self.bytes_in,
            self.messages_out,
            self.bytes_out,
            self.queued_bytes,
            self.held_bytes
        )?;
        write!(f, "datagrams dropped: {}", self.dropped_total())?;
        let dropped = self.dropped().into_iter();
        for (name, count) in dropped.filter(|(_, count)| *count > 0) {
            write!(f, ", {name} {count}")?;
        }
        writeln!(f)?;
        write!(
            f,
            "failures: {} accepts failed, {} callbacks panicked",
            self.accept_failed, self.panics
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Timeout;
    use std::string::ToString;

    #[test]
    fn what_never_happened_is_left_out_of_the_text() {
        let mut metrics = Metrics {
            open: 2,
            dropped_empty: 3,
            ..Metrics::default()
        };
        let idle = CloseReason::Timeout(Timeout::Idle);
        *metrics.closed_by.get_mut(CloseReason::Peer) += 4;
        *metrics.closed_by.get_mut(idle) += 1;
        assert_eq!(metrics.closed(CloseReason::Peer), 4);
        assert_eq!(metrics.closed_total(), 5);
        assert_eq!(metrics.dropped_total(), 3);
        let text = metrics.to_string();
        let closed = "closed: 5, peer 4, idle timeout 1\n";
        assert!(text.contains(closed), "{text}");
        assert!(text.contains("datagrams dropped: 3, empty 3\n"), "{text}");
    }
}
