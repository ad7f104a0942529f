//! Where a connection lives: its worker, and its limits.

use crate::network::shared::NetworkShared;
use crate::worker::handle::WorkerHandle;
use cubenet_core::Limits;
use std::sync::Arc;

/// The worker and the limits of a connection: of each listener there is one for every worker,
/// which its connections share.
pub(crate) struct Home {
    pub(crate) worker: Arc<WorkerHandle>,
    pub(crate) limits: Arc<Limits>,
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
}
