//! Clients that lose their connections, nodes that die, and who is let in.

use crate::support::*;
use cubenet_mio::{CloseReason, Handler, Link, Message, Transport};
use cubenet_session::wire::{self, End, Refusal};
use cubenet_session::{Client, Event, Memory, SessionId, SessionLimits, Token};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

#[test]
fn every_message_arrives_once_and_in_order_over_connections_that_are_cut() {
    let node = Node::start(Memory::new(), roomy());
    let network = clients();
    let player = Shared::new(5_000);
    let mut seed = 42;
    let mut connections = 0;
    while player.get(|player| player.echoed < player.goal) {
        let connection = player.connect(&network, node.address);
        connections += 1;
        sleep(Duration::from_micros(random(&mut seed, 20_000)));
        connection.abort();
        assert!(connections < 20_000);
    }
    assert_eq!(node.wrong.load(SeqCst), 0);
    let resumed = player.get(|player| (player.opened, player.ended.len()));
    assert_eq!(resumed, (1, 0), "of {connections} connections");
    node.hears(&Heard::Opened);
    network.stop(Duration::ZERO);
}

#[test]
fn a_session_goes_on_at_another_node_when_its_own_dies() {
    let store = Arc::new(Memory::new());
    outlives_its_nodes(|| Arc::clone(&store), 7);
}

#[test]
fn a_session_that_is_resumed_elsewhere_ends_here() {
    let store = Arc::new(Memory::new());
    let [first, second] = [(); 2].map(|()| Node::start(Arc::clone(&store), SessionLimits::new()));
    let network = clients();
    let player = Shared::new(50);
    player.connect(&network, first.address);
    player.wait("it plays", |player| player.echoed == 50);
    // The first node has not heard that the client is gone.
    player.connect(&network, second.address);
    player.wait("it goes on", |player| player.resumed == 1);
    player.get(|player| player.goal = 60);
    second.hears(&Heard::Resumed);
    let session = first.sessions.all().pop().expect("it does not know yet");
    let _ = session.send(b"from a node that has lost it");
    first.hears(&Heard::Opened);
    first.hears(&Heard::Ended(End::TakenOver));
    assert!(session.is_over() && first.sessions.is_empty());
    assert_eq!(second.sessions.len(), 1);
    assert!(player.get(|player| player.texts.is_empty()));
    network.stop(Duration::ZERO);
}

#[test]
fn the_application_hears_of_everything_that_happens_to_a_session() {
    let limits = SessionLimits::new().with_wait(Duration::from_secs(2));
    let node = Node::start(Memory::new(), limits);
    let network = clients();
    let player = Shared::new(1);
    let connection = player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed == 1);
    connection.abort();
    node.hears(&Heard::Opened);
    node.hears(&Heard::Suspended);
    let connection = player.connect(&network, node.address);
    node.hears(&Heard::Resumed);
    player.wait("it goes on", |player| player.resumed == 1);
    connection.abort();
    node.hears(&Heard::Suspended);
    node.hears(&Heard::Ended(End::Expired));
    player.connect(&network, node.address);
    player.wait("it is refused", |player| {
        player.refused == [Refusal::UnknownSession]
    });
    assert!(!player.get(|player| player.client.has_session()));
    assert!(node.sessions.is_empty());
    network.stop(Duration::ZERO);
}

#[test]
fn a_session_that_has_a_client_does_not_expire() {
    let wait = Duration::from_secs(1);
    let node = Node::start(Memory::new(), SessionLimits::new().with_wait(wait));
    let network = clients();
    let player = Shared::new(1);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed == 1);
    sleep(5 * wait / 2);
    player.get(|player| player.goal = 2);
    let session = node.sessions.all().pop().expect("it is there");
    session.send(b"still there").unwrap();
    player.wait("it plays on", |player| player.echoed == 2);
    assert!(player.get(|player| player.ended.is_empty()));
    network.stop(Duration::ZERO);
}

#[test]
fn the_end_comes_behind_the_last_message() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(0);
    player.get(|player| player.text = Some(b"end"));
    player.connect(&network, node.address);
    player.wait("it ends", |player| player.ended == [End::Application]);
    assert_eq!(player.get(|player| player.texts.clone()), [b"last words"]);
    node.hears(&Heard::Opened);
    node.hears(&Heard::Ended(End::Application));
    network.stop(Duration::ZERO);
}

/// Has its session ended, and says more.
struct Talks(Client<1_024>, Sender<()>);

impl Handler for Talks {
    fn connected(&mut self, link: &mut dyn Link) {
        self.0.connected(link, b"open sesame").unwrap();
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if self.0.received(link, &message).unwrap() == Event::Opened {
            for text in [&b"end"[..], b"not a number", b"nor this"] {
                self.0.send(link, text).unwrap();
            }
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        self.1.send(()).unwrap();
    }
}

#[test]
fn no_message_is_received_once_the_application_has_ended_the_session() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    let (closed, is_closed) = channel();
    let talks = Talks(Client::new(), closed);
    let connect = network.connect(Transport::Tcp, node.address, |_| talks);
    connect.unwrap();
    is_closed.recv_timeout(PATIENCE).unwrap();
    node.hears(&Heard::Opened);
    node.hears(&Heard::Ended(End::Application));
    assert_eq!(node.wrong.load(SeqCst), 0);
    network.stop(Duration::ZERO);
}

#[test]
fn a_client_that_leaves_again_and_again_is_cut_off() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(0);
    let connection = player.connect(&network, node.address);
    node.hears(&Heard::Opened);
    let session = node.sessions.all().pop().expect("it was opened");
    let (entered, has_entered) = channel();
    let (leave, leaves) = channel::<()>();
    // On a thread of its own, so that the network reads on.
    let callback = thread::spawn(move || {
        session.run_in_turn(move |_| {
            entered.send(()).unwrap();
            let _ = leaves.recv_timeout(PATIENCE);
        })
    });
    has_entered.recv_timeout(PATIENCE).unwrap();
    player.wait("it is open", |player| player.opened == 1);
    for _ in 0..2 {
        connection.send(wire::end()).unwrap();
    }
    let end = Instant::now() + PATIENCE / 3;
    while !connection.is_closed() {
        assert!(Instant::now() < end, "it is not cut off");
        sleep(Duration::from_millis(1));
    }
    drop(leave);
    callback.join().unwrap().unwrap();
    node.hears(&Heard::Ended(End::Client));
    network.stop(Duration::ZERO);
}

#[test]
fn wrong_credentials_and_a_login_that_panics_are_refused() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    for (credentials, refusal) in [
        (&b"sesame"[..], Refusal::Credentials),
        (b"panic", Refusal::StoreAway),
    ] {
        let player = Shared::new(0);
        player.get(|player| player.credentials = credentials.to_vec());
        player.connect(&network, node.address);
        player.wait("it is refused", |player| player.refused == [refusal]);
    }
    assert!(node.sessions.is_empty());
    network.stop(Duration::ZERO);
}

#[test]
fn wrong_tokens_of_an_address_are_few() {
    let limits = SessionLimits::new().with_wrong_tokens_per_minute(3);
    let node = Node::start(Memory::new(), limits);
    let network = clients();
    let player = Shared::new(1);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed == 1);
    let guess = |session| wire::resume(&Token::new(session, [0; 16]), 1, 0);
    let unknown = wire::refused(Refusal::UnknownSession, Duration::ZERO);
    // Of a session that there is not: the same answer, and no guess.
    let none = SessionId::from_bytes([7; 16]);
    let session = node.sessions.all()[0].id();
    for _ in 0..3 {
        assert_eq!(answer(&network, node.address, &guess(none)), unknown);
        assert_eq!(answer(&network, node.address, &guess(session)), unknown);
    }
    let busy = wire::refused(Refusal::Busy, Duration::from_secs(1));
    for guessed in [none, session] {
        assert_eq!(answer(&network, node.address, &guess(guessed)), busy);
    }
    assert!(player.get(|player| player.ended.is_empty()));
    network.stop(Duration::ZERO);
}

#[test]
fn a_client_that_breaks_the_rules_is_cut_off() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    for wrong in [&b""[..], b"\x63", &wire::ack(0), &wire::end(), b"\x02\x01"] {
        assert_eq!(answer(&network, node.address, wrong), b"", "{wrong:?}");
    }
    let version = wire::refused(Refusal::Version, Duration::ZERO);
    assert_eq!(answer(&network, node.address, b"\x01\x02name"), version);
    assert!(node.sessions.is_empty());
    network.stop(Duration::ZERO);
}

#[test]
fn there_are_as_many_sessions_as_allowed() {
    let node = Node::start(Memory::new(), SessionLimits::new().with_max_sessions(2));
    let network = clients();
    let players = [(); 3].map(|()| Shared::new(1));
    for player in &players[..2] {
        player.connect(&network, node.address);
        player.wait("it plays", |player| player.echoed == 1);
    }
    players[2].connect(&network, node.address);
    players[2].wait("it is refused", |player| player.refused == [Refusal::Busy]);
    assert_eq!(node.sessions.len(), 2);
    network.stop(Duration::ZERO);
}
