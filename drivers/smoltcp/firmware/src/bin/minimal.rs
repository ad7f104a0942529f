//! The least that an echo server on cubenet is: the sockets, rings and output of `bare`, and
//! messages. What cubenet adds to a device is the difference between the two.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering};
use cortex_m_rt::entry;
use cubenet_firmware::sizes::{BYTES, DATAGRAMS, MAX_DATAGRAM, MAX_MESSAGE, PEERS, RING, STREAMS};
use cubenet_firmware::{board, clock::Clock, exit, host, println, rest, stack};
use cubenet_smoltcp::{
    Bytes, Error, Handler, Limits, Link, Memory, Message, Network, Port, PortMemory, StreamMemory,
    Transport,
};
use smoltcp::iface::SocketStorage;
use static_cell::ConstStaticCell;

static QUIT: AtomicBool = AtomicBool::new(false);

/// Sends every message back; on port 9, waits for the end.
struct Service;

impl Handler for Service {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if link.local_addr().port() == 7 {
            let _ = link.send(&message);
        } else {
            QUIT.store(&*message == b"quit", Ordering::Relaxed);
        }
    }
}

static SOCKETS: ConstStaticCell<[SocketStorage<'static>; STREAMS + 2]> =
    ConstStaticCell::new([SocketStorage::EMPTY; STREAMS + 2]);
static STREAM_MEMORY: ConstStaticCell<StreamMemory<'static, Service, STREAMS>> =
    ConstStaticCell::new(StreamMemory::new());
static RECEIVE: ConstStaticCell<Bytes<{ STREAMS * RING }>> = ConstStaticCell::new(Bytes::new());
static TRANSMIT: ConstStaticCell<Bytes<{ STREAMS * RING }>> = ConstStaticCell::new(Bytes::new());
static PORTS: ConstStaticCell<[Option<Port<'static, Service>>; 2]> =
    ConstStaticCell::new([const { None }; 2]);
static ECHO_PORT: ConstStaticCell<PortMemory<Service, PEERS, DATAGRAMS>> =
    ConstStaticCell::new(PortMemory::new());
static ECHO_BYTES: ConstStaticCell<[Bytes<BYTES>; 2]> =
    ConstStaticCell::new([const { Bytes::new() }; 2]);
static QUIT_PORT: ConstStaticCell<PortMemory<Service, 2, 2>> =
    ConstStaticCell::new(PortMemory::new());
static QUIT_BYTES: ConstStaticCell<[Bytes<64>; 2]> =
    ConstStaticCell::new([const { Bytes::new() }; 2]);
static SCRATCH: ConstStaticCell<Bytes<MAX_DATAGRAM>> = ConstStaticCell::new(Bytes::new());

#[entry]
fn main() -> ! {
    board::start();
    if serve().is_err() {
        exit::failure();
    }
    println!("deepest stack {}", stack::deepest());
    exit::success()
}

fn serve() -> Result<(), Error> {
    let peripherals = cortex_m::Peripherals::take().expect("it is the first to take them");
    let mut clock = Clock::start(peripherals.SYST);
    let (interface, device) = host::start(clock.now());
    let memory = Memory::new(
        SOCKETS.take(),
        STREAM_MEMORY
            .take()
            .lend(RECEIVE.take().lend(), TRANSMIT.take().lend()),
        SCRATCH.take().lend(),
        14,
    )
    .with_ports(PORTS.take());
    let limits = Limits::new()
        .with_max_message(MAX_MESSAGE)
        .with_max_datagram(MAX_DATAGRAM);
    let mut network = Network::new(interface, device, memory, limits, host::key(&clock))?;
    let [receive, transmit] = ECHO_BYTES.take();
    network.add_port(ECHO_PORT.take().lend(receive.lend(), transmit.lend()))?;
    let [receive, transmit] = QUIT_BYTES.take();
    network.add_port(QUIT_PORT.take().lend(receive.lend(), transmit.lend()))?;
    network.listen(Transport::Tcp, ([0, 0, 0, 0], 7).into(), &|_link| {
        Some(Service)
    })?;
    network.listen(Transport::Udp, ([0, 0, 0, 0], 7).into(), &|_link| {
        Some(Service)
    })?;
    network.listen(Transport::Udp, ([0, 0, 0, 0], 9).into(), &|_link| {
        Some(Service)
    })?;
    println!("READY");
    while !QUIT.load(Ordering::Relaxed) {
        network.poll(clock.now());
        let at = network.poll_at(clock.now());
        rest::until(at, &mut clock, || network.device().has_frame());
    }
    Ok(())
}
