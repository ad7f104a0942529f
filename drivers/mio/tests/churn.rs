//! Thousands of connections that open, send, close and abort in random order from several
//! threads; at the end nothing is left of them: no entry, no descriptor, no byte.

use cubenet_mio::{
    CloseReason, ConnectError, Connection, Handler, Limits, Link, Message, Network, SendError,
    Transport,
};
use cubenet_tests::allocation::{self, Counting};
use cubenet_tests::eventually;
use cubenet_tests::system::{is_wine, open_descriptors};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const THREADS: u64 = 4;
/// How often each thread does that. Under Wine twelve rounds take minutes, and three take seconds.
fn rounds() -> usize {
    if is_wine() { 3 } else { 12 }
}
/// Connections of one thread in one round; the sum of all threads, and both ends of each,
/// stay below a thousand descriptors.
const AT_ONCE: usize = 60;

static HANDLERS: AtomicUsize = AtomicUsize::new(0);
static CLOSED: AtomicUsize = AtomicUsize::new(0);

/// Does, on each message, what the message's first byte says.
struct Whimsical {
    closed: bool,
}

impl Whimsical {
    fn new() -> Self {
        HANDLERS.fetch_add(1, SeqCst);
        Whimsical { closed: false }
    }
}

impl Handler for Whimsical {
    fn connect_failed(&mut self, _error: ConnectError) {
        assert!(!self.closed, "closed is called once");
        self.closed = true;
        CLOSED.fetch_add(1, SeqCst);
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        assert!(!self.closed, "a message after the close");
        match message.first() {
            Some(0) => link.close(),
            Some(1) => link.abort(),
            Some(2) => link.pause(),
            Some(3) => {
                let _ = link.send(&vec![7; 30_000]);
            }
            _ => {
                let _ = link.send(&message);
            }
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        assert!(!self.closed, "closed twice");
        self.closed = true;
        CLOSED.fetch_add(1, SeqCst);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % bound
    }
}

fn act(connections: &mut Vec<Connection>, random: &mut Random) {
    let at = random.below(connections.len() as u64) as usize;
    let connection = &connections[at];
    match random.below(20) {
        0 => connection.close(),
        1 => connection.abort(),
        2 => connection.pause(),
        3 => connection.resume(),
        4 => drop(connections.swap_remove(at)),
        byte => {
            let len = random.below(if byte > 17 { 40_000 } else { 200 }) as usize;
            let mut message = vec![byte as u8; len + 1];
            message[0] = random.below(40) as u8;
            let answer = connection.send(message);
            assert!(matches!(
                answer,
                Ok(()) | Err(SendError::Closed | SendError::Full)
            ));
        }
    }
}

fn churn(network: &Network, addresses: [SocketAddr; 2], seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..rounds() {
        let mut connections = Vec::new();
        for _ in 0..AT_ONCE {
            let udp = random.below(2) as usize;
            let transport = [Transport::Tcp, Transport::Udp][udp];
            let connection = network.connect(transport, addresses[udp], |_| Whimsical::new());
            connections.push(connection.expect("there are descriptors enough"));
            act(&mut connections, &mut random);
            if connections.is_empty() {
                break;
            }
        }
        for _ in 0..AT_ONCE * 10 {
            if !connections.is_empty() {
                act(&mut connections, &mut random);
            }
        }
        for connection in connections {
            // A connection that was paused must see the other end's close.
            if random.below(2) == 0 {
                connection.abort();
            } else {
                connection.close();
            }
        }
    }
}

#[test]
fn nothing_is_left_of_thousands_of_connections() {
    run_network(1);
    // The first run leaves what the process keeps for good: thread locals, tables of tracing.
    let (descriptors, bytes) = (open_descriptors(), allocation::live_bytes());
    run_network(THREADS);
    assert_eq!(open_descriptors(), descriptors, "descriptors");
    let left = allocation::live_bytes() - bytes;
    assert!(left.abs() < 4_096, "{left} bytes are left");
}

fn run_network(threads: u64) {
    let limits = Limits::new()
        // Short, so that what was abandoned ends within the test.
        .with_stream_idle_timeout(Duration::from_secs(2))
        .with_datagram_idle_timeout(Duration::from_secs(1))
        .with_write_stall_timeout(Duration::from_secs(1))
        .with_drain_timeout(Duration::from_secs(1))
        .with_max_queued(200_000)
        .with_low_watermark(50_000);
    let network = Network::builder()
        .workers(2)
        .limits(limits)
        .start()
        .unwrap();
    let addresses = [Transport::Tcp, Transport::Udp].map(|transport| {
        let accepted = |_: &Connection| Some(Whimsical::new());
        let listener = network.listen(transport, "127.0.0.1:0", accepted);
        listener.unwrap().local_addr()
    });
    let churning: Vec<_> = (1..=threads)
        .map(|seed| {
            let network = network.clone();
            thread::spawn(move || churn(&network, addresses, seed))
        })
        .collect();
    for thread in churning {
        thread.join().unwrap();
    }
    // Those that were paused by a message are never resumed, and so never idle: they end
    // with the network.
    network.stop(Duration::from_secs(2));
    let metrics = network.metrics();
    assert_eq!(metrics.open, 0, "{metrics}");
    assert_eq!(metrics.queued_bytes, 0, "{metrics}");
    assert_eq!(metrics.panics, 0, "{metrics}");
    let opened = metrics.accepted + metrics.connected + metrics.connect_failed;
    assert_eq!(opened, metrics.closed_total(), "{metrics}");
    assert!(
        metrics.messages_in > 0 && metrics.messages_out > 0,
        "{metrics}"
    );
    drop(network);
    eventually("every handler was closed, once", || {
        CLOSED.load(SeqCst) == HANDLERS.load(SeqCst)
    });
}
