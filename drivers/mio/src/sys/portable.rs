//! Datagrams one at a time, where the system has no call for many.

use super::{Datagram, Run};
use crate::address::CompactAddr;
use cubenet_core::TcpInfo;
use mio::event::Event;
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A buffer for a datagram, and what was received into it.
pub(crate) struct ReceiveBatch {
    buffer: Box<[u8]>,
    received: Option<(CompactAddr, usize)>,
}

impl ReceiveBatch {
    pub(crate) fn new() -> Self {
        ReceiveBatch {
            buffer: vec![0; 65_536].into_boxed_slice(),
            received: None,
        }
    }

    /// Receives one datagram. There may always be more: ask until `WouldBlock`.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        self.received = None;
        let (len, from) = socket.recv_from(&mut self.buffer)?;
        self.received = Some((from.into(), len));
        Ok(true)
    }

    /// Who has sent what was received.
    pub(crate) fn senders(&self) -> impl Iterator<Item = &CompactAddr> + Clone {
        self.received.iter().map(|(from, _)| from)
    }

    /// The datagrams received, in order.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        let received = self.received.iter();
        received.map(|(from, len)| Datagram {
            from: *from,
            sender: 0,
            local: None,
            bytes: &self.buffer[..*len],
        })
    }
}

/// Elsewhere a wait has a timeout.
pub(crate) enum Alarm {}

impl Alarm {
    pub(crate) fn new(_registry: &Registry, _token: Token, _origin: u64) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn went_off(&mut self) {
        match *self {}
    }

    pub(crate) fn cover(
        &mut self,
        _timeout: Option<Duration>,
        _now: cubenet_core::Instant,
    ) -> Option<Duration> {
        match *self {}
    }
}

/// Has a listener watched.
pub(crate) fn watch_listener(
    registry: &Registry,
    socket: &mut TcpListener,
    token: Token,
) -> io::Result<()> {
    registry.register(socket, token, Interest::READABLE)
}

/// Nothing: one thread watches it.
pub(crate) fn watch_listener_again(
    _registry: &Registry,
    _socket: &TcpListener,
    _token: Token,
) -> io::Result<()> {
    Ok(())
}

/// The time by a clock that only goes forward, in microseconds.
/// The system is not asked.
pub(crate) fn has_waiting(_socket: &TcpListener) -> bool {
    true
}

pub(crate) fn clock_micros() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// Sends the first of `runs`, which are all of one datagram here. Returns 1.
pub(crate) fn send_runs(
    socket: &UdpSocket,
    bytes: &[u8],
    runs: &[Run],
    connected: bool,
) -> io::Result<usize> {
    let Some(run) = runs.first() else {
        return Ok(0);
    };
    let datagram = &bytes[run.start..run.start + run.len];
    if connected {
        socket.send(datagram)?;
    } else {
        socket.send_to(datagram, run.route.to.into())?;
    }
    Ok(1)
}

/// The standard library has no way to ask; the system chooses the source of answers.
pub(crate) fn tell_destination(_socket: &UdpSocket, _local: SocketAddr) {}

/// There is no segmentation offload.
pub(crate) fn offload(_socket: &UdpSocket) -> bool {
    false
}

/// Nothing is segmented, so nothing is refused for it.
pub(crate) fn cannot_segment(_error: &io::Error) -> bool {
    false
}

/// Nothing is segmented, so nothing is refused for it.
pub(crate) fn too_large(_error: &io::Error) -> bool {
    false
}

/// What a stream is watched for.
pub(crate) const STREAM_INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// The system tells of no urgent data.
pub(crate) fn is_urgent(_event: &Event) -> bool {
    false
}

/// The system is not asked.
pub(crate) fn tcp_info(_stream: &TcpStream) -> Option<TcpInfo> {
    None
}

/// The system is not asked.
pub(crate) fn unacknowledged(_stream: &TcpStream) -> Option<usize> {
    None
}
