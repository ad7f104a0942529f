//! How a program rests: the processor stops until a frame arrives or a moment comes.

use crate::board::ETHERNET_INTERRUPT;
use crate::clock::Clock;
use cortex_m::interrupt::{self, InterruptNumber};
use cortex_m::peripheral::NVIC;
use cortex_m_rt::exception;
use cubenet_core::Instant;

#[derive(Clone, Copy)]
struct Interrupt(u16);

// SAFETY: the board's number of the Ethernet controller's interrupt, which does not change.
unsafe impl InterruptNumber for Interrupt {
    fn number(self) -> u16 {
        self.0
    }
}

const ETHERNET: Interrupt = Interrupt(ETHERNET_INTERRUPT);

/// Rests until `at`, or until the controller has a frame, of which `has_frame` tells.
pub fn until(at: Instant, clock: &mut Clock, has_frame: impl FnOnce() -> bool) {
    if at <= clock.now() {
        return;
    }
    clock.ring_at(at);
    // An interrupt that comes before the processor stops is pending then, and ends the rest at
    // once; it is handled when the interrupts are let in again.
    interrupt::free(|_| {
        if !has_frame() {
            // SAFETY: the handler masks it, and touches nothing else.
            unsafe { NVIC::unmask(ETHERNET) };
            cortex_m::asm::wfi();
        }
    });
}

/// The Ethernet controller has something. It says so until it is read, so it is not asked
/// again before the next rest.
#[exception]
unsafe fn DefaultHandler(_interrupt: i16) {
    NVIC::mask(ETHERNET);
}
