//! Finding the hosts of an Ethernet link.
//!
//! smoltcp asks for the hardware address of one host a second, whatever number it needs, and the
//! datagrams behind one for a host that does not answer wait. So one missing host would keep all
//! others from being found, and silence every datagram port that has something for it. Here is
//! what a driver can do about that:
//!
//! - A host that has not answered for [`ANSWER_TIMEOUT`] is taken for missing: the driver tells smoltcp that it
//!   has our own hardware address, so that frames for it leave, and get lost in the first switch.
//!   That is what others call a negative entry of the cache. It ends when the host asks for us or answers,
//!   or after a minute.
//! - What smoltcp does not ask for, the driver asks for by itself, once a second: the hosts that
//!   are being connected to, those to which a stream has something to send, and those to which a frame
//!   was lost.

use core::cell::Cell;
use core::time::Duration;
use cubenet_core::Instant;
use smoltcp::iface::Interface;
#[cfg(feature = "ipv6")]
use smoltcp::phy::Medium;
use smoltcp::phy::{Device, TxToken};
use smoltcp::wire::{HardwareAddress, IpAddress};

/// How long a host may take to say where it is. On a wired link it takes a millisecond; a
/// wireless one that sleeps may take 300.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Between two rounds of questions of our own; smoltcp's time between two of its own.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// Between two tries to ask, while the device has no room.
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

/// Between the first need of a host's address and a round of questions.
const BEFORE_ROUND: Duration = Duration::from_millis(200);

/// Room for a question or an answer, of either family.
const LONGEST: usize = 14 + 40 + 32;

/// What frames tell on their way through the device.
#[derive(Default)]
pub(crate) struct Watch {
    /// smoltcp has asked where a host is.
    asked: Cell<bool>,
    /// That host, until it answers or is taken for missing, and whether it is another than before.
    sought: Cell<Option<IpAddress>>,
    is_new: Cell<bool>,
    /// This host, taken for missing, was sent something.
    lost: Cell<Option<IpAddress>>,
    /// The device had no room for a frame.
    pub(crate) exhausted: Cell<bool>,
}

impl Watch {
    /// A frame leaves.
    pub(crate) fn leaves(&self, frame: &[u8]) {
        let Some((ethernet, packet)) = frame.split_first_chunk::<ETHERNET_HEADER>() else {
            return;
        };
        if let Some(host) = question(ethernet, packet) {
            self.asked.set(true);
            if self.sought.replace(Some(host)) != Some(host) {
                self.is_new.set(true);
            }
        } else if ethernet[..6] == ethernet[6..12] {
            self.lost.set(destination(ethernet, packet));
        }
    }

    /// A frame arrives.
    pub(crate) fn arrives(&self, frame: &[u8]) {
        if let Some((ethernet, packet)) = frame.split_first_chunk::<ETHERNET_HEADER>()
            && let Some(host) = answer(ethernet, packet)
        {
            self.sought
                .set(self.sought.get().filter(|sought| *sought != host));
        }
    }
}

/// What is known of hosts that smoltcp looks for.
pub(crate) struct Neighbours {
    pub(crate) watch: Watch,
    /// When the host that smoltcp asked for last is taken for missing.
    missing_at: Instant,
    /// When the last round of questions was asked, and the next is to be.
    asked_at: Instant,
    asks_at: Instant,
}

impl Neighbours {
    pub(crate) fn new() -> Self {
        Neighbours {
            watch: Watch::default(),
            missing_at: Instant::NEVER,
            asked_at: Instant::ZERO,
            asks_at: Instant::NEVER,
        }
    }

    /// When there is something to do.
    pub(crate) fn poll_timeout(&self) -> Instant {
        self.missing_at.min(self.asks_at)
    }

    /// Sees what frames said.
    pub(crate) fn look(&mut self, interface: &Interface, now: Instant) {
        // What the device sends to itself is not lost.
        let lost = self.watch.lost.get();
        let lost = lost.filter(|host| !interface.has_ip_addr(*host));
        self.watch.lost.set(lost);
        let is_new = self.watch.is_new.take();
        if self.watch.sought.get().is_none() {
            self.missing_at = Instant::NEVER;
        } else if is_new {
            self.missing_at = now.after(ANSWER_TIMEOUT);
        }
        if self.watch.asked.take() || lost.is_some() {
            self.want_round(now);
        }
    }

    /// A host has to be found that smoltcp may not ask for.
    pub(crate) fn want_round(&mut self, now: Instant) {
        // Mostly it is found before.
        let soon = now.after(BEFORE_ROUND);
        let next = self.asked_at.after(BETWEEN_ROUNDS).max(soon);
        self.asks_at = self.asks_at.min(next);
    }

    /// The host that has not answered in time, once: it is not looked for any more.
    pub(crate) fn missing(&mut self, now: Instant) -> Option<IpAddress> {
        if now < self.missing_at {
            return None;
        }
        self.missing_at = Instant::NEVER;
        self.watch.sought.take()
    }

    /// Begins a round of questions, if it is time.
    pub(crate) fn begin_round(&mut self, now: Instant) -> bool {
        let due = now >= self.asks_at;
        if due {
            self.asks_at = Instant::NEVER;
            self.asked_at = now;
        }
        due
    }

    /// A round could not be ended: it goes on as soon as the device may have room.
    pub(crate) fn interrupt_round(&mut self, now: Instant) {
        self.asks_at = now.after(BETWEEN_TRIES);
    }

    /// The host to which a frame was lost.
    pub(crate) fn lost(&self) -> Option<IpAddress> {
        self.watch.lost.get()
    }

    /// It has been asked for.
    pub(crate) fn lost_is_asked(&self) {
        self.watch.lost.set(None);
    }
}

/// The host to which a packet for `to` is handed: itself or a router.
pub(crate) fn next_hop(
    interface: &mut Interface,
    to: IpAddress,
    now: smoltcp::time::Instant,
) -> Option<IpAddress> {
    let mut own = interface.ip_addrs().iter();
    if own.any(|own| own.contains_addr(&to)) {
        return Some(to);
    }
    let mut router = None;
    interface.routes_mut().update(|routes| {
        let valid = routes.iter().filter(|route| {
            route.cidr.contains_addr(&to) && route.expires_at.is_none_or(|until| now <= until)
        });
        let best = valid.max_by_key(|route| route.cidr.prefix_len());
        router = best.map(|route| route.via_router);
    });
    router
}

/// Asks where `host` is. Returns whether the device had room for the question.
pub(crate) fn ask(
    interface: &Interface,
    device: &mut impl Device,
    host: IpAddress,
    now: smoltcp::time::Instant,
) -> bool {
    let HardwareAddress::Ethernet(own) = interface.hardware_addr() else {
        return true;
    };
    let mut frame = [0; LONGEST];
    let len = match host {
        #[cfg(feature = "ipv4")]
        IpAddress::Ipv4(host) => {
            let Some(from) = interface.get_source_address_ipv4(&host) else {
                return true;
            };
            v4::emit(
                &mut frame,
                own,
                smoltcp::wire::EthernetAddress::BROADCAST,
                (from, host),
                true,
            )
        }
        #[cfg(feature = "ipv6")]
        IpAddress::Ipv6(host) => {
            let from = interface.get_source_address_ipv6(&host);
            v6::question(&mut frame, own, from, host)
        }
    };
    let Some(token) = device.transmit(now) else {
        return false;
    };
    token.consume(len, |room| room.copy_from_slice(&frame[..len]));
    true
}

/// The frame that tells smoltcp that `host` has our own hardware address, and its length.
pub(crate) fn missing(interface: &Interface, host: IpAddress) -> ([u8; LONGEST], usize) {
    let mut frame = [0; LONGEST];
    let HardwareAddress::Ethernet(own) = interface.hardware_addr() else {
        return (frame, 0);
    };
    let len = match host {
        #[cfg(feature = "ipv4")]
        IpAddress::Ipv4(host) => interface
            .get_source_address_ipv4(&host)
            .map_or(0, |to| v4::emit(&mut frame, own, own, (host, to), false)),
        #[cfg(feature = "ipv6")]
        IpAddress::Ipv6(host) => {
            let to = interface.get_source_address_ipv6(&host);
            v6::answer(&mut frame, own, host, to)
        }
    };
    (frame, len)
}

const ETHERNET_HEADER: usize = 14;

/// The host that is asked for in a frame.
fn question(ethernet: &[u8; ETHERNET_HEADER], packet: &[u8]) -> Option<IpAddress> {
    match ethernet[12..] {
        #[cfg(feature = "ipv4")]
        [0x08, 0x06] if *packet.get(7)? == 1 => v4::address(packet, 24),
        #[cfg(feature = "ipv6")]
        [0x86, 0xdd] if v6::is_neighbour_discovery(packet, 135) => v6::address(packet, 48),
        _ => None,
    }
}

/// The host that says in a frame where it is.
fn answer(ethernet: &[u8; ETHERNET_HEADER], packet: &[u8]) -> Option<IpAddress> {
    match ethernet[12..] {
        #[cfg(feature = "ipv4")]
        [0x08, 0x06] => v4::address(packet, 14),
        #[cfg(feature = "ipv6")]
        [0x86, 0xdd]
            if v6::is_neighbour_discovery(packet, 135)
                || v6::is_neighbour_discovery(packet, 136) =>
        {
            v6::address(packet, 8)
        }
        _ => None,
    }
}

/// A solicited neighbour advertisement as one that replaces what is known, if it does not say so
/// itself. smoltcp would keep what stands for a missing host, and its own devices answer so.
#[cfg(feature = "ipv6")]
pub(crate) fn overriding(medium: Medium, frame: &[u8]) -> Option<[u8; LONGEST]> {
    v6::overriding(frame).filter(|_| medium == Medium::Ethernet)
}

/// Where a packet is to go.
fn destination(ethernet: &[u8; ETHERNET_HEADER], packet: &[u8]) -> Option<IpAddress> {
    match ethernet[12..] {
        #[cfg(feature = "ipv4")]
        [0x08, 0x00] => v4::address(packet, 16),
        #[cfg(feature = "ipv6")]
        [0x86, 0xdd] => v6::address(packet, 24),
        _ => None,
    }
}

#[cfg(feature = "ipv4")]
mod v4 {
    use super::ETHERNET_HEADER;
    use smoltcp::wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
        EthernetRepr, IpAddress, Ipv4Address,
    };

    pub(super) fn address(packet: &[u8], at: usize) -> Option<IpAddress> {
        let (octets, _) = packet.get(at..)?.split_first_chunk::<4>()?;
        Some(IpAddress::Ipv4(Ipv4Address::from(*octets)))
    }

    /// A question or an answer of ARP. Returns its length.
    pub(super) fn emit(
        frame: &mut [u8],
        own: EthernetAddress,
        to: EthernetAddress,
        (source, target): (Ipv4Address, Ipv4Address),
        wants_poll: bool,
    ) -> usize {
        let repr = EthernetRepr {
            src_addr: own,
            dst_addr: to,
            ethertype: EthernetProtocol::Arp,
        };
        repr.emit(&mut EthernetFrame::new_unchecked(&mut *frame));
        let arp = ArpRepr::EthernetIpv4 {
            operation: if wants_poll {
                ArpOperation::Request
            } else {
                ArpOperation::Reply
            },
            source_hardware_addr: own,
            source_protocol_addr: source,
            target_hardware_addr: to,
            target_protocol_addr: target,
        };
        arp.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER..]));
        ETHERNET_HEADER + arp.buffer_len()
    }
}

#[cfg(feature = "ipv6")]
mod v6 {
    use super::{ETHERNET_HEADER, LONGEST};
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Packet, Icmpv6Repr,
        IpAddress, IpProtocol, Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
    };

    const HEADER: usize = 40;

    pub(super) fn address(packet: &[u8], at: usize) -> Option<IpAddress> {
        let (octets, _) = packet.get(at..)?.split_first_chunk::<16>()?;
        Some(IpAddress::Ipv6(Ipv6Address::from(*octets)))
    }

    /// Whether a packet is a message of neighbour discovery of this type.
    pub(super) fn is_neighbour_discovery(packet: &[u8], kind: u8) -> bool {
        packet.get(6) == Some(&58) && packet.get(HEADER) == Some(&kind)
    }

    /// See [`super::overriding`].
    pub(super) fn overriding(frame: &[u8]) -> Option<[u8; LONGEST]> {
        const FLAGS: usize = ETHERNET_HEADER + HEADER + 4;
        const CHECKSUM: usize = ETHERNET_HEADER + HEADER + 2;
        const SOLICITED: u8 = 0x40;
        const OVERRIDE: u8 = 0x20;
        let packet = frame.get(ETHERNET_HEADER..)?;
        let is_ip = frame[12..ETHERNET_HEADER] == [0x86, 0xdd];
        if !is_ip || !is_neighbour_discovery(packet, 136) || frame.len() > LONGEST {
            return None;
        }
        let flags = *frame.get(FLAGS)?;
        if flags & (SOLICITED | OVERRIDE) != SOLICITED {
            return None;
        }
        let mut copy = [0; LONGEST];
        copy[..frame.len()].copy_from_slice(frame);
        copy[FLAGS] |= OVERRIDE;
        // The sum of the message has grown by that flag, its complement is smaller (RFC 1624).
        let checksum = u16::from_be_bytes([copy[CHECKSUM], copy[CHECKSUM + 1]]);
        let grown = u32::from(!checksum) + (u32::from(OVERRIDE) << 8);
        let folded = (grown & 0xffff) + (grown >> 16);
        copy[CHECKSUM..][..2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        Some(copy)
    }

    /// A neighbour solicitation. Returns its length.
    pub(super) fn question(
        frame: &mut [u8],
        own: EthernetAddress,
        from: Ipv6Address,
        host: Ipv6Address,
    ) -> usize {
        let message = NdiscRepr::NeighborSolicit {
            target_addr: host,
            lladdr: Some(own.into()),
        };
        // The multicast group of those whose addresses end like this one.
        let [.., a, b, c] = host.octets();
        let group = Ipv6Address::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        let to = EthernetAddress([0x33, 0x33, 0xff, a, b, c]);
        emit(frame, (own, to), (from, group), message)
    }

    /// A neighbour advertisement, which replaces what was known. Returns its length.
    pub(super) fn answer(
        frame: &mut [u8],
        own: EthernetAddress,
        host: Ipv6Address,
        to: Ipv6Address,
    ) -> usize {
        let message = NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
            target_addr: host,
            lladdr: Some(own.into()),
        };
        emit(frame, (own, own), (host, to), message)
    }

    fn emit(
        frame: &mut [u8],
        (own, to): (EthernetAddress, EthernetAddress),
        (source, target): (Ipv6Address, Ipv6Address),
        message: NdiscRepr<'_>,
    ) -> usize {
        let repr = EthernetRepr {
            src_addr: own,
            dst_addr: to,
            ethertype: EthernetProtocol::Ipv6,
        };
        repr.emit(&mut EthernetFrame::new_unchecked(&mut *frame));
        let message = Icmpv6Repr::Ndisc(message);
        let header = Ipv6Repr {
            src_addr: source,
            dst_addr: target,
            next_header: IpProtocol::Icmpv6,
            payload_len: message.buffer_len(),
            hop_limit: 255,
        };
        let packet = &mut frame[ETHERNET_HEADER..];
        header.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
        let payload = &mut packet[HEADER..][..message.buffer_len()];
        message.emit(
            &source,
            &target,
            &mut Icmpv6Packet::new_unchecked(payload),
            &ChecksumCapabilities::default(),
        );
        ETHERNET_HEADER + HEADER + message.buffer_len()
    }
}

#[cfg(all(test, feature = "ipv6"))]
mod tests {
    use super::*;
    use smoltcp::wire::{EthernetAddress, Icmpv6Packet, Ipv6Address, Ipv6Packet};

    #[test]
    fn an_answer_that_is_made_to_override_keeps_a_valid_checksum() {
        let hardware = EthernetAddress([2, 0, 0, 0, 0, 1]);
        let to = Ipv6Address::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
        for last in 0..=u16::MAX {
            let from = Ipv6Address::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
            let mut frame = [0; LONGEST];
            let len = v6::answer(&mut frame, hardware, from, to);
            assert_eq!(v6::overriding(&frame[..len]), None, "it overrides already");
            // As it would be without the flag, checksum included.
            let message = &mut frame[ETHERNET_HEADER + 40..len];
            message[4] &= !0x20;
            let mut packet = Icmpv6Packet::new_unchecked(&mut *message);
            packet.fill_checksum(&from, &to);
            let overriding = v6::overriding(&frame[..len]).unwrap();
            let packet = Ipv6Packet::new_checked(&overriding[ETHERNET_HEADER..len]).unwrap();
            let packet = Icmpv6Packet::new_checked(packet.payload()).unwrap();
            assert!(packet.verify_checksum(&from, &to), "{from}");
        }
    }
}
