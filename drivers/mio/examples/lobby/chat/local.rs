//! The chat of a single node, in its memory.

use super::{Away, Chat, Line, MAX_LINES, MAX_READ, News, Said};
use cubenet_session::SessionId;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

#[derive(Default)]
pub struct Local {
    rooms: Mutex<HashMap<String, Log>>,
    news: OnceLock<Arc<dyn News>>,
}

#[derive(Default)]
struct Log {
    last: u64,
    lines: VecDeque<Line>,
    /// How many lines of each session are in it.
    said: HashMap<SessionId, u64>,
}

impl Local {
    /// From now on this hears of lines.
    pub fn tell(&self, news: Arc<dyn News>) {
        let _ = self.news.set(news);
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<String, Log>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chat for Local {
    fn append(&self, said: &Said) -> Result<(), Away> {
        let mut rooms = self.rooms();
        let log = rooms.entry(said.room.clone()).or_insert_with(|| Log {
            last: super::clock(),
            ..Log::default()
        });
        let last = log.said.entry(said.session).or_default();
        if said.number <= *last {
            return Ok(());
        }
        *last = said.number;
        log.last += 1;
        log.lines.push_back(Line {
            number: log.last,
            name: said.name.clone(),
            text: said.text.clone(),
        });
        if log.lines.len() > MAX_LINES {
            log.lines.pop_front();
        }
        drop(rooms);
        if let Some(news) = self.news.get() {
            news.lines(Some(&said.room));
        }
        Ok(())
    }

    fn last(&self, room: &str) -> Result<u64, Away> {
        Ok(self.rooms().get(room).map_or(0, |log| log.last))
    }

    fn read(&self, room: &str, after: u64) -> Result<Vec<Line>, Away> {
        let rooms = self.rooms();
        let Some(log) = rooms.get(room) else {
            return Ok(Vec::new());
        };
        let read = log.lines.partition_point(|line| line.number <= after);
        let lines = log.lines.iter().skip(read).take(MAX_READ);
        Ok(lines.cloned().collect())
    }

    fn is_left(&self, room: &str) {
        // Nor on another node.
        self.rooms().remove(room);
    }

    // There is no other node.
    fn publish_dots(&self, _dots: Vec<u8>) {}
}
