//! The layers of a stream, such as TLS, as its sending side keeps them under its lock.

use crate::conn::home::Home;
use crate::user::{UserValue, catch_panic};
use cubenet_core::{Identity, Layer, Layered};
use std::cell::Cell;
use std::io;
use std::sync::Arc;

/// Memory that a thread keeps for what layers have made for the wire, from one use to the next.
const KEPT: usize = 1 << 18;

std::thread_local! {
    static WIRE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Does `make` with an empty buffer for the wire, which the thread keeps.
pub(super) fn with_wire<R>(make: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut wire = WIRE.try_with(Cell::take).unwrap_or_default();
    wire.clear();
    let made = make(&mut wire);
    if wire.capacity() <= KEPT {
        let _ = WIRE.try_with(|kept| kept.set(wire));
    }
    made
}

/// The layers of a stream.
pub(crate) struct Layers {
    pub(super) layered: UserValue<Layered>,
    /// It counts as one that is in its handshake.
    permit: Option<HandshakePermit>,
    /// The handshake is complete.
    pub(super) is_established: bool,
    /// What it panicked with.
    pub(super) panicked: Option<io::Error>,
}

impl Layers {
    pub(crate) fn new(layer: Box<dyn Layer>, permit: HandshakePermit) -> Self {
        Layers {
            layered: UserValue::new(Layered::new(layer)),
            permit: Some(permit),
            is_established: false,
            panicked: None,
        }
    }

    /// The handshake is over, one way or the other.
    pub(super) fn end_handshake(&mut self) {
        self.permit = None;
    }

    /// What the handshake has shown, once it is complete. Made anew each time: most connections are
    /// asked once, and it would take more memory than the rest.
    pub(super) fn identity(&self) -> Option<Identity> {
        if !self.is_established {
            return None;
        }
        catch_panic(|| self.layered.identity()).ok()
    }

    /// The connection is over.
    pub(super) fn discard(&mut self) {
        self.permit = None;
        self.layered.discard();
    }

    /// Why the layer failed, if it has.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        if let Some(panicked) = self.panicked.take() {
            return Some(panicked);
        }
        let error = self.layered.error()?.clone();
        Some(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// The permit to be in a handshake, which is given back when it is dropped.
pub(crate) struct HandshakePermit(Arc<Home>);

impl HandshakePermit {
    /// A permit, if there is one left.
    pub(crate) fn take(home: &Arc<Home>) -> Option<Self> {
        let begins = home.network().begin_handshake();
        begins.then(|| {
            home.counts.handshaking.add(1);
            HandshakePermit(Arc::clone(home))
        })
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.0.counts.handshaking.sub(1);
        self.0.network().end_handshake();
    }
}
