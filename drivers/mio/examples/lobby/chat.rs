//! The chat of rooms, as all nodes have it: a log for each room, in which each line has a number.
//!
//! A line goes into the log once, however often it is appended; and players are given the log from where
//! they are in it. So a line arrives once at each, whatever becomes of nodes and of news.

mod local;
mod redis;

pub use local::Local;
pub use redis::Redis;

use cubenet_session::SessionId;
use std::error::Error;
use std::time::SystemTime;

/// Lines of a room that are kept. A player that is behind further misses those before.
const MAX_LINES: usize = 10_000;
/// Lines that are read at once.
const MAX_READ: usize = 512;

/// A line that a player has said.
#[derive(Clone)]
pub struct Said {
    pub session: SessionId,
    /// Which of the lines of this session it is, from 1.
    pub number: u64,
    pub room: String,
    pub name: String,
    pub text: String,
}

/// A line of a room's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its place in the log. A room that is forgotten begins anew with larger numbers: those of the clock.
    pub number: u64,
    pub name: String,
    pub text: String,
}

/// Why a log cannot be used now.
pub type Away = Box<dyn Error + Send + Sync>;

/// Milliseconds of the system's clock.
fn clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// What nodes have in common besides sessions. Calls may block.
pub trait Chat: Send + Sync + 'static {
    /// Appends a line to the log of its room, unless it or a later one of its session is in it.
    fn append(&self, said: &Said) -> Result<(), Away>;

    /// The number of the last line of a room; 0 if there is none.
    fn last(&self, room: &str) -> Result<u64, Away>;

    /// Some lines of a room, behind the one with this number.
    fn read(&self, room: &str, after: u64) -> Result<Vec<Line>, Away>;

    /// No player of this node is in a room any more. Called under a lock of the hall, so it neither blocks nor
    /// calls it.
    fn is_left(&self, room: &str) {
        let _ = room;
    }

    /// Tells the other nodes where the players of this one are. May be lost.
    fn publish_dots(&self, dots: Vec<u8>);
}

/// What a node hears of the others.
pub trait News: Send + Sync + 'static {
    /// There may be new lines in a room, or, without one, in any.
    fn lines(&self, room: Option<&str>);

    /// Where the players of another node are.
    fn dots(&self, dots: &[u8]);
}
