//! One run: two networks, what their handlers may do to them, and what is known of each
//! connection.

use crate::peers;
use crate::user::{self, Actor, Chaos};
use cubenet_mio::{
    AddressLimits, Budgets, CloseReason, Connection, FullPolicy, Limits, Listener, Network,
    Transport,
};
use fastrand::Rng;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a run may take before it is taken for stuck.
const LONGEST: Duration = Duration::from_secs(30);

/// What came of a run.
pub(crate) struct Ran {
    pub(crate) violations: Vec<String>,
    pub(crate) faults: u64,
}

/// Panics that the seed did not ask for.
static STRAY_PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From here on, panics that are part of the chaos are not printed, and others are kept.
pub(crate) fn watch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if !panic.payload().is::<Chaos>() {
            let thread = thread::current();
            let thread = thread.name().unwrap_or("unnamed").to_owned();
            let backtrace = std::backtrace::Backtrace::force_capture();
            let mut stray = lock(&STRAY_PANICS);
            stray.push(format!("a panic on {thread}: {panic}\n{backtrace}"));
        }
    }));
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of one end of a connection.
#[derive(Default)]
pub(crate) struct End {
    pub(crate) is_stream: bool,
    /// Messages that `send` accepted.
    pub(crate) accepted: u32,
    /// Messages received from the other end, and which that is.
    pub(crate) received: u32,
    pub(crate) from: Option<u32>,
    /// It has a handler.
    pub(crate) opened: bool,
    pub(crate) closed: Vec<CloseReason>,
    pub(crate) dropped: u32,
}

/// A connect that began.
#[derive(Default)]
pub(crate) struct Connect {
    pub(crate) began: bool,
    pub(crate) answered: u32,
}

/// Everything that user code can reach.
pub(crate) struct World {
    pub(crate) networks: Mutex<Vec<Network>>,
    pub(crate) connections: Mutex<Vec<Connection>>,
    /// Every connection there has been, which user code does not reach.
    pub(crate) every: Mutex<Vec<Connection>>,
    /// The listeners, and what is set once they are closed.
    pub(crate) listeners: Mutex<Vec<(Listener, Arc<AtomicBool>)>>,
    pub(crate) addresses: Mutex<Vec<(Transport, SocketAddr)>>,
    pub(crate) ends: Mutex<HashMap<u32, Arc<Mutex<End>>>>,
    pub(crate) connects: Mutex<Vec<Connect>>,
    pub(crate) violations: Mutex<Vec<String>>,
    next_end: AtomicU32,
    /// What may still be done: each act takes one.
    acts: AtomicUsize,
    pub(crate) may_panic: bool,
    /// What messages of this run begin with.
    pub(crate) tag: [u8; 8],
}

impl World {
    fn new(rng: &mut Rng) -> Arc<Self> {
        Arc::new(World {
            networks: Mutex::default(),
            connections: Mutex::default(),
            every: Mutex::default(),
            listeners: Mutex::default(),
            addresses: Mutex::default(),
            ends: Mutex::default(),
            connects: Mutex::default(),
            violations: Mutex::default(),
            next_end: AtomicU32::new(0),
            acts: AtomicUsize::new(rng.usize(100..3_000)),
            may_panic: rng.bool(),
            tag: tag(),
        })
    }

    pub(crate) fn new_end(&self, is_stream: bool) -> u32 {
        let end = self.next_end.fetch_add(1, Relaxed);
        let known = End {
            is_stream,
            ..End::default()
        };
        lock(&self.ends).insert(end, Arc::new(Mutex::new(known)));
        end
    }

    /// Whether something more may be done.
    pub(crate) fn may_act(&self) -> bool {
        let take = |left: usize| left.checked_sub(1);
        self.acts.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    fn is_calm(&self) -> bool {
        self.acts.load(Relaxed) == 0
    }

    /// Nothing more is done from here on.
    fn calm(&self) {
        self.acts.store(0, Relaxed);
    }

    pub(crate) fn violated(&self, what: impl Into<String>) {
        let mut violations = lock(&self.violations);
        if violations.len() < 100 {
            violations.push(what.into());
        }
    }

    /// What is known of an end, to change.
    pub(crate) fn end<R>(&self, end: u32, change: impl FnOnce(&mut End) -> R) -> R {
        let known = Arc::clone(lock(&self.ends).entry(end).or_default());
        change(&mut lock(&known))
    }
}

/// A number that no other run, of this process or another, has.
fn tag() -> [u8; 8] {
    let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let time = since_epoch.map_or(0, |time| time.as_nanos() as u64);
    (time ^ u64::from(std::process::id()) << 40).to_be_bytes()
}

pub(crate) fn limits(rng: &mut Rng) -> Limits {
    let max_message = *rng.choice(&[100, 5_000, 65_535]).unwrap_or(&100);
    let max_queued = max_message.max(2_000) + 2 + rng.usize(0..100_000);
    let millis = |rng: &mut Rng| Duration::from_millis(rng.u64(20..2_000));
    let full_policy = if rng.bool() {
        FullPolicy::Refuse
    } else {
        FullPolicy::EvictIdleFor(Duration::from_millis(rng.u64(0..5)))
    };
    Limits::new()
        .with_max_message(max_message)
        .with_max_datagram(1_500)
        .with_max_queued(max_queued)
        .with_low_watermark(rng.usize(0..max_queued))
        .with_max_queued_total(max_queued + rng.usize(0..300_000))
        .with_max_held_total(max_message + rng.usize(0..300_000))
        .with_max_connections(rng.usize(3..60))
        .with_max_peers(rng.usize(2..30))
        .with_reserved_peers(rng.usize(0..2))
        .with_full_policy(full_policy)
        .with_empty_datagram_closes(rng.bool())
        .with_connect_timeout(millis(rng))
        .with_frame_timeout(millis(rng))
        .with_first_message_timeout(millis(rng))
        .with_stream_idle_timeout(millis(rng))
        .with_datagram_idle_timeout(millis(rng))
        .with_write_stall_timeout(millis(rng))
        .with_drain_timeout(millis(rng))
}

fn budgets(rng: &mut Rng) -> Budgets {
    Budgets::new()
        .with_read_bytes(*rng.choice(&[1, 100, 5_000, 1 << 18]).unwrap_or(&1))
        .with_messages(*rng.choice(&[1, 10, 4_096]).unwrap_or(&1))
        .with_datagrams(*rng.choice(&[1, 10, 1_024]).unwrap_or(&1))
        .with_time(Duration::from_micros(
            *rng.choice(&[1, 100, 1_000]).unwrap_or(&1),
        ))
        .with_accepts(rng.usize(1..10))
}

fn network(rng: &mut Rng) -> Network {
    let builder = Network::builder()
        .workers(rng.usize(1..4))
        .limits(limits(rng))
        .budgets(budgets(rng));
    let builder = if rng.bool() {
        builder.stream_buffer(rng.usize(2_000..50_000))
    } else {
        builder
    };
    let builder = if rng.bool() {
        builder.address_limits(address_limits(rng))
    } else {
        builder
    };
    builder.start().expect("a network starts")
}

fn address_limits(rng: &mut Rng) -> AddressLimits {
    let limits = AddressLimits::new()
        .with_max_connections(rng.usize(2..40))
        .with_connections_per_second(rng.u32(500..5_000));
    if rng.u8(..) < 50 {
        limits.with_exempt("127.0.0.0/8".parse().expect("it is a prefix"))
    } else {
        limits
    }
}

#[cfg(cubenet_faults)]
fn set_faults(seed: u64, rng: &mut Rng) {
    let one_in = *rng.choice(&[0, 12, 50, 300]).unwrap_or(&0);
    cubenet_mio::faults::set(seed, one_in);
}

#[cfg(not(cubenet_faults))]
fn set_faults(_seed: u64, _rng: &mut Rng) {}

/// Ends the faults. Returns how many there were.
fn end_faults() -> u64 {
    #[cfg(cubenet_faults)]
    {
        let count = cubenet_mio::faults::count();
        cubenet_mio::faults::set(0, 0);
        count
    }
    #[cfg(not(cubenet_faults))]
    0
}

/// Runs a seed.
pub(crate) fn run(seed: u64) -> Ran {
    let mut rng = Rng::with_seed(seed);
    let world = World::new(&mut rng);
    crate::subscriber::listen(&world, rng.u64(..));
    set_faults(seed, &mut rng);
    let networks = [network(&mut rng), network(&mut rng)];
    lock(&world.networks).extend(networks.iter().cloned());
    for network in &networks {
        for transport in [Transport::Tcp, Transport::Udp] {
            user::listen(&world, network, transport, rng.u64(..));
        }
    }
    let mut threads: Vec<(&str, thread::JoinHandle<()>)> = Vec::new();
    for _ in 0..rng.usize(1..4) {
        let (world, seed) = (Arc::clone(&world), rng.u64(..));
        threads.push((
            "an application's thread",
            thread::spawn(move || act(&world, seed)),
        ));
    }
    for _ in 0..rng.usize(0..3) {
        let (world, seed) = (Arc::clone(&world), rng.u64(..));
        threads.push((
            "a raw peer",
            thread::spawn(move || peers::act(&world, seed)),
        ));
    }
    let start = Instant::now();
    while !world.is_calm() && start.elapsed() < Duration::from_millis(100) {
        thread::sleep(Duration::from_millis(1));
    }
    world.calm();
    for (what, thread) in threads {
        join(&world, what, thread);
    }
    let faults = end_faults();
    for network in &networks {
        crate::checks::is_alive(&world, network);
    }
    // Some runs stop what is quiet, others what is busy.
    if rng.u8(..) < 40 {
        crate::checks::is_quiet(&world);
    }
    if rng.bool() {
        // Handlers, closures and destructors do things while everything stops.
        world.acts.store(rng.usize(0..300), Relaxed);
    }
    let stopping = thread::spawn({
        let world = Arc::clone(&world);
        let deadline = Duration::from_millis(rng.u64(0..300));
        move || {
            for network in &networks {
                network.stop(deadline);
            }
            // Only then, since handlers of one use the other.
            for network in networks {
                let metrics = network.metrics();
                let left = (metrics.open, metrics.queued_bytes, metrics.held_bytes);
                if left != (0, 0, 0) {
                    world.violated(format!("after the stop there is something left: {metrics}"));
                }
            }
        }
    });
    join(&world, "the stop", stopping);
    world.calm();
    // What user code keeps is dropped under no lock.
    let kept = std::mem::take(&mut *lock(&world.listeners));
    drop(kept);
    let kept = std::mem::take(&mut *lock(&world.networks));
    drop(kept);
    lock(&world.connections).clear();
    let kept = std::mem::take(&mut *lock(&world.every));
    for connection in &kept {
        if !connection.is_closed() || connection.queued() != 0 {
            world.violated("a connection outlives its network");
        }
    }
    crate::checks::ends(&world);
    #[cfg(cubenet_faults)]
    cubenet_mio::faults::forget();
    let mut violations = std::mem::take(&mut *lock(&world.violations));
    violations.append(&mut lock(&STRAY_PANICS));
    Ran { violations, faults }
}

/// Waits for a thread, but not for ever: a thread that never comes back is stuck.
fn join(world: &World, what: &str, thread: thread::JoinHandle<()>) {
    let start = Instant::now();
    while !thread.is_finished() {
        if start.elapsed() > LONGEST {
            println!("chaos: stuck: {what}; pid {}", std::process::id());
            if std::env::var_os("CUBENET_CHAOS_WAIT").is_some() {
                thread::sleep(Duration::from_secs(3_600));
            }
            return world.violated(format!("stuck: {what} never came back"));
        }
        thread::sleep(Duration::from_micros(200));
    }
    let _ = thread.join();
}

/// A thread of the application's.
fn act(world: &Arc<World>, seed: u64) {
    let mut actor = Actor::new(world, seed);
    while world.may_act() {
        // What panics here is the application's own thread; it goes on.
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| actor.act_alone()));
        if let Err(panic) = acted {
            std::mem::forget(panic);
        }
    }
}
