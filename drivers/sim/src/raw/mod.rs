//! Peers of plain bytes: sockets on a virtual host with no protocol behind them, to send what
//! no driver would and to see what one puts on the wire.

pub(crate) mod socket;

use crate::error::{Error, Refusal};
use crate::kernel::{HostId, Kernel, Key, Notice};
use crate::owner::Owner;
use crate::shared::Shared;
use crate::world::{ACCEPT_RETRY, World};
use cubenet_core::Transport;
use socket::Raw;
pub use socket::RawEnd;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

impl World {
    /// A raw socket may go on.
    pub(crate) fn handle_raw_notice(&mut self, socket: Key, notice: Notice) {
        if notice == Notice::Acceptable {
            return self.accept_raw(socket);
        }
        let Some(raw) = self.owners.raw(socket) else {
            return;
        };
        match notice {
            Notice::Connected => raw.connected(socket, &mut self.kernel),
            Notice::Failed => raw.failed(socket, &mut self.kernel),
            _ => raw.advance(socket, &mut self.kernel),
        }
    }

    /// Takes every connection from a raw listener.
    fn accept_raw(&mut self, listener: Key) {
        loop {
            let socket = match self.kernel.accept(listener) {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(_) => {
                    let at = self.kernel.now.after(ACCEPT_RETRY);
                    return self.kernel.notify_at(at, listener, Notice::Acceptable);
                }
            };
            let mut raw = Raw::stream(true);
            raw.advance(socket, &mut self.kernel);
            self.owners.insert(socket, Owner::Raw(Box::new(raw)));
            if let Some(listening) = self.owners.raw(listener) {
                listening.accepted.push(socket);
            }
        }
    }
}

/// A raw socket.
#[derive(Clone)]
struct Socket {
    shared: Weak<Shared>,
    key: Key,
}

impl Socket {
    fn new(shared: &Arc<Shared>, key: Key) -> Self {
        Socket {
            shared: Arc::downgrade(shared),
            key,
        }
    }

    /// Does something with it; `None` once it is closed.
    fn with<R>(&self, change: impl FnOnce(&mut Raw, Key, &mut Kernel) -> R) -> Option<R> {
        let shared = self.shared.upgrade()?;
        let mut world = shared.lock();
        let World { owners, kernel, .. } = &mut *world;
        Some(change(owners.raw(self.key)?, self.key, kernel))
    }

    fn close(&self, reset: bool) {
        if let Some(shared) = self.shared.upgrade() {
            let mut world = shared.lock();
            world.owners.remove(self.key);
            world.kernel.close(self.key, reset);
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({:?})", self.key)
    }
}

/// A stream of plain bytes. Made by [`Simulation::raw_connect`](crate::Simulation::raw_connect)
/// or by a [`RawListener`]. It reads whatever arrives, unless it is to stop.
#[derive(Clone, Debug)]
pub struct RawStream(Socket);

impl RawStream {
    /// Writes bytes as they are; what the socket does not take yet follows by itself.
    pub fn write(&self, bytes: &[u8]) {
        self.0.with(|raw, key, kernel| {
            raw.unwritten.extend_from_slice(bytes);
            raw.advance(key, kernel);
        });
    }

    /// Ends this direction, behind what was written.
    pub fn shutdown(&self) {
        self.0.with(|raw, key, kernel| {
            raw.fin_asked = true;
            raw.advance(key, kernel);
        });
    }

    /// Closes the socket. What is unread then resets the connection, as with a real one.
    pub fn close(&self) {
        self.0.close(false);
    }

    /// Resets the connection.
    pub fn reset(&self) {
        self.0.close(true);
    }

    /// Reads no more: the other side is held up once the buffers are full.
    pub fn stop_reading(&self) {
        self.0.with(|raw, _, _| raw.stopped = true);
    }

    /// Reads again.
    pub fn read_on(&self) {
        self.0.with(|raw, key, kernel| {
            raw.stopped = false;
            raw.advance(key, kernel);
        });
    }

    /// Whether the peer has answered the SYN.
    pub fn is_connected(&self) -> bool {
        self.0.with(|raw, _, _| raw.connected).unwrap_or(false)
    }

    /// Takes what has been read.
    pub fn received(&self) -> Vec<u8> {
        let received = self.0.with(|raw, _, _| std::mem::take(&mut raw.received));
        received.unwrap_or_default()
    }

    /// How the other side ended; `None` while it has not.
    pub fn end(&self) -> Option<RawEnd> {
        self.0.with(|raw, _, _| raw.end).flatten()
    }
}

/// A listener for streams of plain bytes.
#[derive(Clone, Debug)]
pub struct RawListener {
    socket: Socket,
    local: SocketAddr,
}

impl RawListener {
    /// Its address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Takes the streams that were accepted since this was last asked.
    pub fn accepted(&self) -> Vec<RawStream> {
        let keys = self
            .socket
            .with(|raw, _, _| std::mem::take(&mut raw.accepted));
        let shared = self.socket.shared.clone();
        let stream = |key| {
            RawStream(Socket {
                shared: shared.clone(),
                key,
            })
        };
        keys.unwrap_or_default().into_iter().map(stream).collect()
    }
}

/// A datagram socket with nothing behind it.
#[derive(Clone, Debug)]
pub struct RawDatagrams {
    socket: Socket,
    local: SocketAddr,
}

impl RawDatagrams {
    /// Its address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends a datagram, of any length or of none.
    pub fn send_to(&self, to: SocketAddr, datagram: &[u8]) {
        let local = self.local.ip();
        self.socket.with(|_, key, kernel| {
            kernel.send_to(key, local, to, datagram);
        });
    }

    /// Takes what has arrived, with the address of each sender.
    pub fn received(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        let received = self
            .socket
            .with(|raw, _, _| std::mem::take(&mut raw.datagrams));
        received.unwrap_or_default()
    }

    /// Closes the socket.
    pub fn close(&self) {
        self.socket.close(false);
    }
}

pub(crate) fn connect(
    shared: &Arc<Shared>,
    host: HostId,
    to: SocketAddr,
) -> Result<RawStream, Error> {
    let mut world = shared.lock();
    let refused = |refusal| Error::Connect {
        transport: Transport::Tcp,
        address: to,
        refusal,
    };
    let (key, _) = world.kernel.connect(host, to).map_err(refused)?;
    let raw = Raw::stream(false);
    world.owners.insert(key, Owner::Raw(Box::new(raw)));
    Ok(RawStream(Socket::new(shared, key)))
}

pub(crate) fn listen(
    shared: &Arc<Shared>,
    host: HostId,
    at: SocketAddr,
) -> Result<RawListener, Refusal> {
    let mut world = shared.lock();
    let (key, local) = world.kernel.listen(host, at, usize::MAX)?;
    world.owners.insert(key, Owner::Raw(Box::default()));
    let socket = Socket::new(shared, key);
    Ok(RawListener { socket, local })
}

pub(crate) fn bind(
    shared: &Arc<Shared>,
    host: HostId,
    at: SocketAddr,
) -> Result<RawDatagrams, Refusal> {
    let mut world = shared.lock();
    let (key, local) = world.kernel.bind_datagrams(host, at, None)?;
    world.owners.insert(key, Owner::Raw(Box::default()));
    let socket = Socket::new(shared, key);
    Ok(RawDatagrams { socket, local })
}
