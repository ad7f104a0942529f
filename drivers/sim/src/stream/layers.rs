//! The layers of a stream, such as TLS. They run under the lock of the simulation.

use crate::job::AcceptFn;
use crate::network_state::NetworkState;
use cubenet_core::{Ends, Identity, Instant, Layer, LayerError, Layered, MakeLayer, SendHalf};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The layers of a stream.
pub(crate) struct Layers {
    pub(super) layered: Layered,
    /// The function of the listener that is to be asked once the handshake is complete.
    pub(super) accept: Option<Arc<AcceptFn>>,
    /// It counts as one that is in its handshake.
    pub(super) is_counted: bool,
    /// The handshake has just been completed, and the connection is open.
    pub(super) has_opened: bool,
    /// What the handshake has shown.
    pub(super) identity: Option<Arc<Identity>>,
}

impl Layers {
    /// The layer of a stream, which counts as one in its handshake.
    pub(crate) fn new(
        layer: Box<dyn Layer>,
        accept: Option<Arc<AcceptFn>>,
        network: &mut NetworkState,
    ) -> Self {
        network.handshaking += 1;
        Layers {
            layered: Layered::new(layer),
            accept,
            is_counted: true,
            has_opened: false,
            identity: None,
        }
    }

    /// Says once whether the handshake has just been completed, and the connection is open.
    pub(super) fn poll_opened(&mut self) -> bool {
        std::mem::take(&mut self.has_opened)
    }

    /// Framed bytes that wait for the handshake.
    pub(super) fn pending(&self) -> usize {
        self.layered.pending()
    }

    /// Bytes held of input that is not whole.
    pub(super) fn held(&self) -> usize {
        self.layered.held()
    }

    pub(super) fn poll_timeout(&self, half: &SendHalf) -> Instant {
        self.layered.poll_timeout(half)
    }

    /// The handshake is over, one way or the other.
    pub(super) fn end_handshake(&mut self, network: &mut NetworkState) {
        if std::mem::take(&mut self.is_counted) {
            network.handshaking -= 1;
        }
    }

    pub(super) fn error(&self) -> Option<LayerError> {
        self.layered.error().cloned()
    }
}

/// Makes a layer; `None` if that panics.
pub(crate) fn make_layer(make: &dyn MakeLayer, ends: Ends) -> Option<Box<dyn Layer>> {
    catch_unwind(AssertUnwindSafe(|| make.make_layer(ends))).ok()
}
