//! A datagram socket and its connections, as all threads share them: sending, and keeping what
//! the system would not take.

use crate::address::{CompactAddr, canonical};
use crate::conn::home::Home;
use crate::conn::info::{Conn, ConnInfo};
use crate::conn::key::ConnKey;
use crate::network::shared::next_id;
use crate::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed,
};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::{self, MAX_SEGMENT, Route, Run, Source};
use crate::udp::group::SocketGroup;
use crate::udp::queue::{DatagramQueue, Sender, Waiting};
use crate::udp::sources::{SourceNumber, Sources};
use crate::worker::wake::Wake;
use cubenet_core::connection::datagram::{admit, may_queue};
use cubenet_core::{CloseReason, ConnectionId, DatagramHalf, SendError, Transport, TransportError};
use mio::net::UdpSocket;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, OnceLock, PoisonError};

/// Datagrams handed to the system at once when those that wait go out.
const FLUSH_BATCH: usize = 64;
/// Bounded: beyond so many undelivered errors of sending, further ones are dropped.
const MAX_ERRORS_TOLD: usize = 1024;

/// In `PeerShared::gathered`.
const LOST: u32 = 1 << 31;

/// A datagram connection, as its worker and the handles of the application see it. Like a
/// [`StreamShared`](crate::tcp::shared::StreamShared) it is owned by its worker.
pub(crate) struct PeerShared {
    info: ConnInfo,
    pub(crate) socket: Arc<DatagramSocket>,
    /// Which of this machine's addresses the peer sends to, if the socket has several: the
    /// answers must come from there.
    source: SourceNumber,
    /// The largest datagrams that are sent to it in runs: more than the path to it carries in one
    /// piece cannot be.
    pub(crate) max_segment: AtomicU16,
    /// Datagrams that batches of the application's have gathered: they leave before a close datagram.
    /// And `LOST`: it was aborted; what waits of it is not to be sent, and is counted no more.
    gathered: AtomicU32,
    half: Mutex<DatagramHalf>,
}

impl Conn for PeerShared {
    const TRANSPORT: Transport = Transport::Udp;

    #[inline]
    fn info(&self) -> &ConnInfo {
        &self.info
    }

    #[inline]
    fn home(&self) -> &Home {
        &self.socket.home
    }

    fn key(&self) -> ConnKey {
        ConnKey {
            token: self.socket.token,
            slot: self.info.number,
        }
    }
}

impl Sender for PeerShared {
    fn is_lost(&self) -> bool {
        self.gathered.load(Relaxed) & LOST != 0
    }

    fn uncount(&self, bytes: usize) {
        self.info.sub_queued(bytes);
        self.home().sub_queued(bytes);
    }
}

impl PeerShared {
    /// A connection with `peer` in a slot of the socket.
    pub(crate) fn new(
        socket: &Arc<DatagramSocket>,
        peer: CompactAddr,
        source: Option<Source>,
        slot: u32,
    ) -> Arc<Self> {
        let half = DatagramHalf::new();
        Arc::new(PeerShared {
            info: ConnInfo::new(peer, slot, half.state()),
            source: source.map_or(SourceNumber::NONE, |source| socket.number_of(source)),
            max_segment: AtomicU16::new(socket.max_segment),
            gathered: AtomicU32::new(0),
            half: Mutex::new(half),
            socket: Arc::clone(socket),
        })
    }

    /// Between which addresses datagrams to the peer go.
    pub(crate) fn route(&self) -> Route {
        Route {
            to: self.info.raw_peer(),
            source: self.socket.source(self.source),
        }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        let local = self.socket.local;
        canonical(match self.socket.source(self.source) {
            Some(source) => source.with_port(local.port()),
            None => local,
        })
    }

    /// Does `change` with the connection's half, then makes its new state known.
    pub(crate) fn locked<R>(&self, change: impl FnOnce(&mut DatagramHalf) -> R) -> R {
        let mut half = self.half.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut half);
        self.info.set_state(half.state());
        answer
    }

    /// Sends from outside the callbacks of its socket.
    pub(crate) fn send(self: &Arc<Self>, datagram: &[u8]) -> Result<(), SendError> {
        // Under the lock, so that no close datagram can overtake it.
        self.locked(|half| {
            half.admit(datagram.len(), self.backlog(), self.limits())?;
            self.socket.send(self, datagram);
            Ok(())
        })?;
        self.home().counts.sent(1, datagram.len() as u64);
        Ok(())
    }

    /// Accepts a datagram that a batch is about to gather.
    pub(crate) fn admit_gathered(&self, len: usize) -> Result<(), SendError> {
        // Before the state is looked at: either this sees that the connection closes, or the worker
        // sees that something is gathered, before it sends the close datagram.
        self.gathered.fetch_add(1, AcqRel);
        let admitted = match admit(self.info.state(), len, self.backlog(), self.limits()) {
            Err(SendError::Full) => self.admit(len),
            admitted => admitted,
        };
        if admitted.is_err() {
            self.ungather(1);
        }
        admitted
    }

    /// Datagrams that a batch had gathered were sent, or dropped.
    pub(crate) fn ungather(&self, count: usize) {
        // Acquired: if the worker has seen them and waits, this sees that it closes.
        self.gathered.fetch_sub(count as u32, AcqRel);
        if !self.info.is_open() {
            self.wake();
        }
    }

    /// Whether a batch has gathered datagrams, before which no close datagram may leave.
    pub(crate) fn has_gathered(&self) -> bool {
        // Released, and therefore no mere load: see `ungather`.
        self.gathered.fetch_add(0, AcqRel) & !LOST > 0
    }

    /// Asks the half itself, so that it remembers that it owes a `writable`.
    pub(crate) fn admit(&self, len: usize) -> Result<(), SendError> {
        self.locked(|half| half.admit(len, self.backlog(), self.limits()))
    }

    /// Delivers what was sent, then closes. The worker must look at it next: it sends the close
    /// datagram, behind whatever callbacks have gathered.
    pub(crate) fn close(&self) {
        self.locked(DatagramHalf::close);
    }

    /// Closes at once. The worker must look at it next.
    pub(crate) fn abort(&self, reason: CloseReason) {
        self.locked(|half| half.abort(reason));
    }
}

/// A datagram socket, as its worker and all its connections share it.
pub(crate) struct DatagramSocket {
    pub(crate) socket: UdpSocket,
    pub(crate) local: SocketAddr,
    /// A number no connection has, to gather output by.
    pub(crate) id: u64,
    connected: bool,
    /// The largest datagrams that the system sends in runs; 0 if it does not.
    max_segment: u16,
    /// Whether new peers are admitted.
    open: AtomicBool,
    pub(crate) home: Arc<Home>,
    /// This machine's addresses that its peers send to.
    sources: OnceLock<Box<Sources>>,
    /// The sockets of its listener.
    pub(crate) group: Arc<SocketGroup<DatagramSocket>>,
    token: u32,
    pub(crate) wake: Wake,
    /// Datagrams the socket would not take yet; `None` once the worker is done with it.
    waiting: Mutex<Option<DatagramQueue<PeerShared>>>,
    /// How many; read without the lock.
    waiting_count: AtomicUsize,
    /// What went wrong in sending, to be reported to the connections by the worker.
    errors: Mutex<Vec<SendFailure>>,
    leaving: Leaving,
}

/// Something that went wrong in sending, for the worker to report and to tell.
pub(crate) struct SendFailure {
    pub(crate) key: ConnKey,
    pub(crate) id: ConnectionId,
    pub(crate) peer: SocketAddr,
    pub(crate) reported: TransportError,
    pub(crate) error: io::Error,
}

/// Whether a socket is left to another process.
#[derive(Default)]
struct Leaving {
    asked: std::sync::atomic::AtomicBool,
    /// Nothing more is taken from it.
    done: std::sync::Mutex<bool>,
    changed: Condvar,
}

impl Leaving {
    fn lock(&self) -> std::sync::MutexGuard<'_, bool> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of the datagrams that waited.
pub(crate) struct Flushed {
    /// Whose went.
    pub(crate) senders: Vec<Arc<PeerShared>>,
    /// Whether more wait that the socket may take.
    pub(crate) more: bool,
}

impl DatagramSocket {
    /// Makes a datagram socket ready for the connections of a listener. It must then be handed over
    /// to its worker.
    pub(crate) fn listening(
        home: &Arc<Home>,
        socket: UdpSocket,
        group: &Arc<SocketGroup<DatagramSocket>>,
    ) -> io::Result<Arc<Self>> {
        let socket = DatagramSocket::new(home, socket, true, Arc::clone(group))?;
        group.add_socket(Arc::downgrade(&socket));
        Ok(socket)
    }

    /// The same for one that is connected to its only peer.
    pub(crate) fn connected(home: &Arc<Home>, socket: UdpSocket) -> io::Result<Arc<Self>> {
        DatagramSocket::new(home, socket, false, Arc::default())
    }

    fn new(
        home: &Arc<Home>,
        mut socket: UdpSocket,
        listens: bool,
        group: Arc<SocketGroup<DatagramSocket>>,
    ) -> io::Result<Arc<Self>> {
        let local = socket.local_addr()?;
        let token = home.worker.register(&mut socket, sys::DATAGRAM_INTEREST)?;
        if local.ip().is_unspecified() {
            sys::tell_destination(&socket, local);
        }
        let segments = sys::offload(&socket);
        Ok(Arc::new(DatagramSocket {
            local,
            id: next_id().as_u64(),
            connected: !listens,
            max_segment: if segments { MAX_SEGMENT } else { 0 },
            open: AtomicBool::new(listens),
            socket,
            home: Arc::clone(home),
            sources: OnceLock::new(),
            group,
            token,
            wake: Wake::new(),
            waiting: Mutex::new(Some(DatagramQueue::default())),
            waiting_count: AtomicUsize::new(0),
            errors: Mutex::default(),
            leaving: Leaving::default(),
        }))
    }

    /// The token its worker keeps it under.
    pub(crate) fn token(&self) -> u32 {
        self.token
    }

    /// The number of one of this machine's addresses.
    fn number_of(&self, source: Source) -> SourceNumber {
        self.sources.get_or_init(Box::default).number(source)
    }

    /// The address of this number.
    fn source(&self, number: SourceNumber) -> Option<Source> {
        self.sources.get()?.get(number)
    }

    /// Has the worker told of room to send, or no longer.
    pub(crate) fn watch_room(&self, watched: bool) -> io::Result<()> {
        self.home
            .worker
            .watch_room(&self.socket, self.token, watched)
    }

    /// Whether new peers are admitted.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Whether datagrams wait to be sent.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting_count.load(Relaxed) > 0
    }

    /// A connection of the listener has gone. If it was the last, the workers see whether the sockets
    /// are done with.
    pub(crate) fn remove_peer(&self) {
        if self.group.remove_peer() && self.group.is_closed() {
            self.group.each(DatagramSocket::wake);
        }
    }

    /// Whether its listener has room for a peer that a hook recognises, or does not.
    pub(crate) fn has_room(&self, recognised: bool) -> bool {
        self.group.peers() < self.home.limits.peer_places(recognised)
    }

    /// Admits no new peers; those that are there stay. The worker drops the socket when the
    /// last has gone.
    pub(crate) fn close(&self) {
        self.group.close();
        self.open.store(false, Relaxed);
        self.wake();
    }

    /// The socket is left to another process. The worker takes nothing more from it, and ends its
    /// connections.
    #[cfg(unix)]
    pub(crate) fn leave(&self) {
        self.leaving.asked.store(true, Relaxed);
        self.wake();
    }

    /// Whether that has been asked for.
    pub(crate) fn is_to_leave(&self) -> bool {
        self.leaving.asked.load(Relaxed)
    }

    /// Nothing more is taken from it. It is watched no more.
    pub(crate) fn has_left(&self) {
        self.home.worker.unwatch(&self.socket);
        let mut done = self.leaving.lock();
        *done = true;
        self.leaving.changed.notify_all();
    }

    /// Waits until that is so.
    #[cfg(unix)]
    pub(crate) fn wait_until_left(&self) {
        let mut done = self.leaving.lock();
        while !*done {
            let waited = self.leaving.changed.wait(done);
            done = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks the worker to look at the socket.
    pub(crate) fn wake(&self) {
        if self.wake.ask() {
            let key = ConnKey {
                token: self.token,
                slot: u32::MAX,
            };
            self.home.worker.wake(key, ConnectionId::from_u64(self.id));
        }
    }

    /// Sends one datagram, or queues it behind those that wait.
    pub(crate) fn send(&self, peer: &Arc<PeerShared>, datagram: &[u8]) {
        if self.has_waiting() || !self.try_send(peer, datagram) {
            self.wait(peer, datagram);
        }
    }

    /// Hands runs of datagrams to the system. Returns how many runs it took.
    pub(crate) fn send_runs(&self, bytes: &[u8], runs: &[Run]) -> io::Result<usize> {
        if self.has_waiting() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        sys::send_runs(&self.socket, bytes, runs, self.connected)
    }

    /// Sends one datagram. Returns whether it is done with, sent or not; otherwise the socket
    /// takes none at present.
    fn try_send(&self, peer: &Arc<PeerShared>, datagram: &[u8]) -> bool {
        let run = Run::single(peer.route(), 0, datagram.len());
        // An error may be about a datagram sent before, and be returned instead of trying this one.
        // It is not reported twice.
        let mut earlier = None;
        let outcome = loop {
            match sys::send_runs(&self.socket, datagram, &[run], self.connected) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock && earlier.is_none() => {
                    earlier = Some(error);
                }
                outcome => break outcome,
            }
        };
        let repeats = |error: &io::Error| {
            let failed = outcome.as_ref().err();
            failed.is_some_and(|failed| failed.kind() == error.kind())
        };
        if let Some(error) = earlier.take_if(|error| !repeats(error)) {
            self.tell_error(peer, TransportError::Unreachable, error);
        }
        match outcome {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                self.not_sent(peer, datagram.len(), error);
                true
            }
        }
    }

    fn wait(&self, peer: &Arc<PeerShared>, datagram: &[u8]) {
        let mut waiting = self.waiting();
        let Some(queue) = waiting.as_mut().filter(|_| !peer.is_lost()) else {
            return;
        };
        let len = datagram.len();
        let size = Waiting::<PeerShared>::size(len);
        peer.info.add_queued(size);
        let total = peer.home().add_queued(size);
        // Uncounts what was just counted, if it is dropped.
        let datagram_waits = Waiting {
            sender: Arc::clone(peer),
            len,
        };
        if !may_queue(total, &peer.network().limits) {
            drop(waiting);
            drop(datagram_waits);
            let full = io::Error::other("too much is queued on all connections together");
            return self.not_sent(peer, len, full);
        }
        queue.push(datagram_waits, datagram);
        self.waiting_count.store(queue.len(), Relaxed);
        let first = queue.len() == 1;
        drop(waiting);
        if first {
            self.wake();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<DatagramQueue<PeerShared>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_sent(&self, peer: &PeerShared, len: usize, error: io::Error) {
        self.home.counts.dropped_not_sent.count();
        self.tell_error(peer, TransportError::NotSent { len }, error);
    }

    fn tell_error(&self, peer: &PeerShared, reported: TransportError, error: io::Error) {
        let errors = self.errors.lock();
        let mut errors = errors.unwrap_or_else(PoisonError::into_inner);
        if errors.len() < MAX_ERRORS_TOLD {
            errors.push(SendFailure {
                key: peer.key(),
                id: peer.info.id,
                peer: peer.info.peer_addr(),
                reported,
                error,
            });
        }
        drop(errors);
        self.wake();
    }

    /// What went wrong in sending since this was last asked.
    pub(crate) fn take_errors(&self) -> Vec<SendFailure> {
        let errors = self.errors.lock();
        std::mem::take(&mut *errors.unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what waits.
    pub(crate) fn discard(&self) {
        let mut waiting = self.waiting();
        let forgotten = waiting.as_mut().map(std::mem::take);
        self.waiting_count.store(0, Relaxed);
        drop(waiting);
        drop(forgotten);
    }

    /// Forgets what waits of a connection that is over. To be called on its worker's thread.
    pub(crate) fn forget(&self, peer: &PeerShared) {
        let mut waiting = self.waiting();
        // Under the lock, so that nothing of it comes to wait from here on.
        peer.gathered.fetch_or(LOST, Relaxed);
        let queued = peer.info.queued();
        let Some(queue) = waiting.as_mut().filter(|_| queued > 0) else {
            return;
        };
        peer.uncount(queued);
        queue.lose(queued);
        self.waiting_count.store(queue.len(), Relaxed);
    }

    /// Forgets what waits, and whatever comes; the worker is done with it.
    pub(crate) fn finish(&self) {
        self.has_left();
        let forgotten = self.waiting().take();
        self.waiting_count.store(0, Relaxed);
        drop(forgotten);
    }

    /// Sends what waits, as far as the socket takes it, `budget` datagrams at most.
    pub(crate) fn flush(&self, mut budget: usize) -> Flushed {
        let mut senders = Vec::new();
        while budget > 0 && self.has_waiting() {
            let mut waiting = self.waiting();
            let Some(queue) = &mut *waiting else {
                break;
            };
            let done = match self.flush_some(queue, budget.min(FLUSH_BATCH)) {
                0 => break,
                done => done,
            };
            budget -= done;
            senders.extend(queue.pop(done));
            self.waiting_count.store(queue.len(), Relaxed);
        }
        Flushed {
            senders,
            more: budget == 0 && self.has_waiting(),
        }
    }

    /// Sends datagrams from the front of the queue in one call. Returns how many are done with.
    fn flush_some(&self, queue: &DatagramQueue<PeerShared>, most: usize) -> usize {
        let Some(first) = queue.front(1).next() else {
            return 0;
        };
        if first.sender.is_lost() {
            return queue.front(most).count();
        }
        let mut start = 0;
        let runs: Vec<Run> = queue
            .front(most)
            .map(|one| {
                let run = Run::single(one.sender.route(), start, one.len);
                start += one.len;
                run
            })
            .collect();
        match sys::send_runs(&self.socket, queue.bytes(), &runs, self.connected) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // By itself: that tells apart what waits, what failed and what was an error of an
            // earlier datagram.
            Err(_) => usize::from(self.try_send(&first.sender, &queue.bytes()[..first.len])),
        }
    }
}
