//! The mio driver over loopback, in real time.

use super::{BlackHole, LONGEST, driver};
use cubenet_core::Limits;
use socket2::{Domain, SockRef, Socket, Type};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The operating system's own network.
pub struct Harness {
    origin: Instant,
}

impl Harness {
    /// The system's.
    pub fn new() -> Self {
        Harness {
            origin: Instant::now(),
        }
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
        Ok(Box::new(network.map_err(|error| error.to_string())?))
    }

    fn raw_connect(&self, to: SocketAddr) -> Box<dyn super::RawStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // So that little fills it.
        socket
            .set_recv_buffer_size(16 << 10)
            .expect("a socket option");
        socket.connect(&to.into()).expect("the server listens");
        Box::new(RawStream::new(socket.into()))
    }

    fn raw_listen(&self) -> Box<dyn super::RawListener> {
        let listener = TcpListener::bind(loopback()).expect("a free port");
        SockRef::from(&listener)
            .set_recv_buffer_size(16 << 10)
            .expect("a socket option");
        listener.set_nonblocking(true).expect("a socket option");
        Box::new(listener)
    }

    fn raw_datagrams(&self) -> Box<dyn super::RawDatagrams> {
        let socket = UdpSocket::bind(loopback()).expect("a free port");
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
        std::thread::sleep(time);
    }

    fn until(&self, done: &mut dyn FnMut() -> bool) -> bool {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > LONGEST {
                return false;
            }
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

driver!(cubenet_mio, _network, loopback());

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
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
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
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.ended_in_order.set(Some(false)),
            }
        }
    }
}

impl super::RawStream for RawStream {
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
    fn local(&self) -> SocketAddr {
        self.local_addr().expect("it is bound")
    }

    fn accept(&self) -> Option<Box<dyn super::RawStream>> {
        let (stream, _) = TcpListener::accept(self).ok()?;
        Some(Box::new(RawStream::new(stream)))
    }
}

struct RawDatagrams {
    socket: UdpSocket,
    received: RefCell<Vec<Vec<u8>>>,
}

impl super::RawDatagrams for RawDatagrams {
    fn local(&self) -> SocketAddr {
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
