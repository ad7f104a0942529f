//! Making sockets: every option is set here, before the socket is bound or connected.

use crate::sys;
use cubenet_core::Transport;
use mio::net::{TcpListener, TcpStream, UdpSocket};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The options a builder can change.
#[derive(Clone, Debug)]
pub(crate) struct SocketOptions {
    pub(crate) backlog: u32,
    pub(crate) nodelay: bool,
    pub(crate) dual_stack: bool,
    pub(crate) stream_buffer: Option<usize>,
    pub(crate) stream_unsent: u32,
    pub(crate) datagram_buffer: Option<usize>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions {
            backlog: 4096,
            nodelay: true,
            dual_stack: true,
            stream_buffer: None,
            stream_unsent: 128 << 10,
            datagram_buffer: Some(4 << 20),
        }
    }
}

impl SocketOptions {
    fn socket(&self, transport: Transport, address: SocketAddr) -> io::Result<Socket> {
        let (kind, protocol, buffer) = if transport == Transport::Tcp {
            (Type::STREAM, Protocol::TCP, self.stream_buffer)
        } else {
            (Type::DGRAM, Protocol::UDP, self.datagram_buffer)
        };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!self.dual_stack)?;
        }
        if transport == Transport::Tcp {
            self.prepare_stream(&socket)?;
        }
        if let Some(bytes) = buffer {
            // A wish: the system caps it without saying so, and may refuse it.
            let _ = socket.set_recv_buffer_size(bytes);
            let _ = socket.set_send_buffer_size(bytes);
        }
        Ok(socket)
    }

    /// What accepted streams take over from their listener on most systems.
    fn prepare_stream(&self, socket: &Socket) -> io::Result<()> {
        // Urgent data is part of the stream (RFC 6093), and not to be cut out of it.
        socket.set_out_of_band_inline(true)?;
        // A wish, like the sizes of buffers.
        sys::limit_unsent(socket, self.stream_unsent);
        Ok(())
    }

    pub(crate) fn listen_stream(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket(Transport::Tcp, address)?;
        socket.set_reuse_address(sys::REUSE_ADDRESS)?;
        sys::bind(&socket, &SockAddr::from(address))?;
        sys::listen(&socket, i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        Ok(TcpListener::from_std(socket.into()))
    }

    pub(crate) fn listen_datagrams(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(Transport::Udp, address)?;
        sys::bind(&socket, &SockAddr::from(address))?;
        Ok(UdpSocket::from_std(socket.into()))
    }

    /// A stream on its way to `address`.
    pub(crate) fn connect_stream(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(Transport::Tcp, address)?;
        socket.set_tcp_nodelay(self.nodelay)?;
        match sys::connect(&socket, &SockAddr::from(address)) {
            Err(error) if !sys::under_way(&error) => Err(error),
            _ => Ok(TcpStream::from_std(socket.into())),
        }
    }

    /// A datagram socket that receives from `address` alone.
    pub(crate) fn connect_datagrams(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let any = if address.is_ipv4() {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
        } else {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        };
        let socket = self.socket(Transport::Udp, address)?;
        sys::bind(&socket, &SockAddr::from(any))?;
        socket.connect(&SockAddr::from(address))?;
        Ok(UdpSocket::from_std(socket.into()))
    }

    /// What an accepted stream does not take over from its listener on every system.
    pub(crate) fn adopt_stream(&self, stream: &TcpStream) -> io::Result<()> {
        sys::set_nodelay(stream, self.nodelay)
    }
}
