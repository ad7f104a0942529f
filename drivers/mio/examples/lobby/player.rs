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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines that a player may have said and that are not in the log. More come only from a player that talks
/// faster than the log takes it.
const MAX_PENDING: usize = 256;
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
        let state = State {
            handed: kept.heard.unwrap_or(0),
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
    /// Behind which line it is to be given the next; none, if it is new in the room.
    pub fn next_after(&self) -> Option<u64> {
        let state = self.state();
        let heard = state.kept.heard?;
        Some(heard.max(state.handed))
    }

    /// It hears what is said from now on.
    pub fn begin_after(self: &Arc<Self>, last: u64) {
        let player = Arc::clone(self);
        let begin = move |session: &Session| {
            let mut state = player.state();
            if state.kept.heard.is_none() {
                state.kept.heard = Some(last);
                state.handed = last;
                session.set_data(state.kept.encode());
            }
        };
        let _ = self.session.run_in_turn(begin);
    }

    /// Sends it the lines that it has not been given, in its turn. What it has been sent is stored with
    /// the session, together with the messages: on another node it goes on behind them. Returns whether
    /// it took them; otherwise it is to be given them again.
    pub fn hand(self: &Arc<Self>, lines: &Arc<Vec<(u64, Vec<u8>)>>) -> bool {
        let mut state = self.state();
        let before = state.handed;
        let Some((last, _)) = lines.last().filter(|(number, _)| *number > before) else {
            return true;
        };
        state.handed = *last;
        drop(state);
        let (player, lines) = (Arc::clone(self), Arc::clone(lines));
        let send = move |session: &Session| player.send(session, before, &lines);
        let is_full = self.session.run_in_turn(send) == Err(SendError::Full);
        if is_full {
            self.state().handed = before;
        }
        !is_full
    }

    /// Sends it these lines, which follow on that with the number `after`.
    fn send(&self, session: &Session, after: u64, lines: &[(u64, Vec<u8>)]) {
        let mut state = self.state();
        let heard = state.kept.heard.unwrap_or(0);
        if after > heard {
            // Those between found no room.
            state.handed = heard;
            return;
        }
        let mut sent = heard;
        for (number, line) in lines.iter().filter(|(number, _)| *number > heard) {
            if session.send(line).is_err() {
                // `writable` has it given the rest again, if the session lives.
                state.handed = sent;
                break;
            }
            sent = *number;
        }
        if sent > heard {
            state.kept.heard = Some(sent);
            session.set_data(state.kept.encode());
        }
    }
}

/// The chat: from the player to the room's log.
impl Player {
    /// It has said something. Returns whether it may go on.
    fn says(&self, session: &Session, text: String) -> bool {
        let mut state = self.state();
        if state.kept.pending.len() >= MAX_PENDING {
            return false;
        }
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
        state
            .kept
            .pending
            .retain(|(number, _)| *number > said.number);
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
    /// Whether it knows where to send its datagrams.
    pub welcomed: bool,
}

impl Seat {
    fn welcome(&mut self, session: &Session) {
        if self.welcomed {
            return;
        }
        let welcome = ToPlayer::Welcome {
            ticket: self.player.ticket,
            udp: self.hall.udp(),
        };
        self.welcomed = session.send(&welcome.encode()) != Err(SendError::Full);
    }

    fn arrives(&mut self, session: &Session) {
        self.welcome(session);
        self.hall.deliver(&self.player.room);
        self.hall.publish(&self.player);
    }
}

impl SessionHandler for Seat {
    fn opened(&mut self, session: &Session) {
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
        self.welcome(session);
        self.hall.deliver(&self.player.room);
    }

    fn ended(&mut self, _session: &Session, reason: End) {
        self.hall.leave(&self.player, reason);
    }
}
