//! The application's handle of a connection.

use crate::batch;
use crate::conn::home::Home;
use crate::conn::info::Conn;
use crate::tcp::shared::StreamShared;
use crate::udp::socket::PeerShared;
use crate::worker::task::UserTask;
use crate::write_batch::WriteBatch;
use crate::{sys, tcp, udp};
use cubenet_core::queue::SHARE_FROM;
use cubenet_core::{
    CloseReason, ConnectionId, Frame, Identity, Instant, Link, SendError, TcpInfo, Transport,
};
use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};

/// A handle of a connection, to keep, clone and send to other threads. No call blocks.
///
/// It may outlive its connection. Then it is an inert value: [`is_closed`] is true, sends
/// fail with [`SendError::Closed`], and it holds no descriptor and no buffer.
///
/// Messages that one thread sends arrive in the order it sent them. Those of several
/// threads arrive whole, in some order.
///
/// [`is_closed`]: Connection::is_closed
#[derive(Clone)]
pub struct Connection {
    shared: Shared,
    id: ConnectionId,
    peer: SocketAddr,
    local: SocketAddr,
}

/// What the handle and the connection's worker share, as long as the worker keeps it.
#[derive(Clone)]
enum Shared {
    Stream(Weak<StreamShared>),
    Datagrams(Weak<PeerShared>),
}

/// Does `$with` with the shared part of a connection that still exists.
macro_rules! shared {
    ($connection:expr, $shared:ident => $with:expr) => {
        match &$connection.shared {
            Shared::Stream(shared) => shared.upgrade().map(|$shared| $with),
            Shared::Datagrams(shared) => shared.upgrade().map(|$shared| $with),
        }
    };
}

impl Connection {
    pub(crate) fn stream(shared: &Arc<StreamShared>) -> Self {
        Connection {
            shared: Shared::Stream(Arc::downgrade(shared)),
            id: shared.info().id,
            peer: shared.info().peer_addr(),
            local: shared.local_addr(),
        }
    }

    pub(crate) fn datagrams(shared: &Arc<PeerShared>) -> Self {
        Connection {
            shared: Shared::Datagrams(Arc::downgrade(shared)),
            id: shared.info().id,
            peer: shared.info().peer_addr(),
            local: shared.local_addr(),
        }
    }

    /// Sends `message`, all of it or nothing. What the system does not take at once is
    /// queued, up to [`max_queued`](crate::Limits::max_queued) bytes.
    ///
    /// On a connection that is still connecting, messages are queued until it opens.
    /// From inside the connection's own callbacks this is the same as sending on the link.
    pub fn send(&self, message: impl AsRef<[u8]>) -> Result<(), SendError> {
        // The application's own code, which may use this connection.
        let message = message.as_ref();
        match &self.shared {
            Shared::Stream(shared) => match WriteBatch::gathering_for(self.id.as_u64()) {
                None if batch::is_gathering() => batch::send(shared, message),
                of_callback => {
                    let shared = shared.upgrade().ok_or(SendError::Closed)?;
                    match of_callback {
                        Some(batch) => batch.borrow_mut().send(&shared, message),
                        None => shared.send(message),
                    }
                }
            },
            Shared::Datagrams(shared) => {
                let shared = shared.upgrade().ok_or(SendError::Closed)?;
                match gathering_datagrams(&shared) {
                    Some(batch) => batch.borrow_mut().send_datagram(&shared, message),
                    None if batch::is_gathering() => batch::send_datagram(shared, message),
                    None => shared.send(message),
                }
            }
        }
    }

    /// Gathers what `work` sends on this thread: messages of one connection leave together, in one
    /// write, and datagrams of one listener in few calls. For a tick that sends several messages
    /// to each of many players, or for a thread that answers many requests at once.
    ///
    /// Everything leaves before this returns, and also if `work` panics; some of it may leave
    /// earlier, when there is much. Each connection's messages keep their order, among
    /// themselves and, over TCP, to what other threads send on it afterwards. Limits hold as always, and
    /// what is gathered counts in [`queued`](Connection::queued).
    ///
    /// `work` may do anything: no lock is held while it runs. It should not wait for long, since
    /// what it has sent waits with it. A batch inside another is part of that. In a
    /// callback, what is sent on the callback's own connection is gathered in any case; a batch
    /// there gathers what is sent on others.
    ///
    /// ```
    /// use cubenet_mio::{Connection, Frame};
    /// fn tick(players: &[Connection], events: &[Frame]) {
    ///     Connection::batch(|| {
    ///         for event in events {
    ///             for player in players {
    ///                 // One that is full or has gone misses it.
    ///                 let _ = player.send_frame(event);
    ///             }
    ///         }
    ///     });
    /// }
    /// ```
    pub fn batch<R>(work: impl FnOnce() -> R) -> R {
        batch::batch(work)
    }

    /// Has `task` run on the thread that runs this connection's callbacks, between two of them.
    /// Returns at once. For work that must not run beside a callback, or that waits for nothing
    /// and is too small for a thread of its own.
    ///
    /// Tasks of one thread run in the order in which it asked for them. What tasks that run one after
    /// another send is gathered, as by [`batch`](Connection::batch). If one panics, its connection
    /// closes with [`CloseReason::Panicked`]. If the connection ends first, the task is dropped
    /// without being run.
    ///
    /// # Errors
    ///
    /// [`SendError::Closed`] if the connection has ended. [`SendError::Full`] if as many tasks wait
    /// as [`Builder::max_tasks`](crate::Builder::max_tasks) allows, or if the connection is that of a
    /// connect whose closure has not returned: no `writable` follows.
    pub fn run_on_worker(
        &self,
        task: impl FnOnce(&mut dyn Link) + Send + 'static,
    ) -> Result<(), SendError> {
        let connection = self.clone();
        let run = Box::new(move |now| {
            let connection = &connection;
            task(&mut TaskLink { connection, now });
        });
        let post = |home: &Home, key| {
            let task = UserTask::new(home.shared_network(), run)?;
            let posted = home.worker.post_task(key, self.id, task);
            posted.map_err(|_ended| SendError::Closed)
        };
        let posted = shared!(self, shared => {
            if !shared.info().is_handed_over() {
                return Err(SendError::Full);
            }
            post(shared.home(), shared.key())
        });
        posted.unwrap_or(Err(SendError::Closed))
    }

    /// Its worker has it.
    pub(crate) fn set_handed_over(&self) {
        shared!(self, shared => shared.info().set_handed_over(true));
    }

    /// Sends a message that was framed once, to go to many. If it has to wait, its bytes
    /// are shared, not copied.
    pub fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        let Shared::Stream(shared) = &self.shared else {
            return self.send(frame.payload());
        };
        let of_callback = WriteBatch::gathering_for(self.id.as_u64());
        let is_short = frame.as_bytes().len() < SHARE_FROM;
        if of_callback.is_none() && is_short && batch::is_gathering() {
            return batch::send(shared, frame.payload());
        }
        let shared = shared.upgrade().ok_or(SendError::Closed)?;
        match of_callback {
            Some(batch) => batch.borrow_mut().send_frame(&shared, frame),
            None => shared.send_frame(frame),
        }
    }

    /// Delivers what was sent, then closes. Nothing more is received. Does nothing if the
    /// connection is closed or closing.
    pub fn close(&self) {
        if self.is_closed() {
            return;
        }
        match &self.shared {
            Shared::Stream(shared) => {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                match gathering_stream(&shared) {
                    Some(batch) => batch.borrow_mut().close(&shared),
                    None => shared.close(),
                }
                shared.wake();
            }
            Shared::Datagrams(shared) => {
                if let Some(shared) = shared.upgrade() {
                    shared.close();
                    shared.wake();
                }
            }
        }
    }

    /// Closes at once. What is queued is lost, and a stream's peer sees a reset.
    pub fn abort(&self) {
        match &self.shared {
            Shared::Stream(shared) => {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                match gathering_stream(&shared) {
                    Some(batch) => tcp::link::abort(&batch, &shared),
                    None => shared.abort(CloseReason::Local),
                }
                shared.wake();
            }
            Shared::Datagrams(shared) => {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                batch::discard_datagrams(&shared);
                match gathering_datagrams(&shared) {
                    Some(batch) => udp::link::abort(&batch, &shared),
                    None => shared.abort(CloseReason::Local),
                }
                shared.wake();
            }
        }
    }

    /// Whether it was closed from this side or has ended.
    pub fn is_closed(&self) -> bool {
        let is_open = shared!(self, shared => shared.info().is_open());
        is_open != Some(true)
    }

    /// Stops delivering messages. TCP holds up a stream's peer, and its idle timeout does not run.
    /// Datagrams that arrive meanwhile are dropped; a datagram peer that is idle times out all the
    /// same. Messages that the worker is delivering right now may still come.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Delivers messages again.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        shared!(self, shared => {
            if shared.info().set_paused(paused) {
                shared.wake();
            }
        });
    }

    /// Bytes that were accepted and have not gone out, headers included.
    pub fn queued(&self) -> usize {
        let queued = match &self.shared {
            Shared::Stream(shared) => shared.upgrade().map(|shared| {
                let batch = gathering_stream(&shared);
                let gathered = batch.map_or(0, |batch| batch.borrow().gathered());
                shared.info().queued() + gathered
            }),
            Shared::Datagrams(shared) => shared.upgrade().map(|shared| {
                let batch = gathering_datagrams(&shared);
                let gathered = batch.map_or_else(
                    || batch::gathered_to(&shared),
                    |batch| batch.borrow().gathered_to(&shared),
                );
                shared.info().queued() + gathered
            }),
        };
        queued.unwrap_or(0)
    }

    /// What carries it.
    pub fn transport(&self) -> Transport {
        match self.shared {
            Shared::Stream(_) => Transport::Tcp,
            Shared::Datagrams(_) => Transport::Udp,
        }
    }

    /// What the handshake of its layers has shown. `None` if it has no layers, as long as their
    /// handshake is not complete, and once the connection has ended.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        match &self.shared {
            Shared::Stream(shared) => shared.upgrade()?.identity(),
            Shared::Datagrams(_) => None,
        }
    }

    /// What the system has measured of a stream: round trips, and what was sent again. A system call. `None`
    /// for datagrams, once the connection has ended, and on systems other than Linux.
    pub fn tcp_info(&self) -> Option<TcpInfo> {
        match &self.shared {
            Shared::Stream(shared) => sys::tcp_info(&shared.upgrade()?.stream),
            Shared::Datagrams(_) => None,
        }
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The address of this end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// A number that no other connection in this process has had or will have.
    pub fn id(&self) -> ConnectionId {
        self.id
    }
}

/// The batch of this thread, if it runs a callback of this stream.
fn gathering_stream(shared: &StreamShared) -> Option<Rc<RefCell<WriteBatch>>> {
    WriteBatch::gathering_for(shared.info().id.as_u64())
}

/// The batch of this thread, if it runs callbacks of the socket of this connection.
fn gathering_datagrams(shared: &PeerShared) -> Option<Rc<RefCell<WriteBatch>>> {
    WriteBatch::gathering_for(shared.socket.id)
}

/// A connection inside such work: a handle, since what several tasks send is gathered in a batch.
struct TaskLink<'a> {
    connection: &'a Connection,
    now: Instant,
}

impl Link for TaskLink<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.connection.send(message)
    }

    fn send_frame(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.connection.send_frame(frame)
    }

    fn close(&mut self) {
        self.connection.close();
    }

    fn abort(&mut self) {
        self.connection.abort();
    }

    fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    fn transport(&self) -> Transport {
        self.connection.transport()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.connection.peer_addr()
    }

    fn local_addr(&self) -> SocketAddr {
        self.connection.local_addr()
    }

    fn id(&self) -> ConnectionId {
        self.connection.id()
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.connection.identity()
    }

    fn queued(&self) -> usize {
        self.connection.queued()
    }

    fn pause(&mut self) {
        self.connection.pause();
    }

    fn resume(&mut self) {
        self.connection.resume();
    }

    fn now(&self) -> Instant {
        self.now
    }
}

cubenet_core::impl_handle!(Connection, {
    fn batch<R>(work: impl FnOnce() -> R) -> R {
        Connection::batch(work)
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        Connection::identity(self)
    }

    fn tcp_info(&self) -> Option<TcpInfo> {
        Connection::tcp_info(self)
    }
});

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection {
            id, peer, local, ..
        } = self;
        let transport = self.transport();
        write!(f, "Connection({id} {transport} {local} to {peer})")
    }
}
