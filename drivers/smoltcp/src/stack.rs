//! The seam to smoltcp: its interface, device and sockets, and its way to write a time and an
//! address. The rest of the driver calls smoltcp only on the sockets that it is handed here.

use crate::gate::Gate;
use core::net::{IpAddr, SocketAddr};
use cubenet_core::{Instant, Transport};
use smoltcp::iface::{Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, Medium};
use smoltcp::socket::{Socket, tcp};
use smoltcp::wire::{IpAddress, IpEndpoint, IpListenEndpoint};

/// The first of the ports from which calls are made.
const FIRST_EPHEMERAL: u16 = 49_152;

/// A smoltcp interface with its device and its sockets. An application that has sockets of its
/// own (for DHCP, say) adds them here.
pub struct Stack<'a, D> {
    /// The interface.
    pub interface: Interface,
    /// The device.
    pub device: D,
    /// The sockets: those of the network and the application's.
    pub sockets: SocketSet<'a>,
    medium: Medium,
    /// Places for sockets.
    capacity: usize,
    /// The port of the next call, if nobody has it.
    pub(crate) next_port: u16,
}

impl<'a, D: Device> Stack<'a, D> {
    pub(crate) fn new(
        interface: Interface,
        device: D,
        sockets: SocketSet<'a>,
        capacity: usize,
        seed: u64,
    ) -> Self {
        Stack {
            medium: device.capabilities().medium,
            interface,
            device,
            sockets,
            capacity,
            next_port: FIRST_EPHEMERAL | seed as u16,
        }
    }

    /// Takes one frame from the device, if there is one. Who calls a port that is to be `deaf`
    /// is not heard; `None` is none.
    pub(crate) fn ingress(&mut self, now: Instant, deaf: Option<&dyn Fn(u16) -> bool>) -> bool {
        let Stack {
            interface,
            device,
            sockets,
            medium,
            ..
        } = self;
        let medium = *medium;
        let device = &mut Gate {
            device,
            medium,
            deaf,
        };
        let taken = interface.poll_ingress_single(moment(now), device, sockets);
        taken != PollIngressSingleResult::None
    }

    /// Sends what the sockets have to send, a frame of each at a time, in at most `rounds`
    /// rounds. Returns when there is more to send: `now`, if the device takes no more.
    pub(crate) fn egress(&mut self, now: Instant, rounds: usize) -> Instant {
        let Stack {
            interface,
            device,
            sockets,
            ..
        } = self;
        interface.poll_maintenance(moment(now));
        let mut at = now;
        for _ in 0..rounds {
            let sent = interface.poll_egress(moment(now), device, sockets);
            at = next(interface, sockets, now);
            if at > now || sent == PollResult::None {
                break;
            }
        }
        at
    }

    /// When the stack has to be polled next.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Instant {
        next(&mut self.interface, &self.sockets, now)
    }

    /// Calls `peer` from a port of our own. Returns our address.
    pub(crate) fn connect(
        &mut self,
        handle: SocketHandle,
        peer: IpEndpoint,
    ) -> Result<IpEndpoint, &'static str> {
        let port = self.free_port(Transport::Tcp)?;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket
            .connect(self.interface.context(), peer, port)
            .map_err(|_| "it cannot be called from the addresses of this device")?;
        socket.local_endpoint().ok_or("it has no route")
    }

    /// The address from which `peer` would be reached.
    pub(crate) fn source(&self, peer: IpAddress) -> Option<IpAddress> {
        self.interface.get_source_address(&peer)
    }

    /// Whether a socket, of whomever, has this address now.
    pub(crate) fn is_taken(&self, transport: Transport, address: IpListenEndpoint) -> bool {
        self.sockets
            .iter()
            .any(|(_, socket)| match (transport, socket) {
                (Transport::Tcp, Socket::Tcp(socket)) => {
                    socket.is_listening() && overlap(socket.listen_endpoint(), address)
                }
                (Transport::Udp, Socket::Udp(socket)) => overlap(socket.endpoint(), address),
                _ => false,
            })
    }

    /// A port that no socket of this transport has.
    pub(crate) fn free_port(&mut self, transport: Transport) -> Result<u16, &'static str> {
        for _ in FIRST_EPHEMERAL..=u16::MAX {
            let port = self.next_port;
            self.next_port = port.wrapping_add(1) | FIRST_EPHEMERAL;
            let taken = self
                .sockets
                .iter()
                .any(|(_, socket)| match (transport, socket) {
                    (Transport::Tcp, Socket::Tcp(socket)) => {
                        let local = socket.local_endpoint().map(|local| local.port);
                        local == Some(port) || socket.listen_endpoint().port == port
                    }
                    (Transport::Udp, Socket::Udp(socket)) => socket.endpoint().port == port,
                    _ => false,
                });
            if !taken {
                return Ok(port);
            }
        }
        Err("every port is in use")
    }

    /// Whether there is a place for a socket more.
    pub(crate) fn has_room(&self) -> bool {
        self.sockets.iter().count() < self.capacity
    }
}

/// When an interface has to be polled next.
fn next(interface: &mut Interface, sockets: &SocketSet<'_>, now: Instant) -> Instant {
    let at = interface.poll_at(moment(now), sockets);
    // It says "at once" with the origin of time.
    at.map_or(Instant::NEVER, |at| {
        Instant::from_micros(at.total_micros().cast_unsigned()).max(now)
    })
}

/// The longest datagram that the device can carry to a peer of either kind.
pub(crate) fn max_datagram(device: &impl Device) -> usize {
    let headers = if cfg!(feature = "ipv6") { 40 } else { 20 } + 8;
    device.capabilities().ip_mtu().saturating_sub(headers)
}

/// Whether something can be meant for both.
pub(crate) fn overlap(one: IpListenEndpoint, other: IpListenEndpoint) -> bool {
    let same_address = one.addr.is_none() || other.addr.is_none() || one.addr == other.addr;
    one.port == other.port && same_address
}

/// A moment, in smoltcp's way.
fn moment(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.as_micros().cast_signed())
}

/// An address to listen on, in smoltcp's way: one that is all zeros is every one.
pub(crate) fn listen_endpoint(address: SocketAddr) -> Result<IpListenEndpoint, &'static str> {
    let addr = match address.ip() {
        ip if ip.is_unspecified() => None,
        ip => Some(ip_address(ip)?),
    };
    let port = address.port();
    Ok(IpListenEndpoint { addr, port })
}

/// The address of a peer, in smoltcp's way.
pub(crate) fn endpoint(address: SocketAddr) -> Result<IpEndpoint, &'static str> {
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err("nobody has such an address");
    }
    Ok(IpEndpoint::new(ip_address(address.ip())?, address.port()))
}

// With both families there is no address that it does not know.
#[allow(clippy::unnecessary_wraps)]
fn ip_address(ip: IpAddr) -> Result<IpAddress, &'static str> {
    match ip {
        #[cfg(feature = "ipv4")]
        IpAddr::V4(ip) => Ok(IpAddress::Ipv4(ip)),
        #[cfg(feature = "ipv6")]
        IpAddr::V6(ip) => Ok(IpAddress::Ipv6(ip)),
        #[cfg(not(feature = "ipv4"))]
        IpAddr::V4(_) => Err("the feature `ipv4` is off"),
        #[cfg(not(feature = "ipv6"))]
        IpAddr::V6(_) => Err("the feature `ipv6` is off"),
    }
}

/// An address, in everybody's way.
pub(crate) fn address(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port)
}
