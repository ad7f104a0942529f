//! What an application sees of stream connections on the mio driver.

use cubenet_mio::{
    CloseReason, Connection, Error, Frame, Handler, Limits, Link, Message, Network, SendError,
    Timeout, Transport,
};
use cubenet_tests::{
    Event, PATIENCE, RawClient, Reports, echo, eventually, framed, ignore, open_descriptors,
    pattern, raise_descriptors,
};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

const SIZES: [usize; 7] = [0, 1, 2, 255, 256, 65_534, 65_535];

fn network() -> Network {
    Network::builder().workers(2).start().unwrap()
}

fn network_with(limits: Limits) -> Network {
    let builder = Network::builder().workers(2).limits(limits);
    builder.stream_buffer(16 << 10).start().unwrap()
}

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
    assert_eq!(client.opened().peer(), address);
    for number in 0_u32..1_000 {
        assert_eq!(client.received(), number.to_be_bytes());
    }
    connection.close();
    assert_eq!(client.closed(), CloseReason::Local);
    assert_eq!(server.closed_at_last(), CloseReason::Peer);
}

#[test]
fn what_is_sent_before_the_call_is_answered_is_delivered_even_if_it_is_closed() {
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
    let mut client = RawClient::connect(listener.local());
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
    let mut client = RawClient::connect(listener.local());
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
fn a_peer_that_does_not_read_fills_a_bounded_queue_and_then_there_is_room_again() {
    let limits = Limits {
        max_queued: 200_000,
        low_watermark: 50_000,
        ..Limits::default()
    };
    let network = network_with(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    let mut sent = 0;
    while connection.send(pattern(10_000)).is_ok() {
        sent += 1;
    }
    assert!(connection.queued() <= 200_000, "{}", connection.queued());
    server.nothing();
    for _ in 0..sent {
        assert_eq!(client.receive(), pattern(10_000));
    }
    assert!(matches!(server.next(), Event::Writable));
    server.nothing();
    connection.send(b"room").unwrap();
    assert_eq!(client.receive(), b"room");
}

#[test]
fn the_bound_on_all_connections_gives_up_the_one_that_would_break_it() {
    let limits = Limits {
        max_queued: 200_000,
        max_queued_total: 200_000,
        low_watermark: 1_000,
        ..Limits::default()
    };
    let network = network_with(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let first = RawClient::connect(address);
    let stuck = server.opened();
    while stuck.send(pattern(10_000)).is_ok() {}
    let second = RawClient::connect(address);
    let other = server.opened();
    while other.send(pattern(60_000)).is_ok() {
        assert!(network.metrics().queued_bytes <= 260_000);
    }
    assert_eq!(server.closed(), CloseReason::Overflow);
    assert!(other.is_closed() && !stuck.is_closed());
    drop((first, second));
}

#[test]
fn a_peer_that_never_reads_is_closed_after_the_write_stall_time() {
    let limits = Limits {
        write_stall_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let network = network_with(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let _client = RawClient::connect(address);
    let connection = server.opened();
    let start = Instant::now();
    while connection.send(pattern(50_000)).is_ok() {}
    let reason = server.closed();
    assert_eq!(reason, CloseReason::Timeout(Timeout::WriteStall));
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(network.metrics().queued_bytes, 0);
}

#[test]
fn a_close_that_cannot_deliver_ends_with_the_drain_time() {
    let limits = Limits {
        drain_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let network = network_with(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let _client = RawClient::connect(address);
    let connection = server.opened();
    while connection.send(pattern(50_000)).is_ok() {}
    let start = Instant::now();
    connection.close();
    assert_eq!(server.closed(), CloseReason::Timeout(Timeout::Drain));
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_peer_that_does_not_end_after_a_close_is_left_after_the_drain_time() {
    let limits = Limits {
        drain_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let network = network_with(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let _client = RawClient::connect(address);
    server.opened().close();
    assert_eq!(server.closed(), CloseReason::Local);
}

#[test]
fn silence_closes_after_the_idle_time_and_talk_puts_it_off() {
    let limits = Limits {
        stream_idle_timeout: Duration::from_millis(400),
        ..Limits::default()
    };
    let network = network_with(limits);
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    server.opened();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(200));
        client.send(b"here");
        assert_eq!(server.received(), b"here");
    }
    let silent_since = Instant::now();
    assert_eq!(server.closed(), CloseReason::Timeout(Timeout::Idle));
    let silence = silent_since.elapsed();
    assert!(silence >= Duration::from_millis(390), "{silence:?}");
}

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
    // The worker hears of it with its next command; whatever it delivers before is early.
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
fn who_is_turned_away_is_closed_and_leaves_nothing() {
    let network = network();
    let refuse = |_: &Connection| None::<cubenet_tests::Reporter>;
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", refuse)
        .unwrap();
    for _ in 0..10 {
        let mut client = RawClient::connect(listener.local());
        assert_eq!(client.rest().0, b"");
    }
    eventually("ten are counted", || network.metrics().refused == 10);
    assert_eq!(network.metrics().open, 0);
}

#[test]
fn a_table_that_is_full_turns_away_whoever_comes_and_serves_who_is_there() {
    let limits = Limits {
        max_connections: 3,
        ..Limits::default()
    };
    let network = network_with(limits);
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let mut clients: Vec<_> = (0..3).map(|_| RawClient::connect(address)).collect();
    for client in &mut clients {
        client.send(b"in");
        assert_eq!(client.receive(), b"in");
    }
    let mut late = RawClient::connect(address);
    assert_eq!(late.rest().0, b"");
    let called = network.connect(Transport::Tcp, address, |_| None::<cubenet_tests::Reporter>);
    assert!(matches!(
        called,
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
fn a_call_that_nobody_answers_names_the_address_and_the_cause() {
    let network = network();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, address, ignore);
    let Event::Failed(error) = client.next() else {
        panic!("somebody answered");
    };
    assert_eq!(error.reason, CloseReason::Refused);
    assert_eq!(error.address, address);
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("refused"),
        "{text}"
    );
    eventually("the handle is inert", || connection.is_closed());
    assert_eq!(connection.send(b"x"), Err(SendError::Closed));
    eventually("nothing is left", || network.metrics().open == 0);
}

#[test]
fn a_call_into_a_black_hole_ends_after_the_connect_time() {
    // A listener whose queue is full drops further calls without a word.
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    hole.listen(0).unwrap();
    let address = hole.local_addr().unwrap().as_socket().unwrap();
    let _fills_the_queue = std::net::TcpStream::connect(address).unwrap();
    let limits = Limits {
        connect_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let network = network_with(limits);
    let client = Reports::default();
    let start = Instant::now();
    client.connect(&network, Transport::Tcp, address, ignore);
    let Event::Failed(error) = client.next() else {
        panic!("somebody answered");
    };
    assert_eq!(error.reason, CloseReason::Timeout(Timeout::Connect));
    assert_eq!(error.address, address);
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_call_can_be_taken_back() {
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    hole.listen(0).unwrap();
    let address = hole.local_addr().unwrap().as_socket().unwrap();
    let _fills_the_queue = std::net::TcpStream::connect(address).unwrap();
    let network = network();
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, address, ignore);
    connection.close();
    let Event::Failed(error) = client.next() else {
        panic!("somebody answered");
    };
    assert_eq!(error.reason, CloseReason::Local);
}

#[test]
fn an_address_that_cannot_be_used_is_named_with_the_cause() {
    let network = network();
    let accepted = |_: &Connection| None::<cubenet_tests::Reporter>;
    let taken = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap()
        .local();
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
        opened.lock().unwrap().send(connection.peer()).unwrap();
        Some(Server)
    };
    let listener = network.listen(Transport::Tcp, "[::]:0", accepted).unwrap();
    let port = listener.local().port();
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
    let address = SocketAddr::from(([127, 0, 0, 1], listener.local().port()));
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
    let (first_address, second_address) = (first.local(), second.local());
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
    assert_eq!((connection.peer(), connection.local()), (peer, address));
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
    let mut clients = [(); 2].map(|()| RawClient::connect(listener.local()));
    for client in &mut clients {
        client.send(b"meet");
    }
    for client in &mut clients {
        assert_eq!(client.receive(), b"meet");
    }
}

/// Answers short messages alone.
struct Sink;
impl Handler for Sink {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if message.len() < 10 {
            link.send(&message).unwrap();
        }
    }
}

#[test]
fn a_busy_connection_does_not_keep_others_of_its_worker_waiting() {
    let network = Network::builder().workers(1).start().unwrap();
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", |_| Some(Sink))
        .unwrap();
    let mut busy = RawClient::connect(listener.local());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flooding = thread::spawn({
        let stop = std::sync::Arc::clone(&stop);
        let flood = framed(&pattern(30_000)).repeat(20);
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                busy.write(&flood);
            }
        }
    });
    let mut other = RawClient::connect(listener.local());
    for _ in 0..200 {
        other.send(b"ping");
        assert_eq!(other.receive(), b"ping");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flooding.join().unwrap();
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
    let caller = Reports::default();
    let connection = caller.connect(&back, Transport::Tcp, back_address, ignore);
    let forward = move |_: &Connection| Some(Forward(connection.clone()));
    let listener = front
        .listen(Transport::Tcp, "127.0.0.1:0", forward)
        .unwrap();
    behind.opened();
    for _ in 0..5 {
        let mut client = RawClient::connect(listener.local());
        client.send(b"through");
        assert_eq!(client.receive(), b"forwarded");
        assert_eq!(behind.received(), b"through");
    }
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
    let mut client = RawClient::connect(listener.local());
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
    eventually("the end is heard", || {
        network.metrics().closed(CloseReason::Peer) == 1
    });
}

#[test]
fn the_end_that_came_during_a_pause_is_heard_after_it() {
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
fn the_end_that_came_with_more_than_a_turn_of_input_is_heard() {
    let limits = Limits {
        read_budget: 1,
        ..Limits::default()
    };
    let network = Network::builder()
        .workers(1)
        .limits(limits)
        .start()
        .unwrap();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    for _ in 0..20 {
        let mut client = RawClient::connect(address);
        for _ in 0..4 {
            client.send(&pattern(20_000));
        }
        drop(client);
        server.opened();
        for _ in 0..4 {
            assert_eq!(server.received(), pattern(20_000));
        }
        assert_eq!(server.closed(), CloseReason::Peer);
    }
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
    assert!(took < Limits::default().drain_timeout / 2, "{took:?}");
    writing.join().unwrap();
}

#[test]
fn a_slow_callback_does_not_make_others_look_silent() {
    struct Slow;
    impl Handler for Slow {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            if &*message == b"slow" {
                thread::sleep(Duration::from_millis(2_600));
            }
            link.send(&message).unwrap();
        }
    }
    let limits = Limits {
        stream_idle_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    // One worker, and more connections than it takes events at once.
    let network = Network::builder()
        .workers(1)
        .limits(limits)
        .start()
        .unwrap();
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", |_| Some(Slow))
        .unwrap();
    raise_descriptors();
    let mut clients: Vec<_> = (0..1_500)
        .map(|_| RawClient::connect(listener.local()))
        .collect();
    for client in &mut clients {
        client.send(b"hello");
        assert_eq!(client.receive(), b"hello");
    }
    clients[0].send(b"slow");
    thread::sleep(Duration::from_millis(100));
    for client in &mut clients[1..] {
        client.send(b"in time");
    }
    for client in &mut clients[1..] {
        assert_eq!(client.receive(), b"in time");
    }
}
