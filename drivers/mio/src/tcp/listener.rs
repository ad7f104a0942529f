//! A socket that listens for streams, which all workers accept on.
//!
//! The system wakes one worker that has nothing to do (Linux), and that worker keeps what it accepts,
//! unless another has fewer connections: see `worker::listener`. So no connection takes a detour
//! through another thread, and none waits for a worker that is held up while another is free.
//! Elsewhere a thread of its own accepts for all.

use crate::conn::key::ConnKey;
use crate::network::listening::Listening;
use crate::sys;
use crate::worker::handle::WorkerHandle;
use cubenet_core::ConnectionId;
use mio::net::TcpListener;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// A listener, as those who accept on it and the application share it. A thread that closes it closes
/// its socket at once; the workers forget it later.
pub(crate) struct StreamListener {
    pub(crate) id: ConnectionId,
    pub(crate) listening: Arc<Listening>,
    /// `None` once it is closed.
    socket: RwLock<Option<TcpListener>>,
    /// Those who accept on it.
    places: Vec<Place>,
    leaving: Leaving,
}

/// Whether a listener's socket is left to another process.
#[derive(Default)]
struct Leaving {
    asked: AtomicBool,
    /// It is closed here.
    done: Mutex<bool>,
    changed: Condvar,
}

/// Where a worker that accepts finds a listener.
pub(crate) struct Place {
    pub(crate) worker: Arc<WorkerHandle>,
    pub(crate) token: u32,
}

impl StreamListener {
    /// Has the socket watched by all these workers, to whom it must then be handed over.
    pub(crate) fn new<'w>(
        id: ConnectionId,
        mut socket: TcpListener,
        listening: Arc<Listening>,
        workers: impl Iterator<Item = &'w Arc<WorkerHandle>>,
    ) -> io::Result<Arc<Self>> {
        let mut places: Vec<Place> = Vec::new();
        for worker in workers {
            match worker.register_listener(&mut socket) {
                Ok(token) => places.push(Place {
                    worker: Arc::clone(worker),
                    token,
                }),
                Err(error) => {
                    for place in &places {
                        place.worker.release_token(place.token);
                    }
                    return Err(error);
                }
            }
        }
        Ok(Arc::new(StreamListener {
            id,
            listening,
            socket: RwLock::new(Some(socket)),
            places,
            leaving: Leaving::default(),
        }))
    }

    /// Where one of those who accept finds it.
    pub(crate) fn place(&self, nth: usize) -> &Place {
        &self.places[nth]
    }

    /// Whether several accept on it.
    pub(crate) fn is_shared(&self) -> bool {
        self.places.len() > 1
    }

    /// The socket, while no thread closes it.
    pub(crate) fn socket(&self) -> RwLockReadGuard<'_, Option<TcpListener>> {
        self.socket.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the socket to another process that has it, too. A connection that waits there may have woken
    /// one of the workers here and not the other process, so what waits is still accepted.
    #[cfg(unix)]
    pub(crate) fn leave(&self) {
        let socket = self.socket.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket {
            self.leaving.asked.store(true, Relaxed);
            self.unwatch(socket);
        }
        drop(socket);
        self.wake();
    }

    /// Whether it is left to another process. Known to those who hold the [socket](Self::socket).
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.asked.load(Relaxed)
    }

    /// Whether a connection waits to be accepted, as far as the system tells.
    pub(crate) fn has_waiting(&self) -> bool {
        self.socket().as_ref().is_some_and(sys::has_waiting)
    }

    /// Waits until nothing more is accepted.
    #[cfg(unix)]
    pub(crate) fn wait_until_left(&self) {
        let mut done = self.left();
        while !*done {
            let waited = self.leaving.changed.wait(done);
            done = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn left(&self) -> MutexGuard<'_, bool> {
        let left = self.leaving.done.lock();
        left.unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts no more. Its address is free when this returns, unless another process has it.
    pub(crate) fn close(&self) {
        self.listening.close();
        self.close_socket();
    }

    /// The same without a word to the application's side: those who were accepted are still asked about.
    pub(crate) fn close_socket(&self) {
        let socket = self.socket.write();
        let socket = socket.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(socket) = &socket {
            self.unwatch(socket);
        }
        drop(socket);
        *self.left() = true;
        self.leaving.changed.notify_all();
        self.wake();
    }

    fn unwatch(&self, socket: &TcpListener) {
        for place in &self.places {
            place.worker.unwatch(socket);
        }
    }

    /// Has those who accept look at it.
    fn wake(&self) {
        for place in &self.places {
            let key = ConnKey {
                token: place.token,
                slot: 0,
            };
            place.worker.wake(key, self.id);
        }
    }
}
