//! What a stream with layers does besides: everything passes through them.

use super::state::{Outgoing, Stream};
use crate::job::StreamRecvHalf;
use crate::kernel::{Kernel, Key, Notice};
use crate::network_state::NetworkState;
use bytes::Bytes;
use cubenet_core::{CloseReason, Identity, Layered, SendHalf};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

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
