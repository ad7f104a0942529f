//! What the tests share: a handler that reports everything that happens to it, patience,
//! and counts of what the process holds.

pub mod allocation;
pub mod authority;
pub mod harness;
mod late;
pub mod layer;
pub mod process;
pub mod services;
pub mod system;
pub mod tls;

use cubenet_mio::{
    CloseReason, ConnectError, ConnectOptions, Connection, Handler, Limits, Link, ListenOptions,
    MakeLayer, Message, Network, Report, Transport, TransportError,
};
pub use late::{Late, late};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen. Generous: a slow machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What happened to a connection.
#[derive(Debug)]
pub enum Event {
    /// It was accepted, or connected.
    Opened(Connection),
    /// The connect failed.
    Failed(ConnectError),
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
}

/// A handler that reports all its callbacks, and else does only what `act` says.
pub struct Reporter {
    events: Sender<Event>,
    act: Act,
}

/// What a reporter does with a message, before it reports it.
pub type Act = fn(&mut dyn Link, &[u8]);

impl Handler for Reporter {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        (self.act)(link, &message);
        self.report(Event::Received(message.to_vec()));
    }

    fn writable(&mut self, _link: &mut dyn Link) {
        self.report(Event::Writable);
    }

    fn error(&mut self, _link: &mut dyn Link, error: TransportError) {
        self.report(Event::Error(error));
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.report(Event::Closed(reason));
    }
}

impl Reporter {
    /// Another that reports to the same test and does the same.
    #[must_use]
    pub fn another(&self) -> Reporter {
        Reporter {
            events: self.events.clone(),
            act: self.act,
        }
    }

    fn report(&self, event: Event) {
        // A test that has seen enough no longer listens.
        let _ = self.events.send(event);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.report(Event::Dropped);
    }
}

/// Sends a message back.
pub fn echo(link: &mut dyn Link, message: &[u8]) {
    link.send(message).expect("the echo is accepted");
}

/// Does nothing.
pub fn ignore(_link: &mut dyn Link, _message: &[u8]) {}

/// The events of the connections that report to it.
pub struct Reports {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

impl Default for Reports {
    fn default() -> Self {
        let (sender, receiver) = channel();
        Reports { sender, receiver }
    }
}

impl Reports {
    /// Listens, on a port of the system's choice, with reporters.
    pub fn listen(&self, network: &Network, transport: Transport, act: Act) -> SocketAddr {
        self.listen_with(ListenOptions::new(), network, transport, act)
    }

    /// The same with options.
    pub fn listen_with(
        &self,
        options: ListenOptions,
        network: &Network,
        transport: Transport,
        act: Act,
    ) -> SocketAddr {
        let events = self.sender.clone();
        let accepted = move |connection: &Connection| {
            let _ = events.send(Event::Opened(connection.clone()));
            Some(Reporter {
                events: events.clone(),
                act,
            })
        };
        let listener = network.listen_with(options, transport, "127.0.0.1:0", accepted);
        listener.expect("loopback can be listened on").local_addr()
    }

    /// Connects to `address` with a reporter.
    pub fn connect(
        &self,
        network: &Network,
        transport: Transport,
        address: SocketAddr,
        act: Act,
    ) -> Connection {
        self.connect_with(&ConnectOptions::new(), network, transport, address, act)
    }

    /// The same with options.
    pub fn connect_with(
        &self,
        options: &ConnectOptions,
        network: &Network,
        transport: Transport,
        address: SocketAddr,
        act: Act,
    ) -> Connection {
        let events = self.sender.clone();
        let connected = move |outcome: Result<&Connection, ConnectError>| match outcome {
            Ok(connection) => {
                let _ = events.send(Event::Opened(connection.clone()));
                Some(Reporter { events, act })
            }
            Err(error) => {
                let _ = events.send(Event::Failed(error));
                None
            }
        };
        let connection = network.connect_with(options, transport, address, late(connected));
        connection.expect("the connect can begin")
    }

    /// Reports that a connection opened whose handler the test makes itself.
    pub fn opener(&self) -> impl Fn(&Connection) + Send + Sync + 'static {
        let events = self.sender.clone();
        move |connection| {
            let _ = events.send(Event::Opened(connection.clone()));
        }
    }

    /// A reporter for a handler that a test makes itself.
    pub fn reporter(&self, act: Act) -> Reporter {
        Reporter {
            events: self.sender.clone(),
            act,
        }
    }

    /// The next event.
    pub fn next(&self) -> Event {
        self.next_within(PATIENCE).expect("something happens")
    }

    /// The next event, if there is one in this time.
    pub fn next_within(&self, patience: Duration) -> Option<Event> {
        self.receiver.recv_timeout(patience).ok()
    }

    /// Listens for streams with a layer.
    pub fn listen_layered(
        network: &Network,
        layer: impl MakeLayer + 'static,
        act: Act,
    ) -> (Reports, SocketAddr) {
        let reports = Reports::default();
        let options = ListenOptions::new().layer(layer);
        let address = reports.listen_with(options, network, Transport::Tcp, act);
        (reports, address)
    }

    /// Connects with a layer.
    pub fn connect_layered(
        network: &Network,
        address: SocketAddr,
        layer: impl MakeLayer + 'static,
    ) -> (Reports, Connection) {
        let reports = Reports::default();
        let options = ConnectOptions::new().layer(layer);
        let connection = reports.connect_with(&options, network, Transport::Tcp, address, ignore);
        (reports, connection)
    }

    /// The next event, which is a connect that failed: why, and everything that is said of it.
    pub fn failed(&self) -> (CloseReason, String) {
        match self.next() {
            Event::Failed(error) => (error.reason(), Report::new(&error).to_string()),
            other => panic!("instead of a failure: {other:?}"),
        }
    }

    /// The next event, which opens a connection.
    pub fn opened(&self) -> Connection {
        match self.next() {
            Event::Opened(connection) => connection,
            other => panic!("instead of opening: {other:?}"),
        }
    }

    /// The next event, which is a message.
    pub fn received(&self) -> Vec<u8> {
        match self.next() {
            Event::Received(message) => message,
            other => panic!("instead of a message: {other:?}"),
        }
    }

    /// The next events, which are the end of a connection and of its handler.
    pub fn closed(&self) -> CloseReason {
        let reason = match self.next() {
            Event::Closed(reason) => reason,
            other => panic!("instead of the close: {other:?}"),
        };
        match self.next() {
            Event::Dropped => reason,
            other => panic!("after the close: {other:?}"),
        }
    }

    /// The end of a connection, whatever came before it.
    pub fn closed_at_last(&self) -> CloseReason {
        loop {
            if let Event::Closed(reason) = self.next() {
                return reason;
            }
        }
    }

    /// That nothing happens for a while.
    pub fn nothing(&self) {
        let event = self.next_within(Duration::from_millis(150));
        assert!(event.is_none(), "{event:?}");
    }
}

/// A connection over TCP that was accepted, its raw peer, and what its handler hears.
pub fn accepted(network: &Network) -> (Connection, RawClient, Reports) {
    let reports = Reports::default();
    let address = reports.listen(network, Transport::Tcp, ignore);
    let peer = RawClient::connect(address);
    (reports.opened(), peer, reports)
}

/// A network of two workers with the default limits.
pub fn network() -> Network {
    network_with(Limits::default())
}

/// A network of two workers whose streams have small buffers in the kernel, so that little
/// fills them.
pub fn network_with(limits: Limits) -> Network {
    try_network_with(limits).expect("the network starts")
}

/// A network of one worker whose streams have buffers of the system's own choice, which grow.
pub fn one_worker(limits: Limits) -> Network {
    let builder = Network::builder().workers(1).limits(limits);
    builder.start().expect("the network starts")
}

/// What [`network_with`] returns, or why it does not start.
pub fn try_network_with(limits: Limits) -> Result<Network, cubenet_mio::Error> {
    let builder = Network::builder().workers(2).limits(limits);
    builder.stream_buffer(16 << 10).start()
}

/// A client of plain blocking sockets that speaks the stream's wire format.
pub struct RawClient {
    /// The socket.
    pub stream: TcpStream,
}

impl RawClient {
    /// Connects, with a small buffer in the kernel, so that little fills it on any machine.
    pub fn connect(address: SocketAddr) -> Self {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        socket
            .set_recv_buffer_size(16 << 10)
            .expect("a socket option");
        socket.connect(&address.into()).expect("the server listens");
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket option");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("a socket option");
        RawClient { stream }
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Sends a message.
    pub fn send(&mut self, message: &[u8]) {
        self.write(&framed(message));
    }

    /// Receives a message.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut header = [0; 2];
        self.stream
            .read_exact(&mut header)
            .expect("a header arrives");
        let mut message = vec![0; usize::from(u16::from_be_bytes(header))];
        self.stream
            .read_exact(&mut message)
            .expect("a payload arrives");
        message
    }

    /// The next bytes, or nothing if the stream ends before there are any.
    pub fn some(&mut self) -> Vec<u8> {
        let mut buffer = [0; 1_000];
        let len = self.stream.read(&mut buffer).unwrap_or(0);
        buffer[..len].to_vec()
    }

    /// Everything up to the end of the stream, and whether that was an orderly end.
    pub fn rest(&mut self) -> (Vec<u8>, bool) {
        let mut rest = Vec::new();
        let end = self.stream.read_to_end(&mut rest);
        (rest, end.is_ok())
    }
}

/// An address that answers no SYN: a listener whose queue is full drops further ones
/// without a word.
pub struct BlackHole {
    /// The address.
    pub address: SocketAddr,
    _listener: socket2::Socket,
    _fills_the_queue: TcpStream,
}

impl BlackHole {
    /// One on loopback.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let listener = listener.expect("a socket");
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any_port.into()).expect("a free port");
        listener.listen(0).expect("it can be listened on");
        let address = listener
            .local_addr()
            .ok()
            .and_then(|local| local.as_socket());
        let address = address.expect("it is bound");
        BlackHole {
            address,
            _fills_the_queue: TcpStream::connect(address).expect("the queue has room for one"),
            _listener: listener,
        }
    }
}

/// A message with its header.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).expect("it fits a frame");
    [&len.to_be_bytes()[..], message].concat()
}

/// Bytes that are not all alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A port of loopback for a program that cannot be given a socket. It is below those that the system
/// gives to others, and no other test of this process gets the same.
pub fn unused_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let own = (std::process::id() % 1_000) as u16 * 10;
        let port = 20_000 + (own + NEXT.fetch_add(1, Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Whether a tool is there. If it is not, says so past the test harness, or fails if
/// `CUBENET_REQUIRE_TOOLS` is set.
pub fn have(tool: &str, probe: &mut Command) -> bool {
    let probe = probe
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let have = probe.status().is_ok_and(|status| status.success());
    if !have {
        assert!(
            std::env::var_os("CUBENET_REQUIRE_TOOLS").is_none(),
            "there is no {tool}"
        );
        let _ = writeln!(std::io::stderr(), "skipped: there is no {tool}");
    }
    have
}

/// The code in the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
