//! What the firmware's programs share: the board, its clock, its Ethernet, how they rest, and
//! how they end.

#![no_std]

pub mod arguments;
#[cfg_attr(feature = "lm3s6965evb", path = "board/lm3s6965evb.rs")]
#[cfg_attr(feature = "mps2-an385", path = "board/mps2_an385.rs")]
pub mod board;
pub mod clock;
pub mod ethernet;
pub mod exit;
pub mod host;
pub mod inside;
pub mod loopback;
pub mod registers;
pub mod rest;
pub mod sizes;
pub mod stack;

/// Writes a line to the board's UART.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::board::Uart, $($arguments)*);
    }};
}
