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
    heap: BinaryHeap<Reverse<(Instant, u32)>>,
    stale: usize,
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
        self.heap.push(Reverse((deadline, index as u32)));
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
        first.map_or(Instant::NEVER, |Reverse((deadline, _))| *deadline)
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
                .retain(|Reverse((at, index))| armed(*index as usize) == Some(*at));
            self.stale = 0;
        }
        while self.next() <= now {
            let Reverse((at, index)) = self.heap.pop()?;
            if armed(index as usize) == Some(at) {
                return Some(index as usize);
            }
            self.stale = self.stale.saturating_sub(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
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
