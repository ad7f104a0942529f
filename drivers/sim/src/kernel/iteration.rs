//! One iteration of a worker: what it may do for one socket before it serves the next.

use super::Key;
use cubenet_core::{Budgets, Instant};
use std::time::Duration;

/// What is left of the budgets of one socket in one iteration, and what its work has cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Iteration {
    /// The socket that is served; `None` outside of any iteration.
    pub(crate) socket: Option<Key>,
    /// Messages that may be delivered.
    pub(crate) messages: usize,
    /// Bytes that may be read.
    pub(crate) bytes: usize,
    /// When it ends, whatever is left of the budgets.
    pub(crate) deadline: Instant,
    /// A budget was used up, so there may be more to do.
    pub(crate) has_more: bool,
    /// Nanoseconds of work.
    pub(crate) spent: u64,
    pub(crate) has_read: bool,
    pub(crate) has_written: bool,
    /// Datagrams sent and received.
    pub(crate) datagrams: u32,
}

impl Iteration {
    /// Outside of any iteration: nothing is bounded.
    pub(crate) const NONE: Iteration = Iteration {
        socket: None,
        messages: usize::MAX,
        bytes: usize::MAX,
        deadline: Instant::NEVER,
        has_more: false,
        spent: 0,
        has_read: false,
        has_written: false,
        datagrams: 0,
    };

    /// A new iteration, for `socket`.
    pub(crate) fn of(socket: Key, messages: usize, budgets: &Budgets, now: Instant) -> Self {
        Iteration {
            socket: Some(socket),
            messages,
            bytes: budgets.read_bytes(),
            deadline: now.after(budgets.time()),
            ..Iteration::NONE
        }
    }

    /// Adds the time that something took. Ignored outside of any iteration.
    pub(crate) fn spend(&mut self, time: Duration) {
        if self.socket.is_some() {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.spent = self.spent.saturating_add(nanos);
        }
    }

    /// Whether the budgets allow more. If not, the socket is served again in a later iteration.
    pub(crate) fn goes_on(&mut self) -> bool {
        let goes_on = self.messages > 0 && self.bytes > 0;
        self.has_more |= !goes_on;
        goes_on
    }
}
