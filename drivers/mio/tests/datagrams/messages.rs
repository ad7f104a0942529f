//! What arrives, and what comes back.

use super::*;

#[test]
fn a_peer_is_accepted_at_its_first_datagram_and_every_size_comes_back() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, echo);
    let socket = client(address);
    for (nth, size) in [1, 2, 255, 256, 1_452, 1_453, 9_000, 65_507]
        .into_iter()
        .enumerate()
    {
        socket.send(&pattern(size)).unwrap();
        if nth == 0 {
            let connection = server.opened();
            assert_eq!(connection.peer_addr(), socket.local_addr().unwrap());
            assert_eq!(connection.local_addr(), address);
            assert_eq!(connection.transport(), Transport::Udp);
        }
        assert_eq!(server.received(), pattern(size));
        assert_eq!(receive(&socket), pattern(size));
    }
}

#[test]
fn bursts_to_and_from_one_peer_keep_their_boundaries_and_order() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, echo);
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Udp, address, ignore);
    client.opened();
    // Equal sizes go out in runs; unequal ones and those beyond an Ethernet frame do not.
    let sizes = [
        100, 100, 100, 40, 100, 1_452, 1_452, 3, 1_453, 1_453, 1_200, 1_200,
    ];
    let burst: Vec<Vec<u8>> = sizes.iter().map(|size| pattern(*size)).collect();
    for _ in 0..20 {
        for message in &burst {
            connection.send(message).unwrap();
        }
        for message in &burst {
            assert_eq!(&client.received(), message);
        }
    }
}

#[test]
fn a_datagram_over_the_limit_is_dropped_counted_and_reported() {
    let network = network(Limits::new().with_max_datagram(100));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, ignore);
    let socket = client(address);
    socket.send(&pattern(101)).unwrap();
    eventually("it is counted", || network.metrics().dropped_too_long == 1);
    socket.send(&pattern(100)).unwrap();
    let connection = server.opened();
    assert_eq!(server.received(), pattern(100));
    socket.send(&pattern(5_000)).unwrap();
    let too_long = TransportError::DatagramTooLong {
        len: 5_000,
        limit: 100,
    };
    assert!(matches!(server.next(), Event::Error(error) if error == too_long));
    let refused = connection.send(pattern(101));
    assert_eq!(
        refused,
        Err(SendError::TooLong {
            len: 101,
            limit: 100
        })
    );
    assert_eq!(connection.send(b""), Err(SendError::Empty));
    assert!(!connection.is_closed());
}

#[test]
fn a_connect_to_an_unspecified_address_gets_the_answer() {
    let network = network(Limits::default());
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", |_| Some(Echo))
        .unwrap();
    let client = Reports::default();
    let address = SocketAddr::from(([0, 0, 0, 0], listener.local_addr().port()));
    let connection = client.connect(&network, Transport::Udp, address, ignore);
    client.opened();
    connection.send(b"hello").unwrap();
    assert_eq!(client.received(), b"hello");
    // Each worker counts at the end of its iteration; both ends are ours.
    eventually("both are counted", || {
        let metrics = network.metrics();
        (metrics.messages_out, metrics.bytes_out) == (2, 10)
    });
}

#[test]
fn a_connect_to_an_unused_port_gets_an_error_and_survives_until_a_socket_is_bound() {
    if wine_cannot(ICMP) {
        return;
    }
    let unused = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let network = network(Limits::default());
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Udp, address, ignore);
    client.opened();
    connection.send(b"anybody?").unwrap();
    assert!(matches!(
        client.next(),
        Event::Error(TransportError::Unreachable)
    ));
    assert!(!connection.is_closed());
    let late = UdpSocket::bind(address).unwrap();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.send(b"you?").unwrap();
    let mut buffer = [0; 10];
    let (len, from) = late.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"you?");
    late.send_to(b"me", from).unwrap();
    assert_eq!(client.received(), b"me");
}

#[test]
fn a_listener_survives_peers_whose_ports_have_closed() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, ignore);
    // All at once, so that none has the port of one that has gone.
    let mut sockets: Vec<_> = (0..21).map(|_| client(address)).collect();
    for gone in sockets.drain(1..) {
        gone.send(b"gone at once").unwrap();
        drop(gone);
        let connection = server.opened();
        server.received();
        connection.send(b"lost").unwrap();
    }
    sockets[0].send(b"still here").unwrap();
    server.opened();
    assert_eq!(server.received(), b"still here");
}

#[test]
fn datagrams_for_a_paused_connection_are_dropped_and_counted() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, ignore);
    let socket = client(address);
    socket.send(b"one").unwrap();
    let connection = server.opened();
    assert_eq!(server.received(), b"one");
    connection.pause();
    socket.send(b"two").unwrap();
    eventually("it is counted", || network.metrics().dropped_paused == 1);
    connection.resume();
    socket.send(b"three").unwrap();
    assert_eq!(server.received(), b"three");
}

#[test]
fn a_frame_goes_to_many_peers_without_its_header() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, ignore);
    let sockets: Vec<_> = (0..10).map(|_| client(address)).collect();
    let frame = Frame::new(&pattern(500)).unwrap();
    for socket in &sockets {
        socket.send(b"hello").unwrap();
        let connection = server.opened();
        server.received();
        connection.send_frame(&frame).unwrap();
    }
    for socket in &sockets {
        assert_eq!(receive(socket), pattern(500));
    }
}

#[test]
fn an_answer_comes_from_the_address_that_the_datagram_went_to() {
    if !tells_destination() {
        return;
    }
    let network = network(Limits::default());
    for any in ["0.0.0.0:0", "[::]:0"] {
        let server = Reports::default();
        let accepted = {
            let opened = server.opener();
            move |connection: &Connection| {
                opened(connection);
                Some(Echo)
            }
        };
        let listener = network.listen(Transport::Udp, any, accepted).unwrap();
        for host in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 3, 2, 1]] {
            let spoken_to = SocketAddr::from((host, listener.local_addr().port()));
            let socket = client(spoken_to);
            for size in [1, 1_200, 60_000] {
                socket.send(&pattern(size)).unwrap();
                assert_eq!(receive(&socket), pattern(size));
            }
            let connection = server.opened();
            assert_eq!(connection.local_addr(), spoken_to);
            // A run, too.
            for _ in 0..10 {
                connection.send(pattern(300)).unwrap();
            }
            for _ in 0..10 {
                assert_eq!(receive(&socket), pattern(300));
            }
        }
    }
}

/// How often the thread of this path under `/proc` has waited for something.
#[cfg(target_os = "linux")]
fn waits(thread: &std::path::Path) -> u64 {
    let status = std::fs::read_to_string(thread.join("status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("voluntary_ctxt_switches"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn what_another_thread_sends_does_not_wake_the_worker() {
    let network = network(Limits::default());
    let (sender, receiver) = std::sync::mpsc::channel();
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", move |connection| {
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            let worker = std::path::Path::new("/proc").join(thread);
            sender.send((connection.clone(), worker)).unwrap();
            Some(Echo)
        })
        .unwrap();
    let socket = client(listener.local_addr());
    socket.send(b"hello").unwrap();
    let (connection, worker) = receiver.recv_timeout(PATIENCE).unwrap();
    assert_eq!(receive(&socket), b"hello");
    let before = waits(&worker);
    for _ in 0..2_000 {
        connection.send(b"position").unwrap();
        receive(&socket);
    }
    let waits = waits(&worker) - before;
    assert!(waits < 100, "the worker woke {waits} times");
}
