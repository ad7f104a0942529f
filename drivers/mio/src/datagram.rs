//! A datagram socket, as its worker and all its connections share it: sending, and keeping
//! what the system would not take.

use crate::common::next_id;
use crate::listening::Home;
use crate::output;
use crate::shared::{Place, Shared, Wire};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::{self, MAX_SEGMENT, Run};
use crate::wake::Wake;
use bytes::{Buf, BytesMut};
use cubenet_core::{ConnectionId, TransportError};
use mio::net::UdpSocket;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

/// What is counted of a waiting datagram beside its bytes: who sent it, and how long it is.
pub(crate) const WAITING_OVERHEAD: usize = size_of::<Waiting>();
/// Datagrams handed to the system at once when those that wait go out.
const FLUSH_BATCH: usize = 64;
/// Errors of sending that wait to be told; further ones are only counted.
const MAX_ERRORS_TOLD: usize = 1024;

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
    entry: u32,
    pub(crate) wake: Wake,
    /// Datagrams the socket would not take yet; `None` once the worker is done with it.
    waiting: Mutex<Option<Queue>>,
    /// How many; read without the lock.
    waiting_count: AtomicUsize,
    /// What went wrong in sending, to be told to the connections by the worker.
    errors: Mutex<Vec<SendFailure>>,
}

/// Datagrams that wait, in the order they were sent.
#[derive(Default)]
struct Queue {
    datagrams: VecDeque<Waiting>,
    /// Their bytes, one behind another.
    bytes: BytesMut,
    /// What those count that are of connections that were aborted, and are not to be sent.
    lost: usize,
}

impl Queue {
    /// Takes out what is not to be sent.
    fn compact(&mut self) {
        let mut kept = Queue::default();
        let mut start = 0;
        for one in self.datagrams.drain(..) {
            let end = start + one.len;
            if !one.is_lost() {
                kept.bytes.extend_from_slice(&self.bytes[start..end]);
                kept.datagrams.push_back(one);
            }
            start = end;
        }
        *self = kept;
    }
}

struct Waiting {
    shared: Arc<Shared>,
    len: usize,
}

impl Waiting {
    /// What it counts in the queues of its connection and of all.
    fn size(len: usize) -> usize {
        len + WAITING_OVERHEAD
    }

    /// Whether its connection was aborted, and what waited is counted no more.
    fn is_lost(&self) -> bool {
        self.shared.core.seat.is_lost()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.is_lost() {
            self.shared.core.sub_queued(Waiting::size(self.len));
        }
    }
}

/// Something that went wrong in sending, for the worker to report and to tell.
pub(crate) struct SendFailure {
    pub(crate) place: Place,
    pub(crate) id: ConnectionId,
    pub(crate) peer: SocketAddr,
    pub(crate) told: TransportError,
    pub(crate) error: io::Error,
}

/// What became of the datagrams that waited.
pub(crate) struct Flushed {
    /// Whose went.
    pub(crate) senders: Vec<Arc<Shared>>,
    /// Whether more wait that the socket may take.
    pub(crate) more: bool,
}

impl DatagramSocket {
    pub(crate) fn new(
        socket: UdpSocket,
        local: SocketAddr,
        home: Arc<Home>,
        entry: u32,
        listens: bool,
    ) -> Arc<Self> {
        if local.ip().is_unspecified() {
            sys::tell_destination(&socket, local);
        }
        let segments = sys::offload(&socket);
        Arc::new(DatagramSocket {
            local,
            id: next_id().as_u64(),
            connected: !listens,
            max_segment: if segments { MAX_SEGMENT } else { 0 },
            open: AtomicBool::new(listens),
            socket,
            home,
            entry,
            wake: Wake::new(),
            waiting: Mutex::new(Some(Queue::default())),
            waiting_count: AtomicUsize::new(0),
            errors: Mutex::default(),
        })
    }

    /// The number its worker keeps it under.
    pub(crate) fn entry(&self) -> u32 {
        self.entry
    }

    /// Whether new peers are admitted.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Whether datagrams wait to be sent.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting_count.load(Relaxed) > 0
    }

    /// The largest datagrams that the system sends in runs; 0 if it does not.
    pub(crate) fn max_segment(&self) -> u16 {
        self.max_segment
    }

    /// Admits no new peers; those that are there stay. The worker drops the socket when the
    /// last has gone.
    pub(crate) fn close(&self) {
        self.open.store(false, Relaxed);
        self.attend();
    }

    fn attend(&self) {
        if self.wake.ask() {
            let place = Place {
                entry: self.entry,
                slot: u32::MAX,
            };
            self.home
                .worker
                .attend(place, ConnectionId::from_u64(self.id));
        }
    }

    /// Sends one datagram, or queues it behind those that wait.
    pub(crate) fn send(&self, shared: &Arc<Shared>, datagram: &[u8]) {
        if self.has_waiting() || !self.try_send(shared, datagram) {
            self.wait(shared, datagram);
        }
    }

    /// Sends one datagram. Returns whether it is done with, sent or not; otherwise the socket
    /// takes none at present.
    fn try_send(&self, shared: &Arc<Shared>, datagram: &[u8]) -> bool {
        let run = Run::single(shared.core.route(), 0, datagram.len());
        // An error may be about a datagram sent before, and be told instead of trying this one.
        // It is not told twice.
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
            self.tell_error(shared, TransportError::Unreachable, error);
        }
        match outcome {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                self.not_sent(shared, datagram.len(), error);
                true
            }
        }
    }

    /// Sends what was gathered.
    pub(crate) fn send_gathered(&self, gathered: &mut output::Datagrams) {
        let mut next = 0;
        while next < gathered.runs.len() {
            let outcome = if self.has_waiting() {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                let runs = &gathered.runs[next..];
                sys::send_runs(&self.socket, &gathered.bytes, runs, self.connected)
            };
            match outcome {
                Ok(sent) => next += sent,
                Err(error) => {
                    let (run, sender) = (gathered.runs[next], &gathered.senders[next]);
                    if run.count > 1 {
                        limit_segments(sender, run, &error);
                    }
                    // One by one: that tells apart what waits, what failed and what was
                    // an error of an earlier datagram.
                    for piece in run.split() {
                        let datagram = &gathered.bytes[piece.start..piece.start + piece.len];
                        self.send(sender, datagram);
                    }
                    next += 1;
                }
            }
        }
    }

    fn wait(&self, shared: &Arc<Shared>, datagram: &[u8]) {
        let mut waiting = self.waiting();
        let Some(queue) = &mut *waiting else {
            return;
        };
        let len = datagram.len();
        let total = shared.core.add_queued(Waiting::size(len));
        // Uncounts what was just counted, if it is dropped.
        let datagram_waits = Waiting {
            shared: Arc::clone(shared),
            len,
        };
        if total > self.home.worker.common.limits.max_queued_total() {
            // A datagram may be lost; that is better than memory without bound.
            drop(waiting);
            drop(datagram_waits);
            let full = io::Error::other("too much is queued on all connections together");
            return self.not_sent(shared, len, full);
        }
        queue.bytes.extend_from_slice(datagram);
        queue.datagrams.push_back(datagram_waits);
        self.waiting_count.store(queue.datagrams.len(), Relaxed);
        let first = queue.datagrams.len() == 1;
        drop(waiting);
        if first {
            self.attend();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Queue>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_sent(&self, shared: &Arc<Shared>, len: usize, error: io::Error) {
        let totals = &self.home.worker.common.totals;
        totals.dropped_not_sent.fetch_add(1, Relaxed);
        self.tell_error(shared, TransportError::NotSent { len }, error);
    }

    fn tell_error(&self, shared: &Arc<Shared>, told: TransportError, error: io::Error) {
        let core = &shared.core;
        let errors = self.errors.lock();
        let mut errors = errors.unwrap_or_else(PoisonError::into_inner);
        // Bounded: beyond this many undelivered errors, further ones are dropped.
        if errors.len() < MAX_ERRORS_TOLD {
            errors.push(SendFailure {
                place: core.place(),
                id: core.id,
                peer: core.peer_addr(),
                told,
                error,
            });
        }
        drop(errors);
        self.attend();
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

    /// Forgets what waits of a connection that was aborted. To be called on its worker's thread.
    pub(crate) fn forget(&self, shared: &Shared) {
        let mut waiting = self.waiting();
        let queued = shared.core.queued();
        let Some(queue) = waiting.as_mut().filter(|_| queued > 0) else {
            return;
        };
        queue.lost += queued;
        shared.core.seat.lose();
        shared.core.sub_queued(queued);
        // Not each time: connections may be aborted one after the other.
        if 2 * queue.lost > queue.bytes.len() + WAITING_OVERHEAD * queue.datagrams.len() {
            queue.compact();
            self.waiting_count.store(queue.datagrams.len(), Relaxed);
        }
    }

    /// Forgets what waits, and whatever comes.
    pub(crate) fn finish(&self) {
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
            let gone = queue.datagrams.iter().take(done);
            let lost = gone.filter(|one| one.is_lost());
            queue.lost -= lost.map(|one| Waiting::size(one.len)).sum::<usize>();
            let len = queue.datagrams.iter().take(done).map(|one| one.len).sum();
            queue.bytes.advance(len);
            senders.extend(
                queue
                    .datagrams
                    .drain(..done)
                    .map(|one| Arc::clone(&one.shared)),
            );
            if queue.datagrams.is_empty() {
                *queue = Queue::default();
            }
            self.waiting_count.store(queue.datagrams.len(), Relaxed);
        }
        Flushed {
            senders,
            more: budget == 0 && self.has_waiting(),
        }
    }

    /// Sends datagrams from the front of the queue in one call. Returns how many are done with.
    fn flush_some(&self, queue: &Queue, most: usize) -> usize {
        let lost = queue.datagrams.iter().take(most);
        let lost = lost.take_while(|one| one.is_lost()).count();
        if lost > 0 {
            return lost;
        }
        let mut start = 0;
        let datagrams = queue.datagrams.iter().take(most);
        let runs: Vec<Run> = datagrams
            .take_while(|one| !one.is_lost())
            .map(|one| {
                let run = Run::single(one.shared.core.route(), start, one.len);
                start += one.len;
                run
            })
            .collect();
        match sys::send_runs(&self.socket, &queue.bytes, &runs, self.connected) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                // By itself: that tells apart what waits, what failed and what was an error of
                // an earlier datagram.
                let Some(first) = queue.datagrams.front() else {
                    return 0;
                };
                usize::from(self.try_send(&first.shared, &queue.bytes[..first.len]))
            }
        }
    }
}

/// The system refused a run to this peer: from here on its datagrams go out in smaller runs, or
/// singly. Others are not concerned, since the way to them is another.
fn limit_segments(sender: &Shared, run: Run, error: &io::Error) {
    let Wire::Datagrams(on) = &sender.core.wire else {
        return;
    };
    if sys::cannot_segment(error) {
        on.max_segment.store(0, Relaxed);
    } else if sys::too_large(error) {
        // What fits one piece is found at the first smaller datagrams.
        let smaller = run.segment.saturating_sub(1);
        on.max_segment
            .fetch_min(u16::try_from(smaller).unwrap_or(u16::MAX), Relaxed);
    }
}
