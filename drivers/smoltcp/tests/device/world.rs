//! A network that talks to itself, and what happens in it.

use crate::wire::{OWN_HARDWARE, Wire};
use cubenet_smoltcp::smoltcp::iface::{Config, Interface, SocketStorage};
use cubenet_smoltcp::smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use cubenet_smoltcp::{
    Bytes, CloseReason, ConnectError, ConnectionId, Error, Handler, Instant, Limits, Link,
    Listener, Memory, Message, Network, PortMemory, SendError, StreamMemory, Transport,
    TransportError,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

pub(crate) const MOMENT: Duration = Duration::from_millis(300);

/// What happened, in order.
#[derive(Default)]
pub(crate) struct Log {
    lines: Mutex<Vec<String>>,
    accepted: Mutex<Vec<ConnectionId>>,
}

impl Log {
    pub(crate) fn add(&self, what: String) {
        self.lines.lock().unwrap().push(what);
    }

    pub(crate) fn count(&self, what: &str) -> usize {
        self.all(what).len()
    }

    /// What begins like this.
    pub(crate) fn all(&self, what: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let lines = lines.iter().filter(|line| line.starts_with(what));
        lines.cloned().collect()
    }

    /// The peers that a listener has admitted.
    pub(crate) fn accepted(&self) -> Vec<ConnectionId> {
        self.accepted.lock().unwrap().clone()
    }
}

/// Sends back what arrives at the ports below 10. Who was refused for want of
/// room sends, once there is some, whatever goes in.
#[derive(Clone, Copy)]
pub(crate) struct Echo(&'static Log);

impl Handler for Echo {
    fn connected(&mut self, _link: &mut dyn Link) {
        self.0.add("opened".to_owned());
    }

    fn connect_failed(&mut self, _error: ConnectError) {
        self.0.add("failed".to_owned());
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.0.add(format!("received {}", message.len()));
        if link.local_addr().port() < 10 {
            let _ = link.send(&message);
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        self.0.add(format!("writable, {}", link.peer_addr()));
        while link.local_addr().port() < 10 && link.send(b"on and on").is_ok() {}
    }

    fn error(&mut self, _link: &mut dyn Link, error: TransportError) {
        self.0.add(format!("error {error:?}"));
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.0.add(format!("closed {reason:?}"));
    }
}

pub(crate) const RING: usize = 256;

pub(crate) struct World {
    pub(crate) family: Family,
    pub(crate) network: Network<'static, Wire, Echo>,
    pub(crate) now: Instant,
    pub(crate) log: &'static Log,
    /// Polls so far.
    pub(crate) polls: usize,
}

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

pub(crate) fn limits() -> Limits {
    Limits::new()
        .with_max_message(RING - 2)
        .with_max_datagram(100)
}

/// Of which family the addresses of a world are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    #[cfg(feature = "ipv4")]
    V4,
    #[cfg(feature = "ipv6")]
    V6,
}

impl Family {
    pub(crate) const ALL: &[Family] = &[
        #[cfg(feature = "ipv4")]
        Family::V4,
        #[cfg(feature = "ipv6")]
        Family::V6,
    ];

    /// An address of a network in which only the device answers.
    pub(crate) fn host(self, number: u8) -> IpAddr {
        match self {
            #[cfg(feature = "ipv4")]
            Family::V4 => [10, 0, 0, number].into(),
            #[cfg(feature = "ipv6")]
            Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
        }
    }

    /// An address to which no way leads.
    pub(crate) fn far(self) -> IpAddr {
        match self {
            #[cfg(feature = "ipv4")]
            Family::V4 => [192, 0, 2, 1].into(),
            #[cfg(feature = "ipv6")]
            Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
        }
    }

    /// The addresses of the device.
    pub(crate) fn own(self) -> [IpAddr; 2] {
        [self.host(1), self.host(2)]
    }

    fn any(self) -> IpAddr {
        match self {
            #[cfg(feature = "ipv4")]
            Family::V4 => [0; 4].into(),
            #[cfg(feature = "ipv6")]
            Family::V6 => [0_u16; 8].into(),
        }
    }

    fn prefix_len(self) -> u8 {
        match self.host(0) {
            IpAddr::V4(_) => 24,
            IpAddr::V6(_) => 64,
        }
    }
}

/// Runs a test with each family of addresses.
pub(crate) fn with_each_family(test: impl Fn(Family)) {
    for family in Family::ALL {
        test(*family);
    }
}

pub(crate) fn start(family: Family, limits: Limits) -> Result<World, Error> {
    start_among(family, limits, 8)
}

/// The same, on a link of so many hosts.
pub(crate) fn start_among(family: Family, limits: Limits, hosts: usize) -> Result<World, Error> {
    let mut device = Wire::new(family);
    let hardware = HardwareAddress::Ethernet(EthernetAddress(OWN_HARDWARE));
    let config = Config::new(hardware);
    let now = cubenet_smoltcp::smoltcp::time::Instant::ZERO;
    let mut interface = Interface::new(config, &mut device, now);
    interface.update_ip_addrs(|addresses| {
        for own in family.own() {
            let own = format!("{own}/{}", family.prefix_len());
            addresses.push(own.parse::<IpCidr>().unwrap()).unwrap();
        }
    });
    let receive = leak(Bytes::<{ 8 * RING }>::new()).lend();
    let transmit = leak(Bytes::<{ 8 * RING }>::new()).lend();
    let memory = Memory::new(
        leak([const { SocketStorage::EMPTY }; 11]),
        leak(StreamMemory::<Echo, 8, 2>::new()).lend(receive, transmit),
        leak(Bytes::<RING>::new()).lend(),
        hosts,
    )
    .with_ports(leak([const { None }; 3]))
    .with_pending_sends(leak([0; 64]));
    let mut network = Network::new(interface, device, memory, limits, (1, 2))?;
    // A port on which nothing could be received is refused, and takes no place.
    let deaf = leak(PortMemory::<Echo, 2, 0>::new()).lend(leak([0; 64]), leak([0; 64]));
    assert!(matches!(network.add_port(deaf), Err(Error::Memory { .. })));
    for _ in 0..3 {
        let port = leak(PortMemory::<Echo, 2, 4>::new());
        let bytes = [(); 2].map(|()| leak(Bytes::<256>::new()).lend());
        let [receive, transmit] = bytes;
        network.add_port(port.lend(receive, transmit))?;
    }
    Ok(World {
        family,
        network,
        now: Instant::from_micros(1),
        log: leak(Log::default()),
        polls: 0,
    })
}

impl World {
    pub(crate) fn listen(&mut self, transport: Transport) -> Listener {
        self.listen_at(transport, 7)
    }

    pub(crate) fn listen_at(&mut self, transport: Transport, port: u16) -> Listener {
        self.try_listen_at(transport, port).unwrap()
    }

    pub(crate) fn try_listen_at(
        &mut self,
        transport: Transport,
        port: u16,
    ) -> Result<Listener, Error> {
        let log = self.log;
        let accepted = leak(move |link: &mut dyn Link| {
            log.accepted.lock().unwrap().push(link.id());
            log.add("opened".to_owned());
            Some(Echo(log))
        });
        let any = SocketAddr::new(self.family.any(), port);
        self.network.listen(transport, any, accepted)
    }

    pub(crate) fn connect(&mut self, transport: Transport) -> Result<ConnectionId, Error> {
        self.connect_to(transport, (self.family.own()[0], 7))
    }

    pub(crate) fn connect_to(
        &mut self,
        transport: Transport,
        there: impl Into<SocketAddr>,
    ) -> Result<ConnectionId, Error> {
        let now = self.now;
        self.network
            .connect(transport, there.into(), Echo(self.log), now)
    }

    pub(crate) fn send(
        &mut self,
        id: ConnectionId,
        message: &[u8],
    ) -> Option<Result<(), SendError>> {
        self.network.with(id, self.now, |link| link.send(message))
    }

    /// The link.
    pub(crate) fn wire(&mut self) -> &mut Wire {
        &mut self.network.stack().device
    }

    /// A datagram arrives from `port` of a host, for port `to` of the device.
    pub(crate) fn receive_datagram(&mut self, number: u8, port: u16, to: u16, payload: &[u8]) {
        let mut datagram = Vec::new();
        for number in [port, to, 8 + payload.len() as u16, 0] {
            datagram.extend(number.to_be_bytes());
        }
        datagram.extend(payload);
        self.wire().receive(number, 17, &datagram);
    }

    /// The first segment of a stream arrives from `port` of a host, for port 7 of the device.
    pub(crate) fn receive_syn(&mut self, number: u8, port: u16) {
        let mut segment = [port.to_be_bytes(), 7_u16.to_be_bytes()].concat();
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x10, 0, 0, 0, 0, 0]);
        self.wire().receive(number, 6, &segment);
    }

    /// Polls when the network wants to be, for so long.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        loop {
            self.network.poll(self.now);
            self.polls += 1;
            assert!(self.polls < 100_000, "it is never content");
            // As an application does that looks at its own sockets.
            let _ = self.network.stack();
            let at = self.network.poll_at(self.now);
            if at > end {
                break;
            }
            // The link says nothing of what lies in it.
            self.now = at.max(self.now.after(Duration::from_micros(50)));
        }
        // What the link holds by then.
        for _ in 0..20 {
            self.network.poll(self.now);
        }
        self.now = end.max(self.now);
    }
}
