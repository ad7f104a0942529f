//! Streams with a layer between the socket and their messages.

use cubenet_mio::{
    CloseReason, ConnectOptions, Connection, Ends, Error, Handler, Layer, Limits, Link,
    ListenOptions, Message, Network, Timeout, Transport,
};
use cubenet_tests::layer::{Flipped, end, record};
use cubenet_tests::{
    Act, Event, RawClient, Reports, echo, eventually, framed, ignore, network, network_with,
    one_worker, pattern,
};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const HELLO: Flipped = Flipped::new(b"hello");

fn listening(network: &Network, act: Act) -> (Reports, SocketAddr) {
    Reports::listen_layered(network, HELLO, act)
}

#[test]
fn messages_of_every_size_pass_both_ways_in_order() {
    let network = network();
    let (server, address) = listening(&network, echo);
    let (client, connection) = Reports::connect_layered(&network, address, HELLO);
    let sizes = [0, 1, 2, 255, 9_998, 10_000, 65_534, 65_535];
    for size in sizes {
        connection.send(pattern(size)).unwrap();
    }
    assert_eq!(
        client.opened().identity().unwrap().protocol(),
        Some("flipped")
    );
    assert_eq!(
        server.opened().identity().unwrap().protocol(),
        Some("flipped")
    );
    for size in sizes {
        assert_eq!(client.received(), pattern(size));
    }
    for number in 0_u32..2_000 {
        connection.send(number.to_be_bytes()).unwrap();
    }
    for number in 0_u32..2_000 {
        assert_eq!(client.received(), number.to_be_bytes());
    }
    connection.close();
    assert_eq!(client.closed(), CloseReason::Local);
    assert_eq!(server.closed_at_last(), CloseReason::Peer);
    let metrics = network.metrics();
    assert_eq!((metrics.open, metrics.handshaking), (0, 0));
    assert_eq!((metrics.queued_bytes, metrics.held_bytes), (0, 0));
}

#[test]
fn what_is_sent_before_the_handshake_is_delivered_even_if_the_connection_is_closed() {
    let network = network();
    let (server, address) = listening(&network, ignore);
    let (client, connection) = Reports::connect_layered(&network, address, HELLO);
    connection.send(b"early").unwrap();
    connection.close();
    server.opened();
    assert_eq!(server.received(), b"early");
    assert_eq!(server.closed(), CloseReason::Peer);
    let local = |event: Event| match event {
        Event::Failed(error) => error.reason() == CloseReason::Local,
        Event::Closed(reason) => reason == CloseReason::Local,
        _ => false,
    };
    while !local(client.next()) {}
}

#[test]
fn the_wire_is_as_the_layer_makes_it_and_every_byte_may_come_alone() {
    let network = network();
    let (server, address) = listening(&network, echo);
    let mut client = RawClient::connect(address);
    let sent = [&b"hello"[..], &record(&framed(b"abc")), &end()].concat();
    for byte in &sent {
        client.write(std::slice::from_ref(byte));
    }
    let answer = [&b"hello"[..], &record(&framed(b"abc")), &end()].concat();
    assert_eq!(client.rest().0, answer);
    server.opened();
    assert_eq!(server.received(), b"abc");
    assert_eq!(server.closed(), CloseReason::Peer);
}

#[test]
fn a_fin_without_the_end_of_the_layer_truncates() {
    let network = network();
    let (server, address) = listening(&network, ignore);
    let mut client = RawClient::connect(address);
    client.write(&[&b"hello"[..], &record(&framed(b"abc"))].concat());
    client.stream.shutdown(Shutdown::Write).unwrap();
    server.opened();
    assert_eq!(server.received(), b"abc");
    assert_eq!(server.closed(), CloseReason::Truncated);
}

#[test]
fn a_handshake_that_fails_says_why_on_both_sides_and_is_not_accepted() {
    let network = network();
    let (server, address) = listening(&network, ignore);
    let (client, connection) = Reports::connect_layered(&network, address, Flipped::new(b"howdy"));
    // It may have failed already.
    let _ = connection.send(b"never");
    let (reason, report) = client.failed();
    assert_eq!(reason, CloseReason::Handshake);
    let why = [
        "the peer greets with \"hello\"",
        // If the alert of the other side came first.
        "the peer refuses",
    ];
    assert!(why.iter().any(|why| report.ends_with(why)), "{report}");
    eventually("the server has closed it", || {
        network.metrics().closed(CloseReason::Handshake) == 2
    });
    assert!(server.next_within(Duration::from_millis(50)).is_none());
    eventually("it is counted, and nothing is left", || {
        let metrics = network.metrics();
        metrics.connect_failed == 1
            && (metrics.open, metrics.handshaking, metrics.queued_bytes) == (0, 0, 0)
    });
    assert_eq!(network.metrics().accepted, 0);
}

#[test]
fn a_peer_that_ends_in_the_handshake_fails_it() {
    let network = network();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (client, _connection) = Reports::connect_layered(&network, address, HELLO);
    drop(RawClient {
        stream: listener.accept().unwrap().0,
    });
    let (reason, _) = client.failed();
    assert!(
        matches!(reason, CloseReason::Handshake | CloseReason::Reset),
        "{reason:?}"
    );
}

#[test]
fn a_handshake_has_its_timeout_on_both_sides() {
    let limits = Limits::new().with_handshake_timeout(Duration::from_millis(200));
    let network = network_with(limits);
    let (server, address) = listening(&network, ignore);
    let began = Instant::now();
    let silent = RawClient::connect(address);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap();
    let (client, _connection) = Reports::connect_layered(&network, there, HELLO);
    let (reason, _) = client.failed();
    let late = CloseReason::Timeout(Timeout::Handshake);
    assert_eq!(reason, late);
    assert!(began.elapsed() >= Duration::from_millis(190));
    eventually("the server has closed it", || {
        network.metrics().closed(late) == 2
    });
    assert!(server.next_within(Duration::from_millis(20)).is_none());
    eventually("both are over", || network.metrics().handshaking == 0);
    drop(silent);
}

#[test]
fn a_layer_can_be_less_patient() {
    let network = network();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap();
    let impatient = HELLO.with_patience(Duration::from_millis(100));
    let (client, _connection) = Reports::connect_layered(&network, there, impatient);
    let (peer, _) = listener.accept().unwrap();
    let mut peer = RawClient { stream: peer };
    assert_eq!(peer.rest().0, b"hello");
    drop(peer);
    let (reason, report) = client.failed();
    assert_eq!(reason, CloseReason::Handshake);
    assert!(report.ends_with("the peer does not greet"), "{report}");
}

#[test]
fn more_handshakes_than_allowed_are_refused() {
    let network = network_with(Limits::new().with_max_handshakes(2));
    let (server, address) = listening(&network, ignore);
    let first = RawClient::connect(address);
    let mut second = RawClient::connect(address);
    eventually("both are in their handshake", || {
        network.metrics().handshaking == 2
    });
    let mut third = RawClient::connect(address);
    assert_eq!(third.rest().0, b"");
    let options = ConnectOptions::new().layer(HELLO);
    let fourth = network.connect_with(&options, Transport::Tcp, address, |_| Ignores);
    assert!(matches!(fourth, Err(Error::TooManyHandshakes { limit: 2 })));
    second.write(b"hello");
    server.opened();
    eventually("one is through", || network.metrics().handshaking == 1);
    let fifth = RawClient::connect(address);
    eventually("another begins", || network.metrics().handshaking == 2);
    let metrics = network.metrics();
    assert_eq!((metrics.refused_by_handshakes, metrics.refused), (1, 1));
    drop((first, fifth));
    eventually("they are gone", || network.metrics().handshaking == 0);
}

struct Ignores;

impl Handler for Ignores {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

#[test]
fn the_application_may_refuse_once_the_handshake_is_complete() {
    let network = network();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let options = ListenOptions::new().layer(HELLO);
    let refuses = move |connection: &Connection| {
        assert!(connection.identity().is_some());
        count.fetch_add(1, SeqCst);
        None::<Ignores>
    };
    let listener = network.listen_with(options, Transport::Tcp, "127.0.0.1:0", refuses);
    let mut client = RawClient::connect(listener.unwrap().local_addr());
    client.write(b"hello");
    assert_eq!(client.rest().0, [&b"hello"[..], &end()].concat());
    assert_eq!(asked.load(SeqCst), 1);
    eventually("it is gone and counted", || {
        let metrics = network.metrics();
        (metrics.open, metrics.refused) == (0, 1)
    });
    let metrics = network.metrics();
    assert_eq!(metrics.accepted, 0);
    assert_eq!(metrics.closed(CloseReason::Local), 0);
}

#[test]
fn a_stop_in_the_handshake_ends_it() {
    let network = network();
    let (_server, address) = listening(&network, ignore);
    let mut client = RawClient::connect(address);
    eventually("it has begun", || network.metrics().handshaking == 1);
    network.stop(Duration::from_secs(20));
    assert_eq!(client.rest().0, b"hello");
    assert_eq!(network.metrics().handshaking, 0);
}

#[test]
fn a_pause_holds_what_the_layer_has_given_and_its_end() {
    struct Pauses(Reports);
    let network = network();
    let server = Reports::default();
    let options = ListenOptions::new().layer(HELLO);
    let pause: Act = |link, _| link.pause();
    let address = server.listen_with(options, &network, Transport::Tcp, pause);
    let pauses = Pauses(server);
    let mut client = RawClient::connect(address);
    let frames = [framed(b"one"), framed(b"two")].concat();
    client.write(&[&b"hello"[..], &record(&frames), &end()].concat());
    client.stream.shutdown(Shutdown::Write).unwrap();
    let connection = pauses.0.opened();
    assert_eq!(pauses.0.received(), b"one");
    assert!(pauses.0.next_within(Duration::from_millis(50)).is_none());
    connection.resume();
    assert_eq!(pauses.0.received(), b"two");
    connection.resume();
    assert_eq!(pauses.0.closed(), CloseReason::Peer);
    eventually("nothing is held", || network.metrics().held_bytes == 0);
}

#[test]
fn only_streams_have_layers() {
    let network = network();
    let options = ConnectOptions::new().layer(HELLO);
    let error = network.connect_with(&options, Transport::Udp, "127.0.0.1:9", |_| Ignores);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("a layer needs a stream"), "{error}");
    let options = ListenOptions::new().layer(HELLO);
    let listened = network.listen_with(options, Transport::Udp, "127.0.0.1:0", |_| Some(Ignores));
    assert!(matches!(
        listened,
        Err(Error::NoLayers {
            transport: Transport::Udp
        })
    ));
}

#[test]
fn a_layer_that_panics_ends_its_connection_and_no_other() {
    let network = one_worker(Limits::new());
    let (server, address) = listening(&network, echo);
    let (client, other) = Reports::connect_layered(&network, address, HELLO);
    client.opened();
    server.opened();
    let mut raw = RawClient::connect(address);
    raw.write(b"panic");
    raw.rest();
    eventually("it has ended", || {
        network.metrics().closed(CloseReason::Panicked) == 1
    });
    let mut raw = RawClient::connect(address);
    raw.write(b"hello");
    server.opened();
    raw.write(b"panic");
    raw.rest();
    assert_eq!(server.closed(), CloseReason::Panicked);
    other.send(b"still there").unwrap();
    assert_eq!(client.received(), b"still there");
    // A layer that panics as it is made.
    let options = ListenOptions::new().layer(|_: Ends| -> Box<dyn Layer> { panic!("on purpose") });
    let there = server.listen_with(options, &network, Transport::Tcp, echo);
    RawClient::connect(there).rest();
    eventually("it is counted", || network.metrics().accept_failed == 1);
    assert_eq!(
        (network.metrics().handshaking, network.metrics().open),
        (0, 2)
    );
}

/// A connection whose handshake the test completes when it likes: it has sent `early`.
fn held_up(network: &Network) -> (Reports, Connection, RawClient) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (client, connection) = Reports::connect_layered(network, address, HELLO);
    connection.send(b"early").unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut peer = RawClient { stream };
    assert_eq!(peer.some(), b"hello");
    (client, connection, peer)
}

#[test]
fn a_handshake_that_is_completed_after_a_close_only_delivers_what_was_sent() {
    let network = network();
    let (client, connection, mut peer) = held_up(&network);
    connection.close();
    assert!(client.next_within(Duration::from_millis(50)).is_none());
    peer.write(b"hello");
    assert_eq!(peer.rest().0, [record(&framed(b"early")), end()].concat());
    drop(peer);
    // It was never open.
    let (reason, _) = client.failed();
    assert_eq!(reason, CloseReason::Local);
    eventually("nothing is left", || {
        let metrics = network.metrics();
        (metrics.open, metrics.handshaking, metrics.queued_bytes) == (0, 0, 0)
    });
}

#[test]
fn a_handshake_that_is_completed_after_its_timeout_changes_nothing() {
    let limits = Limits::new().with_handshake_timeout(Duration::from_millis(100));
    let network = network_with(limits);
    let (client, _connection, mut peer) = held_up(&network);
    let (reason, _) = client.failed();
    assert_eq!(reason, CloseReason::Timeout(Timeout::Handshake));
    // Its socket may be gone already.
    let _ = std::io::Write::write_all(&mut peer.stream, b"hello");
    assert_eq!(peer.rest().0, b"");
    client.nothing();
    let metrics = network.metrics();
    assert_eq!((metrics.open, metrics.handshaking), (0, 0));
    assert_eq!((metrics.queued_bytes, metrics.connected), (0, 0));
}

#[test]
fn a_handshake_that_is_completed_during_a_stop_delivers_what_was_sent() {
    let network = network();
    let (client, connection, mut peer) = held_up(&network);
    let stops = network.clone();
    let stopping = std::thread::spawn(move || stops.stop(Duration::from_secs(20)));
    eventually("it closes", || connection.is_closed());
    peer.write(b"hello");
    assert_eq!(peer.rest().0, [record(&framed(b"early")), end()].concat());
    drop(peer);
    stopping.join().unwrap();
    let (reason, _) = client.failed();
    assert_eq!(reason, CloseReason::Local);
}

#[test]
fn what_waited_for_the_handshake_makes_room_when_it_leaves() {
    let limits = Limits::new()
        .with_max_message(1_000)
        .with_max_datagram(1_000);
    let limits = limits.with_max_queued(3_000).with_low_watermark(1_000);
    let network = network_with(limits);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (client, connection) = Reports::connect_layered(&network, address, HELLO);
    while connection.send(pattern(1_000)).is_ok() {}
    assert!(connection.queued() > 2_000);
    let (stream, _) = listener.accept().unwrap();
    let mut peer = RawClient { stream };
    peer.write(b"hello");
    client.opened();
    assert!(matches!(client.next(), Event::Writable));
    eventually("it has left", || connection.queued() == 0);
    assert_eq!(network.metrics().queued_bytes, 0);
    connection.send(b"again").unwrap();
    drop(peer);
}

#[test]
fn a_layer_that_gives_up_does_so_at_once_though_something_waits() {
    let network = network();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap();
    let impatient = HELLO.with_patience(Duration::from_millis(500));
    let (client, connection) = Reports::connect_layered(&network, there, impatient);
    connection.send(b"never").unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut peer = RawClient { stream };
    // Its greeting, and an end in order.
    assert_eq!(peer.rest(), (b"hello".to_vec(), true));
    drop(peer);
    assert_eq!(client.failed().0, CloseReason::Handshake);
    eventually("nothing is left", || network.metrics().queued_bytes == 0);
}

#[test]
fn an_end_or_an_error_right_behind_the_handshake_is_noticed() {
    let network = network();
    for (behind, reason) in [
        (end(), CloseReason::Peer),
        (0xffff_u16.to_be_bytes().to_vec(), CloseReason::Layer),
    ] {
        let (server, address) = listening(&network, ignore);
        let mut peer = RawClient::connect(address);
        peer.write(&[&b"hello"[..], &behind].concat());
        server.opened();
        peer.rest();
        drop(peer);
        assert_eq!(server.closed(), reason);
    }
}
