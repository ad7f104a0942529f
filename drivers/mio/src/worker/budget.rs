//! How much one connection, or one datagram socket, may do before the others are served.

use crate::network::shared::NetworkShared;
use cubenet_core::{Budgets, Instant};

/// The most callbacks between two looks at the clock.
const MAX_STRIDE: u32 = 64;
/// Callbacks that together took longer than this are slow: the clock is looked at more often.
const SLOW_MICROS: u64 = 100;

/// What is left of the budget of an iteration: messages, and time. The clock is read after one callback, two, four
/// and so on as long as they are quick, so that it costs nothing beside a message.
pub(crate) struct Budget {
    messages: usize,
    deadline: Instant,
    /// The time when the clock was last looked at.
    now: Instant,
    stride: u32,
    since_look: u32,
}

impl Budget {
    /// The whole budget of a service that begins `now`, with this many messages.
    pub(crate) fn new(budgets: &Budgets, messages: usize, now: Instant) -> Self {
        Budget {
            messages,
            deadline: now.after(budgets.time()),
            now,
            stride: 1,
            since_look: 0,
        }
    }

    /// Whether anything is left.
    pub(crate) fn is_left(&self) -> bool {
        self.messages > 0 && self.now < self.deadline
    }

    /// A callback has returned. Returns whether the clock was looked at and found that the
    /// callbacks since the last look were slow.
    pub(crate) fn spend(&mut self, network: &NetworkShared) -> bool {
        self.messages = self.messages.saturating_sub(1);
        self.since_look += 1;
        self.since_look >= self.stride && self.look(network)
    }

    /// The last callback of a read has returned, and it is `now`: the clock is looked at after it
    /// in any case.
    pub(crate) fn spend_last(&mut self, now: Instant) {
        self.messages = self.messages.saturating_sub(1);
        self.now = now;
    }

    /// Looks at the clock. Returns whether the callbacks since the last look were slow.
    pub(crate) fn look(&mut self, network: &NetworkShared) -> bool {
        let before = std::mem::replace(&mut self.now, network.now());
        let took = self.now.since(before).as_micros() as u64;
        self.since_look = 0;
        let slow = took > SLOW_MICROS;
        self.stride = if slow {
            1
        } else {
            MAX_STRIDE.min(2 * self.stride)
        };
        slow
    }

    /// The time, as it was last looked at.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::socket_options::SocketOptions;
    use cubenet_core::{AddressLimits, Limits};
    use std::time::Duration;

    fn network() -> NetworkShared {
        let options = SocketOptions::default();
        let (limits, budgets) = (Limits::new(), Budgets::new());
        NetworkShared::new(limits, budgets, options, AddressLimits::new(), (1, 2))
    }

    #[test]
    fn messages_are_counted_and_quick_ones_cost_few_looks_at_the_clock() {
        let network = network();
        let budgets = Budgets::new().with_time(Duration::from_secs(1_000));
        let mut budget = Budget::new(&budgets, 1_000, network.now());
        let mut spent = 0;
        while budget.is_left() {
            budget.spend(&network);
            spent += 1;
        }
        assert_eq!(spent, 1_000);
        assert!(budget.since_look < MAX_STRIDE);
    }

    #[test]
    fn slow_callbacks_use_up_the_time() {
        let network = network();
        let budgets = Budgets::new().with_time(Duration::from_millis(5));
        let mut budget = Budget::new(&budgets, usize::MAX, network.now());
        let mut spent = 0;
        while budget.is_left() {
            std::thread::sleep(Duration::from_millis(1));
            assert!(budget.spend(&network), "it was slow");
            spent += 1;
        }
        assert!((1..=5).contains(&spent), "{spent} callbacks");
    }
}
