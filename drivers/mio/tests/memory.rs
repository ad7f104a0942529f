//! What messages and idle connections cost in memory, counted at the allocator.

use cubenet_mio::{Connection, Handler, Limits, Link, Message, Transport};
use cubenet_tests::allocation::{self, Counting};
use cubenet_tests::system::BYTES_OF_WATCHED;
use cubenet_tests::{RawClient, eventually, framed, one_worker};
use std::net::UdpSocket;
use std::sync::mpsc::sync_channel as channel;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of the heap that an idle TCP connection may take.
const IDLE_BYTES: usize = 256 + BYTES_OF_WATCHED;

struct Echo;
impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(&message).unwrap();
    }
}

// One test, so that nothing else allocates meanwhile.
#[test]
fn small_messages_allocate_nothing_and_idle_connections_next_to_nothing() {
    let network = one_worker(Limits::default());
    let (opened, handles) = channel(2);
    let accept = move |connection: &Connection| {
        // Those that are accepted while what they cost is counted are not kept.
        let _ = opened.try_send(connection.clone());
        Some(Echo)
    };
    let streams = network
        .listen(Transport::Tcp, "127.0.0.1:0", accept.clone())
        .unwrap();
    let datagrams = network
        .listen(Transport::Udp, "127.0.0.1:0", accept)
        .unwrap();

    let mut client = RawClient::connect(streams.local_addr());
    let batch = framed(b"a small message").repeat(32);
    let mut back = vec![0; batch.len()];
    let mut round = || {
        client.write(&batch);
        std::io::Read::read_exact(&mut client.stream, &mut back).unwrap();
    };
    (0..20).for_each(|_| round());
    let before = allocation::calls();
    (0..1_000).for_each(|_| round());
    let allocations = allocation::calls() - before;
    // A batch can arrive in two reads that cut a message; then that message is put together.
    assert!(
        allocations <= 100,
        "{allocations} allocations for 32,000 messages"
    );

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(datagrams.local_addr()).unwrap();
    let round = || {
        socket.send(b"a small message").unwrap();
        assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 15);
    };
    (0..20).for_each(|_| round());
    let before = allocation::calls();
    (0..1_000).for_each(|_| round());
    assert_eq!(allocation::calls() - before, 0);

    // What a thread sends in batches.
    let connections = handles.try_iter().collect::<Vec<_>>();
    assert_eq!(connections.len(), 2);
    let mut back = [0; 5 * 17];
    let mut round = || {
        Connection::batch(|| {
            for _ in 0..5 {
                for connection in &connections {
                    connection.send(b"a small message").unwrap();
                }
            }
        });
        std::io::Read::read_exact(&mut client.stream, &mut back).unwrap();
        (0..5).for_each(|_| assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 15));
    };
    (0..20).for_each(|_| round());
    let before = allocation::calls();
    (0..1_000).for_each(|_| round());
    assert_eq!(allocation::calls() - before, 0);

    let count = 400;
    let mut clients = Vec::with_capacity(count);
    let before = allocation::live_bytes();
    clients.extend((0..count).map(|_| RawClient::connect(streams.local_addr())));
    eventually("all are open", || {
        network.metrics().open == count as u64 + 2
    });
    for client in &mut clients {
        client.send(b"hello");
        assert_eq!(client.receive(), b"hello");
    }
    let each = (allocation::live_bytes() - before).unsigned_abs() / count;
    println!("{each} bytes of heap for each idle TCP connection");
    assert!(each <= IDLE_BYTES, "{each} bytes");
}
