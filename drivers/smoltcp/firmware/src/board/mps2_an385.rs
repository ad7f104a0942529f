//! Arm's MPS2 board with the AN385 image: a Cortex-M3 with 4 MB of code memory, 4 MB of RAM,
//! and a LAN9118 for Ethernet.

use crate::registers::Registers;
use core::fmt;

pub use crate::ethernet::lan9118::Ethernet;

/// Cycles of the processor in a second: 25 MHz.
pub const HERTZ: u32 = 25_000_000;
/// The interrupt of the Ethernet controller.
pub const ETHERNET_INTERRUPT: u16 = 13;
/// The board's name.
pub const NAME: &str = "mps2-an385";

// SAFETY: where the application note has it.
const UART0: Registers = unsafe { Registers::new(0x4000_4000) };
// SAFETY: where the application note has it.
const ETHERNET: Registers = unsafe { Registers::new(0x4020_0000) };

const DATA: usize = 0x00;
const STATE: usize = 0x04;
const CONTROL: usize = 0x08;
const BAUD_DIVIDER: usize = 0x10;

/// The Ethernet controller, with this hardware address.
pub fn ethernet(address: [u8; 6]) -> Ethernet {
    Ethernet::new(ETHERNET, address)
}

/// The first UART.
pub struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const TRANSMIT_FULL: u32 = 1;
        for byte in text.bytes() {
            while UART0.read(STATE) & TRANSMIT_FULL != 0 {}
            UART0.write(DATA, byte.into());
        }
        Ok(())
    }
}

/// Prepares what has to be prepared.
pub fn start() {
    const TRANSMIT_ENABLE: u32 = 1;
    // 115,200 baud, at 25 MHz.
    UART0.write(BAUD_DIVIDER, HERTZ / 115_200);
    UART0.write(CONTROL, TRANSMIT_ENABLE);
}
