//! Which connection a datagram belongs to, when many share one socket.
//!
//! A table from peer addresses to small numbers, its *slots*, which the driver uses to
//! find the connection. It is bounded; it is hashed with a key that peers cannot know, so
//! that a peer cannot choose addresses that collide; and it keeps its peers in the order in
//! which they last sent, so the next to expire is always at hand. It says what to do
//! with a datagram and performs nothing: no state is built for a peer that the driver has
//! not admitted with [`Demux::insert`].

mod admission;
mod key;
mod table;

pub use admission::Admission;
pub use key::{Fingerprint, Key};
#[cfg(feature = "alloc")]
pub use table::GrowingTable;
pub use table::{FixedTable, SliceTable, Slot, Table};

use crate::limits::{FullPolicy, Limits, places};
use crate::time::Instant;
use core::time::Duration;
use table::{Moment, NIL};

/// What to do with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arrival {
    /// Deliver it to the connection in this slot.
    Deliver(usize),
    /// It is empty: the peer closed the connection in this slot.
    Close(usize),
    /// Its peer is new and there is room: ask the application, then [`Demux::insert`] it.
    Admit,
    /// Its peer is new and can have this slot, whose peer has been idle long enough: ask the
    /// application, then [`Demux::replace`] the one by the other.
    Evict(usize),
    /// Its peer is new and there is no room: drop it.
    Refuse,
    /// It is empty and closes nothing, since its peer is new or empty datagrams do not close:
    /// drop it.
    Ignore,
    /// It is longer than the limit: drop it, and tell the connection in this slot, if its
    /// peer has one.
    TooLong(Option<usize>),
}

/// Where [`Demux::look_ahead`] found a peer: only a hint, since the peer may go before its datagram is
/// handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint(u32);

impl Hint {
    /// That a peer was not looked for, or not found.
    pub const NONE: Hint = Hint(NIL);

    /// The slot in which the peer was.
    pub fn slot(self) -> Option<usize> {
        (self != Hint::NONE).then_some(self.0 as usize)
    }
}

/// The peers of one datagram socket. `P` is whatever the driver's addresses are.
///
/// ```
/// use cubenet_core::demux::{Arrival, Demux, FixedTable};
/// use cubenet_core::{Instant, Limits};
/// let mut demux = Demux::new(FixedTable::<u16, 8, 8>::new(), (1, 2), &Limits::default());
/// let now = Instant::ZERO;
/// assert_eq!(demux.handle_datagram(&7, 10, || true, now), Arrival::Admit);
/// let slot = demux.insert(7, now).unwrap();
/// assert_eq!(demux.handle_datagram(&7, 10, || true, now), Arrival::Deliver(slot));
/// assert_eq!(demux.handle_datagram(&7, 0, || true, now), Arrival::Close(slot));
/// demux.remove(slot);
/// assert!(demux.is_empty());
/// ```
#[derive(Debug)]
pub struct Demux<P, T> {
    table: T,
    key: (u64, u64),
    len: usize,
    max_datagram: usize,
    max_peers: usize,
    reserved_peers: usize,
    policy: FullPolicy,
    empty_closes: bool,
    /// See [`Demux::set_backlog`].
    has_backlog: bool,
    idle_timeout: Duration,
    /// The first free slot.
    free: u32,
    /// The peer that has been idle longest.
    oldest: u32,
    /// The peer that sent last.
    newest: u32,
    peer: core::marker::PhantomData<P>,
}

impl<P: Key, T: Table<P>> Demux<P, T> {
    /// An empty demultiplexer. `key` must be unknown to peers: draw it at random.
    pub fn new(table: T, key: (u64, u64), limits: &Limits) -> Self {
        Demux {
            key,
            len: 0,
            max_datagram: limits.max_datagram(),
            max_peers: limits.max_peers().min(table.capacity()).min(NIL as usize),
            reserved_peers: limits.reserved_peers(),
            policy: limits.full_policy(),
            empty_closes: limits.empty_datagram_closes(),
            has_backlog: false,
            idle_timeout: limits.datagram_idle_timeout(),
            table,
            free: NIL,
            oldest: NIL,
            newest: NIL,
            peer: core::marker::PhantomData,
        }
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The peer in `slot`; `None` if it is free.
    pub fn peer(&self, slot: usize) -> Option<P> {
        self.table.slots().get(slot)?.peer
    }

    /// A datagram of `len` bytes came from `peer` at `now`: says what to do with it. What it
    /// says of a new peer is [`Demux::newcomer`] of one that no hook recognises; `has_room` is asked
    /// only about one.
    #[inline]
    pub fn handle_datagram(
        &mut self,
        peer: &P,
        len: usize,
        has_room: impl FnOnce() -> bool,
        now: Instant,
    ) -> Arrival {
        self.handle_datagram_at(Hint::NONE, peer, len, has_room, now)
    }

    /// The same for a peer that [`Demux::look_ahead`] has looked for.
    #[inline]
    pub fn handle_datagram_at(
        &mut self,
        hint: Hint,
        peer: &P,
        len: usize,
        has_room: impl FnOnce() -> bool,
        now: Instant,
    ) -> Arrival {
        let hinted = self.table.slots().get(hint.0 as usize);
        let known = match hinted {
            Some(slot) if slot.peer.as_ref() == Some(peer) => Some(hint.0),
            _ => self.find(peer),
        };
        if let Some(slot) = known {
            self.touch(slot, now);
        }
        match known {
            _ if len > self.max_datagram => Arrival::TooLong(known.map(|slot| slot as usize)),
            Some(slot) if len == 0 && self.empty_closes => Arrival::Close(slot as usize),
            _ if len == 0 => Arrival::Ignore,
            Some(slot) => Arrival::Deliver(slot as usize),
            None => self.newcomer(false, has_room(), now),
        }
    }

    /// Looks for the peers of several datagrams at once and writes a hint for each, in order. Among many
    /// peers each step of a search waits for memory; here the steps of all wait at the same
    /// time. `peers` beyond the hints are not looked for.
    pub fn look_ahead<'p>(&self, peers: impl Iterator<Item = &'p P> + Clone, hints: &mut [Hint])
    where
        P: 'p,
    {
        let (heads, slots) = (self.table.heads(), self.table.slots());
        for (hint, peer) in hints.iter_mut().zip(peers.clone()) {
            hint.0 = self.head(peer) as u32;
        }
        for (hint, _) in hints.iter_mut().zip(peers.clone()) {
            hint.0 = heads[hint.0 as usize];
        }
        let mut neighbours = 0;
        for (hint, peer) in hints.iter_mut().zip(peers) {
            while let Some(slot) = slots.get(hint.0 as usize)
                && slot.peer.as_ref() != Some(peer)
            {
                hint.0 = slot.next;
            }
            // Its neighbours by age are changed when its datagram is handled.
            if let Some(slot) = slots.get(hint.0 as usize) {
                neighbours ^= slots
                    .get(slot.older as usize)
                    .map_or(0, |older| older.newer);
                neighbours ^= slots
                    .get(slot.newer as usize)
                    .map_or(0, |newer| newer.older);
            }
        }
        core::hint::black_box(neighbours);
    }

    /// What to do with a new peer at `now`: [`Arrival::Admit`], [`Arrival::Evict`] or
    /// [`Arrival::Refuse`]. One that the application recognises may take one of the
    /// [reserved](Limits::reserved_peers) places. `has_room` says whether there is room among all
    /// connections; if not, a peer can still take the place of another, which gives up its place
    /// among all connections, too.
    #[cold]
    pub fn newcomer(&self, recognised: bool, has_room: bool, now: Instant) -> Arrival {
        let places = places(self.max_peers, self.reserved_peers, recognised);
        if has_room && self.len < places {
            Arrival::Admit
        } else {
            self.evictable(now).map_or(Arrival::Refuse, Arrival::Evict)
        }
    }

    /// The peer to evict at `now` for a new one: the one that has been idle longest, if
    /// [`FullPolicy`] lets it be evicted.
    fn evictable(&self, now: Instant) -> Option<usize> {
        match self.policy {
            FullPolicy::EvictIdleFor(idle)
                if self.oldest != NIL && now >= self.oldest_received_at().after(idle) =>
            {
                Some(self.oldest as usize)
            }
            _ => None,
        }
    }

    /// The driver was busy until `now` with what it had received from `peer`, for instance with
    /// slow callbacks: its idle time, which may be due to that, begins here.
    pub fn handle_delivered(&mut self, peer: &P, now: Instant) {
        if let Some(slot) = self.find(peer) {
            self.touch(slot, now);
        }
    }

    /// Admits `peer`, which sent at `now`, and returns its slot; the slot it has, if it was
    /// there. `None` if there is no room.
    pub fn insert(&mut self, peer: P, now: Instant) -> Option<usize> {
        if let Some(slot) = self.find(&peer) {
            return Some(slot as usize);
        }
        if self.len >= self.max_peers {
            return None;
        }
        let slot = self.take_slot(peer, now)?;
        self.len += 1;
        self.link_newest(slot);
        if self.len > self.table.heads().len() && self.table.double_heads() {
            self.link_all_heads();
        } else {
            self.link_head(slot);
        }
        self.check(slot, true);
        Some(slot as usize)
    }

    /// Admits `peer`, which sent at `now`, in the slot of another, which is forgotten. Changes nothing
    /// and returns `false` if the slot is free, or `peer` has a slot already.
    pub fn replace(&mut self, slot: usize, peer: P, now: Instant) -> bool {
        let Some(evicted) = self.peer(slot).filter(|_| self.find(&peer).is_none()) else {
            return false;
        };
        let slot = slot as u32;
        self.unlink_head(slot, &evicted);
        self.slot_mut(slot).peer = Some(peer);
        self.link_head(slot);
        self.touch(slot, now);
        self.check(slot, true);
        true
    }

    /// Forgets the peer in `slot`; nothing, if it is free.
    pub fn remove(&mut self, slot: usize) {
        let Some(peer) = self.peer(slot) else {
            return;
        };
        let slot = slot as u32;
        self.unlink_age(slot);
        self.unlink_head(slot, &peer);
        let free = self.free;
        let entry = self.slot_mut(slot);
        entry.peer = None;
        entry.next = free;
        self.free = slot;
        self.len -= 1;
        self.check(slot, false);
        if self.len == 0 && self.table.release() {
            self.free = NIL;
        }
    }

    /// Asserts, in debug builds, what holds after every change: the table is within its bound, the
    /// list by age is empty only if the table is, and the peer in `slot` is found there if it
    /// `is_taken`.
    fn check(&self, slot: u32, is_taken: bool) {
        debug_assert!(self.len <= self.max_peers, "more peers than allowed");
        debug_assert_eq!(self.len == 0, self.oldest == NIL, "the list by age");
        debug_assert_eq!(self.len == 0, self.newest == NIL, "the list by age");
        debug_assert_eq!(
            self.table.slots()[slot as usize]
                .peer
                .as_ref()
                .and_then(|peer| self.find(peer)),
            is_taken.then_some(slot),
            "a peer is found in its slot"
        );
    }

    /// Tells whether datagrams may wait in the socket that have not been handed in. Some of them
    /// may come from peers that seem idle; so while they wait, a peer is idle too long only after
    /// twice the idle timeout.
    pub fn set_backlog(&mut self, has_backlog: bool) {
        self.has_backlog = has_backlog;
    }

    /// The first moment at which [`Demux::handle_timeout`] would name a peer.
    pub fn poll_timeout(&self) -> Instant {
        let idle = self.oldest_received_at().after(self.idle_timeout);
        if self.has_backlog {
            idle.after(self.idle_timeout)
        } else {
            idle
        }
    }

    /// The slot of a peer that by `now` was idle too long. Close it, [`Demux::remove`]
    /// it and ask again.
    pub fn handle_timeout(&self, now: Instant) -> Option<usize> {
        (now >= self.poll_timeout() && self.oldest != NIL).then_some(self.oldest as usize)
    }

    fn oldest_received_at(&self) -> Instant {
        let oldest = self.table.slots().get(self.oldest as usize);
        oldest.map_or(Instant::NEVER, |slot| slot.received_at.at())
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot<P> {
        &mut self.table.slots_mut()[slot as usize]
    }

    fn find(&self, peer: &P) -> Option<u32> {
        let mut at = self.table.heads()[self.head(peer)];
        while at != NIL {
            let slot = &self.table.slots()[at as usize];
            if slot.peer.as_ref() == Some(peer) {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    /// Which head `peer` hangs from.
    #[cfg_attr(target_pointer_width = "32", inline(never))]
    fn head(&self, peer: &P) -> usize {
        peer.hash(self.key) as usize & (self.table.heads().len() - 1)
    }

    fn take_slot(&mut self, peer: P, now: Instant) -> Option<u32> {
        let taken = Slot {
            peer: Some(peer),
            received_at: Moment::of(now),
            older: NIL,
            newer: NIL,
            next: NIL,
        };
        let slot = self.free;
        if slot == NIL {
            let slot = self.table.slots().len() as u32;
            return self.table.push(taken).then_some(slot);
        }
        self.free = self.slot_mut(slot).next;
        *self.slot_mut(slot) = taken;
        Some(slot)
    }

    fn link_head(&mut self, slot: u32) {
        // Only slots in use are linked.
        let peer = self.table.slots()[slot as usize].peer.as_ref();
        let head = peer.map_or(0, |peer| self.head(peer));
        let next = core::mem::replace(&mut self.table.heads_mut()[head], slot);
        self.slot_mut(slot).next = next;
    }

    fn link_all_heads(&mut self) {
        let mut at = self.newest;
        while at != NIL {
            self.link_head(at);
            at = self.slot_mut(at).older;
        }
    }

    fn unlink_head(&mut self, slot: u32, peer: &P) {
        let head = self.head(peer);
        let next = self.slot_mut(slot).next;
        let mut at = self.table.heads()[head];
        if at == slot {
            self.table.heads_mut()[head] = next;
            return;
        }
        while at != NIL {
            let entry = self.slot_mut(at);
            if entry.next == slot {
                entry.next = next;
                return;
            }
            at = entry.next;
        }
    }

    fn touch(&mut self, slot: u32, now: Instant) {
        self.slot_mut(slot).received_at = Moment::of(now);
        if self.newest != slot {
            self.unlink_age(slot);
            self.link_newest(slot);
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let older = core::mem::replace(&mut self.newest, slot);
        let entry = self.slot_mut(slot);
        entry.older = older;
        entry.newer = NIL;
        match older {
            NIL => self.oldest = slot,
            older => self.slot_mut(older).newer = slot,
        }
    }

    fn unlink_age(&mut self, slot: u32) {
        let Slot { older, newer, .. } = *self.slot_mut(slot);
        match older {
            NIL => self.oldest = newer,
            older => self.slot_mut(older).newer = newer,
        }
        match newer {
            NIL => self.newest = older,
            newer => self.slot_mut(newer).older = older,
        }
    }
}

#[cfg(test)]
mod tests;
