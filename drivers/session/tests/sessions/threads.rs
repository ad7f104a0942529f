//! Everything at once, on real threads: two nodes and a slow store, clients that come to both without closing
//! what they had, and threads of the application that send all the while.

use crate::support::{PATIENCE, Shared, clients, random, roomy};
use bytes::Bytes;
use cubenet_mio::{Connection, Network, SendError, Transport};
use cubenet_session::store::{Opening, Resume, StoreError, Stored, Update};
use cubenet_session::wire::End;
use cubenet_session::{
    Application, Memory, Session, SessionHandler, SessionId, Sessions, Store, Threads,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const PLAYERS: usize = 8;
const GOAL: u64 = 60_000;

/// A store whose operations take up to some milliseconds, before and after they are done.
struct Slow {
    memory: Arc<Memory>,
    seed: AtomicU64,
}

impl Slow {
    fn wait(&self) {
        let mut seed = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst) | 1;
        match random(&mut seed, 8) {
            0 => sleep(Duration::from_micros(random(&mut seed, 4_000))),
            1 => thread::yield_now(),
            _ => {}
        }
    }

    fn slowly<R>(&self, operation: impl FnOnce() -> R) -> R {
        self.wait();
        let outcome = operation();
        self.wait();
        outcome
    }
}

impl Store for Slow {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        self.slowly(|| self.memory.open(session, opening))
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        self.slowly(|| self.memory.resume(session, resume))
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        self.slowly(|| self.memory.update(session, fence, update))
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        self.slowly(|| self.memory.end(session, fence))
    }
}

/// Answers numbers that count up, and sees that its callbacks come in order and one at a time.
struct Strict {
    wrong: Arc<AtomicUsize>,
}

struct Player {
    last: u64,
    /// What it was called for last.
    stage: Stage,
    inside: AtomicBool,
    wrong: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    New,
    Here,
    Away,
    Over,
}

impl Application for Strict {
    fn login(&self, _credentials: &[u8], _from: SocketAddr) -> Option<Bytes> {
        Some(Bytes::from_static(&[0; 8]))
    }

    fn handler(&self, _session: &Session, data: &Bytes) -> Box<dyn SessionHandler> {
        Box::new(Player {
            last: u64::from_be_bytes(data[..].try_into().unwrap()),
            stage: Stage::New,
            inside: AtomicBool::new(false),
            wrong: Arc::clone(&self.wrong),
        })
    }
}

impl Player {
    fn step(&mut self, from: &[Stage], to: Stage) {
        let was_inside = self.inside.swap(true, SeqCst);
        if was_inside || !from.contains(&self.stage) {
            self.wrong.fetch_add(1, SeqCst);
        }
        self.stage = to;
        self.inside.store(false, SeqCst);
    }
}

impl SessionHandler for Player {
    fn opened(&mut self, _session: &Session) {
        self.step(&[Stage::New], Stage::Here);
    }

    fn received(&mut self, session: &Session, message: &[u8]) {
        // What came before the connection was lost may be handled behind that.
        let stage = self.stage;
        self.step(&[Stage::Here, Stage::Away], stage);
        if message != (self.last + 1).to_be_bytes() {
            self.wrong.fetch_add(1, SeqCst);
        }
        self.last += 1;
        session.set_data(self.last.to_be_bytes());
        let sent = session.send(message);
        if !matches!(sent, Ok(()) | Err(SendError::Closed)) {
            self.wrong.fetch_add(1, SeqCst);
        }
    }

    fn suspended(&mut self, _session: &Session) {
        self.step(&[Stage::Here], Stage::Away);
    }

    fn resumed(&mut self, _session: &Session) {
        self.step(&[Stage::New, Stage::Away], Stage::Here);
    }

    fn ended(&mut self, _session: &Session, reason: End) {
        self.step(&[Stage::New, Stage::Here, Stage::Away], Stage::Over);
        if reason != End::TakenOver {
            self.wrong.fetch_add(1, SeqCst);
        }
    }
}

fn node(
    memory: &Arc<Memory>,
    wrong: &Arc<AtomicUsize>,
    seed: u64,
) -> (Network, Sessions, SocketAddr) {
    let store = Slow {
        memory: Arc::clone(memory),
        seed: AtomicU64::new(seed),
    };
    let application = Strict {
        wrong: Arc::clone(wrong),
    };
    let threads = Threads::start(3).unwrap();
    let sessions = Sessions::new(application, store, threads, roomy());
    let network = Network::builder().workers(2).start().unwrap();
    let gates = sessions.clone();
    let accept = move |connection: &Connection| Some(gates.gate(connection));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accept)
        .unwrap();
    let address = listener.local_addr();
    (network, sessions, address)
}

#[test]
fn callbacks_and_messages_keep_their_order_on_many_threads() {
    let (memory, wrong) = (Arc::new(Memory::new()), Arc::new(AtomicUsize::new(0)));
    let nodes = [1, 2].map(|seed| node(&memory, &wrong, seed));
    let ends = Arc::new(AtomicBool::new(false));
    let tickers: Vec<_> = nodes
        .iter()
        .map(|(_, sessions, _)| {
            let (sessions, ends) = (sessions.clone(), Arc::clone(&ends));
            thread::spawn(move || {
                while !ends.load(SeqCst) {
                    for session in sessions.all() {
                        // The answers need room.
                        if session.unacknowledged() < 10_000 {
                            let _ = session.send(b"tick");
                        }
                    }
                    sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    let network = clients();
    let players = [(); PLAYERS].map(|()| Shared::new(GOAL));
    let is_done = |player: &Shared| player.get(|player| player.echoed == player.goal);
    let deadline = Instant::now() + PATIENCE;
    let mut seed = 77;
    let mut connections: Vec<Connection> = Vec::new();
    while !players.iter().all(is_done) {
        let open = connections.iter().filter(|one| !one.is_closed()).count();
        assert!(
            Instant::now() < deadline,
            "every message arrives; {open} connections"
        );
        let player = &players[random(&mut seed, PLAYERS as u64) as usize];
        let (_, _, address) = nodes[random(&mut seed, 2) as usize];
        // Mostly without closing the one before.
        connections.push(player.connect(&network, address));
        if random(&mut seed, 3) == 0 {
            let nth = random(&mut seed, connections.len() as u64) as usize;
            connections.swap_remove(nth).abort();
        }
        connections.retain(|one| !one.is_closed());
        sleep(Duration::from_micros(random(&mut seed, 4_000)));
    }
    ends.store(true, SeqCst);
    for ticker in tickers {
        ticker.join().unwrap();
    }
    for player in &players {
        let (ended, refused) = player.get(|player| (player.ended.clone(), player.refused.clone()));
        assert_eq!(ended, [], "no session has ended; {refused:?}");
    }
    assert_eq!(wrong.load(SeqCst), 0, "callbacks in order, one at a time");
    network.stop(Duration::ZERO);
    for (network, _, _) in nodes {
        network.stop(Duration::ZERO);
    }
}
