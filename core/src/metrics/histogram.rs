//! How often something took how long.

use core::time::Duration;

/// How often something took how long, in steps that double: up to 1 µs, 2 µs, 4 µs, and so on up to 8.4
/// seconds; and longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; Histogram::STEPS],
    micros: u64,
}

impl Histogram {
    /// How many steps there are.
    pub const STEPS: usize = 25;

    /// The step of a time, in microseconds.
    pub const fn step(micros: u64) -> usize {
        let step = match micros {
            0 => 0,
            micros => u64::BITS - (micros - 1).leading_zeros(),
        };
        if step as usize >= Self::STEPS {
            return Self::STEPS - 1;
        }
        step as usize
    }

    /// One that was counted elsewhere: how often in each step, and all times together, in microseconds.
    pub const fn from_counts(counts: [u64; Histogram::STEPS], micros: u64) -> Self {
        Histogram { counts, micros }
    }

    /// Something took this long.
    pub fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.counts[Self::step(micros)] += 1;
        self.micros = self.micros.saturating_add(micros);
    }

    /// With what another has counted.
    pub fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    /// How often in each step, with the time that is the most in it; the last has none.
    pub fn steps(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        self.counts.iter().enumerate().map(|(step, count)| {
            let is_last = step + 1 == Self::STEPS;
            let most = (!is_last).then(|| Duration::from_micros(1 << step));
            (most, *count)
        })
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All times together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram::from_counts([0; Histogram::STEPS], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn each_time_is_in_the_first_step_that_holds_it() {
        let mut histogram = Histogram::default();
        let times = [0, 1, 2, 3, 4, 5, 1 << 23, (1 << 23) + 1, u64::MAX];
        for micros in times {
            histogram.record(Duration::from_micros(micros));
            let step = Histogram::step(micros);
            let (most, _) = histogram.steps().nth(step).unwrap();
            assert!(most.is_none_or(|most| Duration::from_micros(micros) <= most));
            if let Some(before) = step.checked_sub(1) {
                let (less, _) = histogram.steps().nth(before).unwrap();
                assert!(Duration::from_micros(micros) > less.unwrap());
            }
        }
        assert_eq!(histogram.count(), times.len() as u64);
        assert_eq!(histogram.sum(), Duration::from_micros(u64::MAX));
        let counts: Vec<u64> = histogram.steps().map(|(_, count)| count).collect();
        assert_eq!(counts[..4], [2, 1, 2, 1]);
        assert_eq!(counts[23..], [1, 2]);
        let mut sum = Histogram::default();
        sum.add(&histogram);
        sum.add(&histogram);
        assert_eq!(sum.count(), 2 * histogram.count());
    }
}
