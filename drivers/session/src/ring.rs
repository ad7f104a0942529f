//! Messages that the other side has not acknowledged, as packets in one piece of memory.

use crate::wire::{self, MESSAGE_HEADER};
use cubenet_core::SendError;

/// Bytes in front of each packet: its length.
const LENGTH: usize = 2;
/// The longest payload: a packet is a message of the transport.
pub const MAX_PAYLOAD: usize = 65_535 - MESSAGE_HEADER;

/// Packets from `start` to `end`, one behind another; those from `next` on are to be sent.
///
/// Invariant: `start <= next <= end <= N`, and each is where a packet begins, or the end.
#[derive(Debug)]
pub(crate) struct Ring<const N: usize> {
    bytes: [u8; N],
    start: usize,
    next: usize,
    end: usize,
    /// The number of the last message that was acknowledged, and of the last that there is.
    acknowledged: u64,
    last: u64,
}

impl<const N: usize> Ring<N> {
    pub(crate) const fn new() -> Self {
        Ring {
            bytes: [0; N],
            start: 0,
            next: 0,
            end: 0,
            acknowledged: 0,
            last: 0,
        }
    }

    /// Forgets all messages; the next has the number 1.
    pub(crate) fn reset(&mut self) {
        (self.start, self.next, self.end) = (0, 0, 0);
        (self.acknowledged, self.last) = (0, 0);
    }

    /// The number of the last message that was acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// How many messages are not acknowledged.
    pub(crate) fn len(&self) -> u64 {
        self.last - self.acknowledged
    }

    /// Keeps a message until it is acknowledged. Returns its number.
    pub(crate) fn push(&mut self, payload: &[u8]) -> Result<u64, SendError> {
        let limit = MAX_PAYLOAD.min(N.saturating_sub(LENGTH + MESSAGE_HEADER));
        let len = payload.len();
        if len > limit {
            return Err(SendError::TooLong { len, limit });
        }
        let packet = MESSAGE_HEADER + len;
        let number = self.last + 1;
        let place = self.free(LENGTH + packet).ok_or(SendError::Full)?;
        let (length, rest) = place.split_at_mut(LENGTH);
        let (header, body) = rest.split_at_mut(MESSAGE_HEADER);
        length.copy_from_slice(&(packet as u16).to_be_bytes());
        header.copy_from_slice(&wire::message_header(number));
        body.copy_from_slice(payload);
        self.end += LENGTH + packet;
        self.last = number;
        Ok(number)
    }

    /// This much memory behind the messages, if there is.
    pub(crate) fn free(&mut self, len: usize) -> Option<&mut [u8]> {
        if N - self.end < len && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.next -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..self.end.checked_add(len)?)
    }

    /// The packet that is to be sent next.
    pub(crate) fn next(&self) -> Option<&[u8]> {
        self.packet_at(self.next)
    }

    /// It was sent.
    pub(crate) fn advance(&mut self) {
        if let Some(packet) = self.next() {
            self.next += LENGTH + packet.len();
        }
    }

    /// All that is not acknowledged is to be sent again.
    pub(crate) fn rewind(&mut self) {
        self.next = self.start;
    }

    /// Forgets the messages up to this number. Returns whether there can be such an acknowledgement.
    pub(crate) fn acknowledge(&mut self, number: u64) -> bool {
        if number > self.last {
            return false;
        }
        while self.acknowledged < number {
            let Some(packet) = self.packet_at(self.start) else {
                debug_assert!(false, "there are as many packets as numbers");
                return false;
            };
            self.start += LENGTH + packet.len();
            self.acknowledged += 1;
        }
        self.next = self.next.max(self.start);
        if self.start == self.end {
            (self.start, self.next, self.end) = (0, 0, 0);
        }
        true
    }

    fn packet_at(&self, at: usize) -> Option<&[u8]> {
        let (length, rest) = self.bytes[at..self.end].split_first_chunk::<LENGTH>()?;
        rest.get(..u16::from_be_bytes(*length).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Numbered, ToClient};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn numbered<const N: usize>(ring: &Ring<N>) -> Option<(u64, Vec<u8>)> {
        let ToClient::Message(Numbered { number, payload }) =
            ToClient::decode(ring.next()?).unwrap()
        else {
            panic!("a ring has messages");
        };
        Some((number, payload.to_vec()))
    }

    #[test]
    fn messages_are_sent_in_order_and_again_after_a_rewind() {
        let mut ring = Ring::<64>::new();
        assert_eq!(ring.push(b"one"), Ok(1));
        assert_eq!(ring.push(b"two"), Ok(2));
        assert_eq!(numbered(&ring), Some((1, b"one".to_vec())));
        ring.advance();
        ring.advance();
        assert_eq!(numbered(&ring), None);
        assert!(ring.acknowledge(1));
        ring.rewind();
        assert_eq!(numbered(&ring), Some((2, b"two".to_vec())));
        assert!(!ring.acknowledge(3), "there is no such message");
        assert!(ring.acknowledge(1), "it may be said twice");
        assert_eq!(ring.len(), 1);
    }

    #[test]
    fn a_full_ring_says_so_and_has_room_once_something_is_acknowledged() {
        let mut ring = Ring::<40>::new();
        assert_eq!(ring.push(&[1; 9]), Ok(1));
        assert_eq!(ring.push(&[2; 9]), Ok(2));
        assert_eq!(ring.push(b""), Err(SendError::Full));
        ring.advance();
        assert!(ring.acknowledge(1));
        assert_eq!(ring.push(&[3; 9]), Ok(3));
        assert_eq!(numbered(&ring), Some((2, vec![2; 9])));
        let (len, limit) = (30, 29);
        assert_eq!(ring.push(&[0; 30]), Err(SendError::TooLong { len, limit }));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(Vec<u8>),
        Advance,
        Rewind,
        Acknowledge(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Op::Push),
            Just(Op::Advance),
            Just(Op::Rewind),
            (0..4u64).prop_map(Op::Acknowledge),
        ]
    }

    proptest! {
        /// Beside a list of what is not acknowledged, and how many of those were sent.
        #[test]
        fn a_ring_is_a_list_with_a_bound(ops in proptest::collection::vec(op(), 0..200)) {
            let mut ring = Ring::<128>::new();
            let (mut list, mut sent, mut last) = (VecDeque::new(), 0, 0);
            for op in ops {
                match op {
                    Op::Push(payload) => match ring.push(&payload) {
                        Ok(number) => {
                            last += 1;
                            prop_assert_eq!(number, last);
                            list.push_back((number, payload));
                        }
                        Err(error) => {
                            prop_assert_eq!(error, SendError::Full);
                            let size = |(_, one): &(u64, Vec<u8>)| one.len() + LENGTH + MESSAGE_HEADER;
                            let used: usize = list.iter().map(size).sum();
                            prop_assert!(used + payload.len() + LENGTH + MESSAGE_HEADER > 128);
                        }
                    },
                    Op::Advance => {
                        ring.advance();
                        sent = list.len().min(sent + 1);
                    }
                    Op::Rewind => {
                        ring.rewind();
                        sent = 0;
                    }
                    Op::Acknowledge(some) => {
                        let number = last - list.len() as u64 + some;
                        prop_assert_eq!(ring.acknowledge(number), some <= list.len() as u64);
                        if some <= list.len() as u64 {
                            list.drain(..some as usize);
                            sent = sent.saturating_sub(some as usize);
                        }
                    }
                }
                prop_assert_eq!(numbered(&ring), list.get(sent).cloned());
                prop_assert_eq!(ring.len(), list.len() as u64);
            }
        }
    }
}
