//! The seam to smoltcp: its interface, device and sockets, and its way to write a time and an
//! address. The rest of the driver calls smoltcp only on the sockets that it is handed here.

mod filter;
pub(crate) mod neighbours;

use crate::network::shared::Shared;
use core::net::{IpAddr, SocketAddr};
use cubenet_core::{Instant, Transport};
use filter::{FilteredDevice, SynFilter};
use neighbours::Neighbours;
use smoltcp::iface::{Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, Medium};
use smoltcp::socket::{Socket, tcp};
use smoltcp::wire::{IpAddress, IpEndpoint, IpListenEndpoint};

/// The first of the ports from which this side connects.
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
    neighbours: Neighbours,
    /// Places for sockets.
    capacity: usize,
    /// The port of the next connect, if it is free.
    pub(crate) next_port: u16,
}

impl<'a, D: Device> Stack<'a, D> {
    pub(crate) fn new(
        interface: Interface,
        device: D,
        sockets: SocketSet<'a>,
        capacity: usize,
        key: (u64, u64),
    ) -> Self {
        Stack {
            medium: device.capabilities().medium,
            neighbours: Neighbours::new(),
            interface,
            device,
            sockets,
            capacity,
            next_port: first_port(key),
        }
    }

    /// Takes one frame from the device, if there is one. SYNs to the ports of `syn_filter` are
    /// dropped.
    pub(crate) fn ingress(&mut self, now: Instant, syn_filter: SynFilter<'_>) -> bool {
        self.ingress_of(now, syn_filter, None)
    }

    /// The same, or takes the frame that is `injected`.
    fn ingress_of(
        &mut self,
        now: Instant,
        syn_filter: SynFilter<'_>,
        injected: Option<&[u8]>,
    ) -> bool {
        let device = &mut FilteredDevice {
            device: &mut self.device,
            medium: self.medium,
            syn_filter,
            watch: &self.neighbours.watch,
            injected,
        };
        let interface = &mut self.interface;
        let taken = interface.poll_ingress_single(moment(now), device, &mut self.sockets);
        taken != PollIngressSingleResult::None
    }

    /// Sends what the sockets have to send, a frame of each at a time, in at most `rounds`
    /// rounds. Returns when there is more to send: `now`, if the device takes no more.
    pub(crate) fn egress(&mut self, now: Instant, rounds: usize) -> Instant {
        let Stack {
            interface,
            device,
            sockets,
            medium,
            neighbours,
            ..
        } = self;
        let device = &mut FilteredDevice {
            device,
            medium: *medium,
            syn_filter: None,
            watch: &neighbours.watch,
            injected: None,
        };
        interface.poll_maintenance(moment(now));
        let mut at = now;
        for _ in 0..rounds {
            let sent = interface.poll_egress(moment(now), device, sockets);
            at = next(interface, sockets, now);
            if at > now || sent == PollResult::None {
                break;
            }
        }
        neighbours.look(interface, now);
        at
    }

    /// Lets two sockets of the network change places. They have each other's handles from here on.
    pub(crate) fn swap(&mut self, first: SocketHandle, second: SocketHandle) {
        let mut sockets = self.sockets.iter_mut();
        let mut ours = sockets
            .by_ref()
            .filter(|(handle, _)| *handle == first || *handle == second);
        if let (Some((_, one)), Some((_, other))) = (ours.next(), ours.next()) {
            core::mem::swap(one, other);
        }
    }

    pub(crate) fn is_ethernet(&self) -> bool {
        self.medium == Medium::Ethernet
    }

    /// Whether the device has room for a frame.
    pub(crate) fn can_send(&mut self, now: Instant) -> bool {
        self.device.transmit(moment(now)).is_some()
    }

    /// Whether the device had no room for a frame since this was last asked.
    pub(crate) fn was_exhausted(&self) -> bool {
        self.neighbours.watch.exhausted.take()
    }

    /// When a host has to be asked for, or has not answered for too long.
    pub(crate) fn neighbours_timeout(&self) -> Instant {
        self.neighbours.poll_timeout()
    }

    /// A connect has begun: if it is not answered at once, its host has to be found.
    pub(crate) fn connect_begins(&mut self, now: Instant) {
        if self.medium == Medium::Ethernet {
            self.neighbours.want_round(now);
        }
    }

    /// Takes a host for missing that has not answered in time, if there is one. Returns whether
    /// frames for it can leave now.
    pub(crate) fn give_up_missing(&mut self, now: Instant) -> bool {
        let Some(host) = self.neighbours.missing(now) else {
            return false;
        };
        let (frame, len) = neighbours::missing(&self.interface, host);
        // Without an address of its own the device cannot be answered, and sends nothing either.
        let injected = len > 0 && self.ingress_of(now, None, Some(&frame[..len]));
        self.neighbours.look(&self.interface, now);
        injected
    }

    /// Begins a round of questions, if it is time, with the host to which a frame was lost.
    pub(crate) fn begin_round(&mut self, now: Instant) -> bool {
        let begun = self.neighbours.begin_round(now);
        if begun
            && let Some(lost) = self.neighbours.lost()
            && self.ask(lost, now)
        {
            self.neighbours.lost_is_asked();
        }
        begun
    }

    /// The device had no room for all questions of a round: it goes on soon.
    pub(crate) fn interrupt_round(&mut self, now: Instant) {
        self.neighbours.interrupt_round(now);
    }

    /// Asks for the host through which `peer` is reached. `false` if the device has no room.
    pub(crate) fn ask(&mut self, peer: IpAddress, now: Instant) -> bool {
        let now = moment(now);
        let host = neighbours::next_hop(&mut self.interface, peer, now);
        host.is_none_or(|host| neighbours::ask(&self.interface, &mut self.device, host, now))
    }

    /// When the stack has to be polled next.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Instant {
        next(&mut self.interface, &self.sockets, now)
    }

    /// Connects to `peer` from a port of our own. Returns our address.
    pub(crate) fn connect(
        &mut self,
        handle: SocketHandle,
        peer: IpEndpoint,
    ) -> Result<IpEndpoint, &'static str> {
        let port = self.free_port(Transport::Tcp)?;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket
            .connect(self.interface.context(), peer, port)
            .map_err(|_| "it cannot be reached from the addresses of this device")?;
        socket.local_endpoint().ok_or("it has no route")
    }

    /// The address from which `peer` would be reached.
    pub(crate) fn source(&mut self, peer: IpAddress, shared: &Shared<'_>) -> Option<IpAddress> {
        let reached = has_route(&mut self.interface, peer, shared);
        let source = self.interface.get_source_address(&peer);
        source.filter(|_| reached)
    }

    /// Whether any socket has this address now.
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

/// The port of the first connect: it differs from network to network, and shows no bits of the key as
/// they are.
fn first_port((one, other): (u64, u64)) -> u16 {
    // The multiplier is that of splitmix64.
    let mixed = (one ^ other.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    FIRST_EPHEMERAL | (mixed >> 48) as u16
}

/// What a handle is after two sockets have changed places.
pub(crate) fn swapped(handle: &mut SocketHandle, first: SocketHandle, second: SocketHandle) {
    if *handle == first {
        *handle = second;
    } else if *handle == second {
        *handle = first;
    }
}

/// Whether there is a way to `peer`.
pub(crate) fn has_route(interface: &mut Interface, peer: IpAddress, shared: &Shared<'_>) -> bool {
    let needs_none = !shared.is_ethernet || peer.is_multicast() || peer.is_broadcast();
    needs_none || neighbours::next_hop(interface, peer, moment(shared.now)).is_some()
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

/// A moment, in smoltcp's type.
fn moment(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.as_micros().cast_signed())
}

/// An address to listen on, in smoltcp's type: one that is all zeros is every one.
pub(crate) fn listen_endpoint(address: SocketAddr) -> Result<IpListenEndpoint, &'static str> {
    let addr = match address.ip() {
        ip if ip.is_unspecified() => None,
        ip => Some(ip_address(ip)?),
    };
    let port = address.port();
    Ok(IpListenEndpoint { addr, port })
}

/// The address of a peer, in smoltcp's type.
pub(crate) fn endpoint(address: SocketAddr) -> Result<IpEndpoint, &'static str> {
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err("an address of zeros, or port 0, cannot be connected to");
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

/// An address, in the standard library's type.
pub(crate) fn address(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port)
}
