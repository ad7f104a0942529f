//! Many peers on one socket: the table of peers, idle peers, refused ones.

use super::*;

#[test]
fn many_peers_share_a_socket_and_each_has_a_connection() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, echo);
    let sockets: Vec<_> = (0..500).map(|_| client(address)).collect();
    for round in 0..3_u8 {
        for (nth, socket) in sockets.iter().enumerate() {
            socket
                .send(&[&[round][..], &nth.to_be_bytes()].concat())
                .unwrap();
            assert_eq!(receive(socket), [&[round][..], &nth.to_be_bytes()].concat());
        }
    }
    let mut ids = HashSet::new();
    for _ in 0..500 + 3 * 500 {
        if let Event::Opened(connection) = server.next() {
            assert!(ids.insert(connection.id()));
        }
    }
    assert_eq!(ids.len(), 500);
    assert_eq!(network.metrics().open, 500);
}

#[test]
fn an_idle_peer_is_closed_after_the_idle_time() {
    let network = network(Limits::new().with_datagram_idle_timeout(Duration::from_millis(300)));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, ignore);
    let socket = client(address);
    for _ in 0..4 {
        socket.send(b"here").unwrap();
        std::thread::sleep(Duration::from_millis(150));
    }
    let silent_since = Instant::now();
    server.opened();
    for _ in 0..4 {
        assert_eq!(server.received(), b"here");
    }
    assert_eq!(server.closed(), CloseReason::Timeout(Timeout::Idle));
    assert!(silent_since.elapsed() >= Duration::from_millis(100));
    assert_eq!(network.metrics().open, 0);
}

#[test]
fn a_full_table_refuses_new_peers_without_an_answer() {
    let network = network(Limits::new().with_max_peers(2));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, echo);
    let sockets: Vec<_> = (0..5).map(|_| client(address)).collect();
    // One after another: each may have another worker.
    for (nth, socket) in sockets.iter().enumerate() {
        socket.send(b"hello").unwrap();
        if nth < 2 {
            assert_eq!(receive(socket), b"hello");
        } else {
            receives_nothing(socket);
        }
    }
    assert_eq!(network.metrics().dropped_table_full, 3);
    assert_eq!(network.metrics().open, 2);
}

#[test]
fn a_full_table_can_evict_the_peer_that_is_idle_longest() {
    let network = network(
        Limits::new()
            .with_max_peers(2)
            .with_full_policy(FullPolicy::EvictIdleFor(Duration::from_millis(50))),
    );
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, ignore);
    let sockets: Vec<_> = (0..3).map(|_| client(address)).collect();
    sockets[0].send(b"first").unwrap();
    let first = server.opened();
    assert_eq!(server.received(), b"first");
    sockets[1].send(b"second").unwrap();
    server.opened();
    assert_eq!(server.received(), b"second");
    std::thread::sleep(Duration::from_millis(60));
    sockets[2].send(b"third").unwrap();
    assert_eq!(
        server.opened().peer_addr(),
        sockets[2].local_addr().unwrap()
    );
    assert_eq!(server.closed(), CloseReason::Overflow);
    assert!(first.is_closed());
    assert_eq!(server.received(), b"third");
    sockets[1].send(b"still here").unwrap();
    assert_eq!(server.received(), b"still here");
}

#[test]
fn no_peer_is_evicted_for_one_that_is_not_admitted() {
    let limits = Limits::new()
        .with_max_peers(1)
        .with_full_policy(FullPolicy::EvictIdleFor(Duration::from_millis(1)));
    let network = network(limits);
    let first = std::sync::atomic::AtomicBool::new(true);
    let accept_the_first = move |_: &Connection| {
        let first = first.swap(false, std::sync::atomic::Ordering::SeqCst);
        first.then_some(Echo)
    };
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", accept_the_first)
        .unwrap();
    let address = listener.local_addr();
    let socket = client(address);
    socket.send(b"in").unwrap();
    assert_eq!(receive(&socket), b"in");
    std::thread::sleep(Duration::from_millis(20));
    client(address).send(b"turned away").unwrap();
    eventually("it is turned away", || network.metrics().refused == 1);
    listener.close();
    std::thread::sleep(Duration::from_millis(20));
    client(address).send(b"too late").unwrap();
    eventually("it is dropped", || {
        network.metrics().dropped_not_admitted == 2
    });
    socket.send(b"still").unwrap();
    assert_eq!(receive(&socket), b"still");
}

#[test]
fn a_refused_peer_gets_no_answer_and_is_asked_about_again() {
    let network = network(Limits::default());
    let refuse = |_: &Connection| None::<cubenet_tests::Reporter>;
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", refuse)
        .unwrap();
    let socket = client(listener.local_addr());
    socket.send(b"one").unwrap();
    socket.send(b"two").unwrap();
    socket.send(b"").unwrap();
    eventually("both are counted", || network.metrics().refused == 2);
    eventually("and the stray close datagram", || {
        network.metrics().dropped_empty == 1
    });
    receives_nothing(&socket);
    assert_eq!(network.metrics().open, 0);
}

#[test]
fn peers_of_both_families_reach_a_dual_stack_listener() {
    let network = network(Limits::default());
    let listener = network
        .listen(Transport::Udp, "[::]:0", |_| Some(Echo))
        .unwrap();
    let port = listener.local_addr().port();
    for host in ["127.0.0.1", "::1"] {
        let any = if host == "::1" { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect((host, port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for size in [5, 1_000] {
            socket.send(&pattern(size)).unwrap();
            assert_eq!(receive(&socket), pattern(size));
        }
    }
}
