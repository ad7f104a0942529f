//! The sockets of one datagram listener: each has a worker, and all share the address.
//!
//! The system gives all datagrams of one peer to the same socket, as long as the sockets stay the
//! same. So they stay until the last connection of any of them has closed.

use crate::udp::socket::DatagramSocket;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError, Weak};

/// What the sockets of a listener share.
#[derive(Default)]
pub(crate) struct SocketGroup {
    /// Connections of all of them.
    peers: AtomicUsize,
    /// Weak, so that they close with the last connection.
    sockets: Mutex<Vec<Weak<DatagramSocket>>>,
}

impl SocketGroup {
    /// A socket is one of this listener's.
    pub(crate) fn add_socket(&self, socket: Weak<DatagramSocket>) {
        self.sockets().push(socket);
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Vec<Weak<DatagramSocket>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A connection has gone. If it was the last, the workers see whether the sockets are done with.
    pub(crate) fn remove_peer(&self) {
        if self.peers.fetch_sub(1, SeqCst) == 1 {
            self.each(DatagramSocket::wake);
        }
    }

    /// Admits no new peers.
    pub(crate) fn close(&self) {
        self.each(DatagramSocket::close);
    }

    fn each(&self, act: fn(&DatagramSocket)) {
        let sockets: Vec<_> = self.sockets().iter().filter_map(Weak::upgrade).collect();
        for socket in sockets {
            act(&socket);
        }
    }
}
