//! One session on this node.

mod callbacks;
mod connection;
mod outbox;
mod work;

use super::carrier::Carrier;
use super::{Node, SessionHandler};
use crate::store::Stored;
use crate::token::{SessionId, Token};
use crate::wire::{End, Refusal};
use bytes::Bytes;
use cubenet_core::{ConnectionId, Instant, SendError};
use outbox::Outbox;
use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

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
    /// The number of the last update that was begun with this fence, and of the last that is known to be kept.
    last_begun: u64,
    last_kept: u64,
    connection: Option<Arc<dyn Carrier>>,
    /// How many connections it has had, and lost.
    changes: u64,
    /// The handler has heard that the client is away, and not yet that it has come back.
    is_away: bool,
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
    /// Resumes that come behind it; and one is under way.
    resumes: VecDeque<PendingResume>,
    resuming: bool,
    /// The handler may be called.
    begun: bool,
    handler: Option<Box<dyn SessionHandler>>,
    /// A callback runs; others wait for it.
    running: bool,
    events: VecDeque<Event>,
    /// What the messages among them count, and how many of them are tasks.
    waiting: usize,
    tasks: usize,
    /// The application has ended it: it is over once everything has been sent.
    ending: bool,
    /// The client has.
    has_left: bool,
    /// The client's messages are being sent to it by some thread, which is to look once more.
    pumping: bool,
    pump_again: bool,
    /// A job is to do so, and has not begun.
    pump_is_due: bool,
    /// A job is to look whether the transport has lost something; and how often it has.
    repeat_is_due: bool,
    repeats: u32,
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
    /// Is told with what the client goes on, or why not.
    pub(in crate::server) reply: Reply,
}

pub(in crate::server) type Reply = Box<dyn FnOnce(Result<Greeted, Refused>) + Send>;

/// A session that goes on over another connection.
pub(in crate::server) struct Greeted {
    pub(in crate::server) live: Arc<Live>,
    /// Of the resume. If it has another by now, a later resume was faster.
    pub(in crate::server) fence: u64,
    /// What the client is to be sent first.
    pub(in crate::server) greeting: Vec<u8>,
}

/// Why a login or a resume fails, and when it may be tried again.
pub(in crate::server) type Refused = (Refusal, Duration);

/// What the application does with a session in its turn.
type Task = Box<dyn FnOnce(&Session) + Send>;

/// What the handler is called for.
pub(in crate::server) enum Event {
    Opened,
    Resumed,
    Suspended,
    Writable,
    Message(u64, Bytes),
    /// The application wants this done in its turn.
    Task(Task),
    /// The client ends the session.
    Left,
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
        let (len, limit) = (message.len(), node.limits.max_message());
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
    pub fn set_data(&self, data: impl AsRef<[u8]>) {
        let Some(node) = self.0.node.upgrade() else {
            return;
        };
        // Of its own, so that nothing of the application's is dropped under a lock.
        let data = Bytes::copy_from_slice(data.as_ref());
        let mut state = self.0.state();
        state.data = Some(data);
        state.dirty = true;
        drop(state);
        self.0.kick(&node);
    }

    /// Ends the session, once the client has been sent everything; at once, if it is away. No message of the
    /// client's is received any more.
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

    /// Whether all that it has done is stored.
    pub(in crate::server) fn is_settled(&self) -> bool {
        let state = self.0.state();
        state.over.is_some() || !(state.dirty || state.busy || state.running)
    }

    /// Whether it is over on this node.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }

    /// Has `task` run as a callback of this session: behind those that are due, and beside none. What it
    /// sends on the session and what it [keeps](Self::set_data) is stored together. May run it before it
    /// returns, on this thread, with other callbacks of the session; so hold no lock that they take.
    ///
    /// If the session is over before its turn comes, the task is dropped. One that panics ends the
    /// session.
    ///
    /// # Errors
    ///
    /// [`SendError::Closed`] if the session is over; [`SendError::Full`] if 1,024 tasks wait for their
    /// turn already: no `writable` follows.
    pub fn run_in_turn(
        &self,
        task: impl FnOnce(&Session) + Send + 'static,
    ) -> Result<(), SendError> {
        let node = self.0.node.upgrade().ok_or(SendError::Closed)?;
        self.0.run_task(&node, Box::new(task))
    }

    /// The client's address, while it has a connection; behind a proxy, what that says it is.
    pub fn client_addr(&self) -> Option<SocketAddr> {
        let connection = self.0.state().connection.clone()?;
        Some(connection.client_addr())
    }

    /// What the messages count that the client has not acknowledged: their bytes, and 64 for each.
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
    /// A session whose handler the application makes of `data`, and is called for `first` once it
    /// [begins](Self::begin).
    pub(in crate::server) fn new(
        node: &Arc<Node>,
        id: SessionId,
        origin: Origin,
        data: &Bytes,
        first: Event,
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
            last_begun: 0,
            last_kept: 0,
            connection: None,
            changes: 0,
            is_away: false,
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
            resumes: VecDeque::new(),
            resuming: false,
            begun: false,
            handler: None,
            // Until it begins.
            running: true,
            events: VecDeque::from([first]),
            waiting: 0,
            tasks: 0,
            ending: false,
            has_left: false,
            pumping: false,
            pump_again: false,
            pump_is_due: false,
            repeat_is_due: false,
            repeats: 0,
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

    pub(in crate::server) fn is_over(&self) -> bool {
        self.state().over.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.outbox.has_greeting();
        if !std::mem::replace(&mut self.has_token, true) {
            self.confirms = true;
            self.dirty = true;
        }
    }
}
