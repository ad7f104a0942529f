//! How other threads reach a worker: they register sockets for it, leave commands in its
//! mailbox and wake it.

use crate::common::Common;
use crate::datagram::DatagramSocket;
use crate::listening::{Home, Listening, StreamListener};
use crate::seat::Permit;
use crate::shared::{Half, Place, Shared, Wire};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::{self, Pollable};
use crate::timers::MAX_INDEX;
use cubenet_core::{ConnectionId, Handler, Instant, SendHalf};
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Poll, Registry, Token, Waker};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

/// The token of the worker's own waker.
pub(crate) const WAKER: Token = Token(usize::MAX);

/// The application's side of a connection.
pub(crate) type BoxedHandler = Box<dyn Handler + Send>;

/// How other threads reach a worker.
pub(crate) struct WorkerHandle {
    pub(crate) common: Arc<Common>,
    registry: Registry,
    waker: Waker,
    mailbox: Mutex<Mailbox>,
    entries: Mutex<EntryNumbers>,
    /// Connections it has or will have.
    pub(crate) load: AtomicUsize,
    /// Bytes of input that its connections hold.
    held: AtomicUsize,
    /// [`Command::Relieve`] is in the mailbox.
    relieving: AtomicBool,
}

struct Mailbox {
    /// `None` once the worker has ended.
    commands: Option<Vec<Command>>,
    /// The worker was woken and has not looked since.
    woken: bool,
}

/// What other threads ask of a worker.
pub(crate) enum Command {
    /// Look at a connection or a datagram socket: something waits, or it closes. Of each there
    /// is at most one such command in the mailbox; see [`Wake`](crate::wake::Wake).
    Attend(Place, ConnectionId),
    /// A stream that was accepted.
    Accept(Accepted),
    /// A stream on its way to its peer.
    Call(Arc<Shared>, Permit, BoxedHandler),
    /// A datagram socket to listen on.
    Listen(Arc<DatagramSocket>, Arc<Listening>),
    /// A datagram socket that was connected to a peer.
    Connect(Arc<DatagramSocket>, Arc<Shared>, Permit, BoxedHandler),
    /// All connections together hold more input than they may, and those of this worker more
    /// than its share.
    Relieve,
    /// Close everything, abort at this moment what has not closed by then, and end.
    Stop(Instant),
}

/// A stream that was accepted, on its way to its worker.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) home: Arc<Home>,
    pub(crate) listener: Arc<StreamListener>,
    pub(crate) permit: Permit,
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
            mailbox: Mutex::new(Mailbox {
                commands: Some(Vec::new()),
                woken: false,
            }),
            entries: Mutex::default(),
            load: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            relieving: AtomicBool::new(false),
        }))
    }

    /// Leaves `command` for the worker and wakes it, unless that was done already. Gives it
    /// back if the worker has ended.
    pub(crate) fn post(&self, command: Command) -> Result<(), Command> {
        let mut mailbox = self.mailbox();
        let Some(commands) = &mut mailbox.commands else {
            return Err(command);
        };
        commands.push(command);
        if !mailbox.woken {
            // Should it fail, the next command tries again.
            mailbox.woken = self.waker.wake().is_ok();
        }
        Ok(())
    }

    /// Asks the worker to look at a connection or a datagram socket.
    pub(crate) fn attend(&self, place: Place, id: ConnectionId) {
        // A worker that has ended has closed everything.
        let _ = self.post(Command::Attend(place, id));
    }

    /// A connection that held `before` bytes of its input holds `after`.
    pub(crate) fn change_held(&self, before: usize, after: usize) {
        // Only its own thread writes it.
        let held = self.held.load(Relaxed) + after - before;
        self.held.store(held, Relaxed);
        self.common.change_held(before, after);
    }

    /// Whether its connections hold more than the part of `max_held_total` that is a worker's,
    /// where there are so many workers. Where the sum is over the bound, at least one worker is
    /// over its share.
    pub(crate) fn is_over_share(&self, workers: usize) -> bool {
        self.held.load(Relaxed) > self.common.limits.max_held_total() / workers
    }

    /// Asks the worker to give up connections that hold input.
    pub(crate) fn relieve(&self) {
        if !self.relieving.swap(true, Relaxed) {
            let _ = self.post(Command::Relieve);
        }
    }

    /// The worker has taken that out of its mailbox.
    pub(crate) fn relieved(&self) {
        self.relieving.store(false, Relaxed);
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other threads have left.
    pub(crate) fn take_commands(&self) -> Vec<Command> {
        let mut mailbox = self.mailbox();
        mailbox.woken = false;
        mailbox
            .commands
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// The same for the last time: nothing can be left from here on.
    pub(crate) fn close_mailbox(&self) -> Vec<Command> {
        self.mailbox().commands.take().unwrap_or_default()
    }

    fn entries(&self) -> MutexGuard<'_, EntryNumbers> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back the number of a socket that is closed.
    pub(crate) fn release_entry(&self, entry: u32) {
        self.entries().free.push(entry);
    }

    /// Registers a socket, for life, and returns the number it will have.
    fn register(&self, socket: &mut impl Pollable, interest: Interest) -> io::Result<u32> {
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
        let token = Token(entry as usize);
        let registered = sys::register(&self.registry, socket, token, interest);
        if registered.is_err() {
            self.entries().free.push(entry);
        }
        registered.map(|()| entry)
    }
}

impl Home {
    /// Makes a connection of a stream. The worker must be told of it.
    pub(crate) fn share_stream(
        self: &Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        half: SendHalf,
    ) -> io::Result<Arc<Shared>> {
        let interest = crate::sys::STREAM_INTEREST;
        let entry = self.worker.register(&mut stream, interest)?;
        let wire = Wire::Stream {
            stream,
            home: Arc::clone(self),
        };
        Ok(Shared::new(wire, peer, entry, Half::Stream(half)))
    }

    /// Makes a datagram socket ready for connections. The worker must be told of it.
    pub(crate) fn share_datagrams(
        self: &Arc<Self>,
        mut socket: UdpSocket,
        listens: bool,
    ) -> io::Result<Arc<DatagramSocket>> {
        let local = socket.local_addr()?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let entry = self.worker.register(&mut socket, interest)?;
        let home = Arc::clone(self);
        Ok(DatagramSocket::new(socket, local, home, entry, listens))
    }
}
