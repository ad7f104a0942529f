//! Sessions in Redis, which all nodes of a service share.
//!
//! A session is a hash, with its messages in a list beside it. Each operation is one script, which
//! Redis runs by itself: nothing comes between.

use super::{Opening, Resume, Store, StoreError, Stored, Update};
use crate::token::SessionId;
use bytes::Bytes;
use redis::{
    Client, Connection, ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation, Value,
};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Connections that are kept while no operation uses them.
const MAX_SPARE: usize = 64;

const OPEN: &str = r"
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'secret', ARGV[1], 'data', ARGV[2], 'fence', 1, 'attempt', 0,
  'updated', 0, 'received', 0, 'sent', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 'ok'
";

/// What both of the following begin with: `trim` forgets the messages up to a number.
const TRIM: &str = r"
local function trim(sent, acknowledged)
  local kept = sent - acknowledged
  if kept > 0 then
    redis.call('LTRIM', KEYS[2], -kept, -1)
  else
    redis.call('DEL', KEYS[2])
  end
end
";

const RESUME: &str = r"
local stored = redis.call('HMGET', KEYS[1], 'secret', 'next', 'received', 'sent', 'data', 'attempt')
if not stored[1] then return {'unknown'} end
if stored[1] ~= ARGV[1] and stored[2] ~= ARGV[1] then return {'wrong token'} end
if tonumber(ARGV[5]) <= tonumber(stored[6]) then return {'overtaken'} end
local received, sent = tonumber(ARGV[3]), tonumber(stored[4])
if received > sent then return {'invalid'} end
trim(sent, received)
redis.call('HSET', KEYS[1], 'secret', ARGV[1], 'next', ARGV[2], 'attempt', ARGV[5], 'updated', 0)
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {'ok', fence, tonumber(stored[3]), sent, stored[5], redis.call('LRANGE', KEYS[2], 0, -1)}
";

const UPDATE: &str = r"
local stored = redis.call('HMGET', KEYS[1], 'fence', 'received', 'sent', 'next', 'updated')
if not stored[1] then return 'unknown' end
if stored[1] ~= ARGV[1] then return 'fenced' end
local updated = tonumber(stored[5])
if tonumber(ARGV[9]) <= updated then return 'ok' end
if tonumber(ARGV[10]) > updated then return 'invalid' end
local received = math.max(tonumber(stored[2]), tonumber(ARGV[2]))
local sent = tonumber(stored[3])
if tonumber(ARGV[4]) > sent + 1 then return 'invalid' end
local known = math.max(sent + 1 - tonumber(ARGV[4]), 0)
sent = sent + math.max(#ARGV - 10 - known, 0)
if tonumber(ARGV[3]) > sent then return 'invalid' end
for nth = 11 + known, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[nth])
end
trim(sent, tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'updated', ARGV[9], 'received', received, 'sent', sent)
if ARGV[5] == '1' then redis.call('HSET', KEYS[1], 'data', ARGV[6]) end
if ARGV[7] == '1' and stored[4] then
  redis.call('HSET', KEYS[1], 'secret', stored[4])
  redis.call('HDEL', KEYS[1], 'next')
end
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
return 'ok'
";

const END: &str = r"
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence and fence ~= ARGV[1] then return 'fenced' end
redis.call('DEL', KEYS[1], KEYS[2])
return 'ok'
";

/// Keeps sessions in Redis (7.0 was tried). What it acknowledges survives a node, and Redis itself as far as that
/// is configured to: with `appendonly yes` and `appendfsync always`, a crash of Redis, too. Its
/// `maxmemory-policy` must be `noeviction`.
///
/// An operation takes a connection of its own, so as many are under way as the
/// [`Environment`](crate::Environment) has threads.
pub struct Redis {
    client: Client,
    prefix: String,
    timeout: Duration,
    spare: Mutex<Vec<Connection>>,
    open: Script,
    resume: Script,
    update: Script,
    end: Script,
}

impl Redis {
    /// A store at a URL like `redis://127.0.0.1/0`. Does not connect yet, so that a service starts while
    /// Redis is away.
    ///
    /// # Errors
    ///
    /// The URL is none.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        Ok(Redis {
            client: Client::open(url).map_err(away)?,
            prefix: "cubenet:".to_owned(),
            // A local Redis answers within a millisecond; a client that waits longer is better told.
            timeout: Duration::from_secs(2),
            spare: Mutex::default(),
            open: Script::new(OPEN),
            resume: Script::new(&[TRIM, RESUME].concat()),
            update: Script::new(&[TRIM, UPDATE].concat()),
            end: Script::new(END),
        })
    }

    /// What the names of its keys begin with; by default `cubenet:`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long Redis may take to answer before it counts as away; by default two seconds.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The keys of a session. What lies in braces decides on which node of a cluster they are: on the
    /// same.
    fn keys(&self, session: SessionId) -> [String; 2] {
        let name = format!("{}{{{session}}}", self.prefix);
        [format!("{name}:messages"), name]
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Connection, RedisError> {
        let connection = self.client.get_connection_with_timeout(self.timeout)?;
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(connection)
    }

    /// Runs a script on a session. A connection that failed is not used again.
    fn run<R: FromRedisValue>(
        &self,
        script: &Script,
        session: SessionId,
        arguments: impl FnOnce(&mut ScriptInvocation<'_>),
    ) -> Result<R, StoreError> {
        let [messages, name] = self.keys(session);
        let mut invocation = script.key(name);
        invocation.key(messages);
        arguments(&mut invocation);
        // One that was kept may have been closed since, while Redis was restarted.
        while let Some(mut connection) = self.take_spare() {
            match invocation.invoke(&mut connection) {
                Ok(answer) => {
                    self.keep(connection);
                    return Ok(answer);
                }
                Err(error) if error.is_connection_dropped() || error.is_io_error() => {
                    if error.is_timeout() {
                        return Err(away(error));
                    }
                }
                Err(error) => return Err(away(error)),
            }
        }
        let mut connection = self.connect().map_err(away)?;
        let answer = invocation.invoke(&mut connection).map_err(away)?;
        self.keep(connection);
        Ok(answer)
    }

    fn take_spare(&self) -> Option<Connection> {
        self.spare().pop()
    }

    fn keep(&self, connection: Connection) {
        let mut spare = self.spare();
        if spare.len() < MAX_SPARE {
            spare.push(connection);
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which may have a password in it.
        f.debug_struct("Redis")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Store for Redis {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        let said: String = self.run(&self.open, session, |script| {
            script
                .arg(&opening.secret.0[..])
                .arg(&opening.data[..])
                .arg(millis(opening.expires_in));
        })?;
        check(&said)
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        let said: Vec<Value> = self.run(&self.resume, session, |script| {
            script
                .arg(&resume.presented.0[..])
                .arg(&resume.next.0[..])
                .arg(resume.received)
                .arg(millis(resume.expires_in))
                .arg(resume.attempt);
        })?;
        let mut said = said.into_iter();
        check(&next::<String>(&mut said)?)?;
        Ok(Stored {
            fence: next(&mut said)?,
            received: next(&mut said)?,
            sent: next(&mut said)?,
            data: Bytes::from(next::<Vec<u8>>(&mut said)?),
            messages: next::<Vec<Vec<u8>>>(&mut said)?
                .into_iter()
                .map(Bytes::from)
                .collect(),
        })
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        let said: String = self.run(&self.update, session, |script| {
            script
                .arg(fence)
                .arg(update.received)
                .arg(update.acknowledged)
                .arg(update.first)
                .arg(u8::from(update.data.is_some()))
                .arg(update.data.as_deref().unwrap_or_default())
                .arg(u8::from(update.confirmed))
                .arg(millis(update.expires_in))
                .arg(update.number)
                .arg(update.last_kept);
            for message in &update.messages {
                script.arg(&message[..]);
            }
        })?;
        check(&said)
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        let said: String = self.run(&self.end, session, |script| {
            script.arg(fence);
        })?;
        check(&said)
    }
}

/// What a script has answered.
fn check(said: &str) -> Result<(), StoreError> {
    match said {
        "ok" => Ok(()),
        "unknown" => Err(StoreError::Unknown),
        "wrong token" => Err(StoreError::WrongToken),
        "invalid" => Err(StoreError::Invalid),
        "overtaken" => Err(StoreError::Overtaken),
        "fenced" => Err(StoreError::Fenced),
        other => Err(StoreError::Away(format!("Redis answered `{other}`").into())),
    }
}

/// The next of what a script has answered.
fn next<R: FromRedisValue>(said: &mut impl Iterator<Item = Value>) -> Result<R, StoreError> {
    let missing = || RedisError::from((ErrorKind::Parse, "an answer is too short"));
    let value = said.next().ok_or_else(missing).map_err(away)?;
    R::from_redis_value(value).map_err(|error| StoreError::Away(error.into()))
}

fn millis(duration: Duration) -> u64 {
    // Redis takes no more; and zero would forget at once.
    let most = 1 << 53;
    u64::try_from(duration.as_millis())
        .unwrap_or(most)
        .clamp(1, most)
}

fn away(error: RedisError) -> StoreError {
    StoreError::Away(error.into())
}
