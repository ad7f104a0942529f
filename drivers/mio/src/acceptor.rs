//! The acceptor: one thread that takes connections off the listeners and hands each to the
//! worker that has the fewest.

use crate::common::Common;
use crate::mailbox::{AcceptFn, Command, WorkerHandle};
use crate::sys;
use crate::trouble::warn_limited;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const WAKER: Token = Token(usize::MAX);
/// How long to wait before trying again what failed for lack of descriptors or memory.
const RETRY: Duration = Duration::from_millis(20);

/// How other threads reach the acceptor.
pub(crate) struct AcceptorHandle {
    waker: Waker,
    /// `None` once the acceptor has ended.
    mailbox: Mutex<Option<Vec<Order>>>,
}

/// What other threads ask of the acceptor. Whoever sends a reply channel waits on it.
pub(crate) enum Order {
    Listen(u64, TcpListener, Arc<AcceptFn>, SyncSender<io::Result<()>>),
    Close(u64, SyncSender<()>),
    Stop,
}

impl AcceptorHandle {
    pub(crate) fn new(poll: &Poll) -> io::Result<Arc<Self>> {
        Ok(Arc::new(AcceptorHandle {
            waker: Waker::new(poll.registry(), WAKER)?,
            mailbox: Mutex::new(Some(Vec::new())),
        }))
    }

    /// Leaves `order` for the acceptor; drops it, and its reply channel, if that has ended.
    pub(crate) fn post(&self, order: Order) {
        if let Some(orders) = &mut *self.mailbox() {
            orders.push(order);
        }
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the acceptor");
        }
    }

    fn mailbox(&self) -> MutexGuard<'_, Option<Vec<Order>>> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Acceptor {
    pub(crate) poll: Poll,
    pub(crate) handle: Arc<AcceptorHandle>,
    pub(crate) common: Arc<Common>,
    pub(crate) workers: Vec<Arc<WorkerHandle>>,
    pub(crate) listeners: HashMap<u64, Listening>,
}

pub(crate) struct Listening {
    listener: TcpListener,
    accept: Arc<AcceptFn>,
    /// More may wait in the kernel: try again, then.
    again: Option<Instant>,
}

impl Acceptor {
    /// Accepts until the network stops. The listeners close with it.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        loop {
            if let Err(error) = self.poll.poll(&mut events, self.patience())
                && error.kind() != io::ErrorKind::Interrupted
            {
                warn_limited!(%error, "poll failed");
            }
            for event in &events {
                let number = event.token().0 as u64;
                // Whoever waits to try again is not hurried by one more that comes.
                if let Some(listening) = self.listeners.get_mut(&number)
                    && listening.again.is_none()
                {
                    listening.again = Some(Instant::now());
                }
            }
            if self.handle_mailbox() {
                self.handle.mailbox().take();
                return;
            }
            let now = Instant::now();
            for listening in self.listeners.values_mut() {
                if listening.again.is_some_and(|again| again <= now) {
                    listening.again = listening.accept_some(&self.common, &self.workers);
                }
            }
        }
    }

    fn patience(&self) -> Option<Duration> {
        let again = self
            .listeners
            .values()
            .filter_map(|listening| listening.again);
        Some(again.min()?.saturating_duration_since(Instant::now()))
    }

    /// Returns whether the network stops.
    fn handle_mailbox(&mut self) -> bool {
        let orders = self.handle.mailbox().replace(Vec::new());
        for order in orders.into_iter().flatten() {
            match order {
                Order::Listen(number, mut listener, accept, reply) => {
                    let token = Token(number as usize);
                    let registry = self.poll.registry();
                    let outcome = registry.register(&mut listener, token, Interest::READABLE);
                    if outcome.is_ok() {
                        let again = Some(Instant::now());
                        let listening = Listening {
                            listener,
                            accept,
                            again,
                        };
                        self.listeners.insert(number, listening);
                    }
                    let _ = reply.send(outcome);
                }
                Order::Close(number, reply) => {
                    self.listeners.remove(&number);
                    let _ = reply.send(());
                }
                Order::Stop => return true,
            }
        }
        false
    }
}

impl Listening {
    /// Accepts within the budget of a turn. Returns when to try again, if not at the next
    /// event.
    fn accept_some(&self, common: &Common, workers: &[Arc<WorkerHandle>]) -> Option<Instant> {
        let mut progress = false;
        for _ in 0..common.limits.accepts_per_turn {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    progress = true;
                    if !common.reserve() {
                        common.totals.refused.fetch_add(1, Relaxed);
                        let limit = common.limits.max_connections;
                        warn_limited!(%peer, limit, "connection refused: there are too many");
                        continue;
                    }
                    let worker = least_loaded(workers);
                    let accept = Arc::clone(&self.accept);
                    if worker.post(Command::Accept(stream, peer, accept)).is_none() {
                        common.release();
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return None,
                    io::ErrorKind::Interrupted => {}
                    _ if sys::out_of_resources(&error) => {
                        // What waits stays in the kernel, and no event will tell of it.
                        common.totals.accept_failed.fetch_add(1, Relaxed);
                        warn_limited!(%error, "cannot accept; trying again");
                        return Some(Instant::now() + RETRY);
                    }
                    // The peer gave up while it waited: that is about it alone.
                    _ => tracing::debug!(%error, "a connection ended before it was accepted"),
                },
            }
        }
        // A turn of nothing but errors is no reason to spin.
        let pause = if progress { Duration::ZERO } else { RETRY };
        Some(Instant::now() + pause)
    }
}

/// The worker with the fewest connections, which now has one more.
pub(crate) fn least_loaded(workers: &[Arc<WorkerHandle>]) -> &Arc<WorkerHandle> {
    let mut least = &workers[0];
    for worker in workers {
        if worker.load.load(Relaxed) < least.load.load(Relaxed) {
            least = worker;
        }
    }
    least.load.fetch_add(1, Relaxed);
    least
}
