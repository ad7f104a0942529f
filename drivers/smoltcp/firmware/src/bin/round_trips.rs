//! What a round trip costs on cubenet: both ends on this device, a message of 64 bytes there
//! and back, over TCP and then over UDP.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use cortex_m_rt::entry;
use cubenet_firmware::inside::{self, BYTES, Count, MESSAGE};
use cubenet_firmware::{board, clock::Clock, exit, loopback::Loopback};
use cubenet_smoltcp::{
    Error, Handler, Limits, Link, Memory, Message, Network, Port, PortMemory, Scratch,
    StreamMemory, Transport,
};
use smoltcp::iface::SocketStorage;
use static_cell::ConstStaticCell;

/// Round trips that have ended.
static ENDED: AtomicU32 = AtomicU32::new(0);

/// Either end.
enum End {
    Server,
    Client,
}

impl Handler for End {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        match self {
            End::Server => {
                let _ = link.send(&message);
            }
            End::Client => {
                ENDED.fetch_add(1, Ordering::Relaxed);
                let _ = link.send(&MESSAGE);
            }
        }
    }
}

static LOOPBACK: ConstStaticCell<Loopback> = ConstStaticCell::new(Loopback::new());
static SOCKETS: ConstStaticCell<[SocketStorage<'static>; 4]> =
    ConstStaticCell::new([SocketStorage::EMPTY; 4]);
static STREAMS: ConstStaticCell<StreamMemory<'static, End, 2>> =
    ConstStaticCell::new(StreamMemory::new());
static RINGS: ConstStaticCell<[[u8; 2 * BYTES]; 2]> = ConstStaticCell::new([[0; 2 * BYTES]; 2]);
static PORTS: ConstStaticCell<[Option<Port<'static, End>>; 2]> =
    ConstStaticCell::new([const { None }; 2]);
static PEERS: ConstStaticCell<[PortMemory<End, 4, 4>; 2]> =
    ConstStaticCell::new([const { PortMemory::new() }; 2]);
static DATAGRAMS: ConstStaticCell<[[u8; BYTES]; 4]> = ConstStaticCell::new([[0; BYTES]; 4]);
static SCRATCH: ConstStaticCell<Scratch<BYTES>> = ConstStaticCell::new(Scratch::new());

#[entry]
fn main() -> ! {
    board::start();
    if measure().is_err() {
        exit::failure();
    }
    exit::success()
}

fn measure() -> Result<(), Error> {
    let peripherals = cortex_m::Peripherals::take().expect("it is the first to take them");
    let clock = Clock::start(peripherals.SYST);
    let loopback = LOOPBACK.take();
    let interface = inside::interface(loopback);
    let [receive, transmit] = RINGS.take();
    let memory = Memory {
        sockets: SOCKETS.take(),
        streams: STREAMS.take().lend(receive, transmit),
        ports: PORTS.take(),
        scratch: SCRATCH.take().lend(),
        early: &mut [],
    };
    let limits = Limits {
        max_message: BYTES - 2,
        max_datagram: BYTES,
        ..Limits::default()
    };
    let mut network = Network::new(interface, loopback, memory, limits, (42, 42))?;
    let [a, b, c, d] = DATAGRAMS.take();
    let [served, called] = PEERS.take();
    network.add_port(served.lend(a, b))?;
    network.add_port(called.lend(c, d))?;
    for transport in [Transport::Tcp, Transport::Udp] {
        let any = ([0, 0, 0, 0], 7).into();
        network.listen(transport, any, &|_link| Some(End::Server))?;
        let now = clock.now();
        let client = network.connect(
            transport,
            inside::SERVER,
            &|outcome| {
                let _ = outcome.ok()?.send(&MESSAGE);
                Some(End::Client)
            },
            now,
        )?;
        let mut count = Count::new();
        let mut seen = ENDED.load(Ordering::Relaxed);
        let name = match transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        'measuring: loop {
            network.poll(clock.now());
            let _ = network.poll_at(clock.now());
            while seen < ENDED.load(Ordering::Relaxed) {
                seen += 1;
                if count.round_trip(&clock, name) {
                    break 'measuring;
                }
            }
        }
        network.with(client, clock.now(), |link| link.abort());
        network.poll(clock.now());
    }
    Ok(())
}
