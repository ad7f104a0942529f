//! Listening and connecting: which peers are admitted, and the errors of addresses that do not work.

use cubenet_mio::{
    CloseReason, Connection, Error, Handler, Limits, Link, Message, Network, SendError, Timeout,
    Transport,
};
use cubenet_tests::{
    BlackHole, Event, RawClient, Reports, echo, eventually, ignore, network, network_with,
};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

#[test]
fn a_refused_peer_is_closed_and_leaves_nothing() {
    let network = network();
    let refuse = |_: &Connection| None::<cubenet_tests::Reporter>;
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", refuse)
        .unwrap();
    for _ in 0..10 {
        let mut client = RawClient::connect(listener.local_addr());
        assert_eq!(client.rest().0, b"");
    }
    eventually("ten are counted", || network.metrics().refused == 10);
    assert_eq!(network.metrics().open, 0);
}

#[test]
fn a_full_table_refuses_new_peers_and_serves_the_others() {
    let limits = Limits::new().with_max_connections(3);
    let network = network_with(limits);
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let mut clients: Vec<_> = (0..3).map(|_| RawClient::connect(address)).collect();
    for client in &mut clients {
        client.send(b"in");
        assert_eq!(client.receive(), b"in");
    }
    let mut late = RawClient::connect(address);
    assert_eq!(late.rest().0, b"");
    let connecting = network.connect(Transport::Tcp, address, |_| {
        Reports::default().reporter(ignore)
    });
    assert!(matches!(
        connecting,
        Err(Error::TooManyConnections { limit: 3 })
    ));
    clients[0].send(b"still");
    assert_eq!(clients[0].receive(), b"still");
    clients.pop();
    eventually("there is room again", || network.metrics().open == 2);
    let mut next = RawClient::connect(address);
    next.send(b"next");
    assert_eq!(next.receive(), b"next");
}

#[test]
fn a_connect_that_is_refused_names_the_address_and_the_cause() {
    let network = network();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, address, ignore);
    let Event::Failed(error) = client.next() else {
        panic!("it was answered");
    };
    assert_eq!(error.reason(), CloseReason::Refused);
    assert_eq!(error.peer_addr(), address);
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("no socket listens"),
        "{text}"
    );
    eventually("the handle is inert", || connection.is_closed());
    assert_eq!(connection.send(b"x"), Err(SendError::Closed));
    eventually("nothing is left", || network.metrics().open == 0);
}

#[test]
fn a_connect_into_a_black_hole_ends_after_the_connect_timeout() {
    let hole = BlackHole::new();
    let address = hole.address;
    let limits = Limits::new().with_connect_timeout(Duration::from_millis(300));
    let network = network_with(limits);
    let client = Reports::default();
    let start = Instant::now();
    client.connect(&network, Transport::Tcp, address, ignore);
    let Event::Failed(error) = client.next() else {
        panic!("it was answered");
    };
    assert_eq!(error.reason(), CloseReason::Timeout(Timeout::Connect));
    assert_eq!(error.peer_addr(), address);
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_connect_can_be_closed_before_it_is_answered() {
    let hole = BlackHole::new();
    let network = network();
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, hole.address, ignore);
    connection.close();
    let Event::Failed(error) = client.next() else {
        panic!("it was answered");
    };
    assert_eq!(error.reason(), CloseReason::Local);
}

#[test]
fn an_address_that_cannot_be_used_is_named_with_the_cause() {
    let network = network();
    let accepted = |_: &Connection| None::<cubenet_tests::Reporter>;
    let taken = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap()
        .local_addr();
    for address in [taken.to_string(), String::from("192.0.2.1:7000")] {
        let error = network
            .listen(Transport::Tcp, &address, accepted)
            .unwrap_err();
        assert!(matches!(error, Error::Listen { .. }));
        assert!(error.to_string().contains(&address), "{error}");
    }
    for address in ["127.0.0.1", "127.0.0.1:seven", "no such host:1"] {
        let error = network
            .listen(Transport::Tcp, address, accepted)
            .unwrap_err();
        assert!(matches!(error, Error::Address { .. }));
        assert!(error.to_string().contains(address), "{error}");
    }
}

#[test]
fn one_listener_on_ipv6_serves_both_families_unless_told_not_to() {
    let network = network();
    let server = Reports::default();
    let reporter = server.reporter(echo);
    drop(reporter);
    let (opened, seen) = channel();
    let opened = std::sync::Mutex::new(opened);
    let accepted = move |connection: &Connection| {
        opened.lock().unwrap().send(connection.peer_addr()).unwrap();
        Some(Server)
    };
    let listener = network.listen(Transport::Tcp, "[::]:0", accepted).unwrap();
    let port = listener.local_addr().port();
    for host in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(host.parse().unwrap(), port);
        let mut client = RawClient::connect(address);
        client.send(b"hello");
        assert_eq!(client.receive(), b"hello");
        assert_eq!(seen.recv().unwrap(), client.stream.local_addr().unwrap());
    }
    let alone = Network::builder()
        .workers(1)
        .dual_stack(false)
        .start()
        .unwrap();
    let listener = alone
        .listen(Transport::Tcp, "[::]:0", |_| Some(Server))
        .unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().port()));
    assert!(std::net::TcpStream::connect(address).is_err());
}

struct Server;
impl Handler for Server {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(&message).unwrap();
    }
}

#[test]
fn closing_one_of_several_listeners_frees_its_address_and_leaves_its_connections() {
    let network = network();
    let first = network
        .listen(Transport::Tcp, "127.0.0.1:0", |_| Some(Server))
        .unwrap();
    let second = network
        .listen(Transport::Tcp, "127.0.0.1:0", |_| Some(Server))
        .unwrap();
    let (first_address, second_address) = (first.local_addr(), second.local_addr());
    let mut client = RawClient::connect(first_address);
    client.send(b"a");
    assert_eq!(client.receive(), b"a");
    first.close();
    assert!(std::net::TcpStream::connect(first_address).is_err());
    client.send(b"b");
    assert_eq!(client.receive(), b"b");
    let mut other = RawClient::connect(second_address);
    other.send(b"c");
    assert_eq!(other.receive(), b"c");
    network
        .listen(Transport::Tcp, first_address, |_| Some(Server))
        .unwrap();
}
