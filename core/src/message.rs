//! What an application receives: the payload of a frame, or a datagram.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;
#[cfg(feature = "alloc")]
use bytes::Bytes;
use core::fmt;
use core::ops::Deref;

/// A received message, lent for the length of a callback. Read it as a slice.
///
/// To keep it, or to hand it to another thread, take it with [`Message::into_bytes`].
pub struct Message<'a>(Inner<'a>);

enum Inner<'a> {
    /// Lies in the driver's input.
    Lent(&'a [u8]),
    /// Was put together in a buffer of its own, which can be given away.
    #[cfg(feature = "alloc")]
    Reassembled(&'a mut Vec<u8>),
}

impl<'a> Message<'a> {
    /// A message that is borrowed from a buffer.
    #[inline]
    pub fn lent(bytes: &'a [u8]) -> Self {
        Message(Inner::Lent(bytes))
    }

    /// A message that has a buffer to itself; [`Message::into_bytes`] takes that buffer.
    #[cfg(feature = "alloc")]
    pub fn reassembled(buffer: &'a mut Vec<u8>) -> Self {
        Message(Inner::Reassembled(buffer))
    }

    /// The message as a value of its own. Copies nothing if it was put together in a
    /// buffer of its own (it came in several pieces); otherwise it is one allocation and
    /// one copy.
    #[cfg(feature = "alloc")]
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Inner::Lent(bytes) => Bytes::copy_from_slice(bytes),
            Inner::Reassembled(buffer) => Bytes::from(core::mem::take(buffer)),
        }
    }
}

impl Deref for Message<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Inner::Lent(bytes) => bytes,
            #[cfg(feature = "alloc")]
            Inner::Reassembled(buffer) => buffer,
        }
    }
}

impl AsRef<[u8]> for Message<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.len())
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;

    #[test]
    fn a_lent_message_is_copied_to_be_kept() {
        let input = b"input";
        let message = Message::lent(input);
        assert_eq!(message.as_ref(), b"input");
        assert_eq!(std::format!("{message:?}"), "Message(5 bytes)");
        let kept = message.into_bytes();
        assert_eq!(&kept[..], b"input");
        assert_ne!(kept.as_ptr(), input.as_ptr());
    }
}
