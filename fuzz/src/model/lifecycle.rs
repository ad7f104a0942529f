//! The table of the lifecycle, row by row, as it stands in the documentation.

use arbitrary::Arbitrary;
use cubenet_core::connection::lifecycle::Input;
use cubenet_core::{CloseReason, FrameError, State, Timeout};
use std::fmt;

/// An input without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Input::TransportConnected`].
    TransportConnected,
    /// [`Input::Connected`].
    Connected,
    /// [`Input::Close`].
    Close,
    /// [`Input::Fin`].
    Fin,
    /// [`Input::Violated`].
    Violated,
    /// [`Input::Flushed`].
    Flushed,
    /// [`Input::Acknowledged`].
    Acknowledged,
    /// [`Input::Failed`].
    Failed,
}

/// What must hold besides for a row to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing.
    Always,
    /// The peer's FIN has not come.
    FinIsDue,
    /// The peer's FIN has come.
    FinIsNotDue,
}

/// Where the reason of the close comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// This side closed.
    Local,
    /// The handshake was not completed.
    Handshake,
    /// The input says.
    Given,
    /// It stays as it was.
    Kept,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// In this state
    pub from: State,
    /// this input,
    pub on: Kind,
    /// if this holds,
    pub when: When,
    /// leads to this state,
    pub to: State,
    /// for this reason.
    pub because: Because,
}

const fn row(from: State, on: Kind, when: When, to: State, because: Because) -> Row {
    Row {
        from,
        on,
        when,
        to,
        because,
    }
}

/// The table: every state, every input. The rows that change nothing are in it too.
pub const TABLE: [Row; 65] = {
    use Because::{Given, Handshake, Kept, Local};
    use Kind::{
        Acknowledged, Close, Connected, Failed, Fin, Flushed, TransportConnected, Violated,
    };
    use State::{
        Closed, ClosingEarly, ClosingInHandshake, Connecting, Draining, Finishing, Handshaking,
        Open,
    };
    use When::{Always, FinIsDue, FinIsNotDue};
    [
        row(Connecting, TransportConnected, Always, Handshaking, Kept),
        row(Connecting, Connected, Always, Open, Kept),
        row(Connecting, Close, Always, ClosingEarly, Local),
        row(Connecting, Fin, Always, Connecting, Kept),
        row(Connecting, Violated, Always, Connecting, Kept),
        row(Connecting, Flushed, Always, Connecting, Kept),
        row(Connecting, Acknowledged, Always, Connecting, Kept),
        row(Connecting, Failed, Always, Closed, Given),
        row(
            ClosingEarly,
            TransportConnected,
            Always,
            ClosingInHandshake,
            Kept,
        ),
        row(ClosingEarly, Connected, Always, Draining, Kept),
        row(ClosingEarly, Close, Always, ClosingEarly, Kept),
        row(ClosingEarly, Fin, Always, ClosingEarly, Kept),
        row(ClosingEarly, Violated, Always, ClosingEarly, Kept),
        row(ClosingEarly, Flushed, Always, Closed, Kept),
        row(ClosingEarly, Acknowledged, Always, ClosingEarly, Kept),
        row(ClosingEarly, Failed, Always, Closed, Given),
        row(Handshaking, TransportConnected, Always, Handshaking, Kept),
        row(Handshaking, Connected, Always, Open, Kept),
        row(Handshaking, Close, Always, ClosingInHandshake, Local),
        row(Handshaking, Fin, Always, Closed, Handshake),
        row(Handshaking, Violated, Always, Draining, Given),
        row(Handshaking, Flushed, Always, Handshaking, Kept),
        row(Handshaking, Acknowledged, Always, Handshaking, Kept),
        row(Handshaking, Failed, Always, Closed, Given),
        row(
            ClosingInHandshake,
            TransportConnected,
            Always,
            ClosingInHandshake,
            Kept,
        ),
        row(ClosingInHandshake, Connected, Always, Draining, Kept),
        row(ClosingInHandshake, Close, Always, ClosingInHandshake, Kept),
        row(ClosingInHandshake, Fin, Always, Closed, Handshake),
        row(ClosingInHandshake, Violated, Always, Draining, Given),
        row(ClosingInHandshake, Flushed, Always, Closed, Kept),
        row(
            ClosingInHandshake,
            Acknowledged,
            Always,
            ClosingInHandshake,
            Kept,
        ),
        row(ClosingInHandshake, Failed, Always, Closed, Given),
        row(Open, TransportConnected, Always, Open, Kept),
        row(Open, Connected, Always, Open, Kept),
        row(Open, Close, Always, Draining, Local),
        row(Open, Fin, Always, Draining, Given),
        row(Open, Violated, Always, Draining, Given),
        row(Open, Flushed, Always, Open, Kept),
        row(Open, Acknowledged, Always, Open, Kept),
        row(Open, Failed, Always, Closed, Given),
        row(Draining, TransportConnected, Always, Draining, Kept),
        row(Draining, Connected, Always, Draining, Kept),
        row(Draining, Close, Always, Draining, Kept),
        row(Draining, Fin, Always, Draining, Kept),
        row(Draining, Violated, Always, Draining, Kept),
        row(Draining, Flushed, FinIsDue, Finishing, Kept),
        row(Draining, Flushed, FinIsNotDue, Closed, Kept),
        row(Draining, Acknowledged, Always, Draining, Kept),
        row(Draining, Failed, Always, Closed, Given),
        row(Finishing, TransportConnected, Always, Finishing, Kept),
        row(Finishing, Connected, Always, Finishing, Kept),
        row(Finishing, Close, Always, Finishing, Kept),
        row(Finishing, Fin, Always, Closed, Kept),
        row(Finishing, Violated, Always, Finishing, Kept),
        row(Finishing, Flushed, Always, Finishing, Kept),
        row(Finishing, Acknowledged, Always, Closed, Kept),
        row(Finishing, Failed, Always, Closed, Kept),
        row(Closed, TransportConnected, Always, Closed, Kept),
        row(Closed, Connected, Always, Closed, Kept),
        row(Closed, Close, Always, Closed, Kept),
        row(Closed, Fin, Always, Closed, Kept),
        row(Closed, Violated, Always, Closed, Kept),
        row(Closed, Flushed, Always, Closed, Kept),
        row(Closed, Acknowledged, Always, Closed, Kept),
        row(Closed, Failed, Always, Closed, Kept),
    ]
};

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row {
            from, on, when, to, ..
        } = self;
        let [from, on, to] = [format!("{from:?}"), format!("{on:?}"), format!("{to:?}")];
        write!(f, "{from:<18} | {on:<18} | {to:<18}")?;
        match when {
            When::Always => Ok(()),
            When::FinIsDue => f.write_str(" | the peer's FIN is to come"),
            When::FinIsNotDue => f.write_str(" | no FIN is to come"),
        }
    }
}

/// A connection as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its state.
    pub state: State,
    /// Why it closes, once that is known.
    pub reason: Option<CloseReason>,
    /// It is, or has been, open.
    pub was_open: bool,
    peer_fin: bool,
}

impl Model {
    /// A connection that begins in this state.
    pub fn new(state: State) -> Self {
        Model {
            state,
            reason: None,
            was_open: state == State::Open,
            peer_fin: false,
        }
    }

    /// Why it closed; `None` before it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.reason.filter(|_| self.state == State::Closed)
    }

    /// Lets `input` happen. Returns the number of the row that applied.
    pub fn handle(&mut self, input: Input) -> usize {
        let kind = kind(input);
        let due = !self.peer_fin;
        let applies = |row: &Row| {
            let holds = match row.when {
                When::Always => true,
                When::FinIsDue => due,
                When::FinIsNotDue => !due,
            };
            row.from == self.state && row.on == kind && holds
        };
        let at = TABLE.iter().position(applies);
        let at = at.expect("the table has a row for everything");
        let Row { to, because, .. } = TABLE[at];
        match (because, input) {
            (Because::Local, _) => self.reason = Some(CloseReason::Local),
            (Because::Handshake, _) => self.reason = Some(CloseReason::Handshake),
            (
                Because::Given,
                Input::Fin(reason) | Input::Failed(reason) | Input::Violated(reason),
            ) => self.reason = Some(reason),
            _ => {}
        }
        self.was_open |= to == State::Open;
        self.peer_fin |= kind == Kind::Fin;
        self.state = to;
        at
    }
}

fn kind(input: Input) -> Kind {
    match input {
        Input::TransportConnected => Kind::TransportConnected,
        Input::Connected => Kind::Connected,
        Input::Close => Kind::Close,
        Input::Fin(_) => Kind::Fin,
        Input::Violated(_) => Kind::Violated,
        Input::Flushed => Kind::Flushed,
        Input::Acknowledged => Kind::Acknowledged,
        Input::Failed(_) => Kind::Failed,
        other => panic!("the table does not know {other:?}"),
    }
}

/// A way for the peer to say nothing more that can be understood.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum End {
    /// It ends its direction between two messages.
    Peer,
    /// It ends its direction inside a frame.
    Truncated,
    /// It breaks the framing.
    Protocol,
}

/// What a peer does that breaks the framing.
pub const VIOLATION: FrameError = FrameError::TooLong {
    declared: 2,
    limit: 1,
};

impl End {
    /// All of them.
    pub const ALL: [End; 3] = [End::Peer, End::Truncated, End::Protocol];

    /// The same as an input.
    pub fn input(self) -> Input {
        match self {
            End::Peer => Input::Fin(CloseReason::Peer),
            End::Truncated => Input::Fin(CloseReason::Truncated),
            End::Protocol => Input::Violated(CloseReason::Protocol(VIOLATION)),
        }
    }
}

/// A way for a connection to fail.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Failure {
    /// This side aborted.
    Local,
    /// The peer reset it.
    Reset,
    /// No socket listens.
    Refused,
    /// It was given up for lack of memory.
    Overflow,
    /// Its peer was silent.
    Idle,
    /// The transport failed.
    Io,
}

impl Failure {
    /// All of them.
    pub const ALL: [Failure; 6] = [
        Failure::Local,
        Failure::Reset,
        Failure::Refused,
        Failure::Overflow,
        Failure::Idle,
        Failure::Io,
    ];

    /// The same as a reason.
    pub fn reason(self) -> CloseReason {
        match self {
            Failure::Local => CloseReason::Local,
            Failure::Reset => CloseReason::Reset,
            Failure::Refused => CloseReason::Refused,
            Failure::Overflow => CloseReason::Overflow,
            Failure::Idle => CloseReason::Timeout(Timeout::Idle),
            Failure::Io => CloseReason::Io,
        }
    }
}
