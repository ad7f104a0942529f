//! Numbers of what the network does.
//!
//! Each listener has one [`Counts`] for each worker, and the connections that the network opens itself have
//! another. What a worker counts of its own connections' messages is stored by it alone: plain loads and
//! stores. Numbers are added up when they are asked for.

use cubenet_core::{ByReason, Histogram, Instant, Limits, Metrics};
use std::array;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A number that one thread alone changes, and others read.
#[derive(Default)]
pub(crate) struct OwnNumber(AtomicU64);

impl OwnNumber {
    pub(crate) fn add(&self, more: u64) {
        // No other thread comes between.
        self.0.store(self.0.load(Relaxed) + more, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Times that one thread alone records.
pub(crate) struct OwnTimes {
    counts: [OwnNumber; Histogram::STEPS],
    micros: OwnNumber,
}

impl Default for OwnTimes {
    fn default() -> Self {
        OwnTimes {
            counts: array::from_fn(|_| OwnNumber::default()),
            micros: OwnNumber::default(),
        }
    }
}

impl OwnTimes {
    /// Something took from one moment to another.
    pub(crate) fn record(&self, from: Instant, to: Instant) {
        let micros = to.as_micros().saturating_sub(from.as_micros());
        self.counts[Histogram::step(micros)].add(1);
        self.micros.add(micros);
    }

    pub(crate) fn histogram(&self) -> Histogram {
        let counts = array::from_fn(|step| self.counts[step].get());
        Histogram::from_counts(counts, self.micros.get())
    }
}

macro_rules! counts {
    ($($number:ident,)* ; $($amount:ident => $field:ident,)*) => {
        /// Numbers of the connections of a worker that have one origin: a listener, or connects.
        #[derive(Default)]
        pub(crate) struct Counts {
            /// What the worker does with messages.
            pub(crate) own_messages_in: OwnNumber,
            pub(crate) own_bytes_in: OwnNumber,
            pub(crate) own_messages_out: OwnNumber,
            pub(crate) own_bytes_out: OwnNumber,
            pub(crate) handler_time: OwnTimes,
            /// What other threads do.
            messages_out: AtomicU64,
            bytes_out: AtomicU64,
            $(pub(crate) $number: Number,)*
            $(pub(crate) $amount: Amount,)*
            pub(crate) closed_by: ByReason<Number>,
        }

        impl Counts {
            /// Adds its numbers to these.
            pub(crate) fn add_to(&self, metrics: &mut Metrics) {
                metrics.messages_in += self.own_messages_in.get();
                metrics.bytes_in += self.own_bytes_in.get();
                metrics.messages_out += self.own_messages_out.get() + self.messages_out.load(Relaxed);
                metrics.bytes_out += self.own_bytes_out.get() + self.bytes_out.load(Relaxed);
                metrics.handler_time.add(&self.handler_time.histogram());
                $(metrics.$number += self.$number.get();)*
                $(metrics.$field += self.$amount.get();)*
                metrics.closed_by.add(&self.closed_by.map(Number::get));
            }
        }
    };
}

counts! {
    accepted,
    connected,
    connect_failed,
    refused,
    refused_by_limit,
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
    ;
    open => open,
    handshaking => handshaking,
    queued => queued_bytes,
    held => held_bytes,
}

impl Counts {
    /// Messages were accepted by a thread that is not their connection's worker.
    pub(crate) fn sent(&self, messages: u64, bytes: u64) {
        self.messages_out.fetch_add(messages, Relaxed);
        self.bytes_out.fetch_add(bytes, Relaxed);
    }
}

/// A number that any thread counts up, seldom.
#[derive(Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How much there is of something now.
#[derive(Default)]
pub(crate) struct Amount(AtomicUsize);

impl Amount {
    pub(crate) fn add(&self, more: usize) {
        self.0.fetch_add(more, Relaxed);
    }

    pub(crate) fn sub(&self, less: usize) {
        let before = self.0.fetch_sub(less, Relaxed);
        debug_assert!(before >= less, "something was taken away twice");
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed) as u64
    }
}

/// All counts of a network.
#[derive(Default)]
pub(crate) struct AllCounts(Mutex<Registered>);

#[derive(Default)]
struct Registered {
    counts: Vec<Arc<Counts>>,
    /// The sum of those that nothing counts in any more.
    retired: Metrics,
}

impl AllCounts {
    fn registered(&self) -> MutexGuard<'_, Registered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts for the connections of a worker that have one origin.
    pub(crate) fn register(&self) -> Arc<Counts> {
        let counts = Arc::new(Counts::default());
        let mut registered = self.registered();
        registered.retire();
        registered.counts.push(Arc::clone(&counts));
        counts
    }

    /// The sum of all.
    pub(crate) fn metrics(&self) -> Metrics {
        let mut registered = self.registered();
        registered.retire();
        let mut metrics = registered.retired.clone();
        for counts in &registered.counts {
            counts.add_to(&mut metrics);
        }
        metrics
    }
}

impl Registered {
    /// Keeps the sum alone of those that nothing counts in any more: listeners come and go.
    fn retire(&mut self) {
        let retired = &mut self.retired;
        self.counts.retain(|counts| {
            let is_used = Arc::strong_count(counts) > 1;
            if !is_used {
                // What another thread has counted last is seen with its reference gone.
                std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
                counts.add_to(retired);
            }
            is_used
        });
    }
}

/// These numbers, with the limits to which some of them are held.
pub(crate) fn with_limits(mut metrics: Metrics, limits: &Limits) -> Metrics {
    metrics.open_limit = limits.max_connections() as u64;
    metrics.handshaking_limit = limits.max_handshakes() as u64;
    metrics.queued_limit = limits.max_queued_total() as u64;
    metrics.held_limit = limits.max_held_total() as u64;
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use cubenet_core::CloseReason;

    #[test]
    fn what_listeners_have_counted_stays_when_they_go() {
        let all = AllCounts::default();
        for nth in 1..=100 {
            let counts = all.register();
            counts.accepted.count();
            counts.own_messages_in.add(2);
            counts.closed_by.get(CloseReason::Peer).count();
            counts
                .handler_time
                .record(Instant::from_micros(5), Instant::from_micros(9));
            counts.sent(3, 30);
            let metrics = all.metrics();
            assert_eq!((metrics.accepted, metrics.messages_in), (nth, 2 * nth));
            assert_eq!(
                (metrics.messages_out, metrics.bytes_out),
                (3 * nth, 30 * nth)
            );
            drop(counts);
            let metrics = all.metrics();
            assert_eq!(
                (metrics.accepted, metrics.closed(CloseReason::Peer)),
                (nth, nth)
            );
            assert_eq!(metrics.handler_time.count(), nth);
            assert_eq!(metrics.handler_time.sum().as_micros() as u64, 4 * nth);
        }
        assert!(all.registered().counts.is_empty());
    }
}
