//! The device as smoltcp sees it: some SYNs are dropped, and what passes is looked at.
//!
//! smoltcp answers a SYN to a port on which no socket listens with RST. Where one will listen
//! again soon, it is better not to answer: the peer sends it again after a second.

#[cfg(feature = "ipv6")]
use crate::stack::neighbours;
use crate::stack::neighbours::Watch;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

/// Whether SYNs to a port are dropped; `None` if none are.
pub(crate) type SynFilter<'g> = Option<&'g dyn Fn(u16) -> bool>;

/// A device that drops some SYNs, and whose frames are looked at.
pub(crate) struct FilteredDevice<'g, D> {
    pub(crate) device: &'g mut D,
    pub(crate) medium: Medium,
    pub(crate) syn_filter: SynFilter<'g>,
    pub(crate) watch: &'g Watch,
    /// A frame that arrives as if the device had received it.
    pub(crate) injected: Option<&'g [u8]>,
}

impl<'g, D: Device> Device for FilteredDevice<'g, D> {
    type RxToken<'a>
        = FilteredRxToken<'g, D::RxToken<'a>>
    where
        Self: 'a;
    type TxToken<'a>
        = WatchedTxToken<'g, D::TxToken<'a>>
    where
        Self: 'a;

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (medium, syn_filter, watch) = (self.medium, self.syn_filter, self.watch);
        let (frame, token) = if let Some(frame) = self.injected {
            let token = self.device.transmit(now)?;
            self.injected = None;
            (Frame::Injected(frame), token)
        } else {
            let (frame, token) = self.device.receive(now)?;
            (Frame::Received(frame), token)
        };
        let filtered = FilteredRxToken {
            frame,
            medium,
            syn_filter,
            watch,
        };
        let watched = WatchedTxToken {
            token,
            medium,
            watch,
        };
        Some((filtered, watched))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        let (medium, watch) = (self.medium, self.watch);
        let Some(token) = self.device.transmit(now) else {
            watch.exhausted.set(true);
            return None;
        };
        Some(WatchedTxToken {
            token,
            medium,
            watch,
        })
    }
}

enum Frame<'g, T> {
    Received(T),
    Injected(&'g [u8]),
}

/// A frame that may have to be left out.
pub(crate) struct FilteredRxToken<'g, T> {
    frame: Frame<'g, T>,
    medium: Medium,
    syn_filter: SynFilter<'g>,
    watch: &'g Watch,
}

impl<T: RxToken> RxToken for FilteredRxToken<'_, T> {
    fn consume<R, C: FnOnce(&[u8]) -> R>(self, read: C) -> R {
        let FilteredRxToken {
            frame,
            medium,
            syn_filter,
            watch,
        } = self;
        let look = |frame: &[u8]| {
            if medium == Medium::Ethernet {
                watch.arrives(frame);
            }
            #[cfg(feature = "ipv6")]
            let overriding = neighbours::overriding(medium, frame);
            #[cfg(feature = "ipv6")]
            let frame = overriding
                .as_ref()
                .map_or(frame, |copy| &copy[..frame.len()]);
            let unheard =
                |syn_filter: &dyn Fn(u16) -> bool| syn_port(medium, frame).is_some_and(syn_filter);
            // smoltcp takes an empty frame for none.
            read(if syn_filter.is_some_and(unheard) {
                &[]
            } else {
                frame
            })
        };
        match frame {
            Frame::Received(token) => token.consume(look),
            Frame::Injected(frame) => look(frame),
        }
    }

    fn meta(&self) -> PacketMeta {
        match &self.frame {
            Frame::Received(token) => token.meta(),
            Frame::Injected(_) => PacketMeta::default(),
        }
    }
}

/// Room for a frame that is looked at as it leaves.
pub(crate) struct WatchedTxToken<'g, T> {
    token: T,
    medium: Medium,
    watch: &'g Watch,
}

impl<T: TxToken> TxToken for WatchedTxToken<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let WatchedTxToken {
            token,
            medium,
            watch,
        } = self;
        token.consume(len, |frame| {
            let result = write(frame);
            if medium == Medium::Ethernet {
                watch.leaves(frame);
            }
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.token.set_meta(meta);
    }
}

/// The port of this frame, if it is a SYN. Every frame
/// goes through here while a pool is empty, so it is read by hand: the few bytes that matter.
fn syn_port(medium: Medium, frame: &[u8]) -> Option<u16> {
    const ETHERNET_HEADER: usize = 14;
    const TCP: u8 = 6;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let packet = match medium {
        Medium::Ip => frame,
        Medium::Ethernet => frame.get(ETHERNET_HEADER..)?,
        #[allow(unreachable_patterns)]
        _ => return None,
    };
    let first = *packet.first()?;
    let (protocol, header_len) = match first >> 4 {
        4 => (*packet.get(9)?, usize::from(first & 0x0f) * 4),
        // No SYN comes behind extension headers.
        6 => (*packet.get(6)?, 40),
        _ => return None,
    };
    let segment = packet.get(header_len..)?;
    if protocol != TCP || segment.get(13)? & (SYN | ACK) != SYN {
        return None;
    }
    Some(u16::from_be_bytes([*segment.get(2)?, *segment.get(3)?]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A segment with these flags to port 7, in IPv4 with an option of four bytes.
    fn segment(flags: u8) -> Vec<u8> {
        let mut packet = std::vec![0; 24 + 20];
        packet[0] = 0x46;
        packet[9] = 6;
        packet[24 + 3] = 7;
        packet[24 + 13] = flags;
        packet
    }

    #[test]
    fn only_a_syn_has_a_port_to_be_checked() {
        assert_eq!(syn_port(Medium::Ip, &segment(0x02)), Some(7));
        // Its answer, data, and a datagram.
        assert_eq!(syn_port(Medium::Ip, &segment(0x12)), None);
        assert_eq!(syn_port(Medium::Ip, &segment(0x18)), None);
        let mut datagram = segment(0x02);
        datagram[9] = 17;
        assert_eq!(syn_port(Medium::Ip, &datagram), None);
    }

    #[test]
    fn a_frame_that_is_cut_anywhere_is_not_a_syn() {
        let segment = segment(0x02);
        for len in 0..24 + 14 {
            assert_eq!(syn_port(Medium::Ip, &segment[..len]), None);
        }
        assert_eq!(syn_port(Medium::Ip, &[0xff; 60]), None);
    }

    #[cfg(feature = "ipv6")]
    #[test]
    fn a_stream_begins_over_ipv6_too() {
        let mut packet = std::vec![0; 40 + 20];
        packet[0] = 0x60;
        packet[6] = 6;
        packet[40 + 3] = 7;
        packet[40 + 13] = 0x02;
        assert_eq!(syn_port(Medium::Ip, &packet), Some(7));
    }
}
