//! Counters of what the network did, added up once a turn so that messages pay nothing.

use cubenet_core::CloseReason;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a network has done since it started. A snapshot: the numbers are each
        /// right, but were not all read at one moment, and a worker adds its share at the
        /// end of each turn.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            /// Connections open now, those being called included.
            pub open: u64,
            /// Bytes accepted by `send` that wait to be sent now.
            pub queued_bytes: u64,
            /// Bytes of input held now: frames of which a part has arrived, and what was read
            /// and not yet delivered.
            pub held_bytes: u64,
            $($(#[$doc])* pub $name: u64,)*
            /// Connections closed, by [`CloseReason::kind`].
            pub closed_by: [u64; CloseReason::KINDS],
        }

        /// What one thread has counted and not yet added to the [`Totals`].
        #[derive(Default)]
        pub(crate) struct Tally {
            $(pub(crate) $name: u64,)*
        }

        /// The sums over all threads.
        #[derive(Default)]
        pub(crate) struct Totals {
            $(pub(crate) $name: AtomicU64,)*
            pub(crate) closed_by: [AtomicU64; CloseReason::KINDS],
        }

        impl Tally {
            /// Adds it to the sums and begins anew.
            pub(crate) fn publish(&mut self, totals: &Totals) {
                $(if self.$name != 0 {
                    totals.$name.fetch_add(std::mem::take(&mut self.$name), Relaxed);
                })*
            }
        }

        impl Totals {
            pub(crate) fn snapshot(
                &self,
                open: usize,
                queued_bytes: usize,
                held_bytes: usize,
            ) -> Metrics {
                Metrics {
                    open: open as u64,
                    queued_bytes: queued_bytes as u64,
                    held_bytes: held_bytes as u64,
                    $($name: self.$name.load(Relaxed),)*
                    closed_by: std::array::from_fn(|kind| self.closed_by[kind].load(Relaxed)),
                }
            }
        }
    };
}

counters! {
    /// Connections that peers opened and the application admitted.
    accepted,
    /// Connections that this side opened.
    connected,
    /// Calls that were not answered.
    connect_failed,
    /// Connections turned away: by the application, or because the table was full.
    refused,
    /// Of those, connections whose peer's address had, or opened, too many.
    refused_by_address,
    /// Times that `accept` failed for lack of descriptors or memory.
    accept_failed,
    /// Messages received and handed to a handler.
    messages_in,
    /// Messages accepted by `send`.
    messages_out,
    /// Bytes of the messages received, without headers.
    bytes_in,
    /// Bytes of the messages accepted, without headers.
    bytes_out,
    /// Datagrams dropped: longer than the limit.
    dropped_too_long,
    /// Datagrams dropped: from a new peer, and the table was full.
    dropped_table_full,
    /// Datagrams dropped: from a new peer that the application or its admission hook did not
    /// admit, or to a listener that was closed.
    dropped_not_admitted,
    /// Datagrams dropped: empty, from nobody known, or where empty datagrams close nothing.
    dropped_empty,
    /// Datagrams dropped: their connection was paused.
    dropped_paused,
    /// Datagrams dropped: accepted by `send` and refused by the operating system.
    dropped_not_sent,
    /// Callbacks that panicked.
    panics,
}

impl Metrics {
    /// How many connections closed for this kind of reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed_by[reason.kind()]
    }

    /// How many connections closed.
    pub fn closed_total(&self) -> u64 {
        self.closed_by.iter().sum()
    }

    /// How many datagrams were dropped.
    pub fn dropped_total(&self) -> u64 {
        self.dropped_too_long
            + self.dropped_table_full
            + self.dropped_not_admitted
            + self.dropped_empty
            + self.dropped_paused
            + self.dropped_not_sent
    }
}

/// One line a group; kinds of close and of drop that never happened are left out.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "connections: {} open, {} accepted, {} connected, {} refused, {} calls unanswered",
            self.open, self.accepted, self.connected, self.refused, self.connect_failed
        )?;
        write!(f, "closed: {}", self.closed_total())?;
        for (name, count) in CloseReason::KIND_NAMES.iter().zip(self.closed_by) {
            if count > 0 {
                write!(f, ", {name} {count}")?;
            }
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
        let dropped = [
            ("too long", self.dropped_too_long),
            ("table full", self.dropped_table_full),
            ("not admitted", self.dropped_not_admitted),
            ("empty", self.dropped_empty),
            ("paused", self.dropped_paused),
            ("not sent", self.dropped_not_sent),
        ];
        for (name, count) in dropped.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, ", {name} {count}")?;
        }
        writeln!(f)?;
        write!(
            f,
            "trouble: {} accepts failed, {} callbacks panicked",
            self.accept_failed, self.panics
        )
    }
}
