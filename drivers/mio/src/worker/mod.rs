//! A worker: a thread with a poll of its own, which runs the callbacks of the connections
//! that were given to it for life.

pub(crate) mod accept;
mod accepting;
pub(crate) mod budget;
pub(crate) mod handle;
pub(crate) mod listener;
pub(crate) mod mailbox;
pub(crate) mod resources;
mod source;
pub(crate) mod task;
pub(crate) mod thread;
pub(crate) mod timers;
pub(crate) mod wake;

use crate::batch::Entered;
use crate::conn::info::Conn;
use crate::conn::key::ConnKey;
use crate::conn::permit::Permit;
use crate::log::warn_limited;
use crate::sys::{self, Alarm};
use crate::tcp::shared::StreamShared;
use crate::tcp::stream::{Readiness, Stream};
use crate::udp::peers::Peers;
use crate::udp::socket::PeerShared;
use crate::user_callback::run_callback;
use crate::worker::handle::{ALARM, LISTENER, PostedTask, WAKER, WorkerHandle};
use crate::worker::listener::AcceptSocket;
use crate::worker::mailbox::{BoxedHandler, Command, Mailbox};
use crate::worker::resources::{HANDSHAKES, WorkerResources};
use crate::worker::source::Source;
use crate::worker::thread::enter_network_thread;
use cubenet_core::{CloseReason, ConnectionId, Instant};
use mio::event::Event;
use mio::{Events, Poll, Token};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Events taken from the poll at once.
const POLL_CAPACITY: usize = 1024;
/// How often a worker that stops asks whether what it sent has been acknowledged.
const ACKNOWLEDGED: Duration = Duration::from_millis(10);

/// Whether an event is of a listener that several workers watch.
fn is_listener(token: Token) -> bool {
    token.0 & LISTENER != 0 && token != WAKER && token != ALARM
}

/// What other threads ask of a worker, in the order in which it is done.
enum Task {
    Command(Command),
    Wake(ConnKey, ConnectionId),
}

/// The state of a worker's thread.
pub(crate) struct Worker {
    poll: Poll,
    /// Ends a wait; `None` where waits have timeouts.
    alarm: Option<Alarm>,
    mailbox: Arc<Mailbox>,
    /// By their tokens.
    sources: Vec<Option<Source>>,
    /// How many sources there are.
    len: usize,
    resources: WorkerResources,
    /// Tasks that were taken over from other threads and have not been done.
    tasks: VecDeque<Task>,
    /// Work of the application's that has not been done. It comes behind all tasks.
    runs: VecDeque<PostedTask>,
    /// When what is left is aborted, once the network stops.
    stopping: Option<Instant>,
}

impl Worker {
    /// To be made on the worker's own thread.
    pub(crate) fn new(
        poll: Poll,
        mailbox: Arc<Mailbox>,
        workers: Arc<[Arc<WorkerHandle>]>,
    ) -> Self {
        let resources = WorkerResources::new(Arc::clone(&mailbox.worker), workers);
        Worker {
            alarm: Alarm::new(poll.registry(), ALARM, resources.network.origin()).ok(),
            poll,
            sources: Vec::new(),
            len: 0,
            resources,
            mailbox,
            tasks: VecDeque::new(),
            runs: VecDeque::new(),
            stopping: None,
        }
    }

    /// Works until the network stops.
    pub(crate) fn run(&mut self) {
        enter_network_thread();
        let mut events = Events::with_capacity(POLL_CAPACITY);
        while self.stopping.is_none() || self.len > 0 {
            if !self.spin(&mut events) {
                let timeout = self.covered_timeout();
                self.wait(&mut events, timeout);
            }
            self.iterate(&events);
        }
        // The commands posted before the mailbox closed are still handled; their connections are
        // closed too.
        let last = self.mailbox.close();
        self.tasks.extend(last.into_iter().map(Task::Command));
        while let Some(task) = self.tasks.pop_front() {
            self.handle_task(task);
        }
        drop(self.resources.handle.close_tasks());
    }

    /// Asks for events over and over for as long as the network is configured to, before the thread
    /// sleeps. Returns whether there are any.
    fn spin(&mut self, events: &mut Events) -> bool {
        let spin = self.resources.network.spin;
        // A timer may come first.
        let spin = spin.min(self.poll_timeout().unwrap_or(Duration::MAX));
        if spin.is_zero() {
            return false;
        }
        let until = self.resources.now.after(spin);
        loop {
            self.wait(events, Some(Duration::ZERO));
            if !events.is_empty() {
                return true;
            }
            self.resources.tick();
            if self.resources.now >= until {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Waits for events, or for this long.
    pub(crate) fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) {
        if let Err(error) = self.poll.poll(events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            warn_limited!(%error, "poll failed");
        }
    }

    /// Does what the events, the other threads and the clock ask for.
    pub(crate) fn iterate(&mut self, events: &Events) {
        self.resources.tick();
        self.resources.handshakes = HANDSHAKES;
        self.resources.handle.begins(self.resources.now);
        // New connections first: no other worker was woken for them, and a callback may block.
        for event in events {
            let token = event.token();
            if is_listener(token) {
                self.handle_ready(token.0 & !LISTENER, Readiness::default());
            }
        }
        let mut woken = false;
        for event in events {
            if event.token() == WAKER {
                woken = true;
            } else if event.token() == ALARM {
                self.alarm.iter_mut().for_each(Alarm::went_off);
            } else if !is_listener(event.token()) {
                self.handle_event(event);
            }
        }
        // A thread that leaves something for this worker wakes it. Tasks may be left over.
        if woken || self.has_tasks() {
            self.handle_tasks();
        }
        self.handle_run_queue();
        self.handle_timers();
        self.handle_stop();
        // The clock was read behind the last callback.
        self.resources.handle.rests(self.resources.now);
    }

    /// How long to wait for events.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        if !self.resources.run_queue.is_empty() || self.has_tasks() {
            return Some(Duration::ZERO);
        }
        let stop = match self.stopping {
            Some(deadline) if deadline <= self.resources.now => {
                // What is left is another worker's to end.
                self.resources.now.after(ACKNOWLEDGED)
            }
            Some(deadline) => deadline.min(self.resources.now.after(ACKNOWLEDGED)),
            None => Instant::NEVER,
        };
        let next = self.resources.timers.next().min(stop).if_ever()?;
        // The clock was read after the last callback; what has passed since is no matter.
        Some(next.since(self.resources.now))
    }

    /// The same beside the alarm, which is set for it.
    fn covered_timeout(&mut self) -> Option<Duration> {
        let timeout = self.poll_timeout();
        match &mut self.alarm {
            Some(alarm) => alarm.cover(timeout, self.resources.now),
            None => timeout,
        }
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

    fn handle_ready(&mut self, token: usize, readiness: Readiness) {
        let resources = &mut self.resources;
        match self.sources.get_mut(token).and_then(Option::as_mut) {
            Some(Source::Stream(stream)) => stream.handle_ready(token, readiness, resources),
            Some(Source::Datagrams(peers)) => {
                if readiness.writable {
                    peers.flush(token, resources);
                }
                // One that is in the run queue reads when its place there comes.
                if (readiness.readable || readiness.ending) && !peers.scheduled {
                    peers.read(token, resources);
                }
            }
            Some(Source::Listener(listener)) => {
                if !listener.scheduled && !listener.waits() {
                    self.accept_streams(token);
                }
            }
            None => return,
        }
        self.after_io(token);
        self.relieve();
    }

    /// Sees whether what happened to a source ended it, and when to look at it again.
    fn after_io(&mut self, token: usize) {
        let resources = &mut self.resources;
        let Some(place) = self.sources.get_mut(token) else {
            return;
        };
        let done = match place {
            Some(Source::Stream(stream)) => stream.after_io(token, resources),
            Some(Source::Datagrams(peers)) => {
                // If more peers are due than the budget allowed to close, the others come first.
                let deadline = peers.poll_timeout().max(resources.now);
                resources.timers.arm(token, &mut peers.armed, deadline);
                peers.is_done()
            }
            Some(Source::Listener(listener)) => {
                let deadline = listener.poll_timeout();
                resources.timers.arm(token, &mut listener.armed, deadline);
                listener.is_done()
            }
            None => return,
        };
        if !done {
            return;
        }
        let Some(mut ended) = place.take() else {
            return;
        };
        resources.timers.disarm(*ended.armed());
        match ended {
            Source::Stream(stream) => stream.finish(token, resources),
            Source::Datagrams(peers) => peers.finish(),
            Source::Listener(_) => {}
        }
        self.len -= 1;
        self.trim_sources();
        // The token is reused. A stale event may reach the new socket; that costs one
        // `WouldBlock`.
        self.resources.handle.release_token(token as u32);
    }

    /// Whether something that other threads asked for has not been done.
    fn has_tasks(&self) -> bool {
        !self.tasks.is_empty() || !self.runs.is_empty()
    }

    /// Gives back the memory behind the last source, if that is most of it.
    fn trim_sources(&mut self) {
        while let Some(None) = self.sources.last() {
            self.sources.pop();
        }
        if self.sources.capacity() > 4 * self.sources.len() {
            self.sources.shrink_to(2 * self.sources.len());
        }
    }

    /// Does what other threads asked for, in order, for no longer than the time budget: each
    /// task may run a callback.
    fn handle_tasks(&mut self) {
        // Most connections are handed over before their first wake. So the wakes are taken first,
        // and done last; `connect_stream` and `connect_datagrams` see to the others.
        let (wakes, tasks) = self.resources.handle.take_wakes();
        let commands = self.mailbox.take().into_iter().map(Task::Command);
        self.tasks.extend(commands);
        let wakes = wakes.into_iter().map(|(key, id)| Task::Wake(key, id));
        self.tasks.extend(wakes);
        self.runs.extend(tasks);
        let until = self
            .resources
            .now
            .after(self.resources.network.budgets.time());
        while let Some(task) = self.tasks.pop_front() {
            self.handle_task(task);
            if self.resources.now >= until {
                break;
            }
        }
        if self.stopping.is_some() {
            drop(std::mem::take(&mut self.runs));
        }
        if self.tasks.is_empty() && !self.runs.is_empty() {
            // What they send leaves together.
            let _batch = Entered::new();
            while let Some(run) = self.runs.pop_front() {
                self.run_task(run);
                if self.resources.now >= until {
                    break;
                }
            }
        }
        if self.tasks.is_empty() {
            // There may have been many.
            self.tasks = VecDeque::new();
        }
        if self.runs.is_empty() {
            self.runs = VecDeque::new();
        }
        if self.resources.handle.take_relief() {
            self.relieve();
        }
    }

    fn handle_task(&mut self, task: Task) {
        match task {
            Task::Wake(key, id) => self.wake(key, id),
            Task::Command(Command::Accept(accepted)) => self.accept(accepted),
            Task::Command(Command::ConnectStream(shared, permit, handler)) => {
                self.connect_stream(shared, permit, handler);
            }
            Task::Command(Command::ListenStreams(listener, nth, targets)) => {
                let token = listener.place(nth).token;
                let socket = AcceptSocket::new(listener, nth, targets);
                self.adopt(token, Source::Listener(Box::new(socket)));
            }
            Task::Command(Command::Listen(socket, listening)) => {
                let token = socket.token();
                let peers = Peers::listening(socket, listening);
                self.adopt(token, Source::Datagrams(Box::new(peers)));
            }
            Task::Command(Command::ConnectDatagrams(shared, permit, handler)) => {
                self.connect_datagrams(shared, permit, handler);
            }
            Task::Command(Command::Stop(deadline)) => self.stop(deadline),
        }
    }

    fn wake(&mut self, key: ConnKey, id: ConnectionId) {
        let token = key.token as usize;
        let resources = &mut self.resources;
        match self.sources.get_mut(token).and_then(Option::as_mut) {
            Some(Source::Stream(stream)) if stream.id() == id => stream.wake(resources),
            Some(Source::Datagrams(peers)) => peers.wake(key, id, resources),
            // It was closed, or is left to another process.
            Some(Source::Listener(listener)) if listener.id() == id => {
                if listener.is_leaving() && !listener.is_done() {
                    self.accept_streams(token);
                }
            }
            _ => return,
        }
        self.after_io(token);
    }

    /// Runs a task of the application's on its connection, if that is there.
    fn run_task(&mut self, (key, id, task): PostedTask) {
        let token = key.token as usize;
        let resources = &mut self.resources;
        let source = self.sources.get_mut(token).and_then(Option::as_mut);
        let Some(source) = source.filter(|source| source.has(key, id)) else {
            return;
        };
        resources.tick();
        let began = resources.now;
        let counts = source.counts();
        let done = run_callback("run_on_worker", id, counts, || task.run(began));
        resources.tick();
        counts.handler_time.record(began, resources.now);
        match source {
            Source::Stream(stream) if done.is_none() => stream.abort(CloseReason::Panicked),
            Source::Datagrams(peers) => peers.after_task(key, done.is_none(), resources),
            Source::Stream(_) | Source::Listener(_) => {}
        }
        self.after_io(token);
    }

    fn connect_stream(&mut self, shared: Arc<StreamShared>, permit: Permit, handler: BoxedHandler) {
        let token = shared.key().token;
        // It may have been asked for before it came.
        shared.info().wake.answered();
        shared.info().set_handed_over(true);
        let is_layered = shared.is_layered();
        let mut stream = Stream::connecting(permit.attach(shared), handler, self.resources.now);
        if is_layered {
            stream = stream.with_layers();
        }
        self.adopt(token, Source::Stream(stream));
    }

    fn connect_datagrams(
        &mut self,
        shared: Arc<PeerShared>,
        permit: Permit,
        handler: BoxedHandler,
    ) {
        let token = shared.key().token;
        shared.info().wake.answered();
        shared.info().set_handed_over(true);
        shared.socket.wake.answered();
        let peers = Peers::connected(permit.attach(shared), handler, &mut self.resources);
        self.adopt(token, Source::Datagrams(Box::new(peers)));
    }

    /// From here on the source gets events. Those that came before were lost, so everything
    /// is tried once.
    fn adopt(&mut self, token: u32, adopted: Source) {
        let token = token as usize;
        if self.sources.len() <= token {
            self.sources.resize_with(token + 1, || None);
        }
        self.sources[token] = Some(adopted);
        self.len += 1;
        let everything = Readiness {
            readable: true,
            writable: true,
            ending: true,
            error: false,
            // An event may have announced some before.
            urgent: false,
        };
        self.handle_ready(token, everything);
        if self.stopping.is_some() {
            self.close(token, true);
        }
    }

    /// Those that used up their budget go on.
    fn handle_run_queue(&mut self) {
        for _ in 0..self.resources.run_queue.len() {
            let Some(token) = self.resources.run_queue.pop_front() else {
                break;
            };
            let token = token as usize;
            let resources = &mut self.resources;
            match self.sources.get_mut(token).and_then(Option::as_mut) {
                Some(Source::Stream(stream)) => stream.resume(token, resources),
                Some(Source::Datagrams(peers)) => peers.resume(token, resources),
                Some(Source::Listener(listener)) => {
                    listener.scheduled = false;
                    if !listener.waits() {
                        self.accept_streams(token);
                    }
                }
                None => continue,
            }
            self.after_io(token);
            self.relieve();
        }
    }

    fn handle_timers(&mut self) {
        let now = self.resources.now;
        while let Some(token) = self.next_due(now) {
            let resources = &mut self.resources;
            match self.sources.get_mut(token).and_then(Option::as_mut) {
                Some(Source::Stream(stream)) => {
                    stream.armed = Instant::NEVER;
                    stream.handle_timeout(token, resources);
                }
                Some(Source::Datagrams(peers)) => {
                    peers.armed = Instant::NEVER;
                    peers.handle_timeout(token, resources);
                }
                Some(Source::Listener(listener)) => {
                    listener.armed = Instant::NEVER;
                    listener.handle_timeout(resources.now);
                    if !listener.scheduled && !listener.waits() {
                        self.accept_streams(token);
                    }
                }
                None => continue,
            }
            self.after_io(token);
        }
    }

    fn next_due(&mut self, now: Instant) -> Option<usize> {
        let sources = &self.sources;
        self.resources
            .timers
            .pop(now, |token| match sources.get(token)? {
                Some(Source::Stream(stream)) => Some(stream.armed),
                Some(Source::Datagrams(peers)) => Some(peers.armed),
                Some(Source::Listener(listener)) => Some(listener.armed),
                None => None,
            })
    }

    fn stop(&mut self, deadline: Instant) {
        self.stopping = Some(deadline);
        for token in 0..self.sources.len() {
            self.close(token, false);
        }
    }

    fn handle_stop(&mut self) {
        let Some(deadline) = self.stopping else {
            return;
        };
        if self.resources.now >= deadline {
            for token in 0..self.sources.len() {
                self.close(token, true);
            }
        }
        for token in 0..self.sources.len() {
            if let Some(Some(Source::Stream(stream))) = self.sources.get_mut(token) {
                stream.end_if_acknowledged();
                self.after_io(token);
            }
        }
    }

    /// Closes streams that hold input, those that have held some longest first, as long as all
    /// together hold more than they may and those of this worker more than its share.
    fn relieve(&mut self) {
        while let Some(token) = self.resources.holds_too_long() {
            match self.sources.get_mut(token) {
                Some(Some(Source::Stream(stream))) => stream.abort(CloseReason::Overflow),
                _ => self.resources.let_go(token),
            }
            self.after_io(token);
        }
    }

    fn close(&mut self, token: usize, abort: bool) {
        match self.sources.get_mut(token).and_then(Option::as_mut) {
            Some(Source::Stream(stream)) if abort => stream.abort(CloseReason::Local),
            Some(Source::Stream(stream)) => stream.close(),
            Some(Source::Datagrams(peers)) => peers.stop(abort, &mut self.resources),
            Some(Source::Listener(listener)) => listener.close(),
            None => return,
        }
        self.after_io(token);
    }
}
