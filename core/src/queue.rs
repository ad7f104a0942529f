//! Bytes that a transport would not take yet, in the order they were sent.

use crate::frame::Frame;
use alloc::collections::VecDeque;
use bytes::{Buf, Bytes, BytesMut};

/// A shared frame of at least this many bytes is queued by reference; a shorter one is cheaper to
/// copy behind what is queued already than to keep as a piece of its own.
pub const SHARE_FROM: usize = 4096;

/// Framed bytes waiting for a stream to take them.
#[derive(Debug, Default)]
pub struct SendQueue {
    /// Pieces in front of `tail`.
    pieces: VecDeque<Bytes>,
    /// The copied bytes at the back.
    tail: BytesMut,
    len: usize,
}

impl SendQueue {
    /// An empty queue, which holds no memory.
    pub fn new() -> Self {
        SendQueue::default()
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues a copy of `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Queues what is left of `frame` after its first `sent` bytes, without copying it if
    /// it is long.
    pub fn push_frame(&mut self, frame: &Frame, sent: usize) {
        let rest = frame.as_bytes().slice(sent..);
        if rest.len() < SHARE_FROM {
            return self.push(&rest);
        }
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.len += rest.len();
        self.pieces.push_back(rest);
        self.check();
    }

    /// The first piece of what waits, to be written next; empty if nothing waits.
    pub fn front(&self) -> &[u8] {
        self.chunks().next().unwrap_or_default()
    }

    /// What waits, front first, in as many pieces as it lies in.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let pieces = self.pieces.iter().map(|piece| &piece[..]);
        pieces
            .chain(core::iter::once(&self.tail[..]))
            .filter(|chunk| !chunk.is_empty())
    }

    /// Removes `sent` bytes from the front; everything, if fewer wait.
    pub fn advance(&mut self, sent: usize) {
        let mut left = sent.min(self.len);
        self.len -= left;
        while let Some(piece) = self.pieces.front_mut() {
            if left < piece.len() {
                return piece.advance(left);
            }
            left -= piece.len();
            self.pieces.pop_front();
        }
        self.tail.advance(left);
        self.check();
    }

    /// Asserts, in debug builds, that what lies here is what is counted.
    fn check(&self) {
        debug_assert_eq!(self.chunks().map(<[u8]>::len).sum::<usize>(), self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn contents(queue: &SendQueue) -> Vec<u8> {
        queue.chunks().flatten().copied().collect()
    }

    #[test]
    fn a_long_frame_is_shared_and_keeps_its_place() {
        let frame = Frame::new(&[7; 5_000]).unwrap();
        let mut queue = SendQueue::new();
        queue.push(b"before");
        queue.push_frame(&frame, 906);
        queue.push(b"after");
        assert_eq!(queue.len(), 6 + 4_096 + 5);
        let shared = queue.chunks().nth(1).unwrap();
        assert_eq!(shared.as_ptr(), frame.as_bytes()[906..].as_ptr());
        queue.advance(6 + 4_095);
        assert_eq!(contents(&queue), b"\x07after");
    }

    #[test]
    fn a_short_frame_is_copied_behind_what_is_queued() {
        let mut queue = SendQueue::new();
        queue.push(b"a");
        queue.push_frame(&Frame::new(b"bc").unwrap(), 0);
        assert_eq!(queue.chunks().count(), 1);
        assert_eq!(queue.front(), b"a\0\x02bc");
        assert_eq!(contents(&queue), b"a\0\x02bc");
    }

    #[test]
    fn advancing_past_the_end_empties_it() {
        let mut queue = SendQueue::new();
        queue.push(b"abc");
        queue.advance(99);
        assert!(queue.is_empty());
        assert_eq!(queue.front(), b"");
        assert_eq!(contents(&queue), b"");
    }

    #[test]
    fn a_shared_frame_is_let_go_once_it_has_gone() {
        let frame = Frame::new(&[7; 5_000]).unwrap();
        let mut queue = SendQueue::new();
        queue.push_frame(&frame, 0);
        queue.push(b"after");
        queue.advance(5_001);
        assert!(!frame.as_bytes().is_unique());
        queue.advance(1);
        assert!(frame.as_bytes().is_unique());
        assert_eq!(contents(&queue), b"after");
        assert!(!queue.is_empty());
    }
}
