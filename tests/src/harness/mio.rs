//! The mio driver over loopback, or an address of the kernel's elsewhere, in real time.

use super::{BlackHole, Driven, LONGEST, driver};
use crate::system::is_under_way;
use crate::tls::Tls;
use cubenet_core::Limits;
use socket2::{Domain, SockRef, Socket, Type};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The operating system's own network.
pub struct Harness {
    origin: Instant,
    address: IpAddr,
    tls: Option<Tls>,
    /// Raw streams that connected, to go on while time passes.
    raw_streams: RefCell<Vec<Weak<RawStream>>>,
}

impl Harness {
    /// On loopback.
    pub fn new() -> Self {
        Harness::at(loopback().ip())
    }

    /// At this address of the system's.
    pub fn at(address: IpAddr) -> Self {
        Harness {
            origin: Instant::now(),
            address,
            tls: None,
            raw_streams: RefCell::default(),
        }
    }

    /// On loopback, with TLS over every stream.
    pub fn secured() -> super::tls::Harness<Self> {
        let tls = Tls::new();
        let mut harness = Harness::new();
        harness.tls = Some(tls.clone());
        super::tls::Harness::new(harness, tls)
    }

    fn go_on(&self) {
        for stream in self.raw_streams.borrow().iter().filter_map(Weak::upgrade) {
            stream.go_on();
        }
    }

    fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.address, 0)
    }
}

impl Default for Harness {
    fn default() -> Self {
        Harness::new()
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl super::Harness for Harness {
    fn try_start(&self, limits: Limits) -> Result<Box<dyn super::Net>, String> {
        let network = crate::try_network_with(limits);
        let network = network.map_err(|error| cubenet_core::Report::new(&error).to_string())?;
        Ok(Box::new(Driven {
            network,
            any_address: self.any_port(),
            tls: self.tls.clone(),
        }))
    }

    fn raw_connect(&self, to: SocketAddr) -> Box<dyn super::RawStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // So that little fills it.
        socket
            .set_recv_buffer_size(16 << 10)
            .expect("a socket option");
        socket.set_nonblocking(true).expect("a socket option");
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if is_under_way(&error) => {}
            Err(error) => panic!("it cannot be raw_streams: {error}"),
        }
        let stream = Rc::new(RawStream::new(socket.into()));
        self.raw_streams.borrow_mut().push(Rc::downgrade(&stream));
        Box::new(stream)
    }

    fn raw_listen(&self) -> Box<dyn super::RawListener> {
        let listener = TcpListener::bind(self.any_port()).expect("a free port");
        SockRef::from(&listener)
            .set_recv_buffer_size(16 << 10)
            .expect("a socket option");
        listener.set_nonblocking(true).expect("a socket option");
        Box::new(listener)
    }

    fn raw_datagrams(&self) -> Box<dyn super::RawDatagrams> {
        let socket = UdpSocket::bind(self.any_port()).expect("a free port");
        socket.set_nonblocking(true).expect("a socket option");
        Box::new(RawDatagrams {
            socket,
            received: RefCell::default(),
        })
    }

    fn black_hole(&self) -> BlackHole {
        let hole = crate::BlackHole::new();
        BlackHole {
            address: hole.address,
            kept: Box::new(hole),
        }
    }

    fn pass(&self, time: Duration) {
        let start = Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed()) {
            self.go_on();
            std::thread::sleep(left.min(Duration::from_millis(5)));
        }
    }

    fn until(&self, done: &mut dyn FnMut() -> bool) -> bool {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > LONGEST {
                return false;
            }
            self.go_on();
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn slack(&self) -> Duration {
        // A slow machine is no failure.
        Duration::from_secs(3)
    }
}

driver!(cubenet_mio);

/// Whether there is nothing to be had now, or no answer has come yet.
fn is_waiting(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::NotConnected
    )
}

/// A socket that never blocks; it reads and writes whenever it is asked something.
struct RawStream {
    stream: RefCell<Option<TcpStream>>,
    unwritten: RefCell<Vec<u8>>,
    to_end: Cell<bool>,
    stopped: Cell<bool>,
    received: RefCell<Vec<u8>>,
    ended_in_order: Cell<Option<bool>>,
}

impl RawStream {
    fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        RawStream {
            stream: RefCell::new(Some(stream)),
            unwritten: RefCell::default(),
            to_end: Cell::new(false),
            stopped: Cell::new(false),
            received: RefCell::default(),
            ended_in_order: Cell::new(None),
        }
    }

    fn go_on(&self) {
        let stream = self.stream.borrow();
        let Some(mut stream) = stream.as_ref() else {
            return;
        };
        let mut unwritten = self.unwritten.borrow_mut();
        while !unwritten.is_empty() {
            match stream.write(&unwritten) {
                Ok(written) => drop(unwritten.drain(..written)),
                Err(error) if is_waiting(&error) => break,
                Err(_) => unwritten.clear(),
            }
        }
        if unwritten.is_empty() && self.to_end.take() {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut buffer = [0; 65_536];
        while !self.stopped.get() && self.ended_in_order.get().is_none() {
            match stream.read(&mut buffer) {
                Ok(0) => self.ended_in_order.set(Some(true)),
                Ok(read) => self.received.borrow_mut().extend(&buffer[..read]),
                Err(error) if is_waiting(&error) => break,
                Err(_) => self.ended_in_order.set(Some(false)),
            }
        }
    }
}

impl super::RawStream for Rc<RawStream> {
    fn write(&self, bytes: &[u8]) {
        self.unwritten.borrow_mut().extend(bytes);
        self.go_on();
    }

    fn shutdown(&self) {
        self.to_end.set(true);
        self.go_on();
    }

    fn close(&self) {
        self.go_on();
        self.stream.take();
    }

    fn reset(&self) {
        if let Some(stream) = self.stream.take() {
            let at_once = Some(Duration::ZERO);
            SockRef::from(&stream)
                .set_linger(at_once)
                .expect("a socket option");
        }
    }

    fn stop_reading(&self) {
        self.stopped.set(true);
    }

    fn read_on(&self) {
        self.stopped.set(false);
    }

    fn received(&self) -> Vec<u8> {
        self.go_on();
        self.received.borrow().clone()
    }

    fn ended_in_order(&self) -> Option<bool> {
        self.go_on();
        self.ended_in_order.get()
    }
}

impl super::RawListener for TcpListener {
    fn local_addr(&self) -> SocketAddr {
        self.local_addr().expect("it is bound")
    }

    fn accept(&self) -> Option<Box<dyn super::RawStream>> {
        let (stream, _) = TcpListener::accept(self).ok()?;
        Some(Box::new(Rc::new(RawStream::new(stream))))
    }
}

struct RawDatagrams {
    socket: UdpSocket,
    received: RefCell<Vec<Vec<u8>>>,
}

impl super::RawDatagrams for RawDatagrams {
    fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }

    fn send_to(&self, to: SocketAddr, datagram: &[u8]) {
        self.socket.send_to(datagram, to).expect("it can be sent");
    }

    fn received(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, _)) = self.socket.recv_from(&mut buffer) {
            self.received.borrow_mut().push(buffer[..len].to_vec());
        }
        self.received.borrow().clone()
    }
}
