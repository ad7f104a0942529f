//! Counters of what the network did, added up once an iteration so that messages pay nothing.

use cubenet_core::{ByReason, Metrics};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($name:ident,)* ; $($rare:ident,)*) => {
        /// What one thread has counted and not yet added to the [`Totals`].
        #[derive(Default)]
        pub(crate) struct Tally {
            $(pub(crate) $name: u64,)*
            $(pub(crate) $rare: u64,)*
        }

        /// The sums over all threads.
        #[derive(Default)]
        pub(crate) struct Totals {
            $(pub(crate) $name: AtomicU64,)*
            $(pub(crate) $rare: AtomicU64,)*
            pub(crate) closed_by: ByReason<AtomicU64>,
        }

        impl Tally {
            /// Adds it to the sums and begins anew.
            pub(crate) fn publish(&mut self, totals: &Totals) {
                self.publish_messages(totals);
                // All at once, since it is asked in every iteration.
                if 0 $(| self.$rare)* == 0 {
                    return;
                }
                $(totals.$rare.fetch_add(std::mem::take(&mut self.$rare), Relaxed);)*
            }

            /// The same for what is counted of messages.
            pub(crate) fn publish_messages(&mut self, totals: &Totals) {
                $(if self.$name != 0 {
                    totals.$name.fetch_add(std::mem::take(&mut self.$name), Relaxed);
                })*
            }
        }

        impl Totals {
            pub(crate) fn snapshot(&self, open: usize) -> Metrics {
                let mut metrics = Metrics::default();
                metrics.open = open as u64;
                $(metrics.$name = self.$name.load(Relaxed);)*
                $(metrics.$rare = self.$rare.load(Relaxed);)*
                metrics.closed_by = self.closed_by.map(|count| count.load(Relaxed));
                metrics
            }
        }
    };
}

// As [`Metrics`] has them: those of messages, and those that change seldom.
counters! {
    messages_in,
    messages_out,
    bytes_in,
    bytes_out,
    ;
    accepted,
    connected,
    connect_failed,
    refused,
    refused_by_address,
    refused_by_handshakes,
    accept_failed,
    dropped_too_long,
    dropped_table_full,
    dropped_not_admitted,
    dropped_empty,
    dropped_paused,
    dropped_not_sent,
    panics,
}
