//! A world in which every stream is one of TLS, the raw ones included: what they write and receive
//! is what TLS carries.

use super::{BlackHole, Net, RawDatagrams};
use crate::tls::Tls;
use cubenet_core::{Ends, Instant, Layer, LayerState, Limits, MakeLayer};
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
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
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let layer = self.tls.client.make_layer(Ends::new(to, nowhere));
        let stream = Rc::new(RawStream::new(self.inner.raw_connect(to), layer));
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

/// A raw stream with TLS over it.
struct RawStream {
    inner: Box<dyn super::RawStream>,
    layer: RefCell<Box<dyn Layer>>,
    /// How much of what has arrived the layer has seen.
    seen: Cell<usize>,
    received: RefCell<Vec<u8>>,
    /// What waits for the handshake.
    unwritten: RefCell<Vec<u8>>,
    /// This direction is to end behind that.
    to_end: Cell<bool>,
    /// Nothing is to be read any more, once the handshake is complete.
    to_stop: Cell<bool>,
}

impl RawStream {
    fn new(inner: Box<dyn super::RawStream>, mut layer: Box<dyn Layer>) -> Self {
        let mut wire = Vec::new();
        layer.begin(Instant::ZERO, &mut wire);
        inner.write(&wire);
        RawStream {
            inner,
            layer: RefCell::new(layer),
            seen: Cell::new(0),
            received: RefCell::default(),
            unwritten: RefCell::default(),
            to_end: Cell::new(false),
            to_stop: Cell::new(false),
        }
    }

    fn go_on(&self) {
        let mut layer = self.layer.borrow_mut();
        let mut wire = Vec::new();
        let arrived = self.inner.received();
        let mut new = arrived[self.seen.replace(arrived.len())..].to_vec();
        if !new.is_empty() {
            layer.handle_input(&mut new, &mut self.received.borrow_mut(), &mut wire);
        }
        if let LayerState::Open | LayerState::Ended = layer.state() {
            let unwritten = self.unwritten.take();
            if !unwritten.is_empty() {
                layer.handle_output(&[&unwritten], &mut wire);
            }
            let ends = self.to_end.take();
            if ends {
                layer.handle_close(&mut wire);
            }
            if !wire.is_empty() {
                self.inner.write(&wire);
            }
            if ends {
                self.inner.shutdown();
            }
            if self.to_stop.take() {
                self.inner.stop_reading();
            }
        } else if !wire.is_empty() {
            self.inner.write(&wire);
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
        Some(in_order && self.layer.borrow().state() == LayerState::Ended)
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
        let local_addr = self.inner.local_addr();
        let layer = self
            .tls
            .server
            .make_layer(Ends::new(local_addr, local_addr));
        Some(Box::new(Rc::new(RawStream::new(stream, layer))))
    }
}
