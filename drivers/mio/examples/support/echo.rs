//! An echo handler that loses nothing to a client that reads slowly.

use bytes::Bytes;
use cubenet_mio::{Handler, Link, Message, SendError};

/// Sends every message back. A message that finds the queue full is kept, and no other is
/// received, until there is room.
#[derive(Default)]
pub struct Echo {
    /// Boxed, since it is seldom there and an idle connection should be small.
    refused: Option<Box<Bytes>>,
}

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if link.send(&message) == Err(SendError::Full) {
            self.refused = Some(Box::new(message.into_bytes()));
            link.pause();
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        if let Some(message) = self.refused.take() {
            // There is room for it: that is what `writable` says.
            let _ = link.send(&message);
            link.resume();
        }
    }
}
