//! The sending half of a connection: what may go out, and whether it still lives.
//!
//! It holds no bytes. The driver keeps those (in a [`SendQueue`](crate::SendQueue), in a
//! socket's ring, in the operating system) and says how many there are.

use crate::frame::{FrameError, HEADER_LEN};
use crate::handler::SendError;
use crate::lifecycle::{CloseReason, Input, Lifecycle, State, Timeout};
use crate::limits::Limits;
use crate::time::Instant;
use crate::transport::Transport;

/// Bytes that wait to be sent, as the driver counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// On this connection, headers included.
    pub own: usize,
    /// On all connections.
    pub total: usize,
}

/// Whether a message of `len` bytes may be accepted in this state and with this backlog.
///
/// A connection on which nothing waits is always given room for one message.
#[inline]
pub fn admit(
    state: State,
    transport: Transport,
    len: usize,
    backlog: Backlog,
    limits: &Limits,
) -> Result<(), SendError> {
    if !matches!(state, State::Connecting | State::Open) {
        return Err(SendError::Closed);
    }
    let (limit, header) = match transport {
        Transport::Tcp => (limits.max_message, HEADER_LEN),
        Transport::Udp => (limits.max_datagram, 0),
    };
    if len > limit {
        return Err(SendError::TooLong { len, limit });
    }
    if len == 0 && transport == Transport::Udp {
        return Err(SendError::Empty);
    }
    let size = header + len;
    let fits =
        backlog.own + size <= limits.max_queued && backlog.total + size <= limits.max_queued_total;
    if backlog.own > 0 && !fits {
        return Err(SendError::Full);
    }
    Ok(())
}

/// Decides what a connection may send and when it has closed.
#[derive(Debug)]
pub struct Sender {
    lifecycle: Lifecycle,
    /// A message was refused for lack of room, and `writable` is owed.
    starved: bool,
    /// What was sent is not to be delivered.
    aborted: bool,
    /// Since when the clock of the state runs: the call, the last progress of a queue that
    /// is not empty, or the close.
    since: Instant,
}

impl Sender {
    /// The sending half of a connection that we called at `now`.
    pub fn connecting(transport: Transport, now: Instant) -> Self {
        Sender {
            lifecycle: Lifecycle::connecting(transport),
            starved: false,
            aborted: false,
            since: match transport {
                Transport::Tcp => now,
                Transport::Udp => Instant::NEVER,
            },
        }
    }

    /// The sending half of a connection on which we were called.
    pub fn accepted(transport: Transport) -> Self {
        Sender {
            lifecycle: Lifecycle::accepted(transport),
            starved: false,
            aborted: false,
            since: Instant::NEVER,
        }
    }

    /// Where the connection is in its life.
    pub fn state(&self) -> State {
        self.lifecycle.state()
    }

    /// Why it closed; `None` before it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.lifecycle.close_reason()
    }

    /// Whether a message of `len` bytes is accepted; see [`admit`]. After `Full`,
    /// [`Sender::poll_writable`] will say when there is room.
    pub fn admit(
        &mut self,
        len: usize,
        backlog: Backlog,
        limits: &Limits,
    ) -> Result<(), SendError> {
        let transport = self.lifecycle.transport();
        let answer = admit(self.state(), transport, len, backlog, limits);
        if answer == Err(SendError::Full) {
            self.starved = true;
        }
        answer
    }

    /// The driver tried to send at `now`: whether anything left, and how much still waits.
    pub fn handle_written(&mut self, now: Instant, progress: bool, queued: usize) {
        match self.state() {
            State::Open if queued == 0 => self.since = Instant::NEVER,
            State::Open if progress || self.since == Instant::NEVER => self.since = now,
            State::Draining if queued == 0 => {
                self.lifecycle.handle(Input::Flushed);
            }
            _ => {}
        }
    }

    /// Whether `writable` is owed and, with this much still waiting, due. Says so once.
    pub fn poll_writable(&mut self, queued: usize, limits: &Limits) -> bool {
        let due = self.starved && queued <= limits.low_watermark && self.state() == State::Open;
        self.starved &= !due;
        due
    }

    /// The peer answered our call.
    pub fn handle_connected(&mut self) {
        if self.lifecycle.handle(Input::Connected) {
            self.since = Instant::NEVER;
        }
    }

    /// The application wants what was sent to be delivered, and then an end.
    pub fn close(&mut self, now: Instant, queued: usize) {
        let queued = queued > 0;
        if self.lifecycle.handle(Input::Close { queued }) {
            self.drain(now, queued);
        }
    }

    /// The peer ended its direction: [`CloseReason::Peer`] or [`CloseReason::Truncated`].
    pub fn handle_end(&mut self, now: Instant, reason: CloseReason, queued: usize) {
        self.wind_up(Input::Ended(reason), now, queued);
    }

    /// The peer broke the framing. What it sends from here on is to be read and dropped until
    /// it ends its direction, or the connection has closed.
    pub fn handle_violation(&mut self, now: Instant, error: FrameError, queued: usize) {
        self.wind_up(Input::Violated(error), now, queued);
    }

    fn wind_up(&mut self, input: Input, now: Instant, queued: usize) {
        let drains = self.lifecycle.handle(input);
        if drains && self.state() == State::Draining {
            self.drain(now, queued > 0);
        }
    }

    /// The peer's transport has acknowledged everything, this side's end included, and the
    /// driver does not want to wait for the peer's end: it closes if that is all it waited for.
    pub fn handle_acknowledged(&mut self) {
        self.lifecycle.handle(Input::Acknowledged);
    }

    fn drain(&mut self, now: Instant, queued: bool) {
        self.since = now;
        if !queued {
            self.lifecycle.handle(Input::Flushed);
        }
    }

    /// The connection cannot go on.
    pub fn fail(&mut self, reason: CloseReason) {
        self.lifecycle.handle(Input::Failed(reason));
    }

    /// The connection is not to go on, and what was sent is not to be delivered either.
    pub fn abort(&mut self, reason: CloseReason) {
        self.aborted |= self.state() != State::Closed;
        self.fail(reason);
    }

    /// Whether a stream that closed with this much still waiting may end in order. If not it
    /// is to be reset: an end in order would tell the peer that it has everything.
    pub fn ends_in_order(&self, queued: usize) -> bool {
        !self.aborted && queued == 0
    }

    /// The first moment at which [`Sender::handle_timeout`] would do something.
    pub fn poll_timeout(&self, limits: &Limits) -> Instant {
        let (_, allowed) = self.clock(limits);
        self.since.after(allowed)
    }

    /// Closes the connection if by `now` its state took too long.
    pub fn handle_timeout(&mut self, now: Instant, limits: &Limits) {
        let (timeout, allowed) = self.clock(limits);
        if now >= self.since.after(allowed) {
            self.fail(CloseReason::Timeout(timeout));
        }
    }

    fn clock(&self, limits: &Limits) -> (Timeout, core::time::Duration) {
        match self.state() {
            State::Connecting => (Timeout::Connect, limits.connect_timeout),
            State::Open => (Timeout::WriteStall, limits.write_stall_timeout),
            _ => (Timeout::Drain, limits.drain_timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn second(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn own(own: usize) -> Backlog {
        Backlog { own, total: own }
    }

    fn limits() -> Limits {
        Limits {
            max_message: 100,
            max_datagram: 100,
            max_queued: 200,
            low_watermark: 50,
            max_queued_total: 1_000,
            write_stall_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(5),
            ..Limits::default()
        }
    }

    #[test]
    fn after_full_writable_is_due_once_at_the_low_watermark() {
        let limits = limits();
        let mut sender = Sender::accepted(Transport::Tcp);
        assert_eq!(sender.admit(98, own(100), &limits), Ok(()));
        assert!(!sender.poll_writable(0, &limits), "nothing was refused yet");
        let full = sender.admit(99, own(100), &limits);
        assert_eq!(full, Err(SendError::Full));
        assert!(!sender.poll_writable(51, &limits));
        assert!(sender.poll_writable(50, &limits));
        assert!(!sender.poll_writable(50, &limits), "once");
    }

    #[test]
    fn the_total_bound_spares_who_has_nothing_queued() {
        let limits = limits();
        let mut sender = Sender::accepted(Transport::Tcp);
        let total = 998;
        assert_eq!(sender.admit(1, Backlog { own: 0, total }, &limits), Ok(()));
        let full = sender.admit(1, Backlog { own: 1, total }, &limits);
        assert_eq!(full, Err(SendError::Full));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_and_the_connection_lives() {
        let mut sender = Sender::accepted(Transport::Tcp);
        assert_eq!(sender.admit(100, own(0), &limits()), Ok(()));
        let refused = sender.admit(101, own(0), &limits());
        let too_long = SendError::TooLong {
            len: 101,
            limit: 100,
        };
        assert_eq!(refused, Err(too_long));
        assert_eq!(sender.state(), State::Open);
    }

    #[test]
    fn only_a_stream_carries_an_empty_message() {
        let mut stream = Sender::accepted(Transport::Tcp);
        assert_eq!(stream.admit(0, own(0), &limits()), Ok(()));
        let mut datagrams = Sender::accepted(Transport::Udp);
        let empty = datagrams.admit(0, own(0), &limits());
        assert_eq!(empty, Err(SendError::Empty));
    }

    #[test]
    fn a_stall_is_timed_from_the_last_progress() {
        let limits = limits();
        let mut sender = Sender::accepted(Transport::Tcp);
        assert_eq!(sender.poll_timeout(&limits), Instant::NEVER);
        sender.handle_written(second(1), false, 100);
        sender.handle_written(second(5), false, 150);
        assert_eq!(sender.poll_timeout(&limits), second(31));
        sender.handle_written(second(20), true, 10);
        assert_eq!(sender.poll_timeout(&limits), second(50));
        sender.handle_timeout(second(49), &limits);
        assert_eq!(sender.state(), State::Open);
        sender.handle_timeout(second(50), &limits);
        let stalled = CloseReason::Timeout(Timeout::WriteStall);
        assert_eq!(sender.close_reason(), Some(stalled));
    }

    #[test]
    fn a_close_with_nothing_queued_goes_straight_to_finishing() {
        let limits = limits();
        let mut sender = Sender::accepted(Transport::Tcp);
        sender.close(second(1), 0);
        assert_eq!(sender.state(), State::Finishing);
        assert_eq!(sender.admit(1, own(0), &limits), Err(SendError::Closed));
        sender.handle_timeout(second(6), &limits);
        assert_eq!(sender.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn what_cannot_be_delivered_in_time_ends_in_a_drain_timeout() {
        let mut sender = Sender::accepted(Transport::Tcp);
        sender.close(second(1), 10);
        assert_eq!(sender.state(), State::Draining);
        sender.handle_written(second(4), true, 5);
        sender.handle_timeout(second(6), &limits());
        let late = CloseReason::Timeout(Timeout::Drain);
        assert_eq!(sender.close_reason(), Some(late));
    }

    #[test]
    fn an_end_of_the_peer_does_not_put_off_what_drains() {
        let limits = limits();
        let mut sender = Sender::accepted(Transport::Tcp);
        sender.close(second(1), 10);
        sender.handle_end(second(4), CloseReason::Peer, 10);
        assert_eq!(sender.state(), State::Draining);
        assert_eq!(sender.poll_timeout(&limits), second(6));
        sender.handle_written(second(5), true, 0);
        assert_eq!(sender.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn an_end_of_the_peer_with_nothing_queued_is_the_end() {
        let mut sender = Sender::accepted(Transport::Tcp);
        sender.handle_end(second(1), CloseReason::Peer, 0);
        assert_eq!(sender.close_reason(), Some(CloseReason::Peer));
        let mut sender = Sender::accepted(Transport::Tcp);
        sender.handle_end(second(1), CloseReason::Peer, 1);
        assert_eq!(sender.state(), State::Draining);
    }

    #[test]
    fn a_peer_that_broke_the_framing_gets_what_was_sent_and_is_read_to_its_end() {
        let error = FrameError::TooLong {
            declared: 9,
            limit: 1,
        };
        let limits = limits();
        let mut sender = Sender::accepted(Transport::Tcp);
        sender.handle_violation(second(1), error, 10);
        assert_eq!(sender.state(), State::Draining);
        assert_eq!(sender.admit(1, own(10), &limits), Err(SendError::Closed));
        sender.handle_written(second(2), true, 0);
        assert_eq!(sender.state(), State::Finishing);
        assert_eq!(sender.poll_timeout(&limits), second(6));
        sender.handle_end(second(3), CloseReason::Peer, 0);
        assert_eq!(sender.close_reason(), Some(CloseReason::Protocol(error)));
    }

    #[test]
    fn who_stops_does_not_wait_for_an_end_once_everything_is_acknowledged() {
        let mut sender = Sender::accepted(Transport::Tcp);
        sender.close(second(1), 10);
        sender.handle_acknowledged();
        assert_eq!(sender.state(), State::Draining);
        sender.handle_written(second(2), true, 0);
        sender.handle_acknowledged();
        assert_eq!(sender.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn a_call_that_is_answered_has_no_clock_until_something_waits() {
        let mut sender = Sender::connecting(Transport::Tcp, second(0));
        sender.handle_connected();
        assert_eq!(sender.state(), State::Open);
        assert_eq!(sender.poll_timeout(&limits()), Instant::NEVER);
        sender.handle_written(second(3), true, 10);
        assert_eq!(sender.poll_timeout(&limits()), second(33));
        sender.handle_written(second(4), true, 0);
        assert_eq!(sender.poll_timeout(&limits()), Instant::NEVER);
    }

    #[test]
    fn only_who_delivered_everything_and_was_not_aborted_ends_in_order() {
        let mut closes = Sender::accepted(Transport::Tcp);
        closes.close(second(1), 0);
        closes.abort(CloseReason::Local);
        assert!(!closes.ends_in_order(0), "it was waiting for the peer");
        let mut stalls = Sender::accepted(Transport::Tcp);
        stalls.fail(CloseReason::Timeout(Timeout::WriteStall));
        assert!(!stalls.ends_in_order(1));
        stalls.abort(CloseReason::Local);
        assert!(
            stalls.ends_in_order(0),
            "an abort after the end changes nothing"
        );
    }

    #[test]
    fn an_unanswered_call_times_out() {
        let limits = limits();
        let mut sender = Sender::connecting(Transport::Tcp, second(0));
        assert_eq!(sender.admit(1, own(0), &limits), Ok(()), "it is queued");
        sender.handle_written(second(1), false, 3);
        sender.handle_timeout(second(10), &limits);
        let late = CloseReason::Timeout(Timeout::Connect);
        assert_eq!(sender.close_reason(), Some(late));
    }
}
