//! What the echo server would be without cubenet: smoltcp alone, with the same sockets and
//! rings, that sends back what arrives and knows nothing of messages. What cubenet adds to a
//! device is measured against this.

#![no_std]
#![no_main]

use cortex_m_rt::entry;
use cubenet_core::Instant;
use cubenet_firmware::sizes::{BYTES, DATAGRAMS, MAX_DATAGRAM, RING, STREAMS};
use cubenet_firmware::{board, clock::Clock, exit, host, println, rest, stack};
use cubenet_smoltcp::Bytes;
use smoltcp::iface::{PollIngressSingleResult, PollResult, SocketSet, SocketStorage};
use smoltcp::socket::{tcp, udp};
use static_cell::ConstStaticCell;

static SOCKETS: ConstStaticCell<[SocketStorage<'static>; STREAMS + 2]> =
    ConstStaticCell::new([SocketStorage::EMPTY; STREAMS + 2]);
static RECEIVE: ConstStaticCell<Bytes<{ STREAMS * RING }>> = ConstStaticCell::new(Bytes::new());
static TRANSMIT: ConstStaticCell<Bytes<{ STREAMS * RING }>> = ConstStaticCell::new(Bytes::new());
static ECHO_METADATA: ConstStaticCell<[[udp::PacketMetadata; DATAGRAMS]; 2]> =
    ConstStaticCell::new([[udp::PacketMetadata::EMPTY; DATAGRAMS]; 2]);
static ECHO_BYTES: ConstStaticCell<[Bytes<BYTES>; 2]> =
    ConstStaticCell::new([const { Bytes::new() }; 2]);
static QUIT_METADATA: ConstStaticCell<[[udp::PacketMetadata; 2]; 2]> =
    ConstStaticCell::new([[udp::PacketMetadata::EMPTY; 2]; 2]);
static QUIT_BYTES: ConstStaticCell<[Bytes<64>; 2]> =
    ConstStaticCell::new([const { Bytes::new() }; 2]);
static SCRATCH: ConstStaticCell<Bytes<MAX_DATAGRAM>> = ConstStaticCell::new(Bytes::new());

#[entry]
fn main() -> ! {
    board::start();
    let peripherals = cortex_m::Peripherals::take().expect("it is the first to take them");
    let mut clock = Clock::start(peripherals.SYST);
    let (mut interface, mut device) = host::start(clock.now());
    let mut sockets = SocketSet::new(&mut SOCKETS.take()[..]);
    let (receive, transmit) = (RECEIVE.take().lend(), TRANSMIT.take().lend());
    let rings = receive
        .chunks_exact_mut(RING)
        .zip(transmit.chunks_exact_mut(RING));
    let streams: heapless::Vec<_, STREAMS> = rings
        .map(|(receive, transmit)| {
            let mut socket = tcp::Socket::new(
                tcp::SocketBuffer::new(receive),
                tcp::SocketBuffer::new(transmit),
            );
            socket.set_nagle_enabled(false);
            sockets.add(socket)
        })
        .collect();
    let mut port = |port,
                    [metadata_in, metadata_out]: [&'static mut [udp::PacketMetadata]; 2],
                    [bytes_in, bytes_out]: [&'static mut [u8]; 2]| {
        let mut socket = udp::Socket::new(
            udp::PacketBuffer::new(metadata_in, bytes_in),
            udp::PacketBuffer::new(metadata_out, bytes_out),
        );
        socket.bind(port).expect("the port is free");
        sockets.add(socket)
    };
    let echo = port(
        7,
        ECHO_METADATA.take().each_mut().map(|part| &mut part[..]),
        ECHO_BYTES.take().each_mut().map(Bytes::lend),
    );
    let quit = port(
        9,
        QUIT_METADATA.take().each_mut().map(|part| &mut part[..]),
        QUIT_BYTES.take().each_mut().map(Bytes::lend),
    );
    let scratch = SCRATCH.take().lend();
    println!("READY");
    loop {
        let now = moment(clock.now());
        interface.poll_maintenance(now);
        while interface.poll_ingress_single(now, &mut device, &mut sockets)
            != PollIngressSingleResult::None
        {
            for handle in &streams {
                serve_stream(sockets.get_mut(*handle), scratch);
            }
            serve_datagrams(sockets.get_mut(echo), scratch);
        }
        for handle in &streams {
            serve_stream(sockets.get_mut(*handle), scratch);
        }
        if let Ok((b"quit", _)) = sockets.get_mut::<udp::Socket>(quit).recv() {
            println!("deepest stack {}", stack::deepest());
            exit::success();
        }
        while interface.poll_egress(now, &mut device, &mut sockets) != PollResult::None {}
        let at = interface.poll_at(moment(clock.now()), &sockets);
        let at = at.map_or(Instant::NEVER, |at| {
            Instant::from_micros(at.total_micros() as u64)
        });
        rest::until(at, &mut clock, || device.has_frame());
    }
}

fn moment(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.as_micros() as i64)
}

fn serve_stream(socket: &mut tcp::Socket<'_>, scratch: &mut [u8]) {
    if !socket.is_open() {
        socket.listen(7).expect("it is closed");
    }
    let room = (socket.send_capacity() - socket.send_queue()).min(scratch.len());
    if socket.can_recv() && room > 0 {
        let len = socket.recv_slice(&mut scratch[..room]).unwrap_or(0);
        let _ = socket.send_slice(&scratch[..len]);
    }
    if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
        socket.close();
    }
}

fn serve_datagrams(socket: &mut udp::Socket<'_>, scratch: &mut [u8]) {
    while let Ok((len, from)) = socket.recv_slice(scratch) {
        let _ = socket.send_slice(&scratch[..len], from.endpoint);
    }
}
