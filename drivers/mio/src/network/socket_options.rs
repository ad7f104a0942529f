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
    pub(crate) spread_datagrams: bool,
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
            spread_datagrams: true,
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
            wish_for_buffers(&socket, bytes);
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
        // Those that are accepted have it from here, on some systems.
        socket.set_tcp_nodelay(self.nodelay)?;
        socket.set_reuse_address(sys::REUSE_ADDRESS)?;
        sys::bind(&socket, &SockAddr::from(address))?;
        sys::listen(&socket, i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        Ok(TcpListener::from_std(socket.into()))
    }

    /// Sockets that receive datagrams on `address`: one, or up to `most` if the system shares peers
    /// out among them.
    pub(crate) fn listen_datagrams(
        &self,
        address: SocketAddr,
        most: usize,
    ) -> io::Result<Vec<UdpSocket>> {
        let first = self.socket(Transport::Udp, address)?;
        // By itself, so that it is an error if another program, or another listener, is there.
        sys::bind(&first, &SockAddr::from(address))?;
        let mut sockets = vec![first];
        if most > 1 && sys::SHARES_OUT && sys::share_address(&sockets[0]).is_ok() {
            let local = sockets[0].local_addr()?;
            let address = local.as_socket().unwrap_or(address);
            let another = || {
                let socket = self.socket(Transport::Udp, address)?;
                sys::share_address(&socket)?;
                sys::bind(&socket, &local)?;
                Ok::<_, io::Error>(socket)
            };
            // With fewer it works as well.
            sockets.extend((1..most).map_while(|_| another().ok()));
        }
        let sockets = sockets.into_iter().map(std::net::UdpSocket::from);
        Ok(sockets.map(UdpSocket::from_std).collect())
    }

    /// Prepares a socket that another program has made and that listens for streams.
    pub(crate) fn adopt_listener(&self, socket: &Socket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        self.prepare_stream(socket)?;
        socket.set_tcp_nodelay(self.nodelay)?;
        if let Some(bytes) = self.stream_buffer {
            wish_for_buffers(socket, bytes);
        }
        Ok(())
    }

    /// The same for one that receives datagrams.
    pub(crate) fn adopt_datagrams(&self, socket: &Socket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        if let Some(bytes) = self.datagram_buffer {
            wish_for_buffers(socket, bytes);
        }
        Ok(())
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
        if sys::INHERITS_NODELAY {
            return Ok(());
        }
        sys::set_nodelay(stream, self.nodelay)
    }
}

/// The system caps it without saying so, and may refuse it.
fn wish_for_buffers(socket: &Socket, bytes: usize) {
    let _ = socket.set_recv_buffer_size(bytes);
    let _ = socket.set_send_buffer_size(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(listener: &TcpListener) -> TcpStream {
        loop {
            match listener.accept() {
                Ok((stream, _)) => return stream,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn an_accepted_stream_has_the_nodelay_of_the_options() {
        for nodelay in [true, false] {
            let options = SocketOptions {
                nodelay,
                ..SocketOptions::default()
            };
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let listener = options.listen_stream(any).unwrap();
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let stream = accepted(&listener);
            options.adopt_stream(&stream).unwrap();
            assert_eq!(stream.nodelay().unwrap(), nodelay);
        }
    }

    #[test]
    fn sockets_that_share_an_address_share_it_with_no_others() {
        let options = SocketOptions::default();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sockets = options.listen_datagrams(any, 3).unwrap();
        let count = if sys::SHARES_OUT { 3 } else { 1 };
        assert_eq!(sockets.len(), count);
        let address = sockets[0].local_addr().unwrap();
        for socket in &sockets {
            assert_eq!(socket.local_addr().unwrap(), address);
        }
        let error = options.listen_datagrams(address, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
