//! Events for the application's `tracing` subscriber: at a limited rate where a peer could
//! cause many, and without a way for the subscriber to hurt the thread that reports.
//!
//! A subscriber is code of the application's, so none of these macros may be used while a lock
//! or a borrow is held.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// At most one line a second for each kind of event; how many were left out is said with the
/// next.
#[derive(Default)]
pub(crate) struct Rate {
    /// The second in which the last line was let through.
    second: AtomicU64,
    left_out: AtomicU64,
}

impl Rate {
    pub(crate) const fn new() -> Self {
        Rate {
            second: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Whether a line may be written now, and how many were left out before it.
    pub(crate) fn admit(&self) -> Option<u64> {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed();
        let second = since_epoch.unwrap_or(Duration::ZERO).as_secs();
        if self.second.swap(second, Relaxed) == second {
            self.left_out.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Relaxed))
    }
}

/// `tracing::debug!`. A subscriber that panics ends no thread.
macro_rules! debug {
    ($($message:tt)*) => {
        $crate::user::catch_panic(|| tracing::debug!($($message)*)).ok()
    };
}
pub(crate) use debug;

/// `tracing::warn!` for one kind of event, at most once a second.
macro_rules! warn_limited {
    ($($message:tt)*) => { $crate::log::limited!(warn, $($message)*) };
}
pub(crate) use warn_limited;

/// `tracing::error!` for one kind of event, at most once a second.
macro_rules! error_limited {
    ($($message:tt)*) => { $crate::log::limited!(error, $($message)*) };
}
pub(crate) use error_limited;

macro_rules! limited {
    ($level:ident, $($message:tt)*) => {{
        static RATE: $crate::log::Rate = $crate::log::Rate::new();
        if let Some(left_out) = RATE.admit() {
            let _ = $crate::user::catch_panic(|| tracing::$level!(left_out, $($message)*));
        }
    }};
}
pub(crate) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_events_is_a_line_or_two_and_a_count() {
        let rate = Rate::new();
        let lines = (0..1_000).filter(|_| rate.admit().is_some()).count();
        assert!((1..=2).contains(&lines), "{lines} lines");
        assert!(rate.left_out.load(Relaxed) <= 1_000 - lines as u64);
    }
}
