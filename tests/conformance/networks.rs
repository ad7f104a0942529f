//! Listeners, handles and networks.

use crate::Behaviour;
use cubenet_core::{
    CloseReason, Limits, SendError,
    Transport::{self, Tcp, Udp},
};
use cubenet_tests::framed;
use cubenet_tests::harness::{Event, Harness, Log, Recorder, Scene, echo, ignore};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    (
        "a listener on port 0 has the port that the system chose",
        any_port,
    ),
    ("an address that is taken is refused with a reason", taken),
    (
        "clients that connect all at once are all answered, and can connect again",
        burst,
    ),
    (
        "a closed stream listener refuses connections, and those it has stay",
        closed_listener,
    ),
    (
        "a closed stream listener's address can be listened on at once",
        free_again,
    ),
    (
        "a closed datagram listener admits no peer, and its connections stay",
        closed_datagrams,
    ),
    ("both ends know each other's addresses", addresses),
    ("no two connections have the same id", ids),
    ("a handle that outlives its connection is inert", inert),
    (
        "a datagram handle that outlives its connection is inert",
        inert_datagrams,
    ),
    ("a handle works on another thread", another_thread),
    (
        "sends of several threads arrive whole, each thread's in its order",
        several_threads,
    ),
    (
        "stopping delivers what is queued and ends everything as `Local`",
        stop,
    ),
    (
        "stopping sends datagram peers a close datagram",
        stop_datagrams,
    ),
    (
        "stopping aborts at its deadline the connections of peers that do not read",
        stop_deadline,
    ),
    (
        "a network that was stopped refuses to listen and to connect",
        stopped,
    ),
    ("limits that do not fit each other are refused", bad_limits),
];

fn accept_with(log: &Log) -> cubenet_tests::harness::Accept {
    let log = log.clone();
    Box::new(move |_| Some(Box::new(Recorder::new(&log, ignore))))
}

fn any_port(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    for transport in [Tcp, Udp] {
        let (address, server) = scene.listen(transport, ignore);
        assert_ne!(address.port(), 0);
        let (connection, _) = scene.connect(transport, address, ignore);
        connection.send(b"hello").unwrap();
        scene.until("it is received", || server.messages() == [b"hello"]);
    }
}

fn taken(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    for transport in [Tcp, Udp] {
        let (address, _) = scene.listen(transport, ignore);
        let log = Log::default();
        let again = scene
            .server
            .listen(transport, Some(address), accept_with(&log));
        let error = again.err().expect("it is taken");
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains("in use"), "{error}");
    }
}

fn burst(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, echo);
    for round in 1..=3 {
        let mut raws: Vec<_> = (0..40).map(|_| harness.raw_connect(address)).collect();
        for raw in &raws {
            raw.write(&framed(b"hello"));
        }
        scene.until("all are answered", || {
            // Those that have been answered make room for the others, in whatever order they come.
            raws.retain(|raw| {
                let answered = raw.received() == framed(b"hello");
                if answered {
                    raw.close();
                }
                !answered
            });
            raws.is_empty()
        });
        scene.until("all have gone", || {
            server.count(&Event::Dropped) == 40 * round
        });
    }
}

fn closed_listener(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (listener, server) = scene.listener(Tcp, echo, |_| true);
    let address = listener.local_addr();
    let (connection, client) = scene.connect(Tcp, address, ignore);
    scene.until("it is there", || server.handles().len() == 1);
    listener.close();
    let (_, late) = scene.connect(Tcp, address, ignore);
    scene.until("it is refused", || late.closed() == [CloseReason::Refused]);
    connection.send(b"still here").unwrap();
    scene.until("it is answered", || client.messages() == [b"still here"]);
}

fn free_again(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (listener, _) = scene.listener(Tcp, ignore, |_| true);
    let address = listener.local_addr();
    listener.close();
    let log = Log::default();
    let again = scene.server.listen(Tcp, Some(address), accept_with(&log));
    assert_eq!(again.expect("it is free").local_addr(), address);
}

fn closed_datagrams(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (listener, server) = scene.listener(Udp, echo, |_| true);
    let address = listener.local_addr();
    let (here, late) = (harness.raw_datagrams(), harness.raw_datagrams());
    here.send_to(address, b"hello");
    scene.until("it is answered", || here.received().len() == 1);
    listener.close();
    scene.a_while();
    late.send_to(address, b"too late");
    here.send_to(address, b"still here");
    scene.until("it is answered again", || here.received().len() == 2);
    scene.a_while();
    assert!(late.received().is_empty());
    assert_eq!(server.handles().len(), 1);
}

fn addresses(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    for transport in [Tcp, Udp] {
        let pair = scene.pair(transport, ignore);
        assert_eq!(pair.here.peer_addr(), pair.address);
        assert_eq!(pair.there.local_addr(), pair.address);
        assert_eq!(pair.here.local_addr(), pair.there.peer_addr());
    }
}

fn ids(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let mut ids = Vec::new();
    for nth in 0..10 {
        let pair = scene.pair([Tcp, Udp][nth % 2], ignore);
        ids.extend([pair.here.id(), pair.there.id()]);
        pair.here.close();
        scene.until("it has ended", || pair.server.count(&Event::Dropped) == 1);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 20);
}

fn inert_after(harness: &dyn Harness, transport: Transport) {
    let scene = Scene::new(harness);
    let pair = scene.pair(transport, ignore);
    let (peer, id) = (pair.there.peer_addr(), pair.there.id());
    pair.here.close();
    scene.until("both have ended", || {
        pair.server.count(&Event::Dropped) + pair.client.count(&Event::Dropped) == 2
    });
    // Another takes its place.
    let other = scene.pair(transport, ignore);
    for handle in [&pair.here, &pair.there] {
        assert!(handle.is_closed());
        assert_eq!(handle.send(b"late"), Err(SendError::Closed));
        assert_eq!(handle.queued(), 0);
        handle.pause();
        handle.resume();
        handle.close();
        handle.abort();
    }
    assert_eq!((pair.there.peer_addr(), pair.there.id()), (peer, id));
    other.here.send(b"not meant").unwrap();
    scene.until("the other goes on", || {
        other.server.messages() == [b"not meant"]
    });
    assert!(other.client.closed().is_empty() && other.server.closed().is_empty());
}

fn inert(harness: &dyn Harness) {
    inert_after(harness, Tcp);
}

fn inert_datagrams(harness: &dyn Harness) {
    inert_after(harness, Udp);
}

fn another_thread(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    let there = Arc::clone(&pair.there);
    std::thread::spawn(move || there.send(b"from elsewhere").unwrap())
        .join()
        .unwrap();
    scene.until("it is received", || {
        pair.client.messages() == [b"from elsewhere"]
    });
}

fn several_threads(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let here = &pair.here;
            scope.spawn(move || {
                for number in 0..50_u8 {
                    here.send(&[thread, number]).unwrap();
                }
            });
        }
    });
    scene.until("all arrive", || pair.server.messages().len() == 200);
    for thread in 0..4 {
        let messages = pair.server.messages().into_iter();
        let of_thread = messages.filter(|message| message[0] == thread);
        assert!(of_thread.map(|message| message[1]).eq(0..50));
    }
}

fn stop(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    for _ in 0..10 {
        pair.there.send(&[7; 60_000]).unwrap();
    }
    scene.server.stop(Duration::from_secs(10));
    scene.until("both have ended", || {
        pair.server.closed() == [CloseReason::Local] && pair.client.closed() == [CloseReason::Peer]
    });
    assert_eq!(pair.client.messages().len(), 10);
    assert_eq!(scene.server.open(), 0);
}

fn stop_datagrams(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Udp, ignore);
    let raw = harness.raw_datagrams();
    raw.send_to(address, b"hello");
    scene.until("it is received", || server.messages().len() == 1);
    scene.server.stop(Duration::from_secs(10));
    scene.until("it is reported", || raw.received() == [b""]);
    scene.until("it has ended", || server.closed() == [CloseReason::Local]);
}

fn stop_deadline(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    raw.stop_reading();
    scene.until("it is there", || server.handles().len() == 1);
    while server.handles()[0].queued() < 500_000 {
        server.handles()[0].send(&[7; 60_000]).unwrap();
    }
    let deadline = Duration::from_millis(300);
    let since = harness.now();
    scene.server.stop(deadline);
    scene.at(since, deadline, "it is given up", || {
        !server.closed().is_empty()
    });
    raw.read_on();
    scene.until("it is reset", || raw.ended_in_order() == Some(false));
    assert!(raw.received().len() < framed(&[7; 60_000]).len() * 9);
}

fn stopped(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, _) = scene.listen(Tcp, ignore);
    scene.client.stop(Duration::ZERO);
    let log = Log::default();
    for transport in [Tcp, Udp] {
        let listening = scene.client.listen(transport, None, accept_with(&log));
        assert!(listening.err().expect("it has stopped").contains("stopped"));
        let connecting = scene.client.connect(transport, address, Box::new(|_| None));
        assert!(
            connecting
                .err()
                .expect("it has stopped")
                .contains("stopped")
        );
    }
}

fn bad_limits(harness: &dyn Harness) {
    let limits = Limits::new().with_low_watermark(usize::MAX);
    let error = harness.try_start(limits).err().expect("it is refused");
    assert!(error.contains("low_watermark"), "{error}");
}
