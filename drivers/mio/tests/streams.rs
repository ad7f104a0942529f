//! What an application receives and sends on stream connections of the mio driver.

use cubenet_mio::{
    CloseReason, Connection, Frame, Handler, Limits, Link, Message, SendError, Transport,
};
use cubenet_tests::system::{RESETS, open_descriptors, wine_cannot};
use cubenet_tests::{
    PATIENCE, RawClient, Reports, echo, eventually, framed, ignore, network, network_with,
    one_worker, pattern,
};
use std::io::Write;
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

const SIZES: [usize; 7] = [0, 1, 2, 255, 256, 65_534, 65_535];

#[test]
fn messages_of_every_size_come_back_in_bulk_and_byte_by_byte() {
    let network = network();
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let mut client = RawClient::connect(address);
    let mut writer = RawClient {
        stream: client.stream.try_clone().unwrap(),
    };
    let messages: Vec<Vec<u8>> = SIZES.iter().map(|size| pattern(*size)).collect();
    let bytes: Vec<u8> = messages
        .iter()
        .flat_map(|message| framed(message))
        .collect();
    let writing = thread::spawn(move || {
        writer.write(&bytes);
        for byte in &bytes {
            writer.write(std::slice::from_ref(byte));
        }
    });
    for message in messages.iter().chain(&messages) {
        assert_eq!(&client.receive(), message);
    }
    writing.join().unwrap();
}

#[test]
fn both_ends_can_be_ours_and_hear_each_other_in_order() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, echo);
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, address, ignore);
    for number in 0_u32..1_000 {
        connection.send(number.to_be_bytes()).unwrap();
    }
    assert_eq!(client.opened().peer_addr(), address);
    for number in 0_u32..1_000 {
        assert_eq!(client.received(), number.to_be_bytes());
    }
    connection.close();
    assert_eq!(client.closed(), CloseReason::Local);
    assert_eq!(server.closed_at_last(), CloseReason::Peer);
}

#[test]
fn what_is_sent_before_the_connect_is_answered_is_delivered_even_if_it_is_closed() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, address, ignore);
    connection.send(b"early").unwrap();
    connection.close();
    server.opened();
    assert_eq!(server.received(), b"early");
    assert_eq!(server.closed(), CloseReason::Peer);
}

#[test]
fn an_answer_from_another_thread_goes_out_without_waiting_for_an_event() {
    struct HandOff(Connection, std::sync::mpsc::Sender<(Connection, Vec<u8>)>);
    impl Handler for HandOff {
        fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
            self.1.send((self.0.clone(), message.to_vec())).unwrap();
        }
    }
    let network = network();
    let (sender, receiver) = channel::<(Connection, Vec<u8>)>();
    let accepted = move |connection: &Connection| Some(HandOff(connection.clone(), sender.clone()));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    thread::spawn(move || {
        while let Ok((connection, message)) = receiver.recv() {
            connection.send(message).unwrap();
        }
    });
    let mut client = RawClient::connect(listener.local_addr());
    let start = Instant::now();
    for size in [0, 1, 65_535, 10] {
        client.send(&pattern(size));
        assert_eq!(client.receive(), pattern(size));
    }
    // Nothing else happens on this network, so an answer that waited would wait for good.
    assert!(start.elapsed() < PATIENCE / 2);
}

#[test]
fn the_order_of_sends_inside_a_callback_is_the_order_on_the_wire_by_link_or_handle() {
    struct Both(Connection);
    impl Handler for Both {
        fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
            let frame = Frame::new(&[3; 5_000]).unwrap();
            link.send(b"1").unwrap();
            self.0.send(b"2").unwrap();
            assert_eq!(
                (link.queued(), self.0.queued()),
                (6, 6),
                "two of three bytes"
            );
            link.send_frame(&frame).unwrap();
            self.0.send_frame(&frame).unwrap();
            link.send(b"4").unwrap();
            self.0.close();
            assert_eq!(link.send(b"5"), Err(SendError::Closed));
        }
    }
    let network = network();
    let accepted = |connection: &Connection| Some(Both(connection.clone()));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    let mut client = RawClient::connect(listener.local_addr());
    client.send(b"go");
    for expected in [&b"1"[..], b"2", &[3; 5_000], &[3; 5_000], b"4"] {
        assert_eq!(client.receive(), expected);
    }
    assert_eq!(client.rest(), (vec![], true));
}

#[test]
fn several_threads_send_whole_messages_each_in_its_order() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    let senders: Vec<_> = (0..4_u8)
        .map(|thread| {
            let connection = connection.clone();
            thread::spawn(move || {
                for number in 0..500_u16 {
                    let mut message = vec![thread; 3 + usize::from(number) * 5];
                    message[1..3].copy_from_slice(&number.to_be_bytes());
                    while connection.send(&message) == Err(SendError::Full) {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut next = [0_u16; 4];
    for _ in 0..4 * 500 {
        let message = client.receive();
        let thread = usize::from(message[0]);
        assert_eq!(message[1..3], next[thread].to_be_bytes());
        assert_eq!(message.len(), 3 + usize::from(next[thread]) * 5);
        assert!(message[3..].iter().all(|byte| usize::from(*byte) == thread));
        next[thread] += 1;
    }
    for sender in senders {
        sender.join().unwrap();
    }
}

#[test]
fn a_frame_goes_to_many() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut clients: Vec<_> = (0..20).map(|_| RawClient::connect(address)).collect();
    let connections: Vec<_> = clients.iter().map(|_| server.opened()).collect();
    for size in [3, 60_000] {
        let frame = Frame::new(&pattern(size)).unwrap();
        for connection in &connections {
            connection.send_frame(&frame).unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.receive(), pattern(size));
        }
    }
}

#[test]
fn what_was_sent_before_a_close_reaches_a_peer_that_reads_slowly_and_still_sends() {
    let network = network_with(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    let message = pattern(50_000);
    let mut sent = 0;
    while connection.send(&message).is_ok() {
        sent += 1;
    }
    assert!(connection.queued() > 0, "the peer does not read yet");
    connection.close();
    assert!(connection.is_closed());
    assert_eq!(connection.send(b"late"), Err(SendError::Closed));
    for _ in 0..sent {
        client.send(b"still talking");
        thread::sleep(Duration::from_millis(2));
        assert_eq!(client.receive(), message);
    }
    assert_eq!(client.rest(), (vec![], true), "an orderly end");
    drop(client);
    assert_eq!(server.closed(), CloseReason::Local);
}

#[test]
fn a_peer_that_has_sent_its_end_still_gets_what_was_queued_for_it() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, echo);
    let mut client = RawClient::connect(address);
    for _ in 0..50 {
        client.send(&pattern(10_000));
    }
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..50 {
        assert_eq!(client.receive(), pattern(10_000));
    }
    assert_eq!(client.rest(), (vec![], true));
    assert_eq!(server.closed_at_last(), CloseReason::Peer);
}

#[test]
fn an_abort_resets_the_peer_and_forgets_what_was_queued() {
    if wine_cannot(RESETS) {
        return;
    }
    let network = network_with(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    while connection.send(pattern(50_000)).is_ok() {}
    connection.abort();
    assert_eq!(server.closed(), CloseReason::Local);
    let (_, orderly) = client.rest();
    assert!(!orderly, "the peer saw a reset");
    assert_eq!(connection.queued(), 0);
    assert_eq!(network.metrics().queued_bytes, 0);
}

#[test]
fn a_handle_outlives_its_connection_and_holds_no_descriptor() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let client = RawClient::connect(address);
    let peer = client.stream.local_addr().unwrap();
    let connection = server.opened();
    drop(client);
    assert_eq!(server.closed(), CloseReason::Peer);
    assert!(connection.is_closed());
    assert_eq!(connection.send(b"x"), Err(SendError::Closed));
    assert_eq!(
        (connection.peer_addr(), connection.local_addr()),
        (peer, address)
    );
    assert_eq!(connection.queued(), 0);
    connection.pause();
    connection.resume();
    connection.close();
    connection.abort();
    if open_descriptors().is_some() {
        // The kernel has closed our end too: the port can be connected from again.
        let again = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        again.unwrap().connect(&address.into()).unwrap();
    }
}

#[test]
fn callbacks_of_one_connection_never_overlap_and_those_of_different_ones_run_at_once() {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    static MEET: Barrier = Barrier::new(2);
    struct Meets(AtomicBool);
    impl Handler for Meets {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            assert!(!self.0.swap(true, SeqCst), "two callbacks at once");
            if &*message == b"meet" {
                MEET.wait();
            }
            self.0.store(false, SeqCst);
            link.send(&message).unwrap();
        }
    }
    let network = network();
    let accepted = |_: &Connection| Some(Meets(AtomicBool::new(false)));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    let mut clients = [(); 2].map(|()| RawClient::connect(listener.local_addr()));
    for client in &mut clients {
        client.send(b"meet");
    }
    for client in &mut clients {
        assert_eq!(client.receive(), b"meet");
    }
}

#[test]
fn a_callback_of_one_network_sends_on_a_connection_of_another() {
    struct Forward(Connection);
    impl Handler for Forward {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            link.send(b"forwarded").unwrap();
            self.0.send(&message).unwrap();
        }
    }
    let (front, back) = (network(), network());
    let behind = Reports::default();
    let back_address = behind.listen(&back, Transport::Tcp, ignore);
    let client = Reports::default();
    let connection = client.connect(&back, Transport::Tcp, back_address, ignore);
    let forward = move |_: &Connection| Some(Forward(connection.clone()));
    let listener = front
        .listen(Transport::Tcp, "127.0.0.1:0", forward)
        .unwrap();
    behind.opened();
    for _ in 0..5 {
        let mut client = RawClient::connect(listener.local_addr());
        client.send(b"through");
        assert_eq!(client.receive(), b"forwarded");
        assert_eq!(behind.received(), b"through");
    }
}

#[test]
fn what_was_sent_to_a_peer_that_breaks_the_framing_arrives_whatever_it_still_sends() {
    // With buffers of the system's own choice, so that the kernel may hold all of it.
    let limits = Limits::new()
        .with_max_message(60_000)
        .with_max_queued(4 << 20);
    let network = one_worker(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    let message = pattern(9_000);
    for _ in 0..200 {
        connection.send(&message).unwrap();
    }
    let mut writes = client.stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        let junk = vec![0xff; 100_000];
        // It ends when the server has closed.
        while writes.write_all(&junk).is_ok() {}
    });
    eventually("no more is accepted", || connection.is_closed());
    let (received, in_order) = client.rest();
    assert_eq!(received.len(), 200 * 9_002);
    assert!(received == framed(&message).repeat(200));
    assert!(in_order);
    client.stream.shutdown(Shutdown::Both).unwrap();
    writing.join().unwrap();
    assert!(matches!(server.closed(), CloseReason::Protocol(_)));
}

/// Bytes that are out of band for the system are part of the stream, and reading goes on behind
/// them.
#[cfg(target_os = "linux")]
#[test]
fn urgent_data_neither_leaves_the_stream_nor_stops_it() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, echo);
    let mut client = RawClient::connect(address);
    server.opened();
    let socket = socket2::SockRef::from(&client.stream).try_clone().unwrap();
    for round in 0..50_u8 {
        // The mark lies in the middle of what arrives at once.
        let bytes = [
            framed(&[round; 300]),
            framed(b"urgent"),
            framed(&[round; 20]),
        ]
        .concat();
        client.write(&bytes[..303]);
        assert_eq!(socket.send_out_of_band(&bytes[303..304]).unwrap(), 1);
        client.write(&bytes[304..]);
        assert_eq!(client.receive(), [round; 300]);
        assert_eq!(client.receive(), b"urgent");
        assert_eq!(client.receive(), [round; 20]);
    }
}
