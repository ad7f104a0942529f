//! The server's half: sessions, whose clients come and go.
//!
//! ```text
//!  connection ──► Gate ──► login, resume ──► a job: Application::login, Store::open or resume
//!                  │                                             │
//!                  └──► Live::received ──► SessionHandler        ▼
//!                          │                            Live::attach: the connection, its answer
//!                          ▼
//!                        a job: Store::update ──► acknowledgement and messages to the client
//! ```
//!
//! What a session has done becomes known when it is stored: a message is acknowledged, and messages to the
//! client leave, once an update with all of it has been kept. So a node may die at any time. What it had
//! done and not stored never happened: the client sends the message again, to the node that has the
//! session next.

mod breaker;
mod carrier;
mod gate;
mod limits;
mod live;

pub use gate::Gate;
pub use limits::SessionLimits;
pub use live::Session;

use crate::environment::Environment;
use crate::store::{Opening, Resume, SecretHash, Store, StoreError, Stored};
use crate::token::{SessionId, Token};
use crate::wire::{self, End, Refusal};
use breaker::Breaker;
use bytes::Bytes;
use cubenet_core::{Handle, Instant};
use gate::Answer;
use limits::Rates;
use live::{Coming, Event, Greeted, Live, Origin, PendingResume, Refused, Reply};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a message counts beside its bytes, where messages are bounded: what keeps it takes about as much.
const OVERHEAD: usize = 64;
/// When to try again what is refused because there is too much of it, or for lack of the store.
const RETRY: Duration = Duration::from_secs(1);

/// What an application decides about sessions.
pub trait Application: Send + Sync + 'static {
    /// Checks the credentials of a login. Returns the data that the session begins with, or `None` to
    /// refuse. `from` is the client's address, as the PROXY protocol tells it where the listener has that
    /// layer. Runs on a thread of the [`Environment`], so it may ask a database.
    fn login(&self, credentials: &[u8], from: SocketAddr) -> Option<Bytes>;

    /// Makes the handler of a session that has been opened, or that has come from another node, with
    /// the data that was stored last.
    fn handler(&self, session: &Session, data: &Bytes) -> Box<dyn SessionHandler>;
}

/// The application's side of one session on this node. Its callbacks come one at a time and in order,
/// from the network's threads and those of the [`Environment`]. One that panics ends the session, and is the
/// last.
///
/// A session is `opened`, or, if it comes from another node, `resumed`. It may be `suspended` and
/// `resumed` any number of times. `ended` comes last.
pub trait SessionHandler: Send + 'static {
    /// The session is new.
    fn opened(&mut self, session: &Session) {
        let _ = session;
    }

    /// A message of the client's. What the callback sends on its session and what it
    /// [keeps](Session::set_data) is stored together with the fact that the message was received. If that
    /// fails because the node dies, another node receives the message, with the data as it was before.
    fn received(&mut self, session: &Session, message: &[u8]);

    /// After a `send` answered [`SendError::Full`](cubenet_core::SendError::Full): there is room again.
    fn writable(&mut self, session: &Session) {
        let _ = session;
    }

    /// The client has lost its connection, and may come back.
    fn suspended(&mut self, session: &Session) {
        let _ = session;
    }

    /// The client has come back.
    fn resumed(&mut self, session: &Session) {
        let _ = session;
    }

    /// The session is over, on this node at least ([`End::TakenOver`]).
    fn ended(&mut self, session: &Session, reason: End) {
        let _ = (session, reason);
    }
}

/// The sessions of a node. A clone is another handle of the same.
///
/// ```no_run
/// # use cubenet_session::*;
/// # use bytes::Bytes;
/// # use std::net::SocketAddr;
/// struct Game;
///
/// impl Application for Game {
///     fn login(&self, credentials: &[u8], _from: SocketAddr) -> Option<Bytes> {
///         (credentials == b"open sesame").then(Bytes::new)
///     }
///
///     fn handler(&self, _session: &Session, _data: &Bytes) -> Box<dyn SessionHandler> {
///         Box::new(Echo)
///     }
/// }
///
/// struct Echo;
///
/// impl SessionHandler for Echo {
///     fn received(&mut self, session: &Session, message: &[u8]) {
///         let _ = session.send(message);
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let threads = Threads::start(4)?;
///     let sessions = Sessions::new(Game, Memory::new(), threads, SessionLimits::new());
///     let network = cubenet_mio::Network::builder().start()?;
///     network.listen(cubenet_mio::Transport::Tcp, "0.0.0.0:7000", move |connection| {
///         Some(sessions.gate(connection))
///     })?;
///     network.join();
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Sessions(Arc<Node>);

/// What the sessions of a node share.
struct Node {
    application: Box<dyn Application>,
    store: Breaker,
    environment: Box<dyn Environment>,
    limits: SessionLimits,
    table: Mutex<Table>,
    rates: Mutex<Rates>,
}

#[derive(Default)]
struct Table {
    live: HashMap<SessionId, Arc<Live>>,
    /// Sessions that are about to be in it: logins, and resumes of sessions that were elsewhere.
    coming: usize,
    /// Those of the latter.
    resuming: HashSet<SessionId>,
}

impl Sessions {
    /// The sessions of a node, which are kept in this store.
    pub fn new(
        application: impl Application,
        store: impl Store,
        environment: impl Environment,
        limits: SessionLimits,
    ) -> Self {
        Sessions(Arc::new(Node {
            application: Box::new(application),
            store: Breaker::new(store),
            environment: Box::new(environment),
            limits,
            table: Mutex::default(),
            rates: Mutex::default(),
        }))
    }

    /// The handler of a connection by which a client logs in or resumes: for the closure of `listen`.
    pub fn gate<C: Handle>(&self, connection: &C) -> Gate {
        Gate::new(Arc::clone(&self.0), Arc::new(connection.clone()))
    }

    /// The session with this number, if it is on this node.
    pub fn get(&self, session: SessionId) -> Option<Session> {
        let table = self.0.table();
        let live = table.live.get(&session)?;
        Some(Session::new(live))
    }

    /// All sessions on this node, in no order.
    pub fn all(&self) -> Vec<Session> {
        let table = self.0.table();
        table.live.values().map(Session::new).collect()
    }

    /// Waits until all that the sessions of this node have done is stored, for this long at most. For a
    /// node that stops, behind the end of its network: its clients go on elsewhere, with nothing to do
    /// again. Returns whether it is. Blocks, so it is not for callbacks.
    pub fn settle(&self, timeout: Duration) -> bool {
        let end = std::time::Instant::now() + timeout;
        loop {
            if self.all().iter().all(Session::is_settled) {
                return true;
            }
            if std::time::Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many sessions there are on this node.
    pub fn len(&self) -> usize {
        self.0.table().live.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl Node {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client wants a session.
    fn login(self: &Arc<Self>, credentials: &[u8], answer: Answer) {
        if credentials.len() > self.limits.max_credentials() {
            return answer.refuse((Refusal::Credentials, Duration::ZERO));
        }
        let now = self.environment.now();
        if !self.rates().login(now, &self.limits) || !self.table().reserve(&self.limits) {
            return answer.refuse((Refusal::Busy, RETRY));
        }
        let place = Place::new(self, None);
        let (node, credentials) = (Arc::clone(self), credentials.to_vec());
        self.environment.run(Box::new(move || {
            let Some(data) = node.application.login(&credentials, answer.client_addr()) else {
                return answer.refuse((Refusal::Credentials, Duration::ZERO));
            };
            match node.open(&data) {
                Ok((live, token)) => {
                    node.enter(&live, place);
                    let greeted = Greeted {
                        live,
                        fence: 1,
                        greeting: wire::welcome(&token).to_vec(),
                    };
                    answer.attach(&node, greeted);
                }
                Err(_) => answer.refuse((Refusal::StoreAway, RETRY)),
            }
        }));
    }

    fn open(self: &Arc<Self>, data: &Bytes) -> Result<(Arc<Live>, Token), StoreError> {
        let now = self.environment.now();
        let mut id = [0; SessionId::LEN];
        let random = self.environment.random(&mut id);
        random.map_err(|error| StoreError::Away(error.into()))?;
        let token = self.token(SessionId::from_bytes(id))?;
        let opening = Opening {
            secret: hash(&token),
            // Of its own, so that nothing of the application's is dropped under a lock.
            data: Bytes::copy_from_slice(data),
            expires_in: self.limits.expires_in(),
        };
        let store = |store: &dyn Store| store.open(token.session(), &opening);
        self.store.ask(&*self.environment, store)?;
        let origin = Origin::opened(now);
        let live = Live::new(self, token.session(), origin, data, Event::Opened);
        Ok((live, token))
    }

    /// A client goes on with its session.
    fn resume(self: &Arc<Self>, coming: Coming, answer: Answer) {
        let now = self.environment.now();
        let from = answer.client_addr().ip();
        if !self.rates().resume(from, now, &self.limits) {
            return answer.refuse((Refusal::Busy, RETRY));
        }
        let id = coming.token.session();
        let mut table = self.table();
        if let Some(live) = table.live.get(&id) {
            let live = Arc::clone(live);
            drop(table);
            let node = Arc::clone(self);
            let reply: Reply = Box::new(move |outcome| match outcome {
                Ok(greeted) => answer.attach(&node, greeted),
                Err(refused) => answer.refuse(refused),
            });
            let resume = PendingResume {
                coming,
                from,
                reply,
            };
            return live.resume(self, resume);
        }
        let may_come = !table.resuming.contains(&id) && table.reserve(&self.limits);
        if may_come {
            table.resuming.insert(id);
        }
        drop(table);
        if !may_come {
            return answer.refuse((Refusal::Busy, RETRY));
        }
        let place = Place::new(self, Some(id));
        let node = Arc::clone(self);
        self.environment.run(Box::new(move || {
            let started = node.environment.now();
            match node.take_over(&coming) {
                Ok((next, stored)) => {
                    let greeted = node.arrive(started, &next, &stored, place);
                    answer.attach(&node, greeted);
                }
                Err(error) => answer.refuse(node.refusal(&error, from)),
            }
        }));
    }

    /// A session has come from another node, at `now`.
    fn arrive(
        self: &Arc<Self>,
        now: Instant,
        next: &Token,
        stored: &Stored,
        place: Place,
    ) -> Greeted {
        let origin = Origin::resumed(now, stored);
        let live = Live::new(self, next.session(), origin, &stored.data, Event::Resumed);
        self.enter(&live, place);
        Greeted {
            live,
            fence: stored.fence,
            greeting: wire::resumed(next, stored.received).to_vec(),
        }
    }

    /// The same for one of which this node knew, and did not know that it was elsewhere.
    fn replace(
        self: &Arc<Self>,
        before: &Arc<Live>,
        now: Instant,
        next: &Token,
        stored: &Stored,
    ) -> Greeted {
        let mut table = self.table();
        table.coming += 1;
        table.resuming.insert(before.id());
        drop(table);
        let place = Place::new(self, Some(before.id()));
        before.finish(self, End::TakenOver);
        self.arrive(now, next, stored, place)
    }

    /// A session is on this node from now on.
    fn enter(self: &Arc<Self>, live: &Arc<Live>, place: Place) {
        let mut table = self.table();
        let before = table.live.insert(live.id(), Arc::clone(live));
        drop(table);
        debug_assert!(before.is_none(), "it was not on this node");
        drop(place);
        if live.is_over() {
            // Its handler has ended it while it was being made.
            self.forget(live);
        }
        self.renew_later(live);
    }

    /// Takes a session over from the store. Returns its next token, too.
    fn take_over(&self, coming: &Coming) -> Result<(Token, Stored), StoreError> {
        let token = &coming.token;
        let next = self.token(token.session())?;
        let resume = Resume {
            presented: hash(token),
            next: hash(&next),
            attempt: coming.attempt,
            received: coming.received,
            expires_in: self.limits.expires_in(),
        };
        let store = |store: &dyn Store| store.resume(token.session(), &resume);
        let stored = self.store.ask(&*self.environment, store)?;
        Ok((next, stored))
    }

    /// What a client is told whose resume has failed so.
    fn refusal(&self, error: &StoreError, from: IpAddr) -> Refused {
        match error {
            StoreError::Away(_) => return (Refusal::StoreAway, RETRY),
            // It may be its own: one whose answer was lost on the way from the store.
            StoreError::Overtaken => return (Refusal::Busy, RETRY),
            StoreError::WrongToken => {
                let now = self.environment.now();
                self.rates().wrong_token(from, now);
            }
            StoreError::Unknown | StoreError::Invalid | StoreError::Fenced => {}
        }
        // The same answer to all of these: it tells a guesser nothing.
        (Refusal::UnknownSession, Duration::ZERO)
    }

    /// A new token of a session.
    fn token(&self, session: SessionId) -> Result<Token, StoreError> {
        let mut secret = [0; Token::SECRET_LEN];
        let random: io::Result<()> = self.environment.random(&mut secret);
        random.map_err(|error| StoreError::Away(error.into()))?;
        Ok(Token::new(session, secret))
    }

    /// Looks at a session again and again, so that the store does not forget it while it has a client.
    fn renew_later(self: &Arc<Self>, live: &Arc<Live>) {
        let (node, live) = (Arc::downgrade(self), Arc::downgrade(live));
        let renew = Box::new(move || {
            if let (Some(node), Some(live)) = (node.upgrade(), live.upgrade())
                && live.renew(&node)
            {
                node.renew_later(&live);
            }
        });
        self.environment.run_after(self.limits.renew_every(), renew);
    }

    /// A session is over here.
    fn forget(&self, live: &Arc<Live>) {
        let mut table = self.table();
        let is_it = |one: &Arc<Live>| Arc::ptr_eq(one, live);
        if table.live.get(&live.id()).is_some_and(is_it) {
            table.live.remove(&live.id());
        }
    }
}

impl Table {
    /// Whether there is room for another session, which is coming from now on.
    fn reserve(&mut self, limits: &SessionLimits) -> bool {
        let fits = self.live.len() + self.coming < limits.max_sessions()
            && self.coming < limits.max_coming();
        if fits {
            self.coming += 1;
        }
        fits
    }
}

/// A session that is about to be in the table; when it is dropped, it is or never will be.
struct Place {
    node: Arc<Node>,
    /// Which is being resumed.
    resuming: Option<SessionId>,
}

impl Place {
    fn new(node: &Arc<Node>, resuming: Option<SessionId>) -> Self {
        Place {
            node: Arc::clone(node),
            resuming,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.node.table();
        table.coming -= 1;
        if let Some(session) = self.resuming {
            table.resuming.remove(&session);
        }
    }
}

/// What the store keeps of a token's secret.
fn hash(token: &Token) -> SecretHash {
    SecretHash(Sha256::digest(token.secret()).into())
}
