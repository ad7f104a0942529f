//! How a stream connection opens and closes: every state, every input, one table.
//!
//! A connection begins as `Connecting` (this side connects) or `Open` (this side accepted it).
//! With [layers](crate::layer) such as TLS between the transport and the framing, it is
//! `Handshaking` before it is `Open`, on both sides. It ends as `Closed`, once, with one
//! [`CloseReason`].
//!
//! A close delivers first what `send` has accepted. A local `close`, a FIN of the peer and a
//! violation of the framing all lead to `Draining` (a `close` before the connection is open, once
//! it would be): nothing more is received or accepted, and
//! the queue is written out. A reset, a timeout, a failed transport and a local `abort` lead
//! straight to `Closed`, and the queue is lost.
//!
//! After a local `close` there is one state more. The operating system resets a socket that is
//! closed while its peer still sends, and a reset can overtake data on its way to the peer. So
//! the driver sends a FIN and waits in `Finishing` for the FIN of the peer. The same holds after
//! a violation: the peer has not sent a FIN, and what it still sends must be read and dropped. A
//! violation is a frame, a record or a handshake that breaks its protocol.
//!
//! A driver that stops need not wait in `Finishing` longer than until the peer's transport
//! has acknowledged everything, this side's FIN included (`Acknowledged`).
//!
//! | state | input | next |
//! | --- | --- | --- |
//! | `Connecting` | `Connected` | `Open` |
//! | `Connecting` | `TransportConnected` | `Handshaking` |
//! | `Connecting` | `Close` | `ClosingEarly`, to end as `Local` |
//! | `Connecting` | `Failed(reason)` | `Closed(reason)` |
//! | `ClosingEarly` | `Connected` | `Draining` |
//! | `ClosingEarly` | `TransportConnected` | `ClosingInHandshake` |
//! | `ClosingEarly` | `Flushed` | `Closed(Local)` |
//! | `ClosingEarly` | `Failed(reason)` | `Closed(reason)` |
//! | `Handshaking` | `Connected` | `Open` |
//! | `Handshaking` | `Close` | `ClosingInHandshake`, to end as `Local` |
//! | `Handshaking` | `Violated(reason)` | `Draining`, to end as that reason |
//! | `Handshaking` | `Fin` | `Closed(Handshake)` |
//! | `Handshaking` | `Failed(reason)` | `Closed(reason)` |
//! | `ClosingInHandshake` | `Connected` | `Draining` |
//! | `ClosingInHandshake` | `Flushed` | `Closed(Local)` |
//! | `ClosingInHandshake` | `Violated(reason)` | `Draining`, to end as that reason |
//! | `ClosingInHandshake` | `Fin` | `Closed(Handshake)` |
//! | `ClosingInHandshake` | `Failed(reason)` | `Closed(reason)` |
//! | `Open` | `Close` | `Draining`, to end as `Local` |
//! | `Open` | `Fin(reason)` | `Draining`, to end as that reason |
//! | `Open` | `Violated(reason)` | `Draining`, to end as that reason |
//! | `Open` | `Failed(reason)` | `Closed(reason)` |
//! | `Draining` | `Fin` | `Draining`; `Finishing` will be passed over |
//! | `Draining` | `Flushed`, the peer's FIN is still to come | `Finishing` |
//! | `Draining` | `Flushed`, otherwise | `Closed`, as it was to end |
//! | `Draining` | `Failed(reason)` | `Closed(reason)` |
//! | `Finishing` | `Fin`, `Acknowledged` or `Failed` | `Closed`, as it was to end |
//!
//! A `Close` before `Connected` with nothing queued is followed by `Flushed`, and ends there: a peer
//! that has not answered sends no FIN.
//!
//! A pair that is not in the table leaves the state as it is. Datagram connections have no
//! handshake and no FIN; their smaller life is in [`datagram`](super::datagram).

use super::close_reason::CloseReason;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// This side connects; the peer has not answered. Messages can be queued.
    Connecting,
    /// This side closed before the peer had answered. What is queued is sent once it has.
    ClosingEarly,
    /// The transport is connected, and the layers agree with those of the peer. Messages can be
    /// queued.
    Handshaking,
    /// This side closed in the handshake of the layers. What is queued is sent after it.
    ClosingInHandshake,
    /// Messages go both ways.
    Open,
    /// Nothing more is received or accepted; the queue is written out.
    Draining,
    /// The queue is written out and this side's FIN follows it; the peer's FIN is awaited.
    Finishing,
    /// It is over.
    Closed,
}

impl State {
    /// The state of which `number` is the number, for a driver that keeps a copy in an atomic.
    #[inline]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            0 => State::Connecting,
            1 => State::ClosingEarly,
            2 => State::Handshaking,
            3 => State::ClosingInHandshake,
            4 => State::Open,
            5 => State::Draining,
            6 => State::Finishing,
            _ => State::Closed,
        }
    }

    /// Whether the application may send.
    #[inline]
    pub const fn accepts_messages(self) -> bool {
        matches!(self, State::Connecting | State::Handshaking | State::Open)
    }

    /// Whether the peer has yet to answer: there is nothing to read, and nothing can be written.
    #[inline]
    pub const fn is_connecting(self) -> bool {
        matches!(self, State::Connecting | State::ClosingEarly)
    }

    /// Whether the transport is connected, so that bytes can be written and read.
    #[inline]
    pub const fn is_connected(self) -> bool {
        !matches!(
            self,
            State::Connecting | State::ClosingEarly | State::Closed
        )
    }

    /// Whether the layers have yet to agree with those of the peer: what arrives is for them.
    #[inline]
    pub const fn is_handshaking(self) -> bool {
        matches!(self, State::Handshaking | State::ClosingInHandshake)
    }
}

/// What can happen to a stream connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Input {
    /// The transport is connected, and its layers begin their handshake.
    TransportConnected,
    /// The peer completed the handshake: that of the transport, and those of the layers.
    Connected,
    /// The application asked to deliver what was sent and then close.
    Close,
    /// The peer's FIN: [`CloseReason::Peer`] between two frames, [`CloseReason::Truncated`]
    /// inside one.
    Fin(CloseReason),
    /// The peer broke the protocol: of the framing ([`CloseReason::Protocol`]), of a layer
    /// ([`CloseReason::Layer`]) or of its handshake ([`CloseReason::Handshake`]). Its bytes can no
    /// longer be decoded, but its direction is still open, and it may still read.
    Violated(CloseReason),
    /// Nothing waits to be sent any more.
    Flushed,
    /// The peer's transport has acknowledged everything that was sent, this side's FIN
    /// included. A driver says so only if it is not to wait for the peer's FIN.
    Acknowledged,
    /// The connection cannot go on, for this reason.
    Failed(CloseReason),
}

/// The state of one stream connection. [`Lifecycle::handle`] is the table above.
#[derive(Clone, Copy, Debug)]
pub struct Lifecycle {
    state: State,
    /// Set once it is known that, and why, the connection will close.
    reason: Option<CloseReason>,
    /// It is, or has been, `Open`.
    was_open: bool,
    /// The peer's FIN has come.
    peer_fin: bool,
}

impl Lifecycle {
    /// A connection to which this side connects.
    pub const fn connecting() -> Self {
        Lifecycle {
            state: State::Connecting,
            reason: None,
            was_open: false,
            peer_fin: false,
        }
    }

    /// A connection that this side accepted, and whose layers begin their handshake.
    pub const fn handshaking() -> Self {
        Lifecycle {
            state: State::Handshaking,
            ..Lifecycle::connecting()
        }
    }

    /// A connection that this side accepted.
    pub const fn accepted() -> Self {
        Lifecycle {
            state: State::Open,
            was_open: true,
            ..Lifecycle::connecting()
        }
    }

    /// The state it is in.
    #[inline]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why it closed; `None` before it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.reason.filter(|_| self.state == State::Closed)
    }

    /// Whether it is, or has been, `Open`.
    pub const fn was_open(&self) -> bool {
        self.was_open
    }

    /// Lets `input` happen. Returns whether the state changed.
    pub fn handle(&mut self, input: Input) -> bool {
        use CloseReason::{Handshake, Local};
        use Input::{
            Acknowledged, Close, Connected, Failed, Fin, Flushed, TransportConnected, Violated,
        };
        use State::{
            Closed, ClosingEarly, ClosingInHandshake, Connecting, Draining, Finishing, Handshaking,
            Open,
        };
        let (next, reason) = match (self.state, input) {
            (Connecting | Handshaking, Connected) => (Open, None),
            (Connecting, TransportConnected) => (Handshaking, None),
            (Connecting, Close) => (ClosingEarly, Some(Local)),
            (ClosingEarly, TransportConnected) => (ClosingInHandshake, self.reason),
            (Handshaking, Close) => (ClosingInHandshake, Some(Local)),
            (ClosingEarly | ClosingInHandshake, Connected) => (Draining, self.reason),
            (Handshaking | ClosingInHandshake, Fin(_)) => (Closed, Some(Handshake)),
            (Open, Close) => (Draining, Some(Local)),
            (Open, Fin(reason)) | (Handshaking | ClosingInHandshake | Open, Violated(reason)) => {
                (Draining, Some(reason))
            }
            (
                Connecting | ClosingEarly | Handshaking | ClosingInHandshake | Open | Draining,
                Failed(reason),
            ) => (Closed, Some(reason)),
            (Draining, Flushed) if !self.peer_fin => (Finishing, self.reason),
            (ClosingEarly | ClosingInHandshake | Draining, Flushed)
            | (Finishing, Fin(_) | Failed(_) | Acknowledged) => (Closed, self.reason),
            _ => (self.state, self.reason),
        };
        self.was_open |= next == Open;
        self.peer_fin |= matches!(input, Fin(_));
        let changed = next != self.state;
        debug_assert!(
            !changed || self.state != Closed,
            "a closed connection stays closed"
        );
        debug_assert_eq!(
            next.accepts_messages(),
            reason.is_none(),
            "a connection that closes has a reason"
        );
        self.state = next;
        self.reason = reason;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameError;

    fn after(inputs: &[Input]) -> Lifecycle {
        let mut lifecycle = Lifecycle::connecting();
        for input in inputs {
            lifecycle.handle(*input);
        }
        lifecycle
    }

    const CLOSE: Input = Input::Close;
    const PEER: Input = Input::Fin(CloseReason::Peer);
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
        let mut lifecycle = after(&[
            Input::Connected,
            Input::Violated(CloseReason::Protocol(error)),
            Input::Flushed,
        ]);
        assert_eq!(lifecycle.state(), State::Finishing);
        lifecycle.handle(PEER);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Protocol(error)));
        let ended = after(&[
            Input::Connected,
            Input::Violated(CloseReason::Protocol(error)),
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
    fn a_close_before_the_handshake_still_delivers_what_is_queued() {
        let lifecycle = after(&[CLOSE, Input::Connected]);
        assert_eq!(lifecycle.state(), State::Draining);
        assert!(!lifecycle.was_open());
        let lifecycle = after(&[CLOSE, Input::Connected, Input::Flushed]);
        assert_eq!(lifecycle.state(), State::Finishing);
        let lifecycle = after(&[CLOSE, PEER, RESET]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Reset));
        let lifecycle = after(&[CLOSE, Input::Flushed]);
        assert_eq!(lifecycle.close_reason(), Some(CloseReason::Local));
    }

    #[test]
    fn it_was_open_from_the_handshake_on() {
        assert!(!after(&[]).was_open());
        assert!(after(&[Input::Connected]).was_open());
        assert!(after(&[Input::Connected, RESET]).was_open());
        assert!(!after(&[RESET]).was_open());
        assert!(Lifecycle::accepted().was_open());
    }

    #[test]
    fn bytes_go_from_the_handshake_to_the_close() {
        // Of each state: connecting, handshaking, connected, accepts messages.
        let states = [
            (State::Connecting, [true, false, false, true]),
            (State::ClosingEarly, [true, false, false, false]),
            (State::Handshaking, [false, true, true, true]),
            (State::ClosingInHandshake, [false, true, true, false]),
            (State::Open, [false, false, true, true]),
            (State::Draining, [false, false, true, false]),
            (State::Finishing, [false, false, true, false]),
            (State::Closed, [false, false, false, false]),
        ];
        for (state, expected) in states {
            let is = [
                state.is_connecting(),
                state.is_handshaking(),
                state.is_connected(),
                state.accepts_messages(),
            ];
            assert_eq!(is, expected, "{state:?}");
            assert_eq!(State::from_u8(state as u8), state);
        }
    }

    #[test]
    fn layers_shake_hands_between_the_transport_and_open() {
        let began = [Input::TransportConnected];
        assert_eq!(after(&began).state(), State::Handshaking);
        let opened = after(&[Input::TransportConnected, Input::Connected]);
        assert_eq!(opened.state(), State::Open);
        assert!(opened.was_open());
        let mut accepted = Lifecycle::handshaking();
        assert_eq!(accepted.state(), State::Handshaking);
        assert!(!accepted.was_open());
        accepted.handle(PEER);
        assert_eq!(accepted.close_reason(), Some(CloseReason::Handshake));
    }

    #[test]
    fn a_handshake_that_fails_is_the_reason_once_the_peer_has_the_alert() {
        let failed = Input::Violated(CloseReason::Handshake);
        for begun in [
            &[Input::TransportConnected][..],
            &[Input::TransportConnected, CLOSE],
        ] {
            let mut lifecycle = after(begun);
            lifecycle.handle(failed);
            assert_eq!(lifecycle.state(), State::Draining);
            lifecycle.handle(Input::Flushed);
            assert_eq!(lifecycle.state(), State::Finishing);
            lifecycle.handle(PEER);
            assert_eq!(lifecycle.close_reason(), Some(CloseReason::Handshake));
            assert!(!lifecycle.was_open());
        }
    }

    #[test]
    fn a_close_in_the_handshake_still_delivers_what_is_queued() {
        for closed in [
            [Input::TransportConnected, CLOSE],
            [CLOSE, Input::TransportConnected],
        ] {
            let mut lifecycle = after(&closed);
            assert_eq!(lifecycle.state(), State::ClosingInHandshake);
            let mut unfinished = lifecycle;
            unfinished.handle(PEER);
            assert_eq!(unfinished.close_reason(), Some(CloseReason::Handshake));
            let mut given_up = lifecycle;
            given_up.handle(Input::Flushed);
            assert_eq!(given_up.close_reason(), Some(CloseReason::Local));
            lifecycle.handle(Input::Connected);
            assert_eq!(lifecycle.state(), State::Draining);
            assert!(!lifecycle.was_open());
        }
    }

    #[test]
    fn closed_is_the_end() {
        for input in [Input::Connected, CLOSE, PEER, Input::Flushed, RESET] {
            let mut lifecycle = after(&[Input::Failed(CloseReason::Refused)]);
            assert!(!lifecycle.handle(input));
            assert_eq!(lifecycle.close_reason(), Some(CloseReason::Refused));
        }
    }
}
