//! The demultiplexer as a plain list of peers, the longest idle first.

use cubenet_core::demux::Arrival;
use cubenet_core::{FullPolicy, Instant, Limits};

/// Peers in the order of their last datagrams.
#[derive(Clone, Debug)]
pub struct Model {
    peers: Vec<(u16, Instant)>,
    limits: Limits,
    /// The most peers: the limit, or the slots of a fixed table.
    room: usize,
}

/// What to do with a datagram, by peer and not by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// [`Arrival::Deliver`].
    Deliver,
    /// [`Arrival::Close`].
    Close,
    /// [`Arrival::Admit`].
    Admit,
    /// [`Arrival::Evict`] of this peer.
    Evict(u16),
    /// [`Arrival::Refuse`].
    Refuse,
    /// [`Arrival::Ignore`].
    Ignore,
    /// [`Arrival::TooLong`], and whether the peer is known.
    TooLong(bool),
}

impl Model {
    /// No peers yet, and no room for more than `slots`.
    pub fn new(limits: &Limits, slots: usize) -> Self {
        Model {
            peers: Vec::new(),
            limits: limits.clone(),
            room: limits.max_peers().min(slots),
        }
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Whether there is room for no peer, recognised or not.
    pub fn is_full(&self) -> bool {
        self.peers.len() >= self.room
    }

    /// Whether `peer` is one of them.
    pub fn has(&self, peer: u16) -> bool {
        self.peers.iter().any(|(other, _)| *other == peer)
    }

    /// The peers, the longest idle first.
    pub fn peers(&self) -> impl Iterator<Item = u16> {
        self.peers.iter().map(|(peer, _)| *peer)
    }

    /// A datagram of `len` bytes came from `peer`.
    pub fn handle_datagram(
        &mut self,
        peer: u16,
        len: usize,
        has_room: bool,
        now: Instant,
    ) -> Answer {
        let known = self.peers.iter().position(|(other, _)| *other == peer);
        if let Some(at) = known {
            self.peers.remove(at);
            self.peers.push((peer, now));
        }
        match known {
            _ if len > self.limits.max_datagram() => Answer::TooLong(known.is_some()),
            Some(_) if len == 0 && self.limits.empty_datagram_closes() => Answer::Close,
            _ if len == 0 => Answer::Ignore,
            Some(_) => Answer::Deliver,
            None => self.newcomer(false, has_room, now),
        }
    }

    /// A new peer sends, which the application recognises or not, and there is room for it among all
    /// connections or not.
    pub fn newcomer(&self, recognised: bool, has_room: bool, now: Instant) -> Answer {
        let kept = if recognised {
            0
        } else {
            self.limits.reserved_peers()
        };
        if has_room && self.peers.len() + kept < self.room {
            Answer::Admit
        } else {
            self.evictable(now).map_or(Answer::Refuse, Answer::Evict)
        }
    }

    /// The peer to evict for a new one.
    fn evictable(&self, now: Instant) -> Option<u16> {
        match (self.limits.full_policy(), self.peers.first()) {
            (FullPolicy::EvictIdleFor(silence), Some((oldest, last)))
                if now >= last.after(silence) =>
            {
                Some(*oldest)
            }
            _ => None,
        }
    }

    /// Admits `peer`. Returns whether it is there now.
    pub fn insert(&mut self, peer: u16, now: Instant) -> bool {
        if !self.has(peer) {
            if self.peers.len() >= self.room {
                return false;
            }
            self.peers.push((peer, now));
        }
        true
    }

    /// Forgets `peer`.
    pub fn remove(&mut self, peer: u16) {
        self.peers.retain(|(other, _)| *other != peer);
    }

    /// When the longest idle has been idle too long.
    pub fn poll_timeout(&self) -> Instant {
        let oldest = self.peers.first();
        oldest.map_or(Instant::NEVER, |(_, last)| {
            last.after(self.limits.datagram_idle_timeout())
        })
    }

    /// The peers that have been idle too long by `now`.
    pub fn handle_timeout(&self, now: Instant) -> Option<u16> {
        let (oldest, _) = self.peers.first()?;
        (now >= self.poll_timeout()).then_some(*oldest)
    }

    /// `arrival` by peer and not by slot; `peer_in` returns the peer in a slot.
    pub fn answer(arrival: Arrival, peer_in: impl Fn(usize) -> Option<u16>) -> Answer {
        match arrival {
            Arrival::Deliver(_) => Answer::Deliver,
            Arrival::Close(_) => Answer::Close,
            Arrival::Admit => Answer::Admit,
            Arrival::Evict(slot) => Answer::Evict(peer_in(slot).expect("a peer is evicted")),
            Arrival::Refuse => Answer::Refuse,
            Arrival::Ignore => Answer::Ignore,
            Arrival::TooLong(slot) => Answer::TooLong(slot.is_some()),
            other => panic!("the model does not know {other:?}"),
        }
    }
}
