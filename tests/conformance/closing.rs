//! How a stream ends: the reason that each end sees, and what is delivered before.

use crate::Behaviour;
use cubenet_core::{
    CloseReason, FrameError, Limits, SendError, Timeout,
    Transport::{self, Tcp},
};
use cubenet_tests::framed;
use cubenet_tests::harness::{Event, Harness, RawStream, Scene, echo, ignore};
use std::time::Duration;

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    (
        "the side that closes sees `Local`, its peer sees `Peer`",
        reasons,
    ),
    (
        "what was sent before a close is delivered before the FIN",
        delivered,
    ),
    (
        "what was sent before a close inside a callback is delivered before the FIN",
        in_callback,
    ),
    ("nothing is received after a close inside a callback", deaf),
    (
        "what `accepted` sends before it closes is delivered",
        closed_by_accepted,
    ),
    (
        "the side that aborts sees `Local`, its peer sees `Reset`",
        abort,
    ),
    (
        "an abort inside a callback ends the connection after it",
        abort_in_callback,
    ),
    (
        "`closed` comes once, however often it is closed and aborted",
        once,
    ),
    (
        "the handler is dropped after `closed`, and nothing follows",
        dropped,
    ),
    ("both sides see `Local` if they close at once", at_once),
    ("a FIN between two messages closes with `Peer`", peer_ends),
    (
        "a FIN inside a header closes with `Truncated`",
        inside_header,
    ),
    (
        "a FIN inside a payload closes with `Truncated`, and the partial message is not delivered",
        inside_payload,
    ),
    ("a RST closes with `Reset`", reset),
    (
        "what is queued for a peer that ended its direction is still delivered",
        half_closed,
    ),
    (
        "a frame over the limit closes with `Protocol`, and what was sent before is delivered",
        protocol,
    ),
    (
        "what was sent to a peer before it breaks the framing is delivered, however much it is",
        protocol_delivers,
    ),
    (
        "a peer that breaks the framing and never ends its direction is waited for no longer \
         than the drain time",
        protocol_waits,
    ),
    (
        "a connect to a port without a listener fails with `Refused`",
        refused,
    ),
    (
        "a connect that is not answered fails with `Timeout(Connect)`, on time",
        unanswered,
    ),
    (
        "a connect that is closed with nothing sent fails with `Local`",
        taken_back,
    ),
    (
        "a connect that is closed with messages sent delivers them",
        farewell,
    ),
    (
        "`accepted` that returns no handler closes the connection",
        turned_away,
    ),
    (
        "`accepted` that sends and then returns no handler leaves nothing queued",
        turned_away_after_sending,
    ),
    (
        "a close inside `connected` ends the connection with nothing delivered",
        not_wanted,
    ),
    (
        "a peer that never ends its direction is waited for no longer than the drain time",
        waits,
    ),
    (
        "what cannot be delivered in the drain time ends as `Timeout(Drain)`",
        drain,
    ),
    (
        "a connection that ends with messages undelivered ends with RST, not FIN",
        undelivered,
    ),
    (
        "a panic in a callback closes with `Panicked`, and other connections go on",
        panics,
    ),
    (
        "a panic in `accepted` closes the connection",
        panics_in_accepted,
    ),
];

fn reasons(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.here.close();
    assert!(pair.here.is_closed());
    scene.until("both have ended", || {
        pair.client.closed() == [CloseReason::Local] && pair.server.closed() == [CloseReason::Peer]
    });
    let pair = scene.pair(Tcp, ignore);
    pair.there.close();
    scene.until("both have ended the other way", || {
        pair.client.closed() == [CloseReason::Peer] && pair.server.closed() == [CloseReason::Local]
    });
    scene.until("nothing is left", || {
        scene.server.open() + scene.client.open() == 0
    });
}

fn delivered(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    for number in 0..20_u8 {
        pair.here.send(&[number; 30_000]).unwrap();
    }
    pair.here.close();
    assert_eq!(pair.here.send(b"late"), Err(SendError::Closed));
    scene.until("it has ended", || pair.server.count(&Event::Dropped) == 1);
    let mut expected: Vec<_> = (0..20_u8)
        .map(|number| Event::Received(vec![number; 30_000]))
        .collect();
    expected.extend([Event::Closed(CloseReason::Peer), Event::Dropped]);
    assert_eq!(pair.server.events(), expected);
}

fn in_callback(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, |link, message| {
        link.send(message).unwrap();
        link.send(b"bye").unwrap();
        link.close();
        assert!(link.is_closed());
        assert_eq!(link.send(b"late"), Err(SendError::Closed));
    });
    let (connection, client) = scene.connect(Tcp, address, ignore);
    connection.send(b"hello").unwrap();
    scene.until("it has ended", || client.closed() == [CloseReason::Peer]);
    assert_eq!(client.messages(), [&b"hello"[..], b"bye"]);
    scene.until("there, too", || server.closed() == [CloseReason::Local]);
}

fn deaf(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, |link, _| link.close());
    let raw = harness.raw_connect(address);
    raw.write(&framed(b"received").repeat(5));
    scene.until("it has ended", || raw.ended_in_order() == Some(true));
    raw.close();
    scene.until("there, too", || server.closed() == [CloseReason::Local]);
    assert_eq!(server.messages(), [b"received"]);
}

fn closed_by_accepted(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen_first(Tcp, ignore, |connection| {
        connection.send(b"we are full").unwrap();
        connection.close();
        true
    });
    let (_, client) = scene.connect(Tcp, address, ignore);
    scene.until("it has ended", || client.closed() == [CloseReason::Peer]);
    assert_eq!(client.messages(), [b"we are full"]);
    scene.until("there, too", || server.closed() == [CloseReason::Local]);
}

fn abort(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.here.abort();
    assert!(pair.here.is_closed());
    scene.until("both have ended", || {
        pair.client.closed() == [CloseReason::Local] && pair.server.closed() == [CloseReason::Reset]
    });
}

fn abort_in_callback(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, |link, _| {
        link.abort();
        assert!(link.is_closed());
    });
    let (connection, client) = scene.connect(Tcp, address, ignore);
    connection.send(b"go").unwrap();
    scene.until("both have ended", || {
        client.closed() == [CloseReason::Reset] && server.closed() == [CloseReason::Local]
    });
}

fn once(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, |link, _| {
        link.close();
        link.close();
        link.abort();
        link.abort();
    });
    pair.here.send(b"go").unwrap();
    scene.until("it has ended", || !pair.server.closed().is_empty());
    for _ in 0..3 {
        pair.there.close();
        pair.there.abort();
        pair.here.abort();
        pair.here.close();
    }
    scene.until("here, too", || pair.client.count(&Event::Dropped) == 1);
    scene.a_while();
    assert_eq!(pair.server.closed().len(), 1);
    assert_eq!(pair.client.closed().len(), 1);
}

fn dropped(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.here.close();
    scene.until("both are dropped", || {
        pair.client.count(&Event::Dropped) + pair.server.count(&Event::Dropped) == 2
    });
    scene.a_while();
    assert_eq!(
        pair.client.events(),
        [Event::Closed(CloseReason::Local), Event::Dropped]
    );
    assert_eq!(
        pair.server.events(),
        [Event::Closed(CloseReason::Peer), Event::Dropped]
    );
}

fn at_once(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    // Each holds up the other's end, so that neither can see it first.
    pair.here.pause();
    pair.there.pause();
    scene.a_while();
    pair.here.close();
    pair.there.close();
    scene.until("both have ended", || {
        pair.client.closed() == [CloseReason::Local] && pair.server.closed() == [CloseReason::Local]
    });
}

/// A raw peer of a server, and what that saw once the peer had done something.
fn raw_ends(harness: &dyn Harness, end: fn(&dyn RawStream)) -> Vec<Event> {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    raw.write(&framed(b"whole"));
    scene.until("it is received", || server.messages() == [b"whole"]);
    end(&*raw);
    scene.until("it has ended", || server.count(&Event::Dropped) == 1);
    server.events()[2..3].to_vec()
}

fn peer_ends(harness: &dyn Harness) {
    let events = raw_ends(harness, |raw| raw.close());
    assert_eq!(events, [Event::Closed(CloseReason::Peer)]);
}

fn inside_header(harness: &dyn Harness) {
    let events = raw_ends(harness, |raw| {
        raw.write(b"\0");
        raw.shutdown();
    });
    assert_eq!(events, [Event::Closed(CloseReason::Truncated)]);
}

fn inside_payload(harness: &dyn Harness) {
    let events = raw_ends(harness, |raw| {
        raw.write(b"\0\x05hell");
        raw.shutdown();
    });
    assert_eq!(events, [Event::Closed(CloseReason::Truncated)]);
}

fn reset(harness: &dyn Harness) {
    let events = raw_ends(harness, |raw| raw.reset());
    assert_eq!(events, [Event::Closed(CloseReason::Reset)]);
}

fn half_closed(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, echo);
    let raw = harness.raw_connect(address);
    raw.stop_reading();
    let message = framed(&[7; 60_000]);
    raw.write(&message.repeat(10));
    raw.shutdown();
    scene.until("all is received", || server.messages().len() == 10);
    raw.read_on();
    scene.until("all comes back", || {
        raw.received().len() == 10 * message.len()
    });
    scene.until("it has ended", || raw.ended_in_order() == Some(true));
    scene.until("there, too", || server.closed() == [CloseReason::Peer]);
}

fn protocol(harness: &dyn Harness) {
    let limits = Limits::new().with_max_message(100);
    let scene = Scene::with(harness, limits);
    let (address, server) = scene.listen(Tcp, echo);
    let raw = harness.raw_connect(address);
    raw.write(&[framed(&[1; 100]), framed(&[2; 101])].concat());
    scene.until("it has ended", || !server.closed().is_empty());
    let too_long = FrameError::TooLong {
        declared: 101,
        limit: 100,
    };
    assert_eq!(server.closed(), [CloseReason::Protocol(too_long)]);
    assert_eq!(server.messages(), [vec![1; 100]]);
    scene.until("the answer arrives", || raw.received() == framed(&[1; 100]));
}

fn protocol_delivers(harness: &dyn Harness) {
    let limits = Limits::new()
        .with_max_message(60_000)
        .with_max_queued(4 << 20)
        .with_drain_timeout(Duration::from_secs(20));
    let scene = Scene::with(harness, limits);
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    raw.stop_reading();
    scene.until("it is there", || server.handles().len() == 1);
    let message = [7; 9_000];
    let mut sent = 0;
    while sent < 200 && server.handles()[0].send(&message).is_ok() {
        sent += 1;
    }
    raw.write(&[&[0xff; 2][..], &[1; 50_000]].concat());
    scene.until("no more is accepted", || server.handles()[0].is_closed());
    raw.read_on();
    // There is always something more of it on the way.
    scene.until("it has ended", || {
        raw.write(&[2; 1_000]);
        raw.ended_in_order().is_some()
    });
    assert_eq!(raw.ended_in_order(), Some(true));
    assert!(raw.received() == framed(&message).repeat(sent));
    raw.close();
    scene.until("there, too", || !server.closed().is_empty());
    let too_long = FrameError::TooLong {
        declared: 65_535,
        limit: 60_000,
    };
    assert_eq!(server.closed(), [CloseReason::Protocol(too_long)]);
}

fn protocol_waits(harness: &dyn Harness) {
    let time = Duration::from_millis(300);
    let limits = Limits::new().with_max_message(100).with_drain_timeout(time);
    let scene = Scene::with(harness, limits);
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    scene.until("it is there", || server.handles().len() == 1);
    let since = harness.now();
    raw.write(&[0xff; 2]);
    scene.at(since, time, "it is over", || !server.closed().is_empty());
    let reason = server.closed()[0];
    assert!(matches!(reason, CloseReason::Protocol(_)), "{reason}");
}

fn refused(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (listener, _) = scene.listener(Tcp, ignore, |_| true);
    let address = listener.local_addr();
    listener.close();
    let (connection, client) = scene.connect(Tcp, address, ignore);
    scene.until("it is reported", || {
        client.closed() == [CloseReason::Refused]
    });
    assert!(connection.is_closed());
    assert_eq!(connection.send(b"late"), Err(SendError::Closed));
    assert_eq!(scene.client.open(), 0);
}

fn connecting(harness: &dyn Harness, time: Duration) -> Scene<'_> {
    let limits = Limits::new().with_connect_timeout(time);
    Scene::connecting_with(harness, limits)
}

fn unanswered(harness: &dyn Harness) {
    let time = Duration::from_millis(300);
    let scene = connecting(harness, time);
    let hole = harness.black_hole();
    let since = harness.now();
    let (_, client) = scene.connect(Tcp, hole.address, ignore);
    scene.at(since, time, "it is given up", || {
        !client.closed().is_empty()
    });
    assert_eq!(client.closed(), [CloseReason::Timeout(Timeout::Connect)]);
    assert_eq!(client.count(&Event::Opened), 0);
}

fn taken_back(harness: &dyn Harness) {
    let scene = connecting(harness, Duration::from_secs(10));
    let hole = harness.black_hole();
    let (connection, client) = scene.connect(Tcp, hole.address, ignore);
    connection.close();
    scene.until("it is reported", || client.closed() == [CloseReason::Local]);
    assert_eq!(scene.client.open(), 0);
}

fn farewell(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let (connection, client) = scene.connect(Tcp, address, ignore);
    connection.send(b"just this").unwrap();
    connection.close();
    scene.until("it has ended", || server.closed() == [CloseReason::Peer]);
    assert_eq!(server.messages(), [b"just this"]);
    // Whether it was open for a moment depends on which thread was first.
    scene.until("its own end is reported", || {
        client.closed() == [CloseReason::Local]
    });
}

fn turned_away(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen_first(Tcp, ignore, |_| false);
    let raw = harness.raw_connect(address);
    scene.until("it has ended", || raw.ended_in_order().is_some());
    assert!(raw.received().is_empty());
    assert_eq!(server.events(), [Event::Opened]);
    assert!(server.handles()[0].is_closed());
    assert_eq!(scene.server.open(), 0);
}

fn turned_away_after_sending(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen_first(Tcp, ignore, |connection| {
        // More than any of the sockets takes.
        (0..300).all(|_| connection.send(&[7; 9_000]).is_ok());
        false
    });
    for nth in 1..=3 {
        let raw = harness.raw_connect(address);
        raw.stop_reading();
        scene.until("it is asked about", || server.handles().len() == nth);
        scene.until("nothing is left", || scene.server.open() == 0);
        assert_eq!(scene.server.queued(), 0);
        raw.read_on();
        scene.until("it has ended", || {
            raw.received();
            raw.ended_in_order().is_some()
        });
    }
}

fn not_wanted(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let (connection, client) = scene.connect_first(Tcp, address, ignore, |_| false);
    scene.until("it has ended", || server.closed() == [CloseReason::Peer]);
    assert!(connection.is_closed());
    assert_eq!(client.events(), [Event::Opened]);
    scene.until("nothing is left", || scene.client.open() == 0);
}

fn draining(harness: &dyn Harness, time: Duration) -> Scene<'_> {
    let limits = Limits::new().with_drain_timeout(time);
    Scene::with(harness, limits)
}

fn waits(harness: &dyn Harness) {
    let time = Duration::from_millis(300);
    let scene = draining(harness, time);
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    scene.until("it is there", || server.handles().len() == 1);
    let since = harness.now();
    server.handles()[0].close();
    scene.at(since, time, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Local]);
    assert_eq!(raw.ended_in_order(), Some(true));
}

/// A peer that reads nothing, with more queued for it than the sockets hold.
fn stuck(
    scene: &Scene<'_>,
    transport: Transport,
) -> (Box<dyn RawStream>, cubenet_tests::harness::Log) {
    let (address, server) = scene.listen(transport, ignore);
    let raw = scene.harness.raw_connect(address);
    raw.stop_reading();
    scene.until("it is there", || server.handles().len() == 1);
    while server.handles()[0].queued() < 500_000 {
        server.handles()[0].send(&[7; 60_000]).unwrap();
    }
    (raw, server)
}

fn drain(harness: &dyn Harness) {
    let time = Duration::from_millis(300);
    let scene = draining(harness, time);
    let (raw, server) = stuck(&scene, Tcp);
    let since = harness.now();
    server.handles()[0].close();
    scene.at(since, time, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::Drain)]);
    raw.read_on();
    scene.until("the peer is reset", || raw.ended_in_order() == Some(false));
}

fn undelivered(harness: &dyn Harness) {
    let limits = Limits::new().with_stream_idle_timeout(Duration::from_millis(300));
    let scene = Scene::with(harness, limits);
    let (raw, server) = stuck(&scene, Tcp);
    scene.until("it is idle too long", || {
        server.closed() == [CloseReason::Timeout(Timeout::Idle)]
    });
    raw.read_on();
    scene.until("the peer is reset", || raw.ended_in_order() == Some(false));
}

fn panics(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, |link, message| {
        assert_ne!(message, b"panic", "on purpose");
        link.send(message).unwrap();
    });
    let (other, other_client) = scene.connect(Tcp, address, ignore);
    let (connection, client) = scene.connect(Tcp, address, ignore);
    connection.send(b"panic").unwrap();
    scene.until("it has ended", || {
        server.closed() == [CloseReason::Panicked]
    });
    scene.until("here, too", || client.closed() == [CloseReason::Reset]);
    other.send(b"still here").unwrap();
    scene.until("the other goes on", || {
        other_client.messages() == [b"still here"]
    });
}

fn panics_in_accepted(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen_first(Tcp, ignore, |_| panic!("on purpose"));
    let raw = harness.raw_connect(address);
    scene.until("it has ended", || raw.ended_in_order().is_some());
    assert_eq!(server.events(), [Event::Opened]);
    assert_eq!(scene.server.open(), 0);
}
