//! What an application sees of datagram connections on the mio driver.

mod closing;
mod messages;
mod peers;
mod spread;

use cubenet_mio::{
    CloseReason, Connection, Frame, FullPolicy, Handler, Limits, Link, Message, Network, SendError,
    Timeout, Transport, TransportError,
};
use cubenet_tests::system::{ICMP, tells_destination, wine_cannot};
use cubenet_tests::{Event, PATIENCE, Reports, echo, eventually, ignore, pattern};
use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

fn network(limits: Limits) -> Network {
    Network::builder()
        .workers(2)
        .limits(limits)
        .start()
        .unwrap()
}

/// A plain socket that receives from `server` alone.
fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let len = socket.recv(&mut buffer).expect("a datagram arrives");
    buffer.truncate(len);
    buffer
}

fn receives_nothing(socket: &UdpSocket) {
    socket
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    assert!(socket.recv(&mut [0; 10]).is_err());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
}

struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(&message).unwrap();
    }
}
