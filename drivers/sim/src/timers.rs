//! When each socket is looked at again.

use crate::kernel::Key;
use cubenet_core::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Timers are lazy, as in any driver: activity only stores a time, and a timer that fires asks for
/// the deadline anew. They lie apart from what is under way in the network, since there are as many
/// as connections, and nearly all are far away.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, Unordered)>>,
    /// How many were armed. Of those that fire at one time, the one that was armed first is first.
    armed: u64,
}

/// A key among things that are ordered; it never decides.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Unordered(Key);

impl PartialOrd for Unordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Unordered {
    fn cmp(&self, _other: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Timers {
    /// Arms a timer for `deadline`, unless `armed` is before that already.
    pub(crate) fn arm(&mut self, socket: Key, armed: &mut Instant, deadline: Instant) {
        if deadline < *armed {
            *armed = deadline;
            self.fire_at(socket, deadline);
        }
    }

    /// Arms a timer for `at`, whatever else is armed.
    pub(crate) fn fire_at(&mut self, socket: Key, at: Instant) {
        self.armed += 1;
        self.heap.push(Reverse((at, self.armed, Unordered(socket))));
    }

    pub(crate) fn next_at(&self) -> Instant {
        let next = self.heap.peek();
        next.map_or(Instant::NEVER, |Reverse((at, ..))| *at)
    }

    /// The socket whose timer fires first.
    pub(crate) fn pop(&mut self) -> Option<Key> {
        let Reverse((_, _, Unordered(socket))) = self.heap.pop()?;
        Some(socket)
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }
}
