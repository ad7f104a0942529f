//! What is to happen, in order of time; what is to happen at one time, in the order it was
//! asked for.

use cubenet_core::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The heap moves small entries; what they stand for lies still beside it.
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    entries: Vec<Option<E>>,
    free: Vec<u32>,
    asked: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Queue {
            heap: BinaryHeap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            asked: 0,
        }
    }

    pub(crate) fn push(&mut self, at: Instant, entry: E) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[slot as usize] = Some(entry);
        self.heap.push(Reverse((at, self.asked, slot)));
        self.asked += 1;
    }

    /// When the next is due.
    pub(crate) fn next_at(&self) -> Instant {
        self.heap
            .peek()
            .map_or(Instant::NEVER, |Reverse((at, ..))| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<(Instant, E)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        let entry = self.entries[slot as usize].take()?;
        Some((at, entry))
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_at_one_time_comes_in_the_order_it_was_asked_for() {
        let mut queue = Queue::new();
        for (at, name) in [(5, "c"), (1, "a"), (5, "d"), (3, "b")] {
            queue.push(Instant::from_micros(at), name);
        }
        assert_eq!(queue.next_at(), Instant::from_micros(1));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|(_, name)| name)
            .collect();
        assert_eq!(order, ["a", "b", "c", "d"]);
        assert_eq!(queue.next_at(), Instant::NEVER);
        assert_eq!(queue.len(), 0);
    }
}
