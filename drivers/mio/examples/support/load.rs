//! A closed-loop load: every connection keeps a window of messages on their way, and
//! verifies each answer to the byte.

use super::system::End;
use cubenet_mio::{
    CloseReason, ConnectError, ConnectOptions, Connection, Error, Handler, Link, Message, Network,
    Report, SendError, Transport, TransportError,
};
use hdrhistogram::Histogram;
use std::cell::OnceCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A datagram not answered in this time counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// Connects that are made before the first must have succeeded.
const CONNECTS_AT_ONCE: usize = 512;
/// How long answers are waited for after the last message.
const PATIENCE: Duration = Duration::from_secs(5);

/// What load to make.
#[derive(Clone, Debug)]
pub struct Plan {
    pub transport: Transport,
    pub address: SocketAddr,
    pub connections: usize,
    /// Messages on their way at once on each connection.
    pub window: usize,
    /// Bytes of a message.
    pub size: usize,
    /// Such as TLS.
    pub options: ConnectOptions,
}

/// A load under way: its connections and what they counted.
pub struct Load {
    plan: Plan,
    counts: Arc<Counts>,
    clients: Vec<(Connection, Arc<Mutex<State>>)>,
}

/// What all connections of a load count together.
#[derive(Default)]
pub struct Counts {
    pub answered: AtomicU64,
    pub damaged: AtomicU64,
    /// Connections that ended on their own.
    pub broken: AtomicU64,
    failed_connects: AtomicU64,
    connected: AtomicU64,
    ending: AtomicBool,
    /// It was said that no socket listens there.
    unreachable: AtomicBool,
    histograms: Mutex<Vec<SharedHistogram>>,
}

type SharedHistogram = Arc<Mutex<Histogram<u64>>>;

/// What a load came to.
#[derive(Debug)]
pub struct Outcome {
    pub plan: Plan,
    pub connected: usize,
    pub answered: u64,
    pub lost: u64,
    pub damaged: u64,
    /// Connections that were not made or did not last.
    pub broken: u64,
    pub elapsed: Duration,
    /// Round trips, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Whether everything was as it must be: datagrams may be lost, nothing else may.
    pub fn is_good(&self) -> bool {
        let lost = self.plan.transport == Transport::Tcp && self.lost > 0;
        self.damaged == 0 && self.broken == 0 && self.answered > 0 && !lost
    }

    pub fn messages_per_second(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64()
    }

    pub fn latency_at(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.latency.value_at_quantile(quantile))
    }
}

/// One connection's view: what it sent and waits for.
struct State {
    /// What every message of this connection looks like behind its number.
    message: Vec<u8>,
    next: u64,
    waiting: VecDeque<(u64, Instant)>,
    lost: u64,
    /// Room that a full queue did not grant.
    owed: usize,
}

struct Client {
    transport: Transport,
    state: Arc<Mutex<State>>,
    counts: Arc<Counts>,
}

thread_local! {
    /// The histogram of this worker, by the load it belongs to.
    static OF_THIS_THREAD: OnceCell<Mutex<Vec<(usize, SharedHistogram)>>> =
        const { OnceCell::new() };
}

impl Load {
    /// Makes the connections; returns once every connect was answered, or was not in time, or once
    /// it is to end.
    pub fn connect(network: &Network, plan: &Plan, end: &End) -> Result<Load, Error> {
        let counts = Arc::new(Counts::default());
        let mut clients = Vec::with_capacity(plan.connections);
        for nth in 0..plan.connections {
            if end.is_asked() {
                break;
            }
            let state = Arc::new(Mutex::new(State::new(nth as u64, plan)));
            let client = Client {
                transport: plan.transport,
                state: Arc::clone(&state),
                counts: Arc::clone(&counts),
            };
            let connection =
                network.connect_with(&plan.options, plan.transport, plan.address, |_| client)?;
            clients.push((connection, state));
            while counts.finished_connects() + CONNECTS_AT_ONCE < clients.len() && !end.is_asked() {
                sleep(Duration::from_millis(1));
            }
        }
        while counts.finished_connects() < clients.len() && !end.is_asked() {
            sleep(Duration::from_millis(1));
        }
        Ok(Load {
            plan: plan.clone(),
            counts,
            clients,
        })
    }

    /// Runs for `duration`, or until it is to end, then waits for the answers that are due.
    /// `progress` is called
    /// ten times a second with the time that has passed and the counts.
    pub fn run(
        self,
        duration: Duration,
        end: &End,
        mut progress: impl FnMut(Duration, &Counts),
    ) -> Outcome {
        let start = Instant::now();
        for (connection, state) in &self.clients {
            let mut state = lock(state);
            state.fill(self.plan.window, |message| connection.send(message));
        }
        while start.elapsed() < duration && !end.is_asked() {
            end.wait_for(Duration::from_millis(100).min(duration.saturating_sub(start.elapsed())));
            self.replace_lost();
            progress(start.elapsed(), &self.counts);
        }
        self.counts.ending.store(true, Relaxed);
        let elapsed = start.elapsed();
        let answered = self.counts.answered.load(Relaxed);
        let patience = if self.plan.transport == Transport::Tcp {
            PATIENCE
        } else {
            LOST_AFTER
        };
        while start.elapsed() < elapsed + patience && self.waiting() > 0 {
            sleep(Duration::from_millis(5));
        }
        let lost = self.clients.iter().map(|(_, state)| lock(state).lost);
        let lost = lost.sum::<u64>() + self.waiting();
        for (connection, _) in &self.clients {
            connection.close();
        }
        let mut latency = new_histogram();
        for histogram in &*lock(&self.counts.histograms) {
            latency.add(&*lock(histogram)).expect("they have one range");
        }
        let load = |count: &AtomicU64| count.load(Relaxed);
        Outcome {
            connected: load(&self.counts.connected) as usize,
            answered,
            lost,
            damaged: load(&self.counts.damaged),
            broken: load(&self.counts.broken) + load(&self.counts.failed_connects),
            elapsed,
            latency,
            plan: self.plan,
        }
    }

    /// What is being counted, to watch from outside.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    fn waiting(&self) -> u64 {
        let waiting = self
            .clients
            .iter()
            .map(|(_, state)| lock(state).waiting.len());
        waiting.sum::<usize>() as u64
    }

    /// Datagrams get lost; for each, another takes its place.
    fn replace_lost(&self) {
        if self.plan.transport == Transport::Tcp {
            return;
        }
        for (connection, state) in &self.clients {
            let mut state = lock(state);
            let before = state.waiting.len();
            state
                .waiting
                .retain(|(_, sent)| sent.elapsed() < LOST_AFTER);
            let lost = before - state.waiting.len();
            state.lost += lost as u64;
            state.fill(lost, |message| connection.send(message));
        }
    }
}

impl Counts {
    fn finished_connects(&self) -> usize {
        let finished = self.connected.load(Relaxed) + self.failed_connects.load(Relaxed);
        finished as usize
    }

    fn record(self: &Arc<Self>, nanos: u64) {
        OF_THIS_THREAD.with(|of_this_thread| {
            let mut known = lock(of_this_thread.get_or_init(Mutex::default));
            let number = Arc::as_ptr(self) as usize;
            let found = known.iter().position(|(of, _)| *of == number);
            let at = found.unwrap_or_else(|| {
                let histogram = Arc::new(Mutex::new(new_histogram()));
                lock(&self.histograms).push(Arc::clone(&histogram));
                known.push((number, histogram));
                known.len() - 1
            });
            lock(&known[at].1).saturating_record(nanos);
        });
    }
}

impl State {
    fn new(nth: u64, plan: &Plan) -> Self {
        // A pattern that differs between connections and between positions.
        let byte = |at: u64| (at.wrapping_mul(31) ^ nth.wrapping_mul(0x9e37_79b9) >> 3) as u8;
        State {
            message: (0..plan.size as u64).map(byte).collect(),
            next: 0,
            waiting: VecDeque::with_capacity(plan.window),
            lost: 0,
            owed: 0,
        }
    }

    /// The message of this number: the pattern, with as many bytes of the number in front as
    /// there is room for.
    fn message(&mut self, number: u64) -> &[u8] {
        let len = self.message.len().min(8);
        self.message[..len].copy_from_slice(&number.to_be_bytes()[8 - len..]);
        &self.message
    }

    /// Sends `count` messages.
    fn fill(&mut self, count: usize, mut send: impl FnMut(&[u8]) -> Result<(), SendError>) {
        for sent in 0..count {
            let number = self.next;
            match send(self.message(number)) {
                Ok(()) => {
                    self.next += 1;
                    self.waiting.push_back((number, Instant::now()));
                }
                Err(SendError::Full) => {
                    self.owed += count - sent;
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Which of the messages that are waited for this answers; `None` if it was damaged.
    fn answered(&mut self, transport: Transport, answer: &[u8]) -> Option<Answer> {
        let len = self.message.len().min(8);
        if answer.len() != self.message.len() || answer[len..] != self.message[len..] {
            return None;
        }
        let is_answered =
            |(number, _): &(u64, Instant)| number.to_be_bytes()[8 - len..] == answer[..len];
        match transport {
            Transport::Tcp => {
                let first = self.waiting.front().filter(|first| is_answered(first))?;
                let sent = first.1;
                self.waiting.pop_front();
                Some(Answer::InTime(sent))
            }
            _ => match self.waiting.iter().position(is_answered) {
                Some(at) => self
                    .waiting
                    .remove(at)
                    .map(|(_, sent)| Answer::InTime(sent)),
                None => Some(Answer::Late),
            },
        }
    }
}

enum Answer {
    InTime(Instant),
    /// It was given up already, or has come twice.
    Late,
}

impl Handler for Client {
    fn connected(&mut self, _link: &mut dyn Link) {
        self.counts.connected.fetch_add(1, Relaxed);
    }

    fn connect_failed(&mut self, error: ConnectError) {
        if self.counts.failed_connects.fetch_add(1, Relaxed) == 0 {
            complain!("{}", Report::new(&error));
        }
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let mut state = lock(&self.state);
        match state.answered(self.transport, &message) {
            Some(Answer::InTime(sent)) => {
                self.counts.record(sent.elapsed().as_nanos() as u64);
                self.counts.answered.fetch_add(1, Relaxed);
                if !self.counts.ending.load(Relaxed) {
                    state.fill(1, |message| link.send(message));
                }
            }
            Some(Answer::Late) => {}
            None => {
                self.counts.damaged.fetch_add(1, Relaxed);
                link.abort();
            }
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        let mut state = lock(&self.state);
        let owed = std::mem::take(&mut state.owed);
        if !self.counts.ending.load(Relaxed) {
            state.fill(owed, |message| link.send(message));
        }
    }

    fn error(&mut self, link: &mut dyn Link, error: TransportError) {
        if error == TransportError::Unreachable && !self.counts.unreachable.swap(true, Relaxed) {
            complain!("{}: {error}", link.peer_addr());
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        if reason != CloseReason::Local {
            self.counts.broken.fetch_add(1, Relaxed);
        }
    }
}

fn new_histogram() -> Histogram<u64> {
    // From a microsecond to a minute, with three digits.
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("the bounds are in order")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
