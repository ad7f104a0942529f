//! A player who falls behind, since it reads nothing for a while.

use crate::service::Node;
use cubenet_mio::{Connection, Handler, Link, Message, Network, Transport};
use cubenet_session::{Client, Event};
use cubenet_tests::{PATIENCE, eventually};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Lines that are said: more than an outbox of 64 KiB has room for.
const LINES: usize = 1_500;

/// Lines that a player has said and not heard.
const WINDOW: usize = 100;

/// A player, who says numbered lines, or none, and keeps the numbers of those that it hears.
struct Player {
    name: &'static str,
    session: Client<16_384>,
    said: usize,
    to_say: usize,
    entered: Sender<()>,
    is_in: bool,
    heard: Arc<Mutex<Vec<usize>>>,
}

impl Player {
    /// Once it is in its room, says what there is room for, and no more than it hears: a node ends the session
    /// of a player who says more than the log takes.
    fn say(&mut self, link: &mut dyn Link) {
        if !self.is_in {
            // Lines said before may not be for it to hear.
            return;
        }
        let to_say = self.to_say.min(self.heard.lock().unwrap().len() + WINDOW);
        while self.said < to_say {
            let line = format!("{} {}", self.said, "x".repeat(400));
            if self.session.send(link, line.as_bytes()).is_err() {
                return;
            }
            self.said += 1;
        }
    }
}

impl Handler for Player {
    fn connected(&mut self, link: &mut dyn Link) {
        let credentials = format!("behind/{}", self.name);
        let sent = self.session.connected(link, credentials.as_bytes());
        sent.expect("there is room for a login");
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        match self.session.received(link, &message).unwrap() {
            // It hears what is said from here on.
            Event::Message([b'w', ..]) => {
                self.is_in = true;
                self.entered.send(()).unwrap();
            }
            // A number, and a name behind its length.
            Event::Message([b'l', _, _, _, _, _, _, _, _, len, line @ ..]) => {
                let text = std::str::from_utf8(&line[usize::from(*len)..]).unwrap();
                let (number, _) = text.split_once(' ').unwrap();
                self.heard.lock().unwrap().push(number.parse().unwrap());
            }
            _ => {}
        }
        self.say(link);
    }

    fn writable(&mut self, link: &mut dyn Link) {
        self.session.flush(link);
        self.say(link);
    }
}

/// A player on a node, once it is in its room; and what it hears.
fn enter(
    network: &Network,
    node: &Node,
    name: &'static str,
    to_say: usize,
) -> (Connection, Arc<Mutex<Vec<usize>>>) {
    let (entered, has_entered) = channel();
    let heard = Arc::default();
    let player = Player {
        name,
        session: Client::new(),
        said: 0,
        to_say,
        entered,
        is_in: false,
        heard: Arc::clone(&heard),
    };
    let connect = network.connect(Transport::Tcp, node.address, |_| player);
    has_entered.recv_timeout(PATIENCE).expect("it comes in");
    (connect.unwrap(), heard)
}

#[test]
fn a_player_who_falls_behind_hears_every_line_once_and_in_order() {
    let node = Node::in_memory();
    let network = Network::builder().workers(1).start().unwrap();
    let (slow, heard) = enter(&network, &node, "slow", 0);
    // It acknowledges nothing, so its outbox fills.
    slow.pause();
    let (_talker, all) = enter(&network, &node, "talker", LINES);
    eventually("those who listen hear all", || {
        all.lock().unwrap().len() == LINES
    });
    let before = heard.lock().unwrap().len();
    assert!(before < LINES, "it is behind");
    slow.resume();
    eventually("it hears the rest", || heard.lock().unwrap().len() >= LINES);
    // What comes twice may do so a little later.
    std::thread::sleep(Duration::from_millis(200));
    for heard in [heard, all] {
        assert!(heard.lock().unwrap().iter().copied().eq(0..LINES));
    }
    network.stop(Duration::ZERO);
}
