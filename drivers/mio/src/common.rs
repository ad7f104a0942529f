//! What all threads of a network share: limits, counters, the clock.

use crate::metrics::{Metrics, Totals};
use crate::socket::SocketOptions;
use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use cubenet_core::{ConnectionId, Instant, Limits};

/// What all threads of a network share.
pub(crate) struct Common {
    pub(crate) limits: Limits,
    pub(crate) options: SocketOptions,
    pub(crate) totals: Totals,
    /// Keys the tables of datagram peers.
    pub(crate) hash_key: (u64, u64),
    open: AtomicUsize,
    queued_total: AtomicUsize,
    origin: std::time::Instant,
}

impl Common {
    pub(crate) fn new(limits: Limits, options: SocketOptions, hash_key: (u64, u64)) -> Self {
        Common {
            limits,
            options,
            totals: Totals::default(),
            hash_key,
            open: AtomicUsize::new(0),
            queued_total: AtomicUsize::new(0),
            origin: std::time::Instant::now(),
        }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let open = self.open.load(Relaxed);
        self.totals.snapshot(open, self.queued_total())
    }

    /// The time, as the core counts it: since the network started.
    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(self.origin.elapsed().as_micros() as u64)
    }

    /// Makes room for a connection; `false` if there is none.
    pub(crate) fn reserve(&self) -> bool {
        let reserved = self.open.fetch_add(1, Relaxed) < self.limits.max_connections;
        if !reserved {
            self.release();
        }
        reserved
    }

    /// Gives the room of a connection back.
    pub(crate) fn release(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Bytes that wait on all connections.
    pub(crate) fn queued_total(&self) -> usize {
        self.queued_total.load(Relaxed)
    }

    /// Returns the sum.
    pub(crate) fn add_queued(&self, bytes: usize) -> usize {
        self.queued_total.fetch_add(bytes, Relaxed) + bytes
    }

    pub(crate) fn sub_queued(&self, bytes: usize) {
        self.queued_total.fetch_sub(bytes, Relaxed);
    }
}

/// A number that nothing in this process has had. Networks share the numbers: a handle of
/// one may be used in a callback of another, which must not take it for its own.
pub(crate) fn next_id() -> ConnectionId {
    // The standard library's in any case: a static outlives each schedule that is tried, and
    // the tests that try them run side by side.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    ConnectionId(NEXT.fetch_add(1, Relaxed))
}
