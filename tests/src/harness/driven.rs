//! The networks of drivers that share their verbs, as the harness has them.

use crate::tls::Tls;
use cubenet_core::Transport;
use std::net::SocketAddr;

/// A driver's network, and how it listens and connects.
pub struct Driven<N> {
    pub(super) network: N,
    /// Where it listens if it is not told.
    pub(super) any_address: SocketAddr,
    /// What lies over its streams, if anything does.
    pub(super) tls: Option<Tls>,
}

impl<N> Driven<N> {
    /// One without TLS. `any_address` is where it listens if it is not told.
    pub fn new(network: N, any_address: SocketAddr) -> Self {
        Driven {
            network,
            any_address,
            tls: None,
        }
    }

    pub(super) fn tls_for(&self, transport: Transport) -> Option<&Tls> {
        self.tls.as_ref().filter(|_| transport == Transport::Tcp)
    }
}

/// The drivers offer the same verbs of networks and listeners on types of their own; this hands them
/// on.
macro_rules! driver {
    ($driver:ident) => {
        impl $crate::harness::Net for $crate::harness::Driven<$driver::Network> {
            fn listen(
                &self,
                transport: cubenet_core::Transport,
                address: Option<std::net::SocketAddr>,
                accept: $crate::harness::Accept,
            ) -> Result<Box<dyn $crate::harness::Listener>, String> {
                let address = address.unwrap_or(self.any_address);
                let mut options = $driver::ListenOptions::new();
                if let Some(tls) = self.tls_for(transport) {
                    options = options.layer(tls.server.clone());
                }
                let accepted =
                    move |connection: &$driver::Connection| accept(Arc::new(connection.clone()));
                let listener = (self.network).listen_with(options, transport, address, accepted);
                listener
                    .map(|listener| Box::new(listener) as _)
                    .map_err(|error| cubenet_core::Report::new(&error).to_string())
            }

            fn connect(
                &self,
                transport: cubenet_core::Transport,
                address: std::net::SocketAddr,
                connected: $crate::harness::Connected,
            ) -> Result<Arc<dyn $crate::harness::Connection>, String> {
                let connected = |outcome: Result<&$driver::Connection, $driver::ConnectError>| {
                    connected(match outcome {
                        Ok(connection) => Ok(Arc::new(connection.clone())),
                        Err(error) => Err(error.reason()),
                    })
                };
                let handler = $crate::late(connected);
                let mut options = $driver::ConnectOptions::new();
                if let Some(tls) = self.tls_for(transport) {
                    options = options.layer(tls.client.clone());
                }
                let connection = (self.network).connect_with(&options, transport, address, handler);
                connection
                    .map(|connection| Arc::new(connection) as _)
                    .map_err(|error| cubenet_core::Report::new(&error).to_string())
            }

            fn stop(&self, deadline: std::time::Duration) {
                self.network.stop(deadline);
            }

            fn open(&self) -> usize {
                self.network.metrics().open as usize
            }

            fn queued(&self) -> usize {
                self.network.metrics().queued_bytes as usize
            }
        }

        impl $crate::harness::Listener for $driver::Listener {
            fn local_addr(&self) -> std::net::SocketAddr {
                $driver::Listener::local_addr(self)
            }

            fn close(self: Box<Self>) {
                $driver::Listener::close(*self);
            }
        }
    };
}
pub(super) use driver;
