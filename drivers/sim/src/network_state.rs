//! What the connections of one network share.

use crate::costs::Costs;
use crate::kernel::HostId;
use crate::worker::Worker;
use cubenet_core::{Backlog, Budgets, CloseReason, Limits, Metrics, Transport};
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
    /// Connections open now, those that are connecting included.
    pub(crate) open: usize,
    /// Of those, the streams.
    pub(crate) open_streams: usize,
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
        self.crashed || self.is_stopping && self.open == 0
    }

    /// Its host has crashed: nothing of it is left.
    pub(crate) fn crash(&mut self) {
        self.crashed = true;
        self.open = 0;
        self.open_streams = 0;
        self.queued_bytes = 0;
        self.held_bytes = 0;
        for worker in &mut self.workers {
            worker.run_queue.clear();
        }
    }

    /// Whether there is room for one connection more of this transport.
    pub(crate) fn has_room(&self, transport: Transport) -> bool {
        let open = if transport == Transport::Tcp {
            self.open_streams
        } else {
            self.open - self.open_streams
        };
        open < self.limits.max_connections()
    }

    /// Makes room for a connection; `false` if its transport has none.
    pub(crate) fn reserve(&mut self, transport: Transport) -> bool {
        let room = self.has_room(transport);
        if room {
            self.open += 1;
            self.open_streams += usize::from(transport == Transport::Tcp);
        }
        room
    }

    /// Gives the room of a connection back.
    pub(crate) fn release(&mut self, transport: Transport) {
        self.open -= 1;
        self.open_streams -= usize::from(transport == Transport::Tcp);
        debug_assert!(
            self.open_streams <= self.open,
            "a connection was released twice"
        );
    }

    /// Counts a connection that has closed.
    pub(crate) fn count_closed(&mut self, transport: Transport, reason: CloseReason) {
        self.release(transport);
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
