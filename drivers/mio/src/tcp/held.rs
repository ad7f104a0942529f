//! Input that a stream holds: what was read and not delivered, and parts of frames.

use crate::conn::info::Conn;
use crate::tcp::stream::{Holds, Stream};
use crate::worker::budget::Budget;
use crate::worker::resources::WorkerResources;
use bytes::Bytes;
use cubenet_core::Reading;

impl Stream {
    /// Delivers what was parked. Returns whether there is nothing left of it, so that newer
    /// input may follow.
    pub(super) fn unpark(
        &mut self,
        token: usize,
        budget: &mut Budget,
        resources: &mut WorkerResources,
    ) -> bool {
        if self.shared.info().reading() == Reading::Hold {
            return false;
        }
        let held = resources.held.get_mut(&token);
        let parked = held.map(|held| std::mem::take(&mut held.parked));
        let parked = parked.unwrap_or_default();
        let undelivered = self.deliver(&parked, budget, resources);
        let rest = parked.slice(parked.len() - undelivered..);
        self.hold(token, rest, resources);
        undelivered == 0
    }

    /// Keeps what was left undelivered, and counts what is held: that, and what there is of a
    /// frame.
    pub(super) fn hold(
        &mut self,
        token: usize,
        rest: impl AsRef<[u8]> + Into<Parked>,
        resources: &mut WorkerResources,
    ) {
        let partial = self.recv.footprint();
        let held = partial + rest.as_ref().len();
        if held == 0 {
            if std::mem::replace(&mut self.holds, Holds::Nothing) != Holds::Nothing {
                resources.let_go(token);
            }
            return;
        }
        // What is held now is not what was held before a message was whole.
        if std::mem::take(&mut self.progressed) && self.holds != Holds::Nothing {
            resources.let_go(token);
        }
        self.holds = if rest.as_ref().is_empty() {
            Holds::Partial
        } else {
            Holds::Parked
        };
        let Parked(parked) = rest.into();
        resources.hold(token, held, parked);
    }
}

/// Input that waits to be delivered.
pub(crate) struct Parked(Bytes);

impl From<&[u8]> for Parked {
    fn from(input: &[u8]) -> Self {
        Parked(Bytes::copy_from_slice(input))
    }
}

impl From<Bytes> for Parked {
    fn from(parked: Bytes) -> Self {
        Parked(parked)
    }
}
