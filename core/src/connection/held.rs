//! Input that a stream connection holds in memory, and when it is closed for that.
//!
//! A connection holds the part of a frame that has arrived, and bytes that were read and not
//! delivered, since the application paused it. A peer decides how long it holds the first, the
//! application how long it holds the second, so the sum over all connections is bounded
//! (`max_held_total`). While the sum is over the bound, the driver closes the connection that has
//! held input longest without a message completed, with [`CloseReason::Overflow`]: that takes
//! memory from slow peers, and not from those that send long messages fast.
//!
//! [`CloseReason::Overflow`]: super::CloseReason::Overflow

use crate::limits::Limits;
use crate::time::Instant;

/// The input that one connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldInput {
    bytes: usize,
    since: Instant,
}

impl HeldInput {
    /// Nothing is held.
    pub const NONE: HeldInput = HeldInput {
        bytes: 0,
        since: Instant::NEVER,
    };

    /// The connection holds `bytes` at `now`: its partial frame
    /// ([`footprint`](super::RecvHalf::footprint)) and what was not delivered. `progressed` says
    /// whether a message was delivered since this was last called: what is held now is then other
    /// input than what was held before.
    pub fn update(&mut self, bytes: usize, progressed: bool, now: Instant) {
        if bytes == 0 {
            *self = HeldInput::NONE;
            return;
        }
        if self.bytes == 0 || progressed {
            self.since = now;
        }
        self.bytes = bytes;
        debug_assert!(self.since != Instant::NEVER, "held input has a time");
    }

    /// Bytes held. The driver counts the sum over all connections.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when input is held without progress; [`Instant::NEVER`] if none is. Of all
    /// connections, the one with the earliest is closed first.
    pub const fn since(&self) -> Instant {
        self.since
    }
}

/// Whether a connection has to be closed, since all connections together hold `total` bytes of
/// input.
#[inline]
pub const fn holds_too_much(total: usize, limits: &Limits) -> bool {
    total > limits.max_held_total()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn input_is_held_since_it_began_or_a_message_was_delivered() {
        let mut held = HeldInput::NONE;
        held.update(0, true, at(1));
        assert_eq!(held, HeldInput::NONE);
        held.update(10, false, at(2));
        assert_eq!((held.bytes(), held.since()), (10, at(2)));
        held.update(20, false, at(3));
        assert_eq!((held.bytes(), held.since()), (20, at(2)));
        held.update(20, true, at(4));
        assert_eq!((held.bytes(), held.since()), (20, at(4)));
        held.update(0, false, at(5));
        assert_eq!((held.bytes(), held.since()), (0, Instant::NEVER));
    }

    #[test]
    fn as_much_as_the_bound_may_be_held() {
        let limits = Limits::new().with_max_held_total(100_000);
        assert!(!holds_too_much(100_000, &limits));
        assert!(holds_too_much(100_001, &limits));
    }
}
