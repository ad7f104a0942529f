//! The sending half of a stream connection: what may be sent, and how the connection closes.
//!
//! It holds no bytes. The driver keeps those (in a [`SendQueue`](crate::SendQueue), in a
//! socket's ring, in the operating system) and says how many there are.

use super::close_reason::{CloseReason, Timeout};
use super::lifecycle::{Input, Lifecycle, State};
use super::{Action, Backlog};
use crate::frame::{self, FrameError, HEADER_LEN};
use crate::limits::Limits;
use crate::send_error::SendError;
use crate::time::Instant;
use core::time::Duration;

/// Whether a message of `len` bytes is accepted in this state and with this backlog. If it is,
/// returns the header of its frame.
///
/// One message is accepted whenever nothing waits on the connection and the driver has room.
#[inline]
pub fn admit(
    state: State,
    len: usize,
    backlog: Backlog,
    limits: &Limits,
) -> Result<[u8; HEADER_LEN], SendError> {
    if !state.accepts_messages() {
        return Err(SendError::Closed);
    }
    let limit = limits
        .max_message()
        .min(backlog.capacity.saturating_sub(HEADER_LEN));
    if len > limit {
        return Err(SendError::TooLong { len, limit });
    }
    backlog.admit(HEADER_LEN + len, limits)?;
    // `Limits::validate` allows no message that a header cannot declare.
    Ok(frame::encode(len as u16))
}

/// Decides what a stream connection may send and when it has closed.
#[derive(Debug)]
pub struct SendHalf {
    lifecycle: Lifecycle,
    /// A message was refused as `Full`, and `writable` is owed.
    owes_writable: bool,
    /// What was accepted will not all be delivered, so the stream must not end in order.
    lossy: bool,
    /// This side's FIN was sent.
    fin_sent: bool,
    /// Since when the clock of the state runs: the connect, the last progress of a queue that
    /// is not empty, or the close.
    since: Instant,
}

impl SendHalf {
    /// The sending half of a connection to which this side connects, at `now`.
    pub const fn connecting(now: Instant) -> Self {
        SendHalf {
            lifecycle: Lifecycle::connecting(),
            owes_writable: false,
            lossy: false,
            fin_sent: false,
            since: now,
        }
    }

    /// The sending half of a connection that this side accepted at `now`, and whose layers begin
    /// their handshake.
    pub const fn handshaking(now: Instant) -> Self {
        SendHalf {
            lifecycle: Lifecycle::handshaking(),
            ..SendHalf::connecting(now)
        }
    }

    /// The sending half of a connection that this side accepted.
    pub const fn accepted() -> Self {
        SendHalf {
            lifecycle: Lifecycle::accepted(),
            ..SendHalf::connecting(Instant::NEVER)
        }
    }

    /// Where the connection is in its life.
    #[inline]
    pub const fn state(&self) -> State {
        self.lifecycle.state()
    }

    /// Why it closed; `None` before it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.lifecycle.close_reason()
    }

    /// Whether a message of `len` bytes is accepted; see [`admit`]. After `Full`,
    /// [`SendHalf::poll_writable`] will say when there is room.
    pub fn admit(
        &mut self,
        len: usize,
        backlog: Backlog,
        limits: &Limits,
    ) -> Result<[u8; HEADER_LEN], SendError> {
        let answer = admit(self.state(), len, backlog, limits);
        if answer == Err(SendError::Full) {
            self.owes_writable = true;
        }
        answer
    }

    /// The driver has no room for a message that was admitted. Returns the error to answer with;
    /// [`SendHalf::poll_writable`] will say when there is room.
    pub fn handle_full(&mut self) -> SendError {
        self.owes_writable = true;
        SendError::Full
    }

    /// The transport did not take all of a message that was admitted at `now`, and the rest was
    /// queued. `progress` says whether it took any; `backlog` includes the rest.
    ///
    /// One message is admitted whenever the connection's own queue is empty, so
    /// [`Limits::max_queued_total`] can be exceeded here. It is enforced by closing this
    /// connection as [`CloseReason::Overflow`]. What a layer has added to the message is not counted
    /// for that: see [`Backlog::without_overhead`].
    pub fn handle_queued(
        &mut self,
        progress: bool,
        backlog: Backlog,
        now: Instant,
        limits: &Limits,
    ) {
        self.handle_written(progress, backlog.own, now);
        if backlog.total > limits.max_queued_total() {
            self.abort(CloseReason::Overflow);
        }
    }

    /// The driver tried to write the queue at `now`: whether the transport took any of it, and
    /// how many bytes still wait.
    pub fn handle_written(&mut self, progress: bool, queued: usize, now: Instant) {
        if self.state() != State::Open {
            return;
        }
        if queued == 0 {
            self.since = Instant::NEVER;
        } else if progress || self.since == Instant::NEVER {
            self.since = now;
        }
    }

    /// Whether a message was refused as `Full`, and `writable` has not been due since.
    pub const fn owes_writable(&self) -> bool {
        self.owes_writable
    }

    /// Whether `writable` is owed and, with this much still waiting, due. Says so once.
    pub fn poll_writable(&mut self, backlog: Backlog, limits: &Limits) -> bool {
        let due = self.owes_writable && backlog.has_room(limits) && self.state() == State::Open;
        self.owes_writable &= !due;
        due
    }

    /// The transport is connected, and its layers begin their handshake, at `now`.
    pub fn handle_transport_connected(&mut self, now: Instant) {
        let begins = self.lifecycle.handle(Input::TransportConnected);
        if begins && self.state() == State::Handshaking {
            self.since = now;
        }
    }

    /// The peer completed the handshake. Returns whether the connection is open now.
    pub fn handle_connected(&mut self) -> bool {
        let opens = self.lifecycle.handle(Input::Connected) && self.state() == State::Open;
        if opens {
            self.since = Instant::NEVER;
        }
        opens
    }

    /// Whether the connection is, or has been, open. Then its end is reported to the handler by
    /// `closed`; otherwise by `connect_failed`.
    pub const fn was_open(&self) -> bool {
        self.lifecycle.was_open()
    }

    /// The application wants what was sent to be delivered, and then an end.
    pub fn close(&mut self, now: Instant) {
        self.drain(Input::Close, now);
    }

    /// The peer's FIN came at `now`: [`CloseReason::Peer`] or [`CloseReason::Truncated`], as
    /// the receiving half says.
    pub fn handle_fin(&mut self, reason: CloseReason, now: Instant) {
        self.drain(Input::Fin(reason), now);
    }

    /// The peer broke the framing. What it sends from here on is to be read and dropped until
    /// its FIN comes, or the connection has closed.
    pub fn handle_violation(&mut self, error: FrameError, now: Instant) {
        self.drain(Input::Violated(CloseReason::Protocol(error)), now);
    }

    /// A layer failed. What it has to say to the peer, such as an alert, is delivered; then the
    /// connection ends as [`CloseReason::Handshake`] or [`CloseReason::Layer`].
    pub fn handle_layer_failure(&mut self, now: Instant) {
        let reason = if self.state().is_handshaking() {
            CloseReason::Handshake
        } else {
            CloseReason::Layer
        };
        self.drain(Input::Violated(reason), now);
    }

    /// An input after which nothing more is accepted. The drain timeout runs from here.
    fn drain(&mut self, input: Input, now: Instant) {
        if self.lifecycle.handle(input) && self.state() != State::Closed {
            self.since = now;
        }
    }

    /// The peer's transport has acknowledged everything, this side's FIN included, and the
    /// driver is not to wait for the peer's FIN: the connection closes if that is all it waited
    /// for.
    pub fn handle_acknowledged(&mut self) {
        self.lifecycle.handle(Input::Acknowledged);
    }

    /// The connection is not to go on: the application aborted it, its handler panicked, a bound
    /// was exceeded or the transport failed. What waits to be sent is lost.
    pub fn abort(&mut self, reason: CloseReason) {
        self.lossy |= self.state() != State::Closed;
        self.lifecycle.handle(Input::Failed(reason));
    }

    /// The application turned the connection away when it was accepted. `queued` is what it
    /// sent nevertheless, which is lost. Returns how the socket is to be closed.
    pub fn turn_away(&mut self, queued: usize) -> Action {
        self.lossy |= queued > 0;
        self.lifecycle.handle(Input::Failed(CloseReason::Local));
        self.poll_action(queued)
    }

    /// What the driver has to do next. To be asked after every input, once everything that
    /// callbacks sent has been handed to the transport or queued; `queued` bytes of it wait.
    pub fn poll_action(&mut self, queued: usize) -> Action {
        if queued == 0 {
            self.lifecycle.handle(Input::Flushed);
        }
        match self.lifecycle.close_reason() {
            Some(reason) if self.lossy || queued > 0 => Action::Reset(reason),
            Some(reason) => Action::Close(reason),
            None if self.state() == State::Finishing && !self.fin_sent => Action::SendFin,
            None => Action::Wait,
        }
    }

    /// The driver has done [`Action::SendFin`]. A transport that sends its FIN behind what is
    /// queued may be asked for it as soon as [`reading`](super::reading) says
    /// [`Discard`](super::Reading::Discard), before that action.
    pub fn handle_fin_sent(&mut self) {
        self.fin_sent = true;
    }

    /// Whether a sending half in this state and with this much queued has a deadline. A driver
    /// that keeps copies of both spares itself a lock by asking this before
    /// [`SendHalf::poll_timeout`].
    pub const fn has_deadline(state: State, queued: usize) -> bool {
        !matches!(state, State::Open) || queued > 0
    }

    /// The first moment at which [`SendHalf::handle_timeout`] would do something.
    pub fn poll_timeout(&self, limits: &Limits) -> Instant {
        let (_, allowed) = self.clock(limits);
        self.since.after(allowed)
    }

    /// Closes the connection if by `now` its state took too long.
    pub fn handle_timeout(&mut self, now: Instant, limits: &Limits) {
        let (timeout, allowed) = self.clock(limits);
        if now >= self.since.after(allowed) {
            self.time_out(timeout);
        }
    }

    /// Closes the connection because something took too long. It ends in order if nothing waits
    /// to be sent.
    pub(super) fn time_out(&mut self, timeout: Timeout) {
        let reason = CloseReason::Timeout(timeout);
        self.lifecycle.handle(Input::Failed(reason));
    }

    fn clock(&self, limits: &Limits) -> (Timeout, Duration) {
        match self.state() {
            State::Connecting => (Timeout::Connect, limits.connect_timeout()),
            State::Handshaking => (Timeout::Handshake, limits.handshake_timeout()),
            State::Open => (Timeout::WriteStall, limits.write_stall_timeout()),
            _ => (Timeout::Drain, limits.drain_timeout()),
        }
    }
}

#[cfg(test)]
mod tests;
