//! What a listener's admission hook says of a datagram from a new peer.

/// What to do with a datagram from an address that has no connection, before any state is built
/// for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Admission {
    /// Drop it. Nothing is built, and `accepted` is not called.
    Refuse,
    /// Go on as without a hook: there may or may not be room for it.
    Admit,
    /// Go on; the peer is known to be welcome, for instance by a token in the datagram, and may
    /// take one of the places that are kept for such peers
    /// ([`reserved_peers`](crate::Limits::reserved_peers)). Limits of its address do not hold
    /// for it.
    Recognise,
}
