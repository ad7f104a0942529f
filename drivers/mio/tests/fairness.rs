//! How long one connection, or one peer, can make the others of its worker wait.

use cubenet_mio::{CloseReason, Connection, Handler, Limits, Link, Message, Network, Transport};
use cubenet_tests::{PATIENCE, RawClient, eventually, one_worker};
use socket2::SockRef;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// Sends back what it receives, and takes its time for a message that begins with `slow`, and
/// for its end.
struct Slow {
    message: Duration,
    end: Duration,
}

impl Handler for Slow {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if message.starts_with(b"slow") {
            thread::sleep(self.message);
        }
        let _ = link.send(&message);
    }

    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        thread::sleep(self.end);
    }
}

fn listen(network: &Network, transport: Transport, message: u64, end: u64) -> SocketAddr {
    let [message, end] = [message, end].map(Duration::from_micros);
    let accepted = move |_: &Connection| Some(Slow { message, end });
    let listener = network.listen(transport, "127.0.0.1:0", accepted);
    listener.unwrap().local_addr()
}

/// The longest time that another connection of the worker waits for an answer.
fn longest_wait(server: SocketAddr, until: impl Fn() -> bool) -> Duration {
    let mut client = RawClient::connect(server);
    let mut longest = Duration::ZERO;
    while !until() {
        let start = Instant::now();
        client.send(b"quick");
        assert_eq!(client.receive(), b"quick");
        longest = longest.max(start.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    longest
}

#[test]
fn a_peer_whose_messages_come_one_a_read_does_not_keep_others_waiting() {
    let network = one_worker(Limits::default());
    let server = listen(&network, Transport::Tcp, 2_000, 0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = RawClient::connect(server);
            client.stream.set_nodelay(true).unwrap();
            // With urgent data, a short read does not tell the server that there is no more.
            client.write(b"\0\x05slow");
            SockRef::from(&client.stream)
                .send_out_of_band(b"!")
                .unwrap();
            // There is always another message when the worker has answered one.
            client.send(b"slow");
            while !done.load(Relaxed) {
                client.receive();
                thread::sleep(Duration::from_micros(600));
                client.send(b"slow");
            }
        });
        let start = Instant::now();
        let longest = longest_wait(server, || start.elapsed() > Duration::from_secs(3));
        done.store(true, Relaxed);
        assert!(longest < Duration::from_millis(500), "{longest:?}");
    });
}

#[test]
fn many_peers_that_expire_at_once_do_not_keep_others_waiting() {
    let limits = Limits::new().with_datagram_idle_timeout(Duration::from_secs(1));
    let network = one_worker(limits);
    let datagrams = listen(&network, Transport::Udp, 0, 2_000);
    let streams = listen(&network, Transport::Tcp, 0, 0);
    let sockets: Vec<_> = (0..500)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    for socket in &sockets {
        socket.send_to(b"hello", datagrams).unwrap();
    }
    eventually("all are admitted", || network.metrics().accepted >= 500);
    // A second's worth of callbacks.
    let expired = CloseReason::Timeout(cubenet_mio::Timeout::Idle);
    let longest = longest_wait(streams, || network.metrics().closed(expired) >= 500);
    assert!(longest < Duration::from_millis(500), "{longest:?}");
}

#[test]
fn an_idle_peer_expires_though_others_are_busy() {
    let limits = Limits::new().with_datagram_idle_timeout(Duration::from_millis(300));
    let network = one_worker(limits);
    let server = listen(&network, Transport::Udp, 300, 0);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.send_to(b"hello", server).unwrap();
    eventually("it is admitted", || network.metrics().accepted == 1);
    let done = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            // Faster than they are served.
            while !done.load(Relaxed) {
                let _ = socket.send_to(b"slow", server);
                sent.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_micros(20));
            }
        });
        let start = Instant::now();
        let expired = CloseReason::Timeout(cubenet_mio::Timeout::Idle);
        while network.metrics().closed(expired) == 0 && start.elapsed() < PATIENCE / 2 {
            thread::sleep(Duration::from_millis(10));
        }
        let backlog = sent.load(Relaxed) as u64 - network.metrics().messages_in;
        done.store(true, Relaxed);
        assert!(backlog > 100, "they came faster than they were served");
        assert_eq!(network.metrics().closed(expired), 1);
        assert_eq!(network.metrics().open, 1);
    });
}
