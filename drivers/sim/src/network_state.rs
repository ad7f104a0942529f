//! What the connections of one network share.

use crate::costs::Costs;
use crate::kernel::HostId;
use crate::worker::Worker;
use cubenet_core::{Backlog, Budgets, CloseReason, Limits, Metrics, OpenConnections, Transport};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetworkId(pub(crate) u32);

/// One network.
pub(crate) struct NetworkState {
    pub(crate) host: HostId,
    pub(crate) limits: Arc<Limits>,
    pub(crate) budgets: Budgets,
    pub(crate) metrics: Metrics,
    pub(crate) open: OpenConnections,
    /// Connections whose layers are in their handshake now.
    pub(crate) handshaking: usize,
    /// Bytes that wait to be sent now.
    pub(crate) queued_bytes: usize,
    /// Bytes of input held now.
    pub(crate) held_bytes: usize,
    /// How long its workers were busy, all together.
    pub(crate) busy: Duration,
    /// Keys the tables of its datagram peers.
    pub(crate) hash_key: (u64, u64),
    /// It stops, or has stopped.
    pub(crate) is_stopping: bool,
    /// Its host crashed.
    pub(crate) crashed: bool,
    pub(crate) backlog: usize,
    pub(crate) costs: Costs,
    pub(crate) workers: Vec<Worker>,
}

impl NetworkState {
    /// Whether it takes connections.
    pub(crate) fn is_running(&self) -> bool {
        !self.is_stopping && !self.crashed
    }

    /// Whether nothing of it is left.
    pub(crate) fn is_stopped(&self) -> bool {
        self.crashed || self.is_stopping && self.open.total() == 0
    }

    /// Its host has crashed: nothing of it is left.
    pub(crate) fn crash(&mut self) {
        self.crashed = true;
        self.open = OpenConnections::default();
        self.handshaking = 0;
        self.queued_bytes = 0;
        self.held_bytes = 0;
        for worker in &mut self.workers {
            worker.run_queue.clear();
        }
    }

    /// Makes room for a connection; `false` if its transport has none.
    pub(crate) fn reserve(&mut self, transport: Transport) -> bool {
        self.open.try_add(transport, &self.limits)
    }

    /// Whether there is room for the handshake of another layer.
    pub(crate) fn may_handshake(&self) -> bool {
        self.handshaking < self.limits.max_handshakes()
    }

    /// Counts a connection that has closed.
    pub(crate) fn count_closed(&mut self, transport: Transport, reason: CloseReason) {
        self.open.remove(transport);
        *self.metrics.closed_by.get_mut(reason) += 1;
    }

    pub(crate) fn backlog(&self, own: usize) -> Backlog {
        Backlog::growing(own, self.queued_bytes)
    }

    /// Whether its workers take time, so that sockets wait for them.
    pub(crate) fn has_costs(&self) -> bool {
        self.costs != Costs::default()
    }
}
