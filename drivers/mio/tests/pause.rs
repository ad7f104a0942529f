//! Pauses over TCP: nothing is delivered, nothing is lost, and a FIN is found.

use cubenet_mio::{CloseReason, Connection, Handler, Limits, Link, Message, Transport};
use cubenet_tests::{
    PATIENCE, RawClient, Reports, eventually, framed, ignore, network, network_with, pattern,
};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_paused_connection_delivers_nothing_and_a_resumed_one_everything_in_order() {
    fn pause_at_every_third(link: &mut dyn Link, message: &[u8]) {
        if message[0].is_multiple_of(3) {
            link.pause();
        }
    }
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, pause_at_every_third);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    let batch: Vec<u8> = (0..100).flat_map(|number| framed(&[number])).collect();
    client.write(&batch);
    drop(client);
    for number in 0..100 {
        assert_eq!(server.received(), [number]);
        if number % 3 == 0 {
            if number % 30 == 0 {
                server.nothing();
            }
            connection.resume();
        }
    }
    assert_eq!(server.closed(), CloseReason::Peer);
}

#[test]
fn a_connection_paused_from_outside_holds_its_peer_up() {
    let network = network_with(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    connection.pause();
    // The worker sees it with its next command; whatever it delivers before is early.
    thread::sleep(Duration::from_millis(100));
    client.stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    let message = framed(&pattern(60_000));
    let full = loop {
        match std::io::Write::write(&mut client.stream, &message[written % message.len()..]) {
            Ok(count) => written += count,
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(full, std::io::ErrorKind::WouldBlock);
    server.nothing();
    connection.resume();
    for _ in 0..written / message.len() {
        assert_eq!(server.received(), pattern(60_000));
    }
}

#[test]
fn a_paused_connection_can_be_closed() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    connection.pause();
    client.send(b"unheard");
    connection.send(b"bye").unwrap();
    connection.close();
    assert_eq!(client.receive(), b"bye");
    assert_eq!(client.rest(), (vec![], true));
    drop(client);
    assert_eq!(server.closed_at_last(), CloseReason::Local);
}

#[test]
fn a_pause_in_a_callback_and_a_resume_from_another_thread_lose_and_reorder_nothing() {
    const MESSAGES: u32 = 20_000;
    struct OneAtATime(Connection, std::sync::mpsc::Sender<(Connection, Vec<u8>)>);
    impl Handler for OneAtATime {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            link.pause();
            self.1.send((self.0.clone(), message.to_vec())).unwrap();
        }
    }
    let network = network();
    let (sender, receiver) = channel::<(Connection, Vec<u8>)>();
    let accepted =
        move |connection: &Connection| Some(OneAtATime(connection.clone(), sender.clone()));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    let mut client = RawClient::connect(listener.local_addr());
    let writing = thread::spawn(move || {
        let bytes: Vec<u8> = (0..MESSAGES)
            .flat_map(|n| framed(&n.to_be_bytes()))
            .collect();
        bytes.chunks(7_001).for_each(|piece| client.write(piece));
        client
    });
    for number in 0..MESSAGES {
        let (connection, message) = receiver.recv_timeout(PATIENCE).unwrap();
        assert_eq!(message, number.to_be_bytes());
        connection.resume();
    }
    drop(writing.join().unwrap());
    eventually("the end is seen", || {
        network.metrics().closed(CloseReason::Peer) == 1
    });
}

#[test]
fn a_fin_that_came_during_a_pause_is_seen_after_it() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    connection.pause();
    thread::sleep(Duration::from_millis(50));
    client.send(b"last");
    drop(client);
    thread::sleep(Duration::from_millis(50));
    connection.resume();
    assert_eq!(server.received(), b"last");
    assert_eq!(server.closed(), CloseReason::Peer);
}

#[test]
fn a_paused_connection_that_is_closed_finds_the_end_behind_what_it_drops() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    connection.pause();
    thread::sleep(Duration::from_millis(50));
    let writing = thread::spawn(move || {
        // More than the kernel holds, so that it ends only when it is read.
        let _ = std::io::Write::write_all(&mut client.stream, &framed(&pattern(60_000)).repeat(50));
    });
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    connection.close();
    assert_eq!(server.closed_at_last(), CloseReason::Local);
    let took = start.elapsed();
    assert!(took < Limits::default().drain_timeout() / 2, "{took:?}");
    writing.join().unwrap();
}
