//! SMSC's LAN9118, an Ethernet controller beside the processor. Frames go through its two
//! FIFOs, a word at a time.

use super::{MAX_FRAME, Received, word};
use crate::registers::Registers;
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

const RX_DATA: usize = 0x00;
const TX_DATA: usize = 0x20;
const RX_STATUS: usize = 0x40;
const IRQ_CFG: usize = 0x54;
const INT_STS: usize = 0x58;
const INT_EN: usize = 0x5c;
const FIFO_INT: usize = 0x68;
const TX_CFG: usize = 0x70;
const RX_FIFO_INF: usize = 0x7c;
const TX_FIFO_INF: usize = 0x80;
const MAC_CSR_CMD: usize = 0xa4;
const MAC_CSR_DATA: usize = 0xa8;

/// Enabled, active high, push-pull.
const IRQ_CFG_ON: u32 = 0x111;
/// The receive status FIFO holds something.
const RX_STATUS_LEVEL: u32 = 1 << 3;
const TX_ON: u32 = 1 << 1;
/// Statuses of sent frames are thrown away.
const TX_STATUS_OVERRUN: u32 = 1 << 2;

const MAC_BUSY: u32 = 1 << 31;
const MAC_CONTROL: u32 = 1;
const MAC_ADDRESS_HIGH: u32 = 2;
const MAC_ADDRESS_LOW: u32 = 3;
const MAC_TRANSMIT: u32 = 1 << 3;
const MAC_RECEIVE: u32 = 1 << 2;

/// In a receive status.
const ERROR: u32 = 1 << 15;
/// The check sequence that follows a received frame.
const CHECK_LEN: usize = 4;

/// The controller, with room for a frame each way.
pub struct Ethernet {
    registers: Registers,
    receive: [u8; MAX_FRAME],
    transmit: [u8; MAX_FRAME],
}

impl Ethernet {
    /// Starts the controller at `registers`.
    pub fn new(registers: Registers, address: [u8; 6]) -> Self {
        let ethernet = Ethernet {
            registers,
            receive: [0; MAX_FRAME],
            transmit: [0; MAX_FRAME],
        };
        ethernet.write_mac(MAC_ADDRESS_LOW, word(&address, 0));
        ethernet.write_mac(MAC_ADDRESS_HIGH, word(&address, 4));
        ethernet.write_mac(MAC_CONTROL, MAC_TRANSMIT | MAC_RECEIVE);
        registers.write(TX_CFG, TX_ON | TX_STATUS_OVERRUN);
        // From the first frame on.
        registers.write(FIFO_INT, 0);
        registers.write(INT_STS, u32::MAX);
        // Before the interrupt is unmasked, or it fires for ever.
        registers.write(IRQ_CFG, IRQ_CFG_ON);
        registers.write(INT_EN, RX_STATUS_LEVEL);
        ethernet
    }

    fn write_mac(&self, register: u32, value: u32) {
        self.registers.write(MAC_CSR_DATA, value);
        self.registers.write(MAC_CSR_CMD, MAC_BUSY | register);
        while self.registers.read(MAC_CSR_CMD) & MAC_BUSY != 0 {}
    }

    /// Whether a frame has arrived. If not, the interrupt will say when one has.
    pub fn has_frame(&self) -> bool {
        self.registers.write(INT_STS, RX_STATUS_LEVEL);
        self.frames() > 0
    }

    fn frames(&self) -> u32 {
        const STATUSES: u32 = 16;
        self.registers.read(RX_FIFO_INF) >> STATUSES & 0xff
    }

    /// Whether a frame can be sent now: it, and the two words before it.
    fn has_room(&self) -> bool {
        let free = self.registers.read(TX_FIFO_INF) as usize & 0xffff;
        free >= MAX_FRAME + 12
    }

    /// Reads the next frame; 0 if it is damaged or too long.
    fn read(&mut self) -> usize {
        let status = self.registers.read(RX_STATUS);
        let len = (status >> 16 & 0x3fff) as usize;
        let frame_len = len.saturating_sub(CHECK_LEN);
        let fits = status & ERROR == 0 && frame_len <= MAX_FRAME;
        // The words are read out one by one: leaving them out fast is not reliable.
        for at in (0..len).step_by(4) {
            let word = self.registers.read(RX_DATA).to_le_bytes();
            if fits && at < frame_len {
                let room = &mut self.receive[at..frame_len];
                let part = room.len().min(word.len());
                room[..part].copy_from_slice(&word[..part]);
            }
        }
        if fits { frame_len } else { 0 }
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
        // The answer to a frame needs room.
        if self.frames() == 0 || !self.has_room() {
            return None;
        }
        let len = self.read();
        let receive = Received(&self.receive[..len]);
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
    frame: &'a mut [u8; MAX_FRAME],
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        const FIRST: u32 = 1 << 13;
        const LAST: u32 = 1 << 12;
        let frame = &mut self.frame[..len];
        let result = write(frame);
        self.registers.write(TX_DATA, FIRST | LAST | len as u32);
        self.registers.write(TX_DATA, len as u32);
        for at in (0..len).step_by(4) {
            self.registers.write(TX_DATA, word(frame, at));
        }
        result
    }
}
