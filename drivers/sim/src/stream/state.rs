//! What there is of a stream connection, and what it does with its socket.

use super::layers::Layers;
use crate::job::{BoxedHandler, StreamRecvHalf};
use crate::kernel::{Kernel, Key, Notice};
use crate::network_state::{NetworkId, NetworkState};
use bytes::Bytes;
use cubenet_core::connection::HeldInput;
use cubenet_core::{
    ConnectionId, Decoder, Frame, Growing, Instant, Limits, Reading, RecvHalf, SendError, SendHalf,
    SendQueue, State, connection,
};

pub(crate) struct Stream {
    pub(crate) id: ConnectionId,
    pub(crate) network: NetworkId,
    pub(crate) send: SendHalf,
    /// `None` while a callback decodes with it.
    pub(crate) recv: Option<StreamRecvHalf>,
    /// `None` while a callback runs, and until the application has made it.
    pub(crate) handler: Option<BoxedHandler>,
    /// Bytes that the socket would not take yet. Allocated while there are any.
    queue: Option<Box<SendQueue>>,
    /// What lies between the socket and the framing, if anything does.
    pub(crate) layers: Option<Box<Layers>>,
    /// What the application asked for last: `pause` or `resume`.
    pub(crate) wants_pause: bool,
    /// Input waits for the next iteration.
    pub(crate) has_unread: bool,
    /// Input that was read and not delivered.
    pub(crate) undelivered: Option<Box<Bytes>>,
    /// Input held, as it was counted last.
    pub(crate) held: HeldInput,
    /// When its timer fires.
    pub(crate) armed: Instant,
}

/// Bytes for the wire.
#[derive(Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) parts: [&'a [u8]; 2],
    /// The frame whose bytes these are.
    pub(super) frame: Option<&'a Frame>,
    /// How many of them layers have added.
    pub(super) overhead: usize,
}

impl Stream {
    fn new(id: ConnectionId, network: NetworkId, (send, recv): (SendHalf, StreamRecvHalf)) -> Self {
        Stream {
            id,
            network,
            send,
            recv: Some(recv),
            handler: None,
            queue: None,
            layers: None,
            wants_pause: false,
            has_unread: false,
            undelivered: None,
            held: HeldInput::NONE,
            armed: Instant::NEVER,
        }
    }

    pub(crate) fn accepted(
        id: ConnectionId,
        network: NetworkId,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        let decoder = Decoder::new(Growing::new(), limits.max_message());
        let halves = (SendHalf::accepted(), RecvHalf::accepted(decoder, now));
        Stream::new(id, network, halves)
    }

    /// A stream that was accepted, and whose layers come first.
    pub(crate) fn handshaking(
        id: ConnectionId,
        network: NetworkId,
        limits: &Limits,
        now: Instant,
        layers: Layers,
    ) -> Self {
        Stream {
            send: SendHalf::handshaking(now),
            layers: Some(Box::new(layers)),
            ..Stream::accepted(id, network, limits, now)
        }
    }

    pub(crate) fn connecting(
        id: ConnectionId,
        network: NetworkId,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        let decoder = Decoder::new(Growing::new(), limits.max_message());
        let recv = RecvHalf::connecting(decoder, now);
        Stream::new(id, network, (SendHalf::connecting(now), recv))
    }

    /// Bytes that wait: for the socket, or for the handshake of the layers.
    pub(crate) fn queued(&self) -> usize {
        let pending = self.layers.as_ref().map_or(0, |layers| layers.pending());
        self.queue.as_ref().map_or(0, |queue| queue.len()) + pending
    }

    /// Bytes of memory held for a partial frame, 0 while a callback decodes, and for partial records
    /// of the layers.
    pub(crate) fn footprint(&self) -> usize {
        let of_layers = self.layers.as_ref().map_or(0, |layers| layers.held());
        self.recv.as_ref().map_or(0, RecvHalf::footprint) + of_layers
    }

    /// What is done with the peer's bytes.
    pub(crate) fn reading(&self) -> Reading {
        connection::reading(self.send.state(), self.wants_pause)
    }

    /// Sends a message; what the socket does not take is queued.
    pub(crate) fn send(
        &mut self,
        socket: Key,
        message: &[u8],
        frame: Option<&Frame>,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> Result<(), SendError> {
        let len = message.len();
        let backlog = network.backlog(self.queued());
        let limits = &network.limits;
        let header = self.send.admit(len, backlog, limits)?;
        network.metrics.messages_out += 1;
        network.metrics.bytes_out += len as u64;
        let parts = [&header[..], message];
        if self.layers.is_some() {
            self.write_layered(socket, parts, kernel, network);
        } else {
            let message = Outgoing {
                parts,
                frame,
                overhead: 0,
            };
            self.write(socket, message, kernel, network);
        }
        Ok(())
    }

    /// Writes bytes for the wire. What the socket does not take is queued.
    pub(super) fn write(
        &mut self,
        socket: Key,
        outgoing: Outgoing<'_>,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        let Outgoing {
            parts,
            frame,
            overhead,
        } = outgoing;
        let size = parts[0].len() + parts[1].len();
        let state = self.send.state();
        let waited = self.queue.is_some();
        let mut sent = 0;
        if state == State::Closed {
            // The last word of a layer: what the socket does not take of it is lost.
            if !waited {
                let _ = kernel.write(socket, &parts);
            }
            return;
        }
        if !waited && state.is_connected() {
            match kernel.write(socket, &parts) {
                Ok(written) if written == size => return,
                Ok(written) => sent = written,
                Err(reason) => {
                    self.send.abort(reason);
                    kernel.notify(socket, Notice::Writable);
                    return;
                }
            }
        }
        let queue = self.queue.get_or_insert_default();
        if let Some(frame) = frame {
            queue.push_frame(frame, sent);
        } else {
            let of_first = sent.min(parts[0].len());
            queue.push(&parts[0][of_first..]);
            queue.push(&parts[1][sent - of_first..]);
        }
        network.queued_bytes += size - sent;
        let backlog = network.backlog(self.queued());
        let backlog = backlog.without_overhead(overhead);
        self.send
            .handle_queued(sent > 0, backlog, kernel.now, &network.limits);
        // The clock of the queue has to be set.
        kernel.notify(socket, Notice::Writable);
    }

    /// Writes what is queued, as far as the socket takes it.
    pub(super) fn flush(&mut self, socket: Key, kernel: &mut Kernel, network: &mut NetworkState) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        let mut progress = 0;
        let outcome = loop {
            let Some(chunk) = queue.chunks().next() else {
                break Ok(());
            };
            let len = chunk.len();
            match kernel.write(socket, &[chunk]) {
                Ok(written) => {
                    queue.advance(written);
                    progress += written;
                    if written < len {
                        break Ok(());
                    }
                }
                Err(reason) => break Err(reason),
            }
        };
        if queue.is_empty() {
            self.queue = None;
        }
        let queued = self.queued();
        network.queued_bytes -= progress;
        match outcome {
            Ok(()) => self.send.handle_written(progress > 0, queued, kernel.now),
            Err(reason) => self.send.abort(reason),
        }
    }

    /// The peer's FIN was read.
    pub(super) fn handle_fin(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        let Some(recv) = self.recv.take() else {
            return;
        };
        let now = kernel.now;
        let layered = self.change_layers(socket, kernel, network, |layered, half, _| {
            layered.handle_fin(&recv, half, now);
        });
        if layered.is_none() {
            connection::handle_fin(&recv, &mut self.send, now);
        }
        self.recv = Some(recv);
    }

    pub(super) fn poll_timeout(&self, limits: &Limits) -> Instant {
        let deadline = match &self.recv {
            Some(recv) => connection::poll_timeout(recv, &self.send, self.has_unread, limits),
            None => self.send.poll_timeout(limits),
        };
        let layers = self.layers.as_ref();
        let of_layers = layers.map_or(Instant::NEVER, |layers| layers.poll_timeout(&self.send));
        deadline.min(of_layers)
    }

    pub(super) fn handle_timeout(
        &mut self,
        socket: Key,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) {
        let now = kernel.now;
        self.change_layers(socket, kernel, network, |layered, half, _| {
            layered.handle_timeout(half, now);
        });
        let limits = &network.limits;
        match &self.recv {
            Some(recv) => {
                connection::handle_timeout(recv, &mut self.send, self.has_unread, now, limits);
            }
            None => self.send.handle_timeout(now, limits),
        }
    }

    /// Brings the reading into line with what the application and the state of the connection ask
    /// for. Returns whether input that was held has been dropped.
    pub(super) fn follow_reading(&mut self, socket: Key, kernel: &mut Kernel) -> bool {
        if self.reading() == Reading::Discard {
            let dropped = self.undelivered.take().is_some();
            let was_held = std::mem::take(&mut self.wants_pause) || dropped;
            if was_held {
                kernel.notify(socket, Notice::Readable);
            }
            return dropped;
        }
        if let Some(recv) = &mut self.recv {
            let changed = recv.set_paused(self.wants_pause, kernel.now);
            let goes_on = changed || self.undelivered.is_some() && !self.has_unread;
            if !self.wants_pause && goes_on {
                kernel.notify(socket, Notice::Readable);
            }
        }
        false
    }
}
