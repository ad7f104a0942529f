//! A virtual host: its addresses, its ports, its descriptors.

use super::StreamBuffers;
use super::nat::NatId;
use super::ports::{EPHEMERAL, Ports};
use crate::conditions::Faults;
use crate::costs::Costs;
use crate::error::Refusal;
use cubenet_core::{Instant, Transport};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostId(pub(crate) u32);

pub(crate) struct Host {
    /// Its addresses, the one that it connects from first.
    addresses: Vec<IpAddr>,
    /// Whether a network runs on it. Packets to an address without one are lost.
    pub(crate) alive: bool,
    /// The router that it is behind.
    pub(crate) nat: Option<NatId>,
    /// Until when nothing on it runs.
    pub(crate) frozen_until: Instant,
    pub(crate) faults: Faults,
    /// What work costs, if it does.
    pub(crate) costs: Option<Costs>,
    pub(crate) stream_buffers: StreamBuffers,
    /// Bytes of the receive buffer of each datagram socket, overhead included.
    pub(crate) datagram_buffer: usize,
    /// Ports for sockets that do not ask for one.
    pub(crate) ephemeral: RangeInclusive<u16>,
    /// Sockets there may be.
    pub(crate) max_descriptors: usize,
    pub(crate) descriptors: usize,
    tcp: Ports,
    udp: Ports,
}

impl Host {
    pub(crate) fn new(address: IpAddr) -> Self {
        Host {
            addresses: vec![address],
            alive: false,
            nat: None,
            frozen_until: Instant::ZERO,
            faults: Faults::default(),
            costs: None,
            stream_buffers: StreamBuffers::ADAPTIVE,
            datagram_buffer: 8 << 20,
            ephemeral: EPHEMERAL,
            max_descriptors: usize::MAX,
            descriptors: 0,
            tcp: Ports::default(),
            udp: Ports::default(),
        }
    }

    /// Forgets everything that ran on it.
    pub(crate) fn clear(&mut self) {
        self.descriptors = 0;
        self.tcp.clear();
        self.udp.clear();
        self.frozen_until = Instant::ZERO;
    }

    /// Its first address.
    pub(crate) fn address(&self) -> IpAddr {
        self.addresses[0]
    }

    pub(crate) fn add_address(&mut self, address: IpAddr) {
        if !self.has_address(address) {
            self.addresses.push(address);
        }
    }

    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The number of one of its addresses.
    pub(crate) fn number_of(&self, address: IpAddr) -> u16 {
        let number = self.addresses.iter().position(|own| *own == address);
        number.map_or(0, |number| number as u16)
    }

    /// The address of this number.
    pub(crate) fn numbered(&self, number: u16) -> IpAddr {
        self.addresses[usize::from(number)]
    }

    /// The address from which it connects to `to`: the first of the same kind.
    pub(crate) fn address_towards(&self, to: IpAddr) -> IpAddr {
        let mut same = self.addresses.iter();
        let same = same.find(|address| address.is_ipv4() == to.is_ipv4());
        *same.unwrap_or(&self.addresses[0])
    }

    fn ports(&mut self, transport: Transport) -> &mut Ports {
        match transport {
            Transport::Tcp => &mut self.tcp,
            _ => &mut self.udp,
        }
    }

    /// Takes `port` of `address`, of all if that is unspecified; any port for 0. Returns where that
    /// is, as a socket shows it.
    pub(crate) fn take_bound(
        &mut self,
        transport: Transport,
        address: SocketAddr,
    ) -> Result<SocketAddr, Refusal> {
        let (ip, ephemeral) = (specified(address.ip()), self.ephemeral.clone());
        if ip.is_some_and(|ip| !self.has_address(ip)) {
            return Err(Refusal::NotOurs);
        }
        self.take_descriptor()?;
        let bound = self.ports(transport).bind((address.port(), ip), &ephemeral);
        match bound {
            Ok(port) => Ok(SocketAddr::new(ip.unwrap_or(self.address()), port)),
            Err(refusal) => {
                self.release_descriptor();
                Err(refusal)
            }
        }
    }

    /// Sets the socket that is bound there.
    pub(crate) fn set_bound(
        &mut self,
        transport: Transport,
        port: u16,
        address: Option<IpAddr>,
        socket: u32,
    ) {
        self.ports(transport).set_bound(port, address, socket);
    }

    pub(crate) fn release_bound(
        &mut self,
        transport: Transport,
        port: u16,
        address: Option<IpAddr>,
    ) {
        self.ports(transport).unbind(port, address);
        self.release_descriptor();
    }

    /// Takes a port to connect to `to` from.
    pub(crate) fn take_ephemeral(&mut self, to: SocketAddr, now: Instant) -> Result<u16, Refusal> {
        self.take_descriptor()?;
        let taken = self.tcp.take(to, &self.ephemeral, now);
        if taken.is_err() {
            self.release_descriptor();
        }
        taken
    }

    /// Gives it back; `waits` if it is to stay taken for a while.
    pub(crate) fn release_ephemeral(
        &mut self,
        to: SocketAddr,
        port: u16,
        waits: bool,
        now: Instant,
    ) {
        self.tcp.release(to, port, waits, now);
        self.release_descriptor();
    }

    fn take_descriptor(&mut self) -> Result<(), Refusal> {
        if self.descriptors >= self.max_descriptors {
            return Err(Refusal::NoDescriptor);
        }
        self.descriptors += 1;
        Ok(())
    }

    pub(crate) fn release_descriptor(&mut self) {
        self.descriptors = self.descriptors.saturating_sub(1);
    }

    /// The socket that is bound there.
    pub(crate) fn bound(&self, transport: Transport, at: SocketAddr) -> Option<u32> {
        let ports = match transport {
            Transport::Tcp => &self.tcp,
            _ => &self.udp,
        };
        ports.bound(at.port(), at.ip())
    }
}

/// `None` for the address that means all of a host's.
pub(super) fn specified(address: IpAddr) -> Option<IpAddr> {
    Some(address).filter(|address| !address.is_unspecified())
}
