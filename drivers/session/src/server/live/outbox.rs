//! Messages to the client that it has not acknowledged.

use crate::server::OVERHEAD;
use crate::wire::{self, MESSAGE_HEADER};
use bytes::{BufMut, Bytes, BytesMut};
use cubenet_core::SendError;
use std::collections::VecDeque;

/// The most messages sent in one go.
const AT_ONCE: usize = 64;

/// Messages as packets, with the numbers behind `acknowledged`, up to `sent`.
///
/// Invariant: `acknowledged <= told <= kept <= sent`.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    packets: VecDeque<Bytes>,
    /// What they count.
    bytes: usize,
    /// The last that has arrived at the client.
    acknowledged: u64,
    /// The last that has been sent on this connection.
    told: u64,
    /// The last that is stored.
    kept: u64,
    /// The last that the application has sent.
    sent: u64,
    /// A message found no room, and the application is owed a `writable`.
    was_full: bool,
    /// The client is to be asked for an acknowledgement, behind the messages.
    asks: bool,
    /// What the client is to be sent before anything else on this connection.
    greeting: Option<Bytes>,
    /// The same, as long as the client may not have it.
    greeted: Option<Bytes>,
}

impl Outbox {
    /// As another node has left it.
    pub(super) fn kept(sent: u64, messages: &[Bytes]) -> Self {
        let acknowledged = sent.saturating_sub(messages.len() as u64);
        let numbers = acknowledged + 1..;
        Outbox {
            bytes: messages.iter().map(|message| cost(message.len())).sum(),
            packets: numbers.zip(messages).map(|(n, m)| packet(n, m)).collect(),
            acknowledged,
            told: acknowledged,
            kept: sent,
            sent,
            ..Outbox::default()
        }
    }

    /// What the messages count that the client has not acknowledged.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a message from the application, if there is room: `limit` bytes of messages, or one.
    pub(super) fn push(&mut self, payload: &[u8], limit: usize) -> Result<(), SendError> {
        if !self.packets.is_empty() && self.bytes + cost(payload.len()) > limit {
            self.was_full = true;
            // It may wait for more before it acknowledges.
            self.asks = true;
            return Err(SendError::Full);
        }
        self.sent += 1;
        self.packets.push_back(packet(self.sent, payload));
        self.bytes += cost(payload.len());
        Ok(())
    }

    /// Forgets the messages up to this number. Returns whether there can be such an acknowledgement.
    pub(super) fn acknowledge(&mut self, number: u64) -> bool {
        if number > self.kept {
            return false;
        }
        while self.acknowledged < number {
            let Some(packet) = self.packets.pop_front() else {
                debug_assert!(false, "there are as many packets as numbers");
                return false;
            };
            self.bytes -= cost(packet.len() - MESSAGE_HEADER);
            self.acknowledged += 1;
        }
        self.told = self.told.max(self.acknowledged);
        true
    }

    /// Whether the application is owed a `writable`, and there is room. Says so once.
    pub(super) fn take_room(&mut self, limit: usize) -> bool {
        let has_room = self.was_full && self.bytes <= limit / 2;
        self.was_full &= !has_room;
        self.asks = self.was_full;
        has_room
    }

    /// There is another connection: what has not arrived is to be sent anew, behind this.
    pub(super) fn rewind(&mut self, greeting: Bytes) {
        self.told = self.acknowledged;
        self.greeted = Some(greeting.clone());
        self.greeting = Some(greeting);
    }

    /// The client has the greeting.
    pub(super) fn has_greeting(&mut self) {
        self.greeted = None;
    }

    /// Whether the client owes an answer.
    pub(super) fn is_owed(&self) -> bool {
        self.greeted.is_some() || self.told > self.acknowledged
    }

    /// The transport may have lost what was not answered: it is to be sent again.
    pub(super) fn repeat(&mut self) {
        self.told = self.acknowledged;
        self.greeting = self.greeted.clone();
    }

    /// What the client is to be sent first.
    pub(super) fn greeting(&self) -> Option<Bytes> {
        self.greeting.clone()
    }

    /// It was sent.
    pub(super) fn greeted(&mut self) {
        self.greeting = None;
    }

    /// Messages that are stored and not sent, some of them, and the number before the first.
    pub(super) fn to_send(&self) -> (u64, Vec<Bytes>) {
        let first = (self.told - self.acknowledged) as usize;
        let some = AT_ONCE.min((self.kept - self.told) as usize);
        let packets = self.packets.range(first..first + some);
        (self.told, packets.cloned().collect())
    }

    /// The messages up to this number were sent. Some may have been acknowledged since.
    pub(super) fn sent_to(&mut self, number: u64) {
        self.told = self.told.max(number);
    }

    /// Whether the client is to be asked for an acknowledgement, of something that it has been sent by
    /// then.
    pub(super) fn asks(&self) -> bool {
        self.asks && self.kept > self.acknowledged
    }

    /// It was.
    pub(super) fn asked(&mut self) {
        self.asks = false;
    }

    /// Whether the client has been sent all that there is.
    pub(super) fn is_sent(&self) -> bool {
        self.greeting.is_none() && self.told == self.sent
    }

    /// The last message that has arrived at the client.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The number of the first message that is not stored; and those.
    pub(super) fn to_keep(&self) -> (u64, Vec<Bytes>) {
        let first = (self.kept - self.acknowledged) as usize;
        let new = self.packets.range(first..);
        let payloads = new.map(|packet| packet.slice(MESSAGE_HEADER..));
        (self.kept + 1, payloads.collect())
    }

    /// So many of them are stored.
    pub(super) fn keep(&mut self, count: usize) {
        self.kept = self.sent.min(self.kept + count as u64);
    }

    /// The session is over.
    pub(super) fn discard(&mut self) {
        *self = Outbox::default();
    }
}

/// What a message counts: its bytes, and those of what keeps it.
fn cost(len: usize) -> usize {
    len + OVERHEAD
}

fn packet(number: u64, payload: &[u8]) -> Bytes {
    let mut packet = BytesMut::with_capacity(MESSAGE_HEADER + payload.len());
    packet.put_slice(&wire::message_header(number));
    packet.put_slice(payload);
    packet.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(packets: &[Bytes]) -> Vec<u8> {
        packets
            .iter()
            .map(|packet| packet[MESSAGE_HEADER - 1])
            .collect()
    }

    #[test]
    fn nothing_leaves_before_it_is_stored() {
        let mut outbox = Outbox::default();
        for message in [&b"a"[..], b"b"] {
            outbox.push(message, 1_000).unwrap();
        }
        assert!(outbox.to_send().1.is_empty() && !outbox.is_sent());
        assert!(!outbox.acknowledge(1), "it was not sent");
        let (first, new) = outbox.to_keep();
        assert_eq!(
            (first, &new[..]),
            (1, &[Bytes::from("a"), Bytes::from("b")][..])
        );
        outbox.keep(1);
        assert_eq!(numbers(&outbox.to_send().1), [1]);
        outbox.keep(1);
        assert_eq!(numbers(&outbox.to_send().1), [1, 2]);
        outbox.sent_to(2);
        assert!(outbox.is_sent() && outbox.to_send().1.is_empty());
        assert!(outbox.acknowledge(1) && outbox.acknowledge(1));
        outbox.rewind(Bytes::from("hello"));
        assert_eq!(numbers(&outbox.to_send().1), [2]);
        assert!(!outbox.is_sent());
        outbox.greeted();
        assert_eq!(outbox.bytes(), 1 + OVERHEAD);
    }

    #[test]
    fn a_full_outbox_takes_one_message_whenever_it_is_empty() {
        let mut outbox = Outbox::default();
        outbox.push(&[0; 200], 100).unwrap();
        assert_eq!(outbox.push(b"", 100), Err(SendError::Full));
        assert!(!outbox.asks(), "it has been sent nothing");
        assert!(!outbox.take_room(100));
        outbox.keep(1);
        assert!(outbox.asks());
        outbox.asked();
        assert!(!outbox.asks());
        assert!(outbox.acknowledge(1));
        assert!(outbox.take_room(100) && !outbox.take_room(100));
    }

    #[test]
    fn what_another_node_has_left_is_sent() {
        let outbox = Outbox::kept(7, &[Bytes::from("six"), Bytes::from("seven")]);
        assert_eq!(numbers(&outbox.to_send().1), [6, 7]);
        assert_eq!(
            (outbox.acknowledged(), outbox.bytes()),
            (5, 8 + 2 * OVERHEAD)
        );
        assert_eq!(outbox.to_keep(), (8, vec![]));
    }
}
