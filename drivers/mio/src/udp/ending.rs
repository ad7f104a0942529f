//! How the connections of a datagram socket end all at once: their network stops, or another process has the
//! socket.

use crate::udp::peers::Peers;
use crate::worker::budget::Budget;
use crate::worker::resources::WorkerResources;
use cubenet_core::CloseReason;

impl Peers {
    /// Takes nothing more from the socket, which is another process's from now on, and ends all connections
    /// without a word. What has been taken from it is delivered, and what waits is sent as far as there is
    /// room.
    pub(super) fn leave(&mut self, token: usize, resources: &mut WorkerResources) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        while let Some(rest) = self.rest.take() {
            let budgets = &resources.network.budgets;
            let mut budget = Budget::new(budgets, budgets.datagrams(), resources.now, false);
            self.begin_batch(resources);
            self.deliver_batch(rest, token, &mut budget, resources);
            self.end_batch(resources);
        }
        self.flush(token, resources);
        self.stop(true, resources);
        self.watches_room = false;
        self.socket.has_left();
    }

    /// Asks every connection to close; `abort`: at once.
    pub(crate) fn stop(&mut self, abort: bool, resources: &mut WorkerResources) {
        self.socket.close();
        self.begin_batch(resources);
        for slot in 0..self.slots.len() {
            if let Some(peer) = self.peer(slot) {
                if abort {
                    peer.shared.abort(CloseReason::Local);
                } else {
                    peer.shared.close();
                }
                self.after_io(slot, resources);
            }
        }
        self.end_batch(resources);
        if abort {
            self.socket.discard();
        }
    }

    /// The socket is done with: no datagram may be queued on it any more.
    pub(crate) fn finish(&self) {
        self.socket.finish();
    }
}
