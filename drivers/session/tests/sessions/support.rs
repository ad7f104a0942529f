//! A node that counts, and clients that send it numbers.

use bytes::Bytes;
use cubenet_mio::{CloseReason, Connection, Handler, Link, Message, Network, Transport};
use cubenet_session::wire::{End, Refusal};
use cubenet_session::{
    Application, Client, Event, Session, SessionHandler, SessionLimits, Sessions, Store, Threads,
};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &[u8] = b"open sesame";

/// What a handler was called for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Opened,
    Resumed,
    Suspended,
    Writable,
    Ended(End),
}

/// Answers numbers that count up from 1, and keeps the last as its data.
#[derive(Clone)]
struct Counting {
    pub(crate) heard: Sender<Heard>,
    pub(crate) wrong: Arc<AtomicUsize>,
    blocks: Blocks,
    /// Where logins came from.
    logins: Arc<Mutex<Vec<SocketAddr>>>,
}

/// What a callback that blocks says, and what it waits for.
type Blocks = Arc<Mutex<Option<(Sender<()>, Receiver<()>)>>>;

impl Application for Counting {
    fn login(&self, credentials: &[u8], from: SocketAddr) -> Option<Bytes> {
        self.logins.lock().unwrap().push(from);
        assert_ne!(credentials, b"panic", "of a test");
        if credentials == b"end at once" {
            return Some(Bytes::from_static(&[0xff; 8]));
        }
        (credentials == PASSWORD).then(|| Bytes::from_static(&[0; 8]))
    }

    fn handler(&self, session: &Session, data: &Bytes) -> Box<dyn SessionHandler> {
        let last = u64::from_be_bytes(data[..].try_into().unwrap());
        if last == u64::MAX {
            session.end();
        }
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
        if message == b"block" {
            session.send(b"from the callback").unwrap();
            let blocks = self.application.blocks.lock().unwrap().take();
            let (entered, leave) = blocks.expect("the test blocks it");
            entered.send(()).unwrap();
            // Until the other end is dropped.
            let _ = leave.recv_timeout(PATIENCE);
            return;
        }
        if message == b"end" {
            session.send(b"last words").unwrap();
            return session.end();
        }
        if message != (self.last + 1).to_be_bytes() {
            self.application.wrong.fetch_add(1, SeqCst);
        }
        self.last += 1;
        session.set_data(self.last.to_be_bytes());
        session.send(message).expect("the client keeps a window");
    }

    fn writable(&mut self, _session: &Session) {
        self.hear(Heard::Writable);
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

/// Room for the answers of clients whose connections are cut behind acknowledgements, before the answers,
/// several times in a row.
pub(crate) fn roomy() -> SessionLimits {
    SessionLimits::new().with_max_unacknowledged(1 << 20)
}

/// A node of a service.
pub(crate) struct Node {
    pub(crate) network: Network,
    pub(crate) sessions: Sessions,
    pub(crate) address: SocketAddr,
    pub(crate) heard: Receiver<Heard>,
    pub(crate) wrong: Arc<AtomicUsize>,
    blocks: Blocks,
    logins: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Node {
    pub(crate) fn start(store: impl Store, limits: SessionLimits) -> Self {
        let (sender, heard) = channel();
        let wrong = Arc::new(AtomicUsize::new(0));
        let blocks = Blocks::default();
        let logins = Arc::default();
        let application = Counting {
            heard: sender,
            wrong: Arc::clone(&wrong),
            blocks: Arc::clone(&blocks),
            logins: Arc::clone(&logins),
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
            blocks,
            logins,
        }
    }

    /// Has the next callback that is to block do so. Says when it does; it goes on when the other is
    /// dropped.
    pub(crate) fn block(&self) -> (Receiver<()>, Sender<()>) {
        let (enter, entered) = channel();
        let (leave, left) = channel();
        *self.blocks.lock().unwrap() = Some((enter, left));
        (entered, leave)
    }

    /// Where logins came from.
    pub(crate) fn logins(&self) -> Vec<SocketAddr> {
        self.logins.lock().unwrap().clone()
    }

    pub(crate) fn hears(&self, expected: &Heard) {
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
pub(crate) struct Player {
    pub(crate) client: Client<4096>,
    pub(crate) credentials: Vec<u8>,
    /// Numbers that it sends, counting up: the last that it has sent, and that it is to send.
    pub(crate) sent: u64,
    pub(crate) goal: u64,
    /// The last that has come back.
    pub(crate) echoed: u64,
    pub(crate) opened: usize,
    pub(crate) resumed: usize,
    pub(crate) refused: Vec<Refusal>,
    pub(crate) ended: Vec<End>,
    pub(crate) texts: Vec<Vec<u8>>,
    /// What it is to send besides.
    pub(crate) text: Option<&'static [u8]>,
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
pub(crate) struct Shared(Arc<Mutex<Player>>);

impl Shared {
    pub(crate) fn new(goal: u64) -> Self {
        let player = Player {
            credentials: PASSWORD.to_vec(),
            goal,
            ..Player::default()
        };
        Shared(Arc::new(Mutex::new(player)))
    }

    pub(crate) fn get<R>(&self, get: impl FnOnce(&mut Player) -> R) -> R {
        get(&mut self.0.lock().unwrap())
    }

    pub(crate) fn connect(&self, network: &Network, address: SocketAddr) -> Connection {
        let handler = self.clone();
        let connect = network.connect(Transport::Tcp, address, |_| handler);
        connect.unwrap()
    }

    /// Waits for what must come.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&mut Player) -> bool) {
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

pub(crate) fn clients() -> Network {
    Network::builder().workers(1).start().unwrap()
}

/// Numbers from a seed.
pub(crate) fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

/// A session outlives ten nodes, one after another, each with a store that `store` makes.
pub(crate) fn outlives_its_nodes<S: Store>(store: impl Fn() -> S, mut seed: u64) {
    let network = clients();
    let player = Shared::new(1_000_000);
    for life in 0..10 {
        let node = Node::start(store(), roomy());
        player.connect(&network, node.address);
        let before = player.get(|player| player.echoed);
        player.wait("it goes on", |player| player.echoed > before + 100);
        node.hears(if life == 0 {
            &Heard::Opened
        } else {
            &Heard::Resumed
        });
        sleep(Duration::from_micros(random(&mut seed, 10_000)));
        // In the middle of everything: what was not stored goes with it.
        node.network.stop(Duration::ZERO);
        assert_eq!(node.wrong.load(SeqCst), 0);
    }
    assert_eq!(
        player.get(|player| (player.opened, player.ended.len())),
        (1, 0)
    );
    network.stop(Duration::ZERO);
}

/// Says one thing on a connection, and keeps what it is told first.
pub(crate) struct Says(Vec<u8>, Sender<Vec<u8>>);

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
pub(crate) fn answer(network: &Network, address: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let (sender, answers) = channel();
    let says = Says(packet.to_vec(), sender);
    network.connect(Transport::Tcp, address, |_| says).unwrap();
    answers.recv_timeout(PATIENCE).unwrap()
}
