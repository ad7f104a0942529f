//! How other threads reach a worker: they register sockets for it, and wake it for a connection.
//!
//! What they hand over to it, such as new sockets, goes through its
//! mailbox.

use crate::conn::key::ConnKey;
use crate::metrics::OwnTimes;
use crate::network::shared::NetworkShared;
use crate::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed,
};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::{self, Pollable};
use crate::worker::task::UserTask;
use crate::worker::timers::MAX_INDEX;
use cubenet_core::{ConnectionId, Instant};
use mio::net::{TcpListener, UdpSocket};
use mio::{Interest, Poll, Registry, Token, Waker};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// An iteration of a worker that takes longer is one in which a callback blocks.
const HELD_UP: Duration = Duration::from_millis(20);

/// The token of the worker's own waker.
pub(crate) const WAKER: Token = Token(usize::MAX);
/// The token of a worker's alarm.
pub(super) const ALARM: Token = Token(usize::MAX - 1);
/// What the tokens of listeners have besides, where several workers watch them.
pub(super) const LISTENER: usize = 1 << 30;

/// How other threads reach a worker.
pub(crate) struct WorkerHandle {
    pub(crate) network: Arc<NetworkShared>,
    registry: Registry,
    waker: Waker,
    wakes: Mutex<Wakes>,
    tokens: Mutex<Tokens>,
    /// Connections it has or will have.
    pub(crate) load: AtomicUsize,
    /// Since when it has been at work, in microseconds; 0 while it waits for events.
    busy_since: AtomicU64,
    /// Bytes of input that its connections hold.
    held: AtomicUsize,
    /// It is to close connections that hold input.
    relief_asked: AtomicBool,
    /// How long it was at work, each time.
    pub(crate) loop_delay: OwnTimes,
}

/// Connections and datagram sockets to look at: something waits, or they close. Each is in here
/// once at most; see [`Wake`](crate::worker::wake::Wake).
struct Wakes {
    keys: Vec<(ConnKey, ConnectionId)>,
    /// What the application wants to run; `None` once the worker has ended.
    tasks: Option<Vec<PostedTask>>,
    /// The worker was woken and has not looked since.
    woken: bool,
}

/// Work of the application's on a connection.
pub(super) type PostedTask = (ConnKey, ConnectionId, UserTask);

/// The tokens under which a worker keeps what it polls. A token is taken by the thread that
/// brings a socket, so that the socket can be registered before it is shared.
#[derive(Default)]
struct Tokens {
    free: Vec<u32>,
    next: u32,
}

impl WorkerHandle {
    pub(crate) fn new(network: Arc<NetworkShared>, poll: &Poll) -> io::Result<Arc<Self>> {
        Ok(Arc::new(WorkerHandle {
            network,
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            wakes: Mutex::new(Wakes {
                keys: Vec::new(),
                tasks: Some(Vec::new()),
                woken: false,
            }),
            tokens: Mutex::default(),
            load: AtomicUsize::new(0),
            busy_since: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            relief_asked: AtomicBool::new(false),
            loop_delay: OwnTimes::default(),
        }))
    }

    /// It begins to work on what events have told.
    pub(super) fn begins(&self, now: Instant) {
        self.busy_since.store(now.as_micros().max(1), Relaxed);
    }

    /// It waits for events, at this moment.
    pub(super) fn rests(&self, now: Instant) {
        let since = Instant::from_micros(self.busy_since.load(Relaxed));
        self.loop_delay.record(since, now);
        self.busy_since.store(0, Relaxed);
    }

    /// Whether a callback has held it up for so long that new connections had better go to others.
    pub(super) fn is_held_up(&self, now: Instant) -> bool {
        let since = self.busy_since.load(Relaxed);
        since > 0 && now.since(Instant::from_micros(since)) > HELD_UP
    }

    /// Interrupts the worker's wait for events. Returns whether that went well.
    pub(super) fn interrupt(&self) -> bool {
        self.waker.wake().is_ok()
    }

    /// Asks the worker to look at a connection or a datagram socket.
    pub(crate) fn wake(&self, key: ConnKey, id: ConnectionId) {
        let mut wakes = self.wakes();
        wakes.keys.push((key, id));
        if !wakes.woken {
            // Should it fail, the next tries again.
            wakes.woken = self.interrupt();
        }
    }

    /// Leaves work for the worker. Gives it back if that has ended.
    pub(crate) fn post_task(
        &self,
        key: ConnKey,
        id: ConnectionId,
        task: UserTask,
    ) -> Result<(), UserTask> {
        let mut wakes = self.wakes();
        let Some(tasks) = &mut wakes.tasks else {
            return Err(task);
        };
        tasks.push((key, id, task));
        if !wakes.woken {
            wakes.woken = self.interrupt();
        }
        Ok(())
    }

    /// What the worker is to look at, and to run.
    pub(super) fn take_wakes(&self) -> (Vec<(ConnKey, ConnectionId)>, Vec<PostedTask>) {
        let mut wakes = self.wakes();
        wakes.woken = false;
        let tasks = wakes.tasks.as_mut().map(std::mem::take);
        (std::mem::take(&mut wakes.keys), tasks.unwrap_or_default())
    }

    /// The worker ends: from here on no work is taken. Returns what is left.
    pub(super) fn close_tasks(&self) -> Option<Vec<PostedTask>> {
        self.wakes().tasks.take()
    }

    fn wakes(&self) -> MutexGuard<'_, Wakes> {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that held `before` bytes of its input holds `after`.
    pub(super) fn change_held(&self, before: usize, after: usize) {
        // Only its own thread writes it.
        let held = self.held.load(Relaxed) + after - before;
        self.held.store(held, Relaxed);
        self.network.change_held(before, after);
    }

    /// Whether its connections hold more than the part of `max_held_total` that is a worker's,
    /// where there are so many workers. Where the sum is over the bound, at least one worker is
    /// over its share.
    pub(super) fn is_over_share(&self, workers: usize) -> bool {
        self.held.load(Relaxed) > self.network.limits.max_held_total() / workers
    }

    /// Asks the worker to close connections that hold input.
    pub(super) fn ask_relief(&self) {
        if !self.relief_asked.swap(true, AcqRel) {
            self.interrupt();
        }
    }

    /// Whether it was asked for that.
    pub(super) fn take_relief(&self) -> bool {
        self.relief_asked.load(Relaxed) && self.relief_asked.swap(false, AcqRel)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back the token of a socket that is closed.
    pub(crate) fn release_token(&self, token: u32) {
        self.tokens().free.push(token);
    }

    /// Registers a socket, for life, and returns the token it will have.
    pub(crate) fn register(
        &self,
        socket: &mut impl Pollable,
        interest: Interest,
    ) -> io::Result<u32> {
        self.register_with(|registry, token| sys::register(registry, socket, token, interest))
    }

    fn register_with(
        &self,
        register: impl FnOnce(&Registry, Token) -> io::Result<()>,
    ) -> io::Result<u32> {
        let token = {
            let mut tokens = self.tokens();
            match tokens.free.pop() {
                Some(token) => token,
                None if tokens.next > MAX_INDEX => {
                    return Err(io::Error::other("a worker can have 16 million sockets"));
                }
                None => {
                    tokens.next += 1;
                    tokens.next - 1
                }
            }
        };
        let registered = register(&self.registry, Token(token as usize));
        if registered.is_err() {
            self.release_token(token);
        }
        registered.map(|()| token)
    }

    /// Has a listener watched, beside others who watch it. Returns the token it will have.
    pub(crate) fn register_listener(&self, socket: &mut TcpListener) -> io::Result<u32> {
        self.register_with(|registry, Token(token)| {
            sys::register_listener(registry, socket, Token(token | LISTENER))
        })
    }

    /// Has a socket that listens watched no more. To be done before it is closed: another process may have it,
    /// too, and then the kernel would go on.
    #[cfg(unix)]
    pub(crate) fn unwatch(&self, socket: &impl std::os::fd::AsRawFd) {
        use mio::event::Source;
        // It may not have been watched, since that failed.
        let _ = mio::unix::SourceFd(&socket.as_raw_fd()).deregister(&self.registry);
    }

    /// No other process can have it.
    #[cfg(not(unix))]
    pub(crate) fn unwatch<S>(&self, _socket: &S) {
        let _ = self;
    }

    /// Has a listener watched behind the others who watch it.
    pub(crate) fn step_back(&self, socket: &TcpListener, token: u32) -> io::Result<()> {
        sys::step_back(&self.registry, socket, Token(token as usize | LISTENER))
    }

    /// Has a datagram socket watched for room to send, or no longer.
    pub(crate) fn watch_room(
        &self,
        socket: &UdpSocket,
        token: u32,
        watched: bool,
    ) -> io::Result<()> {
        sys::watch_room(&self.registry, socket, Token(token as usize), watched)
    }
}
