//! While the store is away, few operations ask it: each would wait for its answer on a thread, and the logins
//! to be refused behind them.

use crate::environment::Environment;
use crate::store::{Store, StoreError};
use cubenet_core::Instant;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long a store that was away is taken to be so, unasked.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Breaker {
    store: Box<dyn Store>,
    /// Until when it is taken to be away, in microseconds of the environment's clock.
    away_until: AtomicU64,
}

impl Breaker {
    pub(super) fn new(store: impl Store) -> Self {
        Breaker {
            store: Box::new(store),
            away_until: AtomicU64::new(0),
        }
    }

    /// Asks the store, unless it was away a moment ago.
    pub(super) fn ask<R>(
        &self,
        environment: &dyn Environment,
        ask: impl FnOnce(&dyn Store) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let until = Instant::from_micros(self.away_until.load(Relaxed));
        if environment.now() < until {
            return Err(StoreError::Away("it was away a moment ago".into()));
        }
        let asked = catch_unwind(AssertUnwindSafe(|| ask(&*self.store)));
        let outcome = asked.unwrap_or_else(|_| Err(StoreError::Away("the store panicked".into())));
        if let Err(StoreError::Away(_)) = &outcome {
            let until = environment.now().after(PAUSE);
            self.away_until.store(until.as_micros(), Relaxed);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Threads;
    use crate::store::Memory;

    #[test]
    fn a_store_that_was_away_is_asked_again_after_a_pause() {
        let threads = Threads::start(1).unwrap();
        let breaker = Breaker::new(Memory::new());
        let away = |_: &dyn Store| Err::<(), _>(StoreError::Away("of a test".into()));
        assert!(breaker.ask(&threads, away).is_err());
        let mut was_asked = false;
        let asks = |was_asked: &mut bool| {
            breaker.ask(&threads, |_| {
                *was_asked = true;
                Ok(())
            })
        };
        assert!(
            asks(&mut was_asked).is_err() || was_asked,
            "unless the pause is over"
        );
        std::thread::sleep(PAUSE);
        asks(&mut was_asked).unwrap();
        assert!(was_asked);
    }
}
