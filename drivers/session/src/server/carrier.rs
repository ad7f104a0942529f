//! The connection that a session has, whatever driver's it is.

use cubenet_core::{ConnectionId, Handle, SendError};
use std::net::SocketAddr;

/// What a session does with its connection.
pub(super) trait Carrier: Send + Sync {
    fn id(&self) -> ConnectionId;
    fn peer_addr(&self) -> SocketAddr;
    fn send(&self, packet: &[u8]) -> Result<(), SendError>;
    /// Sends packets until one finds no room. Returns how many were sent, and whether there is room.
    fn send_all(&self, packets: &[&[u8]]) -> (usize, bool);
    fn close(&self);
}

impl<C: Handle> Carrier for C {
    fn id(&self) -> ConnectionId {
        Handle::id(self)
    }

    fn peer_addr(&self) -> SocketAddr {
        Handle::peer_addr(self)
    }

    fn send(&self, packet: &[u8]) -> Result<(), SendError> {
        Handle::send(self, packet)
    }

    fn send_all(&self, packets: &[&[u8]]) -> (usize, bool) {
        C::batch(|| {
            for (sent, packet) in packets.iter().enumerate() {
                if Handle::send(self, packet).is_err() {
                    return (sent, false);
                }
            }
            (packets.len(), true)
        })
    }

    fn close(&self) {
        Handle::close(self);
    }
}
