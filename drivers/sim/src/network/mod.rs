//! A network: what runs on one virtual host.

pub(crate) mod address;
pub(crate) mod builder;
pub(crate) mod listen_options;
pub(crate) mod listener;

use crate::conn_info::{ConnInfo, ConnKey};
use crate::connection::Connection;
use crate::error::Error;
use crate::job::{AcceptFn, BoxedHandler};
use crate::network_state::NetworkId;
use crate::owner::{self, Owner};
use crate::peers::state::Peers;
use crate::shared::Shared;
use crate::stream::state::Stream;
use crate::world::World;
use address::ToAddress;
use cubenet_core::layer::ConnectOptions;
use cubenet_core::{Ends, Handler, Link, Message, Metrics, Transport};
use listen_options::ListenOptions;
use listener::Listener;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

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
        address: impl ToAddress,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        self.listen_with(ListenOptions::new(), transport, address, accepted)
    }

    /// Like [`Network::listen`], with a layer such as TLS.
    pub fn listen_with<H: Handler + Send + 'static>(
        &self,
        options: ListenOptions,
        transport: Transport,
        address: impl ToAddress,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        check_transport(transport)?;
        check_layers(options.layer.is_some(), transport)?;
        let address = address.to_address()?;
        let shared = self.shared()?;
        let for_connections = self.shared.clone();
        let accept: Arc<AcceptFn> = Arc::new(move |info: &ConnInfo| {
            let connection = Connection::new(for_connections.clone(), *info);
            Some(Box::new(accepted(&connection)?) as _)
        });
        let mut world = self.running(&shared)?;
        let (id, state) = (self.id, world.network(self.id));
        let (host, backlog) = (state.host, state.backlog);
        let bound = if transport == Transport::Tcp {
            world.kernel.listen(host, address, backlog)
        } else {
            world.kernel.bind_datagrams(host, address, None)
        };
        let (socket, local) = bound.map_err(|refusal| Error::Listen {
            transport,
            address,
            refusal,
        })?;
        let owner = if transport == Transport::Tcp {
            Owner::Listener(owner::Listener {
                network: id,
                accept,
                layer: options.layer,
                retry_at: cubenet_core::Instant::ZERO,
            })
        } else {
            let peers = Peers::listening((id, world.network(id)), local, accept);
            Owner::Peers(Box::new(peers))
        };
        world.owners.insert(socket, owner);
        drop(world);
        Ok(Listener {
            shared: self.shared.clone(),
            socket,
            transport,
            local,
        })
    }

    /// Connects to `address`. Returns at once with the connection to be; what is sent on it
    /// waits until the peer has answered.
    ///
    /// `handler` is called before this returns, to make the handler from the connection's handle.
    /// What the handler gets says how the connect went: [`Handler::connected`], or
    /// [`Handler::connect_failed`].
    pub fn connect<H: Handler + Send + 'static>(
        &self,
        transport: Transport,
        address: impl ToAddress,
        handler: impl FnOnce(&Connection) -> H,
    ) -> Result<Connection, Error> {
        self.connect_with(&ConnectOptions::new(), transport, address, handler)
    }

    /// Like [`Network::connect`], with a layer such as TLS. [`Handler::connected`] is called once the
    /// handshake of the layer is complete; if it fails, [`Handler::connect_failed`] says why. The
    /// layer runs under the lock of the simulation, so it must not use that.
    pub fn connect_with<H: Handler + Send + 'static>(
        &self,
        options: &ConnectOptions,
        transport: Transport,
        address: impl ToAddress,
        handler: impl FnOnce(&Connection) -> H,
    ) -> Result<Connection, Error> {
        check_transport(transport)?;
        let has_layer = options.maker().is_some();
        check_layers(has_layer, transport)?;
        let address = address.to_address()?;
        let shared = self.shared()?;
        let info = {
            let world = &mut *self.running(&shared)?;
            self.check_handshakes(world, has_layer)?;
            self.begin_connect(world, transport, address)?
        };
        // The application's code runs without the lock, and the connection waits for its handler.
        let mut unmade = Unmade {
            shared: &shared,
            info,
            handler: None,
        };
        if let Some(maker) = options.maker() {
            let layer = maker.make_layer(Ends::new(info.peer_addr, info.local_addr));
            shared.lock().give_layer(info.key.socket, layer);
        }
        let connection = Connection::new(self.shared.clone(), info);
        unmade.handler = Some(Box::new(handler(&connection)));
        drop(unmade);
        Ok(connection)
    }

    /// Whether another handshake may begin.
    fn check_handshakes(&self, world: &mut World, has_layer: bool) -> Result<(), Error> {
        let network = world.network(self.id);
        if has_layer && !network.may_handshake() {
            let limit = network.limits.max_handshakes();
            return Err(Error::TooManyHandshakes { limit });
        }
        Ok(())
    }

    /// Makes the connection and its socket.
    fn begin_connect(
        &self,
        world: &mut World,
        transport: Transport,
        address: SocketAddr,
    ) -> Result<ConnInfo, Error> {
        let network = world.network(self.id);
        let (host, limits) = (network.host, Arc::clone(&network.limits));
        if !network.reserve(transport) {
            return Err(Error::TooManyConnections {
                limit: limits.max_connections(),
            });
        }
        let id = world.next_id();
        let now = world.kernel.now;
        let bound = if transport == Transport::Tcp {
            world.kernel.connect(host, address)
        } else {
            let local = world.kernel.host(host).address_towards(address.ip());
            let any = SocketAddr::new(local, 0);
            world.kernel.bind_datagrams(host, any, Some(address))
        };
        let (socket, local_addr) = match bound {
            Ok(bound) => bound,
            Err(refusal) => {
                world.network(self.id).open.remove(transport);
                return Err(Error::Connect {
                    transport,
                    address,
                    refusal,
                });
            }
        };
        let owner = if transport == Transport::Tcp {
            let stream = Stream::connecting(id, self.id, &limits, now);
            Owner::Stream(Box::new(stream))
        } else {
            let network = (self.id, &*world.network(self.id));
            let peers = Peers::connecting(network, (local_addr, address), id, now);
            Owner::Peers(Box::new(peers))
        };
        world.owners.insert(socket, owner);
        let slot = 0;
        Ok(ConnInfo {
            key: ConnKey { socket, slot, id },
            transport,
            local_addr,
            peer_addr: address,
        })
    }

    /// Begins to stop: no new connections, what is queued is delivered, every connection is
    /// closed. What is not delivered after `timeout` is lost. Let time pass to see it
    /// happen; [`Network::is_stopped`] tells when it has.
    pub fn stop(&self, timeout: Duration) {
        let Ok(shared) = self.shared() else {
            return;
        };
        let Ok(mut world) = self.running(&shared) else {
            return;
        };
        let at = world.kernel.now.after(timeout);
        world.network(self.id).is_stopping = true;
        world.close_all(self.id, false);
        world.end_acknowledged(self.id);
        world.kernel.stop_deadline_at(at, self.id.0);
    }

    /// Whether it has stopped and its last connection has closed, or its host has crashed.
    pub fn is_stopped(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return true;
        };
        shared.lock().network(self.id).is_stopped()
    }

    /// Keeps the worker thread whose callback calls this busy for so long, beside what its work
    /// [costs](crate::NetworkBuilder::costs): for handlers that compute. Nothing, outside of callbacks of this
    /// network or if its work costs nothing.
    pub fn spend(&self, time: Duration) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut world = shared.at_point();
        let served = world.kernel.iteration.socket;
        let network = served.and_then(|socket| world.owners.get(socket)?.network());
        if network == Some(self.id) && world.network(self.id).has_costs() {
            world.kernel.iteration.spend(time);
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
        metrics.open = network.open.total() as u64;
        metrics.handshaking = network.handshaking as u64;
        metrics.queued_bytes = network.queued_bytes as u64;
        metrics.held_bytes = network.held_bytes as u64;
        metrics.open_limit = network.limits.max_connections() as u64;
        metrics.handshaking_limit = network.limits.max_handshakes() as u64;
        metrics.queued_limit = network.limits.max_queued_total() as u64;
        metrics.held_limit = network.limits.max_held_total() as u64;
        metrics
    }

    /// How long its workers were busy, all together, with what has a [cost](crate::Costs).
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
    fn running<'a>(&self, shared: &'a Shared) -> Result<MutexGuard<'a, World>, Error> {
        let mut world = shared.at_point();
        if world.network(self.id).is_running() {
            Ok(world)
        } else {
            Err(Error::Stopped)
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

/// Whether there are virtual sockets for a transport.
fn check_transport(transport: Transport) -> Result<(), Error> {
    match transport {
        Transport::Tcp | Transport::Udp => Ok(()),
        _ => Err(Error::Unsupported { transport }),
    }
}

/// That only streams have layers.
fn check_layers(has_layers: bool, transport: Transport) -> Result<(), Error> {
    if has_layers && transport != Transport::Tcp {
        return Err(Error::NoLayers { transport });
    }
    Ok(())
}

/// A connection whose handler is being made. When this is dropped it gets the handler; if there is
/// none, since the application panicked, it is aborted.
struct Unmade<'a> {
    shared: &'a Shared,
    info: ConnInfo,
    handler: Option<BoxedHandler>,
}

impl Drop for Unmade<'_> {
    fn drop(&mut self) {
        /// Stands in for a handler that the application failed to make.
        struct NoHandler;
        impl Handler for NoHandler {
            fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
        }

        let key = self.info.key;
        let mut world = self.shared.lock();
        let handler = self.handler.take().unwrap_or_else(|| {
            world.abort(key);
            Box::new(NoHandler)
        });
        match self.info.transport {
            Transport::Tcp => world.give_stream_handler(key.socket, handler),
            _ => world.give_peer_handler(key.socket, handler),
        }
    }
}
