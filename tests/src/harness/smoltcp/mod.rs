//! The smoltcp driver on a host of its own for every network, in time that jumps. Hosts are
//! joined by smoltcp's loopback devices, one for each address: what is sent to an address is
//! put into its loopback. The peers of plain bytes are sockets of smoltcp's own.

pub(crate) mod net;
mod raw;

use super::{BlackHole, LONGEST};
use cubenet_core::{Instant, Limits};
use cubenet_smoltcp::smoltcp::iface::{Config, Interface};
use cubenet_smoltcp::smoltcp::phy::{
    Device, DeviceCapabilities, Loopback, Medium, RxToken, TxToken,
};
use cubenet_smoltcp::smoltcp::time;
use cubenet_smoltcp::smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use net::{Clock, Shared};
use raw::RawHost;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What joins the hosts.
#[derive(Default)]
struct Loopbacks {
    /// By the address whose host receives from them.
    by_address: BTreeMap<Ipv4Addr, Loopback>,
    /// Packets in all of them.
    under_way: usize,
}

type Wires = Arc<Mutex<Loopbacks>>;

/// One host's end of the wires.
pub(crate) struct Wire {
    address: Ipv4Addr,
    wires: Wires,
}

impl Device for Wire {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Out;

    fn capabilities(&self) -> DeviceCapabilities {
        Loopback::new(Medium::Ip).capabilities()
    }

    fn receive(&mut self, now: time::Instant) -> Option<(Packet, Out)> {
        let mut wires = self.wires.lock().expect("no thread panicked with it");
        let (packet, _) = wires.by_address.get_mut(&self.address)?.receive(now)?;
        let packet = packet.consume(<[u8]>::to_vec);
        wires.under_way -= 1;
        Some((Packet(packet), Out(Arc::clone(&self.wires))))
    }

    fn transmit(&mut self, _now: time::Instant) -> Option<Out> {
        Some(Out(Arc::clone(&self.wires)))
    }
}

/// A packet that arrived.
pub(crate) struct Packet(Vec<u8>);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// The way out.
pub(crate) struct Out(Wires);

impl TxToken for Out {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        let mut wires = self.0.lock().expect("no thread panicked with it");
        let to: [u8; 4] = packet[16..20].try_into().expect("an IPv4 header");
        // No network may have that address.
        if let Some(wire) = wires.by_address.get_mut(&Ipv4Addr::from(to)) {
            let out = wire.transmit(time::Instant::ZERO).expect("it always can");
            out.consume(len, |copy| copy.copy_from_slice(&packet));
            wires.under_way += 1;
        }
        result
    }
}

/// What has to be polled.
pub(crate) trait Host {
    /// Does what there is to do.
    fn poll(&self);
    /// When there is more to do.
    fn poll_at(&self) -> Instant;
}

impl<D: Device + Send + 'static> Host for Arc<Shared<D>> {
    fn poll(&self) {
        Shared::poll(self);
    }

    fn poll_at(&self) -> Instant {
        Shared::poll_at(self)
    }
}

/// Hosts on wires.
pub struct Harness {
    micros: Arc<AtomicU64>,
    wires: Wires,
    hosts: RefCell<Vec<Box<dyn Host>>>,
    /// Polls in a row after which a network wanted another at once.
    restless: Cell<u32>,
}

impl Harness {
    /// A world without hosts.
    pub fn new() -> Self {
        Harness {
            micros: Arc::new(AtomicU64::new(1_000_000)),
            wires: Wires::default(),
            hosts: RefCell::default(),
            restless: Cell::new(0),
        }
    }

    fn clock(&self) -> Clock {
        let micros = Arc::clone(&self.micros);
        Arc::new(move || Instant::from_micros(micros.load(Ordering::Relaxed)))
    }

    fn address(&self) -> Ipv4Addr {
        let mut wires = self.wires.lock().expect("no thread panicked with it");
        let address = Ipv4Addr::from(0x0a00_0001 + wires.by_address.len() as u32);
        wires.by_address.insert(address, Loopback::new(Medium::Ip));
        address
    }

    /// A host of its own: its interface and its device.
    fn host(&self) -> (Interface, Wire) {
        let address = self.address();
        let mut wire = Wire {
            address,
            wires: Arc::clone(&self.wires),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from(address.to_bits());
        let mut interface = Interface::new(config, &mut wire, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::Ipv4(address), 8);
            addresses.push(address).expect("there is room for one");
        });
        (interface, wire)
    }

    fn raw_host(&self) -> RawHost {
        let (interface, wire) = self.host();
        let host = RawHost::new(interface, wire, self.clock());
        self.hosts.borrow_mut().push(Box::new(host.clone()));
        host
    }

    /// Lets every network do what there is to do now.
    fn poll(&self) {
        for host in &*self.hosts.borrow() {
            host.poll();
        }
    }

    /// Lets time pass until there is more to do, or `end`.
    fn advance(&self, end: Duration) {
        let now = self.clock()();
        let end = Instant::from_micros(end.as_micros() as u64);
        let hosts = self.hosts.borrow();
        let at = hosts
            .iter()
            .map(|host| host.poll_at())
            .fold(end, Instant::min);
        let wires = self.wires.lock().expect("no thread panicked with it");
        if wires.under_way > 0 || at <= now {
            self.restless.set(self.restless.get() + 1);
            if self.restless.get() < 50 {
                return;
            }
        }
        self.restless.set(0);
        // A network that always has something to do does not stop the time.
        let next = at.max(now.after(Duration::from_millis(1)).min(end));
        self.micros.store(next.as_micros(), Ordering::Relaxed);
    }
}

impl Default for Harness {
    fn default() -> Self {
        Harness::new()
    }
}

impl super::Harness for Harness {
    fn try_start(&self, limits: Limits) -> Result<Box<dyn super::Net>, String> {
        let (interface, wire) = self.host();
        let network = Shared::new(interface, wire, limits, self.clock());
        let network = network.map_err(|error| cubenet_core::Report::new(&error).to_string())?;
        self.hosts.borrow_mut().push(Box::new(Arc::clone(&network)));
        Ok(Box::new(network))
    }

    fn raw_connect(&self, to: SocketAddr) -> Box<dyn super::RawStream> {
        Box::new(self.raw_host().connect(to))
    }

    fn raw_listen(&self) -> Box<dyn super::RawListener> {
        Box::new(self.raw_host().listen())
    }

    fn raw_datagrams(&self) -> Box<dyn super::RawDatagrams> {
        Box::new(self.raw_host().datagrams())
    }

    fn black_hole(&self) -> BlackHole {
        BlackHole {
            address: ([10, 255, 255, 1], 1).into(),
            kept: Box::new(()),
        }
    }

    fn pass(&self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.poll();
            self.advance(end);
        }
    }

    fn until(&self, done: &mut dyn FnMut() -> bool) -> bool {
        let end = self.now() + LONGEST;
        loop {
            self.poll();
            if done() {
                return true;
            }
            if self.now() >= end {
                return false;
            }
            self.advance(end);
        }
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.clock()().as_micros())
    }

    fn slack(&self) -> Duration {
        Duration::from_millis(50)
    }
}
