//! A network inside the device: what is sent is received.

use crate::ethernet::Received;
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

const PACKETS: usize = 8;
const MAX_PACKET: usize = 600;

/// A device that receives what it sent.
#[repr(align(4))]
pub struct Loopback {
    queue: [([u8; MAX_PACKET], usize); PACKETS],
    first: usize,
    len: usize,
    /// The packet that is being read.
    current: [u8; MAX_PACKET],
}

impl Loopback {
    /// With nothing in it.
    pub const fn new() -> Self {
        Loopback {
            queue: [([0; MAX_PACKET], 0); PACKETS],
            first: 0,
            len: 0,
            current: [0; MAX_PACKET],
        }
    }
}

impl Default for Loopback {
    fn default() -> Self {
        Loopback::new()
    }
}

impl Device for &mut Loopback {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MAX_PACKET;
        capabilities
    }

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, TxToken<'_>)> {
        if self.len == 0 {
            return None;
        }
        let (packet, len) = &self.queue[self.first];
        let len = *len;
        self.current[..len].copy_from_slice(&packet[..len]);
        self.first = (self.first + 1) % PACKETS;
        self.len -= 1;
        let Loopback {
            queue,
            first,
            len: queued,
            current,
        } = &mut **self;
        let transmit = TxToken {
            queue,
            first: *first,
            len: queued,
        };
        Some((Received(&current[..len]), transmit))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        (self.len < PACKETS).then_some(TxToken {
            queue: &mut self.queue,
            first: self.first,
            len: &mut self.len,
        })
    }
}

/// Room for a packet that goes out.
pub struct TxToken<'a> {
    queue: &'a mut [([u8; MAX_PACKET], usize); PACKETS],
    first: usize,
    len: &'a mut usize,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let (packet, packet_len) = &mut self.queue[(self.first + *self.len) % PACKETS];
        let result = write(&mut packet[..len]);
        *packet_len = len;
        *self.len += 1;
        result
    }
}
