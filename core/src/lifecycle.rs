//! How a connection opens and closes: every state, every input, one table.
//!
//! A connection begins as `Connecting` (we called) or `Open` (we were called, or it is a
//! datagram connection, which needs no handshake). It ends as `Closed`, once, with one
//! [`CloseReason`].
//!
//! Between the two lies the question of what happens to messages that were accepted by
//! `send` and have not left yet. Whoever can still be reached gets them: a local `close`,
//! a peer that has finished sending and a peer that broke the framing all lead to
//! `Draining`, where nothing more is received or accepted, and what is queued goes out.
//! Whoever cannot be reached does not: a reset, a timeout, an error of the transport and
//! a local `abort` lead straight to `Closed`.
//!
//! After a local `close` of a stream there is one step more. A socket closed while its
//! peer still sends is reset by the operating system, and a reset can overtake data on
//! its way to the peer. So the driver ends its own direction and waits in `Finishing`
//! for the peer to end the other. The same holds for a peer that broke the framing: it has
//! not ended its direction, and what it still sends must be read (and dropped), or the
//! reset that answers it destroys what was sent to the peer before.
//!
//! A driver that stops need not wait in `Finishing` longer than until the peer's transport
//! has acknowledged everything, this side's end included (`Acknowledged`).
//!
//! | state | input | next |
//! | --- | --- | --- |
//! | `Connecting` | `Connected` | `Open` |
//! | `Connecting` | `Close`, nothing queued | `Closed(Local)` |
//! | `Connecting` | `Close`, something queued | `Draining` |
//! | `Connecting` | `Failed(reason)` | `Closed(reason)` |
//! | `Open` | `Close` | `Draining`, to end as `Local` |
//! | `Open` | `Ended(reason)` | `Draining`, to end as that reason |
//! | `Open` | `Violated(error)` | `Draining`, to end as `Protocol(error)` |
//! | `Open` | `Failed(reason)` | `Closed(reason)` |
//! | `Draining` | `Connected` | `Draining` |
//! | `Draining` | `Ended` | `Draining`; `Finishing` will be passed over |
//! | `Draining` | `Flushed`, a stream whose peer has not ended its direction | `Finishing` |
//! | `Draining` | `Flushed`, otherwise | `Closed`, as it was to end |
//! | `Draining` | `Failed(reason)` | `Closed(reason)` |
//! | `Finishing` | `Ended`, `Acknowledged` or `Failed` | `Closed`, as it was to end |
//!
//! Every pair that is not in the table leaves the state as it is.

use crate::frame::FrameError;
use crate::transport::Transport;
use core::fmt;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// We called the peer; it has not answered. Messages can be queued.
    Connecting,
    /// Messages go both ways.
    Open,
    /// Nothing more is received or accepted; what is queued goes out.
    Draining,
    /// Everything went out and our end was sent; the peer's is awaited.
    Finishing,
    /// It is over.
    Closed,
}

/// What can happen to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The peer answered our call.
    Connected,
    /// The application asked to deliver what was sent and then close.
    Close {
        /// Whether anything waits to be sent.
        queued: bool,
    },
    /// The peer ended its direction and may still listen: [`CloseReason::Peer`] or
    /// [`CloseReason::Truncated`].
    Ended(CloseReason),
    /// The peer broke the framing. Nothing more of it can be understood, but its direction is
    /// still open, and it may still listen.
    Violated(FrameError),
    /// Nothing waits to be sent any more.
    Flushed,
    /// The peer's transport has acknowledged everything that was sent, this side's end
    /// included. A driver tells this only if it is not to wait for the peer's end.
    Acknowledged,
    /// The connection cannot go on, for this reason.
    Failed(CloseReason),
}

/// Why a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// This side called `close` or `abort`, or stopped.
    Local,
    /// The peer closed, between two messages.
    Peer,
    /// The peer closed inside a frame. The part that had arrived is not delivered.
    Truncated,
    /// The peer reset the connection, or vanished and the transport noticed.
    Reset,
    /// Nobody listens at the address we called.
    Refused,
    /// Something took too long.
    Timeout(Timeout),
    /// The peer broke the protocol.
    Protocol(FrameError),
    /// A bound on memory was reached and this connection was given up for it.
    Overflow,
    /// The handler panicked.
    Panicked,
    /// The transport failed in another way; the driver logs which.
    Io,
}

/// What took too long. Each has its duration in [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timeout {
    /// The peer did not answer our call.
    Connect,
    /// A frame began and did not end.
    Frame,
    /// The peer of an accepted stream did not begin its first message.
    FirstMessage,
    /// The peer said nothing.
    Idle,
    /// The peer took none of what was queued for it.
    WriteStall,
    /// What was queued at the close could not be delivered in time.
    Drain,
}

impl CloseReason {
    /// How many kinds of reason there are: every timeout counts as one.
    pub const KINDS: usize = 15;

    /// A number below [`CloseReason::KINDS`] for each kind of reason, to count by.
    pub const fn kind(self) -> usize {
        match self {
            CloseReason::Local => 0,
            CloseReason::Peer => 1,
            CloseReason::Truncated => 2,
            CloseReason::Reset => 3,
            CloseReason::Refused => 4,
            CloseReason::Timeout(Timeout::Connect) => 5,
            CloseReason::Timeout(Timeout::Frame) => 6,
            CloseReason::Timeout(Timeout::Idle) => 7,
            CloseReason::Timeout(Timeout::WriteStall) => 8,
            CloseReason::Timeout(Timeout::Drain) => 9,
            CloseReason::Protocol(_) => 10,
            CloseReason::Overflow => 11,
            CloseReason::Panicked => 12,
            CloseReason::Io => 13,
            CloseReason::Timeout(Timeout::FirstMessage) => 14,
        }
    }

    /// The name of each kind, in the order of [`CloseReason::kind`].
    pub const KIND_NAMES: [&'static str; Self::KINDS] = [
        "local",
        "peer",
        "truncated",
        "reset",
        "refused",
        "connect timeout",
        "frame timeout",
        "idle timeout",
        "write stall",
        "drain timeout",
        "protocol",
        "overflow",
        "panicked",
        "io",
        "first message timeout",
    ];
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            CloseReason::Local => "closed by this side",
            CloseReason::Peer => "closed by the peer",
            CloseReason::Truncated => "closed by the peer inside a frame",
            CloseReason::Reset => "reset by the peer",
            CloseReason::Refused => "refused: nobody listens there",
            CloseReason::Timeout(Timeout::Connect) => "the peer did not answer the call in time",
            CloseReason::Timeout(Timeout::Frame) => "a frame began and did not end in time",
            CloseReason::Timeout(Timeout::FirstMessage) => "the peer connected and sent no message",
            CloseReason::Timeout(Timeout::Idle) => "the peer was silent too long",
            CloseReason::Timeout(Timeout::WriteStall) => "the peer stopped reading",
            CloseReason::Timeout(Timeout::Drain) => {
                "what was queued at the close was not delivered in time"
            }
            CloseReason::Protocol(error) => return error.fmt(f),
            CloseReason::Overflow => "given up for lack of memory",
            CloseReason::Panicked => "the handler panicked",
            CloseReason::Io => "the transport failed",
        };
        f.write_str(text)
    }
}

/// The state of one connection. [`Lifecycle::handle`] is the table above.
#[derive(Clone, Copy, Debug)]
pub struct Lifecycle {
    state: State,
    transport: Transport,
    /// Set once it is known that, and why, the connection will close.
    reason: Option<CloseReason>,
    peer_ended: bool,
}

impl Lifecycle {
    /// A connection that we called. A datagram connection has no handshake and is open.
    pub const fn connecting(transport: Transport) -> Self {
        let state = match transport {
            Transport::Tcp => State::Connecting,
            Transport::Udp => State::Open,
        };
        Lifecycle {
            state,
            transport,
            reason: None,
            peer_ended: false,
        }
    }

    /// A connection on which we were called.
    pub const fn accepted(transport: Transport) -> Self {
        Lifecycle {
            state: State::Open,
            transport,
            reason: None,
            peer_ended: false,
        }
    }

    /// The state it is in.
    pub const fn state(&self) -> State {
        self.state
    }

    /// What carries it.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// Why it closed; `None` before it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.reason.filter(|_| self.state == State::Closed)
    }

    /// Lets `input` happen. Returns whether the state changed.
    pub fn handle(&mut self, input: Input) -> bool {
        use CloseReason::Local;
        use Input::{Acknowledged, Close, Connected, Ended, Failed, Flushed, Violated};
        use State::{Closed, Connecting, Draining, Finishing, Open};
        let (next, reason) = match (self.state, input) {
            (Connecting, Connected) => (Open, None),
            (Connecting, Close { queued: false }) => (Closed, Some(Local)),
            (Connecting, Close { queued: true }) | (Open, Close { .. }) => (Draining, Some(Local)),
            (Open, Ended(reason)) => (Draining, Some(reason)),
            (Open, Violated(error)) => (Draining, Some(CloseReason::Protocol(error))),
            (Connecting | Open | Draining, Failed(reason)) => (Closed, Some(reason)),
            (Draining, Flushed) if self.awaits_peer() => (Finishing, self.reason),
            (Draining, Flushed) | (Finishing, Ended(_) | Failed(_) | Acknowledged) => {
                (Closed, self.reason)
            }
            _ => (self.state, self.reason),
        };
        self.peer_ended |= matches!(input, Ended(_));
        let changed = next != self.state;
        self.state = next;
        self.reason = reason;
        changed
    }

    /// Whether the peer, once everything is flushed, still has to end its direction.
    fn awaits_peer(&self) -> bool {
        self.transport == Transport::Tcp && !self.peer_ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(inputs: &[Input]) -> Lifecycle {
        let mut lifecycle = Lifecycle::connecting(Transport::Tcp);
        for input in inputs {
            lifecycle.handle(*input);
        }
        lifecycle
    }

    const CLOSE: Input = Input::Close { queued: true };
    const PEER: Input = Input::Ended(CloseReason::Peer);
    const RESET: Input = Input::Failed(CloseReason::Reset);

    #[test]
    fn a_close_delivers_and_then_waits_for_the_peer() {
        let mut lifecycle = after(&[Input::Connected, CLOSE]);
        assert_eq!(lifecycle.state(), State::Draining);
        assert_eq!(lifecycle.close_reason(), None);
        lifecycle.handle(Input::Flushed);
        assert_eq!(lifecycle.state(), State::Finishing);
        lifecycle.handle(PEER);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn a_peer_that_finished_is_not_waited_for() {
        let lifecycle = after(&[Input::Connected, CLOSE, PEER, Input::Flushed]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Local));
        let lifecycle = after(&[Input::Connected, PEER, Input::Flushed]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Peer));
    }

    #[test]
    fn a_peer_that_broke_the_framing_has_not_ended_its_direction() {
        let error = FrameError::TooLong {
            declared: 2,
            limit: 1,
        };
        let mut lifecycle = after(&[Input::Connected, Input::Violated(error), Input::Flushed]);
        assert_eq!(lifecycle.state(), State::Finishing);
        lifecycle.handle(PEER);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Protocol(error)));
        let ended = after(&[
            Input::Connected,
            Input::Violated(error),
            PEER,
            Input::Flushed,
        ]);
        assert_eq!(ended.close_reason(), Some(CloseReason::Protocol(error)));
    }

    #[test]
    fn an_acknowledged_end_need_not_be_answered() {
        let lifecycle = after(&[Input::Connected, CLOSE, Input::Acknowledged]);
        assert_eq!(lifecycle.state(), State::Draining, "not before it was sent");
        let lifecycle = after(&[Input::Connected, CLOSE, Input::Flushed, Input::Acknowledged]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn a_reset_before_everything_went_out_is_the_reason_and_after_it_is_not() {
        let lifecycle = after(&[Input::Connected, CLOSE, RESET]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Reset));
        let lifecycle = after(&[Input::Connected, CLOSE, Input::Flushed, RESET]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn a_call_given_up_with_messages_queued_still_delivers_them() {
        let lifecycle = after(&[CLOSE, Input::Connected]);
        assert_eq!(lifecycle.state(), State::Draining);
        let lifecycle = after(&[Input::Close { queued: false }]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn a_datagram_connection_has_no_handshake_at_either_end() {
        let mut lifecycle = Lifecycle::connecting(Transport::Udp);
        assert_eq!(lifecycle.state(), State::Open);
        lifecycle.handle(Input::Close { queued: false });
        lifecycle.handle(Input::Flushed);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn closed_is_the_end() {
        for input in [Input::Connected, CLOSE, PEER, Input::Flushed, RESET] {
            let mut lifecycle = after(&[Input::Failed(CloseReason::Refused)]);
            assert!(!lifecycle.handle(input));
            assert_eq!(lifecycle.close_reason(), Some(CloseReason::Refused));
        }
    }

    #[test]
    fn every_kind_of_reason_has_a_number_a_name_and_a_sentence_of_its_own() {
        use std::string::ToString;
        let too_long = FrameError::TooLong {
            declared: 5,
            limit: 4,
        };
        let reasons = [
            (CloseReason::Local, "local"),
            (CloseReason::Peer, "peer"),
            (CloseReason::Truncated, "truncated"),
            (CloseReason::Reset, "reset"),
            (CloseReason::Refused, "refused"),
            (CloseReason::Timeout(Timeout::Connect), "connect timeout"),
            (CloseReason::Timeout(Timeout::Frame), "frame timeout"),
            (CloseReason::Timeout(Timeout::Idle), "idle timeout"),
            (CloseReason::Timeout(Timeout::WriteStall), "write stall"),
            (CloseReason::Timeout(Timeout::Drain), "drain timeout"),
            (CloseReason::Protocol(too_long), "protocol"),
            (CloseReason::Overflow, "overflow"),
            (CloseReason::Panicked, "panicked"),
            (CloseReason::Io, "io"),
            (
                CloseReason::Timeout(Timeout::FirstMessage),
                "first message timeout",
            ),
        ];
        assert_eq!(reasons.len(), CloseReason::KINDS);
        let mut sentences = std::collections::BTreeSet::new();
        for (kind, (reason, name)) in reasons.into_iter().enumerate() {
            assert_eq!(reason.kind(), kind);
            assert_eq!(CloseReason::KIND_NAMES[kind], name);
            assert!(sentences.insert(reason.to_string()));
        }
        let protocol = CloseReason::Protocol(too_long).to_string();
        assert_eq!(protocol, too_long.to_string());
    }
}
