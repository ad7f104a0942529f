//! Backpressure and pauses: neither side holds more than it allows.

use crate::Behaviour;
use cubenet_core::{CloseReason, Limits, SendError, Timeout, Transport::Tcp};
use cubenet_tests::harness::{Event, Harness, Log, RawStream, Scene, ignore};
use cubenet_tests::{framed, pattern};
use std::time::Duration;

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    (
        "a peer that reads nothing fills the queue, and `send` answers `Full`",
        full,
    ),
    (
        "after `Full`, `writable` is called once there is room, once",
        writable,
    ),
    ("without `Full` there is no `writable`", not_owed),
    ("`queued` is what waits, and falls to 0", queued),
    (
        "whatever was accepted around a `Full` arrives whole and in order",
        nothing_lost,
    ),
    (
        "one message is accepted on an empty queue, however little is left of `max_queued_total`",
        one_message,
    ),
    (
        "a connection that exceeds `max_queued_total` closes with `Overflow`",
        overflow,
    ),
    (
        "a peer that reads nothing closes with `Timeout(WriteStall)`, on time",
        stall,
    ),
    (
        "a peer that reads a little now and then is not closed",
        slow,
    ),
    (
        "nothing is delivered during a pause, and everything after it, in order",
        pause,
    ),
    (
        "a pause inside a callback holds up the very next message",
        pause_in_callback,
    ),
    ("a paused connection still sends", sends_paused),
    (
        "a paused connection does not close as idle",
        paused_and_idle,
    ),
    (
        "a FIN that arrives during a pause is handled after it",
        paused_end,
    ),
    ("a paused connection can be closed", paused_close),
];

/// A peer that reads nothing, and the connection to it.
fn deaf(scene: &Scene<'_>) -> (Box<dyn RawStream>, Log) {
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = scene.harness.raw_connect(address);
    raw.stop_reading();
    scene.until("it is there", || server.handles().len() == 1);
    (raw, server)
}

/// Sends until there is no room. Returns how many were accepted.
fn fill(scene: &Scene<'_>, server: &Log) -> usize {
    let mut sent = 0;
    loop {
        match server.handles()[0].send(&pattern(10_000)) {
            Ok(()) => sent += 1,
            Err(SendError::Full) if server.handles()[0].queued() + 10_002 > 1 << 20 => return sent,
            // The sockets took some meanwhile.
            Err(SendError::Full) => scene.harness.pass(Duration::from_millis(5)),
            Err(other) => panic!("{other}"),
        }
    }
}

fn full(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (_raw, server) = deaf(&scene);
    fill(&scene, &server);
    let connection = &server.handles()[0];
    assert_eq!(connection.send(&pattern(10_000)), Err(SendError::Full));
    assert!(connection.queued() <= 1 << 20);
    assert!(!connection.is_closed());
}

fn writable(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (raw, server) = deaf(&scene);
    fill(&scene, &server);
    scene.a_while();
    assert_eq!(server.count(&Event::Writable), 0, "there is no room yet");
    raw.read_on();
    scene.until("there is room", || {
        raw.received();
        server.count(&Event::Writable) == 1
    });
    assert!(server.handles()[0].queued() <= 1 << 18);
    scene.until("all has gone", || {
        raw.received();
        server.handles()[0].queued() == 0
    });
    assert_eq!(server.count(&Event::Writable), 1);
}

fn not_owed(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (raw, server) = deaf(&scene);
    for _ in 0..50 {
        server.handles()[0].send(&pattern(10_000)).unwrap();
    }
    raw.read_on();
    scene.until("all arrives", || raw.received().len() == 50 * 10_002);
    scene.a_while();
    assert_eq!(server.events(), [Event::Opened]);
}

fn queued(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (raw, server) = deaf(&scene);
    let connection = &server.handles()[0];
    assert_eq!(connection.queued(), 0);
    while connection.queued() == 0 {
        connection.send(&pattern(10_000)).unwrap();
    }
    scene.a_while();
    let before = connection.queued();
    connection.send(&pattern(10_000)).unwrap();
    if before > 0 {
        assert_eq!(connection.queued(), before + 10_002, "the header counts");
    }
    raw.read_on();
    scene.until("all has gone", || {
        raw.received();
        connection.queued() == 0
    });
}

fn nothing_lost(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (raw, server) = deaf(&scene);
    let mut sent = fill(&scene, &server);
    raw.read_on();
    scene.until("there is room", || {
        raw.received();
        server.count(&Event::Writable) == 1
    });
    for _ in 0..10 {
        server.handles()[0].send(&pattern(10_000)).unwrap();
        sent += 1;
    }
    let expected = framed(&pattern(10_000)).repeat(sent);
    scene.until("all arrives", || raw.received().len() >= expected.len());
    assert!(raw.received() == expected);
}

fn crowded(harness: &dyn Harness) -> Scene<'_> {
    let limits = Limits::new()
        .with_max_queued(100_000)
        .with_low_watermark(50_000)
        .with_max_queued_total(100_000);
    Scene::with(harness, limits)
}

/// Two peers that read nothing; what waits for the first is most of what may wait for all.
fn two_deaf(scene: &Scene<'_>) -> (Vec<Box<dyn RawStream>>, Log) {
    let (address, server) = scene.listen(Tcp, ignore);
    let mut raws = Vec::new();
    for nth in 1..=2 {
        let raw = scene.harness.raw_connect(address);
        raw.stop_reading();
        raws.push(raw);
        scene.until("it is there", || server.handles().len() == nth);
    }
    let first = &server.handles()[0];
    while first.queued() < 85_000 {
        let _ = first.send(&pattern(5_000));
        scene.harness.pass(Duration::from_millis(1));
    }
    (raws, server)
}

fn one_message(harness: &dyn Harness) {
    let scene = crowded(harness);
    let (_raws, server) = two_deaf(&scene);
    let second = &server.handles()[1];
    assert_eq!(second.queued(), 0);
    assert_eq!(second.send(&pattern(1_000)), Ok(()));
}

fn overflow(harness: &dyn Harness) {
    let scene = crowded(harness);
    let (raws, server) = two_deaf(&scene);
    let [first, second] = [0, 1].map(|nth| server.handles()[nth].clone());
    // How much the sockets take, and when, is theirs to decide. So the first is filled up to
    // its bound again and again, and the second sends a long message whenever nothing waits for
    // it: sooner or later what its socket does not take of one is more than there is room for.
    // If it is less, the second's peer reads for a moment.
    scene.until("it is given up", || {
        for len in [5_000, 100, 0] {
            while first.send(&pattern(len)).is_ok() {}
        }
        if second.queued() == 0 {
            raws[1].stop_reading();
            let _ = second.send(&pattern(65_535));
        } else {
            raws[1].read_on();
            raws[1].received();
        }
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Overflow]);
    assert!(second.is_closed() && !first.is_closed());
}

fn stalling(harness: &dyn Harness, time: Duration) -> Scene<'_> {
    let limits = Limits::new().with_write_stall_timeout(time);
    Scene::with(harness, limits)
}

fn stall(harness: &dyn Harness) {
    let time = Duration::from_millis(300);
    let scene = stalling(harness, time);
    let (raw, server) = deaf(&scene);
    for _ in 0..50 {
        server.handles()[0].send(&pattern(10_000)).unwrap();
    }
    let since = harness.now();
    scene.at(since, time, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::WriteStall)]);
    raw.read_on();
    scene.until("it is reset", || raw.ended_in_order() == Some(false));
}

fn slow(harness: &dyn Harness) {
    let scene = stalling(harness, Duration::from_millis(600));
    let (raw, server) = deaf(&scene);
    for _ in 0..100 {
        server.handles()[0].send(&pattern(10_000)).unwrap();
    }
    for _ in 0..6 {
        harness.pass(Duration::from_millis(200));
        raw.read_on();
        raw.received();
        harness.pass(Duration::from_millis(2));
        raw.stop_reading();
    }
    assert!(server.closed().is_empty(), "{:?}", server.closed());
}

fn pause(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.there.pause();
    scene.a_while();
    for number in 0..100_u8 {
        pair.here.send(&[number]).unwrap();
    }
    scene.a_while();
    assert!(pair.server.messages().is_empty());
    pair.there.resume();
    scene.until("all arrive", || pair.server.messages().len() == 100);
    assert!(
        (0..100_u8)
            .map(|number| vec![number])
            .eq(pair.server.messages())
    );
}

fn pause_in_callback(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, |link, _| link.pause());
    let raw = harness.raw_connect(address);
    raw.write(&[framed(b"1"), framed(b"2"), framed(b"3")].concat());
    for number in 1..=3 {
        scene.until("one arrives", || server.messages().len() == number);
        scene.a_while();
        assert_eq!(server.messages().len(), number);
        server.handles()[0].resume();
    }
    assert_eq!(server.messages(), [b"1", b"2", b"3"]);
}

fn sends_paused(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.there.pause();
    scene.a_while();
    pair.there.send(b"I do not listen").unwrap();
    scene.until("it is received", || {
        pair.client.messages() == [b"I do not listen"]
    });
}

fn paused_and_idle(harness: &dyn Harness) {
    let limits = Limits::new().with_stream_idle_timeout(Duration::from_millis(300));
    let scene = Scene::with(harness, limits);
    let pair = scene.pair(Tcp, ignore);
    pair.there.pause();
    harness.pass(Duration::from_millis(600));
    assert!(pair.server.closed().is_empty());
    let since = harness.now();
    pair.there.resume();
    let time = Duration::from_millis(300);
    scene.at(since, time, "it is idle too long", || {
        !pair.server.closed().is_empty()
    });
    assert_eq!(pair.server.closed(), [CloseReason::Timeout(Timeout::Idle)]);
}

fn paused_end(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.there.pause();
    scene.a_while();
    pair.here.send(b"last").unwrap();
    pair.here.close();
    scene.a_while();
    assert!(pair.server.events().is_empty());
    pair.there.resume();
    scene.until("it has ended", || {
        pair.server.closed() == [CloseReason::Peer]
    });
    assert_eq!(pair.server.messages(), [b"last"]);
}

fn paused_close(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.there.pause();
    scene.a_while();
    pair.here.send(b"not received").unwrap();
    scene.a_while();
    pair.there.close();
    scene.until("both have ended", || {
        pair.server.closed() == [CloseReason::Local] && pair.client.closed() == [CloseReason::Peer]
    });
    assert!(pair.server.messages().is_empty());
}
