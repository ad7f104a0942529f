//! A datagram socket, as its worker and all its connections share it: sending, and keeping
//! what the system would not take.

use crate::common::next_id;
use crate::mailbox::WorkerHandle;
use crate::output;
use crate::shared::{Place, Shared};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::{self, Run};
use crate::trouble::warn_limited;
use bytes::Bytes;
use cubenet_core::{ConnectionId, Exception};
use mio::net::UdpSocket;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

/// A datagram socket, as its worker and all its connections share it.
pub(crate) struct DatagramSocket {
    pub(crate) socket: UdpSocket,
    pub(crate) local: SocketAddr,
    /// A number no connection has, to gather output by.
    pub(crate) id: u64,
    connected: bool,
    /// Whether the system sends runs to one peer in one piece.
    segments: AtomicBool,
    /// Whether new peers are admitted.
    open: AtomicBool,
    pub(crate) worker: Arc<WorkerHandle>,
    entry: u32,
    /// Datagrams the socket would not take yet; `None` once the worker is done with it.
    waiting: Mutex<Option<VecDeque<Waiting>>>,
    /// How many; read without the lock.
    waiting_count: AtomicUsize,
    /// What went wrong in sending, to be told to the connections by the worker.
    exceptions: Mutex<Vec<(Place, ConnectionId, Exception)>>,
}

struct Waiting {
    shared: Arc<Shared>,
    datagram: Bytes,
}

impl DatagramSocket {
    pub(crate) fn new(
        socket: UdpSocket,
        local: SocketAddr,
        worker: Arc<WorkerHandle>,
        entry: u32,
        listens: bool,
    ) -> Arc<Self> {
        if local.ip().is_unspecified() {
            sys::tell_destination(&socket, local);
        }
        Arc::new(DatagramSocket {
            local,
            id: next_id().0,
            connected: !listens,
            segments: AtomicBool::new(sys::offload(&socket)),
            open: AtomicBool::new(listens),
            socket,
            worker,
            entry,
            waiting: Mutex::new(Some(VecDeque::new())),
            waiting_count: AtomicUsize::new(0),
            exceptions: Mutex::default(),
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

    /// Whether the system sends runs to one peer in one piece.
    pub(crate) fn segments(&self) -> bool {
        self.segments.load(Relaxed)
    }

    /// Admits no new peers; those that are there stay. The worker drops the socket when the
    /// last has gone.
    pub(crate) fn close(&self) {
        self.open.store(false, Relaxed);
        self.attend();
    }

    fn attend(&self) {
        let place = Place {
            entry: self.entry,
            slot: u32::MAX,
        };
        self.worker.attend(place, ConnectionId(self.id));
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
        let mut refused = false;
        loop {
            match sys::send_runs(&self.socket, datagram, &[run], self.connected) {
                Ok(_) => return true,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    io::ErrorKind::Interrupted => {}
                    // About a datagram sent before; this one has not been tried yet.
                    io::ErrorKind::ConnectionRefused if !refused => {
                        refused = true;
                        self.except(shared, Exception::Unreachable);
                    }
                    _ => {
                        self.not_sent(shared, datagram.len(), &error);
                        return true;
                    }
                },
            }
        }
    }

    /// Sends what was gathered and clears it.
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
                    let run = gathered.runs[next];
                    if error.kind() == io::ErrorKind::ConnectionRefused {
                        self.except(&gathered.senders[next], Exception::Unreachable);
                    }
                    if run.count > 1 && sys::segments_refused(&error) {
                        // Perhaps the path has a smaller MTU, perhaps the device cannot;
                        // either way the socket goes on without.
                        self.segments.store(false, Relaxed);
                    }
                    // One by one: that tells apart what waits, what failed and what was
                    // an error of an earlier datagram.
                    for piece in run.split() {
                        let datagram = &gathered.bytes[piece.start..piece.start + piece.len];
                        self.send(&gathered.senders[next], datagram);
                    }
                    next += 1;
                }
            }
        }
        gathered.clear();
    }

    fn wait(&self, shared: &Arc<Shared>, datagram: &[u8]) {
        let mut waiting = self.waiting();
        let Some(queue) = &mut *waiting else {
            return;
        };
        let total = shared.core.add_queued(datagram.len());
        if total > self.worker.common.limits.max_queued_total {
            // A datagram may be lost; that is better than memory without bound.
            shared.core.sub_queued(datagram.len());
            drop(waiting);
            let full = io::Error::other("too much is queued on all connections together");
            return self.not_sent(shared, datagram.len(), &full);
        }
        queue.push_back(Waiting {
            shared: Arc::clone(shared),
            datagram: Bytes::copy_from_slice(datagram),
        });
        self.waiting_count.store(queue.len(), Relaxed);
        let first = queue.len() == 1;
        drop(waiting);
        if first {
            self.attend();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_sent(&self, shared: &Arc<Shared>, len: usize, error: &io::Error) {
        let totals = &self.worker.common.totals;
        totals.dropped_not_sent.fetch_add(1, Relaxed);
        warn_limited!(peer = %shared.core.peer(), len, %error, "datagram not sent");
        self.except(shared, Exception::NotSent { len });
    }

    fn except(&self, shared: &Arc<Shared>, exception: Exception) {
        let core = &shared.core;
        let exceptions = self.exceptions.lock();
        let mut exceptions = exceptions.unwrap_or_else(PoisonError::into_inner);
        // Whoever sends faster than its errors are told hears of fewer.
        if exceptions.len() < 1024 {
            exceptions.push((core.place(), core.id, exception));
        }
        drop(exceptions);
        self.attend();
    }

    /// What went wrong in sending since this was last asked.
    pub(crate) fn take_exceptions(&self) -> Vec<(Place, ConnectionId, Exception)> {
        let exceptions = self.exceptions.lock();
        std::mem::take(&mut *exceptions.unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what waits.
    pub(crate) fn discard(&self) {
        let mut waiting = self.waiting();
        let forgotten = waiting.as_mut().map(std::mem::take);
        self.forget(waiting, forgotten);
    }

    /// Forgets what waits, and whatever comes.
    pub(crate) fn finish(&self) {
        let mut waiting = self.waiting();
        let forgotten = waiting.take();
        self.forget(waiting, forgotten);
    }

    fn forget(
        &self,
        waiting: MutexGuard<'_, Option<VecDeque<Waiting>>>,
        forgotten: Option<VecDeque<Waiting>>,
    ) {
        self.waiting_count.store(0, Relaxed);
        drop(waiting);
        for Waiting { shared, datagram } in forgotten.into_iter().flatten() {
            shared.core.sub_queued(datagram.len());
        }
    }

    /// Sends what waits, as far as the socket takes it. Returns whose datagrams went.
    pub(crate) fn flush(&self) -> Vec<Arc<Shared>> {
        let mut flushed = Vec::new();
        while self.has_waiting() {
            let mut waiting = self.waiting();
            let Some(queue) = &mut *waiting else {
                break;
            };
            let Some(Waiting { shared, datagram }) = queue.front() else {
                break;
            };
            if !self.try_send(shared, datagram) {
                break;
            }
            if let Some(sent) = queue.pop_front() {
                self.waiting_count.store(queue.len(), Relaxed);
                sent.shared.core.sub_queued(sent.datagram.len());
                flushed.push(sent.shared);
            }
        }
        flushed
    }
}
