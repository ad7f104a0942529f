//! A datagram socket with its peers: what binds the demultiplexer of the core to a virtual
//! socket.

mod arrivals;

pub(crate) use arrivals::read;

use crate::kernel::{Kernel, Key, Notice};
use crate::link::CallbackLink;
use crate::trace::Record;
use crate::world::{AcceptFn, BoxedHandler, Guard, NetworkId, NetworkState, Place, Shared, World};
use bytes::Bytes;
use cubenet_core::demux::GrowingTable;
use cubenet_core::{
    Action, Backlog, CloseReason, ConnectionId, DatagramHalf, Demux, Handler, Instant, Link,
    SendError, Timeout, Transport, TransportError,
};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) struct Peers {
    pub(crate) network: NetworkId,
    local: SocketAddr,
    demux: Demux<SocketAddr, GrowingTable<SocketAddr>>,
    /// The connections, by their slot in the demultiplexer.
    slots: Vec<Option<Peer>>,
    /// Who is to have the slot of another that makes way.
    pending: Option<Peer>,
    /// It has a place of its own among all connections.
    pending_counts: bool,
    /// What has arrived waits for the next turn.
    pub(crate) in_line: bool,
    /// `None` for a socket that called.
    accept: Option<Arc<AcceptFn>>,
    /// The handler of a socket that connects, until it is told that it is connected.
    connect: Option<BoxedHandler>,
    /// Whether new peers are admitted.
    open: bool,
    /// Datagrams the socket would not take yet.
    waiting: VecDeque<Waiting>,
    /// Connections to be looked at.
    attending: Vec<u32>,
    errors: Vec<(u32, ConnectionId, TransportError)>,
    armed: Instant,
}

pub(crate) struct Peer {
    pub(crate) id: ConnectionId,
    pub(crate) half: DatagramHalf,
    /// Bytes that wait.
    pub(crate) queued: usize,
    /// This end's address, and the peer's.
    ends: (SocketAddr, SocketAddr),
    /// `None` while a callback runs.
    handler: Option<Box<dyn Handler + Send>>,
}

struct Waiting {
    slot: u32,
    id: ConnectionId,
    ends: (SocketAddr, SocketAddr),
    datagram: Bytes,
}

impl Peer {
    fn new(id: ConnectionId, ends: (SocketAddr, SocketAddr)) -> Self {
        Peer {
            id,
            half: DatagramHalf::new(),
            queued: 0,
            ends,
            handler: None,
        }
    }
}

impl Peers {
    pub(crate) fn listening(
        id: NetworkId,
        network: &NetworkState,
        local: SocketAddr,
        accept: Arc<AcceptFn>,
    ) -> Self {
        let demux = Demux::new(GrowingTable::new(), network.hash_key, &network.limits);
        Peers {
            network: id,
            local,
            demux,
            slots: Vec::new(),
            pending: None,
            pending_counts: false,
            in_line: false,
            accept: Some(accept),
            connect: None,
            open: true,
            waiting: VecDeque::new(),
            attending: Vec::new(),
            errors: Vec::new(),
            armed: Instant::NEVER,
        }
    }

    /// A socket that called: one peer, which is there from the beginning.
    pub(crate) fn calling(
        id: NetworkId,
        network: &NetworkState,
        (local, peer): (SocketAddr, SocketAddr),
        connection: ConnectionId,
        now: Instant,
    ) -> Self {
        let limits = (*network.limits).clone().with_max_peers(1);
        let mut demux = Demux::new(GrowingTable::new(), network.hash_key, &limits);
        demux.insert(peer, now);
        Peers {
            network: id,
            local,
            demux,
            slots: vec![Some(Peer::new(connection, (local, peer)))],
            pending: None,
            pending_counts: false,
            in_line: false,
            accept: None,
            connect: None,
            open: false,
            waiting: VecDeque::new(),
            attending: Vec::new(),
            errors: Vec::new(),
            armed: Instant::NEVER,
        }
    }

    pub(crate) fn attend(&mut self, slot: u32) {
        self.attending.push(slot);
    }

    /// Admits no new peers.
    pub(crate) fn close_listener(&mut self) {
        self.open = false;
    }

    /// The connection in `slot`, if it is this one.
    pub(crate) fn peer_mut(&mut self, slot: u32, id: ConnectionId) -> Option<&mut Peer> {
        let pending = self.pending.as_mut().filter(|peer| peer.id == id);
        let peer = match pending {
            Some(peer) => peer,
            None => self.slots.get_mut(slot as usize)?.as_mut()?,
        };
        (peer.id == id).then_some(peer)
    }

    /// The connections there are.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (u32, ConnectionId)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, peer)| Some((slot as u32, peer.as_ref()?.id)))
    }

    /// How many are counted, one included that the application has not said it wants.
    pub(crate) fn counted(&self) -> usize {
        let pending = self.pending.is_some() && self.pending_counts;
        self.connections().count() + usize::from(pending)
    }

    /// Bytes that wait on all of them.
    pub(crate) fn queued(&self) -> usize {
        self.waiting
            .iter()
            .map(|waiting| waiting.datagram.len())
            .sum()
    }

    pub(crate) fn send(
        &mut self,
        place: Place,
        id: ConnectionId,
        message: &[u8],
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> Result<(), SendError> {
        let len = message.len();
        let peer = self.peer_mut(place.slot, id).ok_or(SendError::Closed)?;
        let backlog = network.backlog(peer.queued);
        peer.half.admit(len, backlog, &network.limits)?;
        network.metrics.messages_out += 1;
        network.metrics.bytes_out += len as u64;
        self.put(place, id, message, kernel, network);
        Ok(())
    }

    /// Sends a datagram, or queues it behind those that wait.
    fn put(
        &mut self,
        place: Place,
        id: ConnectionId,
        datagram: &[u8],
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        let Some(peer) = self.peer_mut(place.slot, id) else {
            return;
        };
        let ends = peer.ends;
        let (local, to) = ends;
        if self.waiting.is_empty() && kernel.send_to(place.key, local.ip(), to, datagram) {
            return;
        }
        let len = datagram.len();
        if network.queued_bytes + len > network.limits.max_queued_total() {
            // A datagram may be lost; that is better than memory without bound.
            network.metrics.dropped_not_sent += 1;
            let error = TransportError::NotSent { len };
            self.errors.push((place.slot, id, error));
            kernel.notify(place.key, Notice::Writable);
            return;
        }
        network.queued_bytes += len;
        if let Some(peer) = self.peer_mut(place.slot, id) {
            peer.queued += len;
        }
        self.waiting.push_back(Waiting {
            slot: place.slot,
            id,
            ends,
            datagram: Bytes::copy_from_slice(datagram),
        });
    }

    /// Forgets what waits of a connection that is over. Returns how many bytes that were.
    pub(crate) fn forget(&mut self, id: ConnectionId) -> usize {
        let before = self.queued();
        self.waiting.retain(|waiting| waiting.id != id);
        before - self.queued()
    }

    /// Sends what waits, as far as the socket takes it. Returns whose datagrams went.
    fn flush(
        &mut self,
        key: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> Vec<(u32, ConnectionId)> {
        let mut flushed = Vec::new();
        while let Some(waiting) = self.waiting.front() {
            let (local, to) = waiting.ends;
            if !kernel.send_to(key, local.ip(), to, &waiting.datagram) {
                break;
            }
            let Some(Waiting {
                slot, id, datagram, ..
            }) = self.waiting.pop_front()
            else {
                break;
            };
            network.queued_bytes -= datagram.len();
            if let Some(peer) = self.peer_mut(slot, id) {
                peer.queued -= datagram.len();
                flushed.push((slot, id));
            }
        }
        flushed
    }
}

fn link<'a>(
    shared: &'a Shared,
    world: &Guard<'a>,
    place: Place,
    id: ConnectionId,
    (local, peer): (SocketAddr, SocketAddr),
) -> CallbackLink<'a> {
    CallbackLink {
        shared,
        place,
        id,
        local,
        peer,
        now: world.now(),
    }
}

/// The application has made the handler of a socket that connects. It is told at the next
/// [`attend`] that it is connected.
pub(crate) fn give_handler(mut world: Guard<'_>, key: Key, handler: BoxedHandler) -> Guard<'_> {
    match world.peers(key) {
        Some((peers, ..)) => peers.connect = Some(handler),
        None => world.bury(handler),
    }
    world.kernel.notify(key, Notice::Writable);
    world
}

/// Tells the handler of a socket that connects that it is connected, as it is from the beginning.
fn connected<'a>(
    shared: &'a Shared,
    mut world: Guard<'a>,
    key: Key,
    handler: BoxedHandler,
) -> Guard<'a> {
    let Some((peers, _, network, _)) = world.peers(key) else {
        world.bury(handler);
        return world;
    };
    network.metrics.connected += 1;
    let Some(Some(peer)) = peers.slots.first_mut() else {
        world.bury(handler);
        return world;
    };
    peer.handler = Some(handler);
    let whom = (Place { key, slot: 0 }, peer.id);
    call(shared, world, whom, Record::Connected, |handler, link| {
        handler.connected(link);
    })
}

fn tell_error<'a>(
    shared: &'a Shared,
    world: Guard<'a>,
    whom: (Place, ConnectionId),
    error: TransportError,
) -> Guard<'a> {
    call(shared, world, whom, Record::Error, |handler, link| {
        handler.error(link, error);
    })
}

/// Runs a callback of a connection, then sees whether that ended it.
fn call<'a>(
    shared: &'a Shared,
    mut world: Guard<'a>,
    (place, id): (Place, ConnectionId),
    record: Record,
    callback: impl FnOnce(&mut dyn Handler, &mut dyn Link),
) -> Guard<'a> {
    let Some((peers, ..)) = world.peers(place.key) else {
        return world;
    };
    let network = peers.network;
    let Some(peer) = peers.peer_mut(place.slot, id) else {
        return world;
    };
    let ends = peer.ends;
    let Some(mut handler) = peer.handler.take() else {
        return world;
    };
    let mut link = link(shared, &world, place, id, ends);
    let (done, mut world) = shared.callback(world, network, (record, id), || {
        callback(&mut *handler, &mut link);
    });
    let peers = world.peers(place.key).map(|(peers, ..)| peers);
    match peers.and_then(|peers| peers.peer_mut(place.slot, id)) {
        Some(peer) => {
            peer.handler = Some(handler);
            if done.is_none() {
                peer.half.abort(CloseReason::Panicked);
            }
        }
        None => world.bury(handler),
    }
    settle(shared, world, place)
}

/// The socket or its connections are to be looked at, or there is room to
/// send again.
pub(crate) fn attend<'a>(shared: &'a Arc<Shared>, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let Some((peers, ..)) = world.peers(key) else {
        return world;
    };
    if let Some(connect) = peers.connect.take() {
        world = connected(shared, world, key, connect);
    }
    let Some((peers, kernel, network, _)) = world.peers(key) else {
        return world;
    };
    let flushed = peers.flush(key, kernel, network);
    for (slot, id) in flushed {
        let place = Place { key, slot };
        let Some((peers, _, network, _)) = world.peers(key) else {
            return world;
        };
        let total = network.queued_bytes;
        let writable = peers.peer_mut(slot, id).is_some_and(|peer| {
            let backlog = Backlog::growing(peer.queued, total);
            peer.half.poll_writable(backlog, &network.limits)
        });
        world = if writable {
            call(
                shared,
                world,
                (place, id),
                Record::Writable,
                |handler, link| {
                    handler.writable(link);
                },
            )
        } else {
            settle(shared, world, place)
        };
    }
    let Some((peers, ..)) = world.peers(key) else {
        return world;
    };
    let errors = std::mem::take(&mut peers.errors);
    for slot in std::mem::take(&mut peers.attending) {
        world = settle(shared, world, Place { key, slot });
    }
    for (slot, id, error) in errors {
        world = tell_error(shared, world, (Place { key, slot }, id), error);
    }
    arm_on(world, key)
}

/// Closes the peers that were silent too long.
pub(crate) fn handle_timeout<'a>(
    shared: &'a Arc<Shared>,
    mut world: Guard<'a>,
    key: Key,
) -> Guard<'a> {
    let now = world.now();
    if let Some((peers, ..)) = world.peers(key)
        && peers.armed <= now
    {
        peers.armed = Instant::NEVER;
    }
    world = read(shared, world, key);
    loop {
        let Some((peers, ..)) = world.peers(key) else {
            return world;
        };
        let Some(slot) = peers.demux.handle_timeout(now) else {
            return arm_on(world, key);
        };
        match peers.slots.get_mut(slot) {
            Some(Some(peer)) => peer.half.abort(CloseReason::Timeout(Timeout::Idle)),
            _ => peers.demux.remove(slot),
        }
        let slot = slot as u32;
        world = settle(shared, world, Place { key, slot });
    }
}

/// Sets the clock of the longest silent; gives the socket up if no peer is left.
pub(crate) fn arm(world: &mut World, key: Key) {
    let Some((peers, kernel, _, timers)) = world.peers(key) else {
        return;
    };
    let no_peer = peers.demux.is_empty() && peers.pending.is_none();
    if no_peer && !peers.open && peers.waiting.is_empty() {
        return world.disown(key, false);
    }
    let deadline = peers.demux.poll_timeout().max(kernel.now);
    timers.arm(key, &mut peers.armed, deadline);
}

fn arm_on(mut world: Guard<'_>, key: Key) -> Guard<'_> {
    arm(&mut world, key);
    world
}

/// Does what a connection has to do next; removes it if it has closed, and tells it so.
fn settle<'a>(shared: &'a Shared, mut world: Guard<'a>, place: Place) -> Guard<'a> {
    let Some((peers, kernel, network, _)) = world.peers(place.key) else {
        return world;
    };
    let slot = place.slot as usize;
    let Some(Some(peer)) = peers.slots.get_mut(slot) else {
        return world;
    };
    if peer.half.poll_action(peer.queued) == Action::SendFin {
        peer.half.handle_fin_sent();
        let id = peer.id;
        peers.put(place, id, &[], kernel, network);
    }
    let is_over = |peer: &mut Peer| {
        let action = peer.half.poll_action(peer.queued);
        // A callback that runs must come back first; its thread settles again.
        matches!(action, Action::Close(_) | Action::Reset(_)) && peer.handler.is_some()
    };
    let Some(peer) = peers.slots[slot].take_if(is_over) else {
        return arm_on(world, place.key);
    };
    peers.demux.remove(slot);
    if peers.demux.is_empty() {
        peers.slots = Vec::new();
    }
    let world = finish(shared, world, place, peer);
    arm_on(world, place.key)
}

/// A connection has closed and left its slot: tells it so.
fn finish<'a>(shared: &'a Shared, mut world: Guard<'a>, place: Place, mut peer: Peer) -> Guard<'a> {
    let Some((peers, _, network, _)) = world.peers(place.key) else {
        return world;
    };
    let of = peers.network;
    if let Action::Reset(_) = peer.half.poll_action(peer.queued) {
        network.queued_bytes -= peers.forget(peer.id);
    }
    let Peer {
        id,
        half,
        ends,
        handler,
        ..
    } = peer;
    let reason = half.close_reason().unwrap_or(CloseReason::Io);
    world.count_closed(of, Transport::Udp, reason);
    let mut link = link(shared, &world, place, id, ends);
    if let Some(mut handler) = handler {
        let what = (Record::Closed, id);
        (_, world) = shared.callback(world, of, what, move || {
            handler.closed(&mut link, reason);
        });
    }
    world
}
