//! Any bytes in any chunking decode to what a plain reading of the whole gives, into storage
//! of either kind, within the bound on memory.

use crate::{pieces, read};
use arbitrary::Arbitrary;
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{
    CloseReason, Decoder, Fixed, FrameError, Growing, Instant, Limits, RecvHalf, RingDecoder,
    Storage,
};

/// How the input of this check is read: ten bytes, then the stream.
#[derive(Arbitrary, Debug)]
pub struct Input<'a> {
    limit: u16,
    cuts: [u8; 8],
    stream: &'a [u8],
}

/// The longest payload of the fixed storage that is compared with the growing one.
const FIXED: usize = 300;

/// What a stream came to.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    messages: Vec<Vec<u8>>,
    error: Option<FrameError>,
    in_frame: bool,
}

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let Some(input) = read::<Input>(data) else {
        return;
    };
    let limit = usize::from(input.limit);
    let expected = plain(input.stream, input.limit);
    let mut whole = Decoder::new(Growing::new(), limit);
    let at_once = decode(&mut whole, [input.stream].into_iter(), bounded);
    assert_eq!(at_once, expected);
    let mut cut = Decoder::new(Growing::new(), limit);
    let in_pieces = decode(&mut cut, pieces(input.stream, &input.cuts), bounded);
    assert_eq!(in_pieces, expected);
    let mut fixed = Decoder::new(Fixed::<FIXED>::new(), limit);
    let into_fixed = decode(&mut fixed, pieces(input.stream, &input.cuts), |_, _| ());
    let limit = input.limit.min(FIXED as u16);
    assert_eq!(into_fixed, plain(input.stream, limit));
    let in_a_ring = ring(pieces(input.stream, &input.cuts), input.limit);
    assert_eq!(in_a_ring, expected);
}

/// The pieces, one a second, into a ring and into a receiver beside it.
fn ring<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: u16) -> Outcome {
    let limits = Limits::new().with_max_message(usize::from(limit));
    let mut now = Instant::ZERO;
    let mut receiver = RecvHalf::connecting(RingDecoder::new(), now);
    let decoder = Decoder::new(Growing::new(), limits.max_message());
    let mut beside = RecvHalf::connecting(decoder, now);
    let mut messages = Vec::new();
    let mut ring = Vec::new();
    for mut piece in pieces {
        now = now.after(std::time::Duration::from_secs(1));
        ring.extend_from_slice(piece);
        loop {
            let front = &ring[..ring.len().min(HEADER_LEN)];
            match receiver.handle_ring(front, ring.len(), &limits, now) {
                Ok(Some(len)) => {
                    let frame = ring.drain(..HEADER_LEN + len);
                    messages.push(frame.skip(HEADER_LEN).collect());
                }
                Ok(None) => break,
                Err(error) => {
                    return Outcome {
                        messages,
                        error: Some(error),
                        in_frame: false,
                    };
                }
            }
        }
        // An empty piece is none: a ring without new bytes has received nothing.
        while !piece.is_empty()
            && beside
                .handle_input(&mut piece, now)
                .is_ok_and(|m| m.is_some())
        {}
        assert_eq!(receiver.poll_timeout(&limits), beside.poll_timeout(&limits));
        assert_eq!(receiver.handle_fin(), beside.handle_fin());
    }
    Outcome {
        messages,
        error: None,
        in_frame: receiver.handle_fin() == CloseReason::Truncated,
    }
}

/// Invariant 3: memory for a partial frame is at most twice what arrived of it and a
/// constant, and none between two frames.
fn bounded(decoder: &Decoder<Growing>, of_frame: usize) {
    let constant = size_of::<Vec<u8>>();
    assert!(decoder.footprint() <= 2 * of_frame + constant);
    assert!(decoder.in_frame() || decoder.footprint() == 0);
}

fn decode<'a, S: Storage>(
    decoder: &mut Decoder<S>,
    pieces: impl Iterator<Item = &'a [u8]>,
    look: impl Fn(&Decoder<S>, usize),
) -> Outcome {
    let mut messages = Vec::new();
    let mut of_frame = 0;
    for mut piece in pieces {
        loop {
            let before = piece.len();
            match decoder.decode(&mut piece) {
                Ok(Some(message)) => {
                    messages.push(message.to_vec());
                    of_frame = 0;
                }
                Ok(None) => {
                    assert!(piece.is_empty(), "it asks for more and has some");
                    of_frame += before;
                    break;
                }
                Err(error) => {
                    let again = decoder.decode(&mut &b"\0\0"[..]).map(|_| ());
                    assert_eq!(again, Err(error), "an error is final");
                    return Outcome {
                        messages,
                        error: Some(error),
                        in_frame: false,
                    };
                }
            }
        }
        look(decoder, of_frame);
    }
    Outcome {
        messages,
        error: None,
        in_frame: decoder.in_frame(),
    }
}

/// The stream read in the plainest way.
fn plain(mut stream: &[u8], limit: u16) -> Outcome {
    let mut messages = Vec::new();
    let mut error = None;
    while let Some((header, rest)) = stream.split_first_chunk::<HEADER_LEN>() {
        let declared = u16::from_be_bytes(*header);
        if declared > limit {
            error = Some(FrameError::TooLong { declared, limit });
            break;
        }
        let Some((payload, rest)) = rest.split_at_checked(usize::from(declared)) else {
            break;
        };
        messages.push(payload.to_vec());
        stream = rest;
    }
    Outcome {
        messages,
        in_frame: error.is_none() && !stream.is_empty(),
        error,
    }
}
