//! The only chance in a simulation: a generator that its seed determines.
//!
//! Only the generator's raw output is used, which its algorithm fixes; how that becomes a
//! number below a bound is written here. So no update of a library changes a run.

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::time::Duration;

pub(crate) struct Random(Xoshiro256PlusPlus);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Whether something of this probability happens. Draws nothing if it cannot.
    pub(crate) fn chance(&mut self, rate: f64) -> bool {
        if rate <= 0.0 {
            return false;
        }
        // 53 bits are what a double holds.
        let drawn = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < rate
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A duration of at most `longest`. Draws nothing if that is zero.
    pub(crate) fn duration(&mut self, longest: Duration) -> Duration {
        match longest.as_micros() as u64 {
            0 => Duration::ZERO,
            longest => Duration::from_micros(self.below(longest.saturating_add(1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_a_seed_never_changes() {
        let mut random = Random::new(42);
        let drawn = [random.next(), random.next(), random.below(1_000)];
        assert_eq!(
            drawn,
            [15_021_278_609_987_233_951, 5_881_210_131_331_364_753, 983]
        );
    }

    #[test]
    fn what_cannot_happen_does_not_and_draws_nothing() {
        let (mut random, mut other) = (Random::new(1), Random::new(1));
        assert!(!random.chance(0.0));
        assert_eq!(random.duration(Duration::ZERO), Duration::ZERO);
        assert_eq!(random.next(), other.next());
        assert!(random.chance(1.0));
    }

    #[test]
    fn chances_come_out_as_often_as_they_should() {
        let mut random = Random::new(7);
        let hits = (0..100_000).filter(|_| random.chance(0.25)).count();
        assert!((24_500..25_500).contains(&hits), "{hits}");
    }
}
