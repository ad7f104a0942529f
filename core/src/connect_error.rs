//! Why a connect failed.

use crate::connection::CloseReason;
use crate::connection_id::ConnectionId;
use crate::transport::Transport;
#[cfg(feature = "alloc")]
use alloc::boxed::Box;
use core::error::Error;
use core::fmt;
use core::net::SocketAddr;

/// A connect that failed, as [`Handler::connect_failed`](crate::Handler::connect_failed) gets it.
#[derive(Debug)]
pub struct ConnectError {
    id: ConnectionId,
    transport: Transport,
    peer_addr: SocketAddr,
    reason: CloseReason,
    #[cfg(feature = "alloc")]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ConnectError {
    /// The connect to `peer_addr` failed for this reason.
    pub const fn new(
        id: ConnectionId,
        transport: Transport,
        peer_addr: SocketAddr,
        reason: CloseReason,
    ) -> Self {
        ConnectError {
            id,
            transport,
            peer_addr,
            reason,
            #[cfg(feature = "alloc")]
            source: None,
        }
    }

    /// The same, with the error of the transport.
    #[cfg(feature = "alloc")]
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        ConnectError {
            source: Some(source.into()),
            ..self
        }
    }

    /// The number of the connection that was to be.
    pub const fn id(&self) -> ConnectionId {
        self.id
    }

    /// Its transport.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// The address of the peer.
    pub const fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// Why it failed: most often `Refused`, `Timeout(Connect)` or `Handshake`; `Local` if this side
    /// closed it, or `Timeout(Drain)` if it had, and what it had sent was not delivered in time.
    pub const fn reason(&self) -> CloseReason {
        self.reason
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConnectError {
            transport,
            peer_addr,
            reason,
            ..
        } = self;
        write!(f, "cannot connect to {transport} {peer_addr}: {reason}")
    }
}

impl Error for ConnectError {
    #[cfg(feature = "alloc")]
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn it_says_what_failed_and_hands_out_its_source() {
        let peer_addr = ([10, 0, 0, 1], 7).into();
        let id = ConnectionId::from_u64(3);
        let error = ConnectError::new(id, Transport::Tcp, peer_addr, CloseReason::Refused);
        assert_eq!(
            error.to_string(),
            "cannot connect to tcp 10.0.0.1:7: no socket listens at the peer's address"
        );
        assert!(error.source().is_none());
        let error = error.with_source("ECONNREFUSED");
        assert_eq!(error.source().unwrap().to_string(), "ECONNREFUSED");
        assert_eq!(error.id(), id);
        assert_eq!(error.transport(), Transport::Tcp);
        assert_eq!(error.peer_addr(), peer_addr);
        assert_eq!(error.reason(), CloseReason::Refused);
    }
}
