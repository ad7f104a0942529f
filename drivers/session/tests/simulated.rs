//! Sessions in the simulator: nodes that crash and come back, networks that are cut, a store that is
//! slow, fails, or has done what it says it has not, and clients that come twice. A seed is a run.
//!
//! `CUBENET_SEEDS=100000 cargo test --release --package cubenet-session --test simulated` runs so many;
//! `CUBENET_SEED=42` that one.

use bytes::Bytes;
use cubenet_session::store::{Opening, Resume, StoreError, Stored, Update};
use cubenet_session::wire::{End, Refusal};
use cubenet_session::{
    Application, Client, Environment, Event, Job, Memory, Session, SessionHandler, SessionId,
    SessionLimits, Sessions, Store,
};
use cubenet_sim::{
    CloseReason, Conditions, ConnectError, Connection, ConnectionId, Faults, Handler, Instant,
    Link, Message, Network, SendError, Simulation, Transport,
};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Seeds that are run where nothing else is asked for.
const SEEDS: u64 = 300;
/// How long everything goes wrong.
const STORM: Duration = Duration::from_secs(20);
/// How long everything may take afterwards.
const CALM: Duration = Duration::from_secs(120);
const NODES: u8 = 3;
const CLIENTS: u8 = 2;
/// Numbers that each client sends.
const GOAL: u64 = 150;
const PORT: u16 = 7_000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What belongs to a node's process: gone with it.
#[derive(Clone)]
struct Process {
    /// Which has its jobs, and so must not be kept by them.
    simulation: Weak<Simulation>,
    host: IpAddr,
    lives: Arc<AtomicBool>,
}

impl Process {
    fn simulation(&self) -> Arc<Simulation> {
        self.simulation.upgrade().expect("it runs this")
    }

    fn lives(&self) -> bool {
        self.lives.load(SeqCst)
    }

    fn crash(&self) {
        if self.lives.swap(false, SeqCst) {
            self.simulation().crash(self.host);
        }
    }
}

impl Environment for Process {
    fn run(&self, job: Job) {
        // The store is asked in the job: this is how slow it is.
        let wait = match self.simulation().random() % 10 {
            0 => self.simulation().random() % 200_000,
            _ => self.simulation().random() % 3_000,
        };
        self.run_after(Duration::from_micros(wait), job);
    }

    fn run_after(&self, delay: Duration, job: Job) {
        let process = self.clone();
        let at = self.simulation().now().after(delay);
        self.simulation().at(at, move |_| {
            if process.lives() {
                job();
            }
        });
    }

    fn now(&self) -> Instant {
        self.simulation().now()
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.simulation().random().to_be_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// A store that all nodes share, as one of them sees it.
#[derive(Clone)]
struct Unreliable {
    memory: Arc<Memory>,
    process: Process,
    /// The store cannot be reached.
    is_away: Arc<AtomicBool>,
    /// Everything goes wrong.
    storm: Arc<AtomicBool>,
    owners: Arc<Mutex<HashMap<SessionId, Owner>>>,
}

/// Who owns a session, and how far it is.
struct Owner {
    host: IpAddr,
    fence: u64,
    counted: u64,
}

impl Unreliable {
    /// Does it, or not, and says so, or not. The node may die of it.
    fn perhaps<R>(
        &self,
        operation: impl FnOnce() -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let away = || Err(StoreError::Away("of a test".into()));
        let chance = self.process.simulation().random() % 100;
        if !self.storm.load(SeqCst) {
            return operation();
        }
        if self.is_away.load(SeqCst) || chance < 2 {
            return away();
        }
        let done = operation();
        match chance {
            2..4 => {
                self.process.crash();
                done
            }
            4..6 => away(),
            _ => done,
        }
    }
}

impl Store for Unreliable {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        self.perhaps(|| {
            let owner = Owner {
                host: self.process.host,
                fence: 1,
                counted: 0,
            };
            lock(&self.owners).insert(session, owner);
            self.memory.open(session, opening)
        })
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        self.perhaps(|| {
            let stored = self.memory.resume(session, resume)?;
            let mut owners = lock(&self.owners);
            let owner = owners.get_mut(&session).expect("it was opened");
            assert!(stored.fence > owner.fence, "a fence grows");
            assert_eq!(stored.received, owner.counted, "nothing is lost or doubled");
            owner.fence = stored.fence;
            owner.host = self.process.host;
            Ok(stored)
        })
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        self.perhaps(|| {
            self.memory.update(session, fence, update)?;
            let mut owners = lock(&self.owners);
            let owner = owners.get_mut(&session).expect("it was opened");
            assert_eq!(
                (owner.fence, owner.host),
                (fence, self.process.host),
                "one owner"
            );
            assert!(update.received >= owner.counted, "nothing goes back");
            if let Some(data) = &update.data {
                let (counted, _) = split(data);
                assert_eq!(
                    counted, update.received,
                    "what was done is what was received"
                );
            }
            owner.counted = update.received;
            Ok(())
        })
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        self.perhaps(|| self.memory.end(session, fence))
    }
}

/// Answers numbers that count up from 1. Each answer has another random number, and the one before; the
/// last of both is the session's data. So a client sees it if what it was told is not what was stored.
struct Counting(Weak<Simulation>);

struct Counter {
    simulation: Weak<Simulation>,
    counted: u64,
    chain: u64,
}

/// Two numbers as bytes.
fn pair(one: u64, other: u64) -> [u8; 16] {
    (u128::from(one) << 64 | u128::from(other)).to_be_bytes()
}

fn split(bytes: &[u8]) -> (u64, u64) {
    let both = u128::from_be_bytes(bytes.try_into().expect("two numbers"));
    ((both >> 64) as u64, both as u64)
}

impl Application for Counting {
    fn login(&self, _credentials: &[u8], _from: SocketAddr) -> Option<Bytes> {
        Some(Bytes::from_static(&[0; 16]))
    }

    fn handler(&self, _session: &Session, data: &Bytes) -> Box<dyn SessionHandler> {
        let (counted, chain) = split(data);
        let simulation = Weak::clone(&self.0);
        Box::new(Counter {
            simulation,
            counted,
            chain,
        })
    }
}

impl SessionHandler for Counter {
    fn received(&mut self, session: &Session, message: &[u8]) {
        let next = (self.counted + 1).to_be_bytes();
        assert_eq!(message, next, "once and in order");
        let before = self.chain;
        let simulation = self.simulation.upgrade().expect("it runs this");
        (self.counted, self.chain) = (self.counted + 1, simulation.random());
        session.set_data(pair(self.counted, self.chain));
        // One that is over has no answer.
        let _ = session.send(&pair(before, self.chain));
    }

    fn ended(&mut self, _session: &Session, reason: End) {
        assert_eq!(reason, End::TakenOver);
    }
}

/// A client, whose process lives on.
struct Player {
    client: Client<2048>,
    sent: u64,
    echoed: u64,
    /// The random number of the last answer.
    chain: u64,
    connections: Vec<Connection>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Player>>);

impl Handler for Shared {
    fn connected(&mut self, link: &mut dyn Link) {
        let _ = lock(&self.0).client.connected(link, b"name");
    }

    fn connect_failed(&mut self, _error: ConnectError) {}

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let player = &mut *lock(&self.0);
        match player.client.received(link, &message) {
            Ok(Event::Message(payload)) => {
                let (before, chain) = split(payload);
                assert_eq!(before, player.chain, "what was told is what was stored");
                player.chain = chain;
                player.echoed += 1;
            }
            Ok(Event::Refused { reason, .. }) => {
                assert!(
                    matches!(reason, Refusal::Busy | Refusal::StoreAway),
                    "{reason}"
                );
            }
            Ok(Event::Ended(reason)) => panic!("a session has ended: {reason}"),
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
        while player.sent < GOAL && player.client.keep(&(player.sent + 1).to_be_bytes()).is_ok() {
            player.sent += 1;
        }
        player.client.flush(link);
    }

    fn writable(&mut self, link: &mut dyn Link) {
        lock(&self.0).client.flush(link);
    }

    fn closed(&mut self, link: &mut dyn Link, _reason: CloseReason) {
        lock(&self.0).client.disconnected(link);
    }
}

/// A connection, for what a client does outside its callbacks.
struct Outside<'a>(&'a Connection, Instant);

impl Link for Outside<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.0.send(message)
    }

    fn close(&mut self) {
        self.0.close();
    }

    fn abort(&mut self) {
        self.0.abort();
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn transport(&self) -> Transport {
        self.0.transport()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.0.peer_addr()
    }

    fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    fn id(&self) -> ConnectionId {
        self.0.id()
    }

    fn queued(&self) -> usize {
        self.0.queued()
    }

    fn pause(&mut self) {
        self.0.pause();
    }

    fn resume(&mut self) {
        self.0.resume();
    }

    fn now(&self) -> Instant {
        self.1
    }
}

struct Run {
    transport: Transport,
    simulation: Arc<Simulation>,
    memory: Arc<Memory>,
    is_away: Arc<AtomicBool>,
    storm: Arc<AtomicBool>,
    owners: Arc<Mutex<HashMap<SessionId, Owner>>>,
    nodes: Vec<(Process, Option<Network>)>,
    players: Vec<(Network, Shared)>,
}

fn node_host(nth: u8) -> IpAddr {
    [10, 0, 0, nth].into()
}

impl Run {
    fn new(seed: u64, transport: Transport) -> Self {
        let conditions = Conditions::new()
            .with_latency(Duration::from_millis(5))
            .with_jitter(Duration::from_millis(20))
            .with_loss(0.02);
        let simulation = Simulation::builder()
            .seed(seed)
            .conditions(conditions)
            .faults(Faults::new().with_short_read(0.3).with_partial_write(0.3))
            .build()
            .unwrap();
        let simulation = Arc::new(simulation);
        let clock = Arc::downgrade(&simulation);
        let mut run = Run {
            transport,
            memory: Arc::new(Memory::with_clock(move || {
                clock.upgrade().expect("it runs this").now()
            })),
            is_away: Arc::default(),
            storm: Arc::new(AtomicBool::new(true)),
            owners: Arc::default(),
            nodes: Vec::new(),
            players: Vec::new(),
            simulation,
        };
        for nth in 0..NODES {
            let process = run.process(nth);
            process.lives.store(false, SeqCst);
            run.nodes.push((process, None));
            run.start(nth);
        }
        for nth in 0..CLIENTS {
            let network = run
                .simulation
                .network([10, 0, 1, nth].into())
                .start()
                .unwrap();
            let player = Player {
                client: Client::new(),
                sent: 0,
                echoed: 0,
                chain: 0,
                connections: Vec::new(),
            };
            run.players
                .push((network, Shared(Arc::new(Mutex::new(player)))));
        }
        run
    }

    fn process(&self, nth: u8) -> Process {
        Process {
            simulation: Arc::downgrade(&self.simulation),
            host: node_host(nth),
            lives: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Starts a node's process, if it does not live.
    fn start(&mut self, nth: u8) {
        if self.nodes[usize::from(nth)].0.lives() {
            return;
        }
        let process = self.process(nth);
        let store = Unreliable {
            memory: Arc::clone(&self.memory),
            process: process.clone(),
            is_away: Arc::clone(&self.is_away),
            storm: Arc::clone(&self.storm),
            owners: Arc::clone(&self.owners),
        };
        let application = Counting(Arc::downgrade(&self.simulation));
        let sessions = Sessions::new(application, store, process.clone(), SessionLimits::new());
        let network = self.simulation.network(process.host).start().unwrap();
        let accept = move |connection: &Connection| Some(sessions.gate(connection));
        network
            .listen(self.transport, (process.host, PORT), accept)
            .unwrap();
        self.nodes[usize::from(nth)] = (process, Some(network));
    }

    fn random(&self, below: u64) -> u64 {
        self.simulation.random() % below
    }

    /// Has a client connect to some node, perhaps beside the connection that it has.
    fn connect(&self, nth: usize) {
        let (network, shared) = &self.players[nth];
        let address = (node_host(self.random(NODES.into()) as u8), PORT);
        let handler = shared.clone();
        if let Ok(connection) = network.connect(self.transport, address, |_| handler) {
            lock(&shared.0).connections.push(connection);
        }
    }

    /// What goes wrong next.
    fn trouble(&mut self) {
        let node = self.random(NODES.into()) as u8;
        let player = self.random(CLIENTS.into()) as usize;
        let (here, there) = (node_host(node), [10, 0, 1, player as u8].into());
        match self.random(10) {
            0 => self.nodes[usize::from(node)].0.crash(),
            1 | 2 => self.start(node),
            3 => self.simulation.partition(here, there),
            4 => self.simulation.heal(here, there),
            5 => self.is_away.store(true, SeqCst),
            6 => self.is_away.store(false, SeqCst),
            7 => self.connect(player),
            _ => {
                let (_, shared) = &self.players[player];
                let connection = lock(&shared.0).connections.pop();
                if let Some(connection) = connection {
                    connection.abort();
                }
            }
        }
        self.reconnect();
    }

    /// Clients without a connection get one; others say again what was not answered.
    fn reconnect(&self) {
        let now = self.simulation.now();
        for (_, shared) in &self.players {
            let player = &mut *lock(&shared.0);
            for connection in &player.connections {
                let link = &mut Outside(connection, now);
                player.client.handle_timeout(link, b"name");
            }
        }
        for (nth, (_, shared)) in self.players.iter().enumerate() {
            let is_apart = {
                let mut player = lock(&shared.0);
                player.connections.retain(|one| !one.is_closed());
                player.connections.is_empty()
            };
            if is_apart {
                self.connect(nth);
            }
        }
    }

    fn is_done(&self) -> bool {
        let mut players = self.players.iter();
        players.all(|(_, shared)| lock(&shared.0).echoed == GOAL)
    }
}

fn run(seed: u64, transport: Transport) -> u64 {
    let mut run = Run::new(seed, transport);
    let end = run.simulation.now().after(STORM);
    while run.simulation.now() < end {
        let pause = Duration::from_millis(20 + run.random(400));
        run.simulation.run_for(pause);
        run.trouble();
    }
    run.storm.store(false, SeqCst);
    run.is_away.store(false, SeqCst);
    for nth in 0..NODES {
        for player in 0..CLIENTS {
            run.simulation
                .heal(node_host(nth), [10, 0, 1, player].into());
        }
        run.start(nth);
    }
    let end = run.simulation.now().after(CALM);
    while !run.is_done() {
        assert!(run.simulation.now() < end, "every message arrives");
        run.simulation.run_for(Duration::from_millis(200));
        // A connection that waits for a node that has forgotten it is no use.
        if run.random(10) == 0 {
            for (_, shared) in &run.players {
                for connection in lock(&shared.0).connections.drain(..) {
                    connection.abort();
                }
            }
        }
        run.reconnect();
    }
    run.simulation.trace_hash()
}

/// Runs each seed, of so many.
fn run_seeds(transport: Transport, every: u64) {
    let number = |name| Some(std::env::var(name).ok()?.parse::<u64>().expect("a number"));
    let seeds = match number("CUBENET_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CUBENET_SEEDS").unwrap_or(SEEDS) / every,
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, transport));
        assert!(outcome.is_ok(), "seed {seed}, {transport}");
    }
}

#[test]
fn sessions_lose_and_double_nothing_whatever_goes_wrong() {
    run_seeds(Transport::Tcp, 1);
}

/// What is lost is sent again, and again: a run has some thirty times as many packets.
#[test]
fn nor_do_those_over_datagrams() {
    run_seeds(Transport::Udp, 30);
}

#[test]
fn a_seed_is_a_run() {
    for transport in [Transport::Tcp, Transport::Udp] {
        assert_eq!(run(42, transport), run(42, transport));
    }
}
