//! Sockets that listen for streams, on one address: each has a worker, which accepts on it.
//!
//! Where the system shares new connections out among sockets (Linux), every worker has one and keeps
//! what it accepts, unless another has far fewer connections. Elsewhere one worker accepts for all.

use crate::conn::key::ConnKey;
use crate::conn::permit::Permit;
use crate::log::{debug, warn_limited};
use crate::network::listening::Listening;
use crate::network::shared::{NetworkShared, NoRoom};
use crate::sys;
use crate::tcp::layers::HandshakePermit;
use crate::worker::mailbox::{Accepted, Target};
use cubenet_core::{ConnectionId, Instant, Transport};
use mio::net::TcpListener;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long to wait before trying again what failed for lack of descriptors or memory.
const RETRY: Duration = Duration::from_millis(20);

/// A listener, as its workers and the application share it. A thread that closes it closes its
/// sockets at once; their workers forget them later.
pub(crate) struct StreamListener {
    id: ConnectionId,
    pub(crate) listening: Arc<Listening>,
    /// The workers that may get its connections.
    targets: Vec<Target>,
    sockets: Vec<ListenSocket>,
}

/// One of its sockets.
struct ListenSocket {
    /// `None` once it is closed.
    socket: Mutex<Option<TcpListener>>,
    /// Its worker, among the targets, and where that finds it.
    worker: usize,
    token: u32,
}

impl StreamListener {
    /// Registers each socket with the worker of the target of that number. They must then be handed
    /// over to those; see [`places`](Self::places).
    pub(crate) fn new(
        id: ConnectionId,
        sockets: Vec<(TcpListener, usize)>,
        listening: Arc<Listening>,
        targets: Vec<Target>,
    ) -> io::Result<Arc<Self>> {
        let mut listener = StreamListener {
            id,
            listening,
            targets,
            sockets: Vec::with_capacity(sockets.len()),
        };
        for (mut socket, worker) in sockets {
            let home = &listener.targets[worker].home;
            let registered = home.worker.register(&mut socket, sys::LISTENER_INTEREST);
            let token = match registered {
                Ok(token) => token,
                Err(error) => {
                    listener.release_tokens();
                    return Err(error);
                }
            };
            listener.sockets.push(ListenSocket {
                socket: Mutex::new(Some(socket)),
                worker,
                token,
            });
        }
        Ok(Arc::new(listener))
    }

    /// Gives back tokens under which no worker has been given anything.
    fn release_tokens(&self) {
        for socket in &self.sockets {
            let home = &self.targets[socket.worker].home;
            home.worker.release_token(socket.token);
        }
    }

    /// Its sockets, by number: whose each is, and its token there.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Target, u32)> {
        let sockets = self.sockets.iter();
        sockets.map(|socket| (&self.targets[socket.worker], socket.token))
    }

    /// Accepts no more. Its address is free when this returns.
    pub(crate) fn close(&self) {
        self.listening.close();
        for place in &self.sockets {
            drop(lock(&place.socket).take());
            let worker = &self.targets[place.worker].home.worker;
            let key = ConnKey {
                token: place.token,
                slot: 0,
            };
            worker.wake(key, self.id);
        }
    }
}

fn lock(socket: &Mutex<Option<TcpListener>>) -> MutexGuard<'_, Option<TcpListener>> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket of a listener, as its worker keeps it.
pub(crate) struct AcceptSocket {
    listener: Arc<StreamListener>,
    /// Which of the listener's sockets it is.
    nth: usize,
    /// When its timer is set to.
    pub(crate) armed: Instant,
    /// When to try again what failed.
    again: Instant,
    /// It is in the run queue.
    pub(crate) scheduled: bool,
}

/// What a worker is to do next with a socket on which it accepts.
pub(crate) enum NextAccept {
    /// Adopt a stream itself, or give it to another worker, as its home says.
    Adopt(Accepted),
    /// Ask once more: a connection was refused.
    Refused,
    /// The same: a connection was not there any more, or something else went wrong.
    Failed,
    /// Nothing, until an event comes, or the timer.
    Wait,
}

impl AcceptSocket {
    pub(crate) fn new(listener: Arc<StreamListener>, nth: usize) -> Self {
        AcceptSocket {
            listener,
            nth,
            armed: Instant::NEVER,
            again: Instant::NEVER,
            scheduled: false,
        }
    }

    /// The number of its listener.
    pub(crate) fn id(&self) -> ConnectionId {
        self.listener.id
    }

    fn socket(&self) -> MutexGuard<'_, Option<TcpListener>> {
        lock(&self.listener.sockets[self.nth].socket)
    }

    /// Whether it was closed.
    pub(crate) fn is_done(&self) -> bool {
        self.socket().is_none()
    }

    /// Closes the listener.
    pub(crate) fn close(&self) {
        self.listener.close();
    }

    /// Whether it waits to try again: it goes on waiting when another connection arrives.
    pub(crate) fn waits(&self) -> bool {
        self.again != Instant::NEVER
    }

    /// The moment has come to try again.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if now >= self.again {
            self.again = Instant::NEVER;
        }
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.again
    }

    /// Tries again later.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.again = now.after(RETRY);
    }

    /// Takes the next connection off the socket, at `now`.
    pub(crate) fn accept(&mut self, network: &Arc<NetworkShared>, now: Instant) -> NextAccept {
        let accepted = match &*self.socket() {
            Some(socket) => sys::accept(socket),
            // It was closed; word of that is on its way.
            None => return NextAccept::Wait,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return NextAccept::Wait,
                io::ErrorKind::Interrupted => return NextAccept::Failed,
                _ if sys::out_of_resources(&error) => {
                    // What waits stays in the kernel, and no event will tell of it.
                    network.totals.accept_failed.fetch_add(1, Relaxed);
                    warn_limited!(%error, "cannot accept; trying again");
                    self.pause(now);
                    return NextAccept::Wait;
                }
                // The peer gave up while it waited: that is about it alone.
                _ => {
                    debug!(%error, "a connection ended before it was accepted");
                    return NextAccept::Failed;
                }
            },
        };
        let StreamListener {
            listening, targets, ..
        } = &*self.listener;
        let own = self.listener.sockets[self.nth].worker;
        let home = &Target::load_accepted(targets, own).home;
        let permit = Permit::take_loaded(home, Transport::Tcp, Some(peer.ip()));
        let permits = permit.and_then(|permit| {
            let handshake = listening
                .has_layer()
                .then(|| HandshakePermit::take(network).ok_or(NoRoom::Handshakes));
            Ok((permit, handshake.transpose()?))
        });
        match permits {
            Ok((permit, handshake)) => NextAccept::Adopt(Accepted {
                stream,
                peer,
                home: Arc::clone(home),
                listening: Arc::clone(listening),
                permit,
                handshake,
            }),
            Err(reason) => {
                // The socket is closed first: a subscriber may take its time.
                drop(stream);
                network.refused(peer, reason);
                NextAccept::Refused
            }
        }
    }
}
