//! What is sent on a stream before the peer has answered.
//!
//! smoltcp takes nothing for a socket that is not connected. So the frames of all streams
//! that are connecting wait here, one after the other in the order they were sent, each behind the
//! slot of its stream, until they are moved into the ring or forgotten.

use cubenet_core::frame::{self, HEADER_LEN};

/// Bytes before a frame: its stream's slot.
const SLOT_LEN: usize = 2;

/// Frames that wait for their streams to be connected.
pub(crate) struct PendingSends<'a> {
    memory: &'a mut [u8],
    used: usize,
}

impl<'a> PendingSends<'a> {
    pub(crate) fn new(memory: &'a mut [u8]) -> Self {
        PendingSends { memory, used: 0 }
    }

    /// Adds a frame; `false`, and nothing is added, if it does not fit.
    pub(crate) fn push(&mut self, slot: usize, header: [u8; HEADER_LEN], message: &[u8]) -> bool {
        let room = self.memory.len() - self.used;
        if room < SLOT_LEN + HEADER_LEN + message.len() {
            return false;
        }
        for part in [&(slot as u16).to_be_bytes()[..], &header, message] {
            self.memory[self.used..][..part.len()].copy_from_slice(part);
            self.used += part.len();
        }
        true
    }

    /// Bytes that wait for the stream in `slot`, headers included.
    pub(crate) fn queued(&self, slot: usize) -> usize {
        let mut queued = 0;
        let mut at = 0;
        while let Some((owner, end)) = self.entry(at) {
            if owner == slot {
                queued += end - at - SLOT_LEN;
            }
            at = end;
        }
        queued
    }

    /// Takes out what waits for the stream in `slot`, frame by frame, in order.
    pub(crate) fn take(&mut self, slot: usize, mut frame: impl FnMut(&[u8])) {
        let mut at = 0;
        while let Some((owner, end)) = self.entry(at) {
            if owner == slot {
                frame(&self.memory[at + SLOT_LEN..end]);
                self.memory.copy_within(end..self.used, at);
                self.used -= end - at;
            } else {
                at = end;
            }
        }
    }

    /// The owner of the entry at `at`, and where it ends.
    fn entry(&self, at: usize) -> Option<(usize, usize)> {
        let entry = &self.memory[at..self.used];
        let (slot, rest) = entry.split_first_chunk::<SLOT_LEN>()?;
        let len = frame::declared(rest, frame::MAX_PAYLOAD).ok()??;
        let slot = usize::from(u16::from_be_bytes(*slot));
        Some((slot, at + SLOT_LEN + HEADER_LEN + len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn taken(pending_sends: &mut PendingSends<'_>, slot: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        pending_sends.take(slot, |frame| frames.push(frame.to_vec()));
        frames
    }

    #[test]
    fn every_stream_gets_its_own_frames_in_order() {
        let mut memory = [0; 40];
        let mut pending_sends = PendingSends::new(&mut memory);
        assert!(pending_sends.push(1, [0, 3], b"one"));
        assert!(pending_sends.push(300, [0, 0], b""));
        assert!(pending_sends.push(1, [0, 3], b"two"));
        assert_eq!(
            [
                pending_sends.queued(1),
                pending_sends.queued(300),
                pending_sends.queued(2)
            ],
            [10, 2, 0]
        );
        assert_eq!(taken(&mut pending_sends, 1), [b"\0\x03one", b"\0\x03two"]);
        assert_eq!(pending_sends.queued(1), 0);
        assert_eq!(taken(&mut pending_sends, 300), [b"\0\0"]);
        assert_eq!(pending_sends.used, 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let mut memory = [0; 10];
        let mut pending_sends = PendingSends::new(&mut memory);
        assert!(!pending_sends.push(0, [0, 7], &[7; 7]));
        assert!(pending_sends.push(0, [0, 6], &[7; 6]));
        assert!(!pending_sends.push(0, [0, 0], b""));
        assert_eq!(pending_sends.queued(0), 8);
        assert!(!PendingSends::new(&mut []).push(0, [0, 0], b""));
    }
}
