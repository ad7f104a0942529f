//! One session on this node.

mod callbacks;
mod outbox;
mod work;

use super::carrier::Carrier;
use super::{Node, RETRY, SessionHandler};
use crate::ring::MAX_PAYLOAD;
use crate::store::Stored;
use crate::token::{SessionId, Token};
use crate::wire::{self, End, Numbered, Refusal};
use bytes::Bytes;
use cubenet_core::{ConnectionId, Instant, Link, SendError};
use outbox::Outbox;
use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Bytes of messages that may wait for the handler, while another of its callbacks runs.
const MAX_WAITING: usize = 256 * 1_024;

/// A handle of a session on this node, to keep, clone and use on any thread. No call blocks.
///
/// It may outlive its session, or see it go to another node. Then sends fail with
/// [`SendError::Closed`].
#[derive(Clone)]
pub struct Session(Arc<Live>);

/// A session on this node, as all threads share it.
pub(in crate::server) struct Live {
    id: SessionId,
    node: Weak<Node>,
    state: Mutex<State>,
}

struct State {
    /// Why it is over, if it is.
    over: Option<End>,
    /// Of this node, as the store counts owners.
    fence: u64,
    /// When the last update was begun that the store has kept.
    updated: Instant,
    connection: Option<Arc<dyn Carrier>>,
    /// How many connections it has had, and lost.
    changes: u64,
    incoming: Incoming,
    outbox: Outbox,
    /// What the next update keeps besides messages.
    data: Option<Bytes>,
    /// The client has its newest token; and that is to be stored.
    has_token: bool,
    confirms: bool,
    /// There is something to store.
    dirty: bool,
    /// A job of the store's is under way, or will be.
    busy: bool,
    /// A resume that comes behind it.
    resume: Option<PendingResume>,
    handler: Option<Box<dyn SessionHandler>>,
    /// A callback runs; others wait for it.
    running: bool,
    events: VecDeque<Event>,
    /// Bytes of messages among them.
    waiting: usize,
    /// The application has ended it: it is over once everything has been sent.
    ending: bool,
    /// The client's messages are being sent to it by some thread, which is to look once more.
    pumping: bool,
    pump_again: bool,
    /// A job is to do so, and has not begun.
    pump_is_due: bool,
}

/// Numbers of the client's messages.
#[derive(Clone, Copy, Debug, Default)]
struct Incoming {
    /// The last that has come.
    accepted: u64,
    /// The last that the handler has received.
    received: u64,
    /// The last that is stored.
    stored: u64,
    /// The last of which the client has been told on this connection.
    acknowledged: u64,
}

/// What a client says that comes back.
#[derive(Clone, Copy)]
pub(in crate::server) struct Coming {
    pub(in crate::server) token: Token,
    /// Which of its resumes it is.
    pub(in crate::server) attempt: u64,
    /// The last message that has arrived there.
    pub(in crate::server) received: u64,
}

/// A client that wants to go on with its session.
pub(in crate::server) struct PendingResume {
    pub(in crate::server) coming: Coming,
    pub(in crate::server) from: IpAddr,
    /// Is told with which session the client goes on and what it is to be sent first, or why not.
    pub(in crate::server) reply: Reply,
}

pub(in crate::server) type Reply = Box<dyn FnOnce(Result<Greeted, Refused>) + Send>;

/// A session, and what its client is to be sent first on its new connection.
pub(in crate::server) type Greeted = (Arc<Live>, Vec<u8>);

/// Why a login or a resume fails, and when it may be tried again.
pub(in crate::server) type Refused = (Refusal, Duration);

/// What the handler is called for.
pub(in crate::server) enum Event {
    Opened,
    Resumed,
    Suspended,
    Writable,
    Message(u64, Bytes),
    Ended(End),
}

/// Where a session on this node begins.
pub(in crate::server) struct Origin {
    fence: u64,
    updated: Instant,
    received: u64,
    outbox: Outbox,
}

impl Origin {
    /// As a new one.
    pub(in crate::server) fn opened(now: Instant) -> Self {
        Origin {
            fence: 1,
            updated: now,
            received: 0,
            outbox: Outbox::default(),
        }
    }

    /// As another node has left it.
    pub(in crate::server) fn resumed(now: Instant, stored: &Stored) -> Self {
        Origin {
            fence: stored.fence,
            updated: now,
            received: stored.received,
            outbox: Outbox::kept(stored.sent, &stored.messages),
        }
    }
}

impl Session {
    pub(in crate::server) fn new(live: &Arc<Live>) -> Self {
        Session(Arc::clone(live))
    }

    /// Its number.
    pub fn id(&self) -> SessionId {
        self.0.id
    }

    /// Sends a message to the client. It leaves once it is stored, and arrives once and in order; if the
    /// client is away, when it comes back.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] if the client has too much to acknowledge: `writable` follows.
    /// [`SendError::TooLong`], and [`SendError::Closed`] if the session is over.
    pub fn send(&self, message: &[u8]) -> Result<(), SendError> {
        let node = self.0.node.upgrade().ok_or(SendError::Closed)?;
        let mut state = self.0.state();
        if state.over.is_some() || state.ending {
            return Err(SendError::Closed);
        }
        let (len, limit) = (message.len(), MAX_PAYLOAD);
        if len > limit {
            return Err(SendError::TooLong { len, limit });
        }
        state
            .outbox
            .push(message, node.limits.max_unacknowledged())?;
        state.dirty = true;
        drop(state);
        self.0.kick(&node);
        Ok(())
    }

    /// Has these bytes stored with the session, in place of those before. Another node makes the
    /// session's handler of them. In a callback, they are stored together with all that it does.
    pub fn set_data(&self, data: impl Into<Bytes>) {
        let Some(node) = self.0.node.upgrade() else {
            return;
        };
        let data = data.into();
        let mut state = self.0.state();
        state.data = Some(data);
        state.dirty = true;
        drop(state);
        self.0.kick(&node);
    }

    /// Ends the session, once the client has been sent everything; at once, if it is away.
    pub fn end(&self) {
        let Some(node) = self.0.node.upgrade() else {
            return;
        };
        let mut state = self.0.state();
        state.ending = true;
        let is_away = state.connection.is_none();
        drop(state);
        if is_away {
            self.0.finish(&node, End::Application);
        } else {
            self.0.pump_soon(&node);
        }
    }

    /// Whether it is over on this node.
    pub fn is_over(&self) -> bool {
        self.0.state().over.is_some()
    }

    /// The client's address, while it has a connection.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        let connection = self.0.state().connection.clone()?;
        Some(connection.peer_addr())
    }

    /// Bytes of messages that the client has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.0.state().outbox.bytes()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.0.id).finish()
    }
}

impl Live {
    /// A session whose handler the application makes of `data`.
    pub(in crate::server) fn new(
        node: &Arc<Node>,
        id: SessionId,
        origin: Origin,
        data: &Bytes,
    ) -> Arc<Self> {
        let Origin {
            fence,
            updated,
            received,
            outbox,
        } = origin;
        let state = State {
            over: None,
            fence,
            updated,
            connection: None,
            changes: 0,
            incoming: Incoming {
                accepted: received,
                received,
                stored: received,
                acknowledged: received,
            },
            outbox,
            data: None,
            has_token: false,
            confirms: false,
            dirty: false,
            busy: false,
            resume: None,
            handler: None,
            running: false,
            events: VecDeque::new(),
            waiting: 0,
            ending: false,
            pumping: false,
            pump_again: false,
            pump_is_due: false,
        };
        let live = Arc::new(Live {
            id,
            node: Arc::downgrade(node),
            state: Mutex::new(state),
        });
        let handler = node.application.handler(&Session::new(&live), data);
        live.state().handler = Some(handler);
        live
    }

    pub(in crate::server) fn id(&self) -> SessionId {
        self.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The client's side.

    /// A message has come. Returns whether it keeps to the rules.
    pub(in crate::server) fn received(
        self: &Arc<Self>,
        node: &Arc<Node>,
        link: &mut dyn Link,
        message: Numbered<'_>,
    ) -> bool {
        if !self.owns(node) {
            return true;
        }
        let mut state = self.state();
        if !state.has_connection(link.id()) {
            return true;
        }
        state.confirm();
        let next = state.incoming.accepted + 1;
        if message.number != next {
            // It has come before, or, of a transport that loses, is behind a gap.
            let is_fine = message.number < next || !link.transport().is_reliable();
            // It did not hear of it.
            state.incoming.acknowledged = 0;
            drop(state);
            self.kick(node);
            self.pump_soon(node);
            return is_fine;
        }
        state.waiting += message.payload.len();
        if state.waiting > MAX_WAITING && state.running {
            // The client sends it again, when it comes back.
            state.waiting -= message.payload.len();
            return false;
        }
        state.incoming.accepted = next;
        drop(state);
        let payload = Bytes::copy_from_slice(message.payload);
        self.dispatch(node, Event::Message(next, payload));
        true
    }

    /// Messages have arrived at the client. Returns whether there can be such an acknowledgement.
    pub(in crate::server) fn acknowledged(
        self: &Arc<Self>,
        node: &Arc<Node>,
        connection: ConnectionId,
        number: u64,
    ) -> bool {
        let mut state = self.state();
        if !state.has_connection(connection) {
            return true;
        }
        state.confirm();
        if !state.outbox.acknowledge(number) {
            return false;
        }
        let has_room = state.outbox.take_room(node.limits.max_unacknowledged());
        drop(state);
        if has_room {
            self.dispatch(node, Event::Writable);
        }
        self.kick(node);
        true
    }

    pub(in crate::server) fn ended_by_client(
        self: &Arc<Self>,
        node: &Arc<Node>,
        connection: ConnectionId,
    ) {
        if self.state().has_connection(connection) {
            self.finish(node, End::Client);
        }
    }

    // Its connection.

    /// The client has come, by this connection, and is to be sent this first.
    pub(in crate::server) fn attach(
        self: &Arc<Self>,
        node: &Arc<Node>,
        connection: &Arc<dyn Carrier>,
        greeting: Vec<u8>,
    ) {
        let mut state = self.state();
        if let Some(reason) = state.over {
            drop(state);
            let _ = match reason {
                // It is somewhere, and the client may try again.
                End::TakenOver => connection.send(&wire::refused(Refusal::Busy, RETRY)),
                reason => connection.send(&wire::ended(reason)),
            };
            return connection.close();
        }
        let before = state.connection.replace(Arc::clone(connection));
        state.changes += 1;
        state.has_token = false;
        // The greeting says what has arrived.
        state.incoming.acknowledged = state.incoming.stored;
        state.outbox.rewind(greeting.into());
        drop(state);
        if let Some(before) = before {
            let _ = before.send(&wire::ended(End::TakenOver));
            before.close();
        }
        self.pump(node);
    }

    /// A connection is over, which may be this session's.
    pub(in crate::server) fn detach(self: &Arc<Self>, node: &Arc<Node>, connection: ConnectionId) {
        let mut state = self.state();
        if !state.has_connection(connection) {
            return;
        }
        state.connection = None;
        let ending = state.ending;
        drop(state);
        if ending {
            return self.finish(node, End::Application);
        }
        self.suspend(node);
    }

    /// The client is away. Waits for it to come back, and no longer than the limit.
    pub(in crate::server) fn suspend(self: &Arc<Self>, node: &Arc<Node>) {
        let mut state = self.state();
        state.changes += 1;
        // The store keeps it from now on.
        state.dirty = true;
        let changes = state.changes;
        drop(state);
        self.dispatch(node, Event::Suspended);
        self.kick(node);
        let (live, weak) = (Arc::clone(self), Arc::downgrade(node));
        let expire = Box::new(move || {
            let is_back = live.state().changes != changes;
            if let Some(node) = weak.upgrade()
                && !is_back
            {
                live.finish(&node, End::Expired);
            }
        });
        node.environment.run_after(node.limits.wait(), expire);
    }

    /// Whether this node may still act for the session: the store would have forgotten it otherwise.
    fn owns(self: &Arc<Self>, node: &Arc<Node>) -> bool {
        let since = node.environment.now().since(self.state().updated);
        let owns = since < node.limits.expires_in();
        if !owns {
            self.finish(node, End::LeaseLost);
        }
        owns
    }

    /// Has a job [pump](Self::pump).
    pub(in crate::server) fn pump_soon(self: &Arc<Self>, node: &Arc<Node>) {
        // A client that provokes it gets one, however often.
        if std::mem::replace(&mut self.state().pump_is_due, true) {
            return;
        }
        let (live, node_of_job) = (Arc::clone(self), Arc::clone(node));
        let pump = Box::new(move || {
            live.state().pump_is_due = false;
            live.pump(&node_of_job);
        });
        node.environment.run(pump);
    }

    /// Sends the client what it has to know and does not. One thread does at a time, in order, and never
    /// the connection's own: what that sends leaves when its callbacks have returned, perhaps behind
    /// what another has sent meanwhile.
    fn pump(self: &Arc<Self>, node: &Arc<Node>) {
        loop {
            let mut state = self.state();
            let connection = match &state.connection {
                Some(connection) if state.over.is_none() => Arc::clone(connection),
                _ => return,
            };
            if std::mem::replace(&mut state.pumping, true) {
                state.pump_again = true;
                return;
            }
            state.pump_again = false;
            let (changes, stored) = (state.changes, state.incoming.stored);
            let greeting = state.outbox.greeting();
            let ack = (state.incoming.acknowledged < stored).then(|| wire::ack(stored));
            let (before, messages) = state.outbox.to_send();
            drop(state);
            let first = greeting.iter().map(|greeting| &greeting[..]);
            let second = ack.iter().map(|ack| &ack[..]);
            let rest = messages.iter().map(|message| &message[..]);
            let packets: Vec<&[u8]> = first.chain(second).chain(rest).collect();
            let (mut sent, has_room) = connection.send_all(&packets);
            let was_sent = sent;
            let mut state = self.state();
            state.pumping = false;
            if state.changes == changes {
                if greeting.is_some() && sent > 0 {
                    state.outbox.greeted();
                    sent -= 1;
                }
                if ack.is_some() && sent > 0 {
                    state.incoming.acknowledged = stored;
                    sent -= 1;
                }
                state.outbox.sent_to(before + sent as u64);
            }
            if state.ending && state.outbox.is_sent() {
                drop(state);
                return self.finish(node, End::Application);
            }
            // Without room, `writable` goes on.
            if !state.pump_again && (was_sent == 0 || !has_room) {
                return;
            }
        }
    }
}

impl State {
    /// Whether this is its connection. What comes by one that it has had before is no matter.
    fn has_connection(&self, connection: ConnectionId) -> bool {
        let is_it = |one: &Arc<dyn Carrier>| one.id() == connection;
        self.connection.as_ref().is_some_and(is_it)
    }

    /// The client has said something on its connection: it has been given its newest token.
    fn confirm(&mut self) {
        if !std::mem::replace(&mut self.has_token, true) {
            self.confirms = true;
            self.dirty = true;
        }
    }
}
