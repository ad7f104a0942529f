//! A node: the network, the sessions, the hall, and the tick.

use crate::chat::{Chat, Local, News, Redis};
use crate::hall::{Doors, Hall};
use crate::player::Player;
use crate::protocol::{self, Dot};
use crate::support::restart::Inherited;
use cubenet_mio::{
    Admission, Connection, Frame, Handler, Link, ListenOptions, ListenSockets, Listener, Message,
    Metrics, Network, Transport,
};
use cubenet_session::{Memory, SessionLimits, Sessions, Store, Threads};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets_range};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const TICKS_PER_SECOND: u32 = 20;
/// Threads that ask the store, and threads that ask the chat.
const STORE_THREADS: usize = 4;
const CHAT_THREADS: usize = 2;

/// How a node is to be.
pub struct Plan {
    pub listen: SocketAddr,
    /// Where players reach its datagrams; where it listens, if they can reach that.
    pub announce: Option<SocketAddr>,
    pub redis: Option<String>,
    /// Of the listener for streams: TLS, and the PROXY protocol.
    pub options: ListenOptions,
    pub wait: Duration,
    /// Sockets that listen already.
    pub inherited: Inherited,
}

pub struct Node {
    pub network: Network,
    pub sessions: Sessions,
    pub hall: Arc<Hall>,
    pub listeners: Arc<[Listener]>,
    ticker: Ticker,
    inherited: Inherited,
}

impl Node {
    pub fn start(mut plan: Plan) -> Result<Self, Box<dyn Error>> {
        let limits = SessionLimits::new().with_wait(plan.wait);
        // Each has its own part of Redis, or none of it.
        let (hall, sessions) = match &plan.redis {
            None => {
                let chat = Arc::new(Local::default());
                let hall = Hall::new(Arc::clone(&chat) as Arc<dyn Chat>, CHAT_THREADS)?;
                chat.tell(Arc::clone(&hall) as Arc<dyn News>);
                let sessions = sessions(&hall, Memory::new(), limits)?;
                (hall, sessions)
            }
            Some(url) => {
                let chat = Arc::new(Redis::new(url, plan.wait)?);
                let hall = Hall::new(Arc::clone(&chat) as Arc<dyn Chat>, CHAT_THREADS)?;
                let news = Arc::clone(&hall) as Arc<dyn News>;
                chat.tell(&news)?;
                let sessions = sessions(&hall, cubenet_session::Redis::new(url)?, limits)?;
                (hall, sessions)
            }
        };
        let network = Network::builder().start()?;
        let gates = sessions.clone();
        let accepted = move |connection: &Connection| Some(gates.gate(connection));
        let tcp = match plan.inherited.sockets(Transport::Tcp) {
            Some(sockets) => network.listen_on(plan.options, sockets, accepted)?,
            None => network.listen_with(plan.options, Transport::Tcp, plan.listen, accepted)?,
        };
        let sockets = plan.inherited.sockets(Transport::Udp);
        let udp = listen_for_datagrams(&network, &hall, sockets, tcp.local_addr())?;
        hall.set_udp(plan.announce.unwrap_or(udp.local_addr()));
        let ticker = Ticker::start(&hall)?;
        Ok(Node {
            network,
            sessions,
            hall,
            listeners: Arc::from([tcp, udp]),
            ticker,
            inherited: plan.inherited,
        })
    }

    /// All is well: the process that this one replaces may leave.
    pub fn ready(&mut self) -> Result<(), Box<dyn Error>> {
        std::mem::take(&mut self.inherited).ready()
    }

    /// Where players reach it over TCP.
    pub fn address(&self) -> SocketAddr {
        self.listeners[0].local_addr()
    }

    /// Stops: what has been received is answered, as far as there is time, and all that has been done is
    /// stored, so that the players go on elsewhere. Returns whether it is.
    pub fn stop(self, timeout: Duration) -> bool {
        self.network.stop(timeout);
        self.ticker.stop();
        self.hall.settle(timeout);
        self.sessions.settle(timeout)
    }

    pub fn metrics(&self) -> Metrics {
        self.network.metrics()
    }

    pub fn ticks(&self) -> Arc<Ticks> {
        Arc::clone(&self.ticker.ticks)
    }
}

fn sessions(
    hall: &Arc<Hall>,
    store: impl Store,
    limits: SessionLimits,
) -> std::io::Result<Sessions> {
    let doors = Doors(Arc::clone(hall));
    let threads = Threads::start(STORE_THREADS)?;
    Ok(Sessions::new(doors, store, threads, limits))
}

/// Players send datagrams to the same port. What has no ticket of a player at that address is dropped before
/// anything is built for it: a forged address gets no answer.
fn listen_for_datagrams(
    network: &Network,
    hall: &Arc<Hall>,
    sockets: Option<ListenSockets>,
    address: SocketAddr,
) -> Result<Listener, cubenet_mio::Error> {
    let of_hook = Arc::clone(hall);
    let options = ListenOptions::new().admit(move |peer, datagram| {
        let position = protocol::read_position(datagram);
        match position.and_then(|(ticket, ..)| of_hook.ticket(&ticket)) {
            Some(player) if player.is_from(peer) => Admission::Recognise,
            _ => Admission::Refuse,
        }
    });
    let hall = Arc::clone(hall);
    let accepted = move |connection: &Connection| {
        Some(Datagrams {
            hall: Arc::clone(&hall),
            connection: connection.clone(),
            player: None,
        })
    };
    match sockets {
        Some(sockets) => network.listen_on(options, sockets, accepted),
        None => network.listen_with(options, Transport::Udp, address, accepted),
    }
}

/// The datagrams of one address, which are one player's at a time.
struct Datagrams {
    hall: Arc<Hall>,
    connection: Connection,
    player: Option<Arc<Player>>,
}

impl Handler for Datagrams {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let Some((ticket, x, y)) = protocol::read_position(&message) else {
            return;
        };
        let is_known = |player: &Arc<Player>| player.ticket == ticket;
        if !self.player.as_ref().is_some_and(is_known) {
            self.player = self.hall.ticket(&ticket);
        }
        match &self.player {
            Some(player) if player.is_from(link.peer_addr()) => {
                player.is_at(&self.connection, x, y);
            }
            // The player has another address by now, or is elsewhere, and is told so by its session.
            _ => link.abort(),
        }
    }
}

/// How ticks went.
pub struct Ticks {
    /// What each took, in seconds.
    pub time: Histogram,
    pub count: AtomicU64,
    /// What they took together, and the longest, in microseconds.
    pub micros: AtomicU64,
    pub longest: AtomicU64,
    /// Ticks that were left out because those before took too long.
    pub late: AtomicU64,
    pub datagrams: AtomicU64,
}

/// Twenty times a second, tells each player where the others of its room are.
struct Ticker {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    ticks: Arc<Ticks>,
}

impl Ticker {
    fn start(hall: &Arc<Hall>) -> std::io::Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let ticks = Arc::new(Ticks {
            // From 50 µs to the time that a tick has.
            time: Histogram::new(exponential_buckets_range(50e-6, 50e-3, 13)),
            count: AtomicU64::new(0),
            micros: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            late: AtomicU64::new(0),
            datagrams: AtomicU64::new(0),
        });
        let (hall, ended, counts) = (Arc::clone(hall), Arc::clone(&ends), Arc::clone(&ticks));
        let run = move || {
            let period = Duration::from_secs(1) / TICKS_PER_SECOND;
            let mut next = Instant::now();
            let mut number = 0;
            while !ended.load(Relaxed) {
                let began = Instant::now();
                number += 1;
                counts.datagrams.fetch_add(tick(&hall, number), Relaxed);
                let took = began.elapsed();
                counts.time.observe(took.as_secs_f64());
                let micros = took.as_micros() as u64;
                counts.count.fetch_add(1, Relaxed);
                counts.micros.fetch_add(micros, Relaxed);
                counts.longest.fetch_max(micros, Relaxed);
                next += period;
                if let Some(left) = next.checked_duration_since(Instant::now()) {
                    thread::sleep(left);
                } else {
                    // No burst of ticks behind a pause.
                    counts.late.fetch_add(1, Relaxed);
                    next = Instant::now();
                }
            }
        };
        let thread = thread::Builder::new().name("lobby-tick".to_owned());
        let thread = thread.spawn(run)?;
        Ok(Ticker {
            ends,
            thread,
            ticks,
        })
    }

    fn stop(self) {
        self.ends.store(true, Relaxed);
        let _ = self.thread.join();
    }
}

/// Sends a tick to the players of all rooms. Returns how many datagrams that took.
fn tick(hall: &Hall, number: u32) -> u64 {
    let mut sent = 0;
    let mut own = Vec::new();
    for (room, players, others) in hall.by_room() {
        let seen: Vec<(Dot, Connection)> =
            players.iter().filter_map(|player| player.seen()).collect();
        let here: Vec<Dot> = seen.iter().map(|(dot, _)| *dot).collect();
        let all = [&here[..], &others].concat();
        let datagrams = protocol::tick(number, &all);
        let frames: Result<Vec<Frame>, _> = datagrams.iter().map(|one| Frame::new(one)).collect();
        let frames = frames.expect("a datagram fits a frame");
        // What goes to one room leaves together, in as few calls of the system as there can be.
        Connection::batch(|| {
            for (_, connection) in &seen {
                for frame in &frames {
                    // The next tick says it anew.
                    sent += u64::from(connection.send_frame(frame).is_ok());
                }
            }
        });
        own.push((room, here));
    }
    hall.publish_dots(&own);
    sent
}
