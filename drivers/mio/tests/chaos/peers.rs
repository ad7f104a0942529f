//! Peers of plain sockets, which keep to no rule.

use crate::world::{World, lock};
use cubenet_mio::Transport;
use fastrand::Rng;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Bothers the listeners as chance says.
pub(crate) fn act(world: &Arc<World>, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut streams: Vec<TcpStream> = Vec::new();
    while world.may_act() {
        let addresses = lock(&world.addresses);
        let address = rng.choice(addresses.iter()).copied();
        drop(addresses);
        match address {
            Some((Transport::Udp, address)) => datagram(&mut rng, address),
            Some((Transport::Tcp, address)) if streams.len() < 10 => {
                if let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(50))
                {
                    let _ = stream.set_nonblocking(true);
                    streams.push(stream);
                }
            }
            _ => {}
        }
        for _ in 0..3 {
            if streams.is_empty() {
                break;
            }
            let nth = rng.usize(0..streams.len());
            match rng.u8(0..10) {
                0..5 => drop(streams[nth].write(&bytes(&mut rng))),
                5..7 => drop(streams[nth].read(&mut vec![0; 10_000])),
                7 => drop(SockRef::from(&streams[nth]).send_out_of_band(b"\0")),
                8 => drop(streams.swap_remove(nth)),
                _ => {
                    let stream = streams.swap_remove(nth);
                    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                }
            }
        }
        std::thread::sleep(Duration::from_micros(rng.u64(0..500)));
    }
}

fn datagram(rng: &mut Rng, to: SocketAddr) {
    // Some speak once, from an address of their own.
    if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
        for _ in 0..rng.usize(1..5) {
            let mut datagram = vec![0xff; *rng.choice(&[0, 8, 100, 3_000]).unwrap_or(&0)];
            rng.fill(&mut datagram);
            let _ = socket.send_to(&datagram, to);
        }
    }
}

/// Frames, parts of frames, and nonsense.
fn bytes(rng: &mut Rng) -> Vec<u8> {
    let len = *rng.choice(&[0, 4, 8, 300, 5_000, 60_000]).unwrap_or(&0);
    let mut frame = vec![0xff; len];
    rng.fill(&mut frame);
    let header = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = [&header[..], &frame].concat().repeat(rng.usize(1..3));
    match rng.u8(0..6) {
        0 => bytes.truncate(rng.usize(0..=bytes.len())),
        1 => rng.fill(&mut bytes),
        2 => bytes = vec![0; 2_000],
        _ => {}
    }
    bytes
}
