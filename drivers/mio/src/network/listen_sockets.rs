//! Sockets that listen already: made by another program, or by the process that this one replaces.

use crate::network::socket_options::SocketOptions;
use cubenet_core::{FullPolicy, Transport};
use mio::net::{TcpListener, UdpSocket};
use socket2::{Socket, Type};
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// The sockets of a listener, to go on with: one that listens for streams, or those that receive the datagrams
/// of one address. For [`Network::listen_on`](crate::Network::listen_on).
///
/// It is made of what the standard library has, and so of what systemd has opened, or of what
/// [`Listener::sockets`](crate::Listener::sockets) gives.
///
/// ```
/// use cubenet_mio::ListenSockets;
/// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let sockets = ListenSockets::from(socket);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct ListenSockets {
    transport: Transport,
    sockets: Vec<Socket>,
}

impl ListenSockets {
    /// Several sockets that receive the datagrams of one address, which the system shares out among them
    /// (`SO_REUSEPORT`).
    pub fn datagrams(sockets: impl IntoIterator<Item = std::net::UdpSocket>) -> Self {
        ListenSockets {
            transport: Transport::Udp,
            sockets: sockets.into_iter().map(Socket::from).collect(),
        }
    }

    /// Of which transport they are.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Where they listen.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let local = self.first()?.local_addr()?;
        local.as_socket().ok_or_else(|| {
            let problem = "the socket is none of TCP or UDP over IP: a Unix socket, perhaps";
            io::Error::new(io::ErrorKind::InvalidInput, problem)
        })
    }

    fn first(&self) -> io::Result<&Socket> {
        self.sockets.first().ok_or_else(|| {
            let problem = "a listener needs a socket, and there is none";
            io::Error::new(io::ErrorKind::InvalidInput, problem)
        })
    }

    #[cfg(unix)]
    pub(crate) fn of_descriptors(
        transport: Transport,
        descriptors: impl IntoIterator<Item = std::os::fd::OwnedFd>,
    ) -> Self {
        ListenSockets {
            transport,
            sockets: descriptors.into_iter().map(Socket::from).collect(),
        }
    }

    #[cfg(all(unix, feature = "handover"))]
    pub(crate) fn descriptors(&self) -> impl ExactSizeIterator<Item = std::os::fd::BorrowedFd<'_>> {
        self.sockets.iter().map(std::os::fd::AsFd::as_fd)
    }

    /// That they are what they are said to be, and fit this policy.
    pub(super) fn check(&self, policy: FullPolicy) -> io::Result<()> {
        let local = self.local_addr()?;
        if self.sockets.len() > 1 && policy != FullPolicy::Refuse {
            let problem = "a listener whose full policy evicts can have one datagram socket alone: which peer \
                           is idle longest is known of each socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let expected = match self.transport {
            Transport::Tcp => Type::STREAM,
            _ => Type::DGRAM,
        };
        for socket in &self.sockets {
            if socket.r#type()? != expected {
                let problem = format!("the socket is none of {}", self.transport);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
            if expected == Type::STREAM && !listens(socket)? {
                let problem = "the socket does not listen: perhaps it is a connection";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
            if expected == Type::DGRAM && socket.peer_addr().is_ok() {
                let problem = "the socket is connected to one peer, and a listener has many";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
            if socket.local_addr()?.as_socket() != Some(local) {
                let problem = "the sockets of a listener must have one address";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
        }
        Ok(())
    }

    pub(super) fn into_stream(mut self, options: &SocketOptions) -> io::Result<TcpListener> {
        let socket = self.sockets.swap_remove(0);
        options.adopt_listener(&socket)?;
        Ok(TcpListener::from_std(socket.into()))
    }

    pub(super) fn into_datagrams(self, options: &SocketOptions) -> io::Result<Vec<UdpSocket>> {
        let adopt = |socket: Socket| {
            options.adopt_datagrams(&socket)?;
            Ok(UdpSocket::from_std(socket.into()))
        };
        self.sockets.into_iter().map(adopt).collect()
    }
}

/// Whether a socket accepts connections; true where the system does not say.
fn listens(socket: &Socket) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    return socket.is_listener();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        Ok(true)
    }
}

impl From<std::net::TcpListener> for ListenSockets {
    fn from(socket: std::net::TcpListener) -> Self {
        ListenSockets {
            transport: Transport::Tcp,
            sockets: vec![socket.into()],
        }
    }
}

impl From<std::net::UdpSocket> for ListenSockets {
    fn from(socket: std::net::UdpSocket) -> Self {
        ListenSockets::datagrams([socket])
    }
}

impl fmt::Debug for ListenSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenSockets")
            .field("transport", &self.transport)
            .field("local_addr", &self.local_addr().ok())
            .field("sockets", &self.sockets.len())
            .finish()
    }
}
