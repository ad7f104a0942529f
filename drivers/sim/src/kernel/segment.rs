//! A segment of a stream: its data on the way, its header in a capture.

use super::Key;
use bytes::Bytes;

/// Bytes of the headers of a segment: the addresses', TCP's, and its time stamps.
pub(super) const HEADERS: usize = 52;
/// Bytes of a segment in an Ethernet frame: what windows are counted in.
pub(super) const SEGMENT: usize = 1_500 - HEADERS;
/// A piece of a stream on its way.
pub(crate) struct Segment {
    pub(super) to: Key,
    pub(super) from: Key,
    /// Bytes of the stream before it.
    pub(super) at: u64,
    pub(super) bytes: Bytes,
    /// Whether the stream ends behind it.
    pub(super) end: bool,
    pub(super) attempt: u32,
}

impl Segment {
    /// Bytes of the stream; the end counts as one.
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64 + u64::from(self.end)
    }
}

/// What a segment of a stream is, beside its data.
#[derive(Clone, Copy, Default)]
pub(super) struct Header {
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    /// Bytes of the stream before it; those of the handshake and of the end count as one each.
    pub(super) seq: u64,
    /// What it acknowledges; `None` if nothing.
    pub(super) ack: Option<u64>,
    /// Bytes that the sender has room for.
    pub(super) window: u64,
}

/// A segment without data.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    /// The second packet of a handshake.
    SynAck,
    Acknowledgement,
    Reset,
}
