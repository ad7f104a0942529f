//! When to look at which connection again.
//!
//! A connection has one entry, at a moment no later than its first deadline. Activity only
//! moves deadlines back, and that costs nothing here: when the entry comes up, the
//! connection is asked for its deadline anew. Entries that were overtaken by an earlier
//! one, or whose connection has closed, are stale; they are dropped when they come up, and
//! all at once when they outnumber the others.

use cubenet_core::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Below this many entries stale ones are not worth a sweep.
const SWEEP_FROM: usize = 256;

#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    stale: usize,
}

/// A moment in ticks of 1,024 µs, rounded up, in the upper 40 bits (35 years); an index in
/// the lower 24 (16 million). An idle connection has one, so it is kept small.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u64);

/// The largest index there is room for.
pub(crate) const MAX_INDEX: u32 = (1 << INDEX_BITS) - 1;
const INDEX_BITS: u32 = 24;
const TICK_BITS: u32 = 10;
const MAX_TICK: u64 = (1 << (u64::BITS - INDEX_BITS)) - 1;

impl Entry {
    fn new(at: Instant, index: usize) -> Self {
        // A moment beyond the last tick comes up there, and is then put off again.
        let tick = at.as_micros().div_ceil(1 << TICK_BITS).min(MAX_TICK);
        Entry(tick << INDEX_BITS | index as u64)
    }

    fn at(self) -> Instant {
        Instant::from_micros((self.0 >> INDEX_BITS) << TICK_BITS)
    }

    fn index(self) -> usize {
        (self.0 & u64::from(MAX_INDEX)) as usize
    }

    /// Whether it is the entry of a connection whose entry was set to `armed`.
    fn is(self, armed: Option<Instant>) -> bool {
        armed.is_some_and(|armed| Entry::new(armed, self.index()) == self)
    }
}

impl Timers {
    /// Sets the entry of the connection at `index`, which so far was at `armed`, to
    /// `deadline` if that is sooner.
    pub(crate) fn arm(&mut self, index: usize, armed: &mut Instant, deadline: Instant) {
        if deadline >= *armed {
            return;
        }
        if *armed != Instant::NEVER {
            self.stale += 1;
        }
        *armed = deadline;
        self.heap.push(Reverse(Entry::new(deadline, index)));
    }

    /// The connection at an index has closed; its entry was at `armed`.
    pub(crate) fn disarm(&mut self, armed: Instant) {
        if armed != Instant::NEVER {
            self.stale += 1;
        }
    }

    /// The first moment at which [`Timers::pop`] may have something.
    pub(crate) fn next(&self) -> Instant {
        let first = self.heap.peek();
        first.map_or(Instant::NEVER, |Reverse(entry)| entry.at())
    }

    /// An entry that is due, if it is not stale: `armed` says where the entry of a
    /// connection is now. The caller sets that to [`Instant::NEVER`] and arms it anew.
    pub(crate) fn pop(
        &mut self,
        now: Instant,
        armed: impl Fn(usize) -> Option<Instant>,
    ) -> Option<usize> {
        if self.heap.len() > SWEEP_FROM && self.stale > self.heap.len() / 2 {
            self.heap
                .retain(|Reverse(entry)| entry.is(armed(entry.index())));
            self.stale = 0;
        }
        while self.next() <= now {
            let Reverse(entry) = self.heap.pop()?;
            if entry.is(armed(entry.index())) {
                return Some(entry.index());
            }
            self.stale = self.stale.saturating_sub(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment in milliseconds.
    const fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1_000)
    }

    #[test]
    fn only_the_soonest_entry_of_a_connection_comes_up() {
        let mut timers = Timers::default();
        let mut armed = Instant::NEVER;
        timers.arm(3, &mut armed, at(50));
        timers.arm(3, &mut armed, at(90));
        timers.arm(3, &mut armed, at(20));
        assert_eq!(timers.pop(at(19), |_| Some(armed)), None);
        assert_eq!(timers.pop(at(99), |_| Some(armed)), Some(3));
        assert_eq!(timers.pop(at(99), |_| None), None);
        assert_eq!(timers.next(), Instant::NEVER);
    }

    #[test]
    fn an_entry_comes_up_never_early_and_at_most_a_tick_late() {
        for micros in [0, 1, 1_023, 1_024, 1_025, 86_400_000_000] {
            let deadline = Instant::from_micros(micros);
            let entry = Entry::new(deadline, MAX_INDEX as usize);
            assert_eq!(entry.index(), MAX_INDEX as usize);
            assert!(entry.at().since(deadline).as_micros() < 1_024);
            assert!(entry.at() >= deadline && entry.is(Some(deadline)));
        }
        let far = Entry::new(Instant::from_micros(u64::MAX - 1), 7);
        assert_eq!(far.index(), 7);
        assert!(far.at() > at(30 * 365 * 86_400_000));
    }

    #[test]
    fn stale_entries_do_not_pile_up() {
        let mut timers = Timers::default();
        for index in 0..10_000 {
            let mut armed = Instant::NEVER;
            timers.arm(index, &mut armed, at(1_000_000));
            timers.disarm(armed);
            assert_eq!(timers.pop(at(1), |_| None), None);
            assert!(timers.heap.len() <= SWEEP_FROM + 1);
        }
    }
}
