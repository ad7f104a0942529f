//! What other threads hand over to a worker: new sockets, and the order to stop.

use crate::conn::home::Home;
use crate::conn::permit::Permit;
use crate::network::listening::Listening;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Mutex, MutexGuard};
use crate::tcp::layers::HandshakePermit;
use crate::tcp::listener::StreamListener;
use crate::tcp::shared::StreamShared;
use crate::udp::socket::{DatagramSocket, PeerShared};
use crate::worker::handle::WorkerHandle;
use cubenet_core::{Handler, Instant, Limits};
use mio::net::TcpStream;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

/// A worker passes new connections on while it has more than another, beyond one in so many.
const MAX_IMBALANCE: usize = 16;

/// The application's side of a connection.
pub(crate) type BoxedHandler = Box<dyn Handler + Send>;

/// What other threads ask of a worker.
pub(crate) enum Command {
    /// A stream that was accepted.
    Accept(Accepted),
    /// A stream whose handshake has begun.
    ConnectStream(Arc<StreamShared>, Permit, BoxedHandler),
    /// A listener to accept streams on, which of its places is this worker's, and who may get them.
    ListenStreams(Arc<StreamListener>, usize, Arc<[Target]>),
    /// A datagram socket to listen on.
    Listen(Arc<DatagramSocket>, Arc<Listening>),
    /// A datagram socket that was connected to a peer.
    ConnectDatagrams(Arc<PeerShared>, Permit, BoxedHandler),
    /// Close everything, abort at this moment what has not closed by then, and end.
    Stop(Instant),
}

/// A stream that was accepted, on its way to its worker.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) home: Arc<Home>,
    pub(crate) listening: Arc<Listening>,
    pub(crate) permit: Permit,
    /// It is to have layers.
    pub(crate) handshake: Option<HandshakePermit>,
}

/// The commands that wait for a worker.
pub(crate) struct Mailbox {
    pub(crate) worker: Arc<WorkerHandle>,
    /// `None` once the worker has ended.
    commands: Mutex<Option<Commands>>,
}

#[derive(Default)]
struct Commands {
    waiting: Vec<Command>,
    /// The worker was woken and has not looked since.
    woken: bool,
}

impl Mailbox {
    pub(crate) fn new(worker: Arc<WorkerHandle>) -> Arc<Self> {
        Arc::new(Mailbox {
            worker,
            commands: Mutex::new(Some(Commands::default())),
        })
    }

    /// Leaves `command` for the worker and wakes it, unless that was done already. Gives it
    /// back if the worker has ended.
    pub(crate) fn post(&self, command: Command) -> Result<(), Command> {
        let mut commands = self.commands();
        let Some(commands) = &mut *commands else {
            return Err(command);
        };
        commands.waiting.push(command);
        if !commands.woken {
            // Should it fail, the next command tries again.
            commands.woken = self.worker.interrupt();
        }
        Ok(())
    }

    /// What other threads have left.
    pub(super) fn take(&self) -> Vec<Command> {
        let mut commands = self.commands();
        let Some(commands) = &mut *commands else {
            return Vec::new();
        };
        commands.woken = false;
        std::mem::take(&mut commands.waiting)
    }

    /// The same for the last time: nothing can be left from here on.
    pub(super) fn close(&self) -> Vec<Command> {
        let last = self.commands().take();
        last.map_or_else(Vec::new, |commands| commands.waiting)
    }

    fn commands(&self) -> MutexGuard<'_, Option<Commands>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that may get a connection, and the limits that the connection would have there.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) home: Arc<Home>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Target {
    /// One for each worker.
    pub(crate) fn each(workers: &[Arc<Mailbox>], limits: &Arc<Limits>) -> Vec<Target> {
        let target = |mailbox: &Arc<Mailbox>| Target {
            home: Arc::new(Home {
                worker: Arc::clone(&mailbox.worker),
                limits: Arc::clone(limits),
                counts: mailbox.worker.network.counts.register(),
            }),
            mailbox: Arc::clone(mailbox),
        };
        workers.iter().map(target).collect()
    }

    /// The one that is to get a connection that was accepted by the worker of the target `own`, or by
    /// none of them: that worker, unless another has clearly fewer connections. The connection is
    /// among its load from here on.
    pub(crate) fn load_accepted(targets: &[Target], own: Option<usize>) -> &Target {
        let own = own.map(|own| &targets[own]);
        loop {
            let least = Target::least_loaded(targets);
            let few = least.load();
            // This worker is at work; another may be held up.
            let keeps =
                |own: &&Target| own.load() <= few + few / MAX_IMBALANCE || least.is_held_up();
            let target = own.filter(keeps).unwrap_or(least);
            let load = target.load();
            // Other workers choose at the same time.
            let counter = &target.home.worker.load;
            if counter
                .compare_exchange(load, load + 1, Relaxed, Relaxed)
                .is_ok()
            {
                return target;
            }
        }
    }

    /// Whether a callback holds its worker up.
    fn is_held_up(&self) -> bool {
        self.home.worker.is_held_up(self.home.network().now())
    }

    /// How many connections its worker has.
    fn load(&self) -> usize {
        self.home.worker.load.load(Relaxed)
    }

    /// The one whose worker has the fewest connections.
    pub(crate) fn least_loaded(targets: &[Target]) -> &Target {
        // One that a callback holds up comes last.
        let load = |target: &&Target| (target.is_held_up(), target.load());
        targets.iter().min_by_key(load).unwrap_or(&targets[0])
    }
}
