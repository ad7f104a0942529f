//! A datagram socket sends what waits, once it has room again.

use crate::conn::info::Conn;
use crate::conn::key::ConnKey;
use crate::log::warn_limited;
use crate::udp::peers::Peers;
use crate::worker::resources::WorkerResources;
use std::sync::Arc;

impl Peers {
    /// Sends what is queued, and calls `writable` of connections that waited for room.
    pub(crate) fn flush(&mut self, token: usize, resources: &mut WorkerResources) {
        if !self.socket.has_waiting() && !self.watches_room {
            return;
        }
        self.begin_batch(resources);
        let flushed = self.socket.flush(resources.network.budgets.datagrams());
        if flushed.more || !self.follow_room() {
            resources.schedule(token, &mut self.scheduled);
        }
        let mut senders = flushed.senders;
        senders.dedup_by(|one, other| Arc::ptr_eq(one, other));
        for shared in senders {
            let ConnKey { slot, .. } = shared.key();
            let writable =
                shared.locked(|half| half.poll_writable(shared.backlog(), shared.limits()));
            if !self.is_at(shared.key(), shared.info().id) {
                continue;
            }
            if writable {
                self.call("writable", slot as usize, resources, |handler, link| {
                    handler.writable(link);
                });
            } else {
                self.after_io(slot as usize, resources);
            }
        }
        self.end_batch(resources);
    }

    /// Has the socket watched for room to send while something waits for it, and only then. Returns
    /// whether that went well.
    fn follow_room(&mut self) -> bool {
        let waits = self.socket.has_waiting();
        if waits != self.watches_room {
            if let Err(error) = self.socket.watch_room(waits) {
                warn_limited!(local = %self.socket.local, %error, "cannot watch a socket; trying again");
                return false;
            }
            self.watches_room = waits;
        }
        true
    }
}
