//! What a `tracing` subscriber may do, and how often it is called. It is one for the whole
//! process, so these tests are one.

use cubenet_mio::{Connection, Handler, Limits, Link, Message, Network, Transport};
use cubenet_tests::{RawClient, Reports, echo, eventually, framed};
use socket2::SockRef;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The connections that the subscriber sends on, at every event.
static CONNECTIONS: Mutex<Vec<Connection>> = Mutex::new(Vec::new());
static PANICS: AtomicBool = AtomicBool::new(false);
static LINES: AtomicUsize = AtomicUsize::new(0);
static WARNINGS: AtomicUsize = AtomicUsize::new(0);

struct Sends;

impl Subscriber for Sends {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _attributes: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if !event.metadata().target().starts_with("cubenet") {
            return;
        }
        LINES.fetch_add(1, Relaxed);
        if *event.metadata().level() <= Level::WARN {
            WARNINGS.fetch_add(1, Relaxed);
        }
        let connections = CONNECTIONS.lock().unwrap().clone();
        for connection in connections {
            let _ = connection.send(b"an event");
            let _ = connection.queued();
            connection.pause();
            connection.resume();
        }
        assert!(!PANICS.load(Relaxed), "on purpose");
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// Sends each event, and panics if the test says so.
struct Handles(Connection);
impl Handler for Handles {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        for _ in 0..20 {
            let _ = link.send(&[7; 9_000]);
        }
        assert_ne!(&*message, b"panic", "on purpose");
    }
}

#[allow(clippy::unnecessary_wraps)] // what `listen` takes
fn accepted(connection: &Connection) -> Option<Handles> {
    let mut connections = CONNECTIONS.lock().unwrap();
    connections.push(connection.clone());
    if connections.len() > 6 {
        connections.remove(0);
    }
    drop(connections);
    Some(Handles(connection.clone()))
}

impl Drop for Handles {
    fn drop(&mut self) {
        let _ = self.0.send(b"dropped");
    }
}

fn is_alive(network: &Network) {
    let address = Reports::default().listen(network, Transport::Tcp, echo);
    let mut clients: Vec<_> = (0..8).map(|_| RawClient::connect(address)).collect();
    for client in &mut clients {
        client.send(b"alive");
        assert_eq!(client.receive(), b"alive");
    }
}

#[test]
fn a_subscriber_may_use_connections_and_panic_and_is_not_flooded() {
    tracing::subscriber::set_global_default(Sends).unwrap();
    // Nothing is printed of panics on purpose.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        if !thread
            .name()
            .is_some_and(|name| name.starts_with("cubenet"))
        {
            print(panic);
        }
    }));
    let limits = Limits::new()
        .with_max_message(1_000)
        .with_max_queued(70_000)
        .with_low_watermark(1_000);
    let network = Network::builder()
        .workers(2)
        .limits(limits)
        .start()
        .unwrap();
    let streams = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    let datagrams = network
        .listen(Transport::Udp, "127.0.0.1:0", accepted)
        .unwrap();
    for panics in [false, true] {
        PANICS.store(panics, Relaxed);
        for nth in 0..60 {
            // Writes that fail: the peer is gone when the handler answers.
            let mut client = RawClient::connect(streams.local_addr());
            client.write(&framed(&[nth; 10]));
            SockRef::from(&client.stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(client);
            // A datagram that cannot be sent: it is over what the peer's path carries.
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"hello", datagrams.local_addr()).unwrap();
            // A frame that is too long, and a panic.
            let mut client = RawClient::connect(streams.local_addr());
            let _ = client.stream.write_all(&[0xff; 10]);
            let mut client = RawClient::connect(streams.local_addr());
            client.write(&framed(b"panic"));
            let _ = client.rest();
        }
        CONNECTIONS.lock().unwrap().clear();
        is_alive(&network);
    }
    PANICS.store(false, Relaxed);
    // Panics without end: a line or two a second.
    let before = WARNINGS.load(Relaxed);
    let start = Instant::now();
    for _ in 0..500 {
        let mut client = RawClient::connect(streams.local_addr());
        client.write(&framed(b"panic"));
        let _ = client.rest();
    }
    eventually("all have panicked", || network.metrics().panics >= 620);
    let lines = WARNINGS.load(Relaxed) - before;
    let kinds = 6;
    let allowed = kinds * (2 + start.elapsed().as_secs() as usize);
    assert!(lines <= allowed, "{lines} lines");
    assert!(LINES.load(Relaxed) > 0);
}
