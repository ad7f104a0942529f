//! Datagrams: a connection for each peer, all on one socket.

use crate::Behaviour;
use cubenet_core::{
    CloseReason, FullPolicy, Limits, SendError, Timeout,
    Transport::{Tcp, Udp},
    TransportError,
};
use cubenet_tests::harness::{Event, Harness, Scene, echo, ignore};
use cubenet_tests::{framed, pattern};
use std::time::Duration;

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    (
        "a peer's first datagram makes a connection, and is delivered",
        first,
    ),
    (
        "every peer has a connection of its own, and receives only its own answers",
        several,
    ),
    (
        "a datagram is a message: none is cut, none joined",
        boundaries,
    ),
    ("a datagram of 65,507 bytes passes", largest),
    (
        "an empty datagram closes the connection as `Peer`",
        peer_closes,
    ),
    ("a close sends an empty datagram", sends_a_close_datagram),
    (
        "what was sent before a close leaves before the close datagram",
        order_of_close_datagram,
    ),
    (
        "a close inside a callback sends the answer and the close datagram",
        closed_in_callback,
    ),
    ("an abort sends nothing", abort),
    (
        "an empty datagram from an unknown address opens nothing and is not answered",
        unknown_peer,
    ),
    ("a datagram after the close makes a new connection", again),
    (
        "a peer that sends nothing closes with `Timeout(Idle)`, on time",
        idle,
    ),
    ("every datagram restarts the idle timeout", not_idle),
    ("idle peers close one by one, each on time", one_by_one),
    (
        "`accepted` that returned no handler is called again for the peer's next datagram",
        turned_away,
    ),
    ("a peer that was not admitted gets no answer", not_answered),
    (
        "a datagram over the limit is dropped and reported to its connection",
        too_long,
    ),
    (
        "`send` refuses a datagram over the limit and an empty one",
        refused_sends,
    ),
    ("a full table drops the datagrams of new peers", full_table),
    (
        "a full table can evict the peer that was idle longest, with `Overflow`",
        eviction,
    ),
    (
        "the peer that was idle longest is evicted, too, at `max_connections`",
        eviction_of_connections,
    ),
    (
        "an empty datagram closes nothing if `empty_datagram_closes` is false",
        empty_closes_nothing,
    ),
    (
        "datagram peers take up no stream's place, and streams none of theirs",
        places_apart,
    ),
    ("what arrives during a pause is dropped", pause),
    (
        "a connect over UDP is connected at once, before an answer",
        connect,
    ),
    (
        "a connect to a port without a socket gets the error `Unreachable` and stays open",
        unused_port,
    ),
    ("both ends that are ours see each other's close", both_ours),
    ("`closed` comes once, and the handler is dropped", once),
    (
        "a panic in a callback closes with `Panicked`, and other peers go on",
        panics,
    ),
];

fn first(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"hello");
    scene.until("it is received", || {
        server.events() == [Event::Opened, Event::Received(b"hello".to_vec())]
    });
    assert_eq!(server.handles()[0].peer_addr(), raw.local_addr());
    assert_eq!(server.handles()[0].local_addr(), address);
}

fn several(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, echo);
    let raws: Vec<_> = (0..20).map(|_| harness.raw_datagrams()).collect();
    for round in 0..3_u8 {
        for (nth, raw) in raws.iter().enumerate() {
            raw.send_to(address, &[round, nth as u8]);
        }
    }
    for (nth, raw) in raws.iter().enumerate() {
        let expected: Vec<_> = (0..3_u8).map(|round| vec![round, nth as u8]).collect();
        scene.until("it is answered", || raw.received().len() == 3);
        assert_eq!(raw.received(), expected);
    }
    assert_eq!(server.handles().len(), 20);
    assert_eq!(scene.server.open(), 20);
}

fn boundaries(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, _) = scene.listen(Udp, echo);
    let (here, client) = scene.connect(Udp, address, ignore);
    let lengths = [
        1, 2, 100, 100, 100, 40, 1_472, 1_473, 9_000, 3, 1_200, 1_200,
    ];
    for length in lengths {
        here.send(&pattern(length)).unwrap();
    }
    scene.until("all come back", || client.messages().len() == lengths.len());
    assert!(
        lengths
            .iter()
            .map(|length| pattern(*length))
            .eq(client.messages())
    );
}

fn largest(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, _) = scene.listen(Udp, echo);
    let (here, client) = scene.connect(Udp, address, ignore);
    here.send(&pattern(65_507)).unwrap();
    scene.until("it comes back", || client.messages() == [pattern(65_507)]);
}

fn peer_closes(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"hello");
    scene.until("it is received", || server.messages().len() == 1);
    raw.send_to(address, b"");
    scene.until("it has ended", || server.closed() == [CloseReason::Peer]);
    scene.a_while();
    assert!(
        raw.received().is_empty(),
        "a close datagram is not answered"
    );
    assert_eq!(scene.server.open(), 0);
}

fn sends_a_close_datagram(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"hello");
    scene.until("it is received", || server.handles().len() == 1);
    server.handles()[0].close();
    scene.until("it is reported", || raw.received() == [b""]);
    scene.until("it has ended", || server.closed() == [CloseReason::Local]);
}

fn order_of_close_datagram(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"hello");
    scene.until("it is received", || server.handles().len() == 1);
    let connection = &server.handles()[0];
    connection.send(b"1").unwrap();
    connection.send(b"2").unwrap();
    connection.close();
    assert_eq!(connection.send(b"3"), Err(SendError::Closed));
    scene.until("all arrive", || raw.received() == [&b"1"[..], b"2", b""]);
}

fn closed_in_callback(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, |link, message| {
        link.send(message).unwrap();
        link.close();
        assert_eq!(link.send(b"late"), Err(SendError::Closed));
    });
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"hello");
    scene.until("all arrive", || raw.received() == [&b"hello"[..], b""]);
    scene.until("it has ended", || server.closed() == [CloseReason::Local]);
}

fn abort(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"hello");
    scene.until("it is received", || server.handles().len() == 1);
    server.handles()[0].abort();
    scene.until("it has ended", || server.closed() == [CloseReason::Local]);
    scene.a_while();
    assert!(raw.received().is_empty());
}

fn unknown_peer(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, echo);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"");
    scene.a_while();
    assert!(server.events().is_empty());
    assert!(raw.received().is_empty());
    assert_eq!(scene.server.open(), 0);
}

fn again(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"first");
    scene.until("it is received", || server.messages().len() == 1);
    raw.send_to(address, b"");
    scene.until("it has ended", || server.count(&Event::Dropped) == 1);
    raw.send_to(address, b"second");
    scene.until("it is received again", || server.messages().len() == 2);
    let handles = server.handles();
    assert_eq!(handles.len(), 2);
    assert_ne!(handles[0].id(), handles[1].id());
    assert!(handles[0].is_closed() && !handles[1].is_closed());
}

const TIME: Duration = Duration::from_millis(300);

fn idle_scene(harness: &dyn Harness) -> Scene<'_> {
    let limits = Limits::new().with_datagram_idle_timeout(TIME);
    Scene::with(harness, limits)
}

fn idle(harness: &dyn Harness) {
    let scene = idle_scene(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    let since = harness.now();
    raw.send_to(address, b"hello");
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(server.closed(), [CloseReason::Timeout(Timeout::Idle)]);
    assert_eq!(scene.server.open(), 0);
}

fn not_idle(harness: &dyn Harness) {
    let scene = idle_scene(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    let mut since = harness.now();
    for _ in 0..6 {
        since = harness.now();
        raw.send_to(address, b"here");
        harness.pass(TIME / 3);
    }
    scene.at(since, TIME, "it is given up", || {
        !server.closed().is_empty()
    });
    assert_eq!(
        server.handles().len(),
        1,
        "it was one connection throughout"
    );
    assert_eq!(server.messages().len(), 6);
}

fn one_by_one(harness: &dyn Harness) {
    let scene = idle_scene(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raws: Vec<_> = (0..3).map(|_| harness.raw_datagrams()).collect();
    let mut spoke = Vec::new();
    for raw in &raws {
        spoke.push(harness.now());
        raw.send_to(address, b"here");
        harness.pass(TIME / 5);
    }
    for (nth, since) in spoke.into_iter().enumerate() {
        scene.at(since, TIME, "the next is given up", || {
            server.closed().len() > nth
        });
    }
}

fn turned_away(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen_first(Udp, ignore, |_| false);
    let raw = harness.raw_datagrams();
    for asked in 1..=3 {
        raw.send_to(address, b"let me in");
        scene.until("it is asked", || server.count(&Event::Opened) == asked);
    }
    assert_eq!(server.events().len(), 3, "nothing but the question");
    assert_eq!(scene.server.open(), 0);
}

fn not_answered(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen_first(Udp, echo, |_| false);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"let me in");
    scene.until("it is asked", || server.count(&Event::Opened) == 1);
    scene.a_while();
    assert!(raw.received().is_empty());
}

fn short() -> Limits {
    Limits::new().with_max_datagram(100)
}

fn too_long(harness: &dyn Harness) {
    let scene = Scene::with(harness, short());
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, &pattern(101));
    scene.a_while();
    assert!(server.events().is_empty(), "it opens nothing");
    raw.send_to(address, &pattern(100));
    scene.until("it is received", || server.messages() == [pattern(100)]);
    raw.send_to(address, &pattern(5_000));
    let too_long = TransportError::DatagramTooLong {
        len: 5_000,
        limit: 100,
    };
    scene.until("it is reported", || {
        server.count(&Event::Error(too_long)) == 1
    });
    assert!(!server.handles()[0].is_closed());
}

fn refused_sends(harness: &dyn Harness) {
    let scene = Scene::connecting_with(harness, short());
    let pair = scene.pair(Udp, ignore);
    let too_long = SendError::TooLong {
        len: 101,
        limit: 100,
    };
    assert_eq!(pair.here.send(&pattern(101)), Err(too_long));
    assert_eq!(pair.here.send(b""), Err(SendError::Empty));
    pair.here.send(b"it lives").unwrap();
    scene.until("it is received", || pair.server.messages() == [b"it lives"]);
}

fn full(harness: &dyn Harness, full_policy: FullPolicy) -> Scene<'_> {
    let limits = Limits::new()
        .with_max_peers(2)
        .with_full_policy(full_policy);
    Scene::with(harness, limits)
}

fn full_table(harness: &dyn Harness) {
    let scene = full(harness, FullPolicy::Refuse);
    let (address, server) = scene.listen(Udp, echo);
    let raws: Vec<_> = (0..4).map(|_| harness.raw_datagrams()).collect();
    for raw in &raws {
        raw.send_to(address, b"hello");
        harness.pass(Duration::from_millis(20));
    }
    scene.until("two are answered", || {
        raws[..2].iter().all(|raw| raw.received() == [b"hello"])
    });
    scene.a_while();
    assert!(raws[2..].iter().all(|raw| raw.received().is_empty()));
    assert_eq!(server.handles().len(), 2);
}

fn eviction(harness: &dyn Harness) {
    let scene = full(harness, FullPolicy::EvictIdleFor(Duration::from_millis(50)));
    let (address, server) = scene.listen(Udp, ignore);
    let raws: Vec<_> = (0..3).map(|_| harness.raw_datagrams()).collect();
    for (nth, raw) in raws[..2].iter().enumerate() {
        raw.send_to(address, b"hello");
        scene.until("it is received", || server.messages().len() > nth);
    }
    harness.pass(Duration::from_millis(60));
    raws[2].send_to(address, b"make way");
    scene.until("it is received", || server.messages().len() == 3);
    assert_eq!(server.closed(), [CloseReason::Overflow]);
    let closed: Vec<_> = server
        .handles()
        .iter()
        .map(|handle| handle.is_closed())
        .collect();
    assert_eq!(closed, [true, false, false]);
    raws[1].send_to(address, b"still here");
    scene.until("the other goes on", || server.messages().len() == 4);
    assert_eq!(server.handles().len(), 3);
}

fn eviction_of_connections(harness: &dyn Harness) {
    let limits = Limits::new()
        .with_max_connections(2)
        .with_full_policy(FullPolicy::EvictIdleFor(Duration::from_millis(50)));
    let scene = Scene::with(harness, limits);
    let (address, server) = scene.listen(Udp, ignore);
    let raws: Vec<_> = (0..3).map(|_| harness.raw_datagrams()).collect();
    for (nth, raw) in raws[..2].iter().enumerate() {
        raw.send_to(address, b"hello");
        scene.until("it is received", || server.messages().len() > nth);
    }
    harness.pass(Duration::from_millis(60));
    raws[2].send_to(address, b"make way");
    scene.until("it is received", || server.messages().len() == 3);
    assert_eq!(server.closed(), [CloseReason::Overflow]);
    assert!(server.handles()[0].is_closed());
    assert_eq!(scene.server.open(), 2);
    for raw in &raws[1..] {
        raw.send_to(address, b"still here");
    }
    scene.until("those go on", || server.messages().len() == 5);
    assert_eq!(server.handles().len(), 3);
}

fn empty_closes_nothing(harness: &dyn Harness) {
    let limits = Limits::new().with_empty_datagram_closes(false);
    let scene = Scene::with(harness, limits);
    let (address, server) = scene.listen(Udp, echo);
    let raw = harness.raw_datagrams();
    for message in [&b"before"[..], b"", b"", b"after"] {
        raw.send_to(address, message);
    }
    scene.until("both are answered", || {
        raw.received() == [&b"before"[..], b"after"]
    });
    assert!(server.closed().is_empty());
    server.handles()[0].close();
    scene.until("`closed` is called all the same", || {
        raw.received().last().is_some_and(Vec::is_empty)
    });
}

fn places_apart(harness: &dyn Harness) {
    let limits = Limits::new().with_max_connections(1);
    let scene = Scene::with(harness, limits);
    let (datagrams, datagram_peers) = scene.listen(Udp, echo);
    let (streams, _) = scene.listen(Tcp, echo);
    let peer = harness.raw_datagrams();
    peer.send_to(datagrams, b"hello");
    scene.until("it is received", || datagram_peers.messages().len() == 1);
    let stream = harness.raw_connect(streams);
    stream.write(&framed(b"hello"));
    scene.until("it is answered", || stream.received() == framed(b"hello"));
    let late = harness.raw_datagrams();
    late.send_to(datagrams, b"no room");
    peer.send_to(datagrams, b"again");
    scene.until("the first is received", || {
        datagram_peers.messages().len() == 2
    });
    assert_eq!(datagram_peers.handles().len(), 1);
    assert_eq!(scene.server.open(), 2);
}

fn pause(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Udp, ignore);
    pair.there.pause();
    scene.a_while();
    pair.here.send(b"not received").unwrap();
    scene.a_while();
    pair.there.resume();
    scene.a_while();
    pair.here.send(b"received").unwrap();
    scene.until("it is received", || pair.server.messages() == [b"received"]);
}

fn connect(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let raw = harness.raw_datagrams();
    let (connection, client) = scene.connect(Udp, raw.local_addr(), ignore);
    scene.until("it is connected", || client.events() == [Event::Opened]);
    assert!(raw.received().is_empty());
    connection.send(b"hello").unwrap();
    scene.until("it is received", || raw.received() == [b"hello"]);
    raw.send_to(connection.local_addr(), b"welcome");
    scene.until("it is answered", || client.messages() == [b"welcome"]);
}

fn unused_port(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (listener, _) = scene.listener(Udp, ignore, |_| true);
    let address = listener.local_addr();
    listener.close();
    scene.a_while();
    let (connection, client) = scene.connect(Udp, address, ignore);
    connection.send(b"anybody").unwrap();
    scene.until("it is reported", || {
        client.count(&Event::Error(TransportError::Unreachable)) >= 1
    });
    assert!(!connection.is_closed());
}

fn both_ours(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    for here_closes in [true, false] {
        let pair = scene.pair(Udp, ignore);
        let (closes, closed, is_told) = if here_closes {
            (&pair.here, &pair.client, &pair.server)
        } else {
            (&pair.there, &pair.server, &pair.client)
        };
        closes.close();
        scene.until("both have ended", || {
            closed.closed() == [CloseReason::Local] && is_told.closed() == [CloseReason::Peer]
        });
    }
    scene.until("nothing is left", || {
        scene.server.open() + scene.client.open() == 0
    });
}

fn once(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Udp, ignore);
    for _ in 0..3 {
        pair.there.close();
        pair.there.abort();
        pair.here.close();
    }
    scene.until("both are dropped", || {
        pair.client.count(&Event::Dropped) + pair.server.count(&Event::Dropped) == 2
    });
    scene.a_while();
    assert_eq!(pair.client.closed().len(), 1);
    assert_eq!(pair.server.closed().len(), 1);
    assert_eq!(pair.server.events().last(), Some(&Event::Dropped));
}

fn panics(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, |link, message| {
        assert_ne!(message, b"panic", "on purpose");
        link.send(message).unwrap();
    });
    let (bad, good) = (harness.raw_datagrams(), harness.raw_datagrams());
    bad.send_to(address, b"panic");
    scene.until("it has ended", || {
        server.closed() == [CloseReason::Panicked]
    });
    good.send_to(address, b"hello");
    scene.until("the other is answered", || good.received() == [b"hello"]);
}
