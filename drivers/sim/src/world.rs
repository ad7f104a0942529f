//! Everything there is in a simulation, behind one lock; and what applications ask of their
//! connections, wherever they ask from.

use crate::connection::Connection;
use crate::kernel::{CaptureFile, HostId, Kernel, Key, Notice};
use crate::owners::{Owner, Owners};
use crate::peers::Peers;
use crate::simulation::Simulation;
use crate::stream::Stream;
use crate::threads::{Pause, Threads};
use crate::timers::Timers;
use crate::trace::Record;
use crate::workers::{Costs, Turn, Worker};
use cubenet_core::{
    Backlog, Budgets, CloseReason, ConnectionId, Frame, Handler, Instant, Limits, Metrics, Reading,
    SendError, State, Transport,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Decides about a new peer.
pub(crate) type AcceptFn =
    dyn Fn(&Connection) -> Option<Box<dyn Handler + Send>> + Send + Sync + 'static;
/// The application's side of a connection.
pub(crate) type BoxedHandler = Box<dyn Handler + Send>;
/// Something a test wants done at some time.
pub(crate) type Scheduled = Box<dyn FnOnce(&Simulation) + Send>;

/// The world and its lock. Callbacks run without it.
pub(crate) struct Shared {
    world: Mutex<World>,
    pub(crate) threads: Arc<Threads>,
    /// Of the points at which a thread may be held up, those at which it is.
    interleave: f64,
    /// The file of the capture, apart from the world: writing to it runs code of the application.
    capture_file: Mutex<Option<CaptureFile>>,
}

pub(crate) type Guard<'a> = MutexGuard<'a, World>;

/// Everything there is in a simulation.
pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) timers: Timers,
    pub(crate) networks: Vec<NetworkState>,
    pub(crate) owners: Owners,
    next_id: u64,
    /// Whether callbacks run on threads of their own, which may be held up.
    pub(crate) interleaves: bool,
    /// The turns of those that are held up, by their thread.
    turns: Vec<Turn>,
    /// Since when threads wait for locks of the application's own, if any do.
    pub(crate) blocked_since: Option<Instant>,
    /// Callbacks that run.
    calling: u32,
    /// What the application gave and is done with. It is dropped without the lock, since
    /// it may use a connection as it is dropped.
    buried: Vec<Box<dyn Any + Send>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetworkId(pub(crate) u32);

/// One network: what its connections share.
pub(crate) struct NetworkState {
    pub(crate) host: HostId,
    pub(crate) limits: Arc<Limits>,
    pub(crate) budgets: Budgets,
    pub(crate) metrics: Metrics,
    /// Connections open now, those that are connecting included.
    pub(crate) open: usize,
    /// Bytes that wait to be sent now.
    pub(crate) queued_bytes: usize,
    /// Bytes of input held now.
    pub(crate) held_bytes: usize,
    /// How long its workers were busy, all together.
    pub(crate) busy: Duration,
    /// Of the open connections, those that are streams.
    pub(crate) open_streams: usize,
    /// Keys the tables of its datagram peers.
    pub(crate) hash_key: (u64, u64),
    /// When whatever is left is given up; set once it stops.
    pub(crate) stopping: Option<Instant>,
    /// Its host crashed.
    pub(crate) crashed: bool,
    pub(crate) backlog: usize,
    pub(crate) costs: Costs,
    pub(crate) workers: Vec<Worker>,
}

/// Where a connection is: its socket, and its slot there if it shares that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) key: Key,
    pub(crate) slot: u32,
}

impl Shared {
    pub(crate) fn new(kernel: Kernel, interleave: f64) -> Arc<Self> {
        Arc::new(Shared {
            threads: Arc::default(),
            interleave,
            capture_file: Mutex::default(),
            world: Mutex::new(World {
                kernel,
                timers: Timers::new(),
                networks: Vec::new(),
                owners: Owners::default(),
                next_id: 1,
                interleaves: interleave > 0.0,
                turns: Vec::new(),
                blocked_since: None,
                calling: 0,
                buried: Vec::new(),
            }),
        })
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        // Callbacks run without the lock, so nothing in here panics half way.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the file of the capture, and leaves another.
    pub(crate) fn set_capture_file(&self, file: Option<CaptureFile>) -> Option<CaptureFile> {
        let before = self.capture_file.lock();
        let mut before = before.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *before, file)
    }

    /// Writes captured packets to their file. No lock is held.
    pub(crate) fn write_captured(&self, bytes: &[u8]) {
        if let Some(mut file) = self.set_capture_file(None) {
            file.write(bytes);
            self.set_capture_file(Some(file));
        }
    }

    /// A point at which the thread that this runs on may be held up. The lock is not held.
    pub(crate) fn point(&self) {
        self.threads.point(|| {
            let chosen = self.interleave > 0.0 && self.lock().kernel.random.chance(self.interleave);
            chosen.then_some(Pause::Chosen)
        });
    }

    /// The world, after a point.
    pub(crate) fn at_point(&self) -> Guard<'_> {
        self.point();
        self.lock()
    }

    /// Runs a callback without the lock. A panic in it is counted and ends there: `None`.
    pub(crate) fn callback<'a, R>(
        &'a self,
        mut guard: Guard<'a>,
        network: NetworkId,
        (what, id): (Record, ConnectionId),
        callback: impl FnOnce() -> R,
    ) -> (Option<R>, Guard<'a>) {
        let now = guard.kernel.now;
        guard.kernel.trace.record(now, what, id.as_u64(), &[]);
        let cost = guard.network(network).costs.callback;
        guard.kernel.turn.spend(cost);
        guard.calling += 1;
        drop(guard);
        self.point();
        let answer = catch_unwind(AssertUnwindSafe(callback));
        self.point();
        let mut guard = self.lock();
        guard.calling -= 1;
        match answer {
            Ok(answer) => (Some(answer), guard),
            Err(panic) => {
                guard.network(network).metrics.panics += 1;
                guard.bury(panic);
                (None, guard)
            }
        }
    }
}

impl World {
    pub(crate) fn now(&self) -> Instant {
        self.kernel.now
    }

    /// A number that no other connection has.
    pub(crate) fn next_id(&mut self) -> ConnectionId {
        let id = ConnectionId::from_u64(self.next_id);
        self.next_id += 1;
        id
    }

    pub(crate) fn network(&mut self, id: NetworkId) -> &mut NetworkState {
        &mut self.networks[id.0 as usize]
    }

    /// Whether a callback runs, on whatever thread runs the simulation.
    pub(crate) fn is_calling(&self) -> bool {
        self.calling > 0 && !self.interleaves
    }

    /// The turn that a thread was in when it was held up.
    pub(crate) fn turn_of(&self, thread: usize) -> Turn {
        self.turns.get(thread).copied().unwrap_or(Turn::NONE)
    }

    pub(crate) fn set_turn(&mut self, thread: usize, turn: Turn) {
        if self.turns.len() <= thread {
            self.turns.resize(thread + 1, Turn::NONE);
        }
        self.turns[thread] = turn;
    }

    /// Has something dropped once the lock is not held.
    pub(crate) fn bury(&mut self, done_with: impl Any + Send) {
        self.buried.push(Box::new(done_with));
    }

    /// What is to be dropped once the lock is not held.
    pub(crate) fn unbury(&mut self) -> Vec<Box<dyn Any + Send>> {
        std::mem::take(&mut self.buried)
    }

    /// Closes a socket and has its owner dropped.
    pub(crate) fn disown(&mut self, key: Key, reset: bool) {
        if let Some(owner) = self.owners.remove(key) {
            self.bury(owner);
        }
        self.kernel.close(key, reset);
    }

    /// A stream, and what it works with.
    pub(crate) fn stream(
        &mut self,
        key: Key,
    ) -> Option<(&mut Stream, &mut Kernel, &mut NetworkState, &mut Timers)> {
        let stream = self.owners.stream(key)?;
        let network = &mut self.networks[stream.network.0 as usize];
        Some((stream, &mut self.kernel, network, &mut self.timers))
    }

    /// A datagram socket with its peers, and what it works with.
    pub(crate) fn peers(
        &mut self,
        key: Key,
    ) -> Option<(&mut Peers, &mut Kernel, &mut NetworkState, &mut Timers)> {
        let peers = self.owners.peers(key)?;
        let network = &mut self.networks[peers.network.0 as usize];
        Some((peers, &mut self.kernel, network, &mut self.timers))
    }

    // What an application asks of a connection.

    pub(crate) fn send(
        &mut self,
        place: Place,
        id: ConnectionId,
        message: &[u8],
        frame: Option<&Frame>,
    ) -> Result<(), SendError> {
        if let Some((stream, kernel, network, _)) = self.stream(place.key) {
            if stream.id != id {
                return Err(SendError::Closed);
            }
            return stream.send_message(place.key, message, frame, kernel, network);
        }
        match self.peers(place.key) {
            Some((peers, kernel, network, _)) => peers.send(place, id, message, kernel, network),
            None => Err(SendError::Closed),
        }
    }

    pub(crate) fn close(&mut self, place: Place, id: ConnectionId) {
        if let Some((stream, kernel, ..)) = self.stream(place.key) {
            if stream.id == id {
                stream.close(kernel.now);
            }
        } else if let Some((peers, ..)) = self.peers(place.key)
            && let Some(peer) = peers.peer_mut(place.slot, id)
        {
            peer.half.close();
        }
        self.attend(place);
    }

    pub(crate) fn abort(&mut self, place: Place, id: ConnectionId) {
        match self.owners.get(place.key) {
            Some(Owner::Stream(stream)) if stream.id == id => {
                stream.send.abort(CloseReason::Local);
            }
            Some(Owner::Peers(peers)) => {
                if let Some(peer) = peers.peer_mut(place.slot, id) {
                    peer.half.abort(CloseReason::Local);
                }
            }
            _ => return,
        }
        self.attend(place);
    }

    pub(crate) fn set_paused(&mut self, place: Place, id: ConnectionId, paused: bool) {
        match self.owners.get(place.key) {
            Some(Owner::Stream(stream)) if stream.id == id => stream.to_pause = paused,
            Some(Owner::Peers(peers)) => {
                if let Some(peer) = peers.peer_mut(place.slot, id) {
                    peer.half.set_paused(paused);
                }
            }
            _ => return,
        }
        self.attend(place);
    }

    /// The state of a connection, what is done with its peer's bytes, and those that wait.
    pub(crate) fn look(&mut self, place: Place, id: ConnectionId) -> (State, Reading, usize) {
        let gone = (State::Closed, Reading::Discard, 0);
        match self.owners.get(place.key) {
            Some(Owner::Stream(stream)) if stream.id == id => {
                (stream.send.state(), stream.reading(), stream.queued())
            }
            Some(Owner::Peers(peers)) => peers.peer_mut(place.slot, id).map_or(gone, |peer| {
                (peer.half.state(), peer.half.reading(), peer.queued)
            }),
            _ => gone,
        }
    }

    /// Has a connection looked at next.
    fn attend(&mut self, place: Place) {
        if let Some(peers) = self.owners.peers(place.key) {
            peers.attend(place.slot);
        }
        self.kernel.notify(place.key, Notice::Writable);
    }

    /// Counts a connection that has closed.
    pub(crate) fn count_closed(
        &mut self,
        network: NetworkId,
        transport: Transport,
        reason: CloseReason,
    ) {
        let network = self.network(network);
        network.release(transport);
        *network.metrics.closed_by.get_mut(reason) += 1;
    }
}

impl NetworkState {
    /// Whether nothing of it is left.
    pub(crate) fn is_stopped(&self) -> bool {
        self.crashed || (self.stopping.is_some() && self.open == 0)
    }

    /// Whether there is room for one connection more of this transport.
    pub(crate) fn has_room(&self, transport: Transport) -> bool {
        let open = if transport == Transport::Tcp {
            self.open_streams
        } else {
            self.open - self.open_streams
        };
        open < self.limits.max_connections()
    }

    /// Makes room for a connection; `false` if its transport has none.
    pub(crate) fn reserve(&mut self, transport: Transport) -> bool {
        let room = self.has_room(transport);
        if room {
            self.open += 1;
            self.open_streams += usize::from(transport == Transport::Tcp);
        }
        room
    }

    /// Gives the room of a connection back.
    pub(crate) fn release(&mut self, transport: Transport) {
        self.open -= 1;
        self.open_streams -= usize::from(transport == Transport::Tcp);
    }

    pub(crate) fn backlog(&self, own: usize) -> Backlog {
        Backlog::growing(own, self.queued_bytes)
    }
}
