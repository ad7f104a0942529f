//! How much of everything the programs have, so that those that are compared have the same.

/// Streams, each with its two rings.
pub const STREAMS: usize = 10;
/// Bytes of a ring.
pub const RING: usize = 1024;
/// The longest message: it and its header fill a ring.
pub const MAX_MESSAGE: usize = RING - 2;
/// Datagrams of a port, and their bytes, each way.
pub const DATAGRAMS: usize = 8;
/// See [`DATAGRAMS`].
pub const BYTES: usize = 3072;
/// The longest datagram: what fits into a frame.
pub const MAX_DATAGRAM: usize = 1472;
/// Peers of a port.
pub const PEERS: usize = 16;
