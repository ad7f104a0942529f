//! The application's handle of a listener.

use crate::conn::home::Home;
use crate::network::listening::Listening;
use crate::tcp::listener::StreamListener;
use crate::udp::group::SocketGroup;
use crate::udp::socket::DatagramSocket;
use crate::worker::thread::is_network_thread;
use cubenet_core::{Metrics, Transport};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// An address that is listened on. Dropping it changes nothing: it listens until it is
/// closed or the network stops.
pub struct Listener {
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    pub(super) listening: Arc<Listening>,
    /// Of its connections.
    pub(super) homes: Box<[Arc<Home>]>,
    pub(super) socket: ListenerSocket,
}

pub(super) enum ListenerSocket {
    Stream(Arc<StreamListener>),
    Datagrams(Arc<SocketGroup<DatagramSocket>>),
}

impl Listener {
    /// The address, with the port that the system chose if it was to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// On which transport it listens.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// What it, and the connections that it has accepted, have done so far. The limits among them are those
    /// that all connections of the network share.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        for home in &self.homes {
            home.counts.add_to(&mut metrics);
        }
        let home = &self.homes[0];
        home.network().with_limits(metrics, &home.limits)
    }

    /// Accepts no more. Connections that are there stay. When it returns, no call of `accepted`
    /// or of the admission hook is running or will begin, and the address of a stream listener is free; that of a
    /// datagram listener is once its last connection has closed, since they share its socket.
    ///
    /// Waits for such calls that are running. Called from a callback it does not, since
    /// that could be one of them.
    pub fn close(self) {
        self.listening.close();
        match &self.socket {
            ListenerSocket::Stream(listener) => listener.close(),
            ListenerSocket::Datagrams(group) => group.each(DatagramSocket::close),
        }
        if !is_network_thread() {
            self.listening.wait();
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({} {})", self.transport, self.local)
    }
}
