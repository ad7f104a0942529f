//! A network of the smoltcp driver behind the traits of the suite. The driver has no threads
//! and its connections no handles; here is what an application with threads would put around
//! it: a lock, and a list of what its callbacks ask of other connections.

use crate::harness::{self, Accept, Connected};
use cubenet_core::{
    CloseReason, ConnectError, ConnectionId, Frame, Handle, Handler, Instant, Limits, Link,
    Message, SendError, Transport, TransportError,
};
use cubenet_smoltcp::smoltcp::iface::{Interface, SocketStorage};
use cubenet_smoltcp::smoltcp::phy::Device;
use cubenet_smoltcp::smoltcp::socket::udp::PacketMetadata;
use cubenet_smoltcp::{
    DatagramRing, Error, Memory, Network, Peer, PortParts, Remote, Stream, StreamParts,
};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

type Boxed = Box<dyn Handler + Send>;

/// Streams of a network, and places for listeners.
const STREAMS: usize = 24;
const RECEIVE: usize = 128 << 10;
const TRANSMIT: usize = 1 << 20;
const LISTENERS: usize = 8;
/// Ports of a network, and peers, datagrams and bytes of each.
const PORTS: usize = 6;
const PEERS: usize = 32;
const DATAGRAMS: usize = 64;
const BYTES: usize = 256 << 10;

thread_local! {
    /// Whether this thread is inside a poll, and holds the lock.
    static POLLING: Cell<bool> = const { Cell::new(false) };
}

/// A network that can be shared.
pub(crate) struct Shared<D: Device + 'static> {
    network: Mutex<Network<'static, D, Boxed>>,
    /// What callbacks asked of connections.
    asked: Mutex<Vec<(ConnectionId, Ask)>>,
    now: Clock,
}

/// Where the time comes from.
pub(crate) type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

type Ask = Box<dyn FnOnce(&mut dyn Link) + Send>;

fn leak<T: Clone>(value: T, count: usize) -> &'static mut [T] {
    vec![value; count].leak()
}

fn leak_with<T>(value: impl Fn() -> T, count: usize) -> &'static mut [T] {
    (0..count).map(|_| value()).collect::<Vec<_>>().leak()
}

fn port() -> PortParts<'static, Boxed> {
    let ring = || DatagramRing::new(leak(PacketMetadata::EMPTY, DATAGRAMS), leak(0, BYTES));
    PortParts::new(
        leak_with(|| Peer::EMPTY, PEERS),
        leak(cubenet_core::demux::Slot::<Remote>::FREE, PEERS),
        leak(0, PEERS),
        ring(),
        ring(),
    )
}

impl<D: Device + Send + 'static> Shared<D> {
    pub(crate) fn new(
        interface: Interface,
        device: D,
        limits: Limits,
        now: Clock,
    ) -> Result<Arc<Self>, Error> {
        let memory = Memory::new(
            leak_with(|| SocketStorage::EMPTY, STREAMS + PORTS),
            StreamParts::new(
                leak_with(Stream::new, STREAMS),
                leak(0, STREAMS * RECEIVE),
                leak(0, STREAMS * TRANSMIT),
                leak_with(|| None, LISTENERS),
            ),
            leak(0, TRANSMIT),
            8,
        )
        .with_ports(leak_with(|| None, PORTS))
        .with_pending_sends(leak(0, TRANSMIT));
        let mut network = Network::new(interface, device, memory, limits, (1, 2))?;
        for _ in 0..PORTS {
            network.add_port(port())?;
        }
        Ok(Arc::new(Shared {
            network: Mutex::new(network),
            asked: Mutex::default(),
            now,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Network<'static, D, Boxed>> {
        self.network.lock().expect("no thread panicked with it")
    }

    pub(crate) fn poll(&self) {
        let now = (self.now)();
        POLLING.set(true);
        self.lock().poll(now);
        POLLING.set(false);
        for (id, ask) in self.take_asked(|_| true) {
            self.lock().with(id, now, ask);
        }
    }

    pub(crate) fn poll_at(&self) -> Instant {
        let now = (self.now)();
        self.lock().poll_at(now)
    }

    fn take_asked(&self, of: impl Fn(ConnectionId) -> bool) -> Vec<(ConnectionId, Ask)> {
        let mut asked = self.asked.lock().expect("no thread panicked with it");
        asked.extract_if(.., |(id, _)| of(*id)).collect()
    }

    /// Does what was asked of the connection of this link.
    fn do_asked(&self, link: &mut dyn Link) {
        let this = link.id();
        for (_, ask) in self.take_asked(|id| id == this) {
            ask(link);
        }
    }
}

impl<D: Device + Send + 'static> harness::Net for Arc<Shared<D>> {
    fn listen(
        &self,
        transport: Transport,
        address: Option<SocketAddr>,
        accept: Accept,
    ) -> Result<Box<dyn harness::Listener>, String> {
        let shared = Arc::downgrade(self);
        let accepted = Box::leak(Box::new(move |link: &mut dyn Link| {
            let shared = shared.upgrade()?;
            let handler = accept(Arc::new(NetHandle::new(&shared, transport, link)));
            shared.do_asked(link);
            handler
        }));
        let mut network = self.lock();
        let any = || {
            let address = network.stack().interface.ip_addrs()[0].address();
            SocketAddr::new(address.into(), 0)
        };
        let address = address.unwrap_or_else(any);
        let listener = network.listen(transport, address, accepted);
        let listener = listener.map_err(|error| cubenet_core::Report::new(&error).to_string())?;
        Ok(Box::new(Listener {
            shared: Arc::clone(self),
            listener,
        }))
    }

    fn connect(
        &self,
        transport: Transport,
        address: SocketAddr,
        connected: Connected,
    ) -> Result<Arc<dyn harness::Connection>, String> {
        let connecting = Connecting {
            shared: Arc::downgrade(self),
            transport,
            connected: Some(connected),
            handler: None,
        };
        let now = (self.now)();
        let mut network = self.lock();
        let id = network.connect(transport, address, Box::new(connecting), now);
        let id = id.map_err(|error| cubenet_core::Report::new(&error).to_string())?;
        let handle = network.with(id, now, |link| NetHandle::new(self, transport, link));
        Ok(Arc::new(handle.expect("it is on its way")))
    }

    fn stop(&self, deadline: Duration) {
        self.lock().stop(deadline, (self.now)());
    }

    fn open(&self) -> usize {
        self.lock().open()
    }

    fn queued(&self) -> usize {
        // What waits lies in the rings, which are there in any case; nothing is counted.
        0
    }
}

/// The handler of a connect. It asks for the one behind it once the outcome is known.
struct Connecting<D: Device + 'static> {
    shared: Weak<Shared<D>>,
    transport: Transport,
    connected: Option<Connected>,
    handler: Option<Boxed>,
}

impl<D: Device + Send + 'static> Handler for Connecting<D> {
    fn connected(&mut self, link: &mut dyn Link) {
        if let (Some(shared), Some(connected)) = (self.shared.upgrade(), self.connected.take()) {
            self.handler = connected(Ok(Arc::new(NetHandle::new(&shared, self.transport, link))));
            shared.do_asked(link);
        }
        if self.handler.is_none() {
            link.close();
        }
    }

    fn connect_failed(&mut self, error: ConnectError) {
        if let Some(connected) = self.connected.take() {
            connected(Err(error.reason()));
        }
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if let Some(handler) = &mut self.handler {
            handler.received(link, message);
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        if let Some(handler) = &mut self.handler {
            handler.writable(link);
        }
    }

    fn error(&mut self, link: &mut dyn Link, error: TransportError) {
        if let Some(handler) = &mut self.handler {
            handler.error(link, error);
        }
    }

    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        if let Some(handler) = &mut self.handler {
            handler.closed(link, reason);
        }
    }
}

struct Listener<D: Device + 'static> {
    shared: Arc<Shared<D>>,
    listener: cubenet_smoltcp::Listener,
}

impl<D: Device + Send + 'static> harness::Listener for Listener<D> {
    fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    fn close(self: Box<Self>) {
        self.shared.lock().close_listener(self.listener);
    }
}

/// A connection, from outside.
struct NetHandle<D: Device + 'static> {
    shared: Arc<Shared<D>>,
    id: ConnectionId,
    transport: Transport,
    peer: SocketAddr,
    local: SocketAddr,
}

impl<D: Device + 'static> Clone for NetHandle<D> {
    fn clone(&self) -> Self {
        NetHandle {
            shared: Arc::clone(&self.shared),
            ..*self
        }
    }
}

impl<D: Device + Send + 'static> NetHandle<D> {
    fn new(shared: &Arc<Shared<D>>, transport: Transport, link: &dyn Link) -> Self {
        NetHandle {
            shared: Arc::clone(shared),
            id: link.id(),
            transport,
            peer: link.peer_addr(),
            local: link.local_addr(),
        }
    }

    /// Asks something of the connection; `None` if it is over. Inside a callback the answer
    /// is not to be had, and is what it will be if nothing is wrong.
    fn ask<R: Default>(&self, ask: impl FnOnce(&mut dyn Link) -> R + Send + 'static) -> Option<R> {
        if POLLING.get() {
            let mut asked = self
                .shared
                .asked
                .lock()
                .expect("no thread panicked with it");
            asked.push((self.id, Box::new(|link| drop(ask(link)))));
            return Some(R::default());
        }
        let now = (self.shared.now)();
        self.shared.lock().with(self.id, now, ask)
    }

    fn send(
        &self,
        send: impl FnOnce(&mut dyn Link) -> Result<(), SendError> + Send + 'static,
    ) -> Result<(), SendError> {
        // No error by default.
        let outcome = self.ask(move |link| send(link).err());
        match outcome {
            Some(error) => error.map_or(Ok(()), Err),
            None => Err(SendError::Closed),
        }
    }
}

impl<D: Device + Send + 'static> Handle for NetHandle<D> {
    fn send(&self, message: &[u8]) -> Result<(), SendError> {
        let message = message.to_vec();
        self.send(move |link| link.send(&message))
    }

    fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        let frame = frame.clone();
        self.send(move |link| link.send_frame(&frame))
    }

    fn close(&self) {
        self.ask(|link| link.close());
    }

    fn abort(&self) {
        self.ask(|link| link.abort());
    }

    fn is_closed(&self) -> bool {
        self.ask(|link| link.is_closed()).unwrap_or(true)
    }

    fn pause(&self) {
        self.ask(|link| link.pause());
    }

    fn resume(&self) {
        self.ask(|link| link.resume());
    }

    fn queued(&self) -> usize {
        self.ask(|link| link.queued()).unwrap_or(0)
    }

    fn transport(&self) -> Transport {
        self.transport
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn id(&self) -> ConnectionId {
        self.id
    }
}
