//! Two ends of TLS, and an attacker on the wire between them, which delivers in any pieces, flips bytes,
//! drops, repeats and inserts some, while either side sends and closes.
//!
//! In any case what a side receives is the beginning of what the other has sent. As long as the attacker
//! only delivers, a side that has not closed itself receives all of it, and ends if and only if the
//! other has closed.

use crate::{length, read};
use arbitrary::Arbitrary;
use cubenet_core::Instant;
use cubenet_core::layer::{Ends, Layer, LayerState, MakeLayer};
use cubenet_tests::tls::Tls;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

/// What is done, in order. `true` is the side that connects.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    /// A side sends this many bytes, in two pieces.
    Send(bool, u8, u8),
    Close(bool),
    /// This much of what is under way to a side arrives.
    Deliver(bool, u8),
    /// So do all records that are under way.
    Exchange,
    /// A byte on the way to a side is flipped,
    Flip(bool, u8, u8),
    /// so many are lost,
    Drop(bool, u8, u8),
    /// so many come twice,
    Repeat(bool, u8, u8),
    /// or this one comes from nowhere.
    Insert(bool, u8, u8),
}

struct Side {
    layer: Box<dyn Layer>,
    /// What it has sent, and what it has received.
    sent: Vec<u8>,
    received: Vec<u8>,
    /// What is under way to it.
    wire: Vec<u8>,
    closed: bool,
    /// Something was done to what was under way to it.
    tampered: bool,
}

/// Without sessions, so that one input does not depend on those before.
static TLS: LazyLock<Tls> = LazyLock::new(|| Tls::forgetful(0));

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let Some((handshake_first, steps)) = read::<(bool, Vec<Step>)>(data) else {
        return;
    };
    TLS.reseed(7);
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let ends = Ends::new(here, here);
    let layers = [TLS.server.make_layer(ends), TLS.client.make_layer(ends)];
    let mut sides = layers.map(|layer| Side {
        layer,
        sent: Vec::new(),
        received: Vec::new(),
        wire: Vec::new(),
        closed: false,
        tampered: false,
    });
    for side in [0, 1] {
        act(&mut sides, side, |layer, _, wire| {
            layer.begin(Instant::ZERO, wire);
        });
    }
    if handshake_first {
        exchange(&mut sides);
        assert!(sides.iter().all(|side| side.layer.is_established()));
    }
    for step in steps.into_iter().take(200) {
        do_step(&mut sides, step);
    }
    finish(&mut sides);
}

/// Does something with the layer of a side; what it has for the wire is under way to the other.
fn act(
    sides: &mut [Side; 2],
    side: usize,
    does: impl FnOnce(&mut dyn Layer, &mut Vec<u8>, &mut Vec<u8>),
) {
    let mut wire = Vec::new();
    let Side {
        layer, received, ..
    } = &mut sides[side];
    does(&mut **layer, received, &mut wire);
    sides[1 - side].wire.append(&mut wire);
    let there = &sides[1 - side].sent;
    assert!(
        there.starts_with(&sides[side].received),
        "it was never sent"
    );
}

/// Delivers the first bytes of what is under way to a side.
fn deliver(sides: &mut [Side; 2], side: usize, len: usize) {
    let len = len.min(sides[side].wire.len());
    let mut bytes: Vec<_> = sides[side].wire.drain(..len).collect();
    act(sides, side, |layer, received, wire| {
        layer.handle_input(&mut bytes, received, wire);
    });
}

fn exchange(sides: &mut [Side; 2]) {
    // More rounds than a handshake has.
    for _ in 0..10 {
        for side in [0, 1] {
            deliver(sides, side, usize::MAX);
        }
    }
}

fn is_open(side: &Side) -> bool {
    let state = side.layer.state();
    side.layer.is_established()
        && matches!(state, LayerState::Open | LayerState::Ended)
        && !side.closed
}

fn do_step(sides: &mut [Side; 2], step: Step) {
    match step {
        Step::Send(side, first, second) => {
            let side = usize::from(side);
            if !is_open(&sides[side]) {
                return;
            }
            let from = sides[side].sent.len();
            let len = length(first) + length(second);
            let bytes: Vec<_> = (from..from + len).map(|at| at as u8).collect();
            sides[side].sent.extend_from_slice(&bytes);
            let (first, second) = bytes.split_at(length(first));
            act(sides, side, |layer, _, wire| {
                layer.handle_output(&[first, second], wire);
            });
        }
        Step::Close(side) => {
            let side = usize::from(side);
            if is_open(&sides[side]) {
                sides[side].closed = true;
                act(sides, side, |layer, _, wire| layer.handle_close(wire));
            }
        }
        Step::Deliver(side, len) => deliver(sides, usize::from(side), length(len)),
        Step::Exchange => exchange(sides),
        Step::Flip(side, at, bits) => {
            let side = &mut sides[usize::from(side)];
            if let Some(byte) = side.wire.get_mut(length(at)) {
                *byte ^= bits;
                side.tampered |= bits != 0;
            }
        }
        Step::Drop(side, at, len) => {
            let side = &mut sides[usize::from(side)];
            let from = length(at).min(side.wire.len());
            let to = (from + length(len)).min(side.wire.len());
            side.tampered |= from < to;
            side.wire.drain(from..to);
        }
        Step::Repeat(side, at, len) => {
            let side = &mut sides[usize::from(side)];
            let from = length(at).min(side.wire.len());
            let to = (from + length(len)).min(side.wire.len());
            side.tampered |= from < to;
            let again = side.wire[from..to].to_vec();
            side.wire.splice(to..to, again);
        }
        Step::Insert(side, at, byte) => {
            let side = &mut sides[usize::from(side)];
            let at = length(at).min(side.wire.len());
            side.wire.insert(at, byte);
            side.tampered = true;
        }
    }
}

/// Everything that is under way arrives.
fn finish(sides: &mut [Side; 2]) {
    exchange(sides);
    if sides.iter().any(|side| side.tampered) {
        return;
    }
    for side in [0, 1] {
        let (here, there) = (&sides[side], &sides[1 - side]);
        if here.closed {
            // It receives nothing behind its own end.
            continue;
        }
        assert_eq!(here.received, there.sent);
        let ended = here.layer.state() == LayerState::Ended;
        assert_eq!(ended, there.closed, "{:?}", here.layer.state());
        assert_eq!(here.layer.held(), 0);
    }
}
