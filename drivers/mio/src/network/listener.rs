//! The application's handle of a listener.

use crate::conn::home::Home;
use crate::metrics::with_limits;
#[cfg(unix)]
use crate::network::listen_sockets::ListenSockets;
use crate::network::listening::Listening;
use crate::tcp::listener::StreamListener;
use crate::udp::group::SocketGroup;
use crate::udp::socket::DatagramSocket;
use crate::worker::thread::is_network_thread;
use cubenet_core::{Metrics, Transport};
use std::fmt;
#[cfg(unix)]
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// An address that is listened on. Dropping it changes nothing: it listens until it is
/// closed or the network stops. Clones are the same listener.
#[derive(Clone)]
pub struct Listener {
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    pub(super) listening: Arc<Listening>,
    /// Of its connections.
    pub(super) homes: Arc<[Arc<Home>]>,
    pub(super) socket: ListenerSocket,
}

#[derive(Clone)]
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
        for home in &*self.homes {
            home.counts.add_to(&mut metrics);
        }
        with_limits(metrics, &self.homes[0].limits)
    }

    /// Other handles of its sockets, for a process that is to replace this one: see the module `handover`
    /// (feature of that name). Both may listen at once; each connection, and each datagram, gets to one of them.
    ///
    /// # Errors
    ///
    /// It is closed, or there is no descriptor left.
    #[cfg(unix)]
    pub fn sockets(&self) -> io::Result<ListenSockets> {
        use std::os::fd::AsFd;
        let closed = || io::Error::new(io::ErrorKind::NotConnected, "the listener is closed");
        let mut descriptors = Vec::new();
        match &self.socket {
            ListenerSocket::Stream(listener) => {
                let socket = listener.socket();
                let socket = socket.as_ref().ok_or_else(closed)?;
                descriptors.push(socket.as_fd().try_clone_to_owned());
            }
            ListenerSocket::Datagrams(group) => {
                for socket in group.sockets() {
                    descriptors.push(socket.socket.as_fd().try_clone_to_owned());
                }
            }
        }
        if descriptors.is_empty() {
            return Err(closed());
        }
        let descriptors: io::Result<Vec<_>> = descriptors.into_iter().collect();
        Ok(ListenSockets::of_descriptors(self.transport, descriptors?))
    }

    /// Leaves its sockets to another process that has them, too. Connections over streams stay, and those that
    /// are on their way to `accepted` still get there. Connections over datagrams end without a word to their
    /// peers, which the other process sees as new; what waits in the sockets is left to it. When this returns,
    /// nothing more is taken from the sockets, and every stream that was counts among those that are
    /// [open](Metrics::open).
    ///
    /// Waits for callbacks of the listener's datagram connections, and until what waits in the backlog is
    /// accepted; so hold no lock that they take. Called from a callback it does not wait.
    #[cfg(unix)]
    pub fn leave(self) {
        match &self.socket {
            ListenerSocket::Stream(listener) => {
                listener.leave();
                if !is_network_thread() {
                    listener.wait_until_left();
                }
            }
            ListenerSocket::Datagrams(group) => {
                let sockets = group.sockets();
                for socket in &sockets {
                    socket.leave();
                }
                if !is_network_thread() {
                    for socket in &sockets {
                        socket.wait_until_left();
                    }
                }
            }
        }
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
