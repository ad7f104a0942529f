//! Whose each socket is.

use crate::kernel::Key;
use crate::peers::Peers;
use crate::raw::Raw;
use crate::stream::Stream;
use crate::world::{AcceptFn, NetworkId};
use cubenet_core::{Budgets, Instant};
use std::sync::Arc;

/// Whose a socket is.
pub(crate) enum Owner {
    Listener {
        network: NetworkId,
        accept: Arc<AcceptFn>,
        /// No call is accepted before: an attempt failed.
        again: Instant,
    },
    Stream(Box<Stream>),
    Peers(Box<Peers>),
    Raw(Box<Raw>),
}

impl Owner {
    pub(crate) fn network(&self) -> Option<NetworkId> {
        match self {
            Owner::Listener { network, .. } => Some(*network),
            Owner::Stream(stream) => Some(stream.network),
            Owner::Peers(peers) => Some(peers.network),
            Owner::Raw(_) => None,
        }
    }
}

/// The owners of all sockets, by the slot of their keys.
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

    /// Whether what has arrived at a socket waits for its next turn.
    pub(crate) fn is_in_line(&self, key: Key) -> bool {
        match self.entries.get(key.slot as usize) {
            Some(Some((of, Owner::Stream(stream)))) => *of == key && stream.in_line,
            Some(Some((of, Owner::Peers(peers)))) => *of == key && peers.in_line,
            _ => false,
        }
    }

    /// How many callbacks a socket has in one turn.
    pub(crate) fn budget(&self, key: Key, budgets: &Budgets) -> usize {
        match self.entries.get(key.slot as usize) {
            Some(Some((_, Owner::Listener { .. }))) => budgets.accepts(),
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

    pub(crate) fn raw(&mut self, key: Key) -> Option<&mut Raw> {
        match self.get(key)? {
            Owner::Raw(raw) => Some(raw),
            _ => None,
        }
    }

    /// The stream of a network that has held input longest, if one holds any.
    pub(crate) fn longest_held(&self, network: NetworkId) -> Option<Key> {
        let entries = self.entries.iter().flatten();
        let held = entries.filter_map(|(key, owner)| match owner {
            Owner::Stream(stream) if stream.network == network => {
                Some((stream.held_since.if_ever()?, *key))
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
