//! A socket that listens for streams, which all workers accept on.
//!
//! The system wakes one worker that has nothing to do (Linux), and that worker keeps what it accepts,
//! unless another has fewer connections. So no connection takes a detour through another thread, and
//! none waits for a worker that is held up while another is free. Elsewhere a thread of its own
//! accepts for all.

use crate::conn::key::ConnKey;
use crate::conn::permit::Permit;
use crate::log::{debug, warn_limited};
use crate::network::listening::Listening;
use crate::network::shared::{NetworkShared, NoRoom};
use crate::sys;
use crate::tcp::layers::HandshakePermit;
use crate::worker::mailbox::{Accepted, Command, Mailbox, Target};
use cubenet_core::{ConnectionId, Instant, Transport};
use mio::net::TcpListener;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

/// How long to wait before trying again what failed for lack of descriptors or memory.
const RETRY: Duration = Duration::from_millis(20);

/// A listener, as those who accept on it and the application share it. A thread that closes it closes
/// its socket at once; the workers forget it later.
pub(crate) struct StreamListener {
    id: ConnectionId,
    pub(crate) listening: Arc<Listening>,
    /// The workers that may get its connections.
    targets: Vec<Target>,
    /// `None` once it is closed.
    socket: RwLock<Option<TcpListener>>,
    /// Those who accept on it.
    places: Vec<Place>,
}

/// Where a worker that accepts finds a listener.
struct Place {
    acceptor: Arc<Mailbox>,
    token: u32,
    /// Its own number among the targets, if it may have connections.
    own: Option<usize>,
}

impl StreamListener {
    /// Has the socket watched by all `acceptors`, to whom the listener must then be handed over; see
    /// [`hand_over`](Self::hand_over).
    pub(crate) fn new(
        id: ConnectionId,
        mut socket: TcpListener,
        listening: Arc<Listening>,
        targets: Vec<Target>,
        acceptors: &[Arc<Mailbox>],
    ) -> io::Result<Arc<Self>> {
        let mut places: Vec<Place> = Vec::with_capacity(acceptors.len());
        for acceptor in acceptors {
            let registered = acceptor.worker.register_listener(&mut socket);
            let token = match registered {
                Ok(token) => token,
                Err(error) => {
                    for place in &places {
                        place.acceptor.worker.release_token(place.token);
                    }
                    return Err(error);
                }
            };
            let is_own = |target: &Target| Arc::ptr_eq(&target.mailbox, acceptor);
            places.push(Place {
                acceptor: Arc::clone(acceptor),
                token,
                own: targets.iter().position(is_own),
            });
        }
        Ok(Arc::new(StreamListener {
            id,
            listening,
            targets,
            socket: RwLock::new(Some(socket)),
            places,
        }))
    }

    /// Gives it to those who accept on it. Returns whether all took it; if the network stops, they do
    /// not.
    pub(crate) fn hand_over(self: &Arc<Self>) -> bool {
        let mut places = self.places.iter().enumerate();
        places.all(|(nth, place)| {
            let socket = AcceptSocket::new(Arc::clone(self), nth);
            let command = Command::ListenStreams(socket, place.token);
            place.acceptor.post(command).is_ok()
        })
    }

    /// Accepts no more. Its address is free when this returns.
    pub(crate) fn close(&self) {
        self.listening.close();
        let socket = self.socket.write();
        drop(socket.unwrap_or_else(PoisonError::into_inner).take());
        for place in &self.places {
            let key = ConnKey {
                token: place.token,
                slot: 0,
            };
            place.acceptor.worker.wake(key, self.id);
        }
    }
}

/// A listener, as a worker keeps it.
pub(crate) struct AcceptSocket {
    listener: Arc<StreamListener>,
    /// Which of its places is this worker's.
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

    fn socket(&self) -> RwLockReadGuard<'_, Option<TcpListener>> {
        let socket = self.listener.socket.read();
        socket.unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> &Place {
        &self.listener.places[self.nth]
    }

    /// Lets the others be woken first next time.
    pub(crate) fn step_back(&self) {
        let place = self.place();
        if self.listener.places.len() > 1
            && let Some(socket) = &*self.socket()
            && let Err(error) = place.acceptor.worker.step_back(socket, place.token)
        {
            warn_limited!(%error, "cannot watch a listener");
        }
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
        let home = &Target::load_accepted(targets, self.place().own).home;
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
