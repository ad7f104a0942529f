//! The driver of `docs/src/writing-a-driver.md`, against plain sockets.

mod driver;

use cubenet_core::{CloseReason, FrameError, Handler, Limits, Link, Message, Timeout};
use cubenet_tests::{framed, pattern};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Sends messages back, and does what some of them ask for.
struct Echo(Sender<CloseReason>);

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        match &*message {
            b"close" => link.close(),
            b"abort" => link.abort(),
            b"pause" => link.pause(),
            // What is refused now is asked for again by the peer.
            echoed => drop(link.send(echoed)),
        }
    }

    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        assert!(link.is_closed() && link.send(b"late").is_err());
        self.0.send(reason).unwrap();
    }
}

/// A client of a connection that the driver serves on a thread of its own.
struct Client {
    stream: TcpStream,
    closed: Receiver<CloseReason>,
}

impl Client {
    fn of(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (report, closed) = channel();
        std::thread::spawn(move || driver::serve(accepted, &mut Echo(report), &limits).unwrap());
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        Client { stream, closed }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Everything up to the driver's FIN.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
        rest
    }

    fn closed(&self) -> CloseReason {
        self.closed.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

#[test]
fn messages_come_back_whole_from_pieces_of_any_length() {
    let mut client = Client::of(Limits::default());
    let bytes = [&b""[..], b"hello", &pattern(65_535), b"world"]
        .map(framed)
        .concat();
    for piece in bytes.chunks(1_000) {
        client.write(piece);
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.rest() == bytes, "other bytes came back");
    assert_eq!(client.closed(), CloseReason::Peer);
}

#[test]
fn a_close_delivers_and_then_waits_for_the_fin_of_the_peer() {
    let mut client = Client::of(Limits::default());
    client.write(&[&b"one"[..], b"close", b"two"].map(framed).concat());
    assert_eq!(client.rest(), framed(b"one"));
    assert!(client.closed.try_recv().is_err(), "the peer is awaited");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.closed(), CloseReason::Local);
}

#[test]
fn an_abort_resets() {
    let mut client = Client::of(Limits::default());
    client.write(&framed(b"abort"));
    assert_eq!(client.closed(), CloseReason::Local);
    assert!(client.stream.read(&mut [0; 1]).is_err());
}

#[test]
fn a_violation_of_the_framing_delivers_what_was_sent_before() {
    let mut client = Client::of(Limits::new().with_max_message(100));
    client.write(&[&b"one"[..], &[0; 101]].map(framed).concat());
    assert_eq!(client.rest(), framed(b"one"));
    client.stream.shutdown(Shutdown::Write).unwrap();
    let (declared, limit) = (101, 100);
    let too_long = FrameError::TooLong { declared, limit };
    assert_eq!(client.closed(), CloseReason::Protocol(too_long));
}

#[test]
fn a_frame_that_does_not_end_times_out_and_a_paused_one_does_not() {
    let limits = Limits::new().with_frame_timeout(Duration::from_millis(50));
    let mut client = Client::of(limits.clone());
    client.write(b"\0");
    assert_eq!(client.closed(), CloseReason::Timeout(Timeout::Frame));
    let mut client = Client::of(limits);
    client.write(&[&framed(b"pause")[..], b"\0"].concat());
    let closed = client.closed.recv_timeout(Duration::from_millis(200));
    assert!(closed.is_err(), "{closed:?}");
}

#[test]
fn the_book_shows_this_driver() {
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/src/writing-a-driver.md"
    );
    let text = std::fs::read_to_string(page).unwrap();
    let begin = text.find("```rust\n").expect("the page has the driver") + "```rust\n".len();
    let end = begin + text[begin..].find("```").expect("which ends");
    let driver = include_str!("driver.rs");
    assert!(driver.lines().count() <= 110, "it is to stay short");
    if text[begin..end] != *driver {
        assert!(
            std::env::var_os("CUBENET_WRITE_DOCS").is_some(),
            "the page shows another driver; set CUBENET_WRITE_DOCS=1 to write it anew"
        );
        let text = [&text[..begin], driver, &text[end..]].concat();
        std::fs::write(page, text).unwrap();
    }
}
