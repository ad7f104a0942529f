//! What arrives at a datagram socket: which peer it is from, and which new peers are admitted.

use super::state::{Peer, Pending};
use crate::conn_info::ConnKey;
use crate::job::{Call, Callback, Job, Task};
use crate::kernel::{Arrived, Key, Notice, Received};
use crate::world::World;
use bytes::Bytes;
use cubenet_core::{Arrival, CloseReason, Reading, Transport, TransportError};
use std::net::SocketAddr;

impl World {
    /// Receives a datagram and delivers it.
    pub(crate) fn read_peers(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (peers, kernel, ..) = self.peers(socket)?;
        if peers.is_unmade {
            return None;
        }
        let goes_on = kernel.iteration.goes_on();
        peers.demux.set_backlog(!goes_on);
        peers.has_unread = !goes_on;
        if !goes_on {
            self.arm_peers(socket);
            return None;
        }
        kernel.iteration.messages -= 1;
        let received = kernel.receive_from(socket);
        if let Received::Nothing = received {
            self.arm_peers(socket);
            return None;
        }
        job.push(Task::Read(socket));
        match received {
            Received::Nothing => None,
            Received::Datagram(arrived) => self.datagram_arrived(socket, arrived, job),
            Received::Unreachable => {
                let connected = peers.keys(socket).next()?;
                self.report(connected, TransportError::Unreachable, job)
            }
        }
    }

    fn datagram_arrived(
        &mut self,
        socket: Key,
        arrived: Arrived,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        let (peers, kernel, network, _) = self.peers(socket)?;
        let len = arrived.bytes.len();
        let has_room = || network.open.has_room(Transport::Udp, &network.limits);
        let (from, now) = (&arrived.from, kernel.now);
        match peers.demux.handle_datagram(from, len, has_room, now) {
            Arrival::Deliver(slot) => {
                self.deliver_datagram(socket, slot as u32, arrived.bytes, job)
            }
            Arrival::Close(slot) => {
                if let Some(peer) = peers.slot_mut(slot as u32) {
                    peer.half.handle_close_datagram();
                }
                job.push(Task::AdvancePeer(socket, slot as u32));
                None
            }
            Arrival::Admit => self.ask_about(socket, arrived, None),
            Arrival::Evict(slot) => self.ask_about(socket, arrived, Some(slot)),
            Arrival::Refuse => {
                network.metrics.refused += 1;
                network.metrics.refused_by_limit += 1;
                network.metrics.dropped_table_full += 1;
                None
            }
            Arrival::TooLong(slot) => {
                network.metrics.dropped_too_long += 1;
                let limit = network.limits.max_datagram();
                let slot = slot? as u32;
                let id = peers.slot_mut(slot)?.id;
                let key = ConnKey { socket, slot, id };
                self.report(key, TransportError::DatagramTooLong { len, limit }, job)
            }
            _ => {
                network.metrics.dropped_empty += 1;
                None
            }
        }
    }

    /// Asks the application about a new peer. The connection in the slot `evicted` has to make way
    /// for it if the application accepts it.
    fn ask_about(
        &mut self,
        socket: Key,
        arrived: Arrived,
        evicted: Option<usize>,
    ) -> Option<Box<Call>> {
        let from = arrived.from;
        let id = self.next_id();
        let (peers, kernel, network, _) = self.peers(socket)?;
        let Some(accept) = peers.accept.clone().filter(|_| peers.is_listening) else {
            network.metrics.dropped_not_admitted += 1;
            return None;
        };
        // An evicted peer keeps its place until the application has admitted the other.
        let slot = evicted.or_else(|| peers.demux.insert(from, kernel.now))?;
        if evicted.is_none() {
            network.open.add(Transport::Udp);
        }
        let slot = slot as u32;
        let peer = Peer::new(id, (SocketAddr::new(arrived.to, peers.local.port()), from));
        let (info, network) = (peer.info(socket, slot), peers.network);
        // So that a handle works inside `accepted` already.
        peers.pending = Some(Pending {
            peer,
            slot,
            evicts: evicted.is_some(),
            first: arrived.bytes,
        });
        Some(self.call(info, network, None, Callback::Accepted(accept)))
    }

    /// The application has decided about a new peer.
    pub(super) fn peer_accepted(&mut self, call: &mut Call, job: &mut Job) {
        let socket = call.info.key.socket;
        // Unless its host crashed meanwhile.
        let Some((peers, _, network, _)) = self.peers(socket) else {
            return;
        };
        let Some(pending) = &mut peers.pending else {
            return;
        };
        if let Some(handler) = call.handler.take() {
            network.metrics.accepted += 1;
            pending.peer.handler = Some(handler);
            job.push(Task::Admit(socket));
            if pending.evicts {
                job.push(Task::Evict(socket));
            }
            return;
        }
        network.metrics.refused += 1;
        network.metrics.dropped_not_admitted += 1;
        if !pending.evicts {
            network.open.remove(Transport::Udp);
            peers.demux.remove(pending.slot as usize);
        }
        peers.pending = None;
        network.queued_bytes -= peers.discard(call.info.key.id);
        self.arm_peers(socket);
    }

    /// Closes the connection whose slot the pending peer takes, and its room among all connections.
    pub(crate) fn evict(&mut self, socket: Key) -> Option<Box<Call>> {
        let (peers, kernel, network, _) = self.peers(socket)?;
        let pending = peers.pending.as_mut()?;
        let slot = pending.slot;
        pending.evicts = false;
        let newcomer = pending.peer.info(socket, slot).peer_addr;
        peers.demux.replace(slot as usize, newcomer, kernel.now);
        // One closes and the other opens, so that no third takes the room between them.
        network.open.add(Transport::Udp);
        let mut evicted = peers.slots.get_mut(slot as usize)?.take()?;
        evicted.half.abort(CloseReason::Overflow);
        self.close_peer(socket, slot, evicted)
    }

    /// Gives the pending peer its slot, and delivers its first datagram.
    pub(crate) fn admit(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (peers, kernel, ..) = self.peers(socket)?;
        let Pending {
            peer, slot, first, ..
        } = peers.pending.take()?;
        let index = slot as usize;
        if peers.slots.len() <= index {
            peers.slots.resize_with(index + 1, || None);
        }
        let peer = peers.slots[index].insert(peer);
        if !peers.is_listening {
            // The listener was closed meanwhile.
            peer.half.close();
        }
        if peer.queued > 0 {
            kernel.notify(socket, Notice::Writable);
        }
        job.push(Task::AdvancePeer(socket, slot));
        self.deliver_datagram(socket, slot, first, job)
    }

    fn deliver_datagram(
        &mut self,
        socket: Key,
        slot: u32,
        datagram: Bytes,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        let (peers, _, network, _) = self.peers(socket)?;
        let peer = peers.slot_mut(slot)?;
        if peer.half.reading() != Reading::Deliver {
            network.metrics.dropped_paused += u64::from(peer.half.is_paused());
            return None;
        }
        let (id, len) = (peer.id, datagram.len() as u64);
        let key = ConnKey { socket, slot, id };
        let call = self.call_peer(key, Callback::ReceivedDatagram(datagram), job)?;
        let metrics = &mut self.network(call.network).metrics;
        metrics.messages_in += 1;
        metrics.bytes_in += len;
        Some(call)
    }
}
