//! A stream connection, as its worker keeps it: connecting, writing what waits, and seeing the
//! connection through its life. `read` has the reading.

use crate::conn::info::Conn;
use crate::conn::permit::Owned;
use crate::log::{debug, warn_limited};
use crate::metrics::Counts;
use crate::sys;
use crate::tcp::link::StreamLink;
use crate::tcp::send_state::failure;
use crate::tcp::shared::StreamShared;
use crate::user_callback::run_callback;
use crate::worker::accept::accept;
use crate::worker::mailbox::BoxedHandler;
use crate::worker::resources::{WorkerResources, count_closed};
use cubenet_core::{
    Action, CloseReason, ConnectError, ConnectionId, Decoder, Growing, Handler, Instant, Layered,
    Link, Message, Reading, RecvHalf, SendHalf, State, Timeout, Transport, connection,
};
use std::io;
use std::sync::Arc;

/// What an event said about a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer's FIN, or an error, waits behind what can be read.
    pub(crate) ending: bool,
    pub(crate) error: bool,
    /// There is urgent data, at which reads stop.
    pub(crate) urgent: bool,
}

/// What the worker's resources keep of a stream's input.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Holds {
    Nothing,
    /// The count of what has arrived of a frame.
    Partial,
    /// That, and bytes that were read and not delivered.
    Undelivered,
}

/// What is known of a stream, one bit each: every idle connection has it.
#[derive(Clone, Copy, Default)]
pub(super) struct Marks(u8);

impl Marks {
    /// A message has come.
    pub(super) const RECEIVED: Marks = Marks(1);
    /// Its callbacks took little time when they ran last.
    pub(super) const QUICK: Marks = Marks(2);
    /// The application did not want it, once its handshake was complete.
    pub(super) const REFUSED: Marks = Marks(4);

    pub(super) fn has(self, mark: Marks) -> bool {
        self.0 & mark.0 != 0
    }

    pub(super) fn set(&mut self, mark: Marks) {
        self.0 |= mark.0;
    }

    /// Sets a mark or takes it away.
    pub(super) fn set_to(&mut self, mark: Marks, is_set: bool) {
        self.0 &= !mark.0;
        if is_set {
            self.set(mark);
        }
    }
}

/// A stream connection and its handler.
pub(crate) struct Stream {
    pub(super) shared: Owned<StreamShared>,
    pub(super) handler: BoxedHandler,
    pub(super) recv: RecvHalf<Decoder<Growing>>,
    /// When its timer is set to.
    pub(crate) armed: Instant,
    /// It is in the run queue.
    pub(super) scheduled: bool,
    /// What the worker's resources keep of its input.
    pub(super) holds: Holds,
    /// A message was delivered since what is held was counted last.
    pub(super) progressed: bool,
    /// An event announced the peer's FIN, and it has not been read. There is no other.
    pub(super) peer_ending: bool,
    /// The peer has sent urgent data: a short read does not mean that there is no more.
    pub(super) urgent: bool,
    /// It has layers, under its lock.
    pub(super) is_layered: bool,
    /// What is known of it besides.
    pub(super) marks: Marks,
}

/// The handler of a connection that the application has not been asked about. It has no size.
struct NotAsked;

impl Handler for NotAsked {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {
        debug_assert!(
            false,
            "nothing is delivered before the handshake is complete"
        );
    }
}

impl Stream {
    /// A connection that was accepted.
    pub(crate) fn accepted(
        shared: Owned<StreamShared>,
        handler: BoxedHandler,
        now: Instant,
    ) -> Self {
        let decoder = Decoder::new(Growing::new(), shared.limits().max_message());
        Stream {
            recv: RecvHalf::accepted(decoder, now),
            ..Stream::connecting(shared, handler, now)
        }
    }

    /// A connection whose handshake has begun.
    pub(crate) fn connecting(
        shared: Owned<StreamShared>,
        handler: BoxedHandler,
        now: Instant,
    ) -> Self {
        let decoder = Decoder::new(Growing::new(), shared.limits().max_message());
        Stream {
            shared,
            handler,
            recv: RecvHalf::connecting(decoder, now),
            armed: Instant::NEVER,
            scheduled: false,
            holds: Holds::Nothing,
            progressed: false,
            peer_ending: false,
            urgent: false,
            is_layered: false,
            marks: Marks::default(),
        }
    }

    /// The same with layers, whose handshake comes first.
    pub(crate) fn with_layers(mut self) -> Self {
        self.is_layered = true;
        self
    }

    /// A connection that was accepted, and about which the application is asked once the handshake
    /// of its layers is complete.
    pub(crate) fn handshaking(shared: Owned<StreamShared>, now: Instant) -> Self {
        Stream::accepted(shared, Box::new(NotAsked), now).with_layers()
    }

    /// The transport is connected: the layers begin.
    pub(crate) fn begin_layers(&mut self, token: usize, resources: &mut WorkerResources) {
        let now = resources.now;
        self.change_handshake(token, resources, |layered, recv, half, wire| {
            layered.begin(recv, half, now, wire)
        });
    }

    /// Changes the layers in a way that may complete their handshake.
    pub(super) fn change_handshake(
        &mut self,
        token: usize,
        resources: &mut WorkerResources,
        change: impl FnOnce(
            &mut Layered,
            &mut RecvHalf<Decoder<Growing>>,
            &mut SendHalf,
            &mut Vec<u8>,
        ) -> Option<bool>,
    ) {
        let recv = &mut self.recv;
        let established = StreamShared::with(&mut self.shared, |conn, send| {
            let established = send.change_layers(conn, |layered, half, wire| {
                change(layered, recv, half, wire)
            })?;
            if established.is_some() {
                send.layers()?.is_established = true;
            }
            established
        });
        if established == Some(true) {
            self.established(token, resources);
            // What waited for the handshake has made room.
            self.flush(resources);
        }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.shared.info().id
    }

    /// Whether it is over: nothing more is delivered either way.
    pub(crate) fn has_closed(&self) -> bool {
        self.state() == State::Closed
    }

    pub(super) fn state(&self) -> State {
        self.shared.info().state()
    }

    /// Changes the sending half.
    pub(super) fn with_half<R>(&mut self, change: impl FnOnce(&mut SendHalf) -> R) -> R {
        StreamShared::with(&mut self.shared, |_, send| change(&mut send.half))
    }

    pub(crate) fn close(&self) {
        self.shared.close();
    }

    pub(crate) fn abort(&self, reason: CloseReason) {
        self.shared.abort(reason);
    }

    /// The socket failed.
    pub(super) fn fail(&mut self, error: io::Error) {
        StreamShared::with(&mut self.shared, |_, send| send.fail(error));
    }

    /// Does what an event made possible.
    pub(crate) fn handle_ready(
        &mut self,
        token: usize,
        readiness: Readiness,
        resources: &mut WorkerResources,
    ) {
        self.peer_ending |= readiness.ending;
        self.urgent |= readiness.urgent;
        self.try_establish(token, resources);
        if !self.state().is_connected() {
            return;
        }
        if readiness.writable && self.shared.info().queued() > 0 {
            self.flush(resources);
        }
        // One that is in the run queue reads when its place there comes.
        if (readiness.readable || readiness.ending) && !self.scheduled {
            self.read(token, resources);
        }
        if readiness.error && self.recv.is_paused() {
            self.take_error();
        }
    }

    /// If the peer has yet to answer: whether it has, and how.
    fn try_establish(&mut self, token: usize, resources: &mut WorkerResources) {
        if !self.state().is_connecting() {
            return;
        }
        let now = resources.now;
        let error = match sys::take_error(&self.shared.stream) {
            Ok(None) => match sys::peer_addr(&self.shared.stream) {
                Ok(_) => None,
                // Neither answered nor refused: it was about something else.
                Err(_) => return,
            },
            Ok(Some(error)) | Err(error) => Some(error),
        };
        if let Some(error) = error {
            let reason = match error.kind() {
                io::ErrorKind::TimedOut => CloseReason::Timeout(Timeout::Connect),
                _ => failure(&error),
            };
            self.abort(reason);
            return self.fail(error);
        }
        if self.is_layered {
            self.with_half(|half| half.handle_transport_connected(now));
            self.begin_layers(token, resources);
            return self.flush(resources);
        }
        let recv = &mut self.recv;
        let is_open = StreamShared::with(&mut self.shared, |_, send| {
            connection::handle_connected(recv, &mut send.half, now)
        });
        if is_open {
            self.connected(resources);
        }
        self.flush(resources);
    }

    /// The peer has completed the handshake, that of the layers included.
    fn connected(&mut self, resources: &mut WorkerResources) {
        debug!(connection = %self.id(), peer = %self.shared.info().peer_addr(), "connected");
        self.counts().connected.count();
        self.call("connected", resources, |handler, link| {
            handler.connected(link);
        });
    }

    /// The handshake of the layers is complete: asks the application about a connection that was
    /// accepted, and tells it of one that this side opened.
    fn established(&mut self, token: usize, resources: &mut WorkerResources) {
        match resources.unasked.remove(&token) {
            None => self.connected(resources),
            Some(listening) => match accept(&self.shared, &listening, resources) {
                Some(handler) => self.handler = handler,
                None => self.marks.set(Marks::REFUSED),
            },
        }
    }

    /// Runs a callback, and hands over what it has sent.
    fn call(
        &mut self,
        what: &str,
        resources: &mut WorkerResources,
        callback: impl FnOnce(&mut dyn Handler, &mut dyn Link),
    ) {
        let id = self.id();
        resources.tick();
        let began = resources.now;
        resources.batch.borrow_mut().begin(id.as_u64());
        let mut link = StreamLink {
            shared: &self.shared,
            batch: &resources.batch,
            now: began,
        };
        let handler = &mut *self.handler;
        let done = run_callback(what, id, &self.shared.home().counts, || {
            callback(handler, &mut link);
        });
        self.after_callbacks(began, done.is_some(), resources);
    }

    /// Callbacks have run, from this moment on: hands over what they have sent, unless one has panicked.
    pub(super) fn after_callbacks(
        &mut self,
        began: Instant,
        went_well: bool,
        resources: &mut WorkerResources,
    ) {
        let mut batch = resources.batch.borrow_mut();
        batch.end();
        if !went_well {
            batch.discard_frames(&self.shared);
            self.with_half(|half| half.abort(CloseReason::Panicked));
        } else if batch.gathered() > 0 {
            StreamShared::with(&mut self.shared, |conn, send| batch.transmit(conn, send));
        }
        drop(batch);
        resources.tick();
        self.counts().handler_time.record(began, resources.now);
    }

    /// Numbers of its listener's connections, or of those that the network has opened.
    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.home().counts
    }

    /// Writes what waits, and tells a handler that waited for room.
    fn flush(&mut self, resources: &mut WorkerResources) {
        let now = resources.now;
        let writable = StreamShared::with(&mut self.shared, |conn, send| {
            send.flush(conn, now);
            send.half.poll_writable(conn.backlog(), conn.limits())
        });
        if writable {
            self.call("writable", resources, |handler, link| {
                handler.writable(link);
            });
        }
    }

    /// A connection that is not read can still see a reset.
    fn take_error(&mut self) {
        if let Ok(Some(error)) = sys::take_error(&self.shared.stream) {
            self.fail(error);
        }
    }

    /// A thread asked for it to be looked at: it began to wait, or to close.
    pub(crate) fn wake(&mut self, resources: &mut WorkerResources) {
        self.shared.info().wake.answered();
        if self.state().is_connected() {
            self.flush(resources);
        }
    }

    /// Its place in the run queue has come.
    pub(crate) fn resume(&mut self, token: usize, resources: &mut WorkerResources) {
        self.scheduled = false;
        if self.state().is_connected() {
            self.read(token, resources);
        }
    }

    /// Closes it if it took too long over something. What the kernel has for it counts
    /// first: this thread may have been held up by the callback of another connection.
    pub(crate) fn handle_timeout(&mut self, token: usize, resources: &mut WorkerResources) {
        self.try_establish(token, resources);
        if self.state().is_connected() {
            self.flush(resources);
            if !self.scheduled {
                self.read(token, resources);
            }
        }
        let (recv, has_unread, now) = (&self.recv, self.scheduled, resources.now);
        StreamShared::with(&mut self.shared, |conn, send| {
            send.change_layers(conn, |layered, half, _| layered.handle_timeout(half, now));
            connection::handle_timeout(recv, &mut send.half, has_unread, now, conn.limits());
        });
    }

    /// Brings the reading, the socket and the timer into line with the state, after anything
    /// happened. Returns whether the connection has closed.
    pub(crate) fn after_io(&mut self, token: usize, resources: &mut WorkerResources) -> bool {
        match self.shared.info().reading() {
            Reading::Discard => self.stop_delivery(token, resources),
            Reading::Deliver | Reading::Hold | Reading::Handshake => {
                self.follow_pause(token, resources);
            }
        }
        if !self.shared.info().is_open() && self.handle_action() {
            return true;
        }
        let deadline = self.poll_timeout();
        resources.timers.arm(token, &mut self.armed, deadline);
        false
    }

    /// Does what the connection has to do next. Returns whether it has closed.
    fn handle_action(&mut self) -> bool {
        let action = StreamShared::with(&mut self.shared, |conn, send| {
            // Its batch may go on for long.
            send.flush_gathered(conn, None);
            match send.poll_action() {
                Action::SendFin if !send.close_layers(conn) => Action::Wait,
                // A layer may have panicked over it.
                Action::SendFin => send.poll_action(),
                action => action,
            }
        });
        match action {
            Action::Wait => false,
            Action::SendFin => match sys::shutdown(&self.shared.stream) {
                Ok(()) => {
                    self.with_half(SendHalf::handle_fin_sent);
                    false
                }
                Err(error) => {
                    self.fail(error);
                    true
                }
            },
            Action::Close(_) | Action::Reset(_) => true,
        }
    }

    fn poll_timeout(&mut self) -> Instant {
        let (recv, has_unread) = (&self.recv, self.scheduled);
        let info = self.shared.info();
        let (state, queued) = (info.state(), info.queued());
        if !SendHalf::has_deadline(state, queued) {
            return connection::recv_timeout(recv, state, has_unread, self.shared.limits());
        }
        StreamShared::with(&mut self.shared, |conn, send| {
            let deadline = connection::poll_timeout(recv, &send.half, has_unread, conn.limits());
            let layered = send.layered_timeout();
            deadline.min(layered)
        })
    }

    /// The network stops: once the peer's system has acknowledged everything, this side's FIN
    /// included, there is nothing left to wait for.
    pub(crate) fn end_if_acknowledged(&mut self) {
        if self.state() == State::Finishing && sys::unacknowledged(&self.shared.stream) == Some(0) {
            self.with_half(SendHalf::handle_acknowledged);
        }
    }

    /// The connection has closed: tells the application and counts it. The caller drops it,
    /// and with it the socket.
    pub(crate) fn finish(mut self, token: usize, resources: &mut WorkerResources) {
        let id = self.id();
        let (action, was_open, failed) = StreamShared::with(&mut self.shared, |conn, send| {
            let action = send.poll_action();
            if let Action::Close(_) = action {
                // What the system does not take of it is lost.
                send.close_layers(conn);
            }
            send.discard(conn);
            (action, send.half.was_open(), send.take_error())
        });
        let (reason, reset) = match action {
            Action::Close(reason) => (reason, false),
            Action::Reset(reason) => (reason, true),
            Action::Wait | Action::SendFin => {
                debug_assert!(false, "it has closed");
                (CloseReason::Io, true)
            }
        };
        if self.holds != Holds::Nothing {
            resources.let_go(token);
        }
        self.shared.release();
        if reset {
            self.shared.reset();
        }
        if self.marks.has(Marks::REFUSED) {
            return;
        }
        let counts = Arc::clone(&self.shared.home().counts);
        count_closed(self.shared.info(), &counts, reason, failed.as_ref());
        if !self.is_layered
            && !self.marks.has(Marks::RECEIVED)
            && let Some(spoken) = self.recv.looks_like(reason)
        {
            let peer = self.shared.info().peer_addr();
            warn_limited!(connection = %id, %peer, "the peer seems to speak {spoken}: this port is plain");
        }
        if self.is_layered && resources.unasked.remove(&token).is_some() {
            // There is no handler.
            return;
        }
        resources.tick();
        let began = resources.now;
        let mut handler = self.handler;
        if was_open {
            let mut link = StreamLink {
                shared: &self.shared,
                batch: &resources.batch,
                now: resources.now,
            };
            run_callback("closed", id, &counts, || {
                handler.closed(&mut link, reason);
            });
        } else {
            counts.connect_failed.count();
            let peer = self.shared.info().peer_addr();
            let mut error = ConnectError::new(id, Transport::Tcp, peer, reason);
            if let Some(failed) = failed {
                error = error.with_source(failed);
            }
            run_callback("connect_failed", id, &counts, || {
                handler.connect_failed(error);
            });
        }
        // By itself: a destructor that panics while another panic unwinds would abort.
        run_callback("drop", id, &counts, || drop(handler));
        resources.tick();
        counts.handler_time.record(began, resources.now);
    }
}
