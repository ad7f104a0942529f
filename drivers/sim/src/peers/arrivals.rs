//! What arrives at a datagram socket: for whom it is, and who is let in.

use super::{Peer, arm_on, call, finish, settle, tell_error};
use crate::connection::Connection;
use crate::kernel::{Arrived, Key, Received};
use crate::trace::Record;
use crate::world::{Guard, Place, Shared};
use bytes::Bytes;
use cubenet_core::{Arrival, CloseReason, Message, Reading, Transport, TransportError};
use std::net::SocketAddr;
use std::sync::Arc;

/// Receives and delivers what has arrived.
pub(crate) fn read<'a>(shared: &'a Arc<Shared>, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    loop {
        let Some((peers, kernel, ..)) = world.peers(key) else {
            return world;
        };
        let goes_on = kernel.turn.goes_on();
        peers.demux.set_backlog(!goes_on);
        peers.in_line = !goes_on;
        if !goes_on {
            return arm_on(world, key);
        }
        kernel.turn.messages -= 1;
        match kernel.receive_from(key) {
            Received::Nothing => return arm_on(world, key),
            Received::Datagram(arrived) => {
                world = datagram(shared, world, key, &arrived);
            }
            Received::Unreachable => {
                let called = peers.connections().next();
                if let Some((slot, id)) = called {
                    let place = Place { key, slot };
                    world = tell_error(shared, world, (place, id), TransportError::Unreachable);
                }
            }
        }
    }
}

fn datagram<'a>(
    shared: &'a Arc<Shared>,
    mut world: Guard<'a>,
    key: Key,
    arrived: &Arrived,
) -> Guard<'a> {
    let Some((peers, kernel, network, _)) = world.peers(key) else {
        return world;
    };
    let Arrived { from, bytes, .. } = arrived;
    let len = bytes.len();
    let at = |slot: usize| Place {
        key,
        slot: slot as u32,
    };
    match peers.demux.handle_datagram(from, len, kernel.now) {
        Arrival::Deliver(slot) => deliver(shared, world, at(slot), bytes),
        Arrival::Close(slot) => {
            if let Some(Some(peer)) = peers.slots.get_mut(slot) {
                peer.half.handle_close_datagram();
            }
            settle(shared, world, at(slot))
        }
        Arrival::Admit => admit(shared, world, key, arrived, None),
        Arrival::Evict(slot) => admit(shared, world, key, arrived, Some(slot)),
        Arrival::Refuse => {
            network.metrics.dropped_table_full += 1;
            world
        }
        Arrival::TooLong(slot) => {
            network.metrics.dropped_too_long += 1;
            let limit = network.limits.max_datagram();
            let known = slot.and_then(|slot| Some((slot, peers.slots.get(slot)?.as_ref()?.id)));
            match known {
                Some((slot, id)) => {
                    let error = TransportError::DatagramTooLong { len, limit };
                    tell_error(shared, world, (at(slot), id), error)
                }
                None => world,
            }
        }
        _ => {
            network.metrics.dropped_empty += 1;
            world
        }
    }
}

/// Asks the application about a new peer, and delivers its first datagram. `evicted` has to
/// make way for it, once the application wants it.
fn admit<'a>(
    shared: &'a Arc<Shared>,
    mut world: Guard<'a>,
    key: Key,
    arrived: &Arrived,
    evicted: Option<usize>,
) -> Guard<'a> {
    let (from, bytes) = (arrived.from, &arrived.bytes);
    let id = world.next_id();
    let Some((peers, kernel, network, _)) = world.peers(key) else {
        return world;
    };
    let of = peers.network;
    let local = SocketAddr::new(arrived.to, peers.local.port());
    let Some(accept) = peers.accept.clone().filter(|_| peers.open) else {
        network.metrics.dropped_not_admitted += 1;
        return world;
    };
    // A peer that is evicted from the table gives its place among all connections up, too.
    let evicted = evicted.or_else(|| {
        let evictable = peers.demux.evictable(kernel.now);
        evictable.filter(|_| !network.has_room(Transport::Udp))
    });
    if evicted.is_none() && !network.reserve(Transport::Udp) {
        network.metrics.dropped_table_full += 1;
        return world;
    }
    // The newcomer takes the slot of the evicted, or one of its own.
    let slot = evicted.or_else(|| peers.demux.insert(from, kernel.now));
    let Some(slot) = slot else {
        network.release(Transport::Udp);
        return world;
    };
    let at = |slot: usize| Place {
        key,
        slot: slot as u32,
    };
    let place = at(slot);
    let ends = (local, from);
    // So that a handle works inside `accepted` already.
    peers.pending_counts = evicted.is_none();
    peers.pending = Some(Peer::new(id, ends));
    let connection = Connection::new(shared, place, id, Transport::Udp, ends);
    let what = (Record::Accepted, id);
    let (handler, mut world) = shared.callback(world, of, what, || accept(&connection));
    let Some((peers, _, network, _)) = world.peers(key) else {
        // Its host crashed meanwhile.
        world.bury(handler);
        return world;
    };
    let Some(handler) = handler.flatten() else {
        network.metrics.refused += 1;
        network.metrics.dropped_not_admitted += 1;
        peers.pending = None;
        if evicted.is_none() {
            network.release(Transport::Udp);
            peers.demux.remove(slot);
        }
        return arm_on(world, key);
    };
    network.metrics.accepted += 1;
    if evicted.is_some() {
        world = evict(shared, world, place, from);
    }
    let Some((peers, _, network, _)) = world.peers(key) else {
        world.bury(handler);
        return world;
    };
    if evicted.is_some() && !network.reserve(Transport::Udp) {
        // Another connection took the place while the evicted was told.
        network.metrics.dropped_table_full += 1;
        peers.pending = None;
        peers.demux.remove(slot);
        world.bury(handler);
        return arm_on(world, key);
    }
    if peers.slots.len() <= slot {
        peers.slots.resize_with(slot + 1, || None);
    }
    peers.slots[slot] = peers.pending.take();
    if let Some(peer) = peers.peer_mut(place.slot, id) {
        peer.handler = Some(handler);
    }
    if !peers.open {
        // The listener was closed since it was asked.
        world.close(place, id);
    }
    let world = settle(shared, world, place);
    deliver(shared, world, place, bytes)
}

/// Closes the connection in a slot and gives the slot to a newcomer.
fn evict<'a>(
    shared: &'a Shared,
    mut world: Guard<'a>,
    place: Place,
    newcomer: SocketAddr,
) -> Guard<'a> {
    let Some((peers, kernel, ..)) = world.peers(place.key) else {
        return world;
    };
    let slot = place.slot as usize;
    peers.demux.replace(slot, newcomer, kernel.now);
    let Some(mut evicted) = peers.slots[slot].take() else {
        return world;
    };
    evicted.half.abort(CloseReason::Overflow);
    finish(shared, world, place, evicted)
}

fn deliver<'a>(shared: &'a Shared, mut world: Guard<'a>, place: Place, bytes: &Bytes) -> Guard<'a> {
    let Some((peers, _, network, _)) = world.peers(place.key) else {
        return world;
    };
    let Some(Some(peer)) = peers.slots.get(place.slot as usize) else {
        return world;
    };
    if peer.half.reading() != Reading::Deliver {
        network.metrics.dropped_paused += u64::from(peer.half.is_paused());
        return world;
    }
    network.metrics.messages_in += 1;
    network.metrics.bytes_in += bytes.len() as u64;
    let id = peer.id;
    let message = Message::lent(bytes);
    call(
        shared,
        world,
        (place, id),
        Record::Received,
        |handler, link| {
            handler.received(link, message);
        },
    )
}
