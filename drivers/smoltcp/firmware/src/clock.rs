//! The time, from the processor's own timer, which also ends a rest.
//!
//! The timer counts cycles down from a value and begins again, 24 bits at most. What it has
//! counted in all is kept here, so it can be set anew, to ring when the program is to be
//! woken, without losing the time. While it does not sleep it rings every half second or so.

use crate::board::HERTZ;
use core::cell::Cell;
use cortex_m::interrupt::{self, Mutex};
use cortex_m::peripheral::{SCB, SYST, syst::SystClkSource};
use cortex_m_rt::exception;
use cubenet_core::Instant;

/// The longest the timer can count.
const LONGEST: u32 = (1 << 24) - 1;
/// The least that it is set to: it must not ring while it is being set.
const SHORTEST: u32 = 1_000;

/// Cycles counted when the timer last came to its end, or was set.
static COUNTED: Mutex<Cell<u64>> = Mutex::new(Cell::new(0));

/// The processor's timer.
pub struct Clock {
    timer: SYST,
}

impl Clock {
    /// Starts the clock.
    pub fn start(mut timer: SYST) -> Self {
        timer.set_clock_source(SystClkSource::Core);
        timer.set_reload(LONGEST);
        timer.clear_current();
        timer.enable_interrupt();
        timer.enable_counter();
        Clock { timer }
    }

    /// Cycles since the start.
    pub fn cycles(&self) -> u64 {
        interrupt::free(|token| {
            let mut elapsed = elapsed();
            let mut counted = COUNTED.borrow(token).get();
            if SCB::is_pendst_pending() {
                // It came to its end, perhaps between the two looks, and that has not been counted.
                elapsed = self::elapsed();
                counted += period();
            }
            counted + elapsed
        })
    }

    /// The time since the start.
    pub fn now(&self) -> Instant {
        Instant::from_micros(self.cycles() * 2 / u64::from(HERTZ / 500_000))
    }

    /// Sets the timer to ring at `at`, or earlier.
    pub fn ring_at(&mut self, at: Instant) {
        let left = at.since(self.now()).as_micros().min(10_000_000) as u64;
        let left = (left * u64::from(HERTZ / 500_000) / 2) as u32;
        interrupt::free(|token| {
            COUNTED.borrow(token).set(self.cycles());
            self.timer.set_reload(left.clamp(SHORTEST, LONGEST));
            self.timer.clear_current();
            SCB::clear_pendst();
        });
    }
}

/// Cycles from one end of the timer's count to the next.
fn period() -> u64 {
    u64::from(SYST::get_reload()) + 1
}

/// Cycles since the timer last came to its end, which is 0, or was cleared.
fn elapsed() -> u64 {
    match SYST::get_current() {
        0 => 0,
        left => period() - u64::from(left),
    }
}

/// The timer came to its end.
#[exception]
fn SysTick() {
    interrupt::free(|token| {
        let counted = COUNTED.borrow(token);
        counted.set(counted.get() + period());
    });
}
