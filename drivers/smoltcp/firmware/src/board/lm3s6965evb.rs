//! Texas Instruments' LM3S6965 evaluation board: a Cortex-M3 with 256 KB of flash, 64 KB of
//! RAM, and an Ethernet controller on the chip.

use crate::registers::Registers;
use core::fmt;

pub use crate::ethernet::stellaris::Ethernet;

/// Cycles of the processor in a second, as it starts: 12.5 MHz.
pub const HERTZ: u32 = 12_500_000;
/// The interrupt of the Ethernet controller.
pub const ETHERNET_INTERRUPT: u16 = 42;
/// The board's name.
pub const NAME: &str = "lm3s6965evb";

// SAFETY: where the data sheet has them.
const UART0: Registers = unsafe { Registers::new(0x4000_c000) };
// SAFETY: where the data sheet has it.
const ETHERNET: Registers = unsafe { Registers::new(0x4004_8000) };

/// The Ethernet controller, with this hardware address.
pub fn ethernet(address: [u8; 6]) -> Ethernet {
    Ethernet::new(ETHERNET, address)
}

/// The first UART.
pub struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const DATA: usize = 0x00;
        const FLAGS: usize = 0x18;
        const TRANSMIT_FULL: u32 = 1 << 5;
        for byte in text.bytes() {
            while UART0.read(FLAGS) & TRANSMIT_FULL != 0 {}
            UART0.write(DATA, byte.into());
        }
        Ok(())
    }
}

/// Prepares what has to be prepared.
pub fn start() {
    // The UART transmits as it starts.
}
