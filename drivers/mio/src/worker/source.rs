//! What a worker polls, and serves: a stream, a datagram socket, or a listener.

use crate::conn::key::ConnKey;
use crate::metrics::Counts;
use crate::tcp::stream::Stream;
use crate::udp::peers::Peers;
use crate::worker::listener::AcceptSocket;
use cubenet_core::{ConnectionId, Instant};

/// What a worker polls, and serves.
pub(super) enum Source {
    Stream(Stream),
    Datagrams(Box<Peers>),
    Listener(Box<AcceptSocket>),
}

impl Source {
    /// Whether it has this connection, and that has not closed.
    pub(super) fn has(&self, key: ConnKey, id: ConnectionId) -> bool {
        match self {
            Source::Stream(stream) => stream.id() == id && !stream.has_closed(),
            Source::Datagrams(peers) => peers.is_open_at(key, id),
            Source::Listener(_) => false,
        }
    }

    /// Numbers of its connections.
    pub(super) fn counts(&self) -> &Counts {
        match self {
            Source::Stream(stream) => stream.counts(),
            Source::Datagrams(peers) => peers.counts(),
            Source::Listener(listener) => listener.counts(),
        }
    }

    /// When its timer is set to.
    pub(super) fn armed(&mut self) -> &mut Instant {
        match self {
            Source::Stream(stream) => &mut stream.armed,
            Source::Datagrams(peers) => &mut peers.armed,
            Source::Listener(listener) => &mut listener.armed,
        }
    }
}
