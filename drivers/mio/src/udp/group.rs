//! The sockets of one datagram listener: each has a worker, and all share the address.
//!
//! The system gives all datagrams of one peer to the same socket, as long as the sockets stay the
//! same. So they stay until the last connection of any of them has closed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What the sockets of a listener share.
pub(crate) struct SocketGroup<S> {
    /// Connections of all of them.
    peers: AtomicUsize,
    /// None is admitted any more: with the last connection the sockets close.
    closed: AtomicBool,
    /// Weak, so that they close with the last connection.
    sockets: Mutex<Vec<Weak<S>>>,
}

impl<S> Default for SocketGroup<S> {
    fn default() -> Self {
        SocketGroup {
            peers: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            sockets: Mutex::default(),
        }
    }
}

impl<S> SocketGroup<S> {
    /// A socket is one of this listener's.
    pub(crate) fn add_socket(&self, socket: Weak<S>) {
        self.all().push(socket);
    }

    fn all(&self) -> MutexGuard<'_, Vec<Weak<S>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sockets that are still there.
    pub(crate) fn sockets(&self) -> Vec<Arc<S>> {
        self.all().iter().filter_map(Weak::upgrade).collect()
    }

    /// How many connections there are.
    pub(crate) fn peers(&self) -> usize {
        self.peers.load(SeqCst)
    }

    /// A connection is added, if there are fewer than this many. Returns whether it is.
    pub(crate) fn add_peer(&self, most: usize) -> bool {
        let more = |peers| (peers < most).then_some(peers + 1);
        self.peers.fetch_update(SeqCst, Relaxed, more).is_ok()
    }

    /// No peer is admitted any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    /// Whether that is so.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// A connection has gone. Returns whether it was the last.
    pub(crate) fn remove_peer(&self) -> bool {
        self.peers.fetch_sub(1, SeqCst) == 1
    }

    /// Does something with each socket that is still there.
    pub(crate) fn each(&self, act: impl Fn(&S)) {
        for socket in self.sockets() {
            act(&socket);
        }
    }
}
