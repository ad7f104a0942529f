//! A world in which every stream is one of TLS, the raw ones included: what they write and receive
//! is what TLS carries.

use super::{BlackHole, Net, RawDatagrams};
use crate::tls::Tls;
use cubenet_core::Limits;
use rustls::Connection;
use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How often raw streams are looked after while time passes.
const SLICE: Duration = Duration::from_millis(10);

/// A harness whose networks have TLS, with raw streams that have it, too.
pub struct Harness<H> {
    inner: H,
    tls: Tls,
    raw_streams: RefCell<Vec<Weak<RawStream>>>,
}

impl<H> Harness<H> {
    /// The networks of `inner` have `tls` already.
    pub fn new(inner: H, tls: Tls) -> Self {
        Harness {
            inner,
            tls,
            raw_streams: RefCell::default(),
        }
    }

    fn go_on(&self) {
        for stream in self.raw_streams.borrow().iter().filter_map(Weak::upgrade) {
            stream.go_on();
        }
    }
}

impl<H: super::Harness> super::Harness for Harness<H> {
    fn try_start(&self, limits: Limits) -> Result<Box<dyn Net>, String> {
        self.inner.try_start(limits)
    }

    fn raw_connect(&self, to: SocketAddr) -> Box<dyn super::RawStream> {
        let tls = self.tls.raw_client();
        let stream = Rc::new(RawStream::new(self.inner.raw_connect(to), tls));
        self.raw_streams.borrow_mut().push(Rc::downgrade(&stream));
        Box::new(stream)
    }

    fn raw_listen(&self) -> Box<dyn super::RawListener> {
        Box::new(RawListener {
            inner: self.inner.raw_listen(),
            tls: self.tls.clone(),
        })
    }

    fn raw_datagrams(&self) -> Box<dyn RawDatagrams> {
        self.inner.raw_datagrams()
    }

    fn black_hole(&self) -> BlackHole {
        self.inner.black_hole()
    }

    fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            self.go_on();
            let slice = left.min(SLICE);
            self.inner.pass(slice);
            left -= slice;
        }
    }

    fn until(&self, done: &mut dyn FnMut() -> bool) -> bool {
        self.inner.until(&mut || {
            self.go_on();
            done()
        })
    }

    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn slack(&self) -> Duration {
        self.inner.slack()
    }
}

/// A raw stream with TLS over it, of rustls' own: unlike our layer it still receives when it has ended.
struct RawStream {
    inner: Box<dyn super::RawStream>,
    tls: RefCell<Connection>,
    /// How much of what has arrived TLS has seen.
    seen: Cell<usize>,
    received: RefCell<Vec<u8>>,
    /// The other side has ended in order.
    has_ended: Cell<bool>,
    /// What waits for the handshake.
    unwritten: RefCell<Vec<u8>>,
    /// This direction is to end behind that.
    to_end: Cell<bool>,
    /// Nothing is to be read any more, once the handshake is complete.
    to_stop: Cell<bool>,
}

impl RawStream {
    fn new(inner: Box<dyn super::RawStream>, mut tls: Connection) -> Self {
        tls.set_buffer_limit(None);
        let stream = RawStream {
            inner,
            tls: RefCell::new(tls),
            seen: Cell::new(0),
            received: RefCell::default(),
            has_ended: Cell::new(false),
            unwritten: RefCell::default(),
            to_end: Cell::new(false),
            to_stop: Cell::new(false),
        };
        stream.go_on();
        stream
    }

    fn go_on(&self) {
        let mut tls = self.tls.borrow_mut();
        let arrived = self.inner.received();
        let mut new = &arrived[self.seen.replace(arrived.len())..];
        while !new.is_empty() && tls.read_tls(&mut new).is_ok_and(|read| read > 0) {
            // What is wrong with it, the other side is told.
            if let Ok(state) = tls.process_new_packets() {
                self.has_ended.set(state.peer_has_closed());
            }
            let _ = tls.reader().read_to_end(&mut self.received.borrow_mut());
        }
        let mut ends = false;
        if !tls.is_handshaking() {
            let unwritten = self.unwritten.take();
            tls.writer().write_all(&unwritten).expect("without bound");
            ends = self.to_end.take();
            if ends {
                tls.send_close_notify();
            }
            if self.to_stop.take() {
                self.inner.stop_reading();
            }
        }
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire).expect("memory takes it");
        }
        if !wire.is_empty() {
            self.inner.write(&wire);
        }
        if ends {
            self.inner.shutdown();
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
        self.to_end.set(true);
        self.go_on();
        self.inner.close();
    }

    fn reset(&self) {
        self.inner.reset();
    }

    fn stop_reading(&self) {
        self.to_stop.set(true);
        self.go_on();
    }

    fn read_on(&self) {
        self.to_stop.set(false);
        self.inner.read_on();
    }

    fn received(&self) -> Vec<u8> {
        self.go_on();
        self.received.borrow().clone()
    }

    fn ended_in_order(&self) -> Option<bool> {
        self.go_on();
        let in_order = self.inner.ended_in_order()?;
        // What has arrived by now comes before the end.
        self.go_on();
        Some(in_order && self.has_ended.get())
    }
}

struct RawListener {
    inner: Box<dyn super::RawListener>,
    tls: Tls,
}

impl super::RawListener for RawListener {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn accept(&self) -> Option<Box<dyn super::RawStream>> {
        let stream = self.inner.accept()?;
        Some(Box::new(Rc::new(RawStream::new(
            stream,
            self.tls.raw_server(),
        ))))
    }
}
