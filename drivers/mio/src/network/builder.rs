//! How a network is configured and started.

use super::{Inner, Network};
use crate::error::Error;
use crate::network::shared::NetworkShared;
use crate::network::socket_options::SocketOptions;
use crate::sys;
use crate::worker::Worker;
use crate::worker::handle::WorkerHandle;
use crate::worker::mailbox::{Mailbox, Target};
use cubenet_core::{AddressLimits, Budgets, Limits};
use mio::Poll;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How a network is to be; [`Builder::start`] makes it.
///
/// ```
/// use cubenet_mio::{Limits, Network};
/// use std::time::Duration;
/// let network = Network::builder()
///     .workers(2)
///     .limits(Limits::new().with_max_message(4096))
///     .start()?;
/// network.stop(Duration::ZERO);
/// # Ok::<(), cubenet_mio::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    workers: usize,
    limits: Limits,
    budgets: Budgets,
    addresses: AddressLimits,
    options: SocketOptions,
    max_tasks: Option<usize>,
    spin: Duration,
}

impl Builder {
    pub(super) fn new() -> Self {
        Builder {
            workers: thread::available_parallelism().map_or(1, usize::from),
            limits: Limits::new(),
            budgets: Budgets::new(),
            addresses: AddressLimits::new(),
            options: SocketOptions::default(),
            max_tasks: None,
            spin: Duration::ZERO,
        }
    }

    /// Threads that run callbacks; 0 counts as 1. Default: as many as the processor runs at
    /// once. On Linux they accept connections, too; elsewhere one thread more does.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// The bounds on memory, time and work. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How much work one connection may cause before the others are served. Default:
    /// [`Budgets::new`].
    #[must_use]
    pub fn budgets(mut self, budgets: Budgets) -> Self {
        self.budgets = budgets;
        self
    }

    /// What one peer address may have: connections, and new ones in a second. Default:
    /// [`AddressLimits::default`], which limits nothing.
    #[must_use]
    pub fn address_limits(mut self, limits: AddressLimits) -> Self {
        self.addresses = limits;
        self
    }

    /// Connections that may wait in the kernel to be accepted. Default 4,096; the system
    /// may cap it (`net.core.somaxconn`).
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.options.backlog = connections;
        self
    }

    /// `TCP_NODELAY`: whether small messages leave at once. Default true.
    #[must_use]
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.options.nodelay = nodelay;
        self
    }

    /// Whether a socket on an IPv6 address also serves IPv4 (`[::]:7000` then serves both).
    /// Default true.
    #[must_use]
    pub fn dual_stack(mut self, dual_stack: bool) -> Self {
        self.options.dual_stack = dual_stack;
        self
    }

    /// Bytes of the kernel's send and receive buffers of each stream. Default: the system's
    /// own choice, which adapts.
    #[must_use]
    pub fn stream_buffer(mut self, bytes: usize) -> Self {
        self.options.stream_buffer = Some(bytes);
        self
    }

    /// Bytes that a stream's kernel buffer may hold beyond what is under way to the peer
    /// (`TCP_NOTSENT_LOWAT`, on Linux and Apple's systems). Default 128 KiB: a peer that reads
    /// nothing holds no more of the kernel's memory than that, and one that reads is not slowed
    /// down, since the bytes under way are not counted. What is over it waits in the
    /// connection's queue, where [`max_queued`](Limits::max_queued) bounds it.
    #[must_use]
    pub fn stream_unsent(mut self, bytes: u32) -> Self {
        self.options.stream_unsent = bytes;
        self
    }

    /// Bytes of the kernel's send and receive buffers of each datagram socket. Default
    /// 4 MiB, since all peers of a listener share it; the system may cap it
    /// (`net.core.rmem_max`).
    #[must_use]
    pub fn datagram_buffer(mut self, bytes: usize) -> Self {
        self.options.datagram_buffer = Some(bytes);
        self
    }

    /// Whether the peers of a datagram listener are spread over the workers (on Linux, where the system
    /// does that by their addresses). Otherwise one worker serves them all. Default true.
    ///
    /// A listener whose [`full_policy`](Limits::full_policy) evicts has one worker in any case, so that
    /// the peer which was idle longest is found.
    #[must_use]
    pub fn spread_datagrams(mut self, spread: bool) -> Self {
        self.options.spread_datagrams = spread;
        self
    }

    /// Tasks that may wait for the workers, of [`Connection::run_on_worker`]. Default 65,536.
    ///
    /// [`Connection::run_on_worker`]: crate::Connection::run_on_worker
    #[must_use]
    pub fn max_tasks(mut self, tasks: usize) -> Self {
        self.max_tasks = Some(tasks);
        self
    }

    /// How long a worker goes on asking for events, once it has nothing to do, before it sleeps.
    /// Default zero. A message that arrives in that time is answered sooner by what it takes to
    /// wake a thread; the processor is busy meanwhile, so give it some tens of microseconds,
    /// and a processor for each worker.
    #[must_use]
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = time;
        self
    }

    /// Starts the threads.
    pub fn start(self) -> Result<Network, Error> {
        self.limits.validate().map_err(Error::Limits)?;
        self.budgets.validate().map_err(Error::Limits)?;
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(|error| Error::Start {
            source: io::Error::other(error),
        })?;
        let (low, high) = key.split_at(8);
        let half = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let mut shared = NetworkShared::new(
            self.limits,
            self.budgets,
            self.options,
            self.addresses,
            (half(low), half(high)),
        );
        shared.spin = self.spin;
        if let Some(max_tasks) = self.max_tasks {
            shared.max_tasks = max_tasks;
        }
        let inner = Inner::new(Arc::new(shared));
        start_threads(inner, self.workers).map_err(|source| Error::Start { source })
    }
}

/// What a worker is made of, on its thread.
fn new_worker(network: &Arc<NetworkShared>) -> io::Result<(Poll, Arc<Mailbox>)> {
    let poll = Poll::new()?;
    let worker = WorkerHandle::new(Arc::clone(network), &poll)?;
    Ok((poll, Mailbox::new(worker)))
}

fn start_threads(mut inner: Inner, workers: usize) -> io::Result<Network> {
    let mut threads = Vec::new();
    let started = (|| {
        let mut polls = Vec::new();
        for _ in 0..workers {
            let (poll, mailbox) = new_worker(&inner.shared)?;
            inner.workers.push(Arc::clone(&mailbox));
            polls.push((poll, mailbox));
        }
        if !sys::WAKES_ONE {
            let (poll, mailbox) = new_worker(&inner.shared)?;
            inner.acceptor = Some(Arc::clone(&mailbox));
            polls.push((poll, mailbox));
        }
        let all = inner.workers.iter();
        let all: Arc<[_]> = all.map(|mailbox| Arc::clone(&mailbox.worker)).collect();
        for (nth, (poll, mailbox)) in polls.into_iter().enumerate() {
            let name = match nth {
                nth if nth < workers => format!("cubenet-worker-{nth}"),
                _ => String::from("cubenet-acceptor"),
            };
            let all = Arc::clone(&all);
            let run = move || Worker::new(poll, mailbox, all).run();
            threads.push(thread::Builder::new().name(name).spawn(run)?);
        }
        let limits = Arc::new(inner.shared.limits.clone());
        inner.targets = Target::each(&inner.workers, &limits);
        Ok(())
    })();
    inner.thread_ids = threads.iter().map(|thread| thread.thread().id()).collect();
    inner.threads = Mutex::new(Some(threads));
    // If it did not start whole, dropping it stops what did start.
    let network = Network {
        inner: Arc::new(inner),
    };
    started.map(|()| network)
}
