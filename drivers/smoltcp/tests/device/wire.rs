//! The link of a device: what it sends to itself comes back, and some hosts answer when they are
//! asked where they are.

use crate::world::Family;
use cubenet_smoltcp::smoltcp::phy::{
    ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use cubenet_smoltcp::smoltcp::time::Instant;
use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;

/// The device's address on the wire.
pub(crate) const OWN_HARDWARE: [u8; 6] = hardware(0);

/// The address on the wire of the host of this number.
const fn hardware(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// The link, with the device's end.
pub(crate) struct Wire {
    family: Family,
    /// Frames that the device has not taken yet.
    pub(crate) incoming: VecDeque<Vec<u8>>,
    /// How many frames the device can send until it is given more room; `None` if any number.
    pub(crate) room: Option<usize>,
    /// Hosts that answer when they are asked where they are.
    pub(crate) living: HashSet<u8>,
    /// Which hosts were asked where they are, in order.
    pub(crate) asked: Vec<u8>,
    /// What hosts received: their numbers, and the packets.
    pub(crate) delivered: Vec<(u8, Vec<u8>)>,
}

impl Wire {
    pub(crate) fn new(family: Family) -> Self {
        Wire {
            family,
            incoming: VecDeque::new(),
            room: None,
            living: HashSet::new(),
            asked: Vec::new(),
            delivered: Vec::new(),
        }
    }

    /// How many datagrams this host has received.
    pub(crate) fn datagrams(&self, number: u8) -> usize {
        self.segments(number, 17).count()
    }

    /// What this host has received of this protocol, without the headers before it.
    pub(crate) fn segments(&self, number: u8, protocol: u8) -> impl Iterator<Item = &[u8]> {
        let (at, header) = match self.family.host(0) {
            IpAddr::V4(_) => (9, 20),
            IpAddr::V6(_) => (6, 40),
        };
        let of_host = self.delivered.iter().filter(move |(to, _)| *to == number);
        let packets = of_host.map(|(_, packet)| &packet[..]);
        let of_protocol = packets.filter(move |packet| packet[at] == protocol);
        of_protocol.map(move |packet| &packet[header..])
    }

    /// A packet of `protocol` arrives from a host.
    pub(crate) fn receive(&mut self, number: u8, protocol: u8, segment: &[u8]) {
        self.receive_from(self.family.host(number), number, protocol, segment);
    }

    /// A packet of `protocol` arrives by way of a host.
    pub(crate) fn receive_from(&mut self, from: IpAddr, number: u8, protocol: u8, segment: &[u8]) {
        let mut frame = [OWN_HARDWARE, hardware(number)].concat();
        let len = segment.len() as u16;
        match (from, self.family.own()[0]) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((20 + len).to_be_bytes());
                frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(len.to_be_bytes());
                frame.extend([protocol, if protocol == 58 { 255 } else { 64 }]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            _ => unreachable!("addresses of one family"),
        }
        frame.extend(segment);
        self.incoming.push_back(frame);
    }

    /// The device sends a frame.
    fn carry(&mut self, frame: Vec<u8>) {
        let ethertype = [frame[12], frame[13]];
        let packet = &frame[14..];
        match ethertype {
            // A request of ARP, or a solicitation of NDP.
            [0x08, 0x06] if packet[7] == 1 => return self.ask(packet[27], frame),
            [0x86, 0xdd] if packet[6] == 58 && packet[40] == 135 => {
                return self.ask(packet[63], frame);
            }
            _ => {}
        }
        let to = &frame[..6];
        if to == OWN_HARDWARE || to[0] & 1 != 0 {
            return self.incoming.push_back(frame);
        }
        self.delivered.push((to[5], packet.to_vec()));
    }

    /// The device asks where a host is.
    fn ask(&mut self, number: u8, frame: Vec<u8>) {
        self.asked.push(number);
        if !self.living.contains(&number) {
            // It may be the device itself.
            return self.incoming.push_back(frame);
        }
        match (self.family.host(number), self.family.own()[0]) {
            (IpAddr::V4(host), IpAddr::V4(own)) => {
                let mut answer = [OWN_HARDWARE, hardware(number)].concat();
                answer.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 2]);
                answer.extend(hardware(number));
                answer.extend(host.octets());
                answer.extend(OWN_HARDWARE);
                answer.extend(own.octets());
                self.incoming.push_back(answer);
            }
            (IpAddr::V6(host), _) => {
                // Solicited, and without the flag to override.
                let mut advertisement = vec![136, 0, 0, 0, 0x40, 0, 0, 0];
                advertisement.extend(host.octets());
                advertisement.extend([2, 1]);
                advertisement.extend(hardware(number));
                self.receive(number, 58, &advertisement);
            }
            _ => unreachable!("addresses of one family"),
        }
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1_514;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }

    fn receive(&mut self, _now: Instant) -> Option<(Frame, Room<'_>)> {
        if self.room == Some(0) {
            return None;
        }
        let frame = self.incoming.pop_front()?;
        Some((Frame(frame), Room(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_>> {
        (self.room != Some(0)).then_some(Room(self))
    }
}

/// A frame that arrived.
pub(crate) struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Room to send a frame.
pub(crate) struct Room<'a>(&'a mut Wire);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        if let Some(room) = &mut self.0.room {
            *room -= 1;
        }
        self.0.carry(frame);
        result
    }
}
