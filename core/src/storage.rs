//! Where a partial frame waits for its rest.

use crate::frame::MAX_PAYLOAD;
use crate::message::Message;
#[cfg(feature = "alloc")]
use alloc::{boxed::Box, vec::Vec};

/// Room for one frame that has not arrived whole.
///
/// [`Fixed`] is an array; [`Growing`] takes memory as bytes arrive and gives it back.
pub trait Storage {
    /// The longest payload it can hold, in bytes.
    fn max_len(&self) -> usize;
    /// Bytes held.
    fn len(&self) -> usize;
    /// Whether nothing is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Adds `bytes` of a payload that will be `declared` bytes long in the end. What goes
    /// beyond [`Storage::max_len`] is left out; a [`Decoder`](crate::Decoder) never asks.
    fn append(&mut self, bytes: &[u8], declared: usize);
    /// What is held, as a message.
    fn message(&mut self) -> Message<'_>;
    /// Forgets what is held and frees what was taken for it.
    fn release(&mut self);
    /// Bytes of memory taken for what is held.
    fn footprint(&self) -> usize;
}

/// Storage of `N` bytes inside the value itself. It needs no allocator.
#[derive(Debug, Default)]
pub struct Fixed<const N: usize>(heapless::Vec<u8, N>);

impl<const N: usize> Fixed<N> {
    /// Empty storage.
    pub const fn new() -> Self {
        Fixed(heapless::Vec::new())
    }
}

impl<const N: usize> Storage for Fixed<N> {
    fn max_len(&self) -> usize {
        N.min(MAX_PAYLOAD)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, bytes: &[u8], _declared: usize) {
        let room = N - self.0.len();
        let fits = &bytes[..bytes.len().min(room)];
        // It fits by construction, and a `Vec` that refuses stores nothing.
        let _ = self.0.extend_from_slice(fits);
    }

    fn message(&mut self) -> Message<'_> {
        Message::lent(&self.0)
    }

    fn release(&mut self) {
        self.0.clear();
    }

    fn footprint(&self) -> usize {
        N
    }
}

/// Storage that grows with what has *arrived*, never with what was declared, and that is
/// one null pointer while nothing is held.
#[cfg(feature = "alloc")]
#[derive(Debug, Default)]
// A `Vec` is three words, a boxed one is a single word: idle connections outnumber the
// others by far, and the second allocation is made only for a frame that came in pieces.
#[allow(clippy::box_collection)]
pub struct Growing(Option<Box<Vec<u8>>>);

#[cfg(feature = "alloc")]
impl Growing {
    /// Empty storage.
    pub const fn new() -> Self {
        Growing(None)
    }
}

#[cfg(feature = "alloc")]
impl Storage for Growing {
    fn max_len(&self) -> usize {
        MAX_PAYLOAD
    }

    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |buffer| buffer.len())
    }

    fn append(&mut self, bytes: &[u8], declared: usize) {
        let buffer = self.0.get_or_insert_default();
        let needed = buffer.len() + bytes.len();
        if needed > buffer.capacity() {
            // Doubling keeps the copying linear; the declared length caps the last step.
            let capacity = needed.max(declared.min(2 * needed));
            buffer.reserve_exact(capacity - buffer.len());
        }
        buffer.extend_from_slice(bytes);
    }

    fn message(&mut self) -> Message<'_> {
        match &mut self.0 {
            Some(buffer) => Message::reassembled(buffer),
            None => Message::lent(&[]),
        }
    }

    fn release(&mut self) {
        self.0 = None;
    }

    fn footprint(&self) -> usize {
        let header = size_of::<Vec<u8>>();
        self.0
            .as_ref()
            .map_or(0, |buffer| header + buffer.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_storage_takes_what_fits_and_its_size_never_changes() {
        let mut storage = Fixed::<4>::new();
        assert_eq!((storage.max_len(), storage.footprint()), (4, 4));
        storage.append(b"abc", 3);
        storage.append(b"def", 6);
        assert_eq!(&*storage.message(), b"abcd");
        assert_eq!((storage.len(), storage.footprint()), (4, 4));
        storage.release();
        assert!(storage.is_empty());
        assert_eq!(Fixed::<70_000>::new().max_len(), 65_535);
    }

    #[cfg(feature = "alloc")]
    #[test]
    fn growing_storage_takes_what_came_up_to_what_was_declared_and_gives_it_back() {
        let header = size_of::<Vec<u8>>();
        let mut storage = Growing::new();
        assert_eq!(&*storage.message(), b"");
        assert_eq!(storage.footprint(), 0);
        storage.append(&[7; 10], 1_000);
        assert_eq!(storage.footprint(), header + 20);
        storage.append(&[7; 10], 1_000);
        assert_eq!(storage.footprint(), header + 20);
        storage.append(&[7; 5], 1_000);
        assert_eq!(storage.footprint(), header + 50);
        storage.append(&[7; 30], 60);
        assert_eq!((storage.len(), storage.footprint()), (55, header + 60));
        storage.append(&[7; 5], 60);
        assert_eq!((storage.len(), storage.footprint()), (60, header + 60));
        storage.release();
        assert_eq!((storage.len(), storage.footprint()), (0, 0));
    }
}
