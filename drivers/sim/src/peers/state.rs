//! What there is of a datagram socket and its peers, and what they do with the socket.

use crate::conn_info::{ConnInfo, ConnKey};
use crate::job::{AcceptFn, BoxedHandler};
use crate::kernel::{Kernel, Key, Notice};
use crate::network_state::{NetworkId, NetworkState};
use bytes::Bytes;
use cubenet_core::connection::datagram::may_queue;
use cubenet_core::demux::GrowingTable;
use cubenet_core::{
    ConnectionId, DatagramHalf, Demux, Instant, SendError, Transport, TransportError,
};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) struct Peers {
    pub(crate) network: NetworkId,
    pub(crate) local: SocketAddr,
    pub(crate) demux: Demux<SocketAddr, GrowingTable<SocketAddr>>,
    /// The connections, by their slot in the demultiplexer.
    pub(crate) slots: Vec<Option<Peer>>,
    /// A new peer that the application decides about, or that waits for its slot.
    pub(crate) pending: Option<Pending>,
    /// Input waits for the next iteration.
    pub(crate) has_unread: bool,
    /// `None` for a socket that connects.
    pub(crate) accept: Option<Arc<AcceptFn>>,
    /// The handler of a socket that connects, until `connected` is called.
    pub(crate) connect: Option<BoxedHandler>,
    /// Of a socket that connects: the application has not made its handler. Nothing is received or
    /// timed until then.
    pub(crate) is_unmade: bool,
    /// Whether new peers are admitted.
    pub(crate) is_listening: bool,
    /// Datagrams that the socket would not take yet.
    pub(crate) queue: VecDeque<Queued>,
    /// The slots of connections that have changed.
    pub(crate) changed: Vec<u32>,
    pub(crate) errors: Vec<(ConnKey, TransportError)>,
    /// When its timer fires.
    pub(crate) armed: Instant,
}

pub(crate) struct Peer {
    pub(crate) id: ConnectionId,
    pub(crate) half: DatagramHalf,
    /// Bytes that are queued.
    pub(crate) queued: usize,
    local: SocketAddr,
    remote: SocketAddr,
    /// `None` while a callback runs, and until the application has made it.
    pub(crate) handler: Option<BoxedHandler>,
}

/// A new peer.
pub(crate) struct Pending {
    pub(crate) peer: Peer,
    pub(crate) slot: u32,
    /// Another connection has the slot and gives it up for this one. Otherwise the new peer has
    /// room of its own among all connections.
    pub(crate) evicts: bool,
    /// Its first datagram.
    pub(crate) first: Bytes,
}

pub(crate) struct Queued {
    key: ConnKey,
    local: SocketAddr,
    remote: SocketAddr,
    datagram: Bytes,
}

impl Queued {
    /// What a datagram of `len` bytes counts as long as it waits: those, and what is kept beside
    /// them. So an empty one counts too.
    pub(crate) const fn size(len: usize) -> usize {
        len + 64
    }
}

impl Peer {
    pub(crate) fn new(id: ConnectionId, (local, remote): (SocketAddr, SocketAddr)) -> Self {
        Peer {
            id,
            half: DatagramHalf::new(),
            queued: 0,
            local,
            remote,
            handler: None,
        }
    }

    pub(crate) fn info(&self, socket: Key, slot: u32) -> ConnInfo {
        ConnInfo {
            key: ConnKey {
                socket,
                slot,
                id: self.id,
            },
            transport: Transport::Udp,
            local_addr: self.local,
            peer_addr: self.remote,
        }
    }
}

impl Peers {
    fn new(
        (id, network): (NetworkId, &NetworkState),
        max_peers: usize,
        local: SocketAddr,
        accept: Option<Arc<AcceptFn>>,
    ) -> Self {
        let limits = (*network.limits).clone().with_max_peers(max_peers);
        Peers {
            network: id,
            local,
            demux: Demux::new(GrowingTable::new(), network.hash_key, &limits),
            slots: Vec::new(),
            pending: None,
            has_unread: false,
            is_listening: accept.is_some(),
            is_unmade: accept.is_none(),
            accept,
            connect: None,
            queue: VecDeque::new(),
            changed: Vec::new(),
            errors: Vec::new(),
            armed: Instant::NEVER,
        }
    }

    /// A socket that accepts peers.
    pub(crate) fn listening(
        network: (NetworkId, &NetworkState),
        local: SocketAddr,
        accept: Arc<AcceptFn>,
    ) -> Self {
        let max_peers = network.1.limits.max_peers();
        Peers::new(network, max_peers, local, Some(accept))
    }

    /// A socket that connects: one peer, which is there from the beginning.
    pub(crate) fn connecting(
        network: (NetworkId, &NetworkState),
        ends: (SocketAddr, SocketAddr),
        connection: ConnectionId,
        now: Instant,
    ) -> Self {
        let (local, peer) = ends;
        let mut peers = Peers::new(network, 1, local, None);
        peers.demux.insert(peer, now);
        peers.slots.push(Some(Peer::new(connection, ends)));
        peers
    }

    /// The connection that `key` names.
    pub(crate) fn peer_mut(&mut self, key: ConnKey) -> Option<&mut Peer> {
        let pending = self.pending.as_mut().map(|pending| &mut pending.peer);
        let slot = self.slots.get_mut(key.slot as usize);
        let mut named = pending.into_iter().chain(slot.and_then(Option::as_mut));
        named.find(|peer| peer.id == key.id)
    }

    /// The connection in `slot`.
    pub(crate) fn slot_mut(&mut self, slot: u32) -> Option<&mut Peer> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The connections there are.
    pub(crate) fn keys(&self, socket: Key) -> impl Iterator<Item = ConnKey> {
        let slots = self.slots.iter().zip(0..);
        slots.filter_map(move |(peer, slot)| {
            let id = peer.as_ref()?.id;
            Some(ConnKey { socket, slot, id })
        })
    }

    /// How many are counted, one included that the application has not decided about.
    pub(crate) fn counted(&self) -> usize {
        let open = self.slots.iter().flatten().count();
        let pending = self.pending.as_ref();
        open + usize::from(pending.is_some_and(|pending| !pending.evicts))
    }

    /// Bytes that are queued on all of them.
    pub(crate) fn queued(&self) -> usize {
        let queue = self.queue.iter();
        queue
            .map(|queued| Queued::size(queued.datagram.len()))
            .sum()
    }

    pub(crate) fn send(
        &mut self,
        key: ConnKey,
        message: &[u8],
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> Result<(), SendError> {
        let len = message.len();
        let peer = self.peer_mut(key).ok_or(SendError::Closed)?;
        let backlog = network.backlog(peer.queued);
        peer.half.admit(len, backlog, &network.limits)?;
        network.metrics.messages_out += 1;
        network.metrics.bytes_out += len as u64;
        self.put(key, message, kernel, network);
        Ok(())
    }

    /// Sends a datagram, or queues it behind those that wait.
    pub(super) fn put(
        &mut self,
        key: ConnKey,
        datagram: &[u8],
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        // What is sent to a peer before it is admitted waits for that.
        let pending = self.pending.as_ref();
        let is_pending = pending.is_some_and(|pending| pending.peer.id == key.id);
        let is_queueing = is_pending || !self.queue.is_empty();
        let Some(peer) = self.peer_mut(key) else {
            return;
        };
        let (local, remote) = (peer.local, peer.remote);
        if !is_queueing && kernel.send_to(key.socket, local.ip(), remote, datagram) {
            return;
        }
        let (len, size) = (datagram.len(), Queued::size(datagram.len()));
        if !may_queue(network.queued_bytes + size, &network.limits) {
            network.metrics.dropped_not_sent += 1;
            self.errors.push((key, TransportError::NotSent { len }));
            kernel.notify(key.socket, Notice::Writable);
            return;
        }
        network.queued_bytes += size;
        peer.queued += size;
        self.queue.push_back(Queued {
            key,
            local,
            remote,
            datagram: Bytes::copy_from_slice(datagram),
        });
    }

    /// Drops what is queued of a connection that has closed. Returns how many bytes that were.
    pub(super) fn discard(&mut self, id: ConnectionId) -> usize {
        let before = self.queued();
        self.queue.retain(|queued| queued.key.id != id);
        before - self.queued()
    }

    /// Sends what is queued, as far as the socket takes it. Returns the peers whose datagrams left.
    pub(super) fn flush(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> Vec<ConnKey> {
        let mut flushed = Vec::new();
        while let Some(queued) = self.queue.front() {
            let (local, to) = (queued.local.ip(), queued.remote);
            let (key, size) = (queued.key, Queued::size(queued.datagram.len()));
            if !kernel.send_to(socket, local, to, &queued.datagram) {
                break;
            }
            self.queue.pop_front();
            network.queued_bytes -= size;
            if let Some(peer) = self.peer_mut(key) {
                peer.queued -= size;
                flushed.push(key);
            }
        }
        flushed
    }
}
