//! Two layers, one on the other.

use super::{Ends, Identity, Layer, LayerState, MakeLayer};
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Two layers as one: `outer` is next to the wire, `inner` next to the stream. The handshake of
/// `inner` begins when that of `outer` is complete; for instance TLS behind the PROXY protocol.
#[derive(Debug)]
pub struct Stack<O, I> {
    outer: O,
    inner: I,
    /// Since when; the inner layer has begun once this is taken.
    begins: Option<Instant>,
    /// What passes from one to the other. Empty between two calls.
    between: Vec<u8>,
}

impl<O: Layer, I: Layer> Stack<O, I> {
    /// This layer next to the wire, and that one next to the stream.
    pub const fn new(outer: O, inner: I) -> Self {
        Stack {
            outer,
            inner,
            begins: None,
            between: Vec::new(),
        }
    }

    /// Begins the inner layer once the outer one is through.
    fn begin_inner(&mut self, wire: &mut Vec<u8>) {
        if !matches!(self.outer.state(), LayerState::Open | LayerState::Ended) {
            return;
        }
        if let Some(now) = self.begins.take() {
            let mut sent = Vec::new();
            self.inner.begin(now, &mut sent);
            self.send(&sent, wire);
        }
    }

    /// Sends what the inner layer has put on its wire.
    fn send(&mut self, sent: &[u8], wire: &mut Vec<u8>) {
        if !sent.is_empty() {
            self.outer.handle_output(&[sent], wire);
        }
    }
}

/// Makes a [`Stack`] of what two others make; see [`MakeLayer::then`].
#[derive(Clone, Copy, Debug)]
pub struct MakeStack<O, I> {
    pub(super) outer: O,
    pub(super) inner: I,
}

impl<O: MakeLayer, I: MakeLayer> MakeLayer for MakeStack<O, I> {
    fn make_layer(&self, ends: Ends) -> Box<dyn Layer> {
        let outer = self.outer.make_layer(ends);
        Box::new(Stack::new(outer, self.inner.make_layer(ends)))
    }
}

impl<O: Layer, I: Layer> Layer for Stack<O, I> {
    fn begin(&mut self, now: Instant, wire: &mut Vec<u8>) {
        self.begins = Some(now);
        self.outer.begin(now, wire);
        self.begin_inner(wire);
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) {
        let mut between = core::mem::take(&mut self.between);
        self.outer.handle_input(input, &mut between, wire);
        self.begin_inner(wire);
        if self.begins.is_none() && !between.is_empty() {
            let mut sent = Vec::new();
            self.inner.handle_input(&mut between, stream, &mut sent);
            self.send(&sent, wire);
        }
        between.clear();
        // An idle connection keeps no memory for this.
        if between.capacity() <= 64 {
            self.between = between;
        }
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        let mut sent = Vec::new();
        self.inner.handle_output(stream, &mut sent);
        self.send(&sent, wire);
    }

    fn handle_close(&mut self, wire: &mut Vec<u8>) {
        let mut sent = Vec::new();
        self.inner.handle_close(&mut sent);
        self.send(&sent, wire);
        self.outer.handle_close(wire);
    }

    fn has_end(&self) -> bool {
        self.outer.has_end() || self.inner.has_end()
    }

    fn is_established(&self) -> bool {
        self.outer.is_established() && self.inner.is_established()
    }

    fn state(&self) -> LayerState<'_> {
        match (self.outer.state(), self.inner.state()) {
            (failed @ LayerState::Failed(_), _) => failed,
            (LayerState::Handshaking, _) => LayerState::Handshaking,
            // Behind an outer end nothing follows; whether the inner one has ended in order, it says,
            // if it can.
            (LayerState::Ended, LayerState::Open) if !self.inner.has_end() => LayerState::Ended,
            (_, inner) => inner,
        }
    }

    fn held(&self) -> usize {
        self.outer.held() + self.inner.held()
    }

    fn poll_timeout(&self) -> Instant {
        match self.outer.state() {
            LayerState::Handshaking => self.outer.poll_timeout(),
            _ => self.inner.poll_timeout(),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self.outer.state() {
            LayerState::Handshaking => self.outer.handle_timeout(now),
            _ => self.inner.handle_timeout(now),
        }
    }

    fn identify(&self, identity: &mut Identity) {
        self.outer.identify(identity);
        self.inner.identify(identity);
    }
}
