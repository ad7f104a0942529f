//! The players of a node and their rooms.
//!
//! Workers and sessions call into it and are never held up: what asks the chat, which may be Redis, is a job
//! for the hall's own threads.

use crate::chat::{Away, Chat, News};
use crate::player::{Kept, Next, Player, Seat, encoded};
use crate::protocol::{Dot, Ticket, ToPlayer, read_credentials};
use bytes::Bytes;
use cubenet_session::wire::End;
use cubenet_session::{Application, Environment, Job, Session, SessionHandler, SessionId, Threads};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// When the chat is asked again that was away.
const AGAIN: Duration = Duration::from_millis(200);
/// Lines of a player that are appended before others have their turn.
const PUBLISHED_AT_ONCE: usize = 64;
/// What another node has said of its players is believed for so long.
const DOTS_EXPIRE: Duration = Duration::from_secs(1);

pub struct Hall {
    chat: Arc<dyn Chat>,
    /// The application's own threads: a work queue.
    threads: Threads,
    /// Where players send their datagrams.
    udp: OnceLock<SocketAddr>,
    tables: Mutex<Tables>,
    this: Weak<Hall>,
    pub counts: Counts,
}

/// What has happened.
#[derive(Default)]
pub struct Counts {
    pub lines_published: AtomicU64,
    pub ended: Mutex<HashMap<End, u64>>,
}

#[derive(Default)]
struct Tables {
    players: HashMap<SessionId, Arc<Player>>,
    tickets: HashMap<Ticket, Arc<Player>>,
    rooms: HashMap<String, Room>,
    /// What the other nodes have said of their players, and when.
    others: HashMap<u64, (Instant, Dots)>,
}

/// Where players are, room by room.
type Dots = HashMap<String, Vec<Dot>>;

#[derive(Default)]
struct Room {
    players: Vec<Arc<Player>>,
    /// A job sees what there is to deliver; and it is to look once more.
    delivering: bool,
    again: bool,
}

impl Hall {
    /// A hall that works with so many threads.
    pub fn new(chat: Arc<dyn Chat>, threads: usize) -> std::io::Result<Arc<Self>> {
        let threads = Threads::start(threads)?;
        Ok(Arc::new_cyclic(|this| Hall {
            chat,
            threads,
            udp: OnceLock::new(),
            tables: Mutex::default(),
            this: this.clone(),
            counts: Counts::default(),
        }))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Players are told to send their datagrams there.
    pub fn set_udp(&self, address: SocketAddr) {
        let _ = self.udp.set(address);
    }

    pub fn udp(&self) -> SocketAddr {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        self.udp.get().copied().unwrap_or(unknown)
    }

    pub fn players(&self) -> usize {
        self.tables().players.len()
    }

    pub fn rooms(&self) -> usize {
        self.tables().rooms.len()
    }

    /// The player who was given this ticket.
    pub fn ticket(&self, ticket: &Ticket) -> Option<Arc<Player>> {
        self.tables().tickets.get(ticket).cloned()
    }

    fn enter(&self, player: &Arc<Player>) {
        let mut tables = self.tables();
        let before = tables.players.insert(player.id(), Arc::clone(player));
        tables.tickets.insert(player.ticket, Arc::clone(player));
        let room = tables.rooms.entry(player.room.clone()).or_default();
        room.players.push(Arc::clone(player));
        drop(tables);
        drop(before);
    }

    pub fn count_ended(&self, reason: End) {
        let mut ended = self.counts.ended.lock();
        let ended = ended.as_mut().expect("no thread panics with it");
        *ended.entry(reason).or_default() += 1;
    }

    pub fn leave(&self, player: &Arc<Player>) {
        let mut tables = self.tables();
        tables.tickets.remove(&player.ticket);
        // It may be here again already.
        if tables
            .players
            .get(&player.id())
            .is_some_and(|one| Arc::ptr_eq(one, player))
        {
            tables.players.remove(&player.id());
        }
        if let Some(room) = tables.rooms.get_mut(&player.room) {
            room.players.retain(|one| !Arc::ptr_eq(one, player));
            if room.players.is_empty() {
                tables.rooms.remove(&player.room);
                // Before a new player can be in it.
                self.chat.is_left(&player.room);
            }
        }
    }

    /// What tells a player where to send its datagrams.
    pub fn welcome(&self, player: &Player) -> Vec<u8> {
        let (ticket, udp) = (player.ticket, self.udp());
        ToPlayer::Welcome { ticket, udp }.encode()
    }

    /// Waits until all that players have said is in the log, for this long at most. For a node that stops.
    pub fn settle(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        let is_settled = |hall: &Hall| {
            let tables = hall.tables();
            tables.players.values().all(|player| player.has_published())
        };
        while !is_settled(self) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn run(&self, job: impl FnOnce(&Arc<Hall>) + Send + 'static) {
        self.threads.run(self.job(job));
    }

    fn run_again(&self, job: impl FnOnce(&Arc<Hall>) + Send + 'static) {
        self.threads.run_after(AGAIN, self.job(job));
    }

    /// A job that does nothing once the hall is gone.
    fn job(&self, job: impl FnOnce(&Arc<Hall>) + Send + 'static) -> Job {
        let this = self.this.clone();
        Box::new(move || {
            if let Some(hall) = this.upgrade() {
                job(&hall);
            }
        })
    }
}

/// The chat.
impl Hall {
    /// There may be something for the players of a room.
    pub fn deliver(&self, room: &str) {
        let mut tables = self.tables();
        let Some(of_room) = tables.rooms.get_mut(room) else {
            return;
        };
        of_room.again = true;
        if std::mem::replace(&mut of_room.delivering, true) {
            return;
        }
        drop(tables);
        let room = room.to_owned();
        self.run(move |hall| hall.deliver_all(&room));
    }

    fn deliver_all(self: &Arc<Self>, room: &str) {
        loop {
            let mut tables = self.tables();
            let Some(of_room) = tables.rooms.get_mut(room) else {
                return;
            };
            if !std::mem::take(&mut of_room.again) {
                of_room.delivering = false;
                return;
            }
            let players = of_room.players.clone();
            drop(tables);
            match self.deliver_to(room, &players) {
                // There may be more. Other rooms come first.
                Ok(true) => {
                    let of_job = room.to_owned();
                    self.look_again(room);
                    return self.run(move |hall| hall.deliver_all(&of_job));
                }
                Ok(false) => {}
                Err(_) => {
                    let of_job = room.to_owned();
                    self.look_again(room);
                    return self.run_again(move |hall| hall.deliver_all(&of_job));
                }
            }
        }
    }

    fn look_again(&self, room: &str) {
        if let Some(of_room) = self.tables().rooms.get_mut(room) {
            of_room.again = true;
        }
    }

    /// Gives the players some of what is in the log and they have not been given. Returns whether there may
    /// be more.
    fn deliver_to(&self, room: &str, players: &[Arc<Player>]) -> Result<bool, Away> {
        if players.iter().any(|player| player.next() == Next::New) {
            let last = self.chat.last(room)?;
            for player in players.iter().filter(|one| one.next() == Next::New) {
                player.begin_after(last, self.welcome(player), self.this.clone());
            }
        }
        let after = players.iter().filter_map(|player| match player.next() {
            Next::After(number) => Some(number),
            Next::New | Next::Full => None,
        });
        let Some(after) = after.min() else {
            return Ok(false);
        };
        let lines = self.chat.read(room, after)?;
        let lines: Arc<Vec<_>> = Arc::new(lines.iter().map(encoded).collect());
        for player in players {
            player.hand(after, &lines);
        }
        Ok(!lines.is_empty())
    }

    /// Sees that what a player has said comes into the log.
    pub fn publish(&self, player: &Arc<Player>) {
        if player.begin_publishing() {
            let player = Arc::clone(player);
            self.run(move |hall| hall.publish_all(player));
        }
    }

    fn publish_all(self: &Arc<Self>, player: Arc<Player>) {
        for _ in 0..PUBLISHED_AT_ONCE {
            let Some(said) = player.to_publish() else {
                return;
            };
            if self.chat.append(&said).is_err() {
                return self.run_again(move |hall| hall.publish_all(player));
            }
            self.counts.lines_published.fetch_add(1, Relaxed);
            player.published(&said);
        }
        self.run(move |hall| hall.publish_all(player));
    }
}

impl News for Hall {
    fn lines(&self, room: Option<&str>) {
        if let Some(room) = room {
            return self.deliver(room);
        }
        let rooms: Vec<String> = self.tables().rooms.keys().cloned().collect();
        for room in rooms {
            self.deliver(&room);
        }
    }

    fn dots(&self, dots: &[u8]) {
        if let Some((node, rooms)) = read_dots(dots) {
            let mut tables = self.tables();
            tables.others.insert(node, (Instant::now(), rooms));
        }
    }
}

/// The rooms, for the tick.
impl Hall {
    /// The players of this node by room, and where those of other nodes are.
    pub fn by_room(&self) -> Vec<(String, Vec<Arc<Player>>, Vec<Dot>)> {
        let mut tables = self.tables();
        let Tables { rooms, others, .. } = &mut *tables;
        others.retain(|_, (at, _)| at.elapsed() < DOTS_EXPIRE);
        let of_room = |(name, room): (&String, &Room)| {
            let others = others.values().filter_map(|(_, rooms)| rooms.get(name));
            let others = others.flatten().copied().collect();
            (name.clone(), room.players.clone(), others)
        };
        rooms.iter().map(of_room).collect()
    }

    /// Tells the other nodes where the players of this one are.
    pub fn publish_dots(&self, rooms: &[(String, Vec<Dot>)]) {
        let mut bytes = Vec::new();
        for (room, dots) in rooms {
            let dots = Dot::encode_all(dots);
            bytes.push(room.len() as u8);
            bytes.extend_from_slice(room.as_bytes());
            bytes.extend_from_slice(&(dots.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&dots);
        }
        self.chat.publish_dots(bytes);
    }
}

/// The number of a node, and where its players are, room by room.
fn read_dots(bytes: &[u8]) -> Option<(u64, Dots)> {
    let (node, mut rest) = bytes.split_first_chunk()?;
    let mut rooms = HashMap::new();
    while let Some((len, behind)) = rest.split_first() {
        let (room, behind) = behind.split_at_checked(usize::from(*len))?;
        let (len, behind) = behind.split_first_chunk()?;
        let (dots, behind) = behind.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        let room = std::str::from_utf8(room).ok()?.to_owned();
        rooms.insert(room, Dot::decode_all(dots).collect());
        rest = behind;
    }
    Some((u64::from_be_bytes(*node), rooms))
}

/// What the sessions of this node ask.
pub struct Doors(pub Arc<Hall>);

impl Application for Doors {
    fn login(&self, credentials: &[u8], _from: SocketAddr) -> Option<Bytes> {
        let (room, name) = read_credentials(credentials)?;
        Some(Kept::new(room, name).encode())
    }

    fn handler(&self, session: &Session, data: &Bytes) -> Box<dyn SessionHandler> {
        let kept = Kept::decode(data).unwrap_or_else(|| {
            // Of another version of this program, and of no use.
            session.end();
            Kept::new("none", "none")
        });
        let mut ticket = Ticket::default();
        getrandom::fill(&mut ticket).expect("the system has random bytes");
        let player = Player::new(session, kept, ticket);
        self.0.enter(&player);
        Box::new(Seat {
            hall: Arc::clone(&self.0),
            player,
            welcomed: false,
        })
    }
}
