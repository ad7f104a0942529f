//! What a round trip costs on cubenet: both ends on this device, a message of 64 bytes there
//! and back, over TCP and then over UDP.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use cortex_m_rt::entry;
use cubenet_firmware::inside::{self, BYTES, Count, MESSAGE};
use cubenet_firmware::{board, clock::Clock, exit, loopback::Loopback, println, stack};
use cubenet_smoltcp::{
    Bytes, Error, Handler, Limits, Link, Memory, Message, Network, Port, PortMemory, StreamMemory,
    Transport,
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
    fn connected(&mut self, link: &mut dyn Link) {
        let _ = link.send(&MESSAGE);
    }

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
static SOCKETS: ConstStaticCell<[SocketStorage<'static>; 5]> =
    ConstStaticCell::new([SocketStorage::EMPTY; 5]);
static STREAMS: ConstStaticCell<StreamMemory<'static, End, 3>> =
    ConstStaticCell::new(StreamMemory::new());
static RECEIVE: ConstStaticCell<Bytes<{ 3 * BYTES }>> = ConstStaticCell::new(Bytes::new());
static TRANSMIT: ConstStaticCell<Bytes<{ 3 * BYTES }>> = ConstStaticCell::new(Bytes::new());
static PORTS: ConstStaticCell<[Option<Port<'static, End>>; 2]> =
    ConstStaticCell::new([const { None }; 2]);
static PEERS: ConstStaticCell<[PortMemory<End, 4, 4>; 2]> =
    ConstStaticCell::new([const { PortMemory::new() }; 2]);
static DATAGRAMS: ConstStaticCell<[Bytes<BYTES>; 4]> =
    ConstStaticCell::new([const { Bytes::new() }; 4]);
static SCRATCH: ConstStaticCell<Bytes<BYTES>> = ConstStaticCell::new(Bytes::new());

#[entry]
fn main() -> ! {
    board::start();
    if measure().is_err() {
        exit::failure();
    }
    println!("deepest stack {}", stack::deepest());
    exit::success()
}

fn measure() -> Result<(), Error> {
    let peripherals = cortex_m::Peripherals::take().expect("it is the first to take them");
    let clock = Clock::start(peripherals.SYST);
    let loopback = LOOPBACK.take();
    let interface = inside::interface(loopback);
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
        .with_max_message(BYTES - 2)
        .with_max_datagram(BYTES);
    let mut network = Network::new(interface, loopback, memory, limits, (42, 42))?;
    let [a, b, c, d] = DATAGRAMS.take();
    let [served, connected] = PEERS.take();
    network.add_port(served.lend(a.lend(), b.lend()))?;
    network.add_port(connected.lend(c.lend(), d.lend()))?;
    for transport in [Transport::Tcp, Transport::Udp] {
        let any = ([0, 0, 0, 0], 7).into();
        network.listen(transport, any, &|_link| Some(End::Server))?;
        let now = clock.now();
        let client = network.connect(transport, inside::SERVER, End::Client, now)?;
        let mut count = Count::new();
        let mut seen = ENDED.load(Ordering::Relaxed);
        let name = if transport == Transport::Tcp {
            "tcp"
        } else {
            "udp"
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
