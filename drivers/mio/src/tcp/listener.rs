//! A socket that listens for streams.

use crate::network::listening::Listening;
use crate::worker::mailbox::Target;
use mio::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A socket that listens for streams. A thread that closes it closes the socket at once; the
/// acceptor forgets it later.
pub(crate) struct StreamListener {
    pub(crate) number: u64,
    pub(crate) listening: Arc<Listening>,
    /// The workers that may get its connections.
    pub(crate) targets: Vec<Target>,
    /// `None` once it is closed.
    socket: Mutex<Option<TcpListener>>,
}

impl StreamListener {
    pub(crate) fn new(
        number: u64,
        socket: TcpListener,
        listening: Arc<Listening>,
        targets: Vec<Target>,
    ) -> Arc<Self> {
        Arc::new(StreamListener {
            number,
            listening,
            targets,
            socket: Mutex::new(Some(socket)),
        })
    }

    /// The socket, while no thread closes it.
    pub(crate) fn socket(&self) -> MutexGuard<'_, Option<TcpListener>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts no more. Its address is free when this returns.
    pub(crate) fn close(&self) {
        self.listening.close();
        drop(self.socket().take());
    }
}
