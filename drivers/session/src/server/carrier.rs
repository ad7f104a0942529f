//! The connection that a session has, whatever driver's it is.

use cubenet_core::{ConnectionId, Handle, SendError};
use std::net::SocketAddr;

/// What a session does with its connection.
pub(super) trait Carrier: Send + Sync {
    fn id(&self) -> ConnectionId;
    /// The client's address: what a proxy says it is, if one does.
    fn client_addr(&self) -> SocketAddr;
    fn is_reliable(&self) -> bool;
    fn send(&self, packet: &[u8]) -> Result<(), SendError>;
    /// Sends packets, in order, until one is not accepted. Returns how many were, and why the next was
    /// not.
    fn send_all(&self, packets: &[&[u8]]) -> (usize, Result<(), SendError>);
    fn close(&self);
}

impl<C: Handle> Carrier for C {
    fn id(&self) -> ConnectionId {
        Handle::id(self)
    }

    fn client_addr(&self) -> SocketAddr {
        let identity = Handle::identity(self);
        let behind_a_proxy = identity.and_then(|identity| identity.client_addr());
        behind_a_proxy.unwrap_or_else(|| Handle::peer_addr(self))
    }

    fn is_reliable(&self) -> bool {
        Handle::transport(self).is_reliable()
    }

    fn send(&self, packet: &[u8]) -> Result<(), SendError> {
        Handle::send(self, packet)
    }

    fn send_all(&self, packets: &[&[u8]]) -> (usize, Result<(), SendError>) {
        C::batch(|| {
            for (sent, packet) in packets.iter().enumerate() {
                if let Err(error) = Handle::send(self, packet) {
                    return (sent, Err(error));
                }
            }
            (packets.len(), Ok(()))
        })
    }

    fn close(&self) {
        Handle::close(self);
    }
}
