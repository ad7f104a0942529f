//! A layer as a driver carries it, and the rules that concern it and the connection.

use super::{Identity, Layer, LayerError, LayerState};
use crate::connection::{self, CloseReason, Framing, RecvHalf, SendHalf};
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// The layer of one connection, with the stream bytes that wait for its handshake.
///
/// A driver, after each call, sends what was appended to `wire` before anything that it sends later.
///
/// 1. The transport is connected: [`SendHalf::handle_transport_connected`] (or
///    [`SendHalf::handshaking`] from the beginning), then [`Layered::begin`]; if that says that the
///    connection is open, `connected` or `accepted`.
/// 2. Bytes have arrived: [`Layered::handle_input`]; then [`Layered::poll_established`], and if
///    that says so, `connected` or `accepted`; then what is in `stream` is decoded and delivered; and
///    once nothing of it is left, [`Layered::handle_delivered`].
/// 3. The peer's FIN has come: [`Layered::handle_fin`], in place of
///    [`handle_fin`](connection::handle_fin).
/// 4. Framed bytes are to be sent: [`Layered::handle_output`].
/// 5. Before [`Action::SendFin`](crate::Action::SendFin) and [`Action::Close`](crate::Action::Close)
///    are done: [`Layered::handle_close`].
pub struct Layered {
    layer: Box<dyn Layer>,
    /// Framed bytes that wait for the handshake.
    pending: Vec<u8>,
    /// Framed bytes that the layer was given since [`Layered::overhead`] was asked.
    given: usize,
    /// This side's direction has ended.
    is_closed: bool,
}

impl Layered {
    /// A connection's layer.
    pub const fn new(layer: Box<dyn Layer>) -> Self {
        Layered {
            layer,
            pending: Vec::new(),
            given: 0,
            is_closed: false,
        }
    }

    /// The transport is connected, at `now`. Answers as [`Layered::poll_established`] does: a layer
    /// may have nothing to wait for. One that cannot even begin closes the connection at once.
    pub fn begin<D: Framing>(
        &mut self,
        recv: &mut RecvHalf<D>,
        half: &mut SendHalf,
        now: Instant,
        wire: &mut Vec<u8>,
    ) -> Option<bool> {
        self.layer.begin(now, wire);
        if let LayerState::Failed(_) = self.layer.state() {
            half.abort(CloseReason::Handshake);
        }
        self.poll_established(recv, half, now, wire)
    }

    /// Bytes have arrived; see [`Layer::handle_input`].
    pub fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) {
        self.layer.handle_input(input, stream, wire);
    }

    /// Framed bytes are to be sent. Until the handshake is complete they wait here; see
    /// [`Layered::pending`].
    pub fn handle_output(&mut self, half: &SendHalf, stream: &[&[u8]], wire: &mut Vec<u8>) {
        let state = half.state();
        if state.is_connecting() || state.is_handshaking() {
            for piece in stream {
                self.pending.extend_from_slice(piece);
            }
        } else if !self.is_closed {
            self.output(stream, wire);
        }
    }

    fn output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        self.given += stream.iter().map(|piece| piece.len()).sum::<usize>();
        self.layer.handle_output(stream, wire);
    }

    /// How many of the `wire` bytes that were made since this was asked last the layer has added by
    /// itself. They are [not counted](crate::Backlog::without_overhead) where they do not fit.
    pub fn overhead(&mut self, wire: usize) -> usize {
        wire.saturating_sub(core::mem::take(&mut self.given))
    }

    /// Framed bytes that wait for the handshake. They count as queued.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Forgets what waits for the handshake: the connection is over.
    pub fn discard(&mut self) {
        self.pending = Vec::new();
    }

    /// Says once, when the handshake is complete, whether the connection is open now, so that
    /// `connected` or `accepted` is to be called; what was waiting is in `wire` then. `None` while
    /// the handshake goes on, and after it. A handshake that failed closes the connection.
    pub fn poll_established<D: Framing>(
        &mut self,
        recv: &mut RecvHalf<D>,
        half: &mut SendHalf,
        now: Instant,
        wire: &mut Vec<u8>,
    ) -> Option<bool> {
        if !half.state().is_handshaking() {
            return None;
        }
        if !self.layer.is_established() {
            if let LayerState::Failed(_) = self.layer.state() {
                self.pending = Vec::new();
                half.handle_layer_failure(now);
            }
            return None;
        }
        let is_open = connection::handle_connected(recv, half, now);
        if !self.pending.is_empty() {
            let pending = core::mem::take(&mut self.pending);
            if !matches!(self.layer.state(), LayerState::Failed(_)) {
                self.output(&[&pending], wire);
            }
        }
        Some(is_open)
    }

    /// Everything in `stream` was delivered: if the layer has ended or failed behind it, that is due
    /// now.
    pub fn handle_delivered<D: Framing>(
        &mut self,
        recv: &RecvHalf<D>,
        half: &mut SendHalf,
        now: Instant,
    ) {
        match self.layer.state() {
            LayerState::Handshaking | LayerState::Open => {}
            LayerState::Ended => connection::handle_fin(recv, half, now),
            LayerState::Failed(_) => half.handle_layer_failure(now),
        }
    }

    /// The peer's transport has ended its direction. If the layer [has](Layer::has_end) an end, which
    /// cannot be forged on the way, and that has not come before, the stream is truncated.
    pub fn handle_fin<D: Framing>(&self, recv: &RecvHalf<D>, half: &mut SendHalf, now: Instant) {
        match self.layer.state() {
            LayerState::Ended => connection::handle_fin(recv, half, now),
            LayerState::Open if !self.layer.has_end() => connection::handle_fin(recv, half, now),
            _ => half.handle_fin(CloseReason::Truncated, now),
        }
    }

    /// This side's direction ends, behind everything that was sent. Does nothing the second time.
    pub fn handle_close(&mut self, wire: &mut Vec<u8>) {
        let goes_on = matches!(self.layer.state(), LayerState::Open | LayerState::Ended);
        if goes_on && !core::mem::replace(&mut self.is_closed, true) {
            self.layer.handle_close(wire);
        }
    }

    /// Bytes of memory held for input that is not whole. They count as held input.
    pub fn held(&self) -> usize {
        self.layer.held()
    }

    /// When [`Layered::handle_timeout`] has to be called.
    pub fn poll_timeout(&self, half: &SendHalf) -> Instant {
        if half.state().is_handshaking() {
            self.layer.poll_timeout()
        } else {
            Instant::NEVER
        }
    }

    /// Fails what takes too long by `now`.
    pub fn handle_timeout(&mut self, half: &mut SendHalf, now: Instant) {
        if half.state().is_handshaking() {
            self.layer.handle_timeout(now);
            if let LayerState::Failed(_) = self.layer.state() {
                self.pending = Vec::new();
                half.handle_layer_failure(now);
            }
        }
    }

    /// What the handshake has shown.
    pub fn identity(&self) -> Identity {
        let mut identity = Identity::default();
        self.layer.identify(&mut identity);
        identity
    }

    /// Why the layer failed, if it has.
    pub fn error(&self) -> Option<&LayerError> {
        match self.layer.state() {
            LayerState::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Debug for Layered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered")
            .field("state", &self.layer.state())
            .field("pending", &self.pending.len())
            .field("is_closed", &self.is_closed)
            .finish_non_exhaustive()
    }
}
