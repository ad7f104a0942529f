//! Sessions over TCP: clients that lose their connections, nodes that die, a store that fails.

use bytes::Bytes;
use cubenet_mio::{CloseReason, Connection, Handler, Link, Message, Network, Transport};
use cubenet_session::store::{Opening, Resume, StoreError, Stored, Update};
use cubenet_session::wire::{self, End, Refusal};
use cubenet_session::{
    Application, Client, Event, Memory, Session, SessionHandler, SessionId, SessionLimits,
    Sessions, Store, Threads, Token,
};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than anything takes, even on a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &[u8] = b"open sesame";

/// What a handler was called for.
#[derive(Clone, Debug, PartialEq)]
enum Heard {
    Opened,
    Resumed,
    Suspended,
    Ended(End),
}

/// Answers numbers that count up from 1, and keeps the last as its data.
#[derive(Clone)]
struct Counting {
    heard: Sender<Heard>,
    wrong: Arc<AtomicUsize>,
}

impl Application for Counting {
    fn login(&self, credentials: &[u8], _from: SocketAddr) -> Option<Bytes> {
        assert_ne!(credentials, b"panic", "of a test");
        (credentials == PASSWORD).then(|| Bytes::from_static(&[0; 8]))
    }

    fn handler(&self, _session: &Session, data: &Bytes) -> Box<dyn SessionHandler> {
        let last = u64::from_be_bytes(data[..].try_into().unwrap());
        let application = self.clone();
        Box::new(Counter { last, application })
    }
}

struct Counter {
    last: u64,
    application: Counting,
}

impl Counter {
    fn hear(&self, heard: Heard) {
        let _ = self.application.heard.send(heard);
    }
}

impl SessionHandler for Counter {
    fn opened(&mut self, _session: &Session) {
        self.hear(Heard::Opened);
    }

    fn received(&mut self, session: &Session, message: &[u8]) {
        assert_ne!(message, b"panic", "of a test");
        if message == b"end" {
            session.send(b"last words").unwrap();
            return session.end();
        }
        if message != (self.last + 1).to_be_bytes() {
            self.application.wrong.fetch_add(1, SeqCst);
        }
        self.last += 1;
        session.set_data(self.last.to_be_bytes().to_vec());
        session.send(message).expect("the client keeps a window");
    }

    fn suspended(&mut self, _session: &Session) {
        self.hear(Heard::Suspended);
    }

    fn resumed(&mut self, _session: &Session) {
        self.hear(Heard::Resumed);
    }

    fn ended(&mut self, _session: &Session, reason: End) {
        self.hear(Heard::Ended(reason));
    }
}

/// A node of a service.
struct Node {
    network: Network,
    sessions: Sessions,
    address: SocketAddr,
    heard: Receiver<Heard>,
    wrong: Arc<AtomicUsize>,
}

impl Node {
    fn start(store: impl Store, limits: SessionLimits) -> Self {
        let (sender, heard) = channel();
        let wrong = Arc::new(AtomicUsize::new(0));
        let application = Counting {
            heard: sender,
            wrong: Arc::clone(&wrong),
        };
        let threads = Threads::start(2).unwrap();
        let sessions = Sessions::new(application, store, threads, limits);
        let network = Network::builder().workers(2).start().unwrap();
        let gates = sessions.clone();
        let accept = move |connection: &Connection| Some(gates.gate(connection));
        let listener = network
            .listen(Transport::Tcp, "127.0.0.1:0", accept)
            .unwrap();
        Node {
            address: listener.local_addr(),
            network,
            sessions,
            heard,
            wrong,
        }
    }

    fn hears(&self, expected: &Heard) {
        assert_eq!(&self.heard.recv_timeout(PATIENCE).unwrap(), expected);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.network.stop(Duration::ZERO);
    }
}

/// A client, as long as its process lives.
#[derive(Default)]
struct Player {
    client: Client<4096>,
    credentials: Vec<u8>,
    /// Numbers that it sends, counting up: the last that it has sent, and that it is to send.
    sent: u64,
    goal: u64,
    /// The last that has come back.
    echoed: u64,
    opened: usize,
    resumed: usize,
    refused: Vec<Refusal>,
    ended: Vec<End>,
    texts: Vec<Vec<u8>>,
    /// What it is to send besides.
    text: Option<&'static [u8]>,
}

impl Player {
    fn play(&mut self, link: &mut dyn Link) {
        while self.sent < self.goal && self.client.keep(&(self.sent + 1).to_be_bytes()).is_ok() {
            self.sent += 1;
        }
        if let Some(text) = self.text.filter(|_| self.client.is_active()) {
            self.client.keep(text).unwrap();
            self.text = None;
        }
        self.client.flush(link);
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Player>>);

impl Shared {
    fn new(goal: u64) -> Self {
        let player = Player {
            credentials: PASSWORD.to_vec(),
            goal,
            ..Player::default()
        };
        Shared(Arc::new(Mutex::new(player)))
    }

    fn get<R>(&self, get: impl FnOnce(&mut Player) -> R) -> R {
        get(&mut self.0.lock().unwrap())
    }

    fn connect(&self, network: &Network, address: SocketAddr) -> Connection {
        let handler = self.clone();
        let connect = network.connect(Transport::Tcp, address, |_| handler);
        connect.unwrap()
    }

    /// Waits for what must come.
    fn wait(&self, what: &str, is_so: impl Fn(&mut Player) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !self.get(&is_so) {
            assert!(Instant::now() < end, "{what}");
            sleep(Duration::from_millis(1));
        }
    }
}

impl Handler for Shared {
    fn connected(&mut self, link: &mut dyn Link) {
        self.get(|player| {
            let credentials = player.credentials.clone();
            player.client.connected(link, &credentials).unwrap();
        });
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.get(|player| {
            match player.client.received(link, &message).unwrap() {
                Event::Opened => player.opened += 1,
                Event::Resumed => player.resumed += 1,
                Event::Message(payload) => match payload.try_into().map(u64::from_be_bytes) {
                    Ok(number) => {
                        assert_eq!(number, player.echoed + 1, "once and in order");
                        player.echoed = number;
                    }
                    Err(_) => player.texts.push(payload.to_vec()),
                },
                Event::Refused { reason, .. } => player.refused.push(reason),
                Event::Ended(reason) => player.ended.push(reason),
                _ => {}
            }
            player.play(link);
        });
    }

    fn writable(&mut self, link: &mut dyn Link) {
        self.get(|player| player.client.flush(link));
    }

    fn closed(&mut self, link: &mut dyn Link, _reason: CloseReason) {
        self.get(|player| player.client.disconnected(link));
    }
}

fn clients() -> Network {
    Network::builder().workers(1).start().unwrap()
}

/// Numbers from a seed.
fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

#[test]
fn every_message_arrives_once_and_in_order_over_connections_that_are_cut() {
    let node = Node::start(Memory::new(), SessionLimits::new());
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
    let network = clients();
    let player = Shared::new(1_000_000);
    let mut seed = 7;
    for life in 0..10 {
        let node = Node::start(Arc::clone(&store), SessionLimits::new());
        let connection = player.connect(&network, node.address);
        let before = player.get(|player| player.echoed);
        player.wait("it goes on", |player| player.echoed > before + 100);
        node.hears(if life == 0 {
            &Heard::Opened
        } else {
            &Heard::Resumed
        });
        sleep(Duration::from_micros(random(&mut seed, 10_000)));
        // It stops in the middle of everything, and takes what was not stored with it.
        drop(node.sessions.clone());
        node.network.stop(Duration::ZERO);
        assert_eq!(node.wrong.load(SeqCst), 0);
        drop(connection);
    }
    assert_eq!(
        player.get(|player| (player.opened, player.ended.len())),
        (1, 0)
    );
    network.stop(Duration::ZERO);
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
    let limits = SessionLimits::new().with_wait(Duration::from_millis(300));
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
    let wait = Duration::from_millis(200);
    let node = Node::start(Memory::new(), SessionLimits::new().with_wait(wait));
    let network = clients();
    let player = Shared::new(1);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed == 1);
    sleep(5 * wait);
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

/// Says one thing on a connection, and keeps what it is told first.
struct Says(Vec<u8>, Sender<Vec<u8>>);

impl Handler for Says {
    fn connected(&mut self, link: &mut dyn Link) {
        let _ = link.send(&self.0);
    }

    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        let _ = self.1.send(message.to_vec());
    }

    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        let _ = self.1.send(Vec::new());
    }
}

/// What a server says to this, first.
fn answer(network: &Network, address: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let (sender, answers) = channel();
    let says = Says(packet.to_vec(), sender);
    network.connect(Transport::Tcp, address, |_| says).unwrap();
    answers.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn wrong_tokens_of_an_address_are_few() {
    let limits = SessionLimits::new().with_wrong_tokens_per_minute(3);
    let node = Node::start(Memory::new(), limits);
    let network = clients();
    let guess = |nth| wire::resume(&Token::new(SessionId::from_bytes([nth; 16]), [0; 16]), 0);
    let unknown = wire::refused(Refusal::UnknownSession, Duration::ZERO);
    for nth in 0..3 {
        assert_eq!(answer(&network, node.address, &guess(nth)), unknown);
    }
    let busy = wire::refused(Refusal::Busy, Duration::from_secs(1));
    assert_eq!(answer(&network, node.address, &guess(3)), busy);
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

/// A store that can be away.
#[derive(Clone, Default)]
struct Flaky {
    memory: Arc<Memory>,
    is_away: Arc<AtomicBool>,
    /// Of those that fail, every second has been done all the same, unless all fail.
    failed: Arc<AtomicUsize>,
    all_fail: Arc<AtomicBool>,
    /// The last message to a client that is stored.
    kept: Arc<AtomicU64>,
}

impl Flaky {
    fn may_fail<R>(
        &self,
        operation: impl FnOnce() -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        if !self.is_away.load(SeqCst) {
            return operation();
        }
        if self.failed.fetch_add(1, SeqCst) % 2 == 1 && !self.all_fail.load(SeqCst) {
            operation()?;
        }
        Err(StoreError::Away("of a test".into()))
    }
}

impl Store for Flaky {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        self.may_fail(|| self.memory.open(session, opening))
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        self.may_fail(|| self.memory.resume(session, resume))
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        self.may_fail(|| {
            self.memory.update(session, fence, update)?;
            let last = update.first + update.messages.len() as u64 - 1;
            self.kept.fetch_max(last, SeqCst);
            Ok(())
        })
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        self.may_fail(|| self.memory.end(session, fence))
    }
}

#[test]
fn a_store_that_is_away_holds_up_sessions_and_loses_nothing() {
    let store = Flaky::default();
    let node = Node::start(store.clone(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(10_000);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed > 100);
    store.is_away.store(true, SeqCst);
    let failed = || store.failed.load(SeqCst);
    let end = Instant::now() + PATIENCE;
    while failed() < 4 {
        assert!(Instant::now() < end, "updates are tried again");
        sleep(Duration::from_millis(1));
    }
    let other = Shared::new(1);
    other.connect(&network, node.address);
    other.wait("it is refused", |player| {
        player.refused == [Refusal::StoreAway]
    });
    let echoed = player.get(|player| player.echoed);
    assert!(
        echoed <= store.kept.load(SeqCst),
        "nothing is told before it is stored"
    );
    store.is_away.store(false, SeqCst);
    player.wait("it goes on", |player| player.echoed == player.goal);
    assert_eq!(node.wrong.load(SeqCst), 0);
    network.stop(Duration::ZERO);
}

#[test]
fn a_node_that_cannot_renew_in_time_gives_its_sessions_up() {
    let store = Flaky::default();
    let wait = Duration::from_millis(300);
    let node = Node::start(store.clone(), SessionLimits::new().with_wait(wait));
    let network = clients();
    let player = Shared::new(1);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed == 1);
    store.all_fail.store(true, SeqCst);
    store.is_away.store(true, SeqCst);
    player.wait("it ends", |player| !player.ended.is_empty());
    node.hears(&Heard::Opened);
    let heard = node.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(heard, Heard::Ended(End::LeaseLost));
    assert_eq!(player.get(|player| player.ended.clone()), [End::LeaseLost]);
    network.stop(Duration::ZERO);
}

#[test]
fn a_handler_that_panics_ends_its_session_alone() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    let [player, other] = [(); 2].map(|()| Shared::new(1));
    for one in [&player, &other] {
        one.connect(&network, node.address);
        one.wait("it plays", |player| player.echoed == 1);
    }
    player.get(|player| player.text = Some(b"panic"));
    player.connect(&network, node.address);
    player.wait("it ends", |player| player.ended == [End::Application]);
    assert_eq!(node.sessions.len(), 1);
    other.get(|player| player.goal = 2);
    other.connect(&network, node.address);
    other.wait("it plays on", |player| player.echoed == 2);
    network.stop(Duration::ZERO);
}
