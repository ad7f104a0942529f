//! The calls on sockets that can fail or fall short, one function each. A build with
//! `--cfg cubenet_faults` makes them fail and fall short as a seed says (`faults`); any other
//! contains nothing of that.

use super::{ReceiveBatch, Run, epoll, system};
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use socket2::{SockAddr, Socket};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};

/// What can be registered.
#[cfg(not(cubenet_faults))]
pub(crate) use mio::event::Source as Pollable;
#[cfg(cubenet_faults)]
pub(crate) trait Pollable: mio::event::Source + std::os::fd::AsRawFd {}
#[cfg(cubenet_faults)]
impl<S: mio::event::Source + std::os::fd::AsRawFd> Pollable for S {}

/// Fails with what the seed says, in a build with faults.
macro_rules! may_fail {
    ($call:ident, $socket:expr) => {
        #[cfg(cubenet_faults)]
        if let Some(error) = super::faults::fail(super::faults::Call::$call, $socket) {
            return Err(error);
        }
    };
}

/// At most as many bytes as the seed says, in a build with faults.
macro_rules! may_fall_short {
    ($len:expr) => {{
        #[cfg(cubenet_faults)]
        let len = super::faults::shorten($len);
        #[cfg(not(cubenet_faults))]
        let len = $len;
        len
    }};
}

/// Accepts a stream.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    may_fail!(Accept, listener);
    listener.accept()
}

/// Begins to connect.
pub(crate) fn connect(socket: &Socket, address: &SockAddr) -> io::Result<()> {
    may_fail!(Connect, socket);
    socket.connect(address)
}

/// Reads from a stream.
pub(crate) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    may_fail!(Read, stream);
    #[cfg(cubenet_faults)]
    let len = super::faults::shorten_read(buffer.len(), stream);
    #[cfg(not(cubenet_faults))]
    let len = buffer.len();
    stream.read(&mut buffer[..len])
}

/// Writes to a stream.
pub(crate) fn write(mut stream: &TcpStream, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    may_fail!(Write, stream);
    match pieces {
        [piece] | [piece, ..] if pieces[1..].iter().all(|piece| piece.is_empty()) => {
            let len = may_fall_short!(piece.len());
            stream.write(&piece[..len])
        }
        _ => stream.write_vectored(pieces),
    }
}

/// The error that is pending on a stream.
pub(crate) fn take_error(stream: &TcpStream) -> io::Result<Option<io::Error>> {
    may_fail!(TakeError, stream);
    stream.take_error()
}

/// The address of a stream's peer; an error if it is not connected.
pub(crate) fn peer_addr(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.peer_addr()
}

/// Ends this side's direction of a stream.
pub(crate) fn shutdown(stream: &TcpStream) -> io::Result<()> {
    may_fail!(Shutdown, stream);
    stream.shutdown(Shutdown::Write)
}

/// Sets whether a stream sends small segments at once.
pub(crate) fn set_nodelay(stream: &TcpStream, nodelay: bool) -> io::Result<()> {
    may_fail!(SetOption, stream);
    stream.set_nodelay(nodelay)
}

/// Registers a socket with a poll.
pub(crate) fn register(
    registry: &Registry,
    socket: &mut impl Pollable,
    token: Token,
    interest: Interest,
) -> io::Result<()> {
    may_fail!(Register, socket);
    registry.register(socket, token, interest)?;
    #[cfg(cubenet_faults)]
    super::faults::registered(socket.as_raw_fd(), registry, token, interest);
    Ok(())
}

/// Has a listener watched by a poll, beside others.
pub(crate) fn register_listener(
    registry: &Registry,
    socket: &mut TcpListener,
    token: Token,
) -> io::Result<()> {
    may_fail!(Register, socket);
    epoll::watch_listener(registry, socket, token)?;
    #[cfg(cubenet_faults)]
    super::faults::registered_listener(std::os::fd::AsRawFd::as_raw_fd(socket), registry, token);
    Ok(())
}

/// Has a listener that is watched by several polls watched by this one behind the others.
pub(crate) fn step_back(registry: &Registry, socket: &TcpListener, token: Token) -> io::Result<()> {
    epoll::watch_listener_again(registry, socket, token)
}

/// Has a registered datagram socket watched for room to send, beside what arrives, or no longer.
#[cfg(unix)]
pub(crate) fn watch_room(
    registry: &Registry,
    socket: &UdpSocket,
    token: Token,
    watched: bool,
) -> io::Result<()> {
    let mut interest = super::DATAGRAM_INTEREST;
    if watched {
        interest = interest.add(Interest::WRITABLE);
    }
    may_fail!(Register, socket);
    let raw = std::os::fd::AsRawFd::as_raw_fd(socket);
    registry.reregister(&mut mio::unix::SourceFd(&raw), token, interest)?;
    #[cfg(cubenet_faults)]
    super::faults::registered(raw, registry, token, interest);
    Ok(())
}

/// It always is.
#[cfg(not(unix))]
pub(crate) fn watch_room(_: &Registry, _: &UdpSocket, _: Token, _watched: bool) -> io::Result<()> {
    Ok(())
}

/// Binds a socket.
pub(crate) fn bind(socket: &Socket, address: &SockAddr) -> io::Result<()> {
    may_fail!(Bind, socket);
    socket.bind(address)
}

/// Lets a socket listen.
pub(crate) fn listen(socket: &Socket, backlog: i32) -> io::Result<()> {
    may_fail!(Listen, socket);
    socket.listen(backlog)
}

/// Receives datagrams; see [`ReceiveBatch::receive`].
pub(crate) fn receive(batch: &mut ReceiveBatch, socket: &UdpSocket) -> io::Result<bool> {
    may_fail!(Receive, socket);
    batch.receive(socket)
}

/// Sends datagrams from the front of `runs`; see `send_runs` of the system.
pub(crate) fn send_runs(
    socket: &UdpSocket,
    bytes: &[u8],
    runs: &[Run],
    connected: bool,
) -> io::Result<usize> {
    may_fail!(Send, socket);
    let count = may_fall_short!(runs.len());
    system::send_runs(socket, bytes, &runs[..count], connected)
}
