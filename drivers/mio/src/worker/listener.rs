//! How a worker accepts streams on a listener, and who gets them.

use crate::conn::permit::Permit;
use crate::log::{debug, warn_limited};
use crate::metrics::Counts;
use crate::network::shared::{NetworkShared, NoRoom};
use crate::sys;
use crate::tcp::layers::HandshakePermit;
use crate::tcp::listener::StreamListener;
use crate::worker::mailbox::{Accepted, Mailbox, Target};
use cubenet_core::{ConnectionId, Instant, Transport};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before trying again what failed for lack of descriptors or memory.
const RETRY: Duration = Duration::from_millis(20);

/// A listener, as a worker keeps it.
pub(super) struct AcceptSocket {
    listener: Arc<StreamListener>,
    /// Which of its places is this worker's.
    nth: usize,
    /// The workers that may get its connections.
    targets: Arc<[Target]>,
    /// This worker's number among them, if it is one of them.
    own: Option<usize>,
    /// When its timer is set to.
    pub(super) armed: Instant,
    /// When to try again what failed.
    again: Instant,
    /// It is in the run queue.
    pub(super) scheduled: bool,
    /// No event tells of it: it could not be watched.
    is_unwatched: bool,
}

/// What a worker is to do next with a socket on which it accepts.
pub(super) enum NextAccept {
    /// Adopt a stream.
    Adopt(Accepted),
    /// Give a stream to another worker.
    PassOn(Accepted, Arc<Mailbox>),
    /// Ask once more: a connection was refused.
    Refused,
    /// The same: a connection was not there any more, or something else went wrong.
    Failed,
    /// Nothing, until an event comes, or the timer.
    Wait,
}

impl AcceptSocket {
    pub(super) fn new(listener: Arc<StreamListener>, nth: usize, targets: Arc<[Target]>) -> Self {
        let worker = &listener.place(nth).worker;
        let is_own = |target: &Target| Arc::ptr_eq(&target.home.worker, worker);
        AcceptSocket {
            own: targets.iter().position(is_own),
            listener,
            nth,
            targets,
            armed: Instant::NEVER,
            again: Instant::NEVER,
            scheduled: false,
            is_unwatched: false,
        }
    }

    /// Numbers of its connections with one of the workers.
    pub(super) fn counts(&self) -> &Counts {
        &self.targets[self.own.unwrap_or(0)].home.counts
    }

    /// The number of its listener.
    pub(super) fn id(&self) -> ConnectionId {
        self.listener.id
    }

    /// Lets the others be woken first next time.
    pub(super) fn step_back(&mut self, now: Instant) {
        if !self.listener.is_shared() {
            return;
        }
        let place = self.listener.place(self.nth);
        let stepped = match &*self.listener.socket() {
            // It is watched no more.
            Some(_) if self.listener.is_leaving() => Ok(()),
            Some(socket) => place.worker.step_back(socket, place.token),
            None => Ok(()),
        };
        self.is_unwatched = stepped.is_err();
        if let Err(error) = stepped {
            warn_limited!(%error, "cannot watch a listener; trying again");
            self.pause(now);
        }
    }

    /// Whether it is left to another process, once what waits is accepted.
    pub(super) fn is_leaving(&self) -> bool {
        self.listener.is_leaving()
    }

    /// Whether it was closed.
    pub(super) fn is_done(&self) -> bool {
        self.listener.socket().is_none()
    }

    /// Closes the listener.
    pub(super) fn close(&self) {
        self.listener.close();
    }

    /// Whether it waits to try again: it goes on waiting when another connection arrives.
    pub(super) fn waits(&self) -> bool {
        self.again != Instant::NEVER
    }

    /// The moment has come to try again.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if now >= self.again {
            self.again = Instant::NEVER;
            if self.is_unwatched {
                self.step_back(now);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.again
    }

    /// Tries again later.
    pub(super) fn pause(&mut self, now: Instant) {
        self.again = now.after(RETRY);
    }

    /// Takes the next connection off the socket, at `now`.
    pub(super) fn accept(&mut self, network: &Arc<NetworkShared>, now: Instant) -> NextAccept {
        let (accepted, is_leaving) = match &*self.listener.socket() {
            // It counts while the socket cannot be closed: who closes that sees it among those that are
            // open.
            Some(socket) => {
                let accepted = sys::accept(socket).map(|(stream, peer)| {
                    let target = Target::load_accepted(&self.targets, self.own);
                    let permit = Permit::take_loaded(&target.home, Transport::Tcp, Some(peer.ip()));
                    (stream, peer, target, permit)
                });
                (accepted, self.listener.is_leaving())
            }
            // It was closed; word of that is on its way.
            None => return NextAccept::Wait,
        };
        let (stream, peer, target, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock if is_leaving => {
                    // What comes from here on wakes the other process.
                    self.listener.close_socket();
                    return NextAccept::Wait;
                }
                io::ErrorKind::WouldBlock => return NextAccept::Wait,
                io::ErrorKind::Interrupted => return NextAccept::Failed,
                // The kernel looks for a descriptor before it looks whether anything waits.
                _ if is_leaving && !self.listener.has_waiting() => {
                    self.listener.close_socket();
                    return NextAccept::Wait;
                }
                _ if sys::out_of_resources(&error) => {
                    // What waits stays in the kernel, and no event will tell of it.
                    self.counts().accept_failed.count();
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
        let listening = &self.listener.listening;
        let home = &target.home;
        let permits = permit.and_then(|permit| {
            let handshake = listening
                .has_layer()
                .then(|| HandshakePermit::take(home).ok_or(NoRoom::Handshakes));
            Ok((permit, handshake.transpose()?))
        });
        match permits {
            Ok((permit, handshake)) => {
                let accepted = Accepted {
                    stream,
                    peer,
                    home: Arc::clone(home),
                    listening: Arc::clone(listening),
                    permit,
                    handshake,
                };
                if Arc::ptr_eq(&home.worker, &self.listener.place(self.nth).worker) {
                    NextAccept::Adopt(accepted)
                } else {
                    NextAccept::PassOn(accepted, Arc::clone(&target.mailbox))
                }
            }
            Err(reason) => {
                // The socket is closed first: a subscriber may take its time.
                drop(stream);
                network.refused(peer, reason, &home.counts);
                NextAccept::Refused
            }
        }
    }
}
