//! The application's side of a listener: its closures, and whether it is still open. The sockets
//! and threads that serve the listener share it.

use crate::connection::Connection;
use crate::user::UserValue;
use cubenet_core::demux::Admission;
use cubenet_core::{Ends, Handler, Layer, MakeLayer};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Asks the application about a new peer.
pub(crate) type AcceptFn = dyn Fn(&Connection) -> Option<Box<dyn Handler + Send>> + Send + Sync;
/// Asks the application about a datagram from a new peer.
pub(crate) type AdmitFn = dyn Fn(SocketAddr, &[u8]) -> Admission + Send + Sync;

/// The application's side of a listener.
pub(crate) struct Listening {
    accept: UserValue<Box<AcceptFn>>,
    admit: Option<UserValue<Box<AdmitFn>>>,
    layer: Option<UserValue<Box<dyn MakeLayer>>>,
    gate: Mutex<Gate>,
    /// Told when the last call of `accept` has returned.
    returned: Condvar,
}

/// Whether the closures may be called, and how many calls are running.
struct Gate {
    open: bool,
    running: usize,
}

/// A call of a closure that is running.
struct Running<'a>(&'a Listening);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut gate = self.0.gate();
        gate.running -= 1;
        if gate.running == 0 && !gate.open {
            self.0.returned.notify_all();
        }
    }
}

impl Listening {
    pub(crate) fn new(
        accept: Box<AcceptFn>,
        admit: Option<Box<AdmitFn>>,
        layer: Option<Box<dyn MakeLayer>>,
    ) -> Arc<Self> {
        Arc::new(Listening {
            accept: UserValue::new(accept),
            admit: admit.map(UserValue::new),
            layer: layer.map(UserValue::new),
            gate: Mutex::new(Gate {
                open: true,
                running: 0,
            }),
            returned: Condvar::new(),
        })
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the application about a new peer; `None` if it does not want it, or the listener
    /// was closed. A panic of the application's passes through.
    pub(crate) fn accept(&self, connection: &Connection) -> Option<Box<dyn Handler + Send>> {
        let running = self.enter()?;
        let handler = (self.accept)(connection);
        drop(running);
        handler
    }

    fn enter(&self) -> Option<Running<'_>> {
        let mut gate = self.gate();
        gate.open.then(|| {
            gate.running += 1;
            Running(self)
        })
    }

    /// Asks the admission hook, if there is one, about a datagram from a new peer. Once the
    /// listener was closed, none is admitted. A panic of the application's passes through.
    pub(crate) fn admit(&self, peer: SocketAddr, datagram: &[u8]) -> Admission {
        let Some(admit) = &self.admit else {
            return Admission::Admit;
        };
        match self.enter() {
            Some(_running) => admit(peer, datagram),
            None => Admission::Refuse,
        }
    }

    /// Whether its connections have a layer.
    pub(crate) fn has_layer(&self) -> bool {
        self.layer.is_some()
    }

    /// The layer of a connection that was accepted, if it is to have one.
    pub(crate) fn make_layer(&self, ends: Ends) -> Option<Box<dyn Layer>> {
        Some(self.layer.as_ref()?.make_layer(ends))
    }

    pub(crate) fn has_hook(&self) -> bool {
        self.admit.is_some()
    }

    /// From here on no call of a closure begins.
    pub(crate) fn close(&self) {
        self.gate().open = false;
    }

    /// Waits until no call of a closure is running. Not to be called on a thread on which one
    /// may be.
    pub(crate) fn wait(&self) {
        let mut gate = self.gate();
        while gate.running > 0 {
            let waited = self.returned.wait(gate);
            gate = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
