//! A worker: a thread with a poll of its own, which runs the callbacks of the connections
//! that were given to it for life.

use crate::callback::guarded;
use crate::common::Common;
use crate::connection::Connection;
use crate::datagram::DatagramSocket;
use crate::log::{debug, warn_limited};
use crate::mailbox::{Accepted, BoxedHandler, Command, WAKER, WorkerHandle};
use crate::metrics::Tally;
use crate::output::{Output, enter_network_thread};
use crate::peers::Peers;
use crate::seat::Permit;
use crate::shared::{Core, Place, Shared};
use crate::stream::{Readiness, Stream};
use crate::sys::{self, ReceiveBatch};
use crate::timers::Timers;
use bytes::Bytes;
use cubenet_core::{Action, CloseReason, ConnectionId, Instant, SendHalf, Timeout};
use mio::event::Event;
use mio::{Events, Poll};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Events taken from the poll at once.
const POLL_CAPACITY: usize = 1024;
/// Bytes read from a stream at once: the longest frame and as much again, so that long
/// frames are seldom cut by the end of a read and put together elsewhere.
const INPUT: usize = 1 << 17;
/// How often a worker that stops asks whether what it sent has been acknowledged.
const ACKNOWLEDGED: Duration = Duration::from_millis(10);

/// What the connections of a worker have in common while one of them is dealt with.
pub(crate) struct Context {
    pub(crate) common: Arc<Common>,
    handle: Arc<WorkerHandle>,
    /// All workers of the network.
    workers: Arc<[Arc<WorkerHandle>]>,
    pub(crate) now: Instant,
    /// What streams are read into; every one in turn.
    pub(crate) input: Box<[u8]>,
    /// What datagrams are read into; made for the first datagram socket.
    pub(crate) datagrams_in: Option<Box<ReceiveBatch>>,
    pub(crate) output: Rc<RefCell<Output>>,
    pub(crate) tally: Tally,
    pub(crate) timers: Timers,
    /// Those that used up their turn and have more to read.
    line: VecDeque<u32>,
    /// Input that streams hold, by their entries.
    pub(crate) held: HashMap<usize, Held>,
    /// Those streams, in the order in which they began to hold it.
    holders: BTreeSet<(Instant, usize)>,
}

/// Input that a stream holds.
pub(crate) struct Held {
    /// Bytes that were read and not delivered, since the stream was paused or its turn was over.
    pub(crate) parked: Bytes,
    /// Those and the memory of a partial frame, as they are counted.
    bytes: usize,
    /// Since when something is held.
    since: Instant,
}

impl Context {
    /// Gives an entry another turn, after all the others.
    pub(crate) fn line_up(&mut self, entry: usize, in_line: &mut bool) {
        if !std::mem::replace(in_line, true) {
            self.line.push_back(entry as u32);
        }
    }

    /// Reads the clock: callbacks have run, and they may have taken any time.
    pub(crate) fn tick(&mut self) {
        self.now = self.common.now();
    }

    /// A stream holds this much input, of which `parked` is to be delivered.
    pub(crate) fn hold(&mut self, entry: usize, bytes: usize, parked: Bytes) {
        let held = self.held.entry(entry).or_insert_with(|| {
            self.holders.insert((self.now, entry));
            Held {
                parked: Bytes::new(),
                bytes: 0,
                since: self.now,
            }
        });
        self.handle.change_held(held.bytes, bytes);
        held.bytes = bytes;
        held.parked = parked;
    }

    /// A stream holds no input any more.
    pub(crate) fn let_go(&mut self, entry: usize) {
        if let Some(held) = self.held.remove(&entry) {
            self.holders.remove(&(held.since, entry));
            self.handle.change_held(held.bytes, 0);
        }
    }

    /// The stream that has held input longest, if all connections together hold more than they
    /// may, and those of this worker more than its share. Other workers that do are asked to give
    /// up some of theirs.
    fn holds_too_long(&self) -> Option<usize> {
        if self.common.held_total() <= self.common.limits.max_held_total() {
            return None;
        }
        let workers = self.workers.len();
        if !self.handle.is_over_share(workers) {
            for other in self.workers.iter().filter(|one| one.is_over_share(workers)) {
                other.relieve();
            }
            return None;
        }
        self.holders.first().map(|(_, entry)| *entry)
    }

    /// A connection has closed, with `error` if it failed: tells of it and counts it.
    pub(crate) fn closed(&mut self, core: &Core, reason: CloseReason, error: Option<&io::Error>) {
        let (id, peer) = (core.id, core.peer_addr());
        let error = error.map(tracing::field::display);
        match reason {
            CloseReason::Protocol(_)
            | CloseReason::Overflow
            | CloseReason::Io
            | CloseReason::Timeout(Timeout::WriteStall | Timeout::Drain | Timeout::Frame) => {
                warn_limited!(connection = %id, %peer, %reason, error, "closed in trouble");
            }
            _ => {
                debug!(connection = %id, %peer, %reason, error, "closed");
            }
        }
        let count = self.common.totals.closed_by.get(reason);
        count.fetch_add(1, Relaxed);
    }
}

enum Entry {
    Stream(Stream),
    Datagrams(Box<Peers>),
}

impl Entry {
    fn armed(&mut self) -> &mut Instant {
        match self {
            Entry::Stream(stream) => &mut stream.armed,
            Entry::Datagrams(peers) => &mut peers.armed,
        }
    }
}

/// The state of a worker's thread.
pub(crate) struct Worker {
    poll: Poll,
    entries: Vec<Option<Entry>>,
    /// How many entries there are.
    len: usize,
    context: Context,
    /// Commands that were taken out of the mailbox and have not been handled.
    backlog: VecDeque<Command>,
    /// When what is left is aborted, once the network stops.
    stopping: Option<Instant>,
}

impl Worker {
    /// To be made on the worker's own thread.
    pub(crate) fn new(
        poll: Poll,
        handle: Arc<WorkerHandle>,
        workers: Arc<[Arc<WorkerHandle>]>,
    ) -> Self {
        let common = Arc::clone(&handle.common);
        Worker {
            poll,
            entries: Vec::new(),
            len: 0,
            context: Context {
                now: common.now(),
                handle,
                workers,
                input: vec![0; INPUT].into_boxed_slice(),
                datagrams_in: None,
                output: Output::of_worker(Arc::clone(&common)),
                tally: Tally::default(),
                timers: Timers::default(),
                line: VecDeque::new(),
                held: HashMap::new(),
                holders: BTreeSet::new(),
                common,
            },
            backlog: VecDeque::new(),
            stopping: None,
        }
    }

    /// Works until the network stops.
    pub(crate) fn run(&mut self) {
        enter_network_thread();
        let mut events = Events::with_capacity(POLL_CAPACITY);
        while self.stopping.is_none() || self.len > 0 {
            self.wait(&mut events, self.patience());
            self.turn(&events);
        }
        // The commands posted before the mailbox closed are still handled; their connections are
        // closed too.
        let last = self.context.handle.close_mailbox();
        self.backlog.extend(last);
        while let Some(command) = self.backlog.pop_front() {
            self.handle_command(command);
        }
        self.publish();
    }

    /// Waits for events, or for this long.
    pub(crate) fn wait(&mut self, events: &mut Events, patience: Option<Duration>) {
        if let Err(error) = self.poll.poll(events, patience)
            && error.kind() != io::ErrorKind::Interrupted
        {
            warn_limited!(%error, "poll failed");
        }
    }

    /// Does what the events, the other threads and the clock ask for.
    pub(crate) fn turn(&mut self, events: &Events) {
        self.context.now = self.context.common.now();
        for event in events {
            if event.token() != WAKER {
                self.handle_event(event);
            }
        }
        self.handle_mailbox();
        self.handle_line();
        self.handle_timers();
        self.handle_stop();
        self.publish();
    }

    /// How long to wait for events.
    pub(crate) fn patience(&self) -> Option<Duration> {
        if !self.context.line.is_empty() || !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        let stop = match self.stopping {
            Some(deadline) => deadline.min(self.context.now.after(ACKNOWLEDGED)),
            None => Instant::NEVER,
        };
        let next = self.context.timers.next().min(stop).if_ever()?;
        Some(next.since(self.context.common.now()))
    }

    fn handle_event(&mut self, event: &Event) {
        let readiness = Readiness {
            readable: event.is_readable(),
            writable: event.is_writable(),
            ending: event.is_read_closed() || event.is_error(),
            error: event.is_error(),
            urgent: sys::is_urgent(event),
        };
        self.handle_ready(event.token().0, readiness);
    }

    fn handle_ready(&mut self, entry: usize, readiness: Readiness) {
        let context = &mut self.context;
        match self.entries.get_mut(entry).and_then(Option::as_mut) {
            Some(Entry::Stream(stream)) => stream.handle_ready(entry, readiness, context),
            Some(Entry::Datagrams(peers)) => {
                if readiness.writable {
                    peers.flush(entry, context);
                }
                // One that waits for its turn reads when that comes.
                if (readiness.readable || readiness.ending) && !peers.in_line {
                    peers.read(entry, context);
                }
            }
            None => return,
        }
        self.settle(entry);
        self.relieve();
    }

    /// Sees whether what happened to an entry ended it, and when to look at it again.
    fn settle(&mut self, entry: usize) {
        let context = &mut self.context;
        let Some(place) = self.entries.get_mut(entry) else {
            return;
        };
        let done = match place {
            Some(Entry::Stream(stream)) => stream.settle(entry, context),
            Some(Entry::Datagrams(peers)) => {
                // If more peers are due than its turn allowed to close, the others come first.
                let deadline = peers.poll_timeout().max(context.now);
                context.timers.arm(entry, &mut peers.armed, deadline);
                peers.is_done()
            }
            None => return,
        };
        if !done {
            return;
        }
        let Some(mut ended) = place.take() else {
            return;
        };
        context.timers.disarm(*ended.armed());
        match ended {
            Entry::Stream(stream) => stream.finish(entry, context),
            Entry::Datagrams(peers) => peers.finish(),
        }
        self.len -= 1;
        if self.len == 0 {
            self.entries = Vec::new();
        }
        // Events that were under way for it find the next one there, which loses nothing by
        // trying in vain.
        self.context.handle.release_entry(entry as u32);
    }

    /// Does what other threads asked for, in order, for no longer than the time budget: each
    /// command may run a callback.
    fn handle_mailbox(&mut self) {
        let commands = self.context.handle.take_commands();
        if self.backlog.is_empty() {
            self.backlog = commands.into();
        } else {
            self.backlog.extend(commands);
        }
        let budget = self.context.common.budgets.time();
        let until = self.context.now.after(budget);
        while let Some(command) = self.backlog.pop_front() {
            self.handle_command(command);
            if self.context.now >= until {
                break;
            }
        }
        if self.backlog.is_empty() {
            // There may have been many.
            self.backlog = VecDeque::new();
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Attend(place, id) => self.attend(place, id),
            Command::Accept(accepted) => self.accept(accepted),
            Command::Call(shared, permit, handler) => self.call(shared, permit, handler),
            Command::Listen(socket, listening) => {
                let entry = socket.entry();
                let peers = Peers::listening(socket, listening);
                self.adopt(entry, Entry::Datagrams(Box::new(peers)));
            }
            Command::Connect(socket, shared, permit, handler) => {
                self.connect(socket, shared, permit, handler);
            }
            Command::Relieve => {
                self.context.handle.relieved();
                self.relieve();
            }
            Command::Stop(deadline) => self.stop(deadline),
        }
    }

    fn attend(&mut self, place: Place, id: ConnectionId) {
        let entry = place.entry as usize;
        let context = &mut self.context;
        match self.entries.get_mut(entry).and_then(Option::as_mut) {
            Some(Entry::Stream(stream)) if stream.shared.core.id == id => stream.attend(context),
            Some(Entry::Datagrams(peers)) => peers.attend(place, id, context),
            _ => return,
        }
        self.settle(entry);
    }

    /// A stream that was accepted: the application decides whether it becomes a connection.
    fn accept(&mut self, accepted: Accepted) {
        let Accepted {
            stream,
            peer,
            home,
            listener,
            permit,
        } = accepted;
        let context = &mut self.context;
        let shared = match context.common.options.adopt_stream(&stream) {
            Ok(()) => home.share_stream(stream, peer, SendHalf::accepted()),
            Err(error) => Err(error),
        };
        let shared = match shared {
            Ok(shared) => permit.seat(shared),
            Err(error) => {
                // Most often the peer is gone already.
                drop(permit);
                context.tally.accept_failed += 1;
                debug!(%peer, %error, "cannot take over a connection");
                return;
            }
        };
        let id = shared.core.id;
        let entry = shared.core.place().entry;
        let connection = Connection::new(&shared);
        context.output.borrow_mut().begin(id.as_u64());
        let handler = guarded("accepted", id, &mut context.tally, || {
            listener.listening.accept(&connection)
        });
        let mut output = context.output.borrow_mut();
        output.begin(0);
        let Some(handler) = handler.flatten() else {
            // It may have sent something that is not delivered now, or aborted by itself.
            let gathered = output.gathered();
            output.discard(&shared);
            drop(output);
            context.tally.refused += 1;
            if let Action::Reset(_) = shared.turn_away(gathered) {
                shared.reset();
            }
            // A handle that is used right now may keep the socket open a moment longer.
            drop(shared);
            context.handle.release_entry(entry);
            return context.tick();
        };
        output.flush_frames(&shared);
        drop(output);
        context.tick();
        debug!(connection = %id, %peer, "accepted");
        context.tally.accepted += 1;
        let stream = Stream::accepted(shared, handler, context.now);
        self.adopt(entry, Entry::Stream(stream));
    }

    fn call(&mut self, shared: Arc<Shared>, permit: Permit, handler: BoxedHandler) {
        let entry = shared.core.place().entry;
        let stream = Stream::calling(permit.seat(shared), handler, self.context.now);
        self.adopt(entry, Entry::Stream(stream));
    }

    fn connect(
        &mut self,
        socket: Arc<DatagramSocket>,
        shared: Arc<Shared>,
        permit: Permit,
        handler: BoxedHandler,
    ) {
        let entry = socket.entry();
        let seat = permit.seat(shared);
        let peers = Peers::connected(socket, seat, handler, &mut self.context);
        self.adopt(entry, Entry::Datagrams(Box::new(peers)));
    }

    /// From here on the entry gets events. Those that came before were lost, so everything
    /// is tried once.
    fn adopt(&mut self, entry: u32, adopted: Entry) {
        let entry = entry as usize;
        if self.entries.len() <= entry {
            self.entries.resize_with(entry + 1, || None);
        }
        self.entries[entry] = Some(adopted);
        self.len += 1;
        let everything = Readiness {
            readable: true,
            writable: true,
            ending: true,
            error: false,
            // An event may have told of some before.
            urgent: false,
        };
        self.handle_ready(entry, everything);
        if self.stopping.is_some() {
            self.close(entry, true);
        }
    }

    /// Those whose turn had ended go on.
    fn handle_line(&mut self) {
        for _ in 0..self.context.line.len() {
            let Some(entry) = self.context.line.pop_front() else {
                break;
            };
            let entry = entry as usize;
            let context = &mut self.context;
            match self.entries.get_mut(entry).and_then(Option::as_mut) {
                Some(Entry::Stream(stream)) => {
                    stream.in_line = false;
                    stream.resume_reading(entry, context);
                }
                Some(Entry::Datagrams(peers)) => peers.resume(entry, context),
                None => continue,
            }
            self.settle(entry);
            self.relieve();
        }
    }

    fn handle_timers(&mut self) {
        let now = self.context.now;
        while let Some(entry) = self.next_due(now) {
            let context = &mut self.context;
            match self.entries.get_mut(entry).and_then(Option::as_mut) {
                Some(Entry::Stream(stream)) => {
                    stream.armed = Instant::NEVER;
                    stream.handle_timeout(entry, context);
                }
                Some(Entry::Datagrams(peers)) => {
                    peers.armed = Instant::NEVER;
                    peers.handle_timeout(entry, context);
                }
                None => continue,
            }
            self.settle(entry);
        }
    }

    fn next_due(&mut self, now: Instant) -> Option<usize> {
        let entries = &self.entries;
        self.context
            .timers
            .pop(now, |entry| match entries.get(entry)? {
                Some(Entry::Stream(stream)) => Some(stream.armed),
                Some(Entry::Datagrams(peers)) => Some(peers.armed),
                None => None,
            })
    }

    fn stop(&mut self, deadline: Instant) {
        self.stopping = Some(deadline);
        for entry in 0..self.entries.len() {
            self.close(entry, false);
        }
    }

    fn handle_stop(&mut self) {
        let Some(deadline) = self.stopping else {
            return;
        };
        if self.context.now >= deadline {
            for entry in 0..self.entries.len() {
                self.close(entry, true);
            }
        }
        for entry in 0..self.entries.len() {
            if let Some(Some(Entry::Stream(stream))) = self.entries.get_mut(entry) {
                stream.end_if_acknowledged();
                self.settle(entry);
            }
        }
    }

    /// Gives up streams that hold input, those that have held some longest first, as long as all
    /// together hold more than they may and those of this worker more than its share.
    fn relieve(&mut self) {
        while let Some(entry) = self.context.holds_too_long() {
            match self.entries.get_mut(entry) {
                Some(Some(Entry::Stream(stream))) => stream.shared.abort(CloseReason::Overflow),
                _ => self.context.let_go(entry),
            }
            self.settle(entry);
        }
    }

    fn close(&mut self, entry: usize, abort: bool) {
        match self.entries.get_mut(entry).and_then(Option::as_mut) {
            Some(Entry::Stream(stream)) if abort => stream.shared.abort(CloseReason::Local),
            Some(Entry::Stream(stream)) => stream.shared.close(),
            Some(Entry::Datagrams(peers)) => peers.stop(abort, &mut self.context),
            None => return,
        }
        self.settle(entry);
    }

    /// Adds to the counters what this turn has counted.
    fn publish(&mut self) {
        let totals = &self.context.common.totals;
        self.context.tally.publish(totals);
        self.context.output.borrow_mut().tally.publish(totals);
    }
}
