//! How a program ends: with a status for the program that runs the board.

use core::panic::PanicInfo;
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};

/// Ends with status 0.
pub fn success() -> ! {
    loop {
        debug::exit(EXIT_SUCCESS);
    }
}

/// Ends with status 1.
pub fn failure() -> ! {
    loop {
        debug::exit(EXIT_FAILURE);
    }
}

/// Says what happened and ends with status 1.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    crate::println!("{info}");
    failure()
}
