//! How much one connection, or one datagram socket, may do before the others are served.

use crate::network::shared::NetworkShared;
use cubenet_core::{Budgets, Instant};

/// The callbacks before the first look at the clock, where those before were quick.
const QUICK_STRIDE: usize = 16;
/// The most callbacks between two looks at the clock.
const MAX_STRIDE: usize = 64;
/// Callbacks that together took longer than this are slow: the clock is looked at more often.
const SLOW_MICROS: u64 = 100;

/// What is left of the budget of an iteration: messages, and time. The clock is read after one
/// callback, two, four and so on as long as they are quick, so that it costs nothing beside a
/// message; and where they were quick the last time, not before there were some.
pub(crate) struct Budget {
    /// Callbacks before the next look at the clock; none once the budget is used up.
    stride: usize,
    /// Messages beyond those.
    messages: usize,
    deadline: Instant,
    /// The time when the clock was last looked at.
    now: Instant,
    /// How many callbacks the next stride has.
    next_stride: usize,
}

impl Budget {
    /// The whole budget of a service that begins `now`, with this many messages, of one whose
    /// callbacks [were quick](Self::was_quick) the last time, or not.
    pub(crate) fn new(budgets: &Budgets, messages: usize, now: Instant, was_quick: bool) -> Self {
        let mut budget = Budget {
            stride: 0,
            messages,
            deadline: now.after(budgets.time()),
            now,
            next_stride: if was_quick { QUICK_STRIDE } else { 1 },
        };
        budget.begin_stride();
        budget
    }

    /// Whether anything is left.
    #[inline]
    pub(crate) fn is_left(&self) -> bool {
        self.stride > 0
    }

    /// How many messages are left, if the time allows.
    pub(crate) fn messages_left(&self) -> usize {
        self.stride + self.messages
    }

    /// A callback has returned, for which there was a budget. Returns whether the clock is to be
    /// [looked](Self::look) at.
    #[inline]
    pub(crate) fn spend(&mut self) -> bool {
        debug_assert!(self.is_left());
        self.stride = self.stride.wrapping_sub(1);
        self.stride == 0
    }

    /// The last callback of a read has returned, and it is `now`: the clock is looked at after it
    /// in any case.
    pub(crate) fn spend_last(&mut self, now: Instant) {
        self.stride = self.stride.saturating_sub(1);
        self.looked_at(now);
    }

    /// Looks at the clock. Returns whether the callbacks since the last look were slow.
    #[inline(never)]
    pub(crate) fn look(&mut self, network: &NetworkShared) -> bool {
        self.looked_at(network.now())
    }

    /// The clock was looked at, and it is `now`.
    fn looked_at(&mut self, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.now, now);
        let took = self.now.as_micros().saturating_sub(before.as_micros());
        let slow = took > SLOW_MICROS;
        self.next_stride = if slow {
            1
        } else {
            MAX_STRIDE.min(2 * self.next_stride)
        };
        self.begin_stride();
        slow
    }

    /// The clock was looked at: takes the next stride, or none, if time is up.
    fn begin_stride(&mut self) {
        self.messages += std::mem::take(&mut self.stride);
        if self.now < self.deadline {
            self.stride = self.next_stride.min(self.messages);
            self.messages -= self.stride;
        }
    }

    /// Whether the callbacks before the last look were quick.
    pub(crate) fn was_quick(&self) -> bool {
        self.next_stride > 1
    }

    /// The time, as it was last looked at.
    #[inline]
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
        let mut budget = Budget::new(&budgets, 1_000, network.now(), false);
        let mut spent = 0;
        while budget.is_left() {
            if budget.spend() {
                budget.look(&network);
            }
            spent += 1;
        }
        assert_eq!(spent, 1_000);
        assert_eq!(budget.next_stride, MAX_STRIDE);
    }

    #[test]
    fn slow_callbacks_use_up_the_time() {
        let network = network();
        let budgets = Budgets::new().with_time(Duration::from_millis(5));
        let mut budget = Budget::new(&budgets, usize::MAX, network.now(), false);
        let mut spent = 0;
        while budget.is_left() {
            std::thread::sleep(Duration::from_millis(1));
            assert!(budget.spend() && budget.look(&network), "it was slow");
            spent += 1;
        }
        assert!((1..=5).contains(&spent), "{spent} callbacks");
        assert!(!budget.was_quick());
    }

    #[test]
    fn where_callbacks_were_quick_the_first_look_comes_later() {
        let network = network();
        let mut first = Budget::new(&Budgets::new(), 100, network.now(), false);
        assert!(first.spend());
        first.look(&network);
        assert!(first.was_quick());
        let mut second = Budget::new(&Budgets::new(), 100, network.now(), first.was_quick());
        let looks = (0..QUICK_STRIDE).filter(|_| second.spend()).count();
        assert_eq!((looks, second.messages_left()), (1, 100 - QUICK_STRIDE));
        std::thread::sleep(Duration::from_millis(2));
        second.spend_last(network.now());
        assert!(!second.was_quick() && !second.is_left());
    }
}
