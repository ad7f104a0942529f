//! The smoltcp driver against the network stack of the kernel: one network is the smoltcp
//! driver's, over a tap in a network namespace, the other the mio driver's, and so are the
//! peers of plain bytes. In real time.

use super::tap::{self, DEVICE, HARDWARE, KERNEL, MTU, Pump, Tap};
use crate::harness::smoltcp::net::{Clock, Shared};
use crate::harness::{self, BlackHole, mio};
use crate::system::Device;
use cubenet_core::{Instant, Limits};
use cubenet_smoltcp::smoltcp::iface::{Config, Interface};
use cubenet_smoltcp::smoltcp::time;
use cubenet_smoltcp::smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

type OnTap = Arc<Shared<Tap>>;

/// A namespace with the kernel at one end and a device at the other. It takes the thread that
/// makes it into the namespace for good.
pub(super) struct Harness {
    kernel: mio::Harness,
    device: Device,
    started: Cell<usize>,
    tap: Tap,
    networks: Arc<Mutex<Vec<OnTap>>>,
    _pump: Pump,
}

impl Harness {
    /// A world of its own.
    pub(super) fn new(device: Device) -> Self {
        let networks: Arc<Mutex<Vec<OnTap>>> = Arc::default();
        let polled = Arc::clone(&networks);
        let (tap, pump) = tap::enter(MTU, move || {
            for network in polled.lock().expect("no thread panicked with it").iter() {
                network.poll();
            }
        });
        Harness {
            kernel: mio::Harness::at(KERNEL.into()),
            device,
            started: Cell::new(0),
            tap,
            networks,
            _pump: pump,
        }
    }

    fn interface(&self) -> Interface {
        let mut device = self.tap.clone();
        let mut config = Config::new(EthernetAddress(HARDWARE).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut device, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::Ipv4(DEVICE), 24);
            addresses.push(address).expect("there is room for one");
        });
        interface
    }
}

impl harness::Harness for Harness {
    fn try_start(&self, limits: Limits) -> Result<Box<dyn harness::Net>, String> {
        let nth = self.started.get();
        self.started.set(nth + 1);
        let on_device = match self.device {
            Device::Listens => nth == 0,
            Device::Connects => nth == 1,
        };
        if !on_device {
            return self.kernel.try_start(limits);
        }
        // A datagram is one frame.
        let max_datagram = limits.max_datagram().min(MTU - 28);
        let limits = limits.with_max_datagram(max_datagram);
        let start = std::time::Instant::now();
        let clock: Clock =
            Arc::new(move || Instant::from_micros(start.elapsed().as_micros() as u64 + 1));
        let network = Shared::new(self.interface(), self.tap.clone(), limits, clock);
        let network = network.map_err(|error| error.to_string())?;
        let mut networks = self.networks.lock().expect("no thread panicked with it");
        networks.push(Arc::clone(&network));
        drop(networks);
        tap::introduce();
        Ok(Box::new(network))
    }

    fn raw_connect(&self, to: SocketAddr) -> Box<dyn harness::RawStream> {
        self.kernel.raw_connect(to)
    }

    fn raw_listen(&self) -> Box<dyn harness::RawListener> {
        self.kernel.raw_listen()
    }

    fn raw_datagrams(&self) -> Box<dyn harness::RawDatagrams> {
        self.kernel.raw_datagrams()
    }

    fn black_hole(&self) -> BlackHole {
        BlackHole {
            address: ([10, 0, 2, 200], 1).into(),
            kept: Box::new(()),
        }
    }

    fn pass(&self, time: Duration) {
        self.kernel.pass(time);
    }

    fn until(&self, done: &mut dyn FnMut() -> bool) -> bool {
        self.kernel.until(done)
    }

    fn now(&self) -> Duration {
        self.kernel.now()
    }

    fn slack(&self) -> Duration {
        self.kernel.slack()
    }
}
