//! One connection: its two halves, and the rules that concern both.
//!
//! A stream connection has a [`SendHalf`], which decides what may be sent and how the connection
//! closes, and a [`RecvHalf`], which decodes what arrives and watches the peer's clocks. A driver
//! that reads on one thread and sends on others keeps them apart and uses the functions of this
//! module; a driver that can own both keeps a [`Connection`]. A datagram peer has one small half,
//! [`DatagramHalf`].
//!
//! # The contract
//!
//! Each method says what happened or asks what is to be done. A driver
//!
//! 1. tells the connection of every event: `handle_connected`, input, `handle_fin`,
//!    `handle_written`, the application's `close` and `abort`, a failed transport (`abort`),
//!    `handle_timeout`;
//! 2. hands over what callbacks have sent, to the transport or to a queue;
//! 3. asks `poll_action` and does what it says, until the answer is [`Action::Wait`] or the
//!    connection has closed;
//! 4. sets a timer for `poll_timeout`.
//!
//! What a driver does with the bytes it reads follows from [`reading`].

pub mod close_reason;
pub mod datagram;
pub mod held;
pub mod lifecycle;
pub mod receive;
pub mod send;

pub use close_reason::{ByReason, CloseReason, Timeout};
pub use datagram::DatagramHalf;
pub use held::HeldInput;
pub use lifecycle::{Lifecycle, State};
pub use receive::{Framing, RecvHalf};
pub use send::SendHalf;

use crate::frame::{FrameError, HEADER_LEN};
use crate::limits::Limits;
use crate::ring::RingDecoder;
use crate::send_error::SendError;
use crate::time::Instant;

/// Bytes that wait to be sent, as the driver counts them, headers included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backlog {
    /// On this connection.
    pub own: usize,
    /// On all connections.
    pub total: usize,
    /// The most that can ever wait on this connection, if the driver has a buffer of a fixed
    /// size for it; `usize::MAX` otherwise.
    pub capacity: usize,
}

impl Backlog {
    /// The backlog of a driver whose queues grow.
    #[inline]
    pub const fn growing(own: usize, total: usize) -> Self {
        Backlog {
            own,
            total,
            capacity: usize::MAX,
        }
    }

    /// The backlog of a connection that has a buffer of `capacity` bytes of its own, so that
    /// nothing has to be counted over all connections.
    #[inline]
    pub const fn fixed(own: usize, capacity: usize) -> Self {
        Backlog {
            own,
            total: own,
            capacity,
        }
    }

    /// The same, but for bytes that a layer has added to what was admitted: a connection is not
    /// given up because of these.
    #[must_use]
    pub const fn without_overhead(self, bytes: usize) -> Self {
        Backlog {
            total: self.total.saturating_sub(bytes),
            ..self
        }
    }

    /// Whether `size` bytes more may wait, which fit an empty buffer.
    #[inline]
    fn admit(self, size: usize, limits: &Limits) -> Result<(), SendError> {
        let own = self.own + size;
        let fits = own <= limits.max_queued() && self.total + size <= limits.max_queued_total();
        if own > self.capacity || self.own > 0 && !fits {
            return Err(SendError::Full);
        }
        Ok(())
    }

    /// Bytes that may follow in messages of any size without another question. One message may be
    /// accepted that exceeds it; see [`send::admit`].
    #[inline]
    pub fn room(self, limits: &Limits) -> usize {
        let own = limits.max_queued().saturating_sub(self.own);
        let all = limits.max_queued_total().saturating_sub(self.total);
        let capacity = self.capacity.saturating_sub(self.own);
        own.min(all).min(capacity)
    }

    /// Whether a sender that was refused for lack of room may go on.
    #[inline]
    fn has_room(self, limits: &Limits) -> bool {
        self.own <= limits.low_watermark().min(self.capacity / 2)
    }
}

/// What a driver has to do next with a connection.
///
/// Exhaustive on purpose: a driver must do each of them, so a new one is a breaking change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing, until something happens or the timeout comes.
    Wait,
    /// End this side's direction, then call `handle_fin_sent`: the FIN of a stream
    /// (`shutdown`); to a datagram peer the empty datagram, behind what waits for it.
    SendFin,
    /// The connection is over: tell the handler, and close the socket of a stream in order.
    Close(CloseReason),
    /// The connection is over and not everything was delivered: tell the handler, drop what
    /// waits, and have the socket of a stream reset (RST). A FIN would tell the peer that it has
    /// everything.
    Reset(CloseReason),
}

/// What a driver does with the bytes of a peer. Exhaustive on purpose, as [`Action`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Read them and deliver the messages in them.
    Deliver,
    /// Read them and give them to the layers.
    Handshake,
    /// Leave them in the transport.
    Hold,
    /// Read them and drop them, to find the FIN behind them.
    Discard,
}

/// What a driver does with the bytes of a peer, in this state.
#[inline]
pub const fn reading(state: State, is_paused: bool) -> Reading {
    match state {
        State::Open if !is_paused => Reading::Deliver,
        State::Open | State::Connecting | State::ClosingEarly => Reading::Hold,
        State::Handshaking | State::ClosingInHandshake => Reading::Handshake,
        State::Draining | State::Finishing | State::Closed => Reading::Discard,
    }
}

/// The peer completed the handshake at `now`. Returns whether the connection is open, so that the
/// handler's `connected` is to be called: one that was closed before only delivers what it was
/// given.
pub fn handle_connected<D: Framing>(
    recv: &mut RecvHalf<D>,
    send: &mut SendHalf,
    now: Instant,
) -> bool {
    if !recv.is_paused() {
        recv.restart(now);
    }
    send.handle_connected()
}

/// The peer's FIN came at `now`, behind everything that it sent.
pub fn handle_fin<D: Framing>(recv: &RecvHalf<D>, send: &mut SendHalf, now: Instant) {
    send.handle_fin(recv.handle_fin(), now);
}

/// The first moment at which [`handle_timeout`] would do something. While the driver `has_unread`
/// input, the peer's clocks are not asked: whether it is idle is not known. Once all is read, a
/// frame that has not ended may have had its time already, so this moment may lie in the past.
pub fn poll_timeout<D: Framing>(
    recv: &RecvHalf<D>,
    send: &SendHalf,
    has_unread: bool,
    limits: &Limits,
) -> Instant {
    let recv = recv_timeout(recv, send.state(), has_unread, limits);
    send.poll_timeout(limits).min(recv)
}

/// The part of [`poll_timeout`] that needs no [`SendHalf`], for a driver that has found that
/// this has [no deadline](SendHalf::has_deadline).
pub fn recv_timeout<D: Framing>(
    recv: &RecvHalf<D>,
    state: State,
    has_unread: bool,
    limits: &Limits,
) -> Instant {
    if state == State::Open && !has_unread {
        recv.poll_timeout(limits)
    } else {
        Instant::NEVER
    }
}

/// Closes the connection if something took too long by `now`. A clock of the sending half counts
/// before those of the peer. See [`poll_timeout`] for `has_unread`; a driver reads before it asks,
/// since its thread may have been held up.
pub fn handle_timeout<D: Framing>(
    recv: &RecvHalf<D>,
    send: &mut SendHalf,
    has_unread: bool,
    now: Instant,
    limits: &Limits,
) {
    send.handle_timeout(now, limits);
    if send.state() == State::Open
        && !has_unread
        && let Some(timeout) = recv.handle_timeout(now, limits)
    {
        send.time_out(timeout);
    }
}

/// Both halves of a stream connection, for a driver that can own both.
#[derive(Debug)]
#[non_exhaustive]
pub struct Connection<D> {
    /// The receiving half.
    pub recv: RecvHalf<D>,
    /// The sending half.
    pub send: SendHalf,
}

impl<D: Framing> Connection<D> {
    /// A connection to which this side connects, at `now`.
    pub const fn connecting(decoder: D, now: Instant) -> Self {
        Connection {
            recv: RecvHalf::connecting(decoder, now),
            send: SendHalf::connecting(now),
        }
    }

    /// A connection that was accepted at `now`.
    pub const fn accepted(decoder: D, now: Instant) -> Self {
        Connection {
            recv: RecvHalf::accepted(decoder, now),
            send: SendHalf::accepted(),
        }
    }

    /// Where it is in its life.
    #[inline]
    pub const fn state(&self) -> State {
        self.send.state()
    }

    /// What the driver does with the bytes of the peer.
    #[inline]
    pub const fn reading(&self) -> Reading {
        reading(self.send.state(), self.recv.is_paused())
    }

    /// See [`handle_connected`].
    pub fn handle_connected(&mut self, now: Instant) -> bool {
        handle_connected(&mut self.recv, &mut self.send, now)
    }

    /// See [`handle_fin`].
    pub fn handle_fin(&mut self, now: Instant) {
        handle_fin(&self.recv, &mut self.send, now);
    }

    /// See [`poll_timeout`].
    pub fn poll_timeout(&self, has_unread: bool, limits: &Limits) -> Instant {
        poll_timeout(&self.recv, &self.send, has_unread, limits)
    }

    /// See [`handle_timeout`].
    pub fn handle_timeout(&mut self, has_unread: bool, now: Instant, limits: &Limits) {
        handle_timeout(&self.recv, &mut self.send, has_unread, now, limits);
    }

    /// Whether a message of `len` bytes is accepted; see [`SendHalf::admit`].
    pub fn admit(
        &mut self,
        len: usize,
        backlog: Backlog,
        limits: &Limits,
    ) -> Result<[u8; HEADER_LEN], SendError> {
        self.send.admit(len, backlog, limits)
    }

    /// The application closes; see [`SendHalf::close`].
    pub fn close(&mut self, now: Instant) {
        self.send.close(now);
    }

    /// The connection is not to go on; see [`SendHalf::abort`].
    pub fn abort(&mut self, reason: CloseReason) {
        self.send.abort(reason);
    }

    /// What the driver has to do next; see [`SendHalf::poll_action`].
    pub fn poll_action(&mut self, queued: usize) -> Action {
        self.send.poll_action(queued)
    }
}

impl Connection<RingDecoder> {
    /// Looks at the front of a ring at `now`; see [`RecvHalf::handle_ring`]. A violation of the
    /// framing closes the connection, and is returned for the driver to log.
    #[inline]
    pub fn handle_ring(
        &mut self,
        front: &[u8],
        len: usize,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<usize>, FrameError> {
        let front = self.recv.handle_ring(front, len, limits, now);
        front.inspect_err(|error| self.send.handle_violation(*error, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn second(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn limits() -> Limits {
        Limits::new()
            .with_max_message(100)
            .with_stream_idle_timeout(Duration::from_secs(60))
            .with_first_message_timeout(Duration::from_secs(60))
            .with_frame_timeout(Duration::from_secs(10))
            .with_write_stall_timeout(Duration::from_secs(30))
            .with_drain_timeout(Duration::from_secs(5))
    }

    fn accepted() -> Connection<RingDecoder> {
        Connection::accepted(RingDecoder::new(), second(0))
    }

    #[test]
    fn the_deadline_is_that_of_the_half_that_is_due_first() {
        let limits = limits();
        let mut connection = accepted();
        assert_eq!(connection.poll_timeout(false, &limits), second(60));
        connection.send.handle_written(false, 10, second(20));
        assert_eq!(connection.poll_timeout(false, &limits), second(50));
        let half = connection.recv.handle_ring(b"\0", 1, &limits, second(25));
        assert_eq!(half, Ok(None));
        assert_eq!(connection.poll_timeout(false, &limits), second(35));
        connection.handle_timeout(false, second(35), &limits);
        let reason = CloseReason::Timeout(Timeout::Frame);
        assert_eq!(connection.poll_action(10), Action::Reset(reason));
    }

    #[test]
    fn a_stalled_write_counts_before_an_idle_peer() {
        let limits = limits();
        let mut connection = accepted();
        connection.send.handle_written(false, 10, second(30));
        connection.handle_timeout(false, second(60), &limits);
        let reason = CloseReason::Timeout(Timeout::WriteStall);
        assert_eq!(connection.poll_action(10), Action::Reset(reason));
    }

    #[test]
    fn a_peer_whose_input_has_not_been_delivered_is_not_idle() {
        let limits = limits();
        let mut connection = accepted();
        assert_eq!(connection.poll_timeout(true, &limits), Instant::NEVER);
        connection.handle_timeout(true, second(60), &limits);
        assert_eq!(connection.state(), State::Open);
        connection.handle_timeout(false, second(60), &limits);
        let reason = CloseReason::Timeout(Timeout::Idle);
        assert_eq!(connection.poll_action(0), Action::Close(reason));
    }

    #[test]
    fn a_connection_that_closes_has_no_idle_clock() {
        let limits = limits();
        let mut connection = accepted();
        connection.close(second(58));
        assert_eq!(connection.poll_action(10), Action::Wait);
        assert_eq!(connection.poll_timeout(false, &limits), second(63));
        connection.handle_timeout(false, second(62), &limits);
        assert_eq!(connection.state(), State::Draining);
    }

    #[test]
    fn a_pause_ends_when_the_connection_closes() {
        let mut connection = accepted();
        assert_eq!(connection.reading(), Reading::Deliver);
        assert!(connection.recv.set_paused(true, second(1)));
        assert!(!connection.recv.set_paused(true, second(1)));
        assert_eq!(connection.reading(), Reading::Hold);
        connection.close(second(2));
        assert_eq!(connection.reading(), Reading::Discard);
        connection.handle_fin(second(3));
        assert_eq!(connection.poll_action(0), Action::Close(CloseReason::Local));
    }

    #[test]
    fn the_idle_clock_starts_at_the_handshake() {
        let limits = limits();
        let mut connection = Connection::connecting(RingDecoder::new(), second(0));
        assert_eq!(connection.reading(), Reading::Hold);
        assert_eq!(connection.poll_timeout(false, &limits), second(10));
        connection.handle_connected(second(9));
        assert_eq!(connection.poll_timeout(false, &limits), second(69));
        let mut paused = Connection::connecting(RingDecoder::new(), second(0));
        paused.recv.set_paused(true, second(1));
        paused.handle_connected(second(9));
        assert_eq!(paused.poll_timeout(false, &limits), Instant::NEVER);
    }

    #[test]
    fn a_connection_admits_and_aborts_as_its_sending_half_does() {
        let limits = limits();
        let mut connection = accepted();
        let backlog = Backlog::growing(0, 0);
        assert_eq!(connection.admit(3, backlog, &limits), Ok([0, 3]));
        let too_long = SendError::TooLong {
            len: 101,
            limit: 100,
        };
        assert_eq!(connection.admit(101, backlog, &limits), Err(too_long));
        connection.abort(CloseReason::Io);
        assert_eq!(
            connection.admit(3, backlog, &limits),
            Err(SendError::Closed)
        );
        assert_eq!(connection.poll_action(0), Action::Reset(CloseReason::Io));
    }

    #[test]
    fn a_violation_closes_and_nothing_more_is_decoded() {
        let limits = limits();
        let mut connection = accepted();
        let error = FrameError::TooLong {
            declared: 101,
            limit: 100,
        };
        let front = connection.handle_ring(b"\0\x65", 2, &limits, second(1));
        assert_eq!(front, Err(error));
        assert_eq!(connection.reading(), Reading::Discard);
        assert_eq!(connection.poll_action(0), Action::SendFin);
    }

    #[test]
    fn a_fin_inside_a_frame_truncates_it() {
        let mut connection = accepted();
        let front = connection.handle_ring(b"\0", 1, &limits(), second(1));
        assert_eq!(front, Ok(None));
        connection.handle_fin(second(2));
        let truncated = Action::Close(CloseReason::Truncated);
        assert_eq!(connection.poll_action(0), truncated);
    }
}
