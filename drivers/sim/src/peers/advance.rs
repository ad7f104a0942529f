//! What is next for a datagram peer, as the core says; and how it closes.

use super::state::Peer;
use crate::conn_info::ConnKey;
use crate::job::{BoxedHandler, Call, Callback, Job, Task};
use crate::kernel::{Key, Notice};
use crate::world::World;
use cubenet_core::connection::datagram::reports_errors;
use cubenet_core::{Action, Backlog, CloseReason, Instant, Timeout, Transport, TransportError};

impl World {
    /// Does what a notice of the kernel makes possible.
    pub(crate) fn handle_peers_notice(
        &mut self,
        socket: Key,
        notice: Notice,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        match notice {
            Notice::Readable | Notice::RunAgain => self.read_peers(socket, job),
            Notice::Timeout => self.peers_timer(socket, job),
            _ => self.flush_peers(socket, job),
        }
    }

    /// The application has made the handler of a socket that connects. Next comes `connected`, as it is
    /// connected, as it is from the beginning.
    pub(crate) fn give_peer_handler(&mut self, socket: Key, handler: BoxedHandler) {
        match self.owners.peers(socket) {
            Some(peers) => {
                peers.connect = Some(handler);
                peers.is_unmade = false;
            }
            None => self.drop_later(handler),
        }
        self.kernel.notify(socket, Notice::Writable);
        self.kernel.notify(socket, Notice::Readable);
    }

    /// There is room to send again, or a connection has changed.
    pub(crate) fn flush_peers(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (peers, kernel, network, _) = self.peers(socket)?;
        if let Some(handler) = peers.connect.take() {
            job.push(Task::Flush(socket));
            network.metrics.connected += 1;
            let Some(peer) = peers.slot_mut(0) else {
                self.drop_later(handler);
                return None;
            };
            peer.handler = Some(handler);
            let key = peer.info(socket, 0).key;
            return self.call_peer(key, Callback::Connected, job);
        }
        job.push(Task::AfterFlush(socket));
        for key in peers.flush(socket, kernel, network).into_iter().rev() {
            job.push(Task::Flushed(key));
        }
        None
    }

    /// A queued datagram of a peer has left: tells a handler that waited for room.
    pub(crate) fn peer_flushed(&mut self, key: ConnKey, job: &mut Job) -> Option<Box<Call>> {
        let (peers, _, network, _) = self.peers(key.socket)?;
        let peer = peers.peer_mut(key)?;
        let backlog = Backlog::growing(peer.queued, network.queued_bytes);
        if peer.half.poll_writable(backlog, &network.limits) {
            return self.call_peer(key, Callback::Writable, job);
        }
        self.advance_peer(key.socket, key.slot)
    }

    pub(crate) fn after_flush(&mut self, socket: Key, job: &mut Job) {
        let Some(peers) = self.owners.peers(socket) else {
            return;
        };
        for (key, error) in std::mem::take(&mut peers.errors).into_iter().rev() {
            job.push(Task::Report(key, error));
        }
        for slot in std::mem::take(&mut peers.changed).into_iter().rev() {
            job.push(Task::AdvancePeer(socket, slot));
        }
        self.arm_peers(socket);
    }

    pub(crate) fn report(
        &mut self,
        key: ConnKey,
        error: TransportError,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        let peer = self.owners.peers(key.socket)?.peer_mut(key)?;
        if !reports_errors(peer.half.state()) {
            return None;
        }
        self.call_peer(key, Callback::Error(error), job)
    }

    /// The timer of a socket has fired.
    fn peers_timer(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (peers, kernel, ..) = self.peers(socket)?;
        if peers.armed <= kernel.now {
            peers.armed = Instant::NEVER;
        }
        job.push(Task::Expire(socket));
        self.read_peers(socket, job)
    }

    /// Closes a peer that has been idle too long, if there is one.
    pub(crate) fn expire_peer(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (peers, kernel, ..) = self.peers(socket)?;
        let idle = peers.demux.handle_timeout(kernel.now);
        let Some(slot) = idle.filter(|_| !peers.is_unmade) else {
            self.arm_peers(socket);
            return None;
        };
        job.push(Task::Expire(socket));
        match peers.slot_mut(slot as u32) {
            Some(peer) => peer.half.abort(CloseReason::Timeout(Timeout::Idle)),
            None => peers.demux.remove(slot),
        }
        self.advance_peer(socket, slot as u32)
    }

    /// Sets the timer for the peer that is idle longest; closes the socket if no peer is left.
    pub(crate) fn arm_peers(&mut self, socket: Key) {
        let Some((peers, kernel, _, timers)) = self.peers(socket) else {
            return;
        };
        let no_peer = peers.demux.is_empty() && peers.pending.is_none();
        if no_peer && !peers.is_listening && peers.queue.is_empty() {
            return self.remove_socket(socket);
        }
        if !peers.is_unmade {
            let deadline = peers.demux.poll_timeout().max(kernel.now);
            timers.arm(socket, &mut peers.armed, deadline);
        }
    }

    /// Does what the core says is next for the peer in `slot`, after anything has happened.
    pub(crate) fn advance_peer(&mut self, socket: Key, slot: u32) -> Option<Box<Call>> {
        let (peers, kernel, network, _) = self.peers(socket)?;
        let peer = peers.slot_mut(slot)?;
        if peer.half.poll_action(peer.queued) == Action::SendFin {
            let key = peer.info(socket, slot).key;
            peers.put(key, &[], kernel, network);
            peers.slot_mut(slot)?.half.handle_fin_sent();
        }
        let is_over = |peer: &mut Peer| {
            let action = peer.half.poll_action(peer.queued);
            // A callback that runs must return first; its job advances the peer again.
            matches!(action, Action::Close(_) | Action::Reset(_)) && peer.handler.is_some()
        };
        let Some(peer) = peers.slots[slot as usize].take_if(is_over) else {
            self.arm_peers(socket);
            return None;
        };
        peers.demux.remove(slot as usize);
        if peers.demux.is_empty() {
            peers.slots = Vec::new();
        }
        let closed = self.close_peer(socket, slot, peer);
        self.arm_peers(socket);
        closed
    }

    /// A connection has closed and left its slot: `closed` is due.
    pub(super) fn close_peer(
        &mut self,
        socket: Key,
        slot: u32,
        mut peer: Peer,
    ) -> Option<Box<Call>> {
        let (peers, _, network, _) = self.peers(socket)?;
        let id = peers.network;
        if let Action::Reset(_) = peer.half.poll_action(peer.queued) {
            network.queued_bytes -= peers.discard(peer.id);
        }
        let reason = peer.half.close_reason().unwrap_or(CloseReason::Io);
        network.count_closed(Transport::Udp, reason);
        let handler = peer.handler.take()?;
        let info = peer.info(socket, slot);
        Some(self.call(info, id, Some(handler), Callback::Closed(reason)))
    }

    /// A callback of a peer, which is without its handler while that runs.
    pub(super) fn call_peer(
        &mut self,
        key: ConnKey,
        callback: Callback,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        let peers = self.owners.peers(key.socket)?;
        let network = peers.network;
        let peer = peers.peer_mut(key)?;
        let handler = peer.handler.take()?;
        let info = peer.info(key.socket, key.slot);
        // It may have closed the connection.
        job.push(Task::AdvancePeer(key.socket, key.slot));
        Some(self.call(info, network, Some(handler), callback))
    }

    /// A callback of a peer has returned.
    pub(crate) fn peer_returned(&mut self, call: &mut Call, panicked: bool, job: &mut Job) {
        if let Callback::Accepted(_) = call.callback {
            return self.peer_accepted(call, job);
        }
        let key = call.info.key;
        let Some((peers, kernel, ..)) = self.peers(key.socket) else {
            return;
        };
        if let Some(peer) = peers.peer_mut(key) {
            peer.handler = call.handler.take();
            if panicked {
                peer.half.abort(CloseReason::Panicked);
            }
            // While the callback ran, the socket was not read: the peer's idle time begins now.
            if let Callback::ReceivedDatagram(_) = call.callback {
                let peer_addr = call.info.peer_addr;
                peers.demux.handle_delivered(&peer_addr, kernel.now);
            }
        }
    }
}
