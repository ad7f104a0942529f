//! The network: its threads, and what an application asks of it.

use crate::acceptor::{Acceptor, AcceptorHandle, Order, least_loaded};
use crate::common::{Common, NoRoom, next_id};
use crate::connection::Connection;
use crate::datagram::DatagramSocket;
use crate::error::Error;
use crate::listen_options::{ListenOptions, limits_of_listener};
use crate::listening::{Home, Listening, StreamListener};
use crate::log::debug;
use crate::mailbox::{BoxedHandler, Command, WorkerHandle};
use crate::output::is_network_thread;
use crate::seat::Permit;
use crate::shared::{Half, OnSocket, Shared, Wire, canonical};
use crate::socket::SocketOptions;
use crate::sync::atomic::AtomicU16;
use crate::worker::Worker;
use cubenet_core::{
    AddressLimits, Budgets, DatagramHalf, Handler, Limits, Metrics, SendHalf, Transport,
};
use mio::Poll;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

/// How a network is to be; [`Builder::start`] makes it.
///
/// ```
/// use cubenet_mio::{Limits, Network};
/// use std::time::Duration;
/// let network = Network::builder()
///     .workers(2)
///     .limits(Limits::new().with_max_message(4096))
///     .start()?;
/// network.stop(Duration::ZERO);
/// # Ok::<(), cubenet_mio::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    workers: usize,
    limits: Limits,
    budgets: Budgets,
    addresses: AddressLimits,
    options: SocketOptions,
}

impl Builder {
    /// Threads that run callbacks; 0 counts as 1. Default: as many as the processor runs at
    /// once. One thread more accepts connections.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// The bounds on memory, time and work. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How much work one connection may cause before the others are served. Default:
    /// [`Budgets::new`].
    #[must_use]
    pub fn budgets(mut self, budgets: Budgets) -> Self {
        self.budgets = budgets;
        self
    }

    /// What one peer address may have: connections, and new ones in a second. Default:
    /// [`AddressLimits::default`], which limits nothing.
    #[must_use]
    pub fn address_limits(mut self, limits: AddressLimits) -> Self {
        self.addresses = limits;
        self
    }

    /// Connections that may wait in the kernel to be accepted. Default 4,096; the system
    /// may cap it (`net.core.somaxconn`).
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.options.backlog = connections;
        self
    }

    /// `TCP_NODELAY`: whether small messages leave at once. Default true.
    #[must_use]
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.options.nodelay = nodelay;
        self
    }

    /// Whether a socket on an IPv6 address also serves IPv4 (`[::]:7000` then serves both).
    /// Default true.
    #[must_use]
    pub fn dual_stack(mut self, dual_stack: bool) -> Self {
        self.options.dual_stack = dual_stack;
        self
    }

    /// Bytes of the kernel's send and receive buffers of each stream. Default: the system's
    /// own choice, which adapts.
    #[must_use]
    pub fn stream_buffer(mut self, bytes: usize) -> Self {
        self.options.stream_buffer = Some(bytes);
        self
    }

    /// Bytes that a stream's kernel buffer may hold beyond what is under way to the peer
    /// (`TCP_NOTSENT_LOWAT`, on Linux and Apple's systems). Default 128 KiB: a peer that reads
    /// nothing holds no more of the kernel's memory than that, and one that reads is not slowed
    /// down, since the bytes under way are not counted. What is over it waits in the
    /// connection's queue, where [`max_queued`](Limits::max_queued) bounds it.
    #[must_use]
    pub fn stream_unsent(mut self, bytes: u32) -> Self {
        self.options.stream_unsent = bytes;
        self
    }

    /// Bytes of the kernel's send and receive buffers of each datagram socket. Default
    /// 4 MiB, since all peers of a listener share it; the system may cap it
    /// (`net.core.rmem_max`).
    #[must_use]
    pub fn datagram_buffer(mut self, bytes: usize) -> Self {
        self.options.datagram_buffer = Some(bytes);
        self
    }

    /// Starts the threads.
    pub fn start(self) -> Result<Network, Error> {
        self.limits.validate().map_err(Error::Limits)?;
        self.budgets.validate().map_err(Error::Limits)?;
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(|error| Error::Start(io::Error::other(error)))?;
        let (low, high) = key.split_at(8);
        let half = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let common = Common::new(
            self.limits,
            self.budgets,
            self.options,
            self.addresses,
            (half(low), half(high)),
        );
        let common = Arc::new(common);
        let inner = Inner {
            common,
            workers: Vec::new(),
            homes: Vec::new(),
            acceptor: None,
            stopping: AtomicBool::new(false),
            threads: Mutex::new(None),
            thread_ids: Vec::new(),
            stopped: (Mutex::new(false), Condvar::new()),
        };
        start_threads(inner, self.workers).map_err(Error::Start)
    }
}

fn start_threads(mut inner: Inner, workers: usize) -> io::Result<Network> {
    let mut threads = Vec::new();
    let started = (|| {
        let mut polls = Vec::new();
        for _ in 0..workers {
            let poll = Poll::new()?;
            let handle = WorkerHandle::new(Arc::clone(&inner.common), &poll)?;
            polls.push((poll, Arc::clone(&handle)));
            inner.workers.push(handle);
        }
        let all: Arc<[_]> = inner.workers.clone().into();
        for (nth, (poll, handle)) in polls.into_iter().enumerate() {
            let name = format!("cubenet-worker-{nth}");
            let all = Arc::clone(&all);
            let run = move || Worker::new(poll, handle, all).run();
            threads.push(thread::Builder::new().name(name).spawn(run)?);
        }
        let poll = Poll::new()?;
        let handle = AcceptorHandle::new(&poll)?;
        let acceptor = Acceptor {
            poll,
            handle: Arc::clone(&handle),
            common: Arc::clone(&inner.common),
            listeners: std::collections::HashMap::new(),
        };
        inner.homes = Home::with_each(&inner.workers, &Arc::new(inner.common.limits.clone()));
        let name = String::from("cubenet-acceptor");
        let run = move || acceptor.run();
        threads.push(thread::Builder::new().name(name).spawn(run)?);
        inner.acceptor = Some(handle);
        Ok(())
    })();
    inner.thread_ids = threads.iter().map(|thread| thread.thread().id()).collect();
    inner.threads = Mutex::new(Some(threads));
    // If it did not start whole, dropping it stops what did start.
    let network = Network {
        inner: Arc::new(inner),
    };
    started.map(|()| network)
}

struct Inner {
    common: Arc<Common>,
    workers: Vec<Arc<WorkerHandle>>,
    /// Where connections live that have the limits of the network.
    homes: Vec<Arc<Home>>,
    acceptor: Option<Arc<AcceptorHandle>>,
    stopping: AtomicBool,
    /// `None` once somebody joins them.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
    thread_ids: Vec<ThreadId>,
    /// Set once the threads have ended.
    stopped: (Mutex<bool>, Condvar),
}

impl Inner {
    fn stop(&self, deadline: Duration) {
        if !self.stopping.swap(true, SeqCst) {
            if let Some(acceptor) = &self.acceptor {
                let _ = acceptor.post(Order::Stop);
            }
            let deadline = self.common.now().after(deadline);
            for worker in &self.workers {
                let _ = worker.post(Command::Stop(deadline));
            }
            // A callback cannot wait for the thread it runs on; somebody else will.
            if self.is_own_thread() {
                return;
            }
        }
        self.wait();
    }

    fn is_own_thread(&self) -> bool {
        self.thread_ids.contains(&thread::current().id())
    }

    /// Waits for the threads to end.
    fn wait(&self) {
        if self.is_own_thread() {
            return;
        }
        let threads = self.threads.lock();
        let threads = threads.unwrap_or_else(PoisonError::into_inner).take();
        let (stopped, changed) = &self.stopped;
        let Some(threads) = threads else {
            let mut stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*stopped {
                stopped = changed
                    .wait(stopped)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            return;
        };
        for thread in threads {
            // Callbacks cannot make a thread panic; should it, that was reported.
            let _ = thread.join();
        }
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// A network: its worker threads, its listeners and its connections.
///
/// Clones are the same network. When the last one is dropped the network stops at once, as
/// by [`stop`](Network::stop) with no time.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

impl Network {
    /// A network to be configured and started.
    pub fn builder() -> Builder {
        Builder {
            workers: thread::available_parallelism().map_or(1, usize::from),
            limits: Limits::new(),
            budgets: Budgets::new(),
            addresses: AddressLimits::new(),
            options: SocketOptions::default(),
        }
    }

    /// Listens on `address`. Port 0 lets the system choose one; see
    /// [`Listener::local_addr`].
    ///
    /// `accepted` is called on a worker's thread for each new peer, before anything of it
    /// is delivered, and returns its handler, or `None` to turn it away. It may be called
    /// on several threads at once. A datagram peer that was turned away is asked about
    /// again when it sends again.
    ///
    /// Of several addresses that a name resolves to, the first that can be listened on is.
    /// Resolving a name may block; an address in numbers does not.
    pub fn listen<H: Handler + Send + 'static>(
        &self,
        transport: Transport,
        address: impl ToSocketAddrs + fmt::Debug,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        self.listen_with(ListenOptions::new(), transport, address, accepted)
    }

    /// Like [`Network::listen`], with limits or an admission hook of this listener's own.
    pub fn listen_with<H: Handler + Send + 'static>(
        &self,
        options: ListenOptions,
        transport: Transport,
        address: impl ToSocketAddrs + fmt::Debug,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        let accept = move |connection: &Connection| Some(Box::new(accepted(connection)?) as _);
        let listening = Listening::new(Box::new(accept), options.admit);
        let homes = match options.limits {
            None => self.inner.homes.clone(),
            Some(limits) => {
                let limits = limits_of_listener(&limits, &self.inner.common.limits)?;
                Home::with_each(&self.inner.workers, &Arc::new(limits))
            }
        };
        let mut failed = None;
        for address in resolve(&address)? {
            match self.listen_on(transport, address, &listening, &homes) {
                Err(error @ Error::Listen { .. }) => failed = Some(error),
                outcome => return outcome,
            }
        }
        Err(failed.unwrap_or(Error::Stopped))
    }

    fn listen_on(
        &self,
        transport: Transport,
        address: SocketAddr,
        listening: &Arc<Listening>,
        homes: &[Arc<Home>],
    ) -> Result<Listener, Error> {
        self.check_running()?;
        let listened = match transport {
            Transport::Tcp => self.listen_stream(address, listening, homes),
            Transport::Udp => self.listen_datagrams(address, listening, homes),
            _ => return Err(Error::Unsupported { transport }),
        };
        let (local, socket) = match listened {
            Ok(listened) => listened,
            // A stop that raced is what went wrong.
            Err(_) if self.check_running().is_err() => return Err(Error::Stopped),
            Err(source) => {
                return Err(Error::Listen {
                    transport,
                    address,
                    source,
                });
            }
        };
        let local = canonical(local);
        debug!(%transport, %local, "listening");
        Ok(Listener {
            transport,
            local,
            listening: Arc::clone(listening),
            socket,
        })
    }

    fn listen_stream(
        &self,
        address: SocketAddr,
        listening: &Arc<Listening>,
        homes: &[Arc<Home>],
    ) -> io::Result<(SocketAddr, ListenerSocket)> {
        let mut socket = self.inner.common.options.listen_stream(address)?;
        let local = socket.local_addr()?;
        let number = next_id().as_u64();
        let acceptor = self.inner.acceptor.as_ref().ok_or_else(stopped)?;
        acceptor.register(number, &mut socket)?;
        let listening = Arc::clone(listening);
        let listener = StreamListener::new(number, socket, listening, homes.to_vec());
        let order = Order::Listen(Arc::clone(&listener));
        acceptor.post(order).map_err(|_| stopped())?;
        let acceptor = Arc::clone(acceptor);
        Ok((local, ListenerSocket::Stream(listener, acceptor)))
    }

    fn listen_datagrams(
        &self,
        address: SocketAddr,
        listening: &Arc<Listening>,
        homes: &[Arc<Home>],
    ) -> io::Result<(SocketAddr, ListenerSocket)> {
        let socket = self.inner.common.options.listen_datagrams(address)?;
        let home = least_loaded(homes);
        let socket = home.share_datagrams(socket, true)?;
        let command = Command::Listen(Arc::clone(&socket), Arc::clone(listening));
        home.worker.post(command).map_err(|_| stopped())?;
        let weak = Arc::downgrade(&socket);
        Ok((socket.local, ListenerSocket::Datagrams(weak)))
    }

    /// Connects to `address`. Returns at once with the connection to be; what is sent on it
    /// waits until the peer has answered.
    ///
    /// `handler` is called before this returns, on this thread, to make the handler from the
    /// connection's handle. The handler is told on a worker's thread how the connect went:
    /// [`Handler::connected`], or [`Handler::connect_failed`]. If this returns an error, the
    /// handler is not made, or dropped untold.
    ///
    /// Of several addresses that a name resolves to, the first is tried. Resolving a name may
    /// block; an address in numbers does not.
    pub fn connect<H: Handler + Send + 'static>(
        &self,
        transport: Transport,
        address: impl ToSocketAddrs + fmt::Debug,
        handler: impl FnOnce(&Connection) -> H,
    ) -> Result<Connection, Error> {
        self.check_running()?;
        let address = resolve(&address)?[0];
        let home = least_loaded(&self.inner.homes);
        let permit = Permit::take(home, transport, None).map_err(|_: NoRoom| {
            let limit = self.inner.common.limits.max_connections();
            Error::TooManyConnections { limit }
        })?;
        let called = match transport {
            Transport::Tcp => self.call_stream(home, address),
            Transport::Udp => self.call_datagrams(home, address),
            _ => return Err(Error::Unsupported { transport }),
        };
        let called = called.and_then(|(shared, socket)| {
            let connection = Connection::new(&shared);
            // If the application panics, or the worker has ended, the token is free again.
            let token = UnusedToken(home, shared.core.place().entry);
            let handler: BoxedHandler = Box::new(handler(&connection));
            let command = match socket {
                None => Command::Call(shared, permit, handler),
                Some(socket) => Command::Connect(socket, shared, permit, handler),
            };
            home.worker.post(command).map_err(|_| stopped())?;
            std::mem::forget(token);
            Ok(connection)
        });
        match called {
            Ok(connection) => {
                debug!(connection = %connection.id(), %transport, %address, "calling");
                Ok(connection)
            }
            // A stop that raced is what went wrong.
            Err(_) if self.check_running().is_err() => Err(Error::Stopped),
            Err(source) => Err(Error::Connect {
                transport,
                address,
                source,
            }),
        }
    }

    /// Begins to connect. Returns the connection to be, and its socket if that is a datagram's.
    fn call_stream(&self, home: &Arc<Home>, address: SocketAddr) -> io::Result<Connecting> {
        let common = &self.inner.common;
        let stream = common.options.call_stream(address)?;
        let half = SendHalf::connecting(common.now());
        let shared = home.share_stream(stream, address, half)?;
        Ok((shared, None))
    }

    /// The same over UDP, where there is nothing to wait for.
    fn call_datagrams(&self, home: &Arc<Home>, address: SocketAddr) -> io::Result<Connecting> {
        let common = &self.inner.common;
        let socket = common.options.call_datagrams(address)?;
        // The system may have made it more precise, and that is who will answer.
        let address = socket.peer_addr()?;
        let socket = home.share_datagrams(socket, false)?;
        let wire = Wire::Datagrams(Box::new(OnSocket {
            max_segment: AtomicU16::new(socket.max_segment()),
            socket: Arc::clone(&socket),
            source: None,
        }));
        let half = Half::Datagrams(DatagramHalf::new());
        let shared = Shared::new(wire, address, 0, half);
        Ok((shared, Some(socket)))
    }

    /// Stops: no new connections, what is queued is delivered, every connection is closed
    /// and the threads end. What is not delivered within `deadline` is lost. Blocks until
    /// all that is done; called from a callback, it only begins it.
    ///
    /// Stopping again waits for the first stop.
    pub fn stop(&self, deadline: Duration) {
        self.inner.stop(deadline);
    }

    /// Blocks until somebody stops the network. Called from a callback, it returns at once.
    pub fn join(&self) {
        self.inner.wait();
    }

    /// What the network has done so far.
    pub fn metrics(&self) -> Metrics {
        self.inner.common.metrics()
    }

    fn check_running(&self) -> Result<(), Error> {
        if self.inner.stopping.load(SeqCst) {
            return Err(Error::Stopped);
        }
        Ok(())
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("workers", &self.inner.workers.len())
            .field("metrics", &self.metrics())
            .finish()
    }
}

/// The number of a socket that its worker has not been told of.
struct UnusedToken<'a>(&'a Home, u32);

impl Drop for UnusedToken<'_> {
    fn drop(&mut self) {
        self.0.worker.release_entry(self.1);
    }
}

/// A connection to be, and its socket if that is a datagram's.
type Connecting = (Arc<Shared>, Option<Arc<DatagramSocket>>);

/// The network stopped while it was asked for something.
fn stopped() -> io::Error {
    io::Error::other("the network has been stopped")
}

/// The addresses that were meant; at least one.
fn resolve(given: &(impl ToSocketAddrs + fmt::Debug)) -> Result<Vec<SocketAddr>, Error> {
    let error = |source| Error::Address {
        given: format!("{given:?}"),
        source,
    };
    let addresses: Vec<_> = given.to_socket_addrs().map_err(error)?.collect();
    if addresses.is_empty() {
        return Err(error(io::Error::other("the name has no address")));
    }
    Ok(addresses)
}

/// An address that is listened on. Dropping it changes nothing: it listens until it is
/// closed or the network stops.
pub struct Listener {
    transport: Transport,
    local: SocketAddr,
    listening: Arc<Listening>,
    socket: ListenerSocket,
}

enum ListenerSocket {
    Stream(Arc<StreamListener>, Arc<AcceptorHandle>),
    /// Weak, so that the socket closes with its last connection.
    Datagrams(Weak<DatagramSocket>),
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

    /// Accepts no more. Connections that are there stay. When it returns, no call of `accepted`
    /// or of the admission hook is running or will begin, and the address of a stream listener is free; that of a
    /// datagram listener is once its last connection has closed, since they share its socket.
    ///
    /// Waits for such calls that are running. Called from a callback it does not, since
    /// that could be one of them.
    pub fn close(self) {
        self.listening.close();
        match &self.socket {
            ListenerSocket::Stream(listener, acceptor) => {
                listener.close();
                // An acceptor that has ended has forgotten it.
                let _ = acceptor.post(Order::Forget(listener.number));
            }
            ListenerSocket::Datagrams(socket) => {
                if let Some(socket) = socket.upgrade() {
                    socket.close();
                }
            }
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
