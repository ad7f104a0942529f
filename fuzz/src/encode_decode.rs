//! What is sent, by copy or as a shared frame, through a queue that a transport empties in
//! any steps, arrives whole, in order, once.

use crate::read;
use arbitrary::Arbitrary;
use cubenet_core::frame::header;
use cubenet_core::queue::SHARE_FROM;
use cubenet_core::{Decoder, Frame, Growing, SendQueue};
use std::collections::VecDeque;

/// What is done, in order.
#[derive(Arbitrary, Debug)]
enum Step {
    /// A message is queued.
    Push { length: u8, fill: u8 },
    /// The same for a frame that is shared, of which `sent` bytes have gone already.
    PushFrame { length: u8, fill: u8, sent: u8 },
    /// The transport takes this much.
    Take(u8),
}

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let Some(steps) = read::<Vec<Step>>(data) else {
        return;
    };
    let mut wire = Wire::default();
    for step in steps {
        match step {
            Step::Push { length, fill } => wire.push(message(length, fill)),
            Step::PushFrame { length, fill, sent } => {
                wire.push_frame(message(length, fill), crate::length(sent));
            }
            Step::Take(count) => wire.take(crate::length(count)),
        }
        wire.agrees();
    }
    wire.take(usize::MAX);
    wire.agrees();
    assert!(wire.queue.is_empty());
    assert!(wire.sent.is_empty(), "everything arrived");
    assert!(!wire.decoder.in_frame());
    assert_eq!(wire.decoder.footprint(), 0);
}

/// Lengths around the two that matter: none, and that from which frames are shared.
fn message(byte: u8, fill: u8) -> Vec<u8> {
    let length = match byte {
        0..192 => usize::from(byte),
        192.. => SHARE_FROM - 34 + usize::from(byte - 192),
    };
    vec![fill; length]
}

/// A queue, the plain bytes that should be in it, and the far end.
struct Wire {
    queue: SendQueue,
    /// Everything that was ever queued, and how much of it was taken.
    plain: Vec<u8>,
    taken: usize,
    /// Messages that have not arrived.
    sent: VecDeque<Vec<u8>>,
    decoder: Decoder<Growing>,
}

impl Default for Wire {
    fn default() -> Self {
        Wire {
            queue: SendQueue::new(),
            plain: Vec::new(),
            taken: 0,
            sent: VecDeque::new(),
            decoder: Decoder::new(Growing::new(), usize::from(u16::MAX)),
        }
    }
}

impl Wire {
    fn push(&mut self, message: Vec<u8>) {
        let header = header(message.len()).expect("it fits");
        self.queue.push(&header);
        self.queue.push(&message);
        self.plain.extend(header);
        self.plain.extend(&message);
        self.sent.push_back(message);
    }

    fn push_frame(&mut self, message: Vec<u8>, sent: usize) {
        let frame = Frame::new(&message).expect("it fits");
        self.sent.push_back(message);
        // Its beginning can have gone only if nothing was queued before it.
        let sent = if self.queue.is_empty() {
            sent.min(frame.as_bytes().len())
        } else {
            0
        };
        self.receive(&frame.as_bytes()[..sent]);
        self.queue.push_frame(&frame, sent);
        self.plain.extend(&frame.as_bytes()[sent..]);
    }

    fn take(&mut self, count: usize) {
        let bytes: Vec<u8> = self.queue.chunks().collect::<Vec<_>>().concat();
        assert_eq!(bytes, self.plain[self.taken..]);
        let count = count.min(bytes.len());
        self.queue.advance(count);
        self.taken += count;
        self.receive(&bytes[..count]);
    }

    /// Decodes `bytes`, whose messages are the next of those that were sent.
    fn receive(&mut self, mut bytes: &[u8]) {
        while let Some(message) = self.decoder.decode(&mut bytes).expect("it is allowed") {
            assert_eq!(Some(&*message), self.sent.pop_front().as_deref());
        }
    }

    fn agrees(&self) {
        let len = self.plain.len() - self.taken;
        assert_eq!(self.queue.len(), len);
        assert_eq!(self.queue.is_empty(), len == 0);
        let mut chunks = self.queue.chunks();
        assert!(chunks.all(|chunk| !chunk.is_empty()));
    }
}
