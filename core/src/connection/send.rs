//! The sending half of a stream connection: what may be sent, and how the connection closes.
//!
//! It holds no bytes. The driver keeps those (in a [`SendQueue`](crate::SendQueue), in a
//! socket's ring, in the operating system) and says how many there are.

use super::lifecycle::{CloseReason, Input, Lifecycle, State, Timeout};
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
    /// connection as [`CloseReason::Overflow`].
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
mod tests {
    use super::*;

    fn second(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn own(own: usize) -> Backlog {
        Backlog::growing(own, own)
    }

    fn limits() -> Limits {
        Limits::new()
            .with_max_message(100)
            .with_max_datagram(100)
            .with_max_queued(200)
            .with_low_watermark(50)
            .with_max_queued_total(1_000)
            .with_write_stall_timeout(Duration::from_secs(30))
            .with_drain_timeout(Duration::from_secs(5))
    }

    #[test]
    fn a_refused_connection_is_reset_if_it_was_sent_something() {
        let mut half = SendHalf::accepted();
        let closed = Action::Close(CloseReason::Local);
        assert_eq!(half.turn_away(0), closed);
        let mut half = SendHalf::accepted();
        let reset = Action::Reset(CloseReason::Local);
        assert_eq!(half.turn_away(1), reset);
        assert_eq!(half.poll_action(0), reset, "what was sent is lost");
    }

    #[test]
    fn after_full_writable_is_due_once_at_the_low_watermark() {
        let limits = limits();
        let mut half = SendHalf::accepted();
        assert_eq!(half.admit(98, own(100), &limits), Ok([0, 98]));
        assert!(
            !half.poll_writable(own(0), &limits),
            "nothing was refused yet"
        );
        let full = half.admit(99, own(100), &limits);
        assert_eq!(full, Err(SendError::Full));
        assert!(!half.poll_writable(own(51), &limits));
        assert!(half.poll_writable(own(50), &limits));
        assert!(!half.poll_writable(own(50), &limits), "once");
    }

    #[test]
    fn the_total_bound_spares_a_connection_that_has_nothing_queued() {
        let limits = limits();
        let mut half = SendHalf::accepted();
        let total = 998;
        let spared = half.admit(1, Backlog::growing(0, total), &limits);
        assert_eq!(spared, Ok([0, 1]));
        let full = half.admit(1, Backlog::growing(1, total), &limits);
        assert_eq!(full, Err(SendError::Full));
    }

    #[test]
    fn a_connection_that_takes_the_total_over_its_bound_is_closed_as_overflow() {
        let limits = limits();
        let mut half = SendHalf::accepted();
        half.handle_queued(false, Backlog::growing(10, 1_000), second(1), &limits);
        assert_eq!(half.state(), State::Open);
        half.handle_queued(false, Backlog::growing(10, 1_001), second(1), &limits);
        assert_eq!(half.poll_action(10), Action::Reset(CloseReason::Overflow));
    }

    #[test]
    fn a_fixed_buffer_bounds_messages_and_the_watermark() {
        let limits = limits();
        let mut half = SendHalf::accepted();
        let at = |own| Backlog::fixed(own, 40);
        let too_long = SendError::TooLong { len: 39, limit: 38 };
        assert_eq!(half.admit(39, at(0), &limits), Err(too_long));
        assert_eq!(half.admit(38, at(0), &limits), Ok([0, 38]));
        assert_eq!(half.admit(9, at(30), &limits), Err(SendError::Full));
        assert!(!half.poll_writable(at(21), &limits));
        assert!(half.poll_writable(at(20), &limits));
        assert_eq!(half.handle_full(), SendError::Full);
        assert!(half.poll_writable(at(0), &limits));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_and_the_connection_lives() {
        let mut half = SendHalf::accepted();
        assert_eq!(half.admit(100, own(0), &limits()), Ok([0, 100]));
        let refused = half.admit(101, own(0), &limits());
        let too_long = SendError::TooLong {
            len: 101,
            limit: 100,
        };
        assert_eq!(refused, Err(too_long));
        assert_eq!(half.state(), State::Open);
    }

    #[test]
    fn a_stream_carries_an_empty_message() {
        let mut half = SendHalf::accepted();
        assert_eq!(half.admit(0, own(0), &limits()), Ok([0, 0]));
    }

    #[test]
    fn a_stall_is_timed_from_the_last_progress() {
        let limits = limits();
        let mut half = SendHalf::accepted();
        assert_eq!(half.poll_timeout(&limits), Instant::NEVER);
        half.handle_written(false, 100, second(1));
        half.handle_written(false, 150, second(5));
        assert_eq!(half.poll_timeout(&limits), second(31));
        half.handle_written(true, 10, second(20));
        assert_eq!(half.poll_timeout(&limits), second(50));
        half.handle_timeout(second(49), &limits);
        assert_eq!(half.state(), State::Open);
        half.handle_timeout(second(50), &limits);
        let stalled = CloseReason::Timeout(Timeout::WriteStall);
        assert_eq!(half.close_reason(), Some(stalled));
    }

    #[test]
    fn an_open_half_with_nothing_queued_has_no_deadline() {
        let limits = limits();
        let half = SendHalf::accepted();
        assert!(!SendHalf::has_deadline(half.state(), 0));
        assert_eq!(half.poll_timeout(&limits), Instant::NEVER);
        assert!(SendHalf::has_deadline(State::Open, 1));
        assert!(SendHalf::has_deadline(State::Draining, 0));
        assert!(SendHalf::has_deadline(State::Connecting, 0));
    }

    #[test]
    fn a_close_with_nothing_queued_goes_straight_to_finishing() {
        let limits = limits();
        let mut half = SendHalf::accepted();
        half.close(second(1));
        assert_eq!(half.poll_action(0), Action::SendFin);
        assert_eq!(half.poll_action(0), Action::SendFin, "it was not done yet");
        half.handle_fin_sent();
        assert_eq!(half.poll_action(0), Action::Wait);
        assert_eq!(half.state(), State::Finishing);
        assert_eq!(half.admit(1, own(0), &limits), Err(SendError::Closed));
        half.handle_timeout(second(6), &limits);
        assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
    }

    #[test]
    fn what_cannot_be_delivered_in_time_ends_in_a_drain_timeout() {
        let mut half = SendHalf::accepted();
        half.close(second(1));
        assert_eq!(half.poll_action(10), Action::Wait);
        assert_eq!(half.state(), State::Draining);
        half.handle_written(true, 5, second(4));
        half.handle_timeout(second(6), &limits());
        let late = CloseReason::Timeout(Timeout::Drain);
        assert_eq!(half.poll_action(5), Action::Reset(late));
        assert_eq!(half.close_reason(), Some(late));
    }

    #[test]
    fn a_fin_of_the_peer_does_not_put_off_what_drains() {
        let limits = limits();
        let mut half = SendHalf::accepted();
        half.close(second(1));
        half.handle_fin(CloseReason::Peer, second(4));
        assert_eq!(half.poll_action(10), Action::Wait);
        assert_eq!(half.poll_timeout(&limits), second(6));
        half.handle_written(true, 0, second(5));
        assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
    }

    #[test]
    fn a_fin_of_the_peer_with_nothing_queued_is_the_end() {
        let mut half = SendHalf::accepted();
        half.handle_fin(CloseReason::Peer, second(1));
        assert_eq!(half.poll_action(0), Action::Close(CloseReason::Peer));
        let mut half = SendHalf::accepted();
        half.handle_fin(CloseReason::Peer, second(1));
        assert_eq!(half.poll_action(1), Action::Wait);
        assert_eq!(half.state(), State::Draining);
    }

    #[test]
    fn a_peer_that_broke_the_framing_gets_what_was_sent_and_is_read_to_its_fin() {
        let error = FrameError::TooLong {
            declared: 9,
            limit: 1,
        };
        let limits = limits();
        let mut half = SendHalf::accepted();
        half.handle_violation(error, second(1));
        assert_eq!(half.poll_action(10), Action::Wait);
        assert_eq!(half.admit(1, own(10), &limits), Err(SendError::Closed));
        half.handle_written(true, 0, second(2));
        assert_eq!(half.poll_action(0), Action::SendFin);
        assert_eq!(half.state(), State::Finishing);
        assert_eq!(half.poll_timeout(&limits), second(6));
        half.handle_fin(CloseReason::Peer, second(3));
        let violated = CloseReason::Protocol(error);
        assert_eq!(half.poll_action(0), Action::Close(violated));
    }

    #[test]
    fn a_driver_that_stops_does_not_wait_for_a_fin_once_everything_is_acknowledged() {
        let mut half = SendHalf::accepted();
        half.close(second(1));
        half.handle_acknowledged();
        assert_eq!(half.poll_action(10), Action::Wait);
        half.handle_written(true, 0, second(2));
        assert_eq!(half.poll_action(0), Action::SendFin);
        half.handle_acknowledged();
        assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
    }

    #[test]
    fn an_established_connection_has_no_clock_until_something_waits() {
        let mut half = SendHalf::connecting(second(0));
        half.handle_connected();
        assert_eq!(half.state(), State::Open);
        assert_eq!(half.poll_timeout(&limits()), Instant::NEVER);
        half.handle_written(true, 10, second(3));
        assert_eq!(half.poll_timeout(&limits()), second(33));
        half.handle_written(true, 0, second(4));
        assert_eq!(half.poll_timeout(&limits()), Instant::NEVER);
    }

    #[test]
    fn a_connect_that_is_given_up_sends_what_is_queued_and_no_fin_without_it() {
        let mut half = SendHalf::connecting(second(0));
        half.close(second(1));
        assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
        let mut half = SendHalf::connecting(second(0));
        half.handle_queued(false, own(10), second(1), &limits());
        half.close(second(1));
        assert_eq!(half.poll_action(10), Action::Wait);
        half.handle_connected();
        assert_eq!(half.poll_action(10), Action::Wait);
        assert_eq!(half.poll_action(0), Action::SendFin);
    }

    #[test]
    fn a_connection_ends_in_order_only_if_it_delivered_everything_and_was_not_aborted() {
        let mut closes = SendHalf::accepted();
        closes.close(second(1));
        assert_eq!(closes.poll_action(0), Action::SendFin);
        closes.abort(CloseReason::Local);
        let reset = Action::Reset(CloseReason::Local);
        assert_eq!(closes.poll_action(0), reset, "it was waiting for the peer");
        let stalled = CloseReason::Timeout(Timeout::WriteStall);
        let mut stalls = SendHalf::accepted();
        stalls.time_out(Timeout::WriteStall);
        assert_eq!(stalls.poll_action(1), Action::Reset(stalled));
        stalls.abort(CloseReason::Local);
        let in_order = Action::Close(stalled);
        assert_eq!(
            stalls.poll_action(0),
            in_order,
            "an abort after the end changes nothing"
        );
    }

    #[test]
    fn a_connection_that_is_turned_away_is_reset_if_anything_was_sent_on_it() {
        let local = CloseReason::Local;
        assert_eq!(SendHalf::accepted().turn_away(0), Action::Close(local));
        assert_eq!(SendHalf::accepted().turn_away(1), Action::Reset(local));
        let mut aborted = SendHalf::accepted();
        aborted.abort(local);
        assert_eq!(aborted.turn_away(0), Action::Reset(local));
    }

    #[test]
    fn a_handshake_has_a_clock_of_its_own() {
        let limits = limits().with_handshake_timeout(Duration::from_secs(3));
        let mut half = SendHalf::connecting(second(0));
        half.handle_transport_connected(second(5));
        assert_eq!(half.state(), State::Handshaking);
        assert_eq!(half.poll_timeout(&limits), second(8));
        let mut opens = SendHalf::handshaking(second(5));
        assert!(opens.handle_connected());
        assert_eq!(opens.poll_timeout(&limits), Instant::NEVER);
        half.handle_timeout(second(8), &limits);
        let late = CloseReason::Timeout(Timeout::Handshake);
        assert_eq!(half.poll_action(0), Action::Close(late));
        let mut closed = SendHalf::connecting(second(0));
        closed.close(second(4));
        closed.handle_transport_connected(second(5));
        assert_eq!(closed.poll_timeout(&limits), second(9), "it drains");
    }

    #[test]
    fn the_alert_of_a_layer_that_failed_is_delivered() {
        let mut half = SendHalf::handshaking(second(0));
        half.handle_layer_failure(second(1));
        assert_eq!(half.poll_action(7), Action::Wait);
        assert_eq!(half.poll_timeout(&limits()), second(6));
        assert_eq!(half.poll_action(0), Action::SendFin);
        half.handle_fin_sent();
        half.handle_fin(CloseReason::Peer, second(2));
        assert_eq!(half.poll_action(0), Action::Close(CloseReason::Handshake));
        let mut open = SendHalf::accepted();
        open.handle_layer_failure(second(1));
        open.handle_fin(CloseReason::Peer, second(2));
        assert_eq!(open.poll_action(0), Action::Close(CloseReason::Layer));
    }

    #[test]
    fn an_unanswered_connect_times_out() {
        let limits = limits();
        let mut half = SendHalf::connecting(second(0));
        assert_eq!(half.admit(1, own(0), &limits), Ok([0, 1]), "it is queued");
        half.handle_written(false, 3, second(1));
        half.handle_timeout(second(10), &limits);
        let late = CloseReason::Timeout(Timeout::Connect);
        assert_eq!(half.close_reason(), Some(late));
    }
}
