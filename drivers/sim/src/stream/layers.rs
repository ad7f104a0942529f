//! The layers of a stream, such as TLS. They run under the lock of the simulation.

use super::state::{Outgoing, Stream};
use crate::job::{AcceptFn, Call, Callback, Job, StreamRecvHalf, Task};
use crate::kernel::{Kernel, Key, Notice};
use crate::network_state::NetworkState;
use crate::world::World;
use bytes::Bytes;
use cubenet_core::{
    CloseReason, Ends, Identity, Instant, Layer, LayerError, Layered, MakeLayer, SendHalf,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The layers of a stream.
pub(crate) struct Layers {
    layered: Layered,
    /// The function of the listener that is to be asked once the handshake is complete.
    pub(super) accept: Option<Arc<AcceptFn>>,
    /// It counts as one that is in its handshake.
    is_counted: bool,
    /// The handshake has just been completed, and the connection is open.
    has_opened: bool,
    /// What the handshake has shown.
    identity: Option<Arc<Identity>>,
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

impl Stream {
    /// Whether it was accepted, and the application has yet to be asked about it.
    pub(crate) fn is_unasked(&self) -> bool {
        let layers = self.layers.as_ref();
        layers.is_some_and(|layers| layers.accept.is_some())
    }

    /// Whether it counts as one whose layers are in their handshake.
    pub(crate) fn is_handshaking(&self) -> bool {
        let layers = self.layers.as_ref();
        layers.is_some_and(|layers| layers.is_counted)
    }

    /// The most bytes that its layers may add to what is queued: to every record, and once for what
    /// they send by themselves.
    pub(crate) fn added_by_layers(&self, queued: usize) -> usize {
        self.layers.as_ref().map_or(0, |_| queued / 64 + 16_384)
    }

    /// What the handshake of its layers has shown.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.layers.as_ref()?.identity.clone()
    }

    /// Changes the layers, if there are any, and writes what they have for the wire.
    pub(super) fn change_layers<R>(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
        change: impl FnOnce(&mut Layered, &mut SendHalf, &mut Vec<u8>) -> R,
    ) -> Option<R> {
        let layers = self.layers.as_mut()?;
        let (layered, half) = (&mut layers.layered, &mut self.send);
        let before = layered.pending();
        let mut wire = Vec::new();
        let changed = catch_unwind(AssertUnwindSafe(|| change(layered, half, &mut wire)));
        // What waited for the handshake is on the wire now, or dropped.
        network.queued_bytes -= before.saturating_sub(layered.pending());
        let overhead = layered.overhead(wire.len());
        let state = half.state();
        if !state.is_connecting() && !state.is_handshaking() {
            layers.end_handshake(network);
        }
        let changed = changed.map_err(|_panic| {
            network.metrics.panics += 1;
            self.send.abort(CloseReason::Panicked);
            kernel.notify(socket, Notice::Writable);
        });
        if changed.is_ok() && !wire.is_empty() {
            let wire = Outgoing {
                parts: [&wire, &[]],
                frame: None,
                overhead,
            };
            self.write(socket, wire, kernel, network);
        }
        changed.ok()
    }

    /// Has the layers send framed bytes.
    pub(super) fn write_layered(
        &mut self,
        socket: Key,
        parts: [&[u8]; 2],
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        let waiting = self.change_layers(socket, kernel, network, |layered, half, wire| {
            let before = layered.pending();
            layered.handle_output(half, &parts, wire);
            layered.pending() - before
        });
        if let Some(waiting @ 1..) = waiting {
            // Until the handshake is complete.
            network.queued_bytes += waiting;
            let backlog = network.backlog(self.queued());
            self.send
                .handle_queued(false, backlog, kernel.now, &network.limits);
            kernel.notify(socket, Notice::Writable);
        }
    }

    /// The transport is connected.
    pub(super) fn begin_layers(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        let now = kernel.now;
        self.change_handshake(socket, kernel, network, |layered, recv, half, wire| {
            layered.begin(recv, half, now, wire)
        });
        // For its timer.
        kernel.notify(socket, Notice::Writable);
    }

    /// Changes the layers in a way that may complete their handshake.
    fn change_handshake(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
        change: impl FnOnce(
            &mut Layered,
            &mut StreamRecvHalf,
            &mut SendHalf,
            &mut Vec<u8>,
        ) -> Option<bool>,
    ) {
        let Some(mut recv) = self.recv.take() else {
            return;
        };
        let established = self.change_layers(socket, kernel, network, |layered, half, wire| {
            change(layered, &mut recv, half, wire)
        });
        self.recv = Some(recv);
        if let (Some(is_open), Some(layers)) = (established.flatten(), &mut self.layers) {
            let identity = catch_unwind(AssertUnwindSafe(|| layers.layered.identity()));
            layers.identity = identity.ok().map(Arc::new);
            layers.has_opened = is_open;
        }
    }

    /// Takes what was read through the layers, if there are any. Returns the bytes of the stream.
    pub(super) fn read_layered(
        &mut self,
        socket: Key,
        bytes: Bytes,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> Bytes {
        if self.layers.is_none() {
            return bytes;
        }
        let now = kernel.now;
        let mut input = Vec::from(bytes);
        let mut stream = Vec::new();
        self.change_handshake(socket, kernel, network, |layered, recv, half, wire| {
            layered.handle_input(&mut input, &mut stream, wire);
            layered.poll_established(recv, half, now, wire)
        });
        stream.into()
    }

    /// Everything that the layers have given was delivered or dropped: if they end or fail behind it,
    /// that is due now.
    pub(super) fn layers_delivered(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        let Some(recv) = self.recv.take() else {
            return;
        };
        let now = kernel.now;
        self.change_layers(socket, kernel, network, |layered, half, _| {
            layered.handle_delivered(&recv, half, now);
        });
        self.recv = Some(recv);
    }

    /// Ends this side's direction of the layers. Returns whether the FIN may follow: nothing waits.
    pub(super) fn close_layers(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> bool {
        self.change_layers(socket, kernel, network, |layered, _, wire| {
            layered.handle_close(wire);
        });
        self.queued() == 0
    }
}

impl World {
    /// The application has made the layer of a stream that connects.
    pub(crate) fn give_layer(&mut self, socket: Key, layer: Box<dyn Layer>) {
        match self.stream(socket) {
            Some((stream, _, network, _)) => {
                stream.layers = Some(Box::new(Layers::new(layer, None, network)));
            }
            None => self.drop_later(layer),
        }
    }

    /// If the handshake of the layers has just been completed: keeps what came behind it, and asks
    /// the application about a stream that was accepted, or tells it of one that was connected.
    pub(super) fn established(
        &mut self,
        socket: Key,
        bytes: &Bytes,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        let stream = self.owners.stream(socket)?;
        let layers = stream.layers.as_mut()?;
        if !std::mem::take(&mut layers.has_opened) {
            return None;
        }
        let (id, network) = (stream.id, stream.network);
        let accept = layers.accept.take();
        // None, too: the layers may have ended or failed behind that.
        stream.undelivered = Some(Box::new(bytes.clone()));
        job.push(Task::AdvanceStream(socket));
        // What waited for the handshake has made room.
        job.push(Task::Flush(socket));
        self.count_held(socket, false);
        match accept {
            None => self.call_stream(socket, Callback::Connected),
            Some(accept) => {
                let info = self.stream_info(socket, id);
                Some(self.call(info, network, None, Callback::Accepted(accept)))
            }
        }
    }
}
