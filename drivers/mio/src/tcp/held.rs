//! Input that a stream holds: bytes that were read and not delivered, and a partial frame.

use crate::conn::info::Conn;
use crate::tcp::shared::StreamShared;
use crate::tcp::stream::{Holds, Stream};
use crate::worker::budget::Budget;
use crate::worker::resources::WorkerResources;
use bytes::Bytes;
use cubenet_core::Reading;

impl Stream {
    /// Delivers what was read before. Returns whether there is nothing left of it, so that newer
    /// input may follow.
    pub(super) fn deliver_held(
        &mut self,
        token: usize,
        budget: &mut Budget,
        resources: &mut WorkerResources,
    ) -> bool {
        if self.shared.info().reading() == Reading::Hold {
            return false;
        }
        let held = resources.held.get_mut(&token);
        let input = held.map(|held| std::mem::take(&mut held.undelivered));
        let input = input.unwrap_or_default();
        let left = self.deliver(&input, budget, resources);
        self.hold(token, input.slice(input.len() - left..), resources);
        if left == 0 && self.is_layered {
            self.layers_delivered(resources);
        }
        left == 0
    }

    /// Keeps what was left undelivered, and counts what is held: that, and the memory of a partial
    /// frame.
    pub(super) fn hold(
        &mut self,
        token: usize,
        undelivered: Bytes,
        resources: &mut WorkerResources,
    ) {
        let mut bytes = self.recv.footprint() + undelivered.len();
        if self.is_layered {
            bytes += StreamShared::with(&mut self.shared, |_, send| {
                send.layers().map_or(0, |layers| layers.layered.held())
            });
        }
        if bytes > 0 {
            self.holds = if undelivered.is_empty() {
                Holds::Partial
            } else {
                Holds::Undelivered
            };
            let progressed = std::mem::take(&mut self.progressed);
            let counts = &self.shared.home().counts;
            resources.hold(token, bytes, undelivered, progressed, counts);
        } else if std::mem::replace(&mut self.holds, Holds::Nothing) != Holds::Nothing {
            resources.let_go(token);
        }
    }
}
