//! How other threads reach a worker: they register sockets for it, leave commands in its
//! mailbox and wake it.

use crate::common::Common;
use crate::connection::Connection;
use crate::datagram::DatagramSocket;
use crate::error::ConnectError;
use crate::shared::{Place, Shared, Wire};
use crate::sync::atomic::AtomicUsize;
use crate::sync::{Mutex, MutexGuard};
use crate::timers::MAX_INDEX;
use cubenet_core::{ConnectionId, Handler, Instant, Sender};
use mio::event::Source;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Poll, Registry, Token, Waker};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

/// The token of the worker's own waker.
pub(crate) const WAKER: Token = Token(usize::MAX);

/// Asks the application about a new peer.
pub(crate) type AcceptFn = dyn Fn(&Connection) -> Option<Box<dyn Handler + Send>> + Send + Sync;
/// Tells the application how its call went.
pub(crate) type ConnectFn =
    Box<dyn FnOnce(Result<&Connection, ConnectError>) -> Option<Box<dyn Handler + Send>> + Send>;

/// How other threads reach a worker.
pub(crate) struct WorkerHandle {
    pub(crate) common: Arc<Common>,
    registry: Registry,
    waker: Waker,
    /// `None` once the worker has ended.
    mailbox: Mutex<Option<Vec<Command>>>,
    entries: Mutex<EntryNumbers>,
    /// Connections it has or will have.
    pub(crate) load: AtomicUsize,
}

/// What other threads ask of a worker.
pub(crate) enum Command {
    /// Look at a connection or a datagram socket: something waits, or it closes.
    Attend(Place, ConnectionId),
    /// A stream that was accepted.
    Accept(TcpStream, SocketAddr, Arc<AcceptFn>),
    /// A stream on its way to its peer.
    Call(Arc<Shared>, ConnectFn),
    /// A datagram socket to listen on.
    Listen(Arc<DatagramSocket>, Arc<AcceptFn>),
    /// A datagram socket that was connected to a peer.
    Connect(Arc<DatagramSocket>, Arc<Shared>, ConnectFn),
    /// Close everything, abort at this moment what has not closed by then, and end.
    Stop(Instant),
}

/// The numbers under which a worker keeps what it polls. They are given out by whoever
/// brings a socket, so that it can be registered before it is shared.
#[derive(Default)]
struct EntryNumbers {
    free: Vec<u32>,
    next: u32,
}

impl WorkerHandle {
    pub(crate) fn new(common: Arc<Common>, poll: &Poll) -> io::Result<Arc<Self>> {
        Ok(Arc::new(WorkerHandle {
            common,
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            mailbox: Mutex::new(Some(Vec::new())),
            entries: Mutex::default(),
            load: AtomicUsize::new(0),
        }))
    }

    /// Leaves `command` for the worker and wakes it, unless that was done already. `None`
    /// if the worker has ended.
    pub(crate) fn post(&self, command: Command) -> Option<()> {
        let mut mailbox = self.mailbox();
        let commands = mailbox.as_mut()?;
        commands.push(command);
        let first = commands.len() == 1;
        drop(mailbox);
        if first && let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake a worker");
        }
        Some(())
    }

    /// Asks the worker to look at a connection or a datagram socket.
    pub(crate) fn attend(&self, place: Place, id: ConnectionId) {
        // A worker that has ended has closed everything.
        let _ = self.post(Command::Attend(place, id));
    }

    /// What other threads have left.
    pub(crate) fn mailbox(&self) -> MutexGuard<'_, Option<Vec<Command>>> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, EntryNumbers> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back the number of a socket that is closed.
    pub(crate) fn release_entry(&self, entry: u32) {
        self.entries().free.push(entry);
    }

    /// Registers a socket, for life, and returns the number it will have.
    fn register(&self, socket: &mut impl Source) -> io::Result<u32> {
        let entry = {
            let mut entries = self.entries();
            match entries.free.pop() {
                Some(entry) => entry,
                None if entries.next > MAX_INDEX => {
                    return Err(io::Error::other("a worker can have 16 million sockets"));
                }
                None => {
                    entries.next += 1;
                    entries.next - 1
                }
            }
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self
            .registry
            .register(socket, Token(entry as usize), interest);
        if registered.is_err() {
            self.entries().free.push(entry);
        }
        registered.map(|()| entry)
    }

    /// Makes a connection of a stream. The worker must be told of it.
    pub(crate) fn share_stream(
        self: &Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        sender: Sender,
    ) -> io::Result<Arc<Shared>> {
        let entry = self.register(&mut stream)?;
        let wire = Wire::Stream {
            stream,
            worker: Arc::clone(self),
        };
        Ok(Shared::new(wire, peer, entry, sender))
    }

    /// Makes a datagram socket ready for connections. The worker must be told of it.
    pub(crate) fn share_datagrams(
        self: &Arc<Self>,
        mut socket: UdpSocket,
        listens: bool,
    ) -> io::Result<Arc<DatagramSocket>> {
        let local = socket.local_addr()?;
        let entry = self.register(&mut socket)?;
        Ok(DatagramSocket::new(
            socket,
            local,
            Arc::clone(self),
            entry,
            listens,
        ))
    }
}
