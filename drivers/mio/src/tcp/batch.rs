//! Frames that the callbacks of one stream send, gathered to leave in one write.

use cubenet_core::frame::{self, HEADER_LEN, MAX_PAYLOAD};
use cubenet_core::{Backlog, Limits};

/// Gathered bytes that are handed to the system before the batch ends.
pub(crate) const FLUSH_BYTES: usize = 1 << 16;
/// Room for those and for the longest frame behind them.
const CAPACITY: usize = FLUSH_BYTES + HEADER_LEN + MAX_PAYLOAD;

/// Frames of one stream, in the order they were sent.
pub(crate) struct FrameBatch {
    /// Of which the first `len` are gathered.
    bytes: Box<[u8]>,
    len: usize,
    /// How many messages they are.
    messages: u64,
    /// As far as the bytes may grow, and how long messages may be, without a question to the limits.
    end: usize,
    max_message: usize,
}

impl FrameBatch {
    pub(crate) fn new() -> Self {
        FrameBatch {
            bytes: vec![0; CAPACITY].into_boxed_slice(),
            len: 0,
            messages: 0,
            end: 0,
            max_message: 0,
        }
    }

    /// Gathers a message of an open stream, if it surely keeps to the limits. Returns whether it did.
    #[inline]
    pub(crate) fn try_push(&mut self, payload: &[u8]) -> bool {
        let is_allowed =
            payload.len() <= self.max_message && self.len + HEADER_LEN + payload.len() <= self.end;
        is_allowed && self.write(payload)
    }

    /// Gathers a message that was admitted with this backlog, and remembers how much may follow it.
    pub(crate) fn push(&mut self, payload: &[u8], backlog: Backlog, limits: &Limits) {
        let room = backlog.room(limits);
        self.end = FLUSH_BYTES.min(self.len.saturating_add(room));
        self.max_message = limits.max_message();
        let is_written = self.write(payload);
        debug_assert!(is_written, "there is room behind what is flushed");
    }

    /// Writes a frame behind the others, if there is room, and if a header can tell its length.
    #[inline]
    fn write(&mut self, payload: &[u8]) -> bool {
        let end = self.len + HEADER_LEN + payload.len();
        let place = self.bytes.get_mut(self.len..end);
        let (Some(place), Some(header)) = (place, frame::header(payload.len())) else {
            return false;
        };
        let (front, rest) = place.split_at_mut(HEADER_LEN);
        front.copy_from_slice(&header);
        rest.copy_from_slice(payload);
        self.len = end;
        self.messages += 1;
        true
    }

    /// What is gathered.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Bytes that are gathered.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets what is gathered, and what the limits allow. Returns how many messages it was, and
    /// bytes of payload.
    pub(crate) fn clear(&mut self) -> (u64, u64) {
        self.end = 0;
        let messages = std::mem::take(&mut self.messages);
        let len = std::mem::take(&mut self.len) as u64;
        (messages, len - messages * HEADER_LEN as u64)
    }
}
