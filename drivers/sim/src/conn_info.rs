//! Which connection is meant, and what of it never changes.

use crate::kernel::Key;
use cubenet_core::{ConnectionId, Transport};
use std::net::SocketAddr;

/// Finds a connection: its socket, and its slot there, since datagram peers share a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnKey {
    pub(crate) socket: Key,
    /// Of a datagram peer, its slot in the demultiplexer; 0 of a stream.
    pub(crate) slot: u32,
    pub(crate) id: ConnectionId,
}

/// What of a connection never changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnInfo {
    pub(crate) key: ConnKey,
    pub(crate) transport: Transport,
    pub(crate) local_addr: SocketAddr,
    pub(crate) peer_addr: SocketAddr,
}
