//! What the application holds of an address that is listened on.

use core::net::SocketAddr;
use cubenet_core::Transport;

/// An address that is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    pub(super) local: SocketAddr,
    pub(super) transport: Transport,
    pub(super) generation: u32,
}

impl Listener {
    /// The address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// On which transport.
    pub fn transport(&self) -> Transport {
        self.transport
    }
}
