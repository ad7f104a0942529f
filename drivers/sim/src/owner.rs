//! What each socket belongs to.

use crate::conn_info::ConnKey;
use crate::job::AcceptFn;
use crate::kernel::Key;
use crate::network_state::NetworkId;
use crate::peers::state::{Peer, Peers};
use crate::raw::socket::Raw;
use crate::stream::state::Stream;
use cubenet_core::{Budgets, Instant, MakeLayer};
use std::sync::Arc;

/// What a socket belongs to.
pub(crate) enum Owner {
    Listener(Listener),
    Stream(Box<Stream>),
    Peers(Box<Peers>),
    Raw(Box<Raw>),
}

/// A listener for streams.
pub(crate) struct Listener {
    pub(crate) network: NetworkId,
    pub(crate) accept: Arc<AcceptFn>,
    /// Makes the layer of each connection, if they are to have one.
    pub(crate) layer: Option<Arc<dyn MakeLayer>>,
    /// No connection is accepted before: an attempt failed.
    pub(crate) retry_at: Instant,
}

/// A connection, whatever carries it.
pub(crate) enum Conn<'a> {
    Stream(&'a mut Stream),
    Peer(&'a mut Peer),
}

impl Owner {
    pub(crate) fn network(&self) -> Option<NetworkId> {
        match self {
            Owner::Listener(listener) => Some(listener.network),
            Owner::Stream(stream) => Some(stream.network),
            Owner::Peers(peers) => Some(peers.network),
            Owner::Raw(_) => None,
        }
    }
}

/// What all sockets belong to, by the slot of their keys.
#[derive(Default)]
pub(crate) struct Owners {
    entries: Vec<Option<(Key, Owner)>>,
}

impl Owners {
    pub(crate) fn insert(&mut self, key: Key, owner: Owner) {
        let slot = key.slot as usize;
        if self.entries.len() <= slot {
            self.entries.resize_with(slot + 1, || None);
        }
        self.entries[slot] = Some((key, owner));
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Owner> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        let (_, owner) = entry.take_if(|(of, _)| *of == key)?;
        Some(owner)
    }

    pub(crate) fn get(&mut self, key: Key) -> Option<&mut Owner> {
        let (of, owner) = self.entries.get_mut(key.slot as usize)?.as_mut()?;
        (*of == key).then_some(owner)
    }

    /// Whether input of a socket waits for its next iteration.
    pub(crate) fn has_unread(&self, key: Key) -> bool {
        match self.entries.get(key.slot as usize) {
            Some(Some((of, Owner::Stream(stream)))) => *of == key && stream.has_unread,
            Some(Some((of, Owner::Peers(peers)))) => *of == key && peers.has_unread,
            _ => false,
        }
    }

    /// How many callbacks a socket has in one iteration of its worker.
    pub(crate) fn budget(&self, key: Key, budgets: &Budgets) -> usize {
        match self.entries.get(key.slot as usize) {
            Some(Some((_, Owner::Listener(_)))) => budgets.accepts(),
            Some(Some((_, Owner::Peers(_)))) => budgets.datagrams(),
            _ => budgets.messages(),
        }
    }

    pub(crate) fn stream(&mut self, key: Key) -> Option<&mut Stream> {
        match self.get(key)? {
            Owner::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub(crate) fn peers(&mut self, key: Key) -> Option<&mut Peers> {
        match self.get(key)? {
            Owner::Peers(peers) => Some(peers),
            _ => None,
        }
    }

    pub(crate) fn listener(&mut self, key: Key) -> Option<&mut Listener> {
        match self.get(key)? {
            Owner::Listener(listener) => Some(listener),
            _ => None,
        }
    }

    pub(crate) fn raw(&mut self, key: Key) -> Option<&mut Raw> {
        match self.get(key)? {
            Owner::Raw(raw) => Some(raw),
            _ => None,
        }
    }

    /// A connection, if it is still open.
    pub(crate) fn connection(&mut self, key: ConnKey) -> Option<Conn<'_>> {
        match self.get(key.socket)? {
            Owner::Stream(stream) => (stream.id == key.id).then_some(Conn::Stream(stream)),
            Owner::Peers(peers) => Some(Conn::Peer(peers.peer_mut(key)?)),
            _ => None,
        }
    }

    /// The stream of a network that has held input longest, if one holds any.
    pub(crate) fn longest_held(&self, network: NetworkId) -> Option<Key> {
        let entries = self.entries.iter().flatten();
        let held = entries.filter_map(|(key, owner)| match owner {
            Owner::Stream(stream) if stream.network == network => {
                Some((stream.held.since().if_ever()?, *key))
            }
            _ => None,
        });
        let oldest = held.min_by_key(|(since, _)| *since);
        oldest.map(|(_, key)| key)
    }

    /// All sockets of a network.
    pub(crate) fn keys_of(&self, network: NetworkId) -> Vec<Key> {
        let entries = self.entries.iter().flatten();
        entries
            .filter(|(_, owner)| owner.network() == Some(network))
            .map(|(key, _)| *key)
            .collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Owner> {
        self.entries.iter().flatten().map(|(_, owner)| owner)
    }
}
