//! One player, as a node has it: what happens to the session, and what is kept with it.

use crate::chat::{Line, Said};
use crate::hall::Hall;
use crate::protocol::{Dot, MAX_LINE, Ticket, ToPlayer, WHO_AM_I};
use bytes::Bytes;
use cubenet_mio::{Connection, SendError};
use cubenet_session::wire::End;
use cubenet_session::{Session, SessionHandler, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Bytes of lines that a player may have said and that are not in the log, 16 for each line included. A
/// player that keeps less unacknowledged never has so much, even while Redis is away.
const MAX_PENDING: usize = 256 * 1_024;
const LINE_OVERHEAD: usize = 16;
/// A player that has not said for so long where it is is nowhere.
const SEEN: Duration = Duration::from_secs(1);

/// What is stored with a session: another node goes on from here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    pub room: String,
    pub name: String,
    /// The number of the last line of the room that was sent to the player; none before the first look.
    heard: Option<u64>,
    /// How many lines the player has said.
    said: u64,
    /// Those of them that are not known to be in the log, with their numbers. A line is stored here
    /// together with the fact that it was received; so it is acknowledged only when it cannot be lost.
    pending: VecDeque<(u64, String)>,
}

impl Kept {
    pub fn new(room: &str, name: &str) -> Self {
        Kept {
            room: room.to_owned(),
            name: name.to_owned(),
            heard: None,
            said: 0,
            pending: VecDeque::new(),
        }
    }

    pub fn encode(&self) -> Bytes {
        let text = serde_json::to_vec(self);
        text.expect("names and numbers can be written").into()
    }

    pub fn decode(data: &[u8]) -> Option<Self> {
        serde_json::from_slice(data).ok()
    }
}

/// A player of this node.
pub struct Player {
    pub session: Session,
    pub room: String,
    pub name: String,
    pub ticket: Ticket,
    /// What the session's callbacks and turns use.
    state: Mutex<State>,
    place: Mutex<Option<Place>>,
}

struct State {
    kept: Kept,
    /// The last line that was given to a turn of the session.
    handed: u64,
    /// It has no room for more, until `writable` says so.
    is_full: bool,
    /// What its pending lines count.
    pending_bytes: usize,
    /// Its lines are being put into the log.
    publishing: bool,
}

/// Where it was last, by its datagrams.
struct Place {
    dot: Dot,
    at: Instant,
    connection: Connection,
}

impl Player {
    pub fn new(session: &Session, kept: Kept, ticket: Ticket) -> Arc<Self> {
        let (room, name) = (kept.room.clone(), kept.name.clone());
        let count = |(_, text): &(u64, String)| text.len() + LINE_OVERHEAD;
        let state = State {
            handed: kept.heard.unwrap_or(0),
            is_full: false,
            pending_bytes: kept.pending.iter().map(count).sum(),
            kept,
            publishing: false,
        };
        Arc::new(Player {
            session: session.clone(),
            room,
            name,
            ticket,
            state: Mutex::new(state),
            place: Mutex::new(None),
        })
    }

    pub fn id(&self) -> SessionId {
        self.session.id()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its session has a connection from there: by datagrams any address could be claimed.
    pub fn is_from(&self, address: SocketAddr) -> bool {
        let session = self.session.client_addr();
        session.is_some_and(|session| session.ip() == address.ip())
    }

    /// It has said by this connection where it is.
    pub fn is_at(&self, connection: &Connection, x: i16, y: i16) {
        let id = self.id();
        let (player, _) = id.as_bytes().split_first_chunk().expect("it has 16 bytes");
        let player = u32::from_be_bytes(*player);
        *self.place() = Some(Place {
            dot: Dot { player, x, y },
            at: Instant::now(),
            connection: connection.clone(),
        });
    }

    /// Where it is, and the connection on which to tell it where the others are.
    pub fn seen(&self) -> Option<(Dot, Connection)> {
        let place = self.place();
        let place = place.as_ref().filter(|place| place.at.elapsed() < SEEN)?;
        Some((place.dot, place.connection.clone()))
    }
}

/// The chat: from the room's log to the player.
impl Player {
    /// Behind which line it is to be given the next.
    pub fn next(&self) -> Next {
        let state = self.state();
        match state.kept.heard {
            None => Next::New,
            Some(_) if state.is_full => Next::Full,
            Some(heard) => Next::After(heard.max(state.handed)),
        }
    }

    /// It hears what is said from now on, and is told so: `welcome` comes first.
    pub fn begin_after(self: &Arc<Self>, last: u64, welcome: Vec<u8>, hall: Weak<Hall>) {
        let player = Arc::clone(self);
        let begin = move |session: &Session| {
            let mut state = player.state();
            if state.kept.heard.is_none() {
                state.kept.heard = Some(last);
                state.handed = last;
                session.set_data(state.kept.encode());
                let _ = session.send(&welcome);
            }
            drop(state);
            // Lines may have come since the log was looked at.
            if let Some(hall) = hall.upgrade() {
                hall.deliver(&player.room);
            }
        };
        let _ = self.session.run_in_turn(begin);
    }

    /// Sends it these lines, which follow on that with the number `after`, in its turn. What it has been
    /// sent is stored with the session, together with the messages: on another node it goes on behind them.
    pub fn hand(self: &Arc<Self>, after: u64, lines: &Arc<Vec<(u64, Vec<u8>)>>) {
        let mut state = self.state();
        let before = state.handed;
        let Some((last, _)) = lines.last() else {
            return;
        };
        // Lines between would be missing; or it has all of them.
        if state.is_full || after > before || *last <= before {
            return;
        }
        state.handed = *last;
        drop(state);
        let (player, lines) = (Arc::clone(self), Arc::clone(lines));
        let send = move |session: &Session| player.send(session, after, &lines);
        if self.session.run_in_turn(send).is_err() {
            // It is over, or looks again when it is next asked.
            self.state().handed = before;
        }
    }

    fn send(&self, session: &Session, after: u64, lines: &[(u64, Vec<u8>)]) {
        let mut state = self.state();
        let heard = state.kept.heard.unwrap_or(0);
        let mut sent = heard;
        if after > heard {
            // Those between found no room.
            state.handed = heard;
            return;
        }
        for (number, line) in lines.iter().filter(|(number, _)| *number > heard) {
            if session.send(line).is_err() {
                // `writable` has it given the rest again, if the session lives.
                state.handed = sent;
                state.is_full = true;
                break;
            }
            sent = *number;
        }
        if sent > heard {
            state.kept.heard = Some(sent);
            session.set_data(state.kept.encode());
        }
    }

    /// There is room again.
    fn has_room(&self) {
        self.state().is_full = false;
    }
}

/// What a player is to be given next.
#[derive(Clone, Copy, PartialEq)]
pub enum Next {
    /// It is new in the room.
    New,
    /// The lines behind this one.
    After(u64),
    /// None, until there is room.
    Full,
}

/// The chat: from the player to the room's log.
impl Player {
    /// It has said something. Returns whether it may go on.
    fn says(&self, session: &Session, text: String) -> bool {
        let mut state = self.state();
        let bytes = state.pending_bytes + text.len() + LINE_OVERHEAD;
        if bytes > MAX_PENDING {
            return false;
        }
        state.pending_bytes = bytes;
        state.kept.said += 1;
        let number = state.kept.said;
        state.kept.pending.push_back((number, text));
        session.set_data(state.kept.encode());
        true
    }

    /// The next line to put into the log. The first time it says so, the caller has to see to it until
    /// there is none.
    pub fn begin_publishing(&self) -> bool {
        let mut state = self.state();
        !state.kept.pending.is_empty() && !std::mem::replace(&mut state.publishing, true)
    }

    /// Whether all that it has said is in the log.
    pub fn has_published(&self) -> bool {
        self.state().kept.pending.is_empty()
    }

    /// What is to be put into the log next. If there is nothing, that is over.
    pub fn to_publish(&self) -> Option<Said> {
        let mut state = self.state();
        let Some((number, text)) = state.kept.pending.front().cloned() else {
            state.publishing = false;
            return None;
        };
        Some(Said {
            session: self.id(),
            number,
            room: self.room.clone(),
            name: self.name.clone(),
            text,
        })
    }

    /// It is in the log.
    pub fn published(self: &Arc<Self>, said: &Said) {
        let mut state = self.state();
        let is_in = |(number, _): &mut (u64, String)| *number <= said.number;
        while state.kept.pending.front_mut().is_some_and(is_in) {
            let (_, text) = state.kept.pending.pop_front().expect("it is there");
            state.pending_bytes -= text.len() + LINE_OVERHEAD;
        }
        drop(state);
        let player = Arc::clone(self);
        let keep = move |session: &Session| session.set_data(player.state().kept.encode());
        // If that is not stored, another node puts it into the log again, which does nothing.
        let _ = self.session.run_in_turn(keep);
    }
}

/// A line as players are sent it.
pub fn encoded(line: &Line) -> (u64, Vec<u8>) {
    let message = ToPlayer::Line {
        number: line.number,
        name: &line.name,
        text: &line.text,
    };
    (line.number, message.encode())
}

/// The callbacks of a player's session. None of them blocks: what takes long is done by the hall's own
/// threads.
pub struct Seat {
    pub hall: Arc<Hall>,
    pub player: Arc<Player>,
    /// Whether this node has told it where to send its datagrams, or does when it is in its room.
    pub welcomed: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Without a word, if a callback has panicked.
        self.hall.leave(&self.player);
    }
}

impl Seat {
    fn welcome(&mut self, session: &Session) {
        // One that is new is welcomed when it can hear the others.
        if !self.welcomed && self.player.next() != Next::New {
            let welcome = self.hall.welcome(&self.player);
            self.welcomed = session.send(&welcome) != Err(SendError::Full);
        }
    }

    fn arrives(&mut self, session: &Session) {
        self.welcome(session);
        self.hall.deliver(&self.player.room);
        self.hall.publish(&self.player);
    }
}

impl SessionHandler for Seat {
    fn opened(&mut self, session: &Session) {
        self.welcomed = true;
        self.arrives(session);
    }

    fn resumed(&mut self, session: &Session) {
        self.arrives(session);
    }

    fn received(&mut self, session: &Session, message: &[u8]) {
        let text = std::str::from_utf8(message)
            .ok()
            .filter(|text| text.len() <= MAX_LINE);
        match text {
            Some(WHO_AM_I) => {
                let address = session.client_addr();
                let text = address.map_or_else(String::new, |address| address.to_string());
                // One that finds no room asks again.
                let _ = session.send(&ToPlayer::Notice(&text).encode());
            }
            Some(text) if self.player.says(session, text.to_owned()) => {
                self.hall.publish(&self.player);
            }
            _ => session.end(),
        }
    }

    fn writable(&mut self, session: &Session) {
        self.player.has_room();
        self.welcome(session);
        self.hall.deliver(&self.player.room);
    }

    fn ended(&mut self, _session: &Session, reason: End) {
        self.hall.count_ended(reason);
    }
}
