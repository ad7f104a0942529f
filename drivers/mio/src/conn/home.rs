//! Where a connection lives: its worker, and its limits.

use crate::metrics::Counts;
use crate::network::shared::NetworkShared;
use crate::worker::handle::WorkerHandle;
use cubenet_core::Limits;
use std::sync::Arc;

/// The worker and the limits of a connection: of each listener there is one for every worker,
/// which its connections share.
pub(crate) struct Home {
    pub(crate) worker: Arc<WorkerHandle>,
    pub(crate) limits: Arc<Limits>,
    /// Numbers of its connections.
    pub(crate) counts: Arc<Counts>,
}

impl Home {
    /// What all threads of the network share.
    pub(crate) fn network(&self) -> &NetworkShared {
        &self.worker.network
    }

    /// The same, to be shared.
    pub(crate) fn shared_network(&self) -> &Arc<NetworkShared> {
        &self.worker.network
    }

    /// Bytes are to wait on one of its connections. Returns how many wait on all of the network.
    pub(crate) fn add_queued(&self, bytes: usize) -> usize {
        self.counts.queued.add(bytes);
        self.network().add_queued(bytes)
    }

    /// They do not any more.
    pub(crate) fn sub_queued(&self, bytes: usize) {
        self.counts.queued.sub(bytes);
        self.network().sub_queued(bytes);
    }
}
