//! A worker: a thread with a poll of its own, which runs the callbacks of the connections
//! that were given to it for life.

use crate::common::Common;
use crate::connection::Connection;
use crate::datagram::DatagramSocket;
use crate::link::guarded;
use crate::mailbox::{AcceptFn, Command, ConnectFn, WAKER, WorkerHandle};
use crate::metrics::Tally;
use crate::output::Output;
use crate::peers::Peers;
use crate::shared::{Core, Place, Shared};
use crate::stream::{Readiness, Stream};
use crate::sys::ReceiveBatch;
use crate::timers::Timers;
use crate::trouble::warn_limited;
use bytes::Bytes;
use cubenet_core::{CloseReason, ConnectionId, Instant, Sender, Timeout, Transport};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Poll};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Events taken from the poll at once.
const POLL_CAPACITY: usize = 1024;
/// Bytes read from a stream at once: the longest frame and as much again, so that long
/// frames are seldom cut by the end of a read and put together elsewhere.
const INPUT: usize = 1 << 17;

/// What the connections of a worker have in common while one of them is dealt with.
pub(crate) struct Context {
    pub(crate) common: Arc<Common>,
    handle: Arc<WorkerHandle>,
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
    /// The callbacks of those that are being called.
    pub(crate) calls: HashMap<ConnectionId, ConnectFn>,
    /// What the system said to those calls that failed.
    pub(crate) call_errors: HashMap<ConnectionId, io::Error>,
    /// What was read of streams and not delivered, because they were paused.
    pub(crate) parked: HashMap<usize, Bytes>,
}

impl Context {
    /// Gives an entry another turn, after all the others.
    pub(crate) fn line_up(&mut self, entry: usize, in_line: &mut bool) {
        if !std::mem::replace(in_line, true) {
            self.line.push_back(entry as u32);
        }
    }

    /// There is a connection more, for which room was made.
    pub(crate) fn taken(&mut self) {
        self.handle.load.fetch_add(1, Relaxed);
    }

    /// A connection has closed: tells of it and counts it.
    pub(crate) fn closed(&mut self, core: &Core, reason: CloseReason) {
        let (id, peer) = (core.id, core.peer());
        match reason {
            CloseReason::Protocol(_)
            | CloseReason::Overflow
            | CloseReason::Io
            | CloseReason::Timeout(Timeout::WriteStall | Timeout::Drain | Timeout::Frame) => {
                warn_limited!(connection = %id, %peer, %reason, "closed in trouble");
            }
            _ => tracing::debug!(connection = %id, %peer, %reason, "closed"),
        }
        self.common.totals.closed_by[reason.kind()].fetch_add(1, Relaxed);
        self.dropped();
    }

    /// What was counted as a connection is none.
    pub(crate) fn dropped(&mut self) {
        self.common.release();
        self.handle.load.fetch_sub(1, Relaxed);
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
    /// When what is left is aborted, once the network stops.
    stopping: Option<Instant>,
}

impl Worker {
    /// To be made on the worker's own thread.
    pub(crate) fn new(poll: Poll, handle: Arc<WorkerHandle>) -> Self {
        let common = Arc::clone(&handle.common);
        Worker {
            poll,
            entries: Vec::new(),
            len: 0,
            context: Context {
                now: common.now(),
                handle,
                input: vec![0; INPUT].into_boxed_slice(),
                datagrams_in: None,
                output: Output::of_worker(Arc::clone(&common)),
                tally: Tally::default(),
                timers: Timers::default(),
                line: VecDeque::new(),
                calls: HashMap::new(),
                call_errors: HashMap::new(),
                parked: HashMap::new(),
                common,
            },
            stopping: None,
        }
    }

    /// Works until the network stops.
    pub(crate) fn run(&mut self) {
        let mut events = Events::with_capacity(POLL_CAPACITY);
        while self.stopping.is_none() || self.len > 0 {
            self.wait(&mut events, self.patience());
            self.turn(&events);
        }
        // Who came just in time is closed like everybody else; who comes later is told so.
        let last = self.context.handle.mailbox().take();
        self.handle_commands(last.unwrap_or_default());
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
        if !self.context.line.is_empty() {
            return Some(Duration::ZERO);
        }
        let stop = self.stopping.unwrap_or(Instant::NEVER);
        let next = self.context.timers.next().min(stop).if_ever()?;
        Some(next.since(self.context.common.now()))
    }

    fn handle_event(&mut self, event: &Event) {
        let readiness = Readiness {
            readable: event.is_readable(),
            writable: event.is_writable(),
            ending: event.is_read_closed() || event.is_error(),
            error: event.is_error(),
        };
        self.handle_ready(event.token().0, readiness);
    }

    fn handle_ready(&mut self, entry: usize, readiness: Readiness) {
        let context = &mut self.context;
        match self.entries.get_mut(entry).and_then(Option::as_mut) {
            Some(Entry::Stream(stream)) => stream.handle_ready(entry, readiness, context),
            Some(Entry::Datagrams(peers)) => {
                if readiness.writable {
                    peers.flush(context);
                }
                if readiness.readable || readiness.ending {
                    peers.read(entry, context);
                }
            }
            None => return,
        }
        self.settle(entry);
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
                let deadline = peers.poll_timeout();
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

    fn handle_mailbox(&mut self) {
        let commands = self.context.handle.mailbox().replace(Vec::new());
        self.handle_commands(commands.unwrap_or_default());
    }

    fn handle_commands(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Attend(place, id) => self.attend(place, id),
                Command::Accept(stream, peer, accept) => self.accept(stream, peer, &*accept),
                Command::Call(shared, connected) => self.call(shared, connected),
                Command::Listen(socket, accept) => {
                    let entry = socket.entry();
                    let peers = Peers::listening(socket, accept);
                    self.adopt(entry, Entry::Datagrams(Box::new(peers)));
                }
                Command::Connect(socket, shared, connected) => {
                    self.connect(socket, shared, connected);
                }
                Command::Stop(deadline) => self.stop(deadline),
            }
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
    fn accept(&mut self, stream: TcpStream, peer: SocketAddr, accept: &AcceptFn) {
        let handle = Arc::clone(&self.context.handle);
        let options = &handle.common.options;
        let sender = Sender::accepted(Transport::Tcp);
        let shared = match options.adopt_stream(&stream) {
            Ok(()) => handle.share_stream(stream, peer, sender),
            Err(error) => Err(error),
        };
        let shared = match shared {
            Ok(shared) => shared,
            Err(error) => {
                // Most often the peer is gone already.
                tracing::debug!(%peer, %error, "cannot take over a connection");
                self.context.tally.accept_failed += 1;
                return self.context.dropped();
            }
        };
        let context = &mut self.context;
        let id = shared.core.id;
        let connection = Connection::new(&shared);
        context.output.borrow_mut().begin(id.0);
        let handler = guarded("accepted", id, &mut context.tally, || accept(&connection));
        let mut output = context.output.borrow_mut();
        output.begin(0);
        let Some(handler) = handler.flatten() else {
            output.discard_frames();
            drop(output);
            context.tally.refused += 1;
            context.dropped();
            shared.locked(|_, out| out.sender.abort(CloseReason::Local));
            let entry = shared.core.place().entry;
            drop(shared);
            handle.release_entry(entry);
            return;
        };
        output.flush_frames(&shared);
        drop(output);
        tracing::debug!(connection = %id, %peer, "accepted");
        context.tally.accepted += 1;
        let entry = shared.core.place().entry;
        let stream = Stream::accepted(shared, handler, &handle.common.limits, context.now);
        self.adopt(entry, Entry::Stream(stream));
    }

    fn call(&mut self, shared: Arc<Shared>, connected: ConnectFn) {
        let context = &mut self.context;
        context.calls.insert(shared.core.id, connected);
        let entry = shared.core.place().entry;
        let stream = Stream::calling(shared, &context.common.limits, context.now);
        self.adopt(entry, Entry::Stream(stream));
    }

    fn connect(&mut self, socket: Arc<DatagramSocket>, shared: Arc<Shared>, connected: ConnectFn) {
        let entry = socket.entry();
        let context = &mut self.context;
        let peers = Peers::connected(socket, shared, connected, context);
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
                Some(Entry::Datagrams(peers)) => {
                    peers.in_line = false;
                    peers.read(entry, context);
                }
                None => continue,
            }
            self.settle(entry);
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
        if self
            .stopping
            .is_some_and(|deadline| self.context.now >= deadline)
        {
            for entry in 0..self.entries.len() {
                self.close(entry, true);
            }
        }
    }

    fn close(&mut self, entry: usize, abort: bool) {
        match self.entries.get_mut(entry).and_then(Option::as_mut) {
            Some(Entry::Stream(stream)) if abort => stream.shared.abort(),
            Some(Entry::Stream(stream)) => stream.shared.close_said(),
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
