//! Time as the core sees it: a number of microseconds, handed in by the driver.

use core::fmt;
use core::time::Duration;

/// A moment, in microseconds since an origin that the driver chooses.
///
/// The core compares moments and adds durations to them; it never asks for the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The driver's origin of time.
    pub const ZERO: Instant = Instant(0);
    /// A moment that never comes: what a timer that is off is set to.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// The moment `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Instant(micros)
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The moment `duration` after this one. Saturates at [`Instant::NEVER`], and
    /// [`Instant::NEVER`] plus anything is itself.
    #[must_use]
    #[cfg_attr(target_pointer_width = "32", inline(never))]
    pub fn after(self, duration: Duration) -> Self {
        // In 64 bits: `as_micros` takes 128, which small processors do not have.
        let micros = duration.as_secs().saturating_mul(1_000_000);
        let micros = micros.saturating_add(u64::from(duration.subsec_micros()));
        Instant(self.0.saturating_add(micros))
    }

    /// How long after `earlier` this moment is; zero if it is not after it.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This moment, or `None` if it never comes.
    pub fn if_ever(self) -> Option<Instant> {
        (self != Instant::NEVER).then_some(self)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_stays_never() {
        assert_eq!(Instant::NEVER.after(Duration::from_secs(1)), Instant::NEVER);
        assert_eq!(Instant::ZERO.after(Duration::MAX), Instant::NEVER);
        assert_eq!(Instant::NEVER.if_ever(), None);
    }

    #[test]
    fn a_moment_that_is_not_later_is_no_time_after() {
        let one = Instant::from_micros(1);
        assert_eq!(Instant::ZERO.since(one), Duration::ZERO);
        assert_eq!(one.since(Instant::ZERO), Duration::from_micros(1));
    }

    #[test]
    fn a_moment_is_written_in_seconds() {
        use std::string::ToString;
        assert_eq!(Instant::from_micros(12_000_345).to_string(), "12.000345 s");
        assert_eq!(
            Instant::from_micros(7).if_ever(),
            Some(Instant::from_micros(7))
        );
        assert_eq!(Instant::from_micros(7).as_micros(), 7);
    }
}
