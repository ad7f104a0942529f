//! What all threads of a network share: limits, counters, the clock.

use crate::log::warn_limited;
use crate::metrics::{AllCounts, Counts};
use crate::network::socket_options::SocketOptions;
use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use crate::sys;
use cubenet_core::open_connections::may_open;
use cubenet_core::{
    AddressLimits, AddressRefusal, AddressTable, Budgets, ConnectionId, Instant, Limits, Transport,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What all threads of a network share.
pub(crate) struct NetworkShared {
    pub(crate) limits: Limits,
    pub(crate) budgets: Budgets,
    pub(crate) options: SocketOptions,
    pub(crate) counts: AllCounts,
    /// Keys the tables of datagram peers.
    pub(crate) hash_key: (u64, u64),
    open_streams: AtomicUsize,
    open_datagrams: AtomicUsize,
    handshakes: AtomicUsize,
    queued_total: AtomicUsize,
    held_total: AtomicUsize,
    /// Tasks of the application's that wait for a worker.
    tasks: AtomicUsize,
    pub(crate) max_tasks: usize,
    /// How long workers ask for events before they sleep.
    pub(crate) spin: Duration,
    /// `None` if nothing is limited.
    addresses: Option<Mutex<AddressTable>>,
    /// When it started, by the clock of the system.
    origin: u64,
}

/// Why there is no room for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// There are `max_connections` of its transport.
    Connections,
    /// Its peer's address has, or makes, too many.
    Address(AddressRefusal),
    /// There are `max_handshakes`.
    Handshakes,
}

impl NetworkShared {
    pub(crate) fn new(
        limits: Limits,
        budgets: Budgets,
        options: SocketOptions,
        addresses: AddressLimits,
        hash_key: (u64, u64),
    ) -> Self {
        let limited = addresses.limits_anything();
        NetworkShared {
            limits,
            budgets,
            options,
            counts: AllCounts::default(),
            hash_key,
            open_streams: AtomicUsize::new(0),
            open_datagrams: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            queued_total: AtomicUsize::new(0),
            held_total: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            max_tasks: 1 << 16,
            spin: Duration::ZERO,
            addresses: limited.then(|| Mutex::new(AddressTable::new(addresses))),
            origin: sys::clock_micros(),
        }
    }

    /// Where [`now`](Self::now) begins, in microseconds of the system's clock.
    pub(crate) fn origin(&self) -> u64 {
        self.origin
    }

    /// The time, as the core counts it: since the network started.
    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(sys::clock_micros() - self.origin)
    }

    fn open(&self, transport: Transport) -> &AtomicUsize {
        if transport == Transport::Tcp {
            &self.open_streams
        } else {
            &self.open_datagrams
        }
    }

    fn addresses(&self) -> Option<MutexGuard<'_, AddressTable>> {
        let addresses = self.addresses.as_ref()?;
        Some(addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes room for a connection; `false` if there is none. To be [released](NetworkShared::release).
    pub(crate) fn reserve(&self, transport: Transport) -> bool {
        let open = self.open(transport);
        let reserved = may_open(open.fetch_add(1, Relaxed), &self.limits);
        if !reserved {
            open.fetch_sub(1, Relaxed);
        }
        reserved
    }

    /// Whether there is room for a connection now.
    pub(crate) fn has_room(&self, transport: Transport) -> bool {
        may_open(self.open(transport).load(Relaxed), &self.limits)
    }

    /// Gives the room of a connection back.
    pub(crate) fn release(&self, transport: Transport) {
        let before = self.open(transport).fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a connection was released twice");
    }

    /// Counts a handshake that begins, to be [ended](NetworkShared::end_handshake); `false` if it would
    /// be one too many.
    pub(crate) fn begin_handshake(&self) -> bool {
        let limit = self.limits.max_handshakes();
        let one_more = |count| (count < limit).then_some(count + 1);
        let counted = self.handshakes.fetch_update(Relaxed, Relaxed, one_more);
        counted.is_ok()
    }

    pub(crate) fn end_handshake(&self) {
        let before = self.handshakes.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a handshake ended twice");
    }

    /// Counts a connection that `peer` opens. To be [released](NetworkShared::release_address).
    pub(crate) fn reserve_address(&self, peer: IpAddr, transport: Transport) -> Result<(), NoRoom> {
        match self.addresses() {
            Some(mut addresses) => addresses
                .handle_open(peer, transport, self.now())
                .map_err(NoRoom::Address),
            None => Ok(()),
        }
    }

    /// A connection that `peer` opened has closed.
    pub(crate) fn release_address(&self, peer: IpAddr, transport: Transport) {
        if let Some(mut addresses) = self.addresses() {
            addresses.handle_close(peer, transport, self.now());
        }
    }

    /// Counts a connection for which there is no room, and tells of it.
    pub(crate) fn refused(&self, peer: SocketAddr, reason: NoRoom, counts: &Counts) {
        counts.refused.count();
        match reason {
            NoRoom::Connections => {
                counts.refused_by_limit.count();
                let limit = self.limits.max_connections();
                warn_limited!(%peer, limit, "connection refused: there are too many");
            }
            NoRoom::Address(refusal) => {
                counts.refused_by_address.count();
                warn_limited!(%peer, ?refusal, "connection refused: its address has, or opens, too many");
            }
            NoRoom::Handshakes => {
                counts.refused_by_handshakes.count();
                let limit = self.limits.max_handshakes();
                warn_limited!(%peer, limit, "connection refused: too many are in their handshake");
            }
        }
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
        let before = self.queued_total.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "bytes were taken out of the queues twice");
    }

    /// A task is to wait for a worker. Returns whether it may.
    pub(crate) fn begin_task(&self) -> bool {
        let has_room = |tasks: usize| (tasks < self.max_tasks).then_some(tasks + 1);
        self.tasks.fetch_update(Relaxed, Relaxed, has_room).is_ok()
    }

    /// A task that waited is over.
    pub(crate) fn end_task(&self) {
        self.tasks.fetch_sub(1, Relaxed);
    }

    /// Bytes of input that all connections hold.
    pub(crate) fn held_total(&self) -> usize {
        self.held_total.load(Relaxed)
    }

    /// A connection that held `before` bytes of its input holds `after`.
    pub(crate) fn change_held(&self, before: usize, after: usize) {
        if after >= before {
            self.held_total.fetch_add(after - before, Relaxed);
        } else {
            let total = self.held_total.fetch_sub(before - after, Relaxed);
            debug_assert!(total >= before - after, "held input was let go twice");
        }
    }
}

/// A number that nothing in this process has had. Networks share the numbers: a handle of
/// one may be used in a callback of another, which must not take it for its own.
pub(crate) fn next_id() -> ConnectionId {
    // The standard library's in any case: a static outlives each schedule that is tried, and
    // the tests that try them run side by side.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    ConnectionId::from_u64(NEXT.fetch_add(1, Relaxed))
}
