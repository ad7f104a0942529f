//! The simulator: every network on a host of its own, and time that jumps.

use super::{BlackHole, Driven, LONGEST, driver};
use crate::tls::Tls;
use cubenet_core::Limits;
use cubenet_sim::Simulation;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// A simulation.
pub struct Harness {
    simulation: Simulation,
    hosts: Cell<u32>,
    tls: Option<Tls>,
}

impl Harness {
    /// One without faults.
    pub fn new() -> Self {
        Harness {
            simulation: Simulation::new(1),
            hosts: Cell::new(0),
            tls: None,
        }
    }

    /// One in which callbacks of three workers of each network interleave.
    pub fn interleaved() -> Self {
        let simulation = Simulation::builder().seed(1).interleave(0.15);
        Harness {
            simulation: simulation.build().expect("a rate"),
            hosts: Cell::new(0),
            tls: None,
        }
    }

    /// One without faults, with TLS over every stream.
    pub fn secured() -> super::tls::Harness<Self> {
        let tls = Tls::seeded(1);
        let mut harness = Harness::new();
        harness.tls = Some(tls.clone());
        super::tls::Harness::new(harness, tls)
    }

    fn host(&self) -> IpAddr {
        let nth = self.hosts.get() + 1;
        self.hosts.set(nth);
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + nth))
    }
}

impl Default for Harness {
    fn default() -> Self {
        Harness::new()
    }
}

impl super::Harness for Harness {
    fn try_start(&self, limits: Limits) -> Result<Box<dyn super::Net>, String> {
        let host = self.host();
        let builder = self.simulation.network(host);
        let builder = builder.threads(3).stream_buffer(16 << 10);
        let network = builder.limits(limits).start();
        let network = network.map_err(|error| cubenet_core::Report::new(&error).to_string())?;
        Ok(Box::new(Driven {
            network,
            any_address: (host, 0).into(),
            tls: self.tls.clone(),
        }))
    }

    fn raw_connect(&self, to: SocketAddr) -> Box<dyn super::RawStream> {
        let stream = self.simulation.raw_connect(self.host(), to);
        Box::new(RawStream::new(stream.expect("it can be connected to")))
    }

    fn raw_listen(&self) -> Box<dyn super::RawListener> {
        let listener = self.simulation.raw_listen((self.host(), 0));
        Box::new(RawListener {
            listener: listener.expect("the port is free"),
            accepted: RefCell::default(),
        })
    }

    fn raw_datagrams(&self) -> Box<dyn super::RawDatagrams> {
        let socket = self.simulation.raw_datagrams((self.host(), 0));
        Box::new(RawDatagrams {
            socket: socket.expect("the port is free"),
            received: RefCell::default(),
        })
    }

    fn black_hole(&self) -> BlackHole {
        BlackHole {
            address: (self.host(), 1).into(),
            kept: Box::new(()),
        }
    }

    fn pass(&self, time: Duration) {
        self.simulation.run_for(time);
        self.simulation
            .audit()
            .expect("everything is as it must be");
    }

    fn until(&self, done: &mut dyn FnMut() -> bool) -> bool {
        let reached = self.simulation.run_while(LONGEST, || !done());
        self.simulation
            .audit()
            .expect("everything is as it must be");
        reached
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.simulation.now().as_micros())
    }

    fn slack(&self) -> Duration {
        Duration::from_millis(5)
    }
}

driver!(cubenet_sim);

struct RawStream {
    stream: cubenet_sim::RawStream,
    received: RefCell<Vec<u8>>,
}

impl RawStream {
    fn new(stream: cubenet_sim::RawStream) -> Self {
        RawStream {
            stream,
            received: RefCell::default(),
        }
    }
}

impl super::RawStream for RawStream {
    fn write(&self, bytes: &[u8]) {
        self.stream.write(bytes);
    }

    fn shutdown(&self) {
        self.stream.shutdown();
    }

    fn close(&self) {
        self.stream.close();
    }

    fn reset(&self) {
        self.stream.reset();
    }

    fn stop_reading(&self) {
        self.stream.stop_reading();
    }

    fn read_on(&self) {
        self.stream.read_on();
    }

    fn received(&self) -> Vec<u8> {
        let mut received = self.received.borrow_mut();
        received.extend(self.stream.received());
        received.clone()
    }

    fn ended_in_order(&self) -> Option<bool> {
        let end = self.stream.end()?;
        Some(end == cubenet_sim::RawEnd::Orderly)
    }
}

struct RawListener {
    listener: cubenet_sim::RawListener,
    accepted: RefCell<Vec<cubenet_sim::RawStream>>,
}

impl super::RawListener for RawListener {
    fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    fn accept(&self) -> Option<Box<dyn super::RawStream>> {
        let mut accepted = self.accepted.borrow_mut();
        accepted.extend(self.listener.accepted());
        let stream = accepted.pop()?;
        Some(Box::new(RawStream::new(stream)))
    }
}

struct RawDatagrams {
    socket: cubenet_sim::RawDatagrams,
    received: RefCell<Vec<Vec<u8>>>,
}

impl super::RawDatagrams for RawDatagrams {
    fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    fn send_to(&self, to: SocketAddr, datagram: &[u8]) {
        self.socket.send_to(to, datagram);
    }

    fn received(&self) -> Vec<Vec<u8>> {
        let mut received = self.received.borrow_mut();
        let arrived = self.socket.received().into_iter();
        received.extend(arrived.map(|(_, datagram)| datagram));
        received.clone()
    }
}
