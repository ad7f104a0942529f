//! Work for a socket, in pieces that are done under the lock, and the callbacks between them.
//!
//! An event becomes a [`Job`]: a stack of [`Task`]s. `World::step`
//! does one task. A task may push others, which are done before the rest of the stack, and it may
//! produce one [`Call`]: a callback, with everything that it needs. The loop that runs the job lets
//! go of the lock, makes the call, takes the lock again and gives the call back.

use crate::conn_info::{ConnInfo, ConnKey};
use crate::kernel::{Key, Notice};
use crate::network_state::NetworkId;
use crate::trace::Record;
use bytes::Bytes;
use cubenet_core::{
    CloseReason, Decoder, FrameError, Growing, Handler, Identity, Instant, LayerError, RecvHalf,
    TransportError,
};
use std::sync::Arc;

/// The application's side of a connection.
pub(crate) type BoxedHandler = Box<dyn Handler + Send>;
/// Asks the application about a new peer.
pub(crate) type AcceptFn = dyn Fn(&ConnInfo) -> Option<BoxedHandler> + Send + Sync + 'static;
/// The receiving half of a stream.
pub(crate) type StreamRecvHalf = RecvHalf<Decoder<Growing>>;

/// Work for one socket.
pub(crate) struct Job {
    pub(crate) origin: Origin,
    /// The next is the last.
    pub(crate) tasks: Vec<Task>,
}

/// What started a job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    /// A socket whose network has workers that take no time.
    Socket(Key),
    /// A worker, at this time.
    Worker {
        network: NetworkId,
        number: u32,
        began: Instant,
    },
}

/// A piece of work, done under the lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Does what a notice of the kernel makes possible.
    Notice(Key, Notice),
    /// Takes the next connection from a listener.
    Accept(Key),
    /// Reads once from a socket, and delivers.
    Read(Key),
    /// Writes what is queued.
    Flush(Key),
    /// Closes what has taken too long.
    Expire(Key),
    /// Does what the core says is next for a stream.
    AdvanceStream(Key),
    /// The same for the datagram peer in this slot.
    AdvancePeer(Key, u32),
    /// A queued datagram of this peer has left.
    Flushed(ConnKey),
    /// Reports the errors of datagram peers, and advances those that changed.
    AfterFlush(Key),
    /// Tells a datagram peer of an error.
    Report(ConnKey, TransportError),
    /// Gives the slot of an evicted peer to the pending one.
    Evict(Key),
    /// The pending peer gets its slot.
    Admit(Key),
}

impl Job {
    /// Uses the memory of `tasks`, which is empty.
    pub(crate) fn new(origin: Origin, tasks: Vec<Task>, socket: Key, notice: Notice) -> Self {
        let mut job = Job { origin, tasks };
        job.push(Task::Notice(socket, notice));
        job
    }

    /// Has a task done before those that wait.
    pub(crate) fn push(&mut self, task: Task) {
        self.tasks.push(task);
    }

    pub(crate) fn pop(&mut self) -> Option<Task> {
        self.tasks.pop()
    }
}

/// A callback of a connection, and what it needs. While it runs, the connection is without these.
pub(crate) struct Call {
    pub(crate) info: ConnInfo,
    pub(crate) network: NetworkId,
    pub(crate) handler: Option<BoxedHandler>,
    pub(crate) callback: Callback,
    /// What the handshake of its layers has shown, if it has any.
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) now: Instant,
}

/// Which callback it is.
pub(crate) enum Callback {
    /// Returns the handler.
    Accepted(Arc<AcceptFn>),
    Connected,
    /// With what a layer said, if one failed.
    ConnectFailed(CloseReason, Option<LayerError>),
    /// Messages that are decoded from these bytes of a stream; `None` once that is done.
    ReceivedBytes(Option<Input>),
    /// One datagram.
    ReceivedDatagram(Bytes),
    Writable,
    Error(TransportError),
    Closed(CloseReason),
}

/// Bytes of a stream, decoded and delivered by one call.
pub(crate) struct Input {
    pub(crate) recv: StreamRecvHalf,
    /// What is not decoded yet.
    pub(crate) bytes: Bytes,
    /// The most messages that may be delivered.
    pub(crate) budget: u64,
    /// Messages delivered.
    pub(crate) messages: u64,
    /// Bytes of those.
    pub(crate) volume: u64,
    pub(crate) violation: Option<FrameError>,
}

impl Callback {
    pub(crate) fn record(&self) -> Record {
        match self {
            Callback::Accepted(_) => Record::Accepted,
            Callback::Connected => Record::Connected,
            Callback::ReceivedBytes(_) | Callback::ReceivedDatagram(_) => Record::Received,
            Callback::Writable => Record::Writable,
            Callback::Error(_) => Record::Error,
            Callback::Closed(_) | Callback::ConnectFailed(..) => Record::Closed,
        }
    }
}
