//! The network: its threads, and what an application asks of it.

pub(crate) mod builder;
pub(crate) mod endpoint;
mod listen;
pub(crate) mod listen_options;
pub(crate) mod listen_sockets;
pub(crate) mod listener;
pub(crate) mod listening;
pub(crate) mod shared;
pub(crate) mod socket_options;

use crate::address::canonical;
use crate::batch;
use crate::conn::home::Home;
use crate::conn::info::Conn;
use crate::conn::permit::Permit;
use crate::connection::Connection;
use crate::error::Error;
use crate::log::debug;
use crate::metrics::with_limits;
use crate::tcp::layers::{HandshakePermit, Layers};
use crate::tcp::shared::StreamShared;
use crate::udp::socket::{DatagramSocket, PeerShared};
use crate::worker::mailbox::{BoxedHandler, Command, Mailbox, Target};
use builder::Builder;
use cubenet_core::layer::ConnectOptions;
use cubenet_core::{Ends, Handler, Histogram, MakeLayer, Metrics, SendHalf, Transport};
use endpoint::ToEndpoint;
use shared::{NetworkShared, NoRoom};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

struct Inner {
    shared: Arc<NetworkShared>,
    workers: Vec<Arc<Mailbox>>,
    /// The workers, for connections that have the limits of the network.
    targets: Vec<Target>,
    /// The one that accepts for all workers, where they do not.
    acceptor: Option<Arc<Mailbox>>,
    stopping: AtomicBool,
    /// `None` once a thread joins them.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
    thread_ids: Vec<ThreadId>,
    /// Set once the threads have ended.
    stopped: (Mutex<bool>, Condvar),
}

impl Inner {
    fn new(shared: Arc<NetworkShared>) -> Self {
        Inner {
            shared,
            workers: Vec::new(),
            targets: Vec::new(),
            acceptor: None,
            stopping: AtomicBool::new(false),
            threads: Mutex::new(None),
            thread_ids: Vec::new(),
            stopped: (Mutex::new(false), Condvar::new()),
        }
    }

    /// Those who accept.
    fn acceptors(&self) -> &[Arc<Mailbox>] {
        match &self.acceptor {
            Some(acceptor) => slice::from_ref(acceptor),
            None => &self.workers,
        }
    }

    fn stop(&self, timeout: Duration) {
        // What this thread has gathered in a batch is to be delivered, too.
        batch::flush();
        if !self.stopping.swap(true, SeqCst) {
            let deadline = self.shared.now().after(timeout);
            for worker in self.workers.iter().chain(&self.acceptor) {
                let _ = worker.post(Command::Stop(deadline));
            }
            // A callback cannot wait for the thread it runs on; another will.
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
        Builder::new()
    }

    /// Connects to `address`. Returns at once with the connection to be; what is sent on it
    /// waits until the peer has answered.
    ///
    /// `handler` is called before this returns, on this thread, to make the handler from the
    /// connection's handle. On a worker's thread [`Handler::connected`] is called next, or
    /// [`Handler::connect_failed`]. If this returns an error, no callback is called; a handler that
    /// was already made is dropped.
    ///
    /// Blocks while a host name is resolved; an address in numbers does not block. If a name has
    /// several addresses, the first to which a connect can begin is used: one without a route is
    /// passed over. One that does not answer is not: a connection keeps its socket for life, so that
    /// other threads can use it without a lock. To try the others, connect to each of
    /// [`Endpoint::addresses`](crate::Endpoint::addresses).
    ///
    /// # Errors
    ///
    /// [`Error::Address`] (the text is no address, or a name was given on a thread of a network),
    /// [`Error::Connect`], [`Error::TooManyConnections`], [`Error::Unsupported`], [`Error::Stopped`].
    pub fn connect<H: Handler + Send + 'static>(
        &self,
        transport: Transport,
        address: impl ToEndpoint,
        handler: impl FnOnce(&Connection) -> H,
    ) -> Result<Connection, Error> {
        self.connect_with(&ConnectOptions::new(), transport, address, handler)
    }

    /// Like [`Network::connect`], with a layer such as TLS. [`Handler::connected`] is called once the
    /// handshake of the layer is complete; if it fails, [`Handler::connect_failed`] says why.
    ///
    /// # Errors
    ///
    /// Those of [`Network::connect`], [`Error::TooManyHandshakes`], and [`Error::NoLayers`] if a
    /// datagram connection is to have a layer.
    pub fn connect_with<H: Handler + Send + 'static>(
        &self,
        options: &ConnectOptions,
        transport: Transport,
        address: impl ToEndpoint,
        handler: impl FnOnce(&Connection) -> H,
    ) -> Result<Connection, Error> {
        self.check_running()?;
        check_layers(options.maker().is_some(), transport)?;
        let endpoint = address.to_endpoint()?;
        let target = Target::least_loaded(&self.inner.targets);
        let permit = Permit::take(&target.home, transport, None).map_err(|_: NoRoom| {
            let limit = self.inner.shared.limits.max_connections();
            Error::TooManyConnections { limit }
        })?;
        let mut failed = None;
        for address in endpoint.addresses() {
            let layer = self.begin_handshake(&target.home, options)?;
            let begun = match transport {
                Transport::Tcp => Begun::stream(&target.home, *address, layer),
                Transport::Udp => Begun::datagrams(&target.home, *address),
                _ => return Err(Error::Unsupported { transport }),
            };
            match begun {
                Ok(begun) => {
                    let connection = hand_over(target, begun, permit, handler)?;
                    debug!(connection = %connection.id(), %transport, %address, "connecting");
                    return Ok(connection);
                }
                Err(source) => {
                    failed = Some(Error::Connect {
                        transport,
                        address: *address,
                        source,
                    });
                }
            }
        }
        // A stop that raced is what went wrong.
        self.check_running()?;
        Err(failed.unwrap_or(Error::Stopped))
    }

    /// Stops: no new connections, what is queued is delivered, every connection is closed
    /// and the threads end. What is not delivered after `timeout` is lost; [`Duration::ZERO`] delivers nothing more. Blocks until
    /// all that is done; called from a callback, it only begins it.
    ///
    /// Stopping again waits for the first stop.
    pub fn stop(&self, timeout: Duration) {
        self.inner.stop(timeout);
    }

    /// Blocks until the network is stopped. Called from a callback, it returns at once.
    pub fn join(&self) {
        self.inner.wait();
    }

    /// What the network has done so far.
    pub fn metrics(&self) -> Metrics {
        let shared = &self.inner.shared;
        let mut metrics = shared.counts.metrics();
        let mut loop_delay = Histogram::default();
        for worker in self.inner.workers.iter().chain(&self.inner.acceptor) {
            loop_delay.add(&worker.worker.loop_delay.histogram());
        }
        metrics.loop_delay = Some(loop_delay);
        with_limits(metrics, &shared.limits)
    }

    /// The layer of a connect, if it is to have one, with the permit for its handshake.
    fn begin_handshake<'o>(
        &self,
        home: &Arc<Home>,
        options: &'o ConnectOptions,
    ) -> Result<Option<(&'o dyn MakeLayer, HandshakePermit)>, Error> {
        let Some(layer) = options.maker() else {
            return Ok(None);
        };
        let network = &self.inner.shared;
        let limit = network.limits.max_handshakes();
        let permit = HandshakePermit::take(home);
        Ok(Some((
            layer,
            permit.ok_or(Error::TooManyHandshakes { limit })?,
        )))
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

/// The token of a socket that was not handed over to its worker.
struct UnusedToken<'a>(&'a Home, u32);

impl Drop for UnusedToken<'_> {
    fn drop(&mut self) {
        self.0.worker.release_token(self.1);
    }
}

/// A connection whose connect has begun.
enum Begun {
    Stream(Arc<StreamShared>),
    Datagrams(Arc<PeerShared>),
}

impl Begun {
    fn stream(
        home: &Arc<Home>,
        address: SocketAddr,
        layer: Option<(&dyn MakeLayer, HandshakePermit)>,
    ) -> io::Result<Begun> {
        let network = home.network();
        let stream = network.options.connect_stream(address)?;
        let local = canonical(stream.local_addr()?);
        let layers = layer.map(|(layer, permit)| {
            Layers::new(layer.make_layer(Ends::new(address, local)), permit)
        });
        let half = SendHalf::connecting(network.now());
        StreamShared::new(home, stream, address, half, layers).map(Begun::Stream)
    }

    /// The same over UDP, where there is nothing to wait for.
    fn datagrams(home: &Arc<Home>, address: SocketAddr) -> io::Result<Begun> {
        let socket = home.network().options.connect_datagrams(address)?;
        // The system may have made it more precise, and that is the source of answers.
        let address = socket.peer_addr()?;
        let socket = DatagramSocket::connected(home, socket)?;
        Ok(Begun::Datagrams(PeerShared::new(
            &socket,
            address.into(),
            None,
            0,
        )))
    }
}

/// Makes the handler of a connect that has begun, and gives both to the worker.
fn hand_over<H: Handler + Send + 'static>(
    target: &Target,
    begun: Begun,
    permit: Permit,
    handler: impl FnOnce(&Connection) -> H,
) -> Result<Connection, Error> {
    let (connection, info, token) = match &begun {
        Begun::Stream(shared) => (
            Connection::stream(shared),
            shared.info(),
            shared.key().token,
        ),
        Begun::Datagrams(shared) => (
            Connection::datagrams(shared),
            shared.info(),
            shared.key().token,
        ),
    };
    // As long as the closure runs, the worker would look for it in vain.
    info.set_handed_over(false);
    // If the application panics, or the worker has ended, the token is free again.
    let token = UnusedToken(&target.home, token);
    let handler: BoxedHandler = Box::new(handler(&connection));
    let command = match begun {
        Begun::Stream(shared) => Command::ConnectStream(shared, permit, handler),
        Begun::Datagrams(shared) => Command::ConnectDatagrams(shared, permit, handler),
    };
    target.mailbox.post(command).map_err(|_| Error::Stopped)?;
    connection.set_handed_over();
    std::mem::forget(token);
    Ok(connection)
}

/// That only streams have layers.
fn check_layers(has_layers: bool, transport: Transport) -> Result<(), Error> {
    if has_layers && transport != Transport::Tcp {
        return Err(Error::NoLayers { transport });
    }
    Ok(())
}

/// The network stopped while it was asked for something.
fn stopped() -> io::Error {
    io::Error::other("the network has been stopped")
}
