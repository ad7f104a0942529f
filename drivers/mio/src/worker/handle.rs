//! How other threads reach a worker: they register sockets for it, and wake it for a connection.
//!
//! What they hand over to it, such as new sockets, goes through its
//! mailbox.

use crate::conn::key::ConnKey;
use crate::network::shared::NetworkShared;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::{self, Pollable};
use crate::worker::timers::MAX_INDEX;
use cubenet_core::ConnectionId;
use mio::net::UdpSocket;
use mio::{Interest, Poll, Registry, Token, Waker};
use std::io;
use std::sync::{Arc, PoisonError};

/// The token of the worker's own waker.
pub(crate) const WAKER: Token = Token(usize::MAX);

/// How other threads reach a worker.
pub(crate) struct WorkerHandle {
    pub(crate) network: Arc<NetworkShared>,
    registry: Registry,
    waker: Waker,
    wakes: Mutex<Wakes>,
    tokens: Mutex<Tokens>,
    /// Connections it has or will have.
    pub(crate) load: AtomicUsize,
    /// Bytes of input that its connections hold.
    held: AtomicUsize,
    /// It is to close connections that hold input.
    relief_asked: AtomicBool,
}

/// Connections and datagram sockets to look at: something waits, or they close. Each is in here
/// once at most; see [`Wake`](crate::worker::wake::Wake).
#[derive(Default)]
struct Wakes {
    keys: Vec<(ConnKey, ConnectionId)>,
    /// The worker was woken and has not looked since.
    woken: bool,
}

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
            wakes: Mutex::default(),
            tokens: Mutex::default(),
            load: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            relief_asked: AtomicBool::new(false),
        }))
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

    /// What the worker is to look at.
    pub(super) fn take_wakes(&self) -> Vec<(ConnKey, ConnectionId)> {
        let mut wakes = self.wakes();
        wakes.woken = false;
        std::mem::take(&mut wakes.keys)
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
        let registered = sys::register(&self.registry, socket, Token(token as usize), interest);
        if registered.is_err() {
            self.release_token(token);
        }
        registered.map(|()| token)
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
