//! A server: sends every message back, on TCP port 7 and UDP port 7 of 10.0.2.15, and ends
//! when it gets the datagram `quit` on UDP port 9.

#![no_std]
#![no_main]

#[path = "../../../../mio/examples/support/echo.rs"]
mod echo;

use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, Ordering};
use cortex_m::interrupt::{self, Mutex};
use cortex_m_rt::entry;
use cubenet_firmware::sizes::{BYTES, DATAGRAMS, MAX_DATAGRAM, MAX_MESSAGE, PEERS, RING, STREAMS};
use cubenet_firmware::{board, clock::Clock, exit, host, println, rest, stack};
use cubenet_smoltcp::{
    Bytes, Error, Handler, Limits, Link, Memory, Message, Network, Port, PortMemory, StreamMemory,
    Transport,
};
use echo::{Echo, Keep};
use smoltcp::iface::SocketStorage;
use static_cell::ConstStaticCell;

type Kept = heapless::Vec<u8, MAX_MESSAGE>;

/// Messages that are not in use: there is one for each stream.
static SPARE: Mutex<RefCell<heapless::Vec<&'static mut Kept, STREAMS>>> =
    Mutex::new(RefCell::new(heapless::Vec::new()));

/// In one of those that were spare.
#[derive(Default)]
struct InPool(Option<&'static mut Kept>);

impl Keep for InPool {
    fn keep(&mut self, message: Message<'_>) -> bool {
        self.0 = interrupt::free(|token| SPARE.borrow(token).borrow_mut().pop());
        let room = self.0.as_mut();
        room.is_some_and(|room| room.extend_from_slice(&message).is_ok())
    }

    fn take(&mut self, give: impl FnOnce(&[u8])) {
        if let Some(message) = &self.0 {
            give(message);
            self.give_back();
        }
    }
}

impl InPool {
    fn give_back(&mut self) {
        if let Some(message) = self.0.take() {
            message.clear();
            let back = interrupt::free(|token| SPARE.borrow(token).borrow_mut().push(message));
            debug_assert!(back.is_ok(), "it was taken from there");
        }
    }
}

impl Drop for InPool {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Nowhere: a datagram may be lost.
#[derive(Default)]
struct Nowhere;

impl Keep for Nowhere {
    fn keep(&mut self, _message: Message<'_>) -> bool {
        false
    }

    fn take(&mut self, _give: impl FnOnce(&[u8])) {}
}

/// Whether the end was asked for.
static QUIT: AtomicBool = AtomicBool::new(false);

/// The handlers of this device.
enum Service {
    Streams(Echo<InPool>),
    Datagrams(Echo<Nowhere>),
    Quit,
}

impl Handler for Service {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        match self {
            Service::Streams(echo) => echo.received(link, message),
            Service::Datagrams(echo) => echo.received(link, message),
            Service::Quit => QUIT.store(&*message == b"quit", Ordering::Relaxed),
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        match self {
            Service::Streams(echo) => echo.writable(link),
            Service::Datagrams(echo) => echo.writable(link),
            Service::Quit => {}
        }
    }
}

static MESSAGES: ConstStaticCell<[Kept; STREAMS]> =
    ConstStaticCell::new([const { Kept::new() }; STREAMS]);
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
    match serve() {
        Ok(()) => exit::success(),
        Err(error) => panic!("{error}"),
    }
}

fn serve() -> Result<(), Error> {
    board::start();
    let peripherals = cortex_m::Peripherals::take().expect("it is the first to take them");
    let mut clock = Clock::start(peripherals.SYST);
    interrupt::free(|token| SPARE.borrow(token).borrow_mut().extend(MESSAGES.take()));
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
        .with_max_datagram(MAX_DATAGRAM)
        // A connection that is abandoned is closed soon.
        .with_stream_idle_timeout(core::time::Duration::from_secs(10));
    let mut network = Network::new(interface, device, memory, limits, host::key(&clock))?;
    let [receive, transmit] = ECHO_BYTES.take();
    network.add_port(ECHO_PORT.take().lend(receive.lend(), transmit.lend()))?;
    let [receive, transmit] = QUIT_BYTES.take();
    network.add_port(QUIT_PORT.take().lend(receive.lend(), transmit.lend()))?;
    network.listen(Transport::Tcp, ([0, 0, 0, 0], 7).into(), &|_link| {
        Some(Service::Streams(Echo::default()))
    })?;
    network.listen(Transport::Udp, ([0, 0, 0, 0], 7).into(), &|_link| {
        Some(Service::Datagrams(Echo::default()))
    })?;
    network.listen(Transport::Udp, ([0, 0, 0, 0], 9).into(), &|_link| {
        Some(Service::Quit)
    })?;
    println!("READY");
    while !QUIT.load(Ordering::Relaxed) {
        network.poll(clock.now());
        let at = network.poll_at(clock.now());
        rest::until(at, &mut clock, || network.device().has_frame());
    }
    println!("{:?}", network.counts());
    println!("open {}", network.open());
    println!("deepest stack {}", stack::deepest());
    Ok(())
}
