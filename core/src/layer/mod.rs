//! Layers between a transport and the framing, such as TLS or the PROXY protocol.
//!
//! A layer turns the bytes of the wire into the bytes of the stream, and back. Its handshake comes
//! before the connection is open: until it is complete nothing is delivered, and what the
//! application sends waits. A driver carries any [`Layer`] by way of [`Layered`], which has the
//! rules; several layers are one [`Stack`]. A connection without layers has none of this.
//!
//! ```text
//!  socket ──► Layer::handle_input ──► RecvHalf ──► the handler
//!  socket ◄── Layer::handle_output ◄── SendHalf ◄── the application
//! ```

mod connect_options;
mod identity;
mod layered;
mod stack;

pub use connect_options::ConnectOptions;
pub use identity::Identity;
pub use layered::Layered;
pub use stack::{MakeStack, Stack};

use crate::time::Instant;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;
use core::net::SocketAddr;

/// What lies between the wire and the stream of one connection.
///
/// Every method that has something to send appends it to `wire`; the driver sends that in order. No
/// method fails: after an error the state is [`LayerState::Failed`], and what is in `wire` (such as
/// an alert) is still sent.
///
/// A driver calls it on any of its threads, and may hold a lock of the connection while it does: a
/// layer uses neither the connection nor anything that blocks.
pub trait Layer: Send {
    /// The transport is connected, at `now`. Called once, first.
    fn begin(&mut self, now: Instant, wire: &mut Vec<u8>);

    /// Bytes have arrived. They may be changed where they lie, for instance decrypted. What they
    /// contain of the stream is appended to `stream`. The layer keeps the part of a record that has
    /// arrived.
    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>);

    /// `stream`, in pieces that follow one another, is to be sent. Only called between the handshake
    /// and `handle_close`.
    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>);

    /// This side ends its direction, behind everything that was sent.
    fn handle_close(&mut self, wire: &mut Vec<u8>);

    /// Whether it has an end of its own, such as `close_notify` of TLS, without which the stream is
    /// truncated. Without one the FIN of the transport is the end.
    fn has_end(&self) -> bool {
        true
    }

    /// Whether its handshake was completed, whatever has come after it.
    fn is_established(&self) -> bool;

    /// How far it is.
    fn state(&self) -> LayerState<'_>;

    /// Bytes of memory that it holds for input which is not whole.
    fn held(&self) -> usize {
        0
    }

    /// When [`Layer::handle_timeout`] has to be called, before the handshake is complete.
    fn poll_timeout(&self) -> Instant {
        Instant::NEVER
    }

    /// It is `now`: what takes too long fails.
    fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// The handshake is complete: says what it has shown of the peer.
    fn identify(&self, identity: &mut Identity) {
        let _ = identity;
    }
}

/// Hands every method on.
impl<L: Layer + ?Sized> Layer for Box<L> {
    fn begin(&mut self, now: Instant, wire: &mut Vec<u8>) {
        (**self).begin(now, wire);
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) {
        (**self).handle_input(input, stream, wire);
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        (**self).handle_output(stream, wire);
    }

    fn handle_close(&mut self, wire: &mut Vec<u8>) {
        (**self).handle_close(wire);
    }

    fn has_end(&self) -> bool {
        (**self).has_end()
    }

    fn is_established(&self) -> bool {
        (**self).is_established()
    }

    fn state(&self) -> LayerState<'_> {
        (**self).state()
    }

    fn held(&self) -> usize {
        (**self).held()
    }

    fn poll_timeout(&self) -> Instant {
        (**self).poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant) {
        (**self).handle_timeout(now);
    }

    fn identify(&self, identity: &mut Identity) {
        (**self).identify(identity);
    }
}

/// How far a layer is. Exhaustive on purpose: a driver has to do something about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState<'a> {
    /// Its handshake is not complete.
    Handshaking,
    /// Bytes go both ways.
    Open,
    /// The peer has ended its direction in order: no byte of the stream follows.
    Ended,
    /// The peer has broken its protocol, or the two do not agree.
    Failed(&'a LayerError),
}

/// Why a layer failed, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerError(String);

impl LayerError {
    /// An error that says this.
    pub fn new(message: impl Into<String>) -> Self {
        LayerError(message.into())
    }
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for LayerError {}

/// The two ends of a connection for which a layer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ends {
    /// The address of the peer, as the transport knows it.
    pub peer_addr: SocketAddr,
    /// The address of this end.
    pub local_addr: SocketAddr,
}

impl Ends {
    /// These ends.
    pub const fn new(peer_addr: SocketAddr, local_addr: SocketAddr) -> Self {
        Ends {
            peer_addr,
            local_addr,
        }
    }
}

/// Makes the layer of each connection of a listener, or of a connect. Called on the driver's
/// threads, so it must not block.
pub trait MakeLayer: Send + Sync {
    /// The layer of one connection.
    fn make_layer(&self, ends: Ends) -> Box<dyn Layer>;

    /// A layer on the other: that of `self` next to the wire, and that of `inner` behind it, next to
    /// the stream. For instance the PROXY protocol, and then TLS.
    fn then<I: MakeLayer>(self, inner: I) -> MakeStack<Self, I>
    where
        Self: Sized,
    {
        MakeStack { outer: self, inner }
    }
}

impl<F: Fn(Ends) -> Box<dyn Layer> + Send + Sync> MakeLayer for F {
    fn make_layer(&self, ends: Ends) -> Box<dyn Layer> {
        self(ends)
    }
}

#[cfg(test)]
mod tests;
