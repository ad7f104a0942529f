//! From the bytes of a stream to messages.
//!
//! A message that lies whole in the input is lent out of it, without a copy. Only a frame
//! that the end of the input cuts is copied into storage, to wait there for its rest; so a
//! connection between two frames stores nothing.

use crate::frame::{FrameError, HEADER_LEN};
use crate::message::Message;
use crate::storage::Storage;
use core::ops::ControlFlow;

/// Cuts a stream of bytes into messages, however the stream was cut into pieces.
///
/// Invariant: storage holds bytes only of the one frame that has begun and not ended, and
/// at most twice as many as have arrived of it.
///
/// ```
/// use cubenet_core::{Decoder, Fixed};
/// let mut decoder = Decoder::new(Fixed::<16>::new(), 16);
/// for mut piece in [&b"\0\x05he"[..], b"llo\0", b"\x02", b"hi\0\0"] {
///     while let Some(message) = decoder.decode(&mut piece).unwrap() {
///         assert!(matches!(&*message, b"hello" | b"hi" | b""));
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Decoder<S> {
    storage: S,
    limit: u16,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between two frames.
    Boundary,
    /// The first byte of a header has arrived.
    HalfHeader(u8),
    /// A header has arrived whole, its payload has not.
    Payload { declared: u16 },
    /// Storage holds a message that was handed out; the next call forgets it.
    HandedOut,
    /// The peer broke the framing. Nothing further is decoded.
    Broken(FrameError),
}

impl<S: Storage> Decoder<S> {
    /// A decoder at the beginning of a stream, which lets messages of up to `max_message`
    /// bytes through; no more than the storage can hold, and no more than 65,535.
    pub fn new(storage: S, max_message: usize) -> Self {
        let limit = max_message.min(storage.max_len());
        Decoder {
            limit: u16::try_from(limit).unwrap_or(u16::MAX),
            storage,
            state: State::Boundary,
        }
    }

    /// The longest message it lets through, in bytes.
    pub fn max_message(&self) -> usize {
        usize::from(self.limit)
    }

    /// Whether a frame has begun and not ended.
    #[inline]
    pub fn in_frame(&self) -> bool {
        matches!(self.state, State::HalfHeader(_) | State::Payload { .. })
    }

    /// Whether it holds nothing at all: no part of a frame, and no message that was handed out.
    #[inline]
    pub(crate) const fn is_between(&self) -> bool {
        matches!(self.state, State::Boundary)
    }

    /// The length that the frame declares which has begun and not ended, if its header has arrived.
    pub const fn declared(&self) -> Option<usize> {
        match self.state {
            State::Payload { declared } => Some(declared as usize),
            _ => None,
        }
    }

    /// Bytes of memory held for a partial frame, besides the decoder itself.
    pub fn footprint(&self) -> usize {
        self.storage.footprint()
    }

    /// Takes the next message off the front of `input`, which is advanced past it.
    ///
    /// `None` means that `input` is used up and more is needed. Call it until it says so:
    /// that is also what gives back the memory of the message before.
    ///
    /// An error is final; every later call returns it again.
    #[inline]
    pub fn decode<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Message<'s>>, FrameError> {
        // Nearly all messages: between two frames, and the next lies whole in the input.
        if let State::Boundary = self.state
            && let Some((payload, rest)) = split_frame(input, self.limit)
        {
            *input = rest;
            return Ok(Some(Message::lent(payload)));
        }
        self.decode_cut(input)
    }

    /// Takes whole messages off the front of `input` and gives each to `deliver`, with what is left
    /// behind it, until `deliver` breaks off or the next is not whole.
    #[inline]
    pub(crate) fn decode_whole<'i>(
        &self,
        input: &mut &'i [u8],
        mut deliver: impl FnMut(&'i [u8], &[u8]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if !matches!(self.state, State::Boundary) {
            return ControlFlow::Continue(());
        }
        // In registers, in the loop that every message passes.
        let (mut left, limit) = (*input, self.limit);
        let mut flow = ControlFlow::Continue(());
        while flow.is_continue()
            && let Some((payload, rest)) = split_frame(left, limit)
        {
            left = rest;
            flow = deliver(payload, rest);
        }
        *input = left;
        flow
    }

    /// Gives back the memory of the message that was handed out last.
    pub fn release(&mut self) {
        if let State::HandedOut = self.state {
            self.storage.release();
            self.state = State::Boundary;
        }
    }

    /// The same for a frame that is cut, or was, or is too long.
    #[inline(never)]
    fn decode_cut<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Message<'s>>, FrameError> {
        self.release();
        let declared = match self.state {
            State::Broken(error) => return Err(error),
            State::Payload { declared } => declared,
            _ => match self.decode_header(input)? {
                Some(declared) => declared,
                None => return Ok(None),
            },
        };
        let missing = usize::from(declared) - self.storage.len();
        if self.storage.is_empty() && input.len() >= missing {
            let (payload, rest) = input.split_at(missing);
            *input = rest;
            self.state = State::Boundary;
            return Ok(Some(Message::lent(payload)));
        }
        let (arrived, rest) = input.split_at(missing.min(input.len()));
        *input = rest;
        if !arrived.is_empty() {
            self.storage.append(arrived, usize::from(declared));
        }
        if arrived.len() < missing {
            self.state = State::Payload { declared };
            return Ok(None);
        }
        self.state = State::HandedOut;
        Ok(Some(self.storage.message()))
    }

    /// Takes a header, or what there is of one, off the front of `input`. Returns the
    /// length it declares once it is whole and within the limit.
    fn decode_header(&mut self, input: &mut &[u8]) -> Result<Option<u16>, FrameError> {
        let declared = match (self.state, &**input) {
            (_, []) => return Ok(None),
            (State::HalfHeader(first), [second, ..]) => {
                *input = &input[1..];
                u16::from_be_bytes([first, *second])
            }
            (_, [first]) => {
                self.state = State::HalfHeader(*first);
                *input = &input[1..];
                return Ok(None);
            }
            (_, [first, second, ..]) => {
                *input = &input[HEADER_LEN..];
                u16::from_be_bytes([*first, *second])
            }
        };
        if declared > self.limit {
            let error = FrameError::TooLong {
                declared,
                limit: self.limit,
            };
            self.state = State::Broken(error);
            return Err(error);
        }
        Ok(Some(declared))
    }
}

/// The payload of the frame at the front of `bytes`, and what is behind it; `None` if it is not whole,
/// or longer than `limit`.
#[inline]
fn split_frame(bytes: &[u8], limit: u16) -> Option<(&[u8], &[u8])> {
    let [first, second, after @ ..] = bytes else {
        return None;
    };
    let declared = u16::from_be_bytes([*first, *second]);
    if declared > limit {
        return None;
    }
    after.split_at_checked(usize::from(declared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Fixed;
    use std::vec::Vec;

    fn decode_all<S: Storage>(
        decoder: &mut Decoder<S>,
        mut input: &[u8],
    ) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut messages = Vec::new();
        while let Some(message) = decoder.decode(&mut input)? {
            messages.push(message.to_vec());
        }
        assert!(input.is_empty(), "None with input left over");
        Ok(messages)
    }

    #[test]
    fn a_message_that_lies_whole_in_the_input_is_lent_out_of_it() {
        let input = b"\0\x03abc";
        let mut decoder = Decoder::new(Fixed::<8>::new(), 8);
        let mut rest = &input[..];
        let message = decoder.decode(&mut rest).unwrap().unwrap();
        assert_eq!(message.as_ptr(), input[2..].as_ptr());
    }

    #[test]
    fn one_byte_at_a_time_gives_the_same_messages() {
        let mut decoder = Decoder::new(Fixed::<8>::new(), 8);
        let mut messages = Vec::new();
        for byte in b"\0\x03abc\0\0\0\x01z" {
            messages.extend(decode_all(&mut decoder, &[*byte]).unwrap());
        }
        assert_eq!(messages, [&b"abc"[..], b"", b"z"]);
        assert!(!decoder.in_frame());
    }

    #[test]
    fn a_frame_as_long_as_the_limit_passes_and_one_byte_more_does_not() {
        let mut decoder = Decoder::new(Fixed::<8>::new(), 4);
        assert_eq!(decode_all(&mut decoder, b"\0\x04abcd").unwrap(), [b"abcd"]);
        let error = FrameError::TooLong {
            declared: 5,
            limit: 4,
        };
        assert_eq!(decode_all(&mut decoder, b"\0\x05"), Err(error));
        assert_eq!(
            decode_all(&mut decoder, b"\0\x01a"),
            Err(error),
            "it is final"
        );
    }

    #[test]
    fn the_limit_follows_the_storage() {
        assert_eq!(Decoder::new(Fixed::<8>::new(), 100).max_message(), 8);
        assert_eq!(
            Decoder::new(Fixed::<100_000>::new(), 100_000).max_message(),
            65_535
        );
    }

    #[cfg(feature = "alloc")]
    #[test]
    fn a_reassembled_message_is_given_away_without_a_copy() {
        use crate::storage::Growing;
        let mut decoder = Decoder::new(Growing::new(), 65_535);
        assert!(decoder.decode(&mut &b"\0\x04ab"[..]).unwrap().is_none());
        let mut rest = &b"cd"[..];
        let message = decoder.decode(&mut rest).unwrap().unwrap();
        let address = message.as_ptr();
        let bytes = message.into_bytes();
        assert_eq!(bytes.as_ptr(), address);
        assert_eq!(&bytes[..], b"abcd");
        assert!(decoder.decode(&mut rest).unwrap().is_none());
        assert_eq!(decoder.footprint(), 0);
    }

    #[cfg(feature = "alloc")]
    #[test]
    fn memory_follows_what_arrived_and_not_what_was_declared() {
        use crate::storage::Growing;
        let mut decoder = Decoder::new(Growing::new(), 65_535);
        assert!(decoder.decode(&mut &b"\xff\xff"[..]).unwrap().is_none());
        assert_eq!(decoder.footprint(), 0);
        for arrived in 1..=65_534 {
            assert!(decoder.decode(&mut &b"x"[..]).unwrap().is_none());
            assert!(decoder.footprint() <= 2 * arrived + size_of::<Vec<u8>>());
        }
    }
}
