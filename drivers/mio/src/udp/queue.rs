//! Datagrams that the system would not take yet, in the order they were sent.

use bytes::{Buf, BytesMut};
use std::collections::VecDeque;
use std::sync::Arc;

/// Whose datagrams wait.
pub(crate) trait Sender {
    /// Its connection was aborted; what waits is not to be sent, and is counted no more.
    fn is_lost(&self) -> bool;
    /// So many bytes no longer wait.
    fn uncount(&self, bytes: usize);
}

/// Datagrams that wait.
pub(crate) struct DatagramQueue<S: Sender> {
    datagrams: VecDeque<Waiting<S>>,
    /// Their bytes, one behind another.
    bytes: BytesMut,
    /// What those count that are of connections that were aborted, and are not to be sent.
    lost: usize,
}

/// A datagram that waits. It is counted as long as it is here.
pub(crate) struct Waiting<S: Sender> {
    pub(crate) sender: Arc<S>,
    pub(crate) len: usize,
}

impl<S: Sender> Waiting<S> {
    /// What is counted of a datagram beside its bytes: its sender, and its length.
    pub(crate) const OVERHEAD: usize = size_of::<Self>();

    /// What a datagram counts in the queues of its connection and of all.
    pub(crate) const fn size(len: usize) -> usize {
        len + Self::OVERHEAD
    }
}

impl<S: Sender> Drop for Waiting<S> {
    fn drop(&mut self) {
        if !self.sender.is_lost() {
            self.sender.uncount(Self::size(self.len));
        }
    }
}

impl<S: Sender> Default for DatagramQueue<S> {
    fn default() -> Self {
        DatagramQueue {
            datagrams: VecDeque::new(),
            bytes: BytesMut::new(),
            lost: 0,
        }
    }
}

impl<S: Sender> DatagramQueue<S> {
    pub(crate) fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// The bytes of all, one behind another.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Those at the front that are of one kind: all to be sent, or all lost. `most` at most.
    pub(crate) fn front(&self, most: usize) -> impl Iterator<Item = &Waiting<S>> {
        let lost = self
            .datagrams
            .front()
            .is_some_and(|one| one.sender.is_lost());
        let front = self.datagrams.iter().take(most);
        front.take_while(move |one| one.sender.is_lost() == lost)
    }

    /// Adds a datagram, which has been counted.
    pub(crate) fn push(&mut self, waiting: Waiting<S>, datagram: &[u8]) {
        self.bytes.extend_from_slice(datagram);
        self.datagrams.push_back(waiting);
    }

    /// Takes out the first datagrams, which are done with. Returns whose they were.
    pub(crate) fn pop(&mut self, count: usize) -> Vec<Arc<S>> {
        let mut len = 0;
        for one in self.datagrams.iter().take(count) {
            len += one.len;
            if one.sender.is_lost() {
                self.lost -= Waiting::<S>::size(one.len);
            }
        }
        self.bytes.advance(len);
        let gone = self.datagrams.drain(..count);
        let senders = gone.map(|one| Arc::clone(&one.sender)).collect();
        if self.datagrams.is_empty() {
            *self = DatagramQueue::default();
        }
        senders
    }

    /// A sender was aborted, of which datagrams that count this much wait.
    pub(crate) fn lose(&mut self, size: usize) {
        self.lost += size;
        // Not each time: connections may be aborted one after the other.
        let all = self.bytes.len() + Waiting::<S>::OVERHEAD * self.datagrams.len();
        if 2 * self.lost > all {
            self.compact();
        }
    }

    /// Takes out what is not to be sent.
    fn compact(&mut self) {
        let mut kept = DatagramQueue::default();
        let mut start = 0;
        for one in self.datagrams.drain(..) {
            let end = start + one.len;
            if !one.sender.is_lost() {
                kept.bytes.extend_from_slice(&self.bytes[start..end]);
                kept.datagrams.push_back(one);
            }
            start = end;
        }
        *self = kept;
    }
}
