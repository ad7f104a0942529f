//! A virtual host: its address, its ports, its descriptors.

use crate::conditions::Faults;
use crate::error::Refusal;
use cubenet_core::{Instant, Transport};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostId(pub(crate) u32);

/// The first port that is given to whoever does not ask for one.
const FIRST_EPHEMERAL: u16 = 10_000;

pub(crate) struct Host {
    pub(crate) address: IpAddr,
    /// Whether somebody is there. To an address where nobody is, packets are lost.
    pub(crate) alive: bool,
    /// Until when nothing on it runs.
    pub(crate) frozen_until: Instant,
    pub(crate) faults: Faults,
    /// Bytes of the send and of the receive buffer of each stream.
    pub(crate) stream_buffer: usize,
    /// Bytes of the receive buffer of each datagram socket.
    pub(crate) datagram_buffer: usize,
    /// Sockets there may be.
    pub(crate) max_descriptors: usize,
    pub(crate) descriptors: usize,
    tcp: Ports,
    udp: Ports,
}

/// The ports of one transport.
#[derive(Default)]
struct Ports {
    /// Who listens, by port.
    bound: BTreeMap<u16, u32>,
    /// The ports in use, one bit each; allocated with the first.
    used: Vec<u64>,
    next: u16,
}

impl Host {
    pub(crate) fn new(address: IpAddr) -> Self {
        Host {
            address,
            alive: false,
            frozen_until: Instant::ZERO,
            faults: Faults::default(),
            stream_buffer: 64 * 1024,
            datagram_buffer: 4 << 20,
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

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    fn ports(&mut self, transport: Transport) -> &mut Ports {
        match transport {
            Transport::Tcp => &mut self.tcp,
            Transport::Udp => &mut self.udp,
        }
    }

    /// Takes `port`, or any for 0.
    pub(crate) fn take_port(&mut self, transport: Transport, port: u16) -> Result<u16, Refusal> {
        if self.descriptors >= self.max_descriptors {
            return Err(Refusal::NoDescriptor);
        }
        self.descriptors += 1;
        let taken = self.ports(transport).take(port);
        if taken.is_err() {
            self.descriptors -= 1;
        }
        taken
    }

    pub(crate) fn release_port(&mut self, transport: Transport, port: u16) {
        let ports = self.ports(transport);
        ports.set(port, false);
        ports.bound.remove(&port);
        self.release_descriptor();
    }

    pub(crate) fn release_descriptor(&mut self) {
        self.descriptors = self.descriptors.saturating_sub(1);
    }

    pub(crate) fn bind(&mut self, transport: Transport, port: u16, socket: u32) {
        self.ports(transport).bound.insert(port, socket);
    }

    /// Who listens at `port`.
    pub(crate) fn bound(&self, transport: Transport, port: u16) -> Option<u32> {
        let ports = match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        };
        ports.bound.get(&port).copied()
    }
}

impl Ports {
    /// Nobody has one any more. The next to be given out is another than those before, so
    /// that what is under way to them finds nobody.
    fn clear(&mut self) {
        *self = Ports {
            next: self.next,
            ..Ports::default()
        };
    }

    fn is_used(&self, port: u16) -> bool {
        let word = self.used.get(usize::from(port / 64));
        word.is_some_and(|word| word >> (port % 64) & 1 == 1)
    }

    fn set(&mut self, port: u16, used: bool) {
        if self.used.is_empty() {
            self.used = vec![0; 1_024];
        }
        let (word, bit) = (&mut self.used[usize::from(port / 64)], 1 << (port % 64));
        if used {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    fn take(&mut self, port: u16) -> Result<u16, Refusal> {
        if port != 0 {
            if self.is_used(port) {
                return Err(Refusal::InUse);
            }
            self.set(port, true);
            return Ok(port);
        }
        for _ in 0..=u16::MAX {
            let port = self.next.max(FIRST_EPHEMERAL);
            self.next = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            if !self.is_used(port) {
                self.set(port, true);
                return Ok(port);
            }
        }
        Err(Refusal::NoPort)
    }
}
