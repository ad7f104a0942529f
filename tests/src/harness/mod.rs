//! What a behaviour needs of a driver to be tried on it: networks, peers of plain bytes, and
//! time, which on one driver passes and on another jumps.

mod driven;
pub mod mio;
pub mod sim;
pub mod smoltcp;
pub mod tls;

use crate::PATIENCE;
use cubenet_core::{
    CloseReason, ConnectionId, Frame, Handle, Handler, Limits, Link, Message, SendError, Transport,
    TransportError,
};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use driven::Driven;
use driven::driver;

/// A driver, and a world to try it in.
pub trait Harness {
    /// Starts a network of its own, or says why it cannot.
    fn try_start(&self, limits: Limits) -> Result<Box<dyn Net>, String>;
    /// Starts a network of its own.
    fn start(&self, limits: Limits) -> Box<dyn Net> {
        self.try_start(limits).expect("the limits fit")
    }
    /// Connects to `to` as a peer of plain bytes.
    fn raw_connect(&self, to: SocketAddr) -> Box<dyn RawStream>;
    /// Listens for streams of plain bytes.
    fn raw_listen(&self) -> Box<dyn RawListener>;
    /// A datagram socket with nothing behind it.
    fn raw_datagrams(&self) -> Box<dyn RawDatagrams>;
    /// An address from which nothing ever comes back, kept as long as the value is.
    fn black_hole(&self) -> BlackHole;
    /// Lets this much time pass.
    fn pass(&self, time: Duration);
    /// Lets time pass until `done`, but not for ever. Returns whether it is.
    fn until(&self, done: &mut dyn FnMut() -> bool) -> bool;
    /// The time.
    fn now(&self) -> Duration;
    /// How late something may be that is to happen at a time.
    fn slack(&self) -> Duration;
}

/// An address that answers no SYN.
pub struct BlackHole {
    /// The address.
    pub address: SocketAddr,
    /// What makes it one.
    pub kept: Box<dyn std::any::Any>,
}

/// Decides about a new connection.
pub type Accept = Box<dyn Fn(Arc<dyn Connection>) -> Option<Box<dyn Handler + Send>> + Send + Sync>;
/// Sees how a connect went.
pub type Connected = Box<
    dyn FnOnce(Result<Arc<dyn Connection>, CloseReason>) -> Option<Box<dyn Handler + Send>> + Send,
>;

/// A driver's network.
pub trait Net {
    /// Listens on a port of its choice, or on this address.
    fn listen(
        &self,
        transport: Transport,
        address: Option<SocketAddr>,
        accept: Accept,
    ) -> Result<Box<dyn Listener>, String>;
    /// Connects.
    fn connect(
        &self,
        transport: Transport,
        address: SocketAddr,
        connected: Connected,
    ) -> Result<Arc<dyn Connection>, String>;
    /// Begins to stop.
    fn stop(&self, deadline: Duration);
    /// Connections open now.
    fn open(&self) -> usize;
    /// Bytes that wait to be sent on all connections now.
    fn queued(&self) -> usize;
}

/// A driver's listener.
pub trait Listener {
    /// Its address.
    fn local_addr(&self) -> SocketAddr;
    /// Accepts no more.
    fn close(self: Box<Self>);
}

/// Any driver's handle of a connection: what [`Handle`] has, as an object.
pub trait Connection: Send + Sync {
    /// See [`Handle::send`].
    fn send(&self, message: &[u8]) -> Result<(), SendError>;
    /// See [`Handle::send_frame`].
    fn send_frame(&self, frame: &Frame) -> Result<(), SendError>;
    /// See [`Handle::close`].
    fn close(&self);
    /// See [`Handle::abort`].
    fn abort(&self);
    /// See [`Handle::is_closed`].
    fn is_closed(&self) -> bool;
    /// See [`Handle::pause`].
    fn pause(&self);
    /// See [`Handle::resume`].
    fn resume(&self);
    /// See [`Handle::queued`].
    fn queued(&self) -> usize;
    /// See [`Handle::peer_addr`].
    fn peer_addr(&self) -> SocketAddr;
    /// See [`Handle::local_addr`].
    fn local_addr(&self) -> SocketAddr;
    /// See [`Handle::id`].
    fn id(&self) -> ConnectionId;
}

impl<H: Handle> Connection for H {
    fn send(&self, message: &[u8]) -> Result<(), SendError> {
        Handle::send(self, message)
    }

    fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        Handle::send_frame(self, frame)
    }

    fn close(&self) {
        Handle::close(self);
    }

    fn abort(&self) {
        Handle::abort(self);
    }

    fn is_closed(&self) -> bool {
        Handle::is_closed(self)
    }

    fn pause(&self) {
        Handle::pause(self);
    }

    fn resume(&self) {
        Handle::resume(self);
    }

    fn queued(&self) -> usize {
        Handle::queued(self)
    }

    fn peer_addr(&self) -> SocketAddr {
        Handle::peer_addr(self)
    }

    fn local_addr(&self) -> SocketAddr {
        Handle::local_addr(self)
    }

    fn id(&self) -> ConnectionId {
        Handle::id(self)
    }
}

/// A stream of plain bytes.
pub trait RawStream {
    /// Writes; what is not taken at once follows.
    fn write(&self, bytes: &[u8]);
    /// Ends this direction.
    fn shutdown(&self);
    /// Closes in order.
    fn close(&self);
    /// Resets.
    fn reset(&self);
    /// Reads no more.
    fn stop_reading(&self);
    /// Reads again.
    fn read_on(&self);
    /// Everything that has arrived.
    fn received(&self) -> Vec<u8>;
    /// How the other side ended, if it has: whether in order.
    fn ended_in_order(&self) -> Option<bool>;
}

/// A listener for streams of plain bytes.
pub trait RawListener {
    /// Its address.
    fn local_addr(&self) -> SocketAddr;
    /// The next connection, if there is one.
    fn accept(&self) -> Option<Box<dyn RawStream>>;
}

/// A datagram socket with nothing behind it.
pub trait RawDatagrams {
    /// Its address.
    fn local_addr(&self) -> SocketAddr;
    /// Sends a datagram.
    fn send_to(&self, to: SocketAddr, datagram: &[u8]);
    /// Everything that has arrived.
    fn received(&self) -> Vec<Vec<u8>>;
}

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It was accepted, or connected.
    Opened,
    /// The connect failed.
    Failed(CloseReason),
    /// A message arrived.
    Received(Vec<u8>),
    /// There is room again.
    Writable,
    /// Something went wrong.
    Error(TransportError),
    /// It is over.
    Closed(CloseReason),
    /// Its handler was dropped.
    Dropped,
    /// Something was not as it must be.
    Broken(&'static str),
}

/// What the connections of one side saw, in order, and their handles.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    handles: Vec<Arc<dyn Connection>>,
}

impl Log {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("no thread panicked with it")
    }

    fn add(&self, event: Event) {
        self.seen().events.push(event);
    }

    /// Everything so far.
    pub fn events(&self) -> Vec<Event> {
        self.seen().events.clone()
    }

    /// The messages so far.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        let events = self.events().into_iter();
        let message = |event| match event {
            Event::Received(message) => Some(message),
            _ => None,
        };
        events.filter_map(message).collect()
    }

    /// The ends so far.
    pub fn closed(&self) -> Vec<CloseReason> {
        let events = self.events().into_iter();
        let reason = |event| match event {
            Event::Closed(reason) | Event::Failed(reason) => Some(reason),
            _ => None,
        };
        events.filter_map(reason).collect()
    }

    /// How often this happened.
    pub fn count(&self, event: &Event) -> usize {
        self.events().iter().filter(|other| *other == event).count()
    }

    /// The handles so far.
    pub fn handles(&self) -> Vec<Arc<dyn Connection>> {
        self.seen().handles.clone()
    }
}

/// What a recording handler does with a message before it records it.
pub type Act = fn(&mut dyn Link, &[u8]);

/// Does nothing.
pub fn ignore(_link: &mut dyn Link, _message: &[u8]) {}

/// Sends a message back.
pub fn echo(link: &mut dyn Link, message: &[u8]) {
    let _ = link.send(message);
}

/// A handler that records everything.
pub struct Recorder {
    log: Log,
    act: Act,
}

impl Recorder {
    /// One that records to `log`.
    pub fn new(log: &Log, act: Act) -> Self {
        Recorder {
            log: log.clone(),
            act,
        }
    }
}

impl Handler for Recorder {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.log.add(Event::Received(message.to_vec()));
        (self.act)(link, &message);
    }

    fn writable(&mut self, _link: &mut dyn Link) {
        self.log.add(Event::Writable);
    }

    fn error(&mut self, _link: &mut dyn Link, error: TransportError) {
        self.log.add(Event::Error(error));
    }

    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        let inert = link.is_closed() && link.send(b"late") == Err(SendError::Closed);
        // A panic would end here unnoticed.
        self.log.add(if inert {
            Event::Closed(reason)
        } else {
            Event::Broken("a connection takes messages in `closed`")
        });
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.log.add(Event::Dropped);
    }
}

/// A world with a network that listens and one that connects.
pub struct Scene<'a> {
    /// The world.
    pub harness: &'a dyn Harness,
    /// Listens.
    pub server: Box<dyn Net>,
    /// Connects.
    pub client: Box<dyn Net>,
}

impl<'a> Scene<'a> {
    /// Both networks with the default limits.
    pub fn new(harness: &'a dyn Harness) -> Self {
        Scene::with(harness, Limits::default())
    }

    /// The network that listens has these limits.
    pub fn with(harness: &'a dyn Harness, limits: Limits) -> Self {
        Scene {
            harness,
            server: harness.start(limits),
            client: harness.start(Limits::default()),
        }
    }

    /// The network that connects has these limits.
    pub fn connecting_with(harness: &'a dyn Harness, limits: Limits) -> Self {
        Scene {
            harness,
            server: harness.start(Limits::default()),
            client: harness.start(limits),
        }
    }

    /// Listens with recorders that do this.
    pub fn listen(&self, transport: Transport, act: Act) -> (SocketAddr, Log) {
        self.listen_first(transport, act, |_| true)
    }

    /// The same; `first` is done with each new connection, and says whether it is wanted.
    pub fn listen_first(
        &self,
        transport: Transport,
        act: Act,
        first: impl Fn(&dyn Connection) -> bool + Send + Sync + 'static,
    ) -> (SocketAddr, Log) {
        let (listener, log) = self.listener(transport, act, first);
        (listener.local_addr(), log)
    }

    /// The same, with the listener.
    pub fn listener(
        &self,
        transport: Transport,
        act: Act,
        first: impl Fn(&dyn Connection) -> bool + Send + Sync + 'static,
    ) -> (Box<dyn Listener>, Log) {
        let log = Log::default();
        let of_callback = log.clone();
        let accept: Accept = Box::new(move |connection| {
            of_callback.add(Event::Opened);
            of_callback.seen().handles.push(Arc::clone(&connection));
            let wanted = first(&*connection);
            wanted.then(|| Box::new(Recorder::new(&of_callback, act)) as _)
        });
        let listener = self.server.listen(transport, None, accept);
        (listener.expect("it can be listened on"), log)
    }

    /// Connects with a recorder that does this.
    pub fn connect(
        &self,
        transport: Transport,
        to: SocketAddr,
        act: Act,
    ) -> (Arc<dyn Connection>, Log) {
        self.connect_first(transport, to, act, |_| true)
    }

    /// The same; `first` is done with the connection once it is there.
    pub fn connect_first(
        &self,
        transport: Transport,
        to: SocketAddr,
        act: Act,
        first: impl FnOnce(&dyn Connection) -> bool + Send + 'static,
    ) -> (Arc<dyn Connection>, Log) {
        let log = Log::default();
        let of_callback = log.clone();
        let connected: Connected = Box::new(move |outcome| match outcome {
            Ok(connection) => {
                of_callback.add(Event::Opened);
                let wanted = first(&*connection);
                wanted.then(|| Box::new(Recorder::new(&of_callback, act)) as _)
            }
            Err(reason) => {
                of_callback.add(Event::Failed(reason));
                None
            }
        });
        let connection = self.client.connect(transport, to, connected);
        (connection.expect("the connect can begin"), log)
    }

    /// Both ends of an open connection. Over UDP the end that connected has greeted the other.
    pub fn pair(&self, transport: Transport, act: Act) -> Pair {
        let (address, server) = self.listen(transport, act);
        let (here, client) = self.connect(transport, address, ignore);
        if transport == Transport::Udp {
            here.send(b"hello").expect("it can be sent");
        }
        self.until("both ends are open", || {
            client.count(&Event::Opened) == 1 && server.handles().len() == 1
        });
        if transport == Transport::Udp {
            self.until("the greeting arrives", || !server.messages().is_empty());
        }
        server.seen().events.clear();
        client.seen().events.clear();
        let there = Arc::clone(&server.handles()[0]);
        Pair {
            here,
            client,
            there,
            server,
            address,
        }
    }

    /// Lets time pass until `done`; fails if that never comes.
    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        assert!(self.harness.until(&mut done), "never: {what}");
    }

    /// Lets a little time pass, in which what must not happen would.
    pub fn a_while(&self) {
        self.harness.pass(Duration::from_millis(120));
    }

    /// Lets time pass until `done`, which must be at `time` after `since`, and no sooner.
    pub fn at(&self, since: Duration, time: Duration, what: &str, done: impl FnMut() -> bool) {
        self.until(what, done);
        let took = self.harness.now().saturating_sub(since);
        // What began just before we looked at the clock may end just before its time.
        assert!(
            took + Duration::from_millis(30) >= time,
            "{what}: too soon, {took:?}"
        );
        let latest = time + self.harness.slack();
        assert!(took <= latest, "{what}: too late, {took:?}");
    }
}

/// Both ends of a connection.
pub struct Pair {
    /// The end that connected.
    pub here: Arc<dyn Connection>,
    /// What it saw.
    pub client: Log,
    /// The end that accepted.
    pub there: Arc<dyn Connection>,
    /// What it saw.
    pub server: Log,
    /// Where that listens.
    pub address: SocketAddr,
}

/// How long [`Harness::until`] waits.
pub const LONGEST: Duration = PATIENCE;
