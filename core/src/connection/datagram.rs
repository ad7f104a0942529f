//! The life of one datagram connection, in one byte: a device has many peers and little memory.
//!
//! A datagram connection has no handshake and no FIN. Its end is an empty datagram, the *close
//! datagram*, which may be lost. It begins as `Open`.
//!
//! | state | what happens | next |
//! | --- | --- | --- |
//! | `Open` | the application closes | `Draining` |
//! | `Draining` | the close datagram was sent and nothing waits | `Closed(Local)` |
//! | `Draining` | the peer's close datagram arrives | `Closed(Local)` |
//! | `Open` | the peer's close datagram arrives | `Closed(Peer)` |
//! | `Open`, `Draining` | it is aborted, for a reason | `Closed(reason)` |
//!
//! A peer that has closed is sent nothing more: it would take a datagram for a new connection.
//! The idle timeout of peers is the demultiplexer's ([`Demux`](crate::Demux)).

use super::close_reason::{CloseReason, Timeout};
use super::lifecycle::State;
use super::{Action, Backlog, Reading, reading};
use crate::limits::Limits;
use crate::send_error::SendError;

/// Whether a datagram of `len` bytes is accepted in this state and with this backlog.
///
/// One datagram is accepted whenever nothing waits on the connection and the driver has room.
#[inline]
pub fn admit(state: State, len: usize, backlog: Backlog, limits: &Limits) -> Result<(), SendError> {
    if !state.accepts_messages() {
        return Err(SendError::Closed);
    }
    let limit = limits.max_datagram().min(backlog.capacity);
    if len > limit {
        return Err(SendError::TooLong { len, limit });
    }
    if len == 0 {
        return Err(SendError::Empty);
    }
    backlog.admit(len, limits)
}

/// Whether a datagram that the transport did not take may be queued, if all connections together
/// then have `total` bytes queued. If not, it is dropped, and reported as
/// [`TransportError::NotSent`](crate::TransportError::NotSent): a datagram may be lost, and that is
/// better than memory without bound.
#[inline]
pub const fn may_queue(total: usize, limits: &Limits) -> bool {
    total <= limits.max_queued_total()
}

/// Whether the handler of a connection in this state gets errors: once it closes, nothing
/// but `closed` follows.
#[inline]
pub const fn reports_errors(state: State) -> bool {
    matches!(state, State::Open)
}

/// What is known of one datagram connection, whichever side began it: a phase, and two flags
/// below it. It begins as zero, so that memory full of peers that are not in use is all zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramHalf(u8);

const PAUSED: u8 = 1;
/// A datagram was refused as `Full`, and `writable` is owed.
const OWES_WRITABLE: u8 = 2;

/// The phases of [`DatagramHalf`], above its flags.
mod phase {
    pub(super) const OPEN: u8 = 0;
    /// The close datagram is to be sent.
    pub(super) const CLOSING: u8 = 1;
    /// The close datagram waits behind others.
    pub(super) const FIN_SENT: u8 = 2;
    /// Closed, and everything was handed to the transport.
    pub(super) const DELIVERED: u8 = 3;
    /// Closed for these reasons; what waits is lost.
    pub(super) const LOCAL: u8 = 4;
    pub(super) const PEER: u8 = 5;
    pub(super) const IDLE: u8 = 6;
    pub(super) const OVERFLOW: u8 = 7;
    pub(super) const PANICKED: u8 = 8;
    pub(super) const IO: u8 = 9;
}

/// The reason of a connection that has closed in this phase.
fn reason(closed: u8) -> CloseReason {
    match closed {
        phase::PEER => CloseReason::Peer,
        phase::IDLE => CloseReason::Timeout(Timeout::Idle),
        phase::OVERFLOW => CloseReason::Overflow,
        phase::PANICKED => CloseReason::Panicked,
        phase::IO => CloseReason::Io,
        _ => CloseReason::Local,
    }
}

impl DatagramHalf {
    /// A connection with a peer, whichever side spoke first.
    pub const fn new() -> Self {
        DatagramHalf(0)
    }

    #[inline]
    const fn phase(self) -> u8 {
        self.0 >> 2
    }

    fn enter(&mut self, phase: u8) {
        self.0 = phase << 2 | self.0 & (PAUSED | OWES_WRITABLE);
    }

    /// Where it is in its life: `Open`, `Draining` or `Closed`.
    #[inline]
    pub const fn state(&self) -> State {
        match self.phase() {
            phase::OPEN => State::Open,
            phase::CLOSING | phase::FIN_SENT => State::Draining,
            _ => State::Closed,
        }
    }

    /// Why it closed; `None` before it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        (self.state() == State::Closed).then(|| reason(self.phase()))
    }

    /// Whether a datagram of `len` bytes is accepted; see [`admit`]. After `Full`,
    /// [`DatagramHalf::poll_writable`] will say when there is room.
    pub fn admit(
        &mut self,
        len: usize,
        backlog: Backlog,
        limits: &Limits,
    ) -> Result<(), SendError> {
        let answer = admit(self.state(), len, backlog, limits);
        if answer == Err(SendError::Full) {
            self.handle_full();
        }
        answer
    }

    /// The driver has no room for a datagram that was admitted. Returns the error to answer
    /// with; [`DatagramHalf::poll_writable`] will say when there is room.
    pub fn handle_full(&mut self) -> SendError {
        self.0 |= OWES_WRITABLE;
        SendError::Full
    }

    /// Whether `writable` is owed and, with this much still waiting, due. Says so once.
    pub fn poll_writable(&mut self, backlog: Backlog, limits: &Limits) -> bool {
        let due = self.owes_writable() && backlog.has_room(limits);
        if due {
            self.0 &= !OWES_WRITABLE;
        }
        due
    }

    /// Whether a datagram was refused and `writable` is owed.
    #[inline]
    pub const fn owes_writable(&self) -> bool {
        self.0 & OWES_WRITABLE != 0 && self.phase() == phase::OPEN
    }

    /// What the driver does with datagrams of the peer. It has nowhere to hold them, so what is
    /// not delivered is dropped.
    #[inline]
    pub const fn reading(&self) -> Reading {
        reading(self.state(), self.is_paused())
    }

    /// Whether the application has paused delivery.
    #[inline]
    pub const fn is_paused(&self) -> bool {
        self.0 & PAUSED != 0
    }

    /// The application pauses or resumes delivery. The peer's idle timeout runs all the same.
    pub fn set_paused(&mut self, paused: bool) {
        self.0 = self.0 & !PAUSED | u8::from(paused);
    }

    /// The application closes: the peer is to be sent the close datagram, behind what was sent.
    pub fn close(&mut self) {
        if self.phase() == phase::OPEN {
            self.enter(phase::CLOSING);
        }
    }

    /// The peer's close datagram arrived.
    pub fn handle_close_datagram(&mut self) {
        match self.state() {
            State::Open => self.enter(phase::PEER),
            State::Closed => {}
            _ => self.enter(phase::LOCAL),
        }
    }

    /// The connection is not to go on: the application aborted it, its peer was idle too long
    /// or made way for another, its handler panicked, or the transport failed. What waits to be
    /// sent is lost. A reason that datagrams do not know counts as [`CloseReason::Io`].
    pub fn abort(&mut self, reason: CloseReason) {
        if self.state() == State::Closed {
            return;
        }
        self.enter(match reason {
            CloseReason::Local => phase::LOCAL,
            CloseReason::Peer => phase::PEER,
            CloseReason::Timeout(_) => phase::IDLE,
            CloseReason::Overflow => phase::OVERFLOW,
            CloseReason::Panicked => phase::PANICKED,
            _ => phase::IO,
        });
    }

    /// What the driver has to do next. To be asked after every input; `queued` bytes wait for
    /// the peer.
    pub fn poll_action(&mut self, queued: usize) -> Action {
        match self.phase() {
            phase::OPEN => Action::Wait,
            phase::CLOSING => Action::SendFin,
            phase::FIN_SENT if queued > 0 => Action::Wait,
            phase::FIN_SENT | phase::DELIVERED => {
                self.enter(phase::DELIVERED);
                Action::Close(CloseReason::Local)
            }
            aborted => Action::Reset(reason(aborted)),
        }
    }

    /// The driver has done [`Action::SendFin`]: the close datagram has left, or waits behind
    /// the others.
    pub fn handle_fin_sent(&mut self) {
        if self.phase() == phase::CLOSING {
            self.enter(phase::FIN_SENT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::new()
            .with_max_datagram(100)
            .with_max_queued(200)
            .with_low_watermark(50)
    }

    fn own(own: usize) -> Backlog {
        Backlog::growing(own, own)
    }

    #[test]
    fn a_close_sends_the_close_datagram_and_waits_for_what_is_before_it() {
        let mut half = DatagramHalf::new();
        assert_eq!(half.poll_action(10), Action::Wait);
        half.close();
        assert_eq!(half.state(), State::Draining);
        assert_eq!(half.poll_action(10), Action::SendFin);
        half.handle_fin_sent();
        assert_eq!(half.poll_action(10), Action::Wait);
        assert_eq!(half.close_reason(), None);
        assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
    }

    #[test]
    fn writable_is_due_once() {
        let mut half = DatagramHalf::new();
        assert_eq!(half.handle_full(), SendError::Full);
        assert!(!half.poll_writable(own(1_000_000), &limits()));
        assert!(half.poll_writable(own(0), &limits()));
        assert!(!half.poll_writable(own(0), &limits()));
        assert_eq!(half.state(), State::Open);
    }

    #[test]
    fn errors_are_reported_until_the_connection_closes() {
        let mut half = DatagramHalf::new();
        assert!(reports_errors(half.state()));
        half.close();
        assert!(!reports_errors(half.state()));
    }

    #[test]
    fn a_peer_that_has_closed_is_sent_nothing_more() {
        let mut half = DatagramHalf::new();
        half.handle_close_datagram();
        half.handle_close_datagram();
        assert_eq!(half.poll_action(10), Action::Reset(CloseReason::Peer));
        assert_eq!(half.admit(1, own(0), &limits()), Err(SendError::Closed));
    }

    #[test]
    fn a_close_of_this_side_is_local_whatever_the_peer_sends() {
        let mut half = DatagramHalf::new();
        half.close();
        half.handle_close_datagram();
        assert_eq!(half.poll_action(0), Action::Reset(CloseReason::Local));
        half.abort(CloseReason::Io);
        half.handle_close_datagram();
        half.handle_fin_sent();
        assert_eq!(half.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn an_abort_loses_what_waits_and_keeps_its_reason() {
        let reasons = [
            CloseReason::Local,
            CloseReason::Peer,
            CloseReason::Timeout(Timeout::Idle),
            CloseReason::Overflow,
            CloseReason::Panicked,
            CloseReason::Io,
        ];
        for reason in reasons {
            let mut half = DatagramHalf::default();
            half.close();
            half.abort(reason);
            assert_eq!(half.poll_action(10), Action::Reset(reason));
            assert_eq!(half.reading(), Reading::Discard);
        }
        let mut half = DatagramHalf::new();
        half.abort(CloseReason::Refused);
        assert_eq!(half.close_reason(), Some(CloseReason::Io));
    }

    #[test]
    fn datagrams_are_bounded_and_never_empty() {
        let limits = limits();
        let mut half = DatagramHalf::new();
        assert_eq!(half.admit(0, own(0), &limits), Err(SendError::Empty));
        let too_long = SendError::TooLong {
            len: 101,
            limit: 100,
        };
        assert_eq!(half.admit(101, own(0), &limits), Err(too_long));
        let fixed = half.admit(41, Backlog::fixed(0, 40), &limits);
        assert_eq!(fixed, Err(SendError::TooLong { len: 41, limit: 40 }));
        assert_eq!(half.admit(100, own(100), &limits), Ok(()));
        assert!(!half.poll_writable(own(0), &limits));
        assert_eq!(half.admit(100, own(101), &limits), Err(SendError::Full));
        assert!(!half.poll_writable(own(51), &limits));
        assert!(half.poll_writable(own(50), &limits));
        assert!(!half.poll_writable(own(50), &limits), "once");
    }

    #[test]
    fn a_datagram_that_the_driver_cannot_take_owes_a_writable() {
        let mut half = DatagramHalf::new();
        assert_eq!(half.handle_full(), SendError::Full);
        assert!(half.owes_writable());
        assert!(half.poll_writable(own(0), &limits()));
        half.handle_full();
        half.close();
        assert!(!half.owes_writable(), "it closes");
    }

    #[test]
    fn a_paused_connection_delivers_nothing() {
        let mut half = DatagramHalf::new();
        assert_eq!(half.reading(), Reading::Deliver);
        half.set_paused(true);
        assert!(half.is_paused());
        assert_eq!(half.reading(), Reading::Hold);
        half.set_paused(false);
        assert_eq!(half.reading(), Reading::Deliver);
    }

    #[test]
    fn it_takes_one_byte() {
        assert_eq!(size_of::<DatagramHalf>(), 1);
    }
}
