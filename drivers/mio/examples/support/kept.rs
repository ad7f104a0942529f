//! Where a server keeps a message that found no room.

use super::echo::Keep;
use bytes::Bytes;
use cubenet_mio::Message;

/// On the heap, and behind one pointer, since it is seldom there and an idle connection should
/// be small.
#[derive(Default)]
pub struct OnHeap(Option<Box<Bytes>>);

impl Keep for OnHeap {
    fn keep(&mut self, message: Message<'_>) -> bool {
        self.0 = Some(Box::new(message.into_bytes()));
        true
    }

    fn take(&mut self, give: impl FnOnce(&[u8])) {
        if let Some(message) = self.0.take() {
            give(&message);
        }
    }
}
