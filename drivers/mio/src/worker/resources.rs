//! What the connections of a worker use in turn: buffers, timers, counters, the run queue.

use crate::conn::info::ConnInfo;
use crate::log::{debug, error_limited, warn_limited};
use crate::metrics::Counts;
use crate::network::listening::Listening;
use crate::network::shared::NetworkShared;
use crate::sys::ReceiveBatch;
use crate::udp::senders::Senders;
use crate::worker::handle::WorkerHandle;
use crate::worker::timers::Timers;
use crate::write_batch::WriteBatch;
use bytes::Bytes;
use cubenet_core::connection::HeldInput;
use cubenet_core::connection::held::holds_too_much;
use cubenet_core::{CloseReason, Instant, Timeout};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes read from a stream at once: the longest frame and as much again, so that long
/// frames are seldom cut by the end of a read and put together elsewhere.
const INPUT: usize = 1 << 17;

/// Steps of handshakes in one iteration. Each costs as much as many messages, and the messages of all
/// other connections wait for it.
pub(super) const HANDSHAKES: usize = 4;

/// What the connections of a worker use in turn while one of them is served.
pub(crate) struct WorkerResources {
    pub(crate) network: Arc<NetworkShared>,
    pub(super) handle: Arc<WorkerHandle>,
    /// All workers of the network.
    workers: Arc<[Arc<WorkerHandle>]>,
    pub(crate) now: Instant,
    /// What streams are read into; every one in turn.
    pub(crate) input: Box<[u8]>,
    /// What layers make of what streams are read into; every one in turn.
    pub(crate) stream: Vec<u8>,
    /// The listeners that are to be asked about streams once the handshake of their layers is
    /// complete, by the tokens of those.
    pub(crate) unasked: HashMap<usize, Arc<Listening>>,
    /// How many handshakes of layers may go on in this iteration.
    pub(crate) handshakes: usize,
    /// What datagrams are read into; made for the first datagram socket.
    pub(crate) datagrams_in: Option<Box<ReceiveBatch>>,
    /// Who has sent those.
    pub(crate) senders: Senders,
    pub(crate) batch: Rc<RefCell<WriteBatch>>,
    pub(crate) timers: Timers,
    /// The run queue: tokens of those that used up their budget and have more to read.
    pub(super) run_queue: VecDeque<u32>,
    /// Input that streams hold, by their tokens.
    pub(crate) held: HashMap<usize, Held>,
    /// Those streams, in the order in which they began to hold it.
    holders: BTreeSet<(Instant, usize)>,
}

/// Input that a stream holds.
pub(crate) struct Held {
    /// Bytes that were read and not delivered, since the stream was paused or its budget used up.
    pub(crate) undelivered: Bytes,
    /// Those and the memory of a partial frame, as they are counted.
    input: HeldInput,
    counts: Arc<Counts>,
}

impl WorkerResources {
    /// To be made on the worker's own thread.
    pub(super) fn new(handle: Arc<WorkerHandle>, workers: Arc<[Arc<WorkerHandle>]>) -> Self {
        let network = Arc::clone(&handle.network);
        WorkerResources {
            now: network.now(),
            handle,
            workers,
            input: vec![0; INPUT].into_boxed_slice(),
            stream: Vec::new(),
            unasked: HashMap::new(),
            handshakes: HANDSHAKES,
            datagrams_in: None,
            senders: Senders::default(),
            batch: WriteBatch::of_worker(Arc::clone(&network)),
            timers: Timers::default(),
            run_queue: VecDeque::new(),
            held: HashMap::new(),
            holders: BTreeSet::new(),
            network,
        }
    }

    /// Puts a token into the run queue, behind all others.
    pub(crate) fn schedule(&mut self, token: usize, scheduled: &mut bool) {
        if !std::mem::replace(scheduled, true) {
            self.run_queue.push_back(token as u32);
        }
    }

    /// Gives back the buffer of [`stream`](Self::stream).
    pub(crate) fn keep_stream(&mut self, stream: Vec<u8>) {
        if stream.capacity() <= 2 * INPUT {
            self.stream = stream;
        }
    }

    /// Reads the clock: callbacks have run, and they may have taken any time.
    pub(crate) fn tick(&mut self) {
        self.now = self.network.now();
    }

    /// A stream holds this much input, of which `undelivered` waits to be delivered. `progressed`
    /// says whether a message was delivered since this was last called.
    pub(crate) fn hold(
        &mut self,
        token: usize,
        bytes: usize,
        undelivered: Bytes,
        progressed: bool,
        counts: &Arc<Counts>,
    ) {
        let held = self.held.entry(token).or_insert_with(|| Held {
            undelivered: Bytes::new(),
            input: HeldInput::NONE,
            counts: Arc::clone(counts),
        });
        let before = held.input;
        held.input.update(bytes, progressed, self.now);
        held.undelivered = undelivered;
        counts.held.add(bytes);
        counts.held.sub(before.bytes());
        self.handle.change_held(before.bytes(), bytes);
        if held.input.since() != before.since() {
            self.holders.remove(&(before.since(), token));
            self.holders.insert((held.input.since(), token));
        }
    }

    /// A stream holds no input any more.
    pub(crate) fn let_go(&mut self, token: usize) {
        if let Some(Held { input, counts, .. }) = self.held.remove(&token) {
            counts.held.sub(input.bytes());
            self.holders.remove(&(input.since(), token));
            self.handle.change_held(input.bytes(), 0);
        }
    }

    /// The stream that has held input longest, if all connections together hold more than they
    /// may, and those of this worker more than its share. Other workers that do are asked to give
    /// up some of theirs.
    pub(super) fn holds_too_long(&self) -> Option<usize> {
        if !holds_too_much(self.network.held_total(), &self.network.limits) {
            return None;
        }
        let workers = self.workers.len();
        if !self.handle.is_over_share(workers) {
            for other in self.workers.iter().filter(|one| one.is_over_share(workers)) {
                other.ask_relief();
            }
            return None;
        }
        self.holders.first().map(|(_, token)| *token)
    }
}

/// A connection has closed, with `error` if it failed: tells of it and counts it.
pub(crate) fn count_closed(
    info: &ConnInfo,
    counts: &Counts,
    reason: CloseReason,
    error: Option<&io::Error>,
) {
    let (id, peer) = (info.id, info.peer_addr());
    let error = error.map(tracing::field::display);
    match reason {
        // Of a layer; a callback's panic was told of when it came.
        CloseReason::Panicked if error.is_some() => {
            counts.panics.count();
            error_limited!(connection = %id, %peer, error, "closed with a panic");
        }
        CloseReason::Protocol(_)
        | CloseReason::Layer
        | CloseReason::Handshake
        | CloseReason::Overflow
        | CloseReason::Io
        | CloseReason::Timeout(Timeout::WriteStall | Timeout::Drain | Timeout::Frame) => {
            warn_limited!(connection = %id, %peer, %reason, error, "closed with an error");
        }
        _ => {
            debug!(connection = %id, %peer, %reason, error, "closed");
        }
    }
    counts.closed_by.get(reason).count();
}
