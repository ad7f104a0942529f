//! What bad input gets, and that other connections go on.

use cubenet_mio::{
    CloseReason, Connection, FrameError, Handler, Limits, Link, Message, SendError, Timeout,
    Transport,
};
use cubenet_tests::system::{RESETS, wine_cannot};
use cubenet_tests::{RawClient, Reports, echo, eventually, ignore, one_worker, pattern};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[test]
fn a_frame_declared_too_long_closes_with_what_was_declared_and_allowed() {
    let network = one_worker(Limits::new().with_max_message(1_000));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, echo);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    client.send(&pattern(1_000));
    client.write(&1_001_u16.to_be_bytes());
    assert_eq!(
        client.receive(),
        pattern(1_000),
        "what came before is answered"
    );
    assert_eq!(client.rest(), (vec![], true));
    assert_eq!(server.received().len(), 1_000);
    let too_long = FrameError::TooLong {
        declared: 1_001,
        limit: 1_000,
    };
    assert_eq!(server.closed(), CloseReason::Protocol(too_long));
    assert!(connection.is_closed());
}

#[test]
fn a_connection_that_ends_inside_a_frame_is_truncated_and_the_part_is_not_delivered() {
    for part in [&b"\0"[..], b"\0\x05", b"\0\x05abcd"] {
        let network = one_worker(Limits::default());
        let server = Reports::default();
        let address = server.listen(&network, Transport::Tcp, ignore);
        let mut client = RawClient::connect(address);
        server.opened();
        client.send(b"whole");
        client.write(part);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.received(), b"whole");
        assert_eq!(server.closed(), CloseReason::Truncated);
    }
}

#[test]
fn a_header_and_then_silence_or_a_drip_is_closed_after_the_frame_time() {
    let frame_timeout = Duration::from_millis(300);
    let network = one_worker(Limits::new().with_frame_timeout(frame_timeout));
    for drips in [false, true] {
        let server = Reports::default();
        let address = server.listen(&network, Transport::Tcp, ignore);
        let mut client = RawClient::connect(address);
        server.opened();
        let start = Instant::now();
        client.write(b"\xff\xff");
        if drips {
            for _ in 0..8 {
                std::thread::sleep(Duration::from_millis(30));
                client.write(b"x");
            }
        }
        assert_eq!(server.closed(), CloseReason::Timeout(Timeout::Frame));
        assert!(start.elapsed() >= frame_timeout);
    }
}

#[test]
fn random_bytes_give_messages_or_a_close_and_the_server_serves_on() {
    let network = one_worker(Limits::new().with_max_message(5_000));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..200 {
        let mut client = RawClient::connect(address);
        let garbage: Vec<u8> = (0..4_000)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        // The server may close before it has read all of it.
        let _ = std::io::Write::write_all(&mut client.stream, &garbage);
    }
    eventually("all are closed", || network.metrics().closed_total() == 200);
    let mut client = RawClient::connect(address);
    client.send(b"sane");
    eventually(
        "a sane client is served",
        || matches!(server.next(), cubenet_tests::Event::Received(message) if message == b"sane"),
    );
}

#[test]
fn a_message_over_the_limit_is_refused_at_send_and_the_connection_lives() {
    let network = one_worker(Limits::new().with_max_message(100));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, echo);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    for len in [101, 65_535, 65_536, 1_000_000] {
        let refused = connection.send(pattern(len));
        assert_eq!(refused, Err(SendError::TooLong { len, limit: 100 }));
    }
    client.send(b"alive");
    assert_eq!(client.receive(), b"alive");
}

#[test]
fn a_reset_closes_once_and_frees_the_connection() {
    if wine_cannot(RESETS) {
        return;
    }
    let network = one_worker(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    for moment in 0..4 {
        let mut client = RawClient::connect(address);
        let connection = server.opened();
        match moment {
            0 => {}
            1 => client.write(b"\0\x05ab"),
            2 => while connection.send(pattern(60_000)).is_ok() {},
            _ => {
                connection.pause();
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let reset = Some(Duration::ZERO);
        socket2::SockRef::from(&client.stream)
            .set_linger(reset)
            .unwrap();
        drop(client);
        assert_eq!(server.closed(), CloseReason::Reset, "moment {moment}");
        server.nothing();
        assert!(connection.is_closed());
    }
    assert_eq!(network.metrics().open, 0);
    assert_eq!(network.metrics().queued_bytes, 0);
}

/// Panics on a message that says so.
struct Panics;

static DROPPED: AtomicUsize = AtomicUsize::new(0);

impl Handler for Panics {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(b"unsent").unwrap();
        assert!(&*message != b"panic", "on purpose");
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        assert_eq!(reason, CloseReason::Panicked);
        panic!("here too");
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_handler_that_panics_closes_its_own_connection_and_harms_no_other() {
    let network = one_worker(Limits::default());
    let sane = Reports::default();
    let address = sane.listen(&network, Transport::Tcp, echo);
    let mut bystander = RawClient::connect(address);
    let accepted = |connection: &Connection| {
        assert!(connection.peer_addr().port() % 2 < 2, "never");
        Some(Panics)
    };
    let panics = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    for nth in 1..=3 {
        let mut client = RawClient::connect(panics.local_addr());
        client.send(b"panic");
        let (rest, _) = client.rest();
        assert_eq!(
            rest, b"",
            "what the panicking callback sent is not delivered"
        );
        eventually("its handler is dropped", || DROPPED.load(SeqCst) == nth);
        bystander.send(b"fine");
        assert_eq!(bystander.receive(), b"fine");
    }
    eventually("both panics of each are counted", || {
        network.metrics().panics == 6
    });
    assert_eq!(network.metrics().closed(CloseReason::Panicked), 3);
}

#[test]
fn an_accepted_that_panics_turns_its_peer_away() {
    fn accepted(_: &Connection) -> Option<Panics> {
        panic!("on purpose")
    }
    let network = one_worker(Limits::default());
    let tcp = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    let udp = network
        .listen(Transport::Udp, "127.0.0.1:0", accepted)
        .unwrap();
    assert_eq!(RawClient::connect(tcp.local_addr()).rest().0, b"");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"hello", udp.local_addr()).unwrap();
    eventually("two panics are counted", || network.metrics().panics == 2);
    eventually("nothing is left", || network.metrics().open == 0);
}
