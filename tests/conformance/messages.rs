//! Messages of a stream: whole, in order, once.

use crate::Behaviour;
use cubenet_core::{Frame, Transport::Tcp};
use cubenet_tests::harness::{Event, Harness, Scene, echo, ignore};
use cubenet_tests::{framed, pattern};
use std::time::Duration;

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    ("messages arrive in the order they were sent", order),
    (
        "messages of every length from 0 to 65,535 bytes arrive whole",
        lengths,
    ),
    ("an empty message is delivered", empty),
    (
        "a message that arrives byte by byte is delivered whole",
        byte_by_byte,
    ),
    (
        "messages that arrive in one piece are delivered one by one",
        one_piece,
    ),
    (
        "what goes over the wire is a length of two bytes and the message",
        wire,
    ),
    ("messages go both ways at once", both_ways),
    ("a message framed once is the same as any other", frames),
    (
        "a long message framed once is shared and arrives whole at every peer",
        long_frames,
    ),
    (
        "messages sent before the peer has answered a connect arrive first, in order",
        before_the_answer,
    ),
    (
        "what `accepted` sends is the first message that the client receives",
        from_accepted,
    ),
    (
        "what `connected` sends is the first message that the server receives",
        from_connected,
    ),
    (
        "nothing is delivered before `accepted` has returned",
        accepted_first,
    ),
    ("many megabytes arrive whole and in order", volume),
    (
        "messages sent inside and outside of callbacks keep the order they were sent in",
        mixed,
    ),
    (
        "messages sent on another connection from inside a callback arrive",
        across,
    ),
];

fn order(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    for number in 0..1_000_u32 {
        pair.here.send(&number.to_be_bytes()).unwrap();
    }
    scene.until("all arrive", || pair.server.messages().len() == 1_000);
    let sent = (0..1_000_u32).map(|number| number.to_be_bytes().to_vec());
    assert!(sent.eq(pair.server.messages()));
}

fn lengths(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, echo);
    let lengths = [
        0, 1, 2, 3, 127, 128, 255, 256, 257, 1_445, 1_446, 1_447, 1_448, 1_449, 4_093, 4_094,
        4_095, 4_096, 16_384, 32_767, 32_768, 65_534, 65_535,
    ];
    for length in lengths {
        pair.here.send(&pattern(length)).unwrap();
    }
    scene.until("all come back", || {
        pair.client.messages().len() == lengths.len()
    });
    assert!(
        lengths
            .iter()
            .map(|length| pattern(*length))
            .eq(pair.client.messages())
    );
}

fn empty(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    pair.here.send(b"").unwrap();
    scene.until("it arrives", || pair.server.messages() == [b""]);
}

fn byte_by_byte(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    for byte in framed(b"hello")
        .iter()
        .chain(&framed(b""))
        .chain(&framed(b"again"))
    {
        raw.write(&[*byte]);
        harness.pass(Duration::from_millis(2));
    }
    scene.until("all arrive", || {
        server.messages() == [&b"hello"[..], b"", b"again"]
    });
}

fn one_piece(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let raw = harness.raw_connect(address);
    let messages: Vec<_> = (0..100).map(pattern).collect();
    raw.write(
        &messages
            .iter()
            .flat_map(|message| framed(message))
            .collect::<Vec<_>>(),
    );
    scene.until("all arrive", || server.messages() == messages);
}

fn wire(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let raw = harness.raw_listen();
    let (connection, _) = scene.connect(Tcp, raw.local_addr(), ignore);
    connection.send(b"abc").unwrap();
    connection.send(&[7; 258]).unwrap();
    let mut stream = None;
    scene.until("it connects", || {
        stream = raw.accept();
        stream.is_some()
    });
    let stream = stream.unwrap();
    let expected = [&b"\0\x03abc\x01\x02"[..], &[7; 258]].concat();
    scene.until("it writes", || stream.received() == expected);
}

fn both_ways(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    let messages: Vec<_> = (0..300).map(|number| pattern(number * 7)).collect();
    for message in &messages {
        pair.here.send(message).unwrap();
        pair.there.send(message).unwrap();
    }
    scene.until("all arrive there", || pair.server.messages().len() == 300);
    scene.until("all arrive here", || pair.client.messages().len() == 300);
    assert_eq!(pair.server.messages(), messages);
    assert_eq!(pair.client.messages(), messages);
}

fn frames(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    let frame = Frame::new(b"framed").unwrap();
    pair.here.send(b"first").unwrap();
    pair.here.send_frame(&frame).unwrap();
    pair.here.send(b"last").unwrap();
    scene.until("all arrive", || {
        pair.server.messages() == [&b"first"[..], b"framed", b"last"]
    });
}

fn long_frames(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let frame = Frame::new(&pattern(50_000)).unwrap();
    let clients: Vec<_> = (0..5)
        .map(|_| scene.connect(Tcp, address, ignore))
        .collect();
    for (connection, _) in &clients {
        connection.send(b"before").unwrap();
        connection.send_frame(&frame).unwrap();
        connection.send_frame(&frame).unwrap();
    }
    scene.until("all arrive", || server.messages().len() == 15);
    let long = server
        .messages()
        .iter()
        .filter(|message| **message == pattern(50_000))
        .count();
    assert_eq!(long, 10);
}

fn before_the_answer(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let (connection, client) = scene.connect(Tcp, address, ignore);
    for number in 0..10_u8 {
        connection.send(&[number]).unwrap();
    }
    scene.until("it is answered", || client.count(&Event::Opened) == 1);
    connection.send(&[10]).unwrap();
    scene.until("all arrive", || server.messages().len() == 11);
    assert!((0..=10_u8).map(|number| vec![number]).eq(server.messages()));
}

fn from_accepted(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen_first(Tcp, ignore, |connection| {
        connection.send(b"welcome").unwrap();
        true
    });
    let (_, client) = scene.connect(Tcp, address, ignore);
    scene.until("it is received", || client.messages() == [b"welcome"]);
    server.handles()[0].send(b"then this").unwrap();
    scene.until("the next, too", || client.messages().len() == 2);
}

fn from_connected(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    let (connection, client) = scene.connect_first(Tcp, address, ignore, |connection| {
        connection.send(b"it is me").unwrap();
        true
    });
    scene.until("it is answered", || client.count(&Event::Opened) == 1);
    scene.until("it is received", || !server.messages().is_empty());
    connection.send(b"then this").unwrap();
    scene.until("all arrive", || {
        server.messages() == [&b"it is me"[..], b"then this"]
    });
}

fn accepted_first(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, server) = scene.listen(Tcp, ignore);
    for _ in 0..20 {
        let (connection, _) = scene.connect(Tcp, address, ignore);
        connection.send(b"hello").unwrap();
        connection.close();
    }
    scene.until("all have ended", || server.count(&Event::Dropped) == 20);
    let mut opened = 0;
    let mut received = 0;
    for event in server.events() {
        opened += usize::from(event == Event::Opened);
        received += usize::from(matches!(event, Event::Received(_)));
        assert!(received <= opened);
    }
    assert_eq!((opened, received), (20, 20));
}

fn volume(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    let mut sent = 0;
    scene.until("all are accepted", || {
        while sent < 200 && pair.here.send(&pattern(40_000 + sent)).is_ok() {
            sent += 1;
        }
        sent == 200
    });
    scene.until("all arrive", || pair.server.messages().len() == 200);
    assert!(
        (0..200)
            .map(|nth| pattern(40_000 + nth))
            .eq(pair.server.messages())
    );
}

fn mixed(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let (address, _) = scene.listen_first(
        Tcp,
        |link, message| {
            link.send(message).unwrap();
            link.send_frame(&Frame::new(b"frame").unwrap()).unwrap();
            link.send(b"end").unwrap();
        },
        |_| true,
    );
    let (connection, client) = scene.connect(Tcp, address, ignore);
    for _ in 0..50 {
        connection.send(b"go").unwrap();
    }
    scene.until("all come back", || client.messages().len() == 150);
    for answers in client.messages().chunks(3) {
        assert_eq!(answers, [&b"go"[..], b"frame", b"end"]);
    }
}

fn across(harness: &dyn Harness) {
    let scene = Scene::new(harness);
    let pair = scene.pair(Tcp, ignore);
    let onward = std::sync::Arc::clone(&pair.there);
    let (address, _) = scene.listen_first(Tcp, ignore, move |_| {
        onward.send(b"a client came").unwrap();
        true
    });
    scene.connect(Tcp, address, ignore);
    scene.until("the other sees it", || {
        pair.client.messages() == [b"a client came"]
    });
}
