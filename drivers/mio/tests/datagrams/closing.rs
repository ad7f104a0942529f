//! How datagram connections and their listeners close.

use super::*;

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
    receives_nothing(&socket);
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
fn a_network_can_be_both_ends() {
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
        receives_nothing(&socket);
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
    receives_nothing(&socket);
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
