//! An address that is listened on.

use crate::kernel::Key;
use crate::shared::Shared;
use cubenet_core::Transport;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Weak;

/// An address that is listened on, until it is closed or the network stops.
pub struct Listener {
    pub(super) shared: Weak<Shared>,
    pub(super) socket: Key,
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
}

impl Listener {
    /// The address, with the port that the host chose if it was to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// On which transport it listens.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Accepts no more. Connections that are there stay. The address of a stream listener is
    /// free at once; that of a datagram listener is once its last connection has closed,
    /// since they share its socket.
    pub fn close(self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut world = shared.lock();
        world.close_listener(self.socket);
        let dropped = world.take_dropped();
        drop(world);
        drop(dropped);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({} {})", self.transport, self.local)
    }
}
