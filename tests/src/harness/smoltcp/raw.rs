//! Peers of plain bytes: sockets of smoltcp's own, on hosts of their own.

use super::net::Clock;
use super::{Host, Wire};
use crate::harness;
use cubenet_core::Instant;
use cubenet_smoltcp::smoltcp::iface::{Interface, SocketHandle, SocketSet};
use cubenet_smoltcp::smoltcp::socket::{tcp, udp};
use cubenet_smoltcp::smoltcp::time;
use cubenet_smoltcp::smoltcp::wire::IpEndpoint;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

/// The port on which a plain listener listens, and from which plain peers speak.
const PORT: u16 = 5_000;
/// Sockets that wait for clients.
const BACKLOG: usize = 4;
/// So that little fills it.
const RECEIVE: usize = 16 << 10;
const TRANSMIT: usize = 64 << 10;

/// A host with plain sockets.
#[derive(Clone)]
pub(super) struct RawHost {
    inner: Arc<Mutex<Inner>>,
    clock: Clock,
}

struct Inner {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    streams: Vec<Stream>,
    datagrams: Vec<Vec<u8>>,
}

struct Stream {
    handle: SocketHandle,
    unwritten: Vec<u8>,
    to_end: bool,
    stopped: bool,
    received: Vec<u8>,
    /// It has been connected.
    begun: bool,
    ended_in_order: Option<bool>,
}

impl Stream {
    fn new(handle: SocketHandle) -> Self {
        Stream {
            handle,
            unwritten: Vec::new(),
            to_end: false,
            stopped: false,
            received: Vec::new(),
            begun: false,
            ended_in_order: None,
        }
    }

    fn go_on(&mut self, sockets: &mut SocketSet<'static>) {
        use tcp::State::{
            CloseWait, Closed, Closing, LastAck, Listen, SynReceived, SynSent, TimeWait,
        };
        let socket = sockets.get_mut::<tcp::Socket>(self.handle);
        if matches!(socket.state(), Listen | SynSent | SynReceived) {
            return;
        }
        self.begun |= socket.state() != Closed;
        let written = socket.send_slice(&self.unwritten).unwrap_or(0);
        self.unwritten.drain(..written);
        if self.unwritten.is_empty() && self.to_end {
            socket.close();
        }
        while !self.stopped && socket.can_recv() {
            let received = &mut self.received;
            let _ = socket.recv(|bytes| {
                received.extend_from_slice(bytes);
                (bytes.len(), ())
            });
        }
        if self.ended_in_order.is_none() && !socket.can_recv() {
            self.ended_in_order = match socket.state() {
                CloseWait | Closing | LastAck | TimeWait => Some(true),
                Closed => Some(false),
                _ => None,
            };
        }
    }
}

fn endpoint(address: SocketAddr) -> IpEndpoint {
    match address {
        SocketAddr::V4(address) => address.into(),
        SocketAddr::V6(_) => panic!("the hosts have IPv4 addresses"),
    }
}

fn at(now: Instant) -> time::Instant {
    time::Instant::from_micros(now.as_micros().cast_signed())
}

impl Inner {
    fn go_on(&mut self) {
        for stream in &mut self.streams {
            stream.go_on(&mut self.sockets);
        }
        for (_, socket) in self.sockets.iter_mut() {
            if let cubenet_smoltcp::smoltcp::socket::Socket::Udp(socket) = socket {
                while let Ok((datagram, _)) = socket.recv() {
                    self.datagrams.push(datagram.to_vec());
                }
            }
        }
    }

    fn tcp(&mut self, nth: usize) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.streams[nth].handle)
    }

    fn add_stream(&mut self) -> usize {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; RECEIVE]),
            tcp::SocketBuffer::new(vec![0; TRANSMIT]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.sockets.add(socket);
        self.streams.push(Stream::new(handle));
        self.streams.len() - 1
    }
}

impl Host for RawHost {
    fn poll(&self) {
        let mut inner = self.lock();
        let Inner {
            interface,
            wire,
            sockets,
            ..
        } = &mut *inner;
        interface.poll(at((self.clock)()), wire, sockets);
        inner.go_on();
    }

    fn poll_at(&self) -> Instant {
        let now = at((self.clock)());
        let mut inner = self.lock();
        let Inner {
            interface, sockets, ..
        } = &mut *inner;
        let at = interface.poll_at(now, sockets);
        at.map_or(Instant::NEVER, |at| {
            Instant::from_micros(at.total_micros().cast_unsigned())
        })
    }
}

impl RawHost {
    pub(super) fn new(interface: Interface, wire: Wire, clock: Clock) -> Self {
        let inner = Inner {
            interface,
            wire,
            sockets: SocketSet::new(vec![]),
            streams: Vec::new(),
            datagrams: Vec::new(),
        };
        RawHost {
            inner: Arc::new(Mutex::new(inner)),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panicked with it")
    }

    fn local_addr(&self) -> SocketAddr {
        let inner = self.lock();
        SocketAddr::new(inner.interface.ip_addrs()[0].address().into(), PORT)
    }

    pub(super) fn connect(self, to: SocketAddr) -> RawStream {
        let mut inner = self.lock();
        let nth = inner.add_stream();
        let Inner {
            interface,
            sockets,
            streams,
            ..
        } = &mut *inner;
        let socket = sockets.get_mut::<tcp::Socket>(streams[nth].handle);
        let to = endpoint(to);
        socket
            .connect(interface.context(), to, PORT)
            .expect("it can be connected to");
        drop(inner);
        RawStream { host: self, nth }
    }

    pub(super) fn listen(self) -> RawListener {
        for _ in 0..BACKLOG {
            let mut inner = self.lock();
            let nth = inner.add_stream();
            inner.tcp(nth).listen(PORT).expect("the port is free");
        }
        RawListener {
            host: self,
            accepted: std::cell::Cell::new(0),
        }
    }

    pub(super) fn datagrams(self) -> RawDatagrams {
        let ring =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 << 10]);
        let mut socket = udp::Socket::new(ring(), ring());
        socket.bind(PORT).expect("the port is free");
        let handle = self.lock().sockets.add(socket);
        RawDatagrams { host: self, handle }
    }
}

/// A stream of plain bytes.
pub(super) struct RawStream {
    host: RawHost,
    nth: usize,
}

impl RawStream {
    fn with<R>(&self, change: impl FnOnce(&mut Stream) -> R) -> R {
        let mut inner = self.host.lock();
        let result = change(&mut inner.streams[self.nth]);
        inner.go_on();
        result
    }

    fn look<R>(&self, look: impl FnOnce(&Stream) -> R) -> R {
        let mut inner = self.host.lock();
        inner.go_on();
        look(&inner.streams[self.nth])
    }
}

impl harness::RawStream for RawStream {
    fn write(&self, bytes: &[u8]) {
        self.with(|stream| stream.unwritten.extend(bytes));
    }

    fn shutdown(&self) {
        self.with(|stream| stream.to_end = true);
    }

    fn close(&self) {
        self.with(|stream| stream.to_end = true);
    }

    fn reset(&self) {
        self.host.lock().tcp(self.nth).abort();
    }

    fn stop_reading(&self) {
        self.with(|stream| stream.stopped = true);
    }

    fn read_on(&self) {
        self.with(|stream| stream.stopped = false);
    }

    fn received(&self) -> Vec<u8> {
        self.look(|stream| stream.received.clone())
    }

    fn ended_in_order(&self) -> Option<bool> {
        self.look(|stream| stream.ended_in_order)
    }
}

/// A listener for streams of plain bytes.
pub(super) struct RawListener {
    host: RawHost,
    accepted: std::cell::Cell<usize>,
}

impl harness::RawListener for RawListener {
    fn local_addr(&self) -> SocketAddr {
        self.host.local_addr()
    }

    fn accept(&self) -> Option<Box<dyn harness::RawStream>> {
        let nth = self.accepted.get();
        let begun = self.host.lock().streams.get(nth)?.begun;
        begun.then(|| {
            self.accepted.set(nth + 1);
            let host = self.host.clone();
            Box::new(RawStream { host, nth }) as _
        })
    }
}

/// A datagram socket with nothing behind it.
pub(super) struct RawDatagrams {
    host: RawHost,
    handle: SocketHandle,
}

impl harness::RawDatagrams for RawDatagrams {
    fn local_addr(&self) -> SocketAddr {
        self.host.local_addr()
    }

    fn send_to(&self, to: SocketAddr, datagram: &[u8]) {
        let mut inner = self.host.lock();
        let socket = inner.sockets.get_mut::<udp::Socket>(self.handle);
        let to = endpoint(to);
        socket.send_slice(datagram, to).expect("there is room");
    }

    fn received(&self) -> Vec<Vec<u8>> {
        let mut inner = self.host.lock();
        inner.go_on();
        inner.datagrams.clone()
    }
}
