//! What is checked of the core, of layers and of sessions, under any input. Each module is one property with a function
//! `check(data: &[u8])` that panics if the bytes `data`, read as the module says, break it.
//!
//! The targets in `fuzz_targets/` hand these functions to libFuzzer; the tests replay the
//! committed corpora through the same functions.

pub mod decode;
pub mod demux;
pub mod encode_decode;
pub mod layer;
pub mod lifecycle;
pub mod model;
pub mod pair;
pub mod proxy;
pub mod session;
pub mod traffic;

use arbitrary::{Arbitrary, Unstructured};

/// A check: panics if these bytes break its property.
pub type Check = fn(&[u8]);

/// Every check, by the name of its target and of its corpus.
pub const CHECKS: [(&str, Check); 9] = [
    ("decode", decode::check),
    ("encode_decode", encode_decode::check),
    ("lifecycle", lifecycle::check),
    ("demux", demux::check),
    ("layer", layer::check),
    ("pair", pair::check),
    ("proxy", proxy::check),
    ("session", session::check),
    ("traffic", traffic::check),
];

/// Reads `data` as a `T`; `None` if it is too short for one.
fn read<'a, T: Arbitrary<'a>>(data: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(data)).ok()
}

/// `bytes` cut into pieces of these lengths, over and over; the last takes what is left when
/// the lengths do not advance.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &'a [u8; 8]) -> impl Iterator<Item = &'a [u8]> {
    let stuck = cuts.iter().all(|cut| *cut == 0);
    let mut cuts = cuts.iter().cycle();
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let cut = match cuts.next() {
            Some(cut) if !stuck => length(*cut),
            _ => usize::MAX,
        };
        let (piece, rest) = bytes.split_at(cut.min(bytes.len()));
        bytes = rest;
        Some(piece)
    })
}

/// A length from one byte: the small ones exactly, above those in growing steps to 64 KiB.
fn length(byte: u8) -> usize {
    match byte {
        0..128 => usize::from(byte),
        128..192 => 128 + usize::from(byte - 128) * 64,
        192.. => (4_224 + usize::from(byte - 192) * 974).min(65_535),
    }
}
