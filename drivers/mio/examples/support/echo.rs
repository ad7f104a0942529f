//! An echo handler that loses nothing to a client that reads slowly. The same handler serves
//! on a device, which keeps messages elsewhere.

use cubenet_core::{Handler, Link, Message, SendError};

/// Where a message is kept that found no room.
pub trait Keep: Default {
    /// Keeps it; `false` if it is dropped instead, as a datagram may be.
    fn keep(&mut self, message: Message<'_>) -> bool;
    /// Hands out what was kept, once.
    fn take(&mut self, give: impl FnOnce(&[u8]));
}

/// Sends every message back. A message that finds the queue full is kept, and no other is
/// received, until there is room.
#[derive(Default)]
pub struct Echo<K> {
    refused: K,
}

impl<K: Keep> Handler for Echo<K> {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if link.send(&message) == Err(SendError::Full) && self.refused.keep(message) {
            link.pause();
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        self.refused.take(|message| {
            // There is room for it: that is what `writable` says.
            let _ = link.send(message);
            link.resume();
        });
    }
}
