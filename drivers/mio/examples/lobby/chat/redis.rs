//! The chat of several nodes, in Redis: a stream for each room, and news by publish and subscribe.
//!
//! News may be lost, as when a node has no connection for a moment: then it looks into all rooms.

use super::{Away, Chat, Line, MAX_LINES, MAX_READ, News, Said};
use redis::{Client, Commands, Connection, ConnectionLike, Script};
use std::error::Error;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// When Redis is tried again that was away.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a room is remembered in which nothing is said.
const ROOM_EXPIRES: u64 = 24 * 3_600;
/// The same for which lines of a session are in the log, beyond the time that it waits for its client.
const SAID_EXPIRES: u64 = 3_600;

/// Bytes of the number of a process.
pub const OWN: usize = 8;

const LINES: &str = "lobby:lines";
const DOTS: &str = "lobby:dots";

/// The line comes before the note that it is there: a script that fails in the middle is done again.
const APPEND: &str = r"
if tonumber(ARGV[1]) <= tonumber(redis.call('GET', KEYS[1]) or '0') then return 0 end
local number = tonumber(redis.call('GET', KEYS[2]) or ARGV[9]) + 1
number = string.format('%.0f', number)
redis.call('SET', KEYS[2], number, 'EX', ARGV[6])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], number .. '-0', 'name', ARGV[2], 'text', ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[6])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[7])
redis.call('PUBLISH', ARGV[8], ARGV[4])
return 1
";

pub struct Redis {
    client: Client,
    append: Script,
    /// Connections that are not in use: as many as there are threads that ask at once.
    spare: Mutex<Vec<Connection>>,
    dots: SyncSender<Vec<u8>>,
    wait: Duration,
    /// What the dots of this process begin with, and those of no other.
    own: [u8; OWN],
}

/// What a stream says of each of its lines: its number, and its fields.
type Entries = Vec<(String, Vec<(String, String)>)>;

impl Redis {
    /// The chat in Redis at a URL like `redis://127.0.0.1/`, for sessions that wait for so long.
    pub fn new(url: &str, wait: Duration) -> Result<Self, Box<dyn Error>> {
        let client = Client::open(url).map_err(|error| {
            format!("--redis takes the place of a Redis, such as redis://127.0.0.1/: {error}")
        })?;
        if let Err(error) = connect(&client) {
            // Without the URL, which may have a password in it.
            let place = client.get_connection_info().addr();
            complain!(
                "Redis does not answer at {place}: {error}. Logins are refused until it does"
            );
        }
        let own = fastrand::u64(..).to_be_bytes();
        // What is not told before the next is old.
        let (dots, to_publish) = sync_channel::<Vec<u8>>(1);
        let redis = Redis {
            client: client.clone(),
            append: Script::new(APPEND),
            spare: Mutex::default(),
            dots,
            wait,
            own,
        };
        thread::Builder::new()
            .name("lobby-dots".to_owned())
            .spawn(move || {
                let mut connection = None;
                for dots in to_publish {
                    let _ = on_connection(&client, &mut connection, |connection| {
                        connection.publish::<_, _, ()>(DOTS, [&own[..], &dots].concat())
                    });
                }
            })?;
        Ok(redis)
    }

    /// From now on this hears of lines, and of the players of other nodes.
    pub fn tell(&self, news: &Arc<dyn News>) -> io::Result<()> {
        let (client, own, news) = (self.client.clone(), self.own, Arc::downgrade(news));
        let listen = move || {
            while news.strong_count() > 0 {
                // Whatever it was that ended it, the next try says more.
                let _ = subscribe(&client, &own, &news);
                thread::sleep(AGAIN);
            }
        };
        let thread = thread::Builder::new().name("lobby-news".to_owned());
        thread.spawn(listen).map(drop)
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<R>(
        &self,
        ask: impl FnOnce(&mut Connection) -> Result<R, redis::RedisError>,
    ) -> Result<R, Away> {
        let mut connection = self.spare().pop();
        let answer = on_connection(&self.client, &mut connection, ask);
        self.spare().extend(connection);
        answer.map_err(Away::from)
    }
}

fn connect(client: &Client) -> Result<Connection, redis::RedisError> {
    let connection = client.get_connection_with_timeout(TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

/// Asks Redis on this connection, or on a new one. One that has failed is used no more.
fn on_connection<R>(
    client: &Client,
    connection: &mut Option<Connection>,
    ask: impl FnOnce(&mut Connection) -> Result<R, redis::RedisError>,
) -> Result<R, redis::RedisError> {
    let mut used = match connection.take() {
        Some(connection) => connection,
        None => connect(client)?,
    };
    let answer = ask(&mut used)?;
    if used.is_open() {
        *connection = Some(used);
    }
    Ok(answer)
}

/// Hears of news until the connection ends, or nothing listens.
fn subscribe(client: &Client, own: &[u8], news: &Weak<dyn News>) -> Result<(), redis::RedisError> {
    let mut connection = connect(client)?;
    let mut subscription = connection.as_pubsub();
    subscription.subscribe(&[LINES, DOTS])?;
    // What came while there was no subscription.
    if let Some(news) = news.upgrade() {
        news.lines(None);
    }
    loop {
        let message = match subscription.get_message() {
            Ok(message) => Some(message),
            Err(error) if error.is_timeout() => None,
            Err(error) => return Err(error),
        };
        let Some(news) = news.upgrade() else {
            return Ok(());
        };
        let Some(message) = message else {
            // A connection that has died without a word is noticed at the next news only.
            news.lines(None);
            continue;
        };
        let payload = message.get_payload_bytes();
        match message.get_channel_name() {
            LINES => news.lines(std::str::from_utf8(payload).ok()),
            _ if payload.starts_with(own) => {}
            _ => news.dots(payload),
        }
    }
}

impl Chat for Redis {
    fn append(&self, said: &Said) -> Result<(), Away> {
        self.ask(|connection| {
            self.append
                .key(format!("lobby:said:{}", said.session))
                .key(format!("lobby:last:{}", said.room))
                .key(format!("lobby:log:{}", said.room))
                .arg(said.number)
                .arg(&said.name)
                .arg(&said.text)
                .arg(&said.room)
                .arg(MAX_LINES)
                .arg(ROOM_EXPIRES)
                .arg(2 * self.wait.as_secs() + SAID_EXPIRES)
                .arg(LINES)
                .arg(super::clock())
                .invoke::<u64>(connection)
        })?;
        Ok(())
    }

    fn last(&self, room: &str) -> Result<u64, Away> {
        let last: Option<u64> =
            self.ask(|connection| connection.get(format!("lobby:last:{room}")))?;
        Ok(last.unwrap_or(0))
    }

    fn read(&self, room: &str, after: u64) -> Result<Vec<Line>, Away> {
        let entries: Entries = self.ask(|connection| {
            redis::cmd("XRANGE")
                .arg(format!("lobby:log:{room}"))
                .arg(format!("({after}-0"))
                .arg("+")
                .arg("COUNT")
                .arg(MAX_READ)
                .query(connection)
        })?;
        let line = |(id, fields): (String, Vec<(String, String)>)| {
            let [(_, name), (_, text)] = <[_; 2]>::try_from(fields).ok()?;
            let number = id.split_once('-')?.0.parse().ok()?;
            Some(Line { number, name, text })
        };
        let lines: Option<Vec<Line>> = entries.into_iter().map(line).collect();
        lines.ok_or_else(|| format!("lobby:log:{room} is no log of this program's").into())
    }

    fn publish_dots(&self, dots: Vec<u8>) {
        // Those that find the thread busy are lost.
        let _ = self.dots.try_send(dots);
    }
}
