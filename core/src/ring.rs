//! From a ring that holds the bytes of a stream to messages.
//!
//! For a driver whose stream already lies in a ring of bytes, such as the receive buffer of an
//! embedded TCP stack. A partial frame stays in the ring until it is whole, so the decoder holds
//! no bytes; the ring must have room for the longest frame.

use crate::frame::{self, FrameError, HEADER_LEN};

/// What a ring begins with. Exhaustive on purpose: a driver has to do something about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFront {
    /// Nothing has arrived since the last look.
    Unchanged,
    /// Bytes have arrived, and the frame at the front is not whole yet.
    Partial,
    /// A whole frame, whose payload is this many bytes after the header. Take both out.
    Frame(usize),
}

/// Finds the frames at the front of a ring.
#[derive(Debug, Default)]
pub struct RingDecoder {
    /// Bytes that lay in the ring after the last look, and belong to a frame that has begun.
    partial: u32,
}

impl RingDecoder {
    /// A decoder at the beginning of a stream.
    pub const fn new() -> Self {
        RingDecoder { partial: 0 }
    }

    /// Whether a frame has begun and not ended.
    #[inline]
    pub const fn in_frame(&self) -> bool {
        self.partial > 0
    }

    /// Looks at the ring. `front` is how it begins, two bytes or more if there are two; `len`
    /// is how many bytes lie in it.
    #[inline]
    pub fn decode(
        &mut self,
        front: &[u8],
        len: usize,
        max_message: usize,
    ) -> Result<RingFront, FrameError> {
        if len == self.partial as usize {
            return Ok(RingFront::Unchanged);
        }
        if let Some(declared) = frame::declared(front, max_message)?
            && len >= HEADER_LEN + declared
        {
            self.partial = 0;
            return Ok(RingFront::Frame(declared));
        }
        self.partial = len as u32;
        Ok(RingFront::Partial)
    }
}
