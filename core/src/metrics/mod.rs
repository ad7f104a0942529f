//! What a network has done, as every driver that counts tells it.

mod histogram;
mod metric;

pub use histogram::Histogram;
pub use metric::{Metric, MetricKind, MetricValue};

use crate::connection::{ByReason, CloseReason};
use core::fmt;

/// What a network, or one of its listeners, has done since it started. A snapshot: the numbers are each right, but a driver
/// with threads does not read them all at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Connections open now, those that are connecting included.
    pub open: u64,
    /// The most that may be, of each transport: [`max_connections`](crate::Limits::max_connections).
    pub open_limit: u64,
    /// Of those, the connections whose layers are in their handshake.
    pub handshaking: u64,
    /// The most that may be: [`max_handshakes`](crate::Limits::max_handshakes).
    pub handshaking_limit: u64,
    /// Bytes accepted by `send` that wait to be sent now.
    pub queued_bytes: u64,
    /// The most that may: [`max_queued_total`](crate::Limits::max_queued_total).
    pub queued_limit: u64,
    /// Bytes of input held now: frames of which a part has arrived, and bytes that were read and
    /// not yet delivered.
    pub held_bytes: u64,
    /// The most that may be: [`max_held_total`](crate::Limits::max_held_total).
    pub held_limit: u64,
    /// Connections that peers opened and the application admitted.
    pub accepted: u64,
    /// Connections that this side opened.
    pub connected: u64,
    /// Connects that failed, or that this side closed before they were complete.
    pub connect_failed: u64,
    /// Connections turned away, for whatever reason.
    pub refused: u64,
    /// Connections refused since as many were open as may be, or the table of datagram peers was full; also
    /// counted in [`refused`](Metrics::refused).
    pub refused_by_limit: u64,
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
    /// How long callbacks took, and what they sent to leave. What ran in a row is one time: for the input that
    /// one read of a stream gave, or all that was done for a datagram socket at once.
    pub handler_time: Histogram,
    /// How long workers took for all that one look for events had shown: as long may others have waited
    /// for their turn. Of a network that has workers; a listener has none of its own.
    pub loop_delay: Option<Histogram>,
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

    /// Connections that the application turned away.
    pub fn refused_by_application(&self) -> u64 {
        let others = self.refused_by_limit + self.refused_by_address + self.refused_by_handshakes;
        self.refused.saturating_sub(others)
    }

    /// The sum of these and others, limits included.
    pub fn add(&mut self, other: &Metrics) {
        for (number, more) in self.numbers().into_iter().zip(other.clone().numbers()) {
            *number += *more;
        }
        self.closed_by.add(&other.closed_by);
        self.handler_time.add(&other.handler_time);
        if let Some(times) = &other.loop_delay {
            self.loop_delay.get_or_insert_default().add(times);
        }
    }

    fn numbers(&mut self) -> [&mut u64; 27] {
        [
            &mut self.open,
            &mut self.open_limit,
            &mut self.handshaking,
            &mut self.handshaking_limit,
            &mut self.queued_bytes,
            &mut self.queued_limit,
            &mut self.held_bytes,
            &mut self.held_limit,
            &mut self.accepted,
            &mut self.connected,
            &mut self.connect_failed,
            &mut self.refused,
            &mut self.refused_by_limit,
            &mut self.refused_by_address,
            &mut self.refused_by_handshakes,
            &mut self.accept_failed,
            &mut self.messages_in,
            &mut self.messages_out,
            &mut self.bytes_in,
            &mut self.bytes_out,
            &mut self.dropped_too_long,
            &mut self.dropped_table_full,
            &mut self.dropped_not_admitted,
            &mut self.dropped_empty,
            &mut self.dropped_paused,
            &mut self.dropped_not_sent,
            &mut self.panics,
        ]
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
