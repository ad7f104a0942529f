//! A device that connects: it takes readings, sends them over TCP, and keeps each until the
//! server has acknowledged it. When the server goes it connects again, after a while that
//! doubles each time. Over UDP it says now and then that it lives.
//!
//! Arguments: the TCP port and the UDP port of the server on 10.0.2.2, how many readings, and
//! the milliseconds between two. It ends when all of them have been acknowledged.
//!
//! A reading is a message of eight bytes: its number, from 1 on, and its value, both big
//! endian. The server answers with the number of a reading that it has, as has all before.

#![no_std]
#![no_main]

use core::cell::RefCell;
use core::time::Duration;
use cortex_m::interrupt::{self, Mutex};
use cortex_m_rt::entry;
use cubenet_firmware::arguments::Arguments;
use cubenet_firmware::{board, clock::Clock, exit, host, println, rest, stack};
use cubenet_smoltcp::{
    Bytes, CloseReason, ConnectError, ConnectionId, Error, Handler, Instant, Limits, Link, Memory,
    Message, Network, Port, PortMemory, SendError, StreamMemory, Transport,
};
use heapless::Deque;
use smoltcp::iface::SocketStorage;
use static_cell::ConstStaticCell;

/// Readings that wait for the server. While there are so many, none is taken.
const READINGS: usize = 64;
/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long until it connects again: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1_600));

#[derive(Clone, Copy)]
struct Reading {
    number: u32,
    value: u32,
}

/// What the callbacks and the main loop share.
struct Sensor {
    /// Not acknowledged yet, the oldest first.
    waiting: Deque<Reading, READINGS>,
    /// How many of those were sent on this connection.
    sent: usize,
    acknowledged: u32,
    /// The connection, while there is one.
    server: Option<ConnectionId>,
    /// The server is not there, or is no more, and no connect has been planned.
    lost: bool,
    /// When to connect, and how long to wait after the next failure; `NEVER` while connecting.
    connect_at: Instant,
    backoff: Duration,
    connects: u32,
    /// The way of the signs of life.
    heartbeat: Option<ConnectionId>,
}

static SENSOR: Mutex<RefCell<Sensor>> = Mutex::new(RefCell::new(Sensor {
    waiting: Deque::new(),
    sent: 0,
    acknowledged: 0,
    server: None,
    lost: false,
    connect_at: Instant::ZERO,
    backoff: BACKOFF.0,
    connects: 0,
    heartbeat: None,
}));

fn with<R>(change: impl FnOnce(&mut Sensor) -> R) -> R {
    interrupt::free(|token| change(&mut SENSOR.borrow(token).borrow_mut()))
}

impl Sensor {
    fn acknowledge(&mut self, number: u32) {
        while self
            .waiting
            .front()
            .is_some_and(|reading| reading.number <= number)
        {
            self.waiting.pop_front();
            self.sent = self.sent.saturating_sub(1);
            self.acknowledged += 1;
        }
    }

    /// Connects again, if the server is not there and it is time.
    fn connect_later(&mut self, now: Instant) {
        self.lost = false;
        self.server = None;
        self.sent = 0;
        self.connect_at = now.after(self.backoff);
        self.backoff = (2 * self.backoff).min(BACKOFF.1);
    }

    /// Sends what has not been sent on this connection.
    fn send(&mut self, link: &mut dyn Link) {
        for reading in self.waiting.iter().skip(self.sent) {
            let mut message = [0; 8];
            message[..4].copy_from_slice(&reading.number.to_be_bytes());
            message[4..].copy_from_slice(&reading.value.to_be_bytes());
            match link.send(&message) {
                Ok(()) => self.sent += 1,
                Err(SendError::Full) => break,
                Err(error) => panic!("a reading cannot be sent: {error}"),
            }
        }
    }
}

/// The device's connections.
enum Way {
    Readings,
    Heartbeat,
}

impl Handler for Way {
    fn connected(&mut self, link: &mut dyn Link) {
        if let Way::Readings = self {
            with(|sensor| {
                sensor.server = Some(link.id());
                sensor.send(link);
            });
        }
    }

    fn connect_failed(&mut self, error: ConnectError) {
        if let Way::Readings = self {
            println!("{error}");
            with(|sensor| sensor.lost = true);
        }
    }

    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        if let (Way::Readings, Ok(number)) = (self, <[u8; 4]>::try_from(&*message)) {
            with(|sensor| {
                sensor.acknowledge(u32::from_be_bytes(number));
                // It works: the next failure is a new one.
                sensor.backoff = BACKOFF.0;
            });
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        if let Way::Readings = self {
            with(|sensor| sensor.send(link));
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        match self {
            Way::Readings => {
                println!("server gone: {reason}");
                with(|sensor| sensor.lost = true);
            }
            Way::Heartbeat => with(|sensor| sensor.heartbeat = None),
        }
    }
}

static SOCKETS: ConstStaticCell<[SocketStorage<'static>; 2]> =
    ConstStaticCell::new([SocketStorage::EMPTY; 2]);
static STREAMS: ConstStaticCell<StreamMemory<'static, Way, 1, 0>> =
    ConstStaticCell::new(StreamMemory::new());
static RECEIVE: ConstStaticCell<Bytes<256>> = ConstStaticCell::new(Bytes::new());
static TRANSMIT: ConstStaticCell<Bytes<256>> = ConstStaticCell::new(Bytes::new());
static PORTS: ConstStaticCell<[Option<Port<'static, Way>>; 1]> =
    ConstStaticCell::new([const { None }; 1]);
static PEER: ConstStaticCell<PortMemory<Way, 1, 2>> = ConstStaticCell::new(PortMemory::new());
static BYTES: ConstStaticCell<[Bytes<64>; 2]> = ConstStaticCell::new([const { Bytes::new() }; 2]);
static SCRATCH: ConstStaticCell<Bytes<256>> = ConstStaticCell::new(Bytes::new());

#[entry]
fn main() -> ! {
    match measure() {
        Ok(()) => exit::success(),
        Err(error) => panic!("{error}"),
    }
}

fn measure() -> Result<(), Error> {
    board::start();
    let arguments = Arguments::ask();
    let server = |nth, what| {
        let port: u16 = arguments.get(nth, what);
        (host::GATEWAY.octets(), port).into()
    };
    let readings_to = server(1, "the server's TCP port");
    let heartbeat_to = server(2, "the server's UDP port");
    let count: u32 = arguments.get(3, "how many readings");
    let period = Duration::from_millis(arguments.get(4, "milliseconds between two readings"));

    let peripherals = cortex_m::Peripherals::take().expect("it is the first to take them");
    let mut clock = Clock::start(peripherals.SYST);
    let (interface, device) = host::start(clock.now());
    let memory = Memory::new(
        SOCKETS.take(),
        STREAMS
            .take()
            .lend(RECEIVE.take().lend(), TRANSMIT.take().lend()),
        SCRATCH.take().lend(),
        2,
    )
    .with_ports(PORTS.take());
    let limits = Limits::new()
        .with_max_message(16)
        .with_max_datagram(16)
        .with_connect_timeout(Duration::from_secs(2))
        // Every reading is acknowledged: a server that is silent so long is not there.
        .with_write_stall_timeout(Duration::from_secs(3));
    let mut network = Network::new(interface, device, memory, limits, host::key(&clock))?;
    let [receive, transmit] = BYTES.take();
    network.add_port(PEER.take().lend(receive.lend(), transmit.lend()))?;
    println!("READY");

    let mut taken = 0;
    let mut next_reading = clock.now();
    let mut next_heartbeat = clock.now();
    let mut beats: u32 = 0;
    while with(|sensor| sensor.acknowledged) < count {
        let now = clock.now();
        if now >= next_reading && taken < count {
            next_reading = next_reading.after(period);
            let reading = Reading {
                number: taken + 1,
                value: now.as_micros() as u32,
            };
            // There may be no room: then it is taken later.
            if with(|sensor| sensor.waiting.push_back(reading).is_ok()) {
                taken += 1;
            }
        }
        if now >= with(|sensor| sensor.connect_at) {
            with(|sensor| {
                sensor.connect_at = Instant::NEVER;
                sensor.connects += 1;
            });
            network.connect(Transport::Tcp, readings_to, Way::Readings, now)?;
        }
        if let Some(server) = with(|sensor| sensor.server) {
            network.with(server, now, |link| with(|sensor| sensor.send(link)));
        }
        if now >= next_heartbeat {
            next_heartbeat = now.after(HEARTBEAT);
            beats += 1;
            if with(|sensor| sensor.heartbeat).is_none() {
                let id = network.connect(Transport::Udp, heartbeat_to, Way::Heartbeat, now)?;
                with(|sensor| sensor.heartbeat = Some(id));
            }
            if let Some(way) = with(|sensor| sensor.heartbeat) {
                // It may be lost, like any datagram.
                let _ = network.with(way, now, |link| link.send(&beats.to_be_bytes()));
            }
        }
        network.poll(clock.now());
        if with(|sensor| sensor.lost) {
            with(|sensor| sensor.connect_later(clock.now()));
        }
        let at = network.poll_at(clock.now()).min(next_heartbeat);
        let at = at.min(with(|sensor| sensor.connect_at));
        let at = if taken < count {
            at.min(next_reading)
        } else {
            at
        };
        rest::until(at, &mut clock, || network.device().has_frame());
    }
    let connects = with(|sensor| sensor.connects);
    println!("DONE {count} acknowledged, {connects} connects, {beats} beats");
    println!("deepest stack {}", stack::deepest());
    network.stop(Duration::from_secs(1), clock.now());
    while !network.is_stopped() {
        network.poll(clock.now());
        let at = network.poll_at(clock.now());
        rest::until(at, &mut clock, || network.device().has_frame());
    }
    Ok(())
}
