//! What a round trip costs on smoltcp alone: both ends on this device, a message of 64 bytes
//! there and back, over TCP and then over UDP. Messages have no boundaries: each end counts
//! the bytes it awaits.

#![no_std]
#![no_main]

use cortex_m_rt::entry;
use cubenet_core::Instant;
use cubenet_firmware::inside::{self, BYTES, Count, MESSAGE};
use cubenet_firmware::{board, clock::Clock, exit, loopback::Loopback, println, stack};
use cubenet_smoltcp::Bytes;
use smoltcp::iface::{Interface, PollIngressSingleResult, PollResult, SocketSet, SocketStorage};
use smoltcp::socket::{tcp, udp};
use static_cell::ConstStaticCell;

/// A message as a stream carries it: the length of 2 bytes is part of it here.
const FRAME: usize = 2 + MESSAGE.len();

static LOOPBACK: ConstStaticCell<Loopback> = ConstStaticCell::new(Loopback::new());
static SOCKETS: ConstStaticCell<[SocketStorage<'static>; 5]> =
    ConstStaticCell::new([SocketStorage::EMPTY; 5]);
static RINGS: ConstStaticCell<[Bytes<BYTES>; 6]> =
    ConstStaticCell::new([const { Bytes::new() }; 6]);
static METADATA: ConstStaticCell<[[udp::PacketMetadata; 4]; 4]> =
    ConstStaticCell::new([[udp::PacketMetadata::EMPTY; 4]; 4]);
static DATAGRAMS: ConstStaticCell<[Bytes<BYTES>; 4]> =
    ConstStaticCell::new([const { Bytes::new() }; 4]);

#[entry]
fn main() -> ! {
    board::start();
    let peripherals = cortex_m::Peripherals::take().expect("it is the first to take them");
    let clock = Clock::start(peripherals.SYST);
    let loopback = LOOPBACK.take();
    let mut interface = inside::interface(loopback);
    let mut sockets = SocketSet::new(&mut SOCKETS.take()[..]);
    let [a, b, c, d, e, f] = RINGS.take();
    // One waits for the next client.
    let [server, client, next] = [[a, b], [c, d], [e, f]].map(|[receive, transmit]| {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(receive.lend()),
            tcp::SocketBuffer::new(transmit.lend()),
        );
        socket.set_nagle_enabled(false);
        sockets.add(socket)
    });
    let [a, b, c, d] = DATAGRAMS.take();
    let [e, f, g, h] = METADATA.take();
    let ports = [(7, [(e, a), (f, b)]), (50_000, [(g, c), (h, d)])];
    let [datagram_server, datagram_client] = ports.map(|(port, rings)| {
        let [receive, transmit] =
            rings.map(|(metadata, bytes)| udp::PacketBuffer::new(&mut metadata[..], bytes.lend()));
        let mut socket = udp::Socket::new(receive, transmit);
        socket.bind(port).expect("the port is free");
        sockets.add(socket)
    });
    sockets
        .get_mut::<tcp::Socket>(server)
        .listen(7)
        .expect("it is closed");
    sockets
        .get_mut::<tcp::Socket>(next)
        .listen(7)
        .expect("it is closed");
    let socket = sockets.get_mut::<tcp::Socket>(client);
    socket
        .connect(interface.context(), (inside::ADDRESS, 7), 50_000)
        .expect("it is closed");

    let mut frame = Bytes::<FRAME>::new();
    let frame = frame.lend();
    let mut count = Count::new();
    let mut sent = false;
    let mut done = false;
    while !done {
        poll(
            &mut interface,
            &mut &mut *loopback,
            &mut sockets,
            &clock,
            |sockets| {
                let socket = sockets.get_mut::<tcp::Socket>(server);
                if socket.recv_queue() >= FRAME {
                    let _ = socket.recv_slice(frame);
                    let _ = socket.send_slice(frame);
                }
                let socket = sockets.get_mut::<tcp::Socket>(client);
                if socket.recv_queue() >= FRAME {
                    let _ = socket.recv_slice(frame);
                    done |= count.round_trip(&clock, "tcp");
                    sent = false;
                }
                if !sent && socket.may_send() {
                    frame[2..].copy_from_slice(&MESSAGE);
                    let _ = socket.send_slice(frame);
                    sent = true;
                }
            },
        );
    }

    let mut datagram = MESSAGE;
    let mut count = Count::new();
    let server_address = smoltcp::wire::IpEndpoint::from((inside::ADDRESS, 7));
    let mut done = false;
    let socket = sockets.get_mut::<udp::Socket>(datagram_client);
    let _ = socket.send_slice(&MESSAGE, server_address);
    while !done {
        poll(
            &mut interface,
            &mut &mut *loopback,
            &mut sockets,
            &clock,
            |sockets| {
                let socket = sockets.get_mut::<udp::Socket>(datagram_server);
                while let Ok((len, from)) = socket.recv_slice(&mut datagram) {
                    let _ = socket.send_slice(&datagram[..len], from.endpoint);
                }
                let socket = sockets.get_mut::<udp::Socket>(datagram_client);
                while socket.recv_slice(&mut datagram).is_ok() {
                    done |= count.round_trip(&clock, "udp");
                    let _ = socket.send_slice(&MESSAGE, server_address);
                }
            },
        );
    }
    println!("deepest stack {}", stack::deepest());
    exit::success()
}

fn poll(
    interface: &mut Interface,
    loopback: &mut &mut Loopback,
    sockets: &mut SocketSet<'static>,
    clock: &Clock,
    mut serve: impl FnMut(&mut SocketSet<'static>),
) {
    let now = moment(clock.now());
    interface.poll_maintenance(now);
    while interface.poll_ingress_single(now, loopback, sockets) != PollIngressSingleResult::None {
        serve(sockets);
    }
    serve(sockets);
    while interface.poll_egress(now, loopback, sockets) != PollResult::None {}
    let _ = interface.poll_at(moment(clock.now()), sockets);
}

fn moment(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.as_micros() as i64)
}
