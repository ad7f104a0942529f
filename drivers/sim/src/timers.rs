//! When to look at which socket again, and what a test wants done at which time.

use crate::kernel::Key;
use crate::world::Scheduled;
use cubenet_core::Instant;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Timers are lazy, as in any driver: activity only stores a time, and a timer that comes up
/// asks for the deadline anew. They lie apart from what is under way in the network, since
/// there are as many as connections, and nearly all are far away.
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, Key32)>>,
    scheduled: BTreeMap<(Instant, u64), Scheduled>,
    asked: u64,
}

/// A key that can be ordered; its order is of no meaning, and never decides.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key32(Key);

impl PartialOrd for Key32 {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key32 {
    fn cmp(&self, _other: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Timers {
    pub(crate) fn new() -> Self {
        Timers {
            heap: BinaryHeap::new(),
            scheduled: BTreeMap::new(),
            asked: 0,
        }
    }

    /// Arms a timer for `deadline`, unless `armed` is before that already.
    pub(crate) fn arm(&mut self, key: Key, armed: &mut Instant, deadline: Instant) {
        if deadline < *armed {
            *armed = deadline;
            self.asked += 1;
            self.heap.push(Reverse((deadline, self.asked, Key32(key))));
        }
    }

    /// Has a socket looked at again at `at`, whatever its own timer.
    pub(crate) fn again(&mut self, key: Key, at: Instant) {
        self.asked += 1;
        self.heap.push(Reverse((at, self.asked, Key32(key))));
    }

    pub(crate) fn schedule(&mut self, at: Instant, what: Scheduled) {
        self.asked += 1;
        self.scheduled.insert((at, self.asked), what);
    }

    pub(crate) fn next_at(&self) -> Instant {
        let timer = self.heap.peek();
        let timer = timer.map_or(Instant::NEVER, |Reverse((at, ..))| *at);
        timer.min(self.next_scheduled_at())
    }

    fn next_scheduled_at(&self) -> Instant {
        let first = self.scheduled.first_key_value();
        first.map_or(Instant::NEVER, |((at, _), _)| *at)
    }

    /// The socket whose timer is due first at `at`, if any is.
    pub(crate) fn pop(&mut self, at: Instant) -> Option<Key> {
        let Reverse((due, ..)) = self.heap.peek()?;
        if *due > at {
            return None;
        }
        let Reverse((_, _, Key32(key))) = self.heap.pop()?;
        Some(key)
    }

    /// What is to be done first at `at`, if anything is.
    pub(crate) fn pop_scheduled(&mut self, at: Instant) -> Option<Scheduled> {
        if self.next_scheduled_at() > at {
            return None;
        }
        let (_, scheduled) = self.scheduled.pop_first()?;
        Some(scheduled)
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len() + self.scheduled.len()
    }
}
