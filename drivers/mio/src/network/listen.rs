//! How a network listens.

use super::listen_options::{ListenOptions, limits_of_listener};
use super::listen_sockets::ListenSockets;
use super::listener::{Listener, ListenerSocket};
use super::listening::Listening;
use super::shared::next_id;
use super::{Network, check_layers, stopped};
use crate::address::canonical;
use crate::connection::Connection;
use crate::error::Error;
use crate::log::debug;
use crate::network::endpoint::ToEndpoint;
use crate::tcp::listener::StreamListener;
use crate::udp::group::SocketGroup;
use crate::udp::socket::DatagramSocket;
use crate::worker::mailbox::{Command, Target};
use cubenet_core::{FullPolicy, Handler, Transport};
use mio::net::{TcpListener, UdpSocket};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

impl Network {
    /// Listens on `address`. Port 0 lets the system choose one; see
    /// [`Listener::local_addr`].
    ///
    /// `accepted` is called on a worker's thread for each new peer, before anything of it
    /// is delivered, and returns its handler, or `None` to turn it away. It may be called
    /// on several threads at once. A datagram peer that was turned away is asked about
    /// again when it sends again.
    ///
    /// Blocks while a host name is resolved; an address in numbers does not block. If a name has
    /// several addresses, the first that the system accepts is used.
    ///
    /// # Errors
    ///
    /// [`Error::Address`] (the text is no address, or a name was given on a thread of a network),
    /// [`Error::Listen`], [`Error::Limits`] (of the options), [`Error::Unsupported`],
    /// [`Error::Stopped`].
    pub fn listen<H: Handler + Send + 'static>(
        &self,
        transport: Transport,
        address: impl ToEndpoint,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        self.listen_with(ListenOptions::new(), transport, address, accepted)
    }

    /// Like [`Network::listen`], with limits or an admission hook of this listener's own.
    pub fn listen_with<H: Handler + Send + 'static>(
        &self,
        options: ListenOptions,
        transport: Transport,
        address: impl ToEndpoint,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        let (listening, targets) = self.begin_listening(options, transport, accepted)?;
        let mut failed = None;
        for address in address.to_endpoint()?.addresses() {
            self.check_running()?;
            let options = &self.inner.shared.options;
            let listened = match transport {
                Transport::Tcp => {
                    let socket = options.listen_stream(*address);
                    socket.and_then(|socket| self.listen_stream(socket, &listening, &targets))
                }
                Transport::Udp => {
                    let limits = &targets[0].home.limits;
                    // What is idle longest is known of each socket, not of all.
                    let spreads =
                        options.spread_datagrams && limits.full_policy() == FullPolicy::Refuse;
                    let most = if spreads { targets.len() } else { 1 };
                    let sockets = options.listen_datagrams(*address, most);
                    sockets
                        .and_then(|sockets| Self::listen_datagrams(sockets, &listening, &targets))
                }
                _ => return Err(Error::Unsupported { transport }),
            };
            match self.listener(transport, *address, listened, &listening, &targets) {
                Err(error @ Error::Listen { .. }) => failed = Some(error),
                outcome => return outcome,
            }
        }
        Err(failed.unwrap_or(Error::Stopped))
    }

    /// Listens on sockets that listen already: of systemd, say, or of the process that this one
    /// replaces. Options of the [`Builder`](crate::Builder) that concern the binding of a socket are of no effect.
    ///
    /// Each datagram socket has one worker; if there are more sockets than workers, a worker has several. See
    /// [`Network::listen`] for `accepted`.
    ///
    /// # Errors
    ///
    /// [`Error::Listen`] if a socket is not what it is said to be, if the sockets of datagrams have not one
    /// address, or if there are several and the [full policy](cubenet_core::Limits::full_policy) evicts; [`Error::Limits`] (of the options), [`Error::NoLayers`], [`Error::Stopped`].
    pub fn listen_on<H: Handler + Send + 'static>(
        &self,
        options: ListenOptions,
        sockets: impl Into<ListenSockets>,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<Listener, Error> {
        let sockets = sockets.into();
        let transport = sockets.transport();
        let (listening, targets) = self.begin_listening(options, transport, accepted)?;
        self.check_running()?;
        let options = &self.inner.shared.options;
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = sockets.local_addr().unwrap_or(unknown);
        let policy = targets[0].home.limits.full_policy();
        let listened = sockets.check(policy).and_then(|()| {
            if transport == Transport::Tcp {
                let socket = sockets.into_stream(options)?;
                return self.listen_stream(socket, &listening, &targets);
            }
            let sockets = sockets.into_datagrams(options)?;
            Self::listen_datagrams(sockets, &listening, &targets)
        });
        self.listener(transport, address, listened, &listening, &targets)
    }

    /// The application's side of a listener, and who may get its connections.
    fn begin_listening<H: Handler + Send + 'static>(
        &self,
        options: ListenOptions,
        transport: Transport,
        accepted: impl Fn(&Connection) -> Option<H> + Send + Sync + 'static,
    ) -> Result<(Arc<Listening>, Vec<Target>), Error> {
        let accept = move |connection: &Connection| Some(Box::new(accepted(connection)?) as _);
        check_layers(options.layer.is_some(), transport)?;
        let listening = Listening::new(Box::new(accept), options.admit, options.layer);
        let limits = match options.limits {
            None => Arc::clone(&self.inner.targets[0].home.limits),
            Some(limits) => Arc::new(limits_of_listener(&limits, &self.inner.shared.limits)?),
        };
        // Of its own, since they count for it.
        Ok((listening, Target::each(&self.inner.workers, &limits)))
    }

    /// What the application has of a listener.
    fn listener(
        &self,
        transport: Transport,
        address: SocketAddr,
        listened: io::Result<(SocketAddr, ListenerSocket)>,
        listening: &Arc<Listening>,
        targets: &[Target],
    ) -> Result<Listener, Error> {
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
        let homes = targets.iter().map(|target| Arc::clone(&target.home));
        Ok(Listener {
            transport,
            local,
            listening: Arc::clone(listening),
            homes: homes.collect(),
            socket,
        })
    }

    fn listen_stream(
        &self,
        socket: TcpListener,
        listening: &Arc<Listening>,
        targets: &[Target],
    ) -> io::Result<(SocketAddr, ListenerSocket)> {
        let local = socket.local_addr()?;
        let listening = Arc::clone(listening);
        let acceptors = self.inner.acceptors();
        let workers = acceptors.iter().map(|acceptor| &acceptor.worker);
        let listener = StreamListener::new(next_id(), socket, listening, workers)?;
        let targets: Arc<[Target]> = targets.into();
        for (nth, acceptor) in acceptors.iter().enumerate() {
            let (listener, targets) = (Arc::clone(&listener), Arc::clone(&targets));
            let command = Command::ListenStreams(listener.clone(), nth, targets);
            if acceptor.post(command).is_err() {
                listener.close();
                return Err(stopped());
            }
        }
        Ok((local, ListenerSocket::Stream(listener)))
    }

    fn listen_datagrams(
        sockets: Vec<UdpSocket>,
        listening: &Arc<Listening>,
        targets: &[Target],
    ) -> io::Result<(SocketAddr, ListenerSocket)> {
        let local = sockets[0].local_addr()?;
        let targets = match sockets.len() {
            1 => std::slice::from_ref(Target::least_loaded(targets)),
            _ => targets,
        };
        let group = Arc::<SocketGroup<DatagramSocket>>::default();
        for (socket, Target { home, mailbox }) in sockets.into_iter().zip(targets.iter().cycle()) {
            let socket = DatagramSocket::listening(home, socket, &group);
            let posted = socket.and_then(|socket| {
                let command = Command::Listen(socket, Arc::clone(listening));
                mailbox.post(command).map_err(|_| stopped())
            });
            if let Err(error) = posted {
                group.each(DatagramSocket::close);
                return Err(error);
            }
        }
        Ok((local, ListenerSocket::Datagrams(group)))
    }
}
