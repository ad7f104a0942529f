//! A stream connection, as its worker keeps it: reading, delivering, and seeing it through
//! its life.

mod held;

use crate::budget::Budget;
use crate::callback::guarded;
use crate::link::CallbackLink;
use crate::log::debug;
use crate::mailbox::BoxedHandler;
use crate::seat::Seat;
use crate::shared::{Shared, Wire, failure};
use crate::sys;
use crate::worker::Context;
use cubenet_core::{
    Action, CloseReason, ConnectError, Decoder, FrameError, Growing, Instant, Reading, RecvHalf,
    SendHalf, State, Timeout, Transport, connection,
};
use held::Holds;
use mio::net::TcpStream;
use std::io;

/// Changes the core's part of a stream's sending half.
fn with_half(shared: &mut Seat, change: impl FnOnce(&mut SendHalf)) {
    Shared::with(shared, |_, out| {
        if let Some(half) = out.half.stream() {
            change(half);
        }
    });
}

/// What an event said about a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer's end, or an error, waits behind what can be read.
    pub(crate) ending: bool,
    pub(crate) error: bool,
    /// There is urgent data, at which reads stop.
    pub(crate) urgent: bool,
}

/// A stream connection and its handler.
pub(crate) struct Stream {
    pub(crate) shared: Seat,
    handler: BoxedHandler,
    recv: RecvHalf<Decoder<Growing>>,
    pub(crate) armed: Instant,
    pub(crate) in_line: bool,
    /// This side connects, and the peer has not answered.
    calling: bool,
    /// The handler has been told that the connection is there.
    is_told: bool,
    /// What the worker's context keeps of its input.
    holds: Holds,
    /// A message was delivered since what is held was counted last.
    progressed: bool,
    /// An event told of the peer's end, and it has not been read. There is no other.
    peer_ending: bool,
    /// The peer has sent urgent data: a short read does not mean that there is no more.
    urgent: bool,
}

impl Stream {
    /// A connection that was accepted.
    pub(crate) fn accepted(shared: Seat, handler: BoxedHandler, now: Instant) -> Self {
        let decoder = Decoder::new(Growing::new(), shared.core.limits().max_message());
        Stream {
            calling: false,
            is_told: true,
            recv: RecvHalf::accepted(decoder, now),
            ..Stream::calling(shared, handler, now)
        }
    }

    /// A connection whose peer is being called.
    pub(crate) fn calling(shared: Seat, handler: BoxedHandler, now: Instant) -> Self {
        let decoder = Decoder::new(Growing::new(), shared.core.limits().max_message());
        Stream {
            shared,
            handler,
            recv: RecvHalf::connecting(decoder, now),
            armed: Instant::NEVER,
            in_line: false,
            calling: true,
            is_told: false,
            holds: Holds::Nothing,
            progressed: false,
            peer_ending: false,
            urgent: false,
        }
    }

    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match &self.shared.core.wire {
            Wire::Stream { stream, .. } => Some(stream),
            Wire::Datagrams(_) => None,
        }
    }

    /// Does what an event made possible.
    pub(crate) fn handle_ready(
        &mut self,
        entry: usize,
        readiness: Readiness,
        context: &mut Context,
    ) {
        self.peer_ending |= readiness.ending;
        self.urgent |= readiness.urgent;
        if self.calling {
            self.try_establish(context);
            if self.calling {
                return;
            }
        }
        if readiness.writable && self.shared.core.queued() > 0 {
            self.flush(context);
        }
        // One that waits for its turn reads when that comes.
        if (readiness.readable || readiness.ending) && !self.in_line {
            self.read(entry, context);
        }
        if readiness.error && self.recv.is_paused() {
            self.take_error();
        }
    }

    /// Whether the peer answered our call, and how.
    fn try_establish(&mut self, context: &mut Context) {
        let now = context.now;
        let Wire::Stream { stream, .. } = &self.shared.core.wire else {
            return;
        };
        let error = match sys::take_error(stream) {
            Ok(None) => match sys::peer_addr(stream) {
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
            Shared::with(&mut self.shared, |_, out| {
                out.half.abort(reason);
                out.fail(error);
            });
            return;
        }
        self.calling = false;
        let recv = &mut self.recv;
        with_half(&mut self.shared, |half| {
            connection::handle_connected(recv, half, now);
        });
        if self.shared.core.state() == State::Open {
            self.connected(context);
        }
        self.flush(context);
    }

    /// Tells the application that its call was answered.
    fn connected(&mut self, context: &mut Context) {
        let id = self.shared.core.id;
        debug!(connection = %id, peer = %self.shared.core.peer_addr(), "connected");
        context.tally.connected += 1;
        self.is_told = true;
        context.output.borrow_mut().begin(id.as_u64());
        let mut link = CallbackLink {
            shared: &self.shared,
            output: &context.output,
            now: context.now,
        };
        let handler = &mut self.handler;
        let done = guarded("connected", id, &mut context.tally, || {
            handler.connected(&mut link);
        });
        if done.is_none() {
            return self.panicked(context);
        }
        self.flush_output(context);
        context.tick();
    }

    /// Delivers what was parked, then reads and delivers, within the budget of a turn.
    fn read(&mut self, entry: usize, context: &mut Context) {
        let budgets = &context.common.budgets;
        let mut left = budgets.read_bytes();
        let mut budget = Budget::new(budgets, budgets.messages(), context.now);
        if self.holds == Holds::Parked && !self.unpark(entry, &mut budget, context) {
            return;
        }
        let mut input = std::mem::take(&mut context.input);
        while !self.recv.is_paused() {
            if left == 0 || !budget.is_left() {
                context.line_up(entry, &mut self.in_line);
                break;
            }
            let Wire::Stream { stream, .. } = &self.shared.core.wire else {
                break;
            };
            let most = input.len().min(left);
            match sys::read(stream, &mut input[..most]) {
                Ok(0) => {
                    self.peer_ended(context.now);
                    break;
                }
                Ok(read) => {
                    left -= read;
                    let undelivered = self.deliver(&input[..read], &mut budget, context);
                    let rest = &input[read - undelivered..read];
                    self.hold(entry, rest, context);
                    // Its turn comes when it goes on: see `follow_pause`.
                    if undelivered > 0 {
                        break;
                    }
                    if self.shared.core.state() == State::Closed {
                        break;
                    }
                    let is_short = read < most && !self.peer_ending && !self.urgent;
                    if is_short && sys::SHORT_READ_DRAINS {
                        break;
                    }
                    // Where a short read does not say that there is no more, the others come
                    // first: who has asked again meanwhile could be served alone.
                    if is_short {
                        context.line_up(entry, &mut self.in_line);
                        break;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.peer_ending = false;
                        self.urgent = false;
                        break;
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        debug!(connection = %self.shared.core.id, %error, "read failed");
                        Shared::with(&mut self.shared, |_, out| out.fail(error));
                        break;
                    }
                },
            }
        }
        context.input = input;
    }

    /// Decodes what was read and hands each message to the handler, then lets the replies
    /// go. Returns how many bytes are left because the connection was paused, or the budget
    /// used up. What arrives after a close is dropped.
    fn deliver(&mut self, input: &[u8], budget: &mut Budget, context: &mut Context) -> usize {
        let now = context.now;
        let core = &self.shared.core;
        let handler = &mut self.handler;
        if core.state() != State::Open {
            return 0;
        }
        context.output.borrow_mut().begin(core.id.as_u64());
        let mut link = CallbackLink {
            shared: &self.shared,
            output: &context.output,
            now,
        };
        let recv = &mut self.recv;
        let common = &*context.common;
        let mut rest = input;
        let (mut messages, mut bytes) = (0, 0);
        let mut owes_last = false;
        let done = guarded("received", core.id, &mut context.tally, || {
            while core.reading() == Reading::Deliver && budget.is_left() {
                let Some(message) = recv.handle_input(&mut rest, now)? else {
                    break;
                };
                messages += 1;
                bytes += message.len() as u64;
                handler.received(&mut link, message);
                owes_last = rest.is_empty();
                if !owes_last {
                    budget.spend(common);
                    link.now = budget.now();
                }
            }
            Ok::<(), FrameError>(())
        });
        context.tally.messages_in += messages;
        context.tally.bytes_in += bytes;
        match done {
            Some(Ok(())) => {
                self.flush_output(context);
                context.tick();
                if owes_last {
                    budget.spend_last(context.now);
                }
                self.progressed |= messages > 0;
                if self.shared.core.state() != State::Open {
                    return 0;
                }
                // While the callbacks ran, nobody listened: the peer's silence begins now.
                self.recv.handle_delivered(context.now);
                return rest.len();
            }
            Some(Err(error)) => {
                self.flush_output(context);
                context.tick();
                let now = context.now;
                with_half(&mut self.shared, |half| half.handle_violation(error, now));
            }
            None => self.panicked(context),
        }
        0
    }

    fn panicked(&mut self, context: &mut Context) {
        let mut output = context.output.borrow_mut();
        output.discard(&self.shared);
        output.begin(0);
        drop(output);
        Shared::with(&mut self.shared, |_, out| {
            out.half.abort(CloseReason::Panicked);
        });
        context.tick();
    }

    /// Hands what the callbacks sent to the system.
    fn flush_output(&mut self, context: &Context) {
        let mut output = context.output.borrow_mut();
        output.begin(0);
        if output.gathered() > 0 {
            Shared::with(&mut self.shared, |core, out| {
                output.transmit_frames(core, out);
            });
        }
    }

    /// Sends what waits, and tells a handler that waited for room.
    fn flush(&mut self, context: &mut Context) {
        let now = context.now;
        let writable = Shared::with(&mut self.shared, |core, out| {
            out.flush(core, now);
            out.half.poll_writable(core.backlog(), core.limits())
        });
        if !writable {
            return;
        }
        let handler = &mut self.handler;
        let id = self.shared.core.id;
        context.output.borrow_mut().begin(id.as_u64());
        let mut link = CallbackLink {
            shared: &self.shared,
            output: &context.output,
            now,
        };
        let done = guarded("writable", id, &mut context.tally, || {
            handler.writable(&mut link);
        });
        match done {
            Some(()) => {
                self.flush_output(context);
                context.tick();
            }
            None => self.panicked(context),
        }
    }

    /// The peer ended its direction.
    fn peer_ended(&mut self, now: Instant) {
        let recv = &self.recv;
        with_half(&mut self.shared, |half| {
            connection::handle_fin(recv, half, now);
        });
    }

    /// A connection that is not read can still be told of a reset.
    fn take_error(&mut self) {
        let error = self
            .socket()
            .and_then(|stream| sys::take_error(stream).ok());
        if let Some(Some(error)) = error {
            Shared::with(&mut self.shared, |_, out| out.fail(error));
        }
    }

    /// Somebody asked for it to be looked at: it began to wait, or to close.
    pub(crate) fn attend(&mut self, context: &mut Context) {
        self.shared.core.wake.answered();
        if !self.calling {
            self.flush(context);
        }
    }

    /// Its place in the line has come.
    pub(crate) fn resume_reading(&mut self, entry: usize, context: &mut Context) {
        if !self.calling {
            self.read(entry, context);
        }
    }

    /// Closes it if it took too long over something. What the kernel has for it counts
    /// first: this thread may have been held up by somebody else's callback.
    pub(crate) fn handle_timeout(&mut self, entry: usize, context: &mut Context) {
        if self.calling {
            self.try_establish(context);
        }
        if !self.calling {
            self.flush(context);
            if !self.in_line {
                self.read(entry, context);
            }
        }
        let (recv, has_unread, now) = (&self.recv, self.in_line, context.now);
        Shared::with(&mut self.shared, |core, out| {
            if let Some(half) = out.half.stream() {
                connection::handle_timeout(recv, half, has_unread, now, core.limits());
            }
        });
    }

    /// Brings the socket, the clocks and the reading into line with the state, after
    /// anything happened. Returns whether the connection has closed.
    pub(crate) fn settle(&mut self, entry: usize, context: &mut Context) -> bool {
        match self.shared.core.reading() {
            Reading::Discard if !self.calling => self.stop_hearing(entry, context),
            Reading::Discard => {}
            Reading::Deliver | Reading::Hold => self.follow_pause(entry, context),
        }
        let state = self.shared.core.state();
        if !state.accepts_messages() && self.handle_action() {
            return true;
        }
        let deadline = self.poll_timeout();
        context.timers.arm(entry, &mut self.armed, deadline);
        false
    }

    /// Does what the connection has to do next. Returns whether it has closed.
    fn handle_action(&mut self) -> bool {
        let action = Shared::with(&mut self.shared, |core, out| out.poll_action(core));
        match action {
            Action::Wait => false,
            Action::SendFin => {
                self.send_fin();
                self.shared.core.state() == State::Closed
            }
            Action::Close(_) | Action::Reset(_) => true,
        }
    }

    fn poll_timeout(&mut self) -> Instant {
        let core = &self.shared.core;
        let (recv, has_unread) = (&self.recv, self.in_line);
        if !SendHalf::has_deadline(core.state(), core.queued()) {
            return connection::recv_timeout(recv, core.state(), has_unread, core.limits());
        }
        Shared::with(&mut self.shared, |core, out| match out.half.stream() {
            Some(half) => connection::poll_timeout(recv, half, has_unread, core.limits()),
            None => Instant::NEVER,
        })
    }

    /// A connection that closes reads on, if it was paused, only to find the peer's end.
    fn stop_hearing(&mut self, entry: usize, context: &mut Context) {
        let parked = self.holds == Holds::Parked;
        if parked {
            self.hold(entry, &[][..], context);
        }
        if self.recv.set_paused(false, context.now) || parked {
            context.line_up(entry, &mut self.in_line);
        }
    }

    /// Sends our end.
    fn send_fin(&mut self) {
        let outcome = self.socket().map(sys::shutdown);
        Shared::with(&mut self.shared, |_, out| match outcome {
            Some(Err(error)) => out.fail(error),
            _ => out.half.handle_fin_sent(),
        });
    }

    /// The network stops: once the peer's system has acknowledged everything, this side's end
    /// included, there is nothing left to wait for.
    pub(crate) fn end_if_acknowledged(&mut self) {
        if self.shared.core.state() == State::Finishing
            && self.socket().and_then(sys::unacknowledged) == Some(0)
        {
            with_half(&mut self.shared, SendHalf::handle_acknowledged);
        }
    }

    /// Does what the application wished by `pause` and `resume`.
    fn follow_pause(&mut self, entry: usize, context: &mut Context) {
        let paused = self.shared.core.is_paused();
        let changed = self.recv.set_paused(paused, context.now);
        if !paused && (changed || self.holds == Holds::Parked) {
            context.line_up(entry, &mut self.in_line);
        }
    }

    /// The connection has closed: tells the application and counts it. The caller drops it,
    /// and with it the socket.
    pub(crate) fn finish(mut self, entry: usize, context: &mut Context) {
        let id = self.shared.core.id;
        let (action, failed) = Shared::with(&mut self.shared, |core, out| {
            let action = out.poll_action(core);
            out.discard(core);
            (action, out.take_error())
        });
        let (reason, reset) = match action {
            Action::Close(reason) => (reason, false),
            Action::Reset(reason) => (reason, true),
            Action::Wait | Action::SendFin => (CloseReason::Io, true),
        };
        if self.holds != Holds::Nothing {
            context.let_go(entry);
        }
        self.shared.leave();
        context.closed(&self.shared.core, reason, failed.as_ref());
        if reset {
            self.shared.reset();
        }
        let mut handler = self.handler;
        if self.is_told {
            let mut link = CallbackLink {
                shared: &self.shared,
                output: &context.output,
                now: context.now,
            };
            guarded("closed", id, &mut context.tally, || {
                handler.closed(&mut link, reason);
            });
        } else {
            context.tally.connect_failed += 1;
            let peer = self.shared.core.peer_addr();
            let mut error = ConnectError::new(id, Transport::Tcp, peer, reason);
            if let Some(failed) = failed {
                error = error.with_source(failed);
            }
            guarded("connect_failed", id, &mut context.tally, || {
                handler.connect_failed(error);
            });
        }
        // By itself: a destructor that panics while another panic unwinds would abort.
        guarded("drop", id, &mut context.tally, || drop(handler));
        context.tick();
    }
}
