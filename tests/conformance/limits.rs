//! Limits and clocks of a stream: each holds at its number and at its time.

use crate::Behaviour;
use cubenet_core::{CloseReason, Limits, SendError, Timeout, Transport::Tcp};
use cubenet_tests::framed;
use cubenet_tests::harness::{Event, Harness, Scene, echo, ignore};
use std::time::Duration;

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    (
        "a message as long as the limit passes, and one byte more is refused by `send`",
        longest,
    ),
    (
        "a peer that sends nothing closes with `Timeout(Idle)`, on time",
        idle,
    ),
    (
        "a peer that connects and sends nothing closes with `Timeout(FirstMessage)`, on time",
        first_message,
    ),
    (
        "a peer that has sent a message has the idle timeout from then on",
        first_message_begun,
    ),
    (
        "the first-message timeout does not hold for a connection that this side opened",
        first_message_of_ours,
    ),
    ("every message restarts the idle timeout", not_idle),
    (
        "sending does not restart the idle timeout",
        sending_is_not_hearing,
    ),
    (
        "a frame that does not end closes with `Timeout(Frame)`, on time",
        frame,
    ),
    (
        "a frame that arrives byte by byte closes at the same time",
        drip,
    ),
    ("half a header is a frame that has begun", half_header),
    (
        "frames that end in time do not close, however many",
        frames_in_time,
    ),
    (
        "one connection more than `max_connections` is closed at once, and the others stay",
        too_many,
    ),
    (
        "a connection that has closed makes room for another",
        room_again,
    ),
    (
        "a connect over `max_connections` is refused with an error",
        too_many_connects,
    ),
];

const TIME: Duration = Duration::from_millis(300);

fn longest(harness: &dyn Harness) {
    let limits = Limits::new().with_max_message(1_000);
    let scene = Scene::connecting_with(harness, limits);
    let pair = scene.pair(Tcp, ignore);
    pair.here.send(&[1; 1_000]).unwrap();
    let refused = SendError::TooLong {
        len: 1_001,
        limit: 1_000,
    };
    assert_eq!(pair.here.send(&[2; 1_001]), Err(refused));
    pair.here.send(b"it lives").unwrap();
    scene.until("both arrive", || {
        pair.server.messages() == [&[1; 1_000][..], b"it lives"]
    });
}

fn idle_limits() -> Limits {
    Limits::new().with_stream_idle_timeout(TIME)
}

fn idle(harness: &dyn Harness) {
    let scene = Scene::with(harness, idle_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let since = harness.now();
    let raw = harness.raw_connect(address);
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::Idle)]);
    scene.until("the peer sees the end", || raw.ended_in_order().is_some());
}

fn first_message_limits() -> Limits {
    Limits::new().with_first_message_timeout(TIME)
}

fn first_message(harness: &dyn Harness) {
    let scene = Scene::with(harness, first_message_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let since = harness.now();
    let raw = harness.raw_connect(address);
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
    let silent = CloseReason::Timeout(Timeout::FirstMessage);
    assert_eq!(server.closed(), [silent]);
    scene.until("the peer sees the end", || raw.ended_in_order().is_some());
}

fn first_message_begun(harness: &dyn Harness) {
    let scene = Scene::with(harness, first_message_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    scene.until("it is there", || server.handles().len() == 1);
    raw.write(b"\0");
    harness.pass(TIME * 2);
    raw.write(b"\x02ok");
    scene.until("it is received", || server.messages() == [b"ok"]);
    harness.pass(TIME * 2);
    assert!(server.closed().is_empty());
}

fn first_message_of_ours(harness: &dyn Harness) {
    let scene = Scene::connecting_with(harness, first_message_limits());
    let (address, _) = scene.listen(Tcp, ignore);
    let (_, client) = scene.connect(Tcp, address, ignore);
    scene.until("it is answered", || client.count(&Event::Opened) == 1);
    harness.pass(TIME * 2);
    assert!(client.closed().is_empty());
}

fn not_idle(harness: &dyn Harness) {
    let scene = Scene::with(harness, idle_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    let mut since = harness.now();
    for _ in 0..6 {
        since = harness.now();
        raw.write(&framed(b""));
        harness.pass(TIME / 3);
    }
    assert_eq!(server.messages().len(), 6);
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
}

fn sending_is_not_hearing(harness: &dyn Harness) {
    let scene = Scene::with(harness, idle_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let since = harness.now();
    let _raw = harness.raw_connect(address);
    scene.until("it is there", || server.handles().len() == 1);
    scene.at(since, TIME, "it is given up", || {
        let _ = server.handles()[0].send(b"are you there");
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::Idle)]);
}

fn frame_limits() -> Limits {
    Limits::new().with_frame_timeout(TIME)
}

fn frame(harness: &dyn Harness) {
    let scene = Scene::with(harness, frame_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    raw.write(&framed(b"whole"));
    scene.until("it is received", || server.messages().len() == 1);
    harness.pass(TIME * 2);
    assert!(
        server.closed().is_empty(),
        "between two frames there is time"
    );
    let since = harness.now();
    raw.write(b"\0\x05hel");
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::Frame)]);
}

fn drip(harness: &dyn Harness) {
    let scene = Scene::with(harness, frame_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    scene.until("it is there", || server.handles().len() == 1);
    let since = harness.now();
    raw.write(b"\x10\0");
    for _ in 0..4 {
        harness.pass(TIME / 6);
        raw.write(b"x");
    }
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::Frame)]);
}

fn half_header(harness: &dyn Harness) {
    let scene = Scene::with(harness, frame_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let since = harness.now();
    let raw = harness.raw_connect(address);
    raw.write(b"\0");
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::Frame)]);
}

fn frames_in_time(harness: &dyn Harness) {
    let scene = Scene::with(harness, frame_limits());
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    raw.write(b"\0");
    // Every piece ends one frame and begins the next.
    for _ in 0..6 {
        harness.pass(TIME / 3);
        raw.write(b"\x02ok\0");
    }
    harness.pass(TIME / 3);
    assert_eq!(server.messages().len(), 6);
    assert!(server.closed().is_empty());
}

fn few() -> Limits {
    Limits::new().with_max_connections(2)
}

fn too_many(harness: &dyn Harness) {
    let scene = Scene::with(harness, few());
    let (address, server) = scene.listen(Tcp, echo);
    let raws: Vec<_> = (1..=2)
        .map(|nth| {
            let raw = harness.raw_connect(address);
            scene.until("it is there", || server.handles().len() == nth);
            raw
        })
        .collect();
    let third = harness.raw_connect(address);
    scene.until("it is closed", || third.ended_in_order().is_some());
    assert_eq!(
        server.handles().len(),
        2,
        "`accepted` was not asked about it"
    );
    for raw in raws {
        raw.write(&framed(b"still here"));
        scene.until("it is answered", || raw.received() == framed(b"still here"));
    }
}

fn room_again(harness: &dyn Harness) {
    let scene = Scene::with(harness, few());
    let (address, server) = scene.listen(Tcp, ignore);
    for nth in 1..=10 {
        let raw = harness.raw_connect(address);
        scene.until("it is there", || server.handles().len() == nth);
        raw.close();
        scene.until("it has gone", || server.count(&Event::Dropped) == nth);
        scene.until("there is room", || scene.server.open() == 0);
    }
}

fn too_many_connects(harness: &dyn Harness) {
    let scene = Scene::connecting_with(harness, few());
    let (address, _) = scene.listen(Tcp, ignore);
    let (first, _) = scene.connect(Tcp, address, ignore);
    let (_second, _) = scene.connect(Tcp, address, ignore);
    let third = scene.client.connect(Tcp, address, Box::new(|_| None));
    let error = third.err().expect("it is refused");
    assert!(error.contains("max_connections"), "{error}");
    first.close();
    scene.until("there is room", || scene.client.open() == 1);
    scene.connect(Tcp, address, ignore);
}
