//! A network: what runs on one virtual host.

use crate::connection::Connection;
use crate::error::Error;
use crate::kernel::{HostId, Key, StreamBuffers};
use crate::owners::Owner;
use crate::peers::{self, Peers};
use crate::stream::{self, Stream};
use crate::workers::{Costs, Worker};
use crate::world::{AcceptFn, BoxedHandler, Guard, NetworkId, NetworkState, Place, Shared, World};
use cubenet_core::{Budgets, Handler, Limits, Metrics, Transport};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// An address as a simulation takes it: numbers, since there is no name server in here.
pub trait IntoAddress {
    /// The address; what was given, if it is none.
    fn into_address(self) -> Result<SocketAddr, String>;
}

impl IntoAddress for SocketAddr {
    fn into_address(self) -> Result<SocketAddr, String> {
        Ok(self)
    }
}

impl IntoAddress for (IpAddr, u16) {
    fn into_address(self) -> Result<SocketAddr, String> {
        Ok(self.into())
    }
}

impl IntoAddress for &str {
    fn into_address(self) -> Result<SocketAddr, String> {
        self.parse().map_err(|_| self.to_owned())
    }
}

/// The most worker threads of a network.
const MAX_THREADS: usize = 1_024;

/// How a network is to be; [`Builder::start`] makes it.
#[derive(Clone)]
pub struct Builder {
    pub(crate) shared: Weak<Shared>,
    pub(crate) host: HostId,
    pub(crate) limits: Limits,
    pub(crate) budgets: Budgets,
    pub(crate) backlog: usize,
    pub(crate) stream_buffer: Option<usize>,
    pub(crate) stream_unsent: Option<u32>,
    pub(crate) datagram_buffer: usize,
    pub(crate) descriptors: usize,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ephemeral_ports: RangeInclusive<u16>,
    pub(crate) threads: usize,
    pub(crate) costs: Costs,
}

impl Builder {
    /// The bounds on memory, time and work. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Connections that may wait to be accepted. Default 4,096.
    #[must_use]
    pub fn backlog(mut self, connections: usize) -> Self {
        self.backlog = connections;
        self
    }

    /// Bytes that are asked of the system for the send and for the receive buffer of each stream.
    /// As on Linux (`SO_SNDBUF`, `SO_RCVBUF`) each then holds twice as many of the stream's.
    /// Default: the system's own choice, which is 4 MiB to send, and to receive 128 KiB that grow
    /// to 3 MiB if the reader keeps up.
    #[must_use]
    pub fn stream_buffer(mut self, bytes: usize) -> Self {
        self.stream_buffer = Some(bytes);
        self
    }

    /// Bytes that a stream's send buffer may hold beyond what is under way to the peer
    /// (`TCP_NOTSENT_LOWAT`). Default 128 KiB.
    #[must_use]
    pub fn stream_unsent(mut self, bytes: u32) -> Self {
        self.stream_unsent = Some(bytes.max(1));
        self
    }

    /// Bytes that are asked of the system for the receive buffer of each datagram socket. As on
    /// Linux (`SO_RCVBUF`) it then holds twice as many, and a datagram costs more than its length:
    /// 832 bytes if it has up to 196, 2,304 if it has 1,400. Default 4 MiB.
    #[must_use]
    pub fn datagram_buffer(mut self, bytes: usize) -> Self {
        self.datagram_buffer = bytes;
        self
    }

    /// Sockets the host may have open; what more is called waits to be accepted. Default:
    /// no bound.
    #[must_use]
    pub fn descriptors(mut self, descriptors: usize) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Another address of the host, beside the one it was made with. Listeners may be on one of
    /// them or, at an unspecified address, on all; calls are made from the first of the callee's
    /// kind.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// The ports that are given to those who call, at least one. Two streams may have the same if
    /// they called different addresses; the port of a stream that was closed from this side first
    /// stays taken towards its peer for a minute. Default 32768 to 60999, as on Linux.
    #[must_use]
    pub fn ephemeral_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ephemeral_ports = ports;
        self
    }

    /// Worker threads, 1 to 1,024: each connection belongs to one. They matter if work
    /// [costs](Builder::costs) time or callbacks are
    /// [interleaved](crate::Builder::interleave). Default 1.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, MAX_THREADS);
        self
    }

    /// How much work one connection may cause before the others are served. Default:
    /// [`Budgets::new`].
    #[must_use]
    pub fn budgets(mut self, budgets: Budgets) -> Self {
        self.budgets = budgets;
        self
    }

    /// What work costs a worker thread. Default: nothing.
    #[must_use]
    pub fn costs(mut self, costs: Costs) -> Self {
        self.costs = costs;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Network, Error> {
        self.limits.validate().map_err(Error::Limits)?;
        self.budgets.validate().map_err(Error::Limits)?;
        let shared = self.shared.upgrade().ok_or(Error::Stopped)?;
        let mut world = shared.lock();
        let in_use = world
            .networks
            .iter()
            .any(|network| network.host == self.host && !network.is_stopped());
        if in_use {
            let address = world.kernel.host(self.host).address();
            return Err(Error::HostInUse(address));
        }
        if self.ephemeral_ports.is_empty() || *self.ephemeral_ports.start() == 0 {
            return Err(Error::NoPorts);
        }
        self.costs.validate().map_err(Error::Faults)?;
        for address in &self.addresses {
            if !world.kernel.may_add_address(self.host, *address) {
                return Err(Error::HostInUse(*address));
            }
        }
        for address in self.addresses {
            world.kernel.add_address(self.host, address);
        }
        let host = world.kernel.host_mut(self.host);
        host.alive = true;
        host.ephemeral = self.ephemeral_ports;
        host.costs = Some(self.costs).filter(|costs| *costs != Costs::default());
        host.stream_buffers = self
            .stream_buffer
            .map_or(StreamBuffers::ADAPTIVE, StreamBuffers::fixed);
        if let Some(unsent) = self.stream_unsent {
            host.stream_buffers.max_unsent = unsent;
        }
        host.datagram_buffer = self.datagram_buffer.saturating_mul(2);
        host.max_descriptors = self.descriptors;
        let address = host.address();
        let hash_key = (world.kernel.random.next(), world.kernel.random.next());
        let id = NetworkId(world.networks.len() as u32);
        world.networks.push(NetworkState {
            host: self.host,
            limits: Arc::new(self.limits),
            budgets: self.budgets,
            metrics: Metrics::default(),
            open: 0,
            queued_bytes: 0,
            held_bytes: 0,
            busy: Duration::ZERO,
            open_streams: 0,
            hash_key,
            stopping: None,
            crashed: false,
            backlog: self.backlog,
            costs: self.costs,
            workers: (0..self.threads).map(|_| Worker::new()).collect(),
        });
        Ok(Network {
            shared: self.shared.clone(),
            id,
            address,
        })
    }
}

/// Whether there are virtual sockets for a transport.
fn check_transport(transport: Transport) -> Result<(), Error> {
    match transport {
        Transport::Tcp | Transport::Udp => Ok(()),
        _ => Err(Error::Unsupported { transport }),
    }
}

/// A connection whose handler is being made. If that panics, it is aborted.
struct Unmade<'a>(&'a Connection);

impl Drop for Unmade<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A network on one virtual host: its listeners and its connections. Clones are the same
/// network.
#[derive(Clone)]
pub struct Network {
    shared: Weak<Shared>,
    id: NetworkId,
    address: IpAddr,
}

impl Network {
    /// The address of its host.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Listens on `address`, which is the host's own or unspecified. Port 0 lets the host
    /// choose one.
    ///
    /// `accepted` is called for each new peer, before anything of it is delivered, and
    /// returns its handler, or `None` to turn it away.
    pub fn listen<H: Handler + Send + 'static>(
        &self,
        transport: Transport,
        address: impl IntoAddress,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        check_transport(transport)?;
        let address = address
            .into_address()
            .map_err(|given| Error::Address { given })?;
        let accept: Arc<AcceptFn> =
            Arc::new(move |connection: &Connection| Some(Box::new(accepted(connection)?) as _));
        let shared = self.shared()?;
        let mut world = self.running(&shared)?;
        let refused = |refusal| Error::Listen {
            transport,
            address,
            refusal,
        };
        let network = &world.networks[self.id.0 as usize];
        let (host, backlog) = (network.host, network.backlog);
        let network = self.id;
        let (key, local) = if transport == Transport::Tcp {
            let listening = world.kernel.listen(host, address, backlog);
            let (key, local) = listening.map_err(refused)?;
            let owner = Owner::Listener {
                network,
                accept,
                again: cubenet_core::Instant::ZERO,
            };
            world.owners.insert(key, owner);
            (key, local)
        } else {
            let bound = world.kernel.bind_datagrams(host, address, None);
            let (key, local) = bound.map_err(refused)?;
            let state = &world.networks[network.0 as usize];
            let peers = Peers::listening(network, state, local, accept);
            world.owners.insert(key, Owner::Peers(Box::new(peers)));
            (key, local)
        };
        drop(world);
        Ok(Listener {
            shared: Arc::downgrade(&shared),
            key,
            transport,
            local,
        })
    }

    /// Connects to `address`. Returns at once with the connection to be; what is sent on it
    /// waits until the peer has answered.
    ///
    /// `handler` is called before this returns, to make the handler from the connection's handle.
    /// The handler is told how the connect went: [`Handler::connected`], or
    /// [`Handler::connect_failed`].
    pub fn connect<H: Handler + Send + 'static>(
        &self,
        transport: Transport,
        address: impl IntoAddress,
        handler: impl FnOnce(&Connection) -> H,
    ) -> Result<Connection, Error> {
        check_transport(transport)?;
        let address = address
            .into_address()
            .map_err(|given| Error::Address { given })?;
        let shared = self.shared()?;
        let mut world = self.running(&shared)?;
        let network = &mut world.networks[self.id.0 as usize];
        let (host, limits) = (network.host, Arc::clone(&network.limits));
        if !network.reserve(transport) {
            return Err(Error::TooManyConnections {
                limit: limits.max_connections(),
            });
        }
        let id = world.next_id();
        let now = world.now();
        let called = if transport == Transport::Tcp {
            world.kernel.call(host, address).map(|key| {
                let ends = world.kernel.ends(key);
                (key, ends.unwrap_or((address, address)))
            })
        } else {
            let local = world.kernel.host(host).address_towards(address.ip());
            let any = SocketAddr::new(local, 0);
            let bound = world.kernel.bind_datagrams(host, any, Some(address));
            bound.map(|(key, local)| (key, (local, address)))
        };
        let (key, ends) = match called {
            Ok(called) => called,
            Err(refusal) => {
                world.network(self.id).release(transport);
                return Err(Error::Connect {
                    transport,
                    address,
                    refusal,
                });
            }
        };
        let is_stream = transport == Transport::Tcp;
        let owner = if is_stream {
            let stream = Stream::calling(id, self.id, &limits, now);
            Owner::Stream(Box::new(stream))
        } else {
            let state = &world.networks[self.id.0 as usize];
            let peers = Peers::calling(self.id, state, ends, id, now);
            Owner::Peers(Box::new(peers))
        };
        world.owners.insert(key, owner);
        // The application's code runs without the lock, and the connection waits for it.
        drop(world);
        let place = Place { key, slot: 0 };
        let connection = Connection::new(&shared, place, id, transport, ends);
        let unmade = Unmade(&connection);
        let handler: BoxedHandler = Box::new(handler(&connection));
        std::mem::forget(unmade);
        let world = shared.lock();
        drop(if is_stream {
            stream::give_handler(&shared, world, key, handler)
        } else {
            peers::give_handler(world, key, handler)
        });
        Ok(connection)
    }

    /// Begins to stop: no new connections, what is queued is delivered, every connection is
    /// closed. What is not delivered within `deadline` is lost. Let time pass to see it
    /// happen; [`Network::is_stopped`] tells when it has.
    pub fn stop(&self, deadline: Duration) {
        let Ok(shared) = self.shared() else {
            return;
        };
        let Ok(mut world) = self.running(&shared) else {
            return;
        };
        let at = world.now().after(deadline);
        world.network(self.id).stopping = Some(at);
        close_all(&mut world, self.id, false);
        let id = self.id;
        let weak = Arc::downgrade(&shared);
        let give_up = move |_: &crate::Simulation| {
            if let Some(shared) = weak.upgrade() {
                close_all(&mut shared.lock(), id, true);
            }
        };
        world.timers.schedule(at, Box::new(give_up));
    }

    /// Whether it has stopped and its last connection has closed, or its host has crashed.
    pub fn is_stopped(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return true;
        };
        shared.lock().networks[self.id.0 as usize].is_stopped()
    }

    /// Keeps the worker thread whose callback calls this busy for so long, beside what its work
    /// [costs](Builder::costs): for handlers that compute. Nothing, outside of callbacks of this
    /// network or if its work costs nothing.
    pub fn spend(&self, time: Duration) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut world = shared.at_point();
        let turn = world.kernel.turn.key;
        let owner = turn.and_then(|key| world.owners.get(key)?.network());
        let costs = world.network(self.id).costs;
        if owner == Some(self.id) && costs != Costs::default() {
            world.kernel.turn.spend(time);
        }
    }

    /// What it has done so far.
    pub fn metrics(&self) -> Metrics {
        let Some(shared) = self.shared.upgrade() else {
            return Metrics::default();
        };
        let mut world = shared.at_point();
        let network = world.network(self.id);
        let mut metrics = network.metrics.clone();
        metrics.open = network.open as u64;
        metrics.queued_bytes = network.queued_bytes as u64;
        metrics.held_bytes = network.held_bytes as u64;
        metrics
    }

    /// How long its workers were busy, all together, with what has a [cost](Costs).
    pub fn busy(&self) -> Duration {
        let shared = self.shared.upgrade();
        shared.map_or(Duration::ZERO, |shared| {
            shared.at_point().network(self.id).busy
        })
    }

    fn shared(&self) -> Result<Arc<Shared>, Error> {
        self.shared.upgrade().ok_or(Error::Stopped)
    }

    /// The world, if the network runs.
    fn running<'a>(&self, shared: &'a Shared) -> Result<Guard<'a>, Error> {
        let world = shared.at_point();
        let network = &world.networks[self.id.0 as usize];
        if network.stopping.is_none() && !network.crashed {
            Ok(world)
        } else {
            Err(Error::Stopped)
        }
    }
}

/// Closes everything of a network; `abort`: at once.
fn close_all(world: &mut World, network: NetworkId, abort: bool) {
    for key in world.owners.keys_of(network) {
        let connections = match world.owners.get(key) {
            Some(Owner::Listener { .. }) => {
                world.disown(key, false);
                continue;
            }
            Some(Owner::Stream(stream)) => vec![(0, stream.id)],
            Some(Owner::Peers(peers)) => {
                peers.close_listener();
                let connections = peers.connections().collect();
                crate::peers::arm(world, key);
                connections
            }
            _ => continue,
        };
        for (slot, id) in connections {
            let place = Place { key, slot };
            if abort {
                world.abort(place, id);
            } else {
                world.close(place, id);
            }
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("address", &self.address)
            .field("metrics", &self.metrics())
            .finish_non_exhaustive()
    }
}

/// An address that is listened on, until it is closed or the network stops.
pub struct Listener {
    shared: Weak<Shared>,
    key: Key,
    transport: Transport,
    local: SocketAddr,
}

impl Listener {
    /// The address, with the port that the host chose if it was to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// On which transport it listens.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Accepts no more. Connections that are there stay. The address of a stream listener is
    /// free at once; that of a datagram listener is once its last connection has closed,
    /// since they share its socket.
    pub fn close(self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut world = shared.lock();
        match world.owners.get(self.key) {
            Some(Owner::Listener { .. }) => world.disown(self.key, false),
            Some(Owner::Peers(peers)) => {
                peers.close_listener();
                crate::peers::arm(&mut world, self.key);
            }
            _ => {}
        }
        let buried = world.unbury();
        drop(world);
        drop(buried);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({} {})", self.transport, self.local)
    }
}
