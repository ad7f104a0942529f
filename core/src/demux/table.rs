//! Where a demultiplexer keeps its peers: in the value, in memory that the caller lent, or on the
//! heap.

use crate::time::Instant;
#[cfg(feature = "alloc")]
use alloc::vec::Vec;

/// No slot.
pub(super) const NIL: u32 = u32::MAX;

/// One peer's place in the table.
#[derive(Clone, Debug)]
pub struct Slot<P> {
    /// `None` while the slot is free.
    pub(super) peer: Option<P>,
    pub(super) received_at: Moment,
    /// The peer that sent last before this one.
    pub(super) older: u32,
    /// The peer that sent first after this one.
    pub(super) newer: u32,
    /// The next peer with the same hash; the next free slot, in a free one.
    pub(super) next: u32,
}

impl<P> Slot<P> {
    /// A slot that is not used, all zeros so that a `static` of them takes no room in flash.
    pub const FREE: Slot<P> = Slot {
        peer: None,
        received_at: Moment::of(Instant::ZERO),
        older: 0,
        newer: 0,
        next: 0,
    };
}

/// A moment in two words, so that a slot is no larger than the addresses ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment([u32; 2]);

impl Moment {
    pub(super) const fn of(at: Instant) -> Self {
        let micros = at.as_micros();
        Moment([micros as u32, (micros >> 32) as u32])
    }

    pub(super) const fn at(self) -> Instant {
        let Moment([low, high]) = self;
        Instant::from_micros((high as u64) << 32 | low as u64)
    }
}

mod private {
    pub trait Sealed {}

    impl<P, const N: usize, const H: usize> Sealed for super::FixedTable<P, N, H> {}
    impl<P> Sealed for super::SliceTable<'_, P> {}
    #[cfg(feature = "alloc")]
    impl<P> Sealed for super::GrowingTable<P> {}
}

/// Where a [`Demux`](super::Demux) keeps its slots: [`FixedTable`], [`SliceTable`] or
/// [`GrowingTable`]. Sealed: only these keep the chains of a demultiplexer in order.
pub trait Table<P>: private::Sealed {
    /// The most slots it can have.
    fn capacity(&self) -> usize;
    /// All slots there are so far, used and free.
    fn slots(&self) -> &[Slot<P>];
    /// The same, to change.
    fn slots_mut(&mut self) -> &mut [Slot<P>];
    /// The first slot of each hash; a power of two of them.
    fn heads(&self) -> &[u32];
    /// The same, to change.
    fn heads_mut(&mut self) -> &mut [u32];
    /// Adds a slot; `false` if there is no room.
    fn push(&mut self, slot: Slot<P>) -> bool;
    /// Doubles the heads and clears them; `false` if it cannot.
    fn double_heads(&mut self) -> bool;
    /// Gives back its memory, slots included, if it can; `false` if the slots stay. Called
    /// when none is used.
    fn release(&mut self) -> bool;
}

/// A table of `N` slots inside the value itself, with `H` heads. `H` is a power of two,
/// which is checked at compile time; about `N` is right.
#[derive(Debug)]
pub struct FixedTable<P, const N: usize, const H: usize> {
    slots: heapless::Vec<Slot<P>, N>,
    heads: [u32; H],
}

impl<P, const N: usize, const H: usize> FixedTable<P, N, H> {
    const CHECK: () = assert!(H.is_power_of_two(), "H must be a power of two");

    /// An empty table.
    pub const fn new() -> Self {
        let () = Self::CHECK;
        FixedTable {
            slots: heapless::Vec::new(),
            heads: [NIL; H],
        }
    }
}

impl<P, const N: usize, const H: usize> Default for FixedTable<P, N, H> {
    fn default() -> Self {
        FixedTable::new()
    }
}

impl<P, const N: usize, const H: usize> Table<P> for FixedTable<P, N, H> {
    fn capacity(&self) -> usize {
        N
    }

    fn slots(&self) -> &[Slot<P>] {
        &self.slots
    }

    fn slots_mut(&mut self) -> &mut [Slot<P>] {
        &mut self.slots
    }

    fn heads(&self) -> &[u32] {
        &self.heads
    }

    fn heads_mut(&mut self) -> &mut [u32] {
        &mut self.heads
    }

    fn push(&mut self, slot: Slot<P>) -> bool {
        self.slots.push(slot).is_ok()
    }

    fn double_heads(&mut self) -> bool {
        false
    }

    fn release(&mut self) -> bool {
        false
    }
}

/// A table in memory that the caller owns, as many slots and heads as it is long.
#[derive(Debug)]
pub struct SliceTable<'a, P> {
    slots: &'a mut [Slot<P>],
    used: usize,
    heads: &'a mut [u32],
}

impl<'a, P> SliceTable<'a, P> {
    /// An empty table in this memory, whatever it holds; `None` if there is not one head. As
    /// many heads as slots are right; those beyond a power of two are not used.
    pub fn new(slots: &'a mut [Slot<P>], heads: &'a mut [u32]) -> Option<Self> {
        let power_of_two = 1 << heads.len().checked_ilog2()?;
        let heads = &mut heads[..power_of_two];
        heads.fill(NIL);
        Some(SliceTable {
            slots,
            used: 0,
            heads,
        })
    }
}

impl<P> Table<P> for SliceTable<'_, P> {
    fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn slots(&self) -> &[Slot<P>] {
        &self.slots[..self.used]
    }

    fn slots_mut(&mut self) -> &mut [Slot<P>] {
        &mut self.slots[..self.used]
    }

    fn heads(&self) -> &[u32] {
        self.heads
    }

    fn heads_mut(&mut self) -> &mut [u32] {
        self.heads
    }

    fn push(&mut self, slot: Slot<P>) -> bool {
        let Some(free) = self.slots.get_mut(self.used) else {
            return false;
        };
        *free = slot;
        self.used += 1;
        true
    }

    fn double_heads(&mut self) -> bool {
        false
    }

    fn release(&mut self) -> bool {
        false
    }
}

/// A table that grows with the number of peers.
#[cfg(feature = "alloc")]
#[derive(Debug)]
pub struct GrowingTable<P> {
    slots: Vec<Slot<P>>,
    heads: Vec<u32>,
}

#[cfg(feature = "alloc")]
impl<P> GrowingTable<P> {
    /// An empty table.
    pub fn new() -> Self {
        GrowingTable {
            slots: Vec::new(),
            heads: alloc::vec![NIL; 1],
        }
    }
}

#[cfg(feature = "alloc")]
impl<P> Default for GrowingTable<P> {
    fn default() -> Self {
        GrowingTable::new()
    }
}

#[cfg(feature = "alloc")]
impl<P> Table<P> for GrowingTable<P> {
    fn capacity(&self) -> usize {
        NIL as usize
    }

    fn slots(&self) -> &[Slot<P>] {
        &self.slots
    }

    fn slots_mut(&mut self) -> &mut [Slot<P>] {
        &mut self.slots
    }

    fn heads(&self) -> &[u32] {
        &self.heads
    }

    fn heads_mut(&mut self) -> &mut [u32] {
        &mut self.heads
    }

    fn push(&mut self, slot: Slot<P>) -> bool {
        self.slots.push(slot);
        true
    }

    fn double_heads(&mut self) -> bool {
        let doubled = 2 * self.heads.len();
        self.heads.clear();
        self.heads.resize(doubled, NIL);
        true
    }

    fn release(&mut self) -> bool {
        *self = GrowingTable::new();
        true
    }
}
