//! Why a connection closed, and a value for each kind of reason.

use crate::frame::FrameError;
use core::fmt;

/// Why a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side called `close` or `abort`, or stopped.
    Local,
    /// The peer closed, between two messages.
    Peer,
    /// The peer closed inside a frame. The part that had arrived is not delivered.
    Truncated,
    /// The peer reset the connection, or vanished and the transport noticed.
    Reset,
    /// No socket listens at the peer's address.
    Refused,
    /// Something took too long.
    Timeout(Timeout),
    /// The peer broke the protocol of the framing.
    Protocol(FrameError),
    /// The peer broke the protocol of a layer after its handshake, for instance by a damaged TLS
    /// record. The driver logs how.
    Layer,
    /// The layers did not agree with those of the peer: it speaks another protocol, one side
    /// refused the other's certificate, or it closed meanwhile. The driver logs which, and
    /// [`ConnectError`](crate::ConnectError) has it as its source.
    Handshake,
    /// A bound on memory was reached and this connection was closed for it.
    Overflow,
    /// The handler panicked.
    Panicked,
    /// The transport failed in another way; the driver logs which.
    Io,
}

/// What took too long. Each has its duration in [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Timeout {
    /// The peer did not complete the handshake of the transport.
    Connect,
    /// The peer did not complete the handshake of a layer.
    Handshake,
    /// A frame began and did not end.
    Frame,
    /// The peer of an accepted stream did not begin its first message.
    FirstMessage,
    /// No bytes came from the peer.
    Idle,
    /// The peer took none of what was queued for it.
    WriteStall,
    /// What was queued at the close could not be delivered in time.
    Drain,
}

impl CloseReason {
    /// How many kinds of reason there are: every timeout counts as one.
    const KINDS: usize = 18;

    /// A number below [`CloseReason::KINDS`] for each kind of reason, to count by.
    const fn kind(self) -> usize {
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
            CloseReason::Layer => 15,
            CloseReason::Handshake => 16,
            CloseReason::Timeout(Timeout::Handshake) => 17,
        }
    }

    /// The name of its kind in a word or two, such as `idle timeout`.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self.kind()]
    }

    /// The name of each kind, in the order of [`CloseReason::kind`].
    const NAMES: [&'static str; Self::KINDS] = [
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
        "layer",
        "handshake",
        "handshake timeout",
    ];
}

/// A value for each kind of reason, such as a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByReason<T>([T; CloseReason::KINDS]);

impl<T> ByReason<T> {
    /// The value of a kind of reason.
    pub fn get(&self, reason: CloseReason) -> &T {
        &self.0[reason.kind()]
    }

    /// The same, to change.
    pub fn get_mut(&mut self, reason: CloseReason) -> &mut T {
        &mut self.0[reason.kind()]
    }

    /// The name of each kind with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        CloseReason::NAMES.iter().copied().zip(&self.0)
    }

    /// What `change` makes of each value.
    pub fn map<R>(&self, change: impl Fn(&T) -> R) -> ByReason<R> {
        ByReason(core::array::from_fn(|kind| change(&self.0[kind])))
    }
}

impl ByReason<u64> {
    /// With what another has counted.
    pub fn add(&mut self, other: &ByReason<u64>) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }
}

impl<T: Default> Default for ByReason<T> {
    fn default() -> Self {
        ByReason(core::array::from_fn(|_| T::default()))
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            CloseReason::Local => "closed by this side",
            CloseReason::Peer => "closed by the peer",
            CloseReason::Truncated => "closed by the peer inside a frame",
            CloseReason::Reset => "reset by the peer",
            CloseReason::Refused => "no socket listens at the peer's address",
            CloseReason::Timeout(Timeout::Connect) => "the peer did not answer in time",
            CloseReason::Timeout(Timeout::Handshake) => {
                "the peer did not complete the handshake in time"
            }
            CloseReason::Timeout(Timeout::Frame) => "a frame began and did not end in time",
            CloseReason::Timeout(Timeout::FirstMessage) => "the peer connected and sent no message",
            CloseReason::Timeout(Timeout::Idle) => "the peer was idle too long",
            CloseReason::Timeout(Timeout::WriteStall) => "the peer stopped reading",
            CloseReason::Timeout(Timeout::Drain) => {
                "what was queued at the close was not delivered in time"
            }
            CloseReason::Protocol(error) => return error.fmt(f),
            CloseReason::Layer => "the peer broke the protocol of a layer",
            CloseReason::Handshake => "the handshake failed",
            CloseReason::Overflow => {
                "a bound on memory was reached (`max_queued_total`, `max_held_total` or `max_peers`)"
            }
            CloseReason::Panicked => "the handler panicked",
            CloseReason::Io => "the transport failed",
        };
        f.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (CloseReason::Layer, "layer"),
            (CloseReason::Handshake, "handshake"),
            (
                CloseReason::Timeout(Timeout::Handshake),
                "handshake timeout",
            ),
        ];
        assert_eq!(reasons.len(), CloseReason::KINDS);
        let mut texts = std::collections::BTreeSet::new();
        let mut counts = ByReason::<usize>::default();
        for (kind, (reason, name)) in reasons.into_iter().enumerate() {
            assert_eq!(reason.kind(), kind);
            assert_eq!(reason.name(), name);
            assert!(texts.insert(reason.to_string()));
            *counts.get_mut(reason) += kind;
            assert_eq!(*counts.get(reason), kind);
        }
        let doubled = counts.map(|count| 2 * count);
        assert_eq!(doubled.iter().nth(3), Some(("reset", &6)));
        let protocol = CloseReason::Protocol(too_long).to_string();
        assert_eq!(protocol, too_long.to_string());
    }
}
