//! What an application sees of datagram connections on the mio driver.

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

fn hears_nothing(socket: &UdpSocket) {
    socket
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    assert!(socket.recv(&mut [0; 10]).is_err());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
}

#[test]
fn a_peer_is_accepted_when_it_first_speaks_and_hears_every_size_back() {
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
fn an_empty_datagram_closes_and_a_close_sends_one() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, ignore);
    let socket = client(address);
    socket.send(b"hello").unwrap();
    server.opened();
    assert_eq!(server.received(), b"hello");
    socket.send(b"").unwrap();
    assert_eq!(server.closed(), CloseReason::Peer);
    hears_nothing(&socket);
    socket.send(b"again").unwrap();
    let connection = server.opened();
    assert_eq!(server.received(), b"again");
    connection.send(b"bye").unwrap();
    connection.close();
    assert_eq!(server.closed(), CloseReason::Local);
    assert_eq!(receive(&socket), b"bye");
    assert_eq!(receive(&socket), b"");
    assert_eq!(connection.send(b"late"), Err(SendError::Closed));
}

#[test]
fn what_a_callback_sends_before_it_closes_arrives_before_the_close_datagram() {
    struct Bye(Connection);
    impl Handler for Bye {
        fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
            link.send(b"1").unwrap();
            self.0.send(b"2").unwrap();
            link.close();
            assert_eq!(self.0.send(b"3"), Err(SendError::Closed));
        }
    }
    let network = network(Limits::default());
    let accepted = |connection: &Connection| Some(Bye(connection.clone()));
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", accepted)
        .unwrap();
    let socket = client(listener.local_addr());
    socket.send(b"go").unwrap();
    for expected in [&b"1"[..], b"2", b""] {
        assert_eq!(receive(&socket), expected);
    }
    eventually("nothing is left", || network.metrics().open == 0);
}

#[test]
fn both_ends_can_be_ours() {
    let network = network(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, echo);
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Udp, address, ignore);
    connection.send(b"hello").unwrap();
    assert_eq!(client.opened().peer_addr(), address);
    assert_eq!(client.received(), b"hello");
    connection.close();
    assert_eq!(client.closed(), CloseReason::Local);
    assert_eq!(server.closed_at_last(), CloseReason::Peer);
    eventually("nothing is left", || network.metrics().open == 0);
}

#[test]
fn silence_closes_after_the_idle_time() {
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
fn a_datagram_over_the_limit_is_dropped_counted_and_told() {
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
fn a_full_table_refuses_newcomers_without_a_word() {
    let network = network(Limits::new().with_max_peers(2));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Udp, echo);
    let sockets: Vec<_> = (0..5).map(|_| client(address)).collect();
    for socket in &sockets {
        socket.send(b"hello").unwrap();
    }
    for (nth, socket) in sockets.iter().enumerate() {
        if nth < 2 {
            assert_eq!(receive(socket), b"hello");
        } else {
            hears_nothing(socket);
        }
    }
    assert_eq!(network.metrics().dropped_table_full, 3);
    assert_eq!(network.metrics().open, 2);
}

#[test]
fn a_full_table_can_give_the_place_of_the_longest_silent_to_a_newcomer() {
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
fn a_listener_kept_after_the_stop_keeps_no_port() {
    let network = network(Limits::default());
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", |_| Some(Echo))
        .unwrap();
    network.stop(Duration::ZERO);
    UdpSocket::bind(listener.local_addr()).unwrap();
    listener.close();
}

#[test]
fn a_connect_to_an_address_that_the_system_makes_precise_gets_the_answer() {
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
    let metrics = network.metrics();
    assert_eq!(
        (metrics.messages_out, metrics.bytes_out),
        (2, 10),
        "both ends are ours"
    );
}

#[test]
fn who_is_turned_away_gets_no_answer_and_is_asked_about_again() {
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
    hears_nothing(&socket);
    assert_eq!(network.metrics().open, 0);
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
    for _ in 0..20 {
        client(address).send(b"gone at once").unwrap();
        let connection = server.opened();
        server.received();
        connection.send(b"lost").unwrap();
    }
    let socket = client(address);
    socket.send(b"still here").unwrap();
    server.opened();
    assert_eq!(server.received(), b"still here");
}

#[test]
fn closing_a_listener_leaves_its_connections_and_frees_the_port_with_the_last() {
    let network = network(Limits::default());
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", |_| Some(Echo))
        .unwrap();
    let address = listener.local_addr();
    let socket = client(address);
    socket.send(b"in").unwrap();
    assert_eq!(receive(&socket), b"in");
    listener.close();
    client(address).send(b"late").unwrap();
    eventually("it is dropped", || {
        network.metrics().dropped_not_admitted == 1
    });
    socket.send(b"still").unwrap();
    assert_eq!(receive(&socket), b"still");
    assert!(UdpSocket::bind(address).is_err(), "the socket is theirs");
    socket.send(b"").unwrap();
    eventually("the port is free", || UdpSocket::bind(address).is_ok());
}

struct Echo;
impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(&message).unwrap();
    }
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

#[test]
fn a_handler_that_panics_closes_its_own_connection_and_harms_no_other_on_the_socket() {
    struct Panics;
    impl Handler for Panics {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            assert!(&*message != b"panic", "on purpose");
            link.send(&message).unwrap();
        }
    }
    let network = network(Limits::default());
    let listener = network
        .listen(Transport::Udp, "127.0.0.1:0", |_| Some(Panics))
        .unwrap();
    let (one, other) = (client(listener.local_addr()), client(listener.local_addr()));
    for socket in [&one, &other] {
        socket.send(b"hello").unwrap();
        assert_eq!(receive(socket), b"hello");
    }
    one.send(b"panic").unwrap();
    other.send(b"fine").unwrap();
    assert_eq!(receive(&other), b"fine");
    eventually("it is closed", || {
        network.metrics().closed(CloseReason::Panicked) == 1
    });
    assert_eq!(network.metrics().open, 1);
}

#[test]
fn an_answer_comes_from_the_address_that_was_spoken_to() {
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

/// Sends, and then does as the message says.
struct Regrets;
impl Handler for Regrets {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(b"regretted").unwrap();
        match &*message {
            b"panic" => panic!("on purpose"),
            b"abort" => link.abort(),
            _ => {}
        }
    }
}

#[test]
fn what_a_callback_sends_before_it_panics_aborts_or_refuses_is_not_sent() {
    let network = network(Limits::default());
    let refuses = |connection: &Connection| {
        connection.send(b"regretted").unwrap();
        None::<Regrets>
    };
    let refusing = network.listen(Transport::Udp, "127.0.0.1:0", refuses);
    let refusing = refusing.unwrap().local_addr();
    let panics = |connection: &Connection| -> Option<Regrets> {
        connection.send(b"regretted").unwrap();
        panic!("on purpose");
    };
    let panicking = network.listen(Transport::Udp, "127.0.0.1:0", panics);
    let panicking = panicking.unwrap().local_addr();
    let regretting = network.listen(Transport::Udp, "127.0.0.1:0", |_| Some(Regrets));
    let regretting = regretting.unwrap().local_addr();
    for (address, message) in [
        (refusing, &b"hello"[..]),
        (panicking, b"hello"),
        (regretting, b"panic"),
        (regretting, b"abort"),
    ] {
        let socket = client(address);
        socket.send(message).unwrap();
        hears_nothing(&socket);
    }
    // What the callback before it sent, of the same batch, is.
    let socket = client(regretting);
    socket.send(b"keep").unwrap();
    assert_eq!(receive(&socket), b"regretted");
    for message in [b"keep", b"keep", b"abort"] as [&[u8]; 3] {
        socket.send(message).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(receive(&socket), b"regretted");
    }
    hears_nothing(&socket);
}

/// Elsewhere a socket's buffer is too small for what is sent before the close.
#[cfg(target_os = "linux")]
#[test]
fn a_close_from_another_thread_goes_out_behind_everything_that_was_sent() {
    struct Echo;
    impl Handler for Echo {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            let _ = link.send(&message);
        }
    }
    let network = network(Limits::default());
    let (opened, is_opened) = std::sync::mpsc::channel();
    // Once: what a client sends after the close is turned away.
    let known = std::sync::Arc::new(std::sync::Mutex::new(HashSet::new()));
    let of_listener = std::sync::Arc::clone(&known);
    let accepted = move |connection: &Connection| {
        let is_new = of_listener.lock().unwrap().insert(connection.peer_addr());
        is_new.then(|| {
            opened.send(connection.clone()).unwrap();
            Echo
        })
    };
    let listener = network.listen(Transport::Udp, "127.0.0.1:0", accepted);
    let address = listener.unwrap().local_addr();
    for _ in 0..200 {
        // The system may give a port out again.
        known.lock().unwrap().clear();
        let socket = client(address);
        for _ in 0..20 {
            socket.send(b"answered in a callback").unwrap();
        }
        let connection = is_opened.recv_timeout(PATIENCE).unwrap();
        let sending = std::thread::spawn({
            let connection = connection.clone();
            // No more than the socket's buffer holds, or the close could be lost.
            move || (0..50).all(|_| connection.send(b"sent from outside").is_ok())
        });
        connection.close();
        let _ = sending.join().unwrap();
        while !receive(&socket).is_empty() {}
        // What follows the close would make a new connection at a peer of ours.
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        assert!(socket.recv(&mut [0; 100]).is_err());
    }
}
