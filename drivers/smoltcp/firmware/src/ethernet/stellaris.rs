//! The Ethernet controller of the Stellaris chips. Frames go through one register, a word at
//! a time, with their length in the first two bytes.

use super::{MAX_FRAME, Received, word};
use crate::registers::Registers;
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Read: what has happened; written: what of it has been seen.
const INTERRUPTS: usize = 0x00;
const INTERRUPT_MASK: usize = 0x04;
const RECEIVE_CONTROL: usize = 0x08;
const TRANSMIT_CONTROL: usize = 0x0c;
const DATA: usize = 0x10;
const ADDRESS_LOW: usize = 0x14;
const ADDRESS_HIGH: usize = 0x18;
const PACKETS: usize = 0x34;
const TRANSMIT_REQUEST: usize = 0x38;

const RECEIVED: u32 = 1;
/// A frame found no room; from then on the FIFO cannot be trusted.
const OVERRUN: u32 = 1 << 3;
/// Receive, nothing with a wrong check sequence, from an empty FIFO.
const RECEIVE_ON: u32 = 0x01 | 0x08 | 0x10;
/// Transmit, pad, append a check sequence, both ways at once.
const TRANSMIT_ON: u32 = 0x01 | 0x02 | 0x04 | 0x10;

/// The length before a frame.
const LENGTH_LEN: usize = 2;
/// The check sequence that follows a received frame.
const CHECK_LEN: usize = 4;
/// What the length before a sent frame does not count: two addresses and a type.
const HEADER_LEN: usize = 14;

/// The controller, with room for a frame each way.
pub struct Ethernet {
    registers: Registers,
    /// With its length before it.
    receive: [u8; LENGTH_LEN + MAX_FRAME],
    transmit: [u8; LENGTH_LEN + MAX_FRAME],
}

impl Ethernet {
    /// Starts the controller at `registers`.
    pub fn new(registers: Registers, address: [u8; 6]) -> Self {
        registers.write(ADDRESS_LOW, word(&address, 0));
        registers.write(ADDRESS_HIGH, word(&address, 4));
        registers.write(RECEIVE_CONTROL, RECEIVE_ON);
        registers.write(TRANSMIT_CONTROL, TRANSMIT_ON);
        registers.write(INTERRUPTS, u32::MAX);
        registers.write(INTERRUPT_MASK, RECEIVED);
        Ethernet {
            registers,
            receive: [0; LENGTH_LEN + MAX_FRAME],
            transmit: [0; LENGTH_LEN + MAX_FRAME],
        }
    }

    /// Whether a frame has arrived. If not, the interrupt will say when one has.
    pub fn has_frame(&self) -> bool {
        self.registers.write(INTERRUPTS, RECEIVED);
        self.frames() > 0
    }

    fn frames(&self) -> u32 {
        self.registers.read(PACKETS) & 0x3f
    }

    /// Whether a frame can be sent now.
    fn has_room(&self) -> bool {
        self.registers.read(TRANSMIT_REQUEST) & 1 == 0
    }

    /// After an overrun begins with an empty FIFO again, as the data sheet asks.
    fn recover(&self) {
        if self.registers.read(INTERRUPTS) & OVERRUN != 0 {
            self.registers.write(RECEIVE_CONTROL, 0);
            self.registers.write(INTERRUPTS, OVERRUN);
            self.registers.write(RECEIVE_CONTROL, RECEIVE_ON);
        }
    }

    /// Reads the next frame; 0 if it is too long.
    fn read(&mut self) -> usize {
        let first = self.registers.read(DATA).to_le_bytes();
        let len = usize::from(u16::from_le_bytes([first[0], first[1]]));
        let frame_len = len.saturating_sub(LENGTH_LEN + CHECK_LEN);
        let mut word = first;
        for at in (0..len).step_by(4) {
            if at > 0 {
                word = self.registers.read(DATA).to_le_bytes();
            }
            if let Some(room) = self.receive.get_mut(at..) {
                let part = room.len().min(word.len());
                room[..part].copy_from_slice(&word[..part]);
            }
        }
        if frame_len <= MAX_FRAME { frame_len } else { 0 }
    }
}

impl Device for Ethernet {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, TxToken<'_>)> {
        self.recover();
        // The answer to a frame needs room.
        if self.frames() == 0 || !self.has_room() {
            return None;
        }
        let len = self.read();
        let receive = Received(&self.receive[LENGTH_LEN..][..len]);
        let transmit = TxToken {
            registers: self.registers,
            frame: &mut self.transmit,
        };
        Some((receive, transmit))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        self.has_room().then_some(TxToken {
            registers: self.registers,
            frame: &mut self.transmit,
        })
    }
}

/// Room for a frame that goes out.
pub struct TxToken<'a> {
    registers: Registers,
    frame: &'a mut [u8; LENGTH_LEN + MAX_FRAME],
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let frame = &mut self.frame[..LENGTH_LEN + len];
        let result = write(&mut frame[LENGTH_LEN..]);
        let counted = len.saturating_sub(HEADER_LEN) as u16;
        frame[..LENGTH_LEN].copy_from_slice(&counted.to_le_bytes());
        for at in (0..frame.len()).step_by(4) {
            self.registers.write(DATA, word(frame, at));
        }
        self.registers.write(TRANSMIT_REQUEST, 1);
        result
    }
}
