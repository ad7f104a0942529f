//! What the callbacks of one batch send, gathered to leave in one system call.
//!
//! A worker has one `Output`. While it runs callbacks, that belongs to one connection, or
//! to one datagram socket and all its connections. Whatever they send to themselves in that
//! time is put here, without a lock and without an allocation; no matter whether they use
//! their link or a handle, so that the order of their calls is the order on the wire.
//!
//! It is borrowed for the length of a call, in which no code of the application's runs.

use crate::common::Common;
use crate::datagram::DatagramSocket;
use crate::metrics::Tally;
use crate::shared::{Core, Out, Outgoing, Shared, Wire};
use crate::sys::{Route, Run};
use cubenet_core::connection::{datagram, send};
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{Backlog, ConnectionId, SendError};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Gathered bytes that are handed to the system before the batch ends.
const FLUSH_BYTES: usize = 1 << 16;
/// The same for runs of datagrams: as many as go out in one call.
const FLUSH_RUNS: usize = 64;

crate::sync::thread_local! {
    static OF_THIS_THREAD: OnceCell<Rc<RefCell<Output>>> = const { OnceCell::new() };
}

std::thread_local! {
    /// Whether this thread is a network's, so that it must not wait for one.
    static IS_A_NETWORKS: Cell<bool> = const { Cell::new(false) };
}

/// This thread is a network's from now on.
pub(crate) fn enter_network_thread() {
    IS_A_NETWORKS.set(true);
}

/// Whether this thread is a network's.
pub(crate) fn is_network_thread() -> bool {
    IS_A_NETWORKS.get()
}

pub(crate) struct Output {
    common: Arc<Common>,
    /// The number of the connection or of the datagram socket that is gathering.
    owner: u64,
    /// Frames of the stream that is gathering.
    frames: Vec<u8>,
    /// Datagrams of the socket that is gathering.
    datagrams: Datagrams,
    pub(crate) tally: Tally,
}

/// Datagrams in the order they were sent, in runs.
#[derive(Default)]
pub(crate) struct Datagrams {
    pub(crate) bytes: Vec<u8>,
    pub(crate) runs: Vec<Run>,
    /// Whose run it is, by position.
    pub(crate) senders: Vec<Arc<Shared>>,
    /// How much there was when the callback that runs now began.
    mark: Mark,
}

/// A position among gathered datagrams.
#[derive(Clone, Copy, Default)]
struct Mark {
    /// Runs before it, and the last of them, which may have grown since.
    runs: usize,
    last: Option<Run>,
}

impl Output {
    /// The output of this thread, which is a worker's from now on.
    pub(crate) fn of_worker(common: Arc<Common>) -> Rc<RefCell<Output>> {
        let output = Output {
            common,
            owner: 0,
            frames: Vec::new(),
            datagrams: Datagrams::default(),
            tally: Tally::default(),
        };
        let output = Rc::new(RefCell::new(output));
        OF_THIS_THREAD.with(|of_this_thread| Rc::clone(of_this_thread.get_or_init(|| output)))
    }

    /// The output that gathers for this connection, if this thread is in its callback.
    pub(crate) fn gathering_for(core: &Core) -> Option<Rc<RefCell<Output>>> {
        // In the destructor of a thread-local of the application's there may be none any more.
        let of_this_thread = OF_THIS_THREAD.try_with(|output| {
            let output = output.get()?;
            (output.borrow().owner == owner(core)).then(|| Rc::clone(output))
        });
        of_this_thread.ok().flatten()
    }

    /// Begins to gather for a stream's connection, or for a datagram socket.
    pub(crate) fn begin(&mut self, owner: u64) {
        self.owner = owner;
    }

    /// Accepts a message of the connection that is gathering.
    pub(crate) fn send(&mut self, shared: &Arc<Shared>, payload: &[u8]) -> Result<(), SendError> {
        let len = payload.len();
        let core = &shared.core;
        let own = core.queued() + self.frames.len();
        let backlog = Backlog::growing(own, self.common.queued_total());
        let header = match &core.wire {
            Wire::Stream { .. } => send::admit(core.state(), len, backlog, core.limits()),
            Wire::Datagrams(_) => {
                datagram::admit(core.state(), len, backlog, core.limits()).map(|()| [0; HEADER_LEN])
            }
        };
        let header = match header {
            Err(SendError::Full) => {
                self.flush_frames(shared);
                shared.admit_locked(len)?
            }
            header => header?,
        };
        match &core.wire {
            Wire::Stream { .. } => {
                self.frames.reserve(header.len() + len);
                self.frames.extend_from_slice(&header);
                self.frames.extend_from_slice(payload);
                if self.frames.len() >= FLUSH_BYTES {
                    self.flush_frames(shared);
                }
            }
            Wire::Datagrams(on) => self.push_datagram(&on.socket, shared, payload),
        }
        self.tally.messages_out += 1;
        self.tally.bytes_out += len as u64;
        Ok(())
    }

    /// What a stream that is gathering has sent goes out before it closes. Datagrams are
    /// gathered in order, and so is the one that closes.
    pub(crate) fn before_close(&mut self, shared: &Arc<Shared>) {
        if let Wire::Stream { .. } = &shared.core.wire {
            self.flush_frames(shared);
        }
    }

    /// A callback of a datagram peer begins.
    pub(crate) fn begin_callback(&mut self) {
        let runs = self.datagrams.runs.len();
        let last = self.datagrams.runs.last().copied();
        self.datagrams.mark = Mark { runs, last };
    }

    /// Forgets what a connection has gathered that was aborted, turned away, or whose callback
    /// panicked: a stream's frames; the datagrams that the callback has sent.
    pub(crate) fn discard(&mut self, shared: &Shared) {
        match &shared.core.wire {
            Wire::Stream { .. } => self.frames.clear(),
            Wire::Datagrams(_) => self.datagrams.discard(shared.core.id),
        }
    }

    /// Gathers a datagram; an empty one closes the connection at the peer.
    pub(crate) fn push_datagram(
        &mut self,
        socket: &DatagramSocket,
        shared: &Arc<Shared>,
        payload: &[u8],
    ) {
        self.datagrams.push(shared, payload);
        if self.datagrams.bytes.len() >= FLUSH_BYTES || self.datagrams.runs.len() >= FLUSH_RUNS {
            self.flush_datagrams(socket);
        }
    }

    /// Hands the gathered frames to their stream, by whoever does not own the connection.
    pub(crate) fn flush_frames(&mut self, shared: &Shared) {
        if !self.frames.is_empty() {
            shared.locked(|core, out| self.transmit_frames(core, out));
        }
    }

    /// Hands the gathered frames to their stream.
    pub(crate) fn transmit_frames(&mut self, core: &Core, out: &mut Out) {
        out.transmit(core, Outgoing::Gathered(&self.frames));
        self.frames.clear();
    }

    /// Bytes that the connection that is gathering has sent and that have not gone out.
    pub(crate) fn queued(&self, core: &Core) -> usize {
        let gathered = match &core.wire {
            Wire::Stream { .. } => self.frames.len(),
            Wire::Datagrams(_) => self.datagrams.bytes_to(core.route()),
        };
        core.queued() + gathered
    }

    /// Bytes that the stream that is gathering has sent in this callback.
    pub(crate) fn gathered(&self) -> usize {
        self.frames.len()
    }

    /// Hands the gathered datagrams to their socket.
    pub(crate) fn flush_datagrams(&mut self, socket: &DatagramSocket) {
        socket.send_gathered(&mut self.datagrams);
        self.datagrams.clear();
    }
}

impl Datagrams {
    fn push(&mut self, shared: &Arc<Shared>, payload: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        let route = shared.core.route();
        let joined = match (&shared.core.wire, self.runs.last_mut()) {
            (Wire::Datagrams(on), Some(run)) => {
                let max_segment = usize::from(on.max_segment.load(Relaxed));
                run.extend(route, start, payload.len(), max_segment)
            }
            _ => false,
        };
        if !joined {
            self.runs.push(Run::single(route, start, payload.len()));
            self.senders.push(Arc::clone(shared));
        }
    }

    fn bytes_to(&self, route: Route) -> usize {
        let to_peer = self.runs.iter().filter(|run| run.route == route);
        to_peer.map(|run| run.len).sum()
    }

    /// Forgets what this connection has gathered since the mark. Its bytes stay, and nothing
    /// refers to them.
    fn discard(&mut self, id: ConnectionId) {
        let Mark { runs, last } = self.mark;
        let mut at = runs;
        while at < self.runs.len() {
            if self.senders[at].core.id == id {
                self.runs.remove(at);
                self.senders.remove(at);
            } else {
                at += 1;
            }
        }
        if let Some(last) = last
            && let Some(nth) = runs.checked_sub(1)
            && self.senders[nth].core.id == id
        {
            self.runs[nth] = last;
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.runs.clear();
        self.senders.clear();
        self.mark = Mark::default();
    }
}

/// What gathers for this connection: itself, or its datagram socket.
fn owner(core: &Core) -> u64 {
    match &core.wire {
        Wire::Stream { .. } => core.id.as_u64(),
        Wire::Datagrams(on) => on.socket.id,
    }
}
