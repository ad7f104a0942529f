//! Everything there is in a simulation, and what applications ask of their connections. It lies
//! behind one lock; callbacks run without that.

use crate::conn_info::{ConnInfo, ConnKey};
use crate::job::{BoxedHandler, Call, Callback, Job, Task};
use crate::kernel::{Due, Iteration, Kernel, Key, Notice};
use crate::network_state::{NetworkId, NetworkState};
use crate::owner::{Conn, Owner, Owners};
use crate::peers::state::Peers;
use crate::stream::state::Stream;
use crate::timers::Timers;
use crate::trace::Record;
use cubenet_core::{
    CloseReason, ConnectionId, Frame, Identity, Instant, Reading, SendError, State,
};
use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// How long after a failed `accept` it is tried again.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(20);
/// How often a network that stops looks which of its streams are acknowledged.
const STOP_CHECK: Duration = Duration::from_millis(10);
/// The addresses of a socket that is gone.
pub(crate) const NOWHERE: (SocketAddr, SocketAddr) = {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    (nowhere, nowhere)
};
/// Bytes of a capture that are written at once.
const CAPTURE_AT_ONCE: usize = 64 << 10;

pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) timers: Timers,
    pub(crate) networks: Vec<NetworkState>,
    pub(crate) owners: Owners,
    next_id: u64,
    /// Whether jobs run on threads of their own, which may be held up.
    pub(crate) interleaves: bool,
    /// The iterations of threads that are held up.
    iterations: Vec<Iteration>,
    /// Since when threads wait for locks of the application's own, if any do.
    pub(crate) blocked_since: Option<Instant>,
    /// Memory for the tasks of the next job.
    pub(crate) spare_tasks: Vec<Task>,
    /// Callbacks that run.
    callbacks: u32,
    /// Values of the application's. They are dropped without the lock, since they may use a
    /// connection as they are dropped.
    dropped_later: Vec<Box<dyn Any + Send>>,
}

/// What happens next in a simulation.
pub(crate) enum Next {
    /// Nothing, up to the moment that was asked for.
    Nothing,
    /// It has happened.
    Done,
    /// A test's own function, which was scheduled.
    Scheduled,
    /// A job runs.
    Job(Job),
    /// A thread goes on.
    Thread(usize),
    /// These are dropped, without the lock.
    Drop(Vec<Box<dyn Any + Send>>),
    /// These bytes of a capture are written, without the lock.
    Capture(Vec<u8>),
}

impl World {
    pub(crate) fn new(kernel: Kernel, interleaves: bool) -> Self {
        World {
            kernel,
            timers: Timers::default(),
            networks: Vec::new(),
            owners: Owners::default(),
            next_id: 1,
            interleaves,
            iterations: Vec::new(),
            blocked_since: None,
            spare_tasks: Vec::new(),
            callbacks: 0,
            dropped_later: Vec::new(),
        }
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

    /// Whether a callback runs on the thread that runs the simulation.
    pub(crate) fn is_in_callback(&self) -> bool {
        self.callbacks > 0 && !self.interleaves
    }

    /// The iteration that a thread was in when it was held up.
    pub(crate) fn iteration_of(&self, thread: usize) -> Iteration {
        let iteration = self.iterations.get(thread);
        iteration.copied().unwrap_or(Iteration::NONE)
    }

    pub(crate) fn set_iteration(&mut self, thread: usize, iteration: Iteration) {
        if self.iterations.len() <= thread {
            self.iterations.resize(thread + 1, Iteration::NONE);
        }
        self.iterations[thread] = iteration;
    }

    /// Has a value of the application's dropped once the lock is not held.
    pub(crate) fn drop_later(&mut self, value: impl Any + Send) {
        self.dropped_later.push(Box::new(value));
    }

    /// What is to be dropped without the lock.
    pub(crate) fn take_dropped(&mut self) -> Vec<Box<dyn Any + Send>> {
        std::mem::take(&mut self.dropped_later)
    }

    // What happens.

    /// Lets the next thing happen that happens up to `until`, or returns what is to be done
    /// without the lock. `scheduled_at` is the time of the test's own next function.
    pub(crate) fn next(&mut self, until: Instant, scheduled_at: Instant) -> Next {
        if !self.dropped_later.is_empty() {
            return Next::Drop(self.take_dropped());
        }
        if let Some(bytes) = self.kernel.take_captured(CAPTURE_AT_ONCE) {
            return Next::Capture(bytes);
        }
        self.kernel.transmit_dirty();
        if let Some((socket, notice)) = self.kernel.notice() {
            return self.handle_notice(socket, notice).into();
        }
        let (event_at, timer_at) = (self.kernel.next_at(), self.timers.next_at());
        let at = event_at.min(timer_at).min(scheduled_at);
        if at == Instant::NEVER || at > until {
            return Next::Nothing;
        }
        if event_at == at {
            return self.handle_event();
        }
        self.kernel.now = self.kernel.now.max(at);
        if timer_at > at {
            return Next::Scheduled;
        }
        self.handle_timer().into()
    }

    fn handle_event(&mut self) -> Next {
        match self.kernel.step() {
            Some(Due::Work { network, worker }) => self.next_job(NetworkId(network), worker).into(),
            Some(Due::Resume(thread)) => Next::Thread(thread as usize),
            Some(Due::StopCheck { network }) => {
                self.end_acknowledged(NetworkId(network));
                Next::Done
            }
            Some(Due::StopDeadline { network }) => {
                self.close_all(NetworkId(network), true);
                Next::Done
            }
            // What it made possible belongs to it.
            None => match self.kernel.notice() {
                Some((socket, notice)) => self.handle_notice(socket, notice).into(),
                None => Next::Done,
            },
        }
    }

    fn handle_timer(&mut self) -> Option<Job> {
        let socket = self.timers.pop()?;
        let host = self.kernel.host_of(socket)?;
        let (now, frozen_until) = (self.kernel.now, self.kernel.host(host).frozen_until);
        if frozen_until > now {
            self.timers.fire_at(socket, frozen_until);
            return None;
        }
        self.kernel.trace.record(now, Record::Timer, 0, &[]);
        self.handle_notice(socket, Notice::Timeout)
    }

    /// Does one task of a job. Returns a callback that is to be run before the next task.
    pub(crate) fn step(&mut self, task: Task, job: &mut Job) -> Option<Box<Call>> {
        match task {
            Task::Notice(socket, notice) => match self.owners.get(socket)? {
                Owner::Listener(_) => self.accept_stream(socket, job),
                Owner::Stream(_) => self.handle_stream_notice(socket, notice, job),
                Owner::Peers(_) => self.handle_peers_notice(socket, notice, job),
                Owner::Raw(_) => None,
            },
            Task::Read(socket) => match self.owners.get(socket)? {
                Owner::Stream(_) => self.read_stream(socket, job),
                _ => self.read_peers(socket, job),
            },
            Task::Flush(socket) => match self.owners.get(socket)? {
                Owner::Stream(_) => self.flush_stream(socket, job),
                _ => self.flush_peers(socket, job),
            },
            Task::Expire(socket) => match self.owners.get(socket)? {
                Owner::Stream(_) => {
                    self.expire_stream(socket, job);
                    None
                }
                _ => self.expire_peer(socket, job),
            },
            Task::Accept(socket) => self.accept_stream(socket, job),
            Task::AdvanceStream(socket) => self.advance_stream(socket),
            Task::AdvancePeer(socket, slot) => self.advance_peer(socket, slot),
            Task::Flushed(key) => self.peer_flushed(key, job),
            Task::AfterFlush(socket) => {
                self.after_flush(socket, job);
                None
            }
            Task::Report(key, error) => self.report(key, error, job),
            Task::Evict(socket) => self.evict(socket),
            Task::Admit(socket) => self.admit(socket, job),
        }
    }

    /// A callback, to be run without the lock.
    pub(crate) fn call(
        &mut self,
        info: ConnInfo,
        network: NetworkId,
        handler: Option<BoxedHandler>,
        callback: Callback,
    ) -> Box<Call> {
        let now = self.kernel.now;
        let id = info.key.id.as_u64();
        self.kernel.trace.record(now, callback.record(), id, &[]);
        let cost = self.network(network).costs.callback();
        self.kernel.iteration.spend(cost);
        self.callbacks += 1;
        Box::new(Call {
            info,
            network,
            handler,
            callback,
            identity: None,
            now,
        })
    }

    /// A callback has returned, or panicked with this. What is left of the call is the
    /// application's, and is dropped later.
    pub(crate) fn returned(
        &mut self,
        mut call: Box<Call>,
        panic: Option<Box<dyn Any + Send>>,
        job: &mut Job,
    ) {
        self.callbacks -= 1;
        let panicked = panic.is_some();
        if let Some(panic) = panic {
            self.network(call.network).metrics.panics += 1;
            self.drop_later(panic);
        }
        match (&call.callback, self.owners.get(call.info.key.socket)) {
            (Callback::Closed(_) | Callback::ConnectFailed(..), _) => {}
            (_, Some(Owner::Peers(_))) => self.peer_returned(&mut call, panicked, job),
            _ => self.stream_returned(&mut call, panicked, job),
        }
        if call.handler.is_some() || matches!(call.callback, Callback::Accepted(_)) {
            self.drop_later(call);
        }
    }

    /// Closes a socket and has its owner dropped.
    pub(crate) fn remove_socket(&mut self, socket: Key) {
        if let Some(owner) = self.owners.remove(socket) {
            self.drop_later(owner);
        }
        self.kernel.close(socket, false);
    }

    /// Ends listening on a socket.
    pub(crate) fn close_listener(&mut self, socket: Key) {
        match self.owners.get(socket) {
            Some(Owner::Listener(_)) => self.remove_socket(socket),
            Some(Owner::Peers(peers)) => {
                peers.is_listening = false;
                self.arm_peers(socket);
            }
            _ => {}
        }
    }

    /// Closes everything of a network; `abort`: at once.
    pub(crate) fn close_all(&mut self, network: NetworkId, abort: bool) {
        for socket in self.owners.keys_of(network) {
            self.close_listener(socket);
            let connections = match self.owners.get(socket) {
                Some(Owner::Stream(stream)) => {
                    let (slot, id) = (0, stream.id);
                    vec![ConnKey { socket, slot, id }]
                }
                Some(Owner::Peers(peers)) => peers.keys(socket).collect(),
                _ => continue,
            };
            for key in connections {
                if abort {
                    self.abort(key);
                } else {
                    self.close(key);
                }
            }
        }
    }

    /// Ends the streams of a network that stops whose peers have acknowledged everything, and looks
    /// again in a while, as the driver over real sockets does: it does not wait for their FINs.
    pub(crate) fn end_acknowledged(&mut self, id: NetworkId) {
        if self.network(id).is_stopped() {
            return;
        }
        for socket in self.owners.keys_of(id) {
            if let Some((stream, kernel, ..)) = self.stream(socket)
                && stream.send.state() == State::Finishing
                && kernel.is_acknowledged(socket)
            {
                stream.send.handle_acknowledged();
                kernel.notify(socket, Notice::Writable);
            }
        }
        let at = self.kernel.now.after(STOP_CHECK);
        self.kernel.stop_check_at(at, id.0);
    }

    /// A stream, and what it works with.
    pub(crate) fn stream(
        &mut self,
        socket: Key,
    ) -> Option<(&mut Stream, &mut Kernel, &mut NetworkState, &mut Timers)> {
        let stream = self.owners.stream(socket)?;
        let network = &mut self.networks[stream.network.0 as usize];
        Some((stream, &mut self.kernel, network, &mut self.timers))
    }

    /// A datagram socket with its peers, and what it works with.
    pub(crate) fn peers(
        &mut self,
        socket: Key,
    ) -> Option<(&mut Peers, &mut Kernel, &mut NetworkState, &mut Timers)> {
        let peers = self.owners.peers(socket)?;
        let network = &mut self.networks[peers.network.0 as usize];
        Some((peers, &mut self.kernel, network, &mut self.timers))
    }

    // What an application asks of a connection.

    pub(crate) fn send(
        &mut self,
        key: ConnKey,
        message: &[u8],
        frame: Option<&Frame>,
    ) -> Result<(), SendError> {
        if let Some((stream, kernel, network, _)) = self.stream(key.socket) {
            if stream.id != key.id {
                return Err(SendError::Closed);
            }
            return stream.send(key.socket, message, frame, kernel, network);
        }
        match self.peers(key.socket) {
            Some((peers, kernel, network, _)) => peers.send(key, message, kernel, network),
            None => Err(SendError::Closed),
        }
    }

    pub(crate) fn close(&mut self, key: ConnKey) {
        match self.owners.connection(key) {
            Some(Conn::Stream(stream)) => stream.send.close(self.kernel.now),
            Some(Conn::Peer(peer)) => peer.half.close(),
            None => return,
        }
        self.wake(key);
    }

    pub(crate) fn abort(&mut self, key: ConnKey) {
        match self.owners.connection(key) {
            Some(Conn::Stream(stream)) => stream.send.abort(CloseReason::Local),
            Some(Conn::Peer(peer)) => peer.half.abort(CloseReason::Local),
            None => return,
        }
        self.wake(key);
    }

    pub(crate) fn set_paused(&mut self, key: ConnKey, paused: bool) {
        match self.owners.connection(key) {
            Some(Conn::Stream(stream)) => stream.wants_pause = paused,
            Some(Conn::Peer(peer)) => peer.half.set_paused(paused),
            None => return,
        }
        self.wake(key);
    }

    /// The state of a connection, what is done with its peer's bytes, and how many are queued.
    pub(crate) fn look(&mut self, key: ConnKey) -> (State, Reading, usize) {
        match self.owners.connection(key) {
            Some(Conn::Stream(stream)) => (stream.send.state(), stream.reading(), stream.queued()),
            Some(Conn::Peer(peer)) => (peer.half.state(), peer.half.reading(), peer.queued),
            None => (State::Closed, Reading::Discard, 0),
        }
    }

    /// What the handshake of a connection's layers has shown.
    pub(crate) fn identity(&mut self, key: ConnKey) -> Option<Arc<Identity>> {
        match self.owners.connection(key)? {
            Conn::Stream(stream) => stream.identity(),
            Conn::Peer(_) => None,
        }
    }

    /// Has a connection that has changed advanced next.
    fn wake(&mut self, key: ConnKey) {
        if let Some(peers) = self.owners.peers(key.socket) {
            peers.changed.push(key.slot);
        }
        self.kernel.notify(key.socket, Notice::Writable);
    }
}

impl From<Option<Job>> for Next {
    fn from(job: Option<Job>) -> Self {
        job.map_or(Next::Done, Next::Job)
    }
}
