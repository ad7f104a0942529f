//! Sessions in the memory of one process: for a single node, and for tests.

use super::{Opening, Resume, SecretHash, Store, StoreError, Stored, Update};
use crate::token::SessionId;
use bytes::Bytes;
use cubenet_core::Instant;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Below this many sessions those that have expired are not looked for.
const SWEEP_FROM: usize = 1_024;

/// Keeps sessions in memory, as long as it lives. Nodes of one process may share it.
pub struct Memory {
    kept: Mutex<Kept>,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
}

#[derive(Default)]
struct Kept {
    sessions: HashMap<SessionId, Record>,
    /// Once there are so many, those that have expired are dropped.
    sweep_at: usize,
}

/// A session.
struct Record {
    secret: SecretHash,
    /// That of the token which the client was sent last, until it is known to have it.
    next: Option<SecretHash>,
    fence: u64,
    /// The client's last resume.
    attempt: u64,
    /// The number of the owner's last update that was kept.
    updated: u64,
    received: u64,
    sent: u64,
    /// Those that the client has not acknowledged; the last has the number `sent`.
    messages: VecDeque<Bytes>,
    data: Bytes,
    expires: Instant,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        let start = std::time::Instant::now();
        Memory::with_clock(move || Instant::ZERO.after(start.elapsed()))
    }

    /// An empty store with another clock, such as that of a simulation.
    pub fn with_clock(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Memory {
            kept: Mutex::default(),
            clock: Box::new(clock),
        }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        let now = (self.clock)();
        let kept = self.lock();
        let live = kept.sessions.values().filter(|one| now < one.expires);
        live.count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `with` to a session that has not expired.
    fn with<R>(
        &self,
        session: SessionId,
        with: impl FnOnce(&mut Record, Instant) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let now = (self.clock)();
        let mut kept = self.lock();
        let record = kept.sessions.get_mut(&session);
        if let Some(record) = record.filter(|record| now < record.expires) {
            return with(record, now);
        }
        kept.sessions.remove(&session);
        Err(StoreError::Unknown)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Store for Memory {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        let now = (self.clock)();
        let mut kept = self.lock();
        if kept.sessions.len() >= kept.sweep_at.max(SWEEP_FROM) {
            kept.sessions.retain(|_, record| now < record.expires);
            kept.sweep_at = 2 * kept.sessions.len();
        }
        let record = Record {
            secret: opening.secret,
            next: None,
            fence: 1,
            attempt: 0,
            updated: 0,
            received: 0,
            sent: 0,
            messages: VecDeque::new(),
            data: opening.data.clone(),
            expires: now.after(opening.expires_in),
        };
        kept.sessions.insert(session, record);
        Ok(())
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        self.with(session, |record, now| {
            let is_next = record.next == Some(resume.presented);
            if !is_next && record.secret != resume.presented {
                return Err(StoreError::WrongToken);
            }
            if resume.attempt <= record.attempt {
                return Err(StoreError::Overtaken);
            }
            record.acknowledge(resume.received)?;
            record.attempt = resume.attempt;
            record.secret = resume.presented;
            record.next = Some(resume.next);
            record.fence += 1;
            record.updated = 0;
            record.expires = now.after(resume.expires_in);
            Ok(Stored {
                fence: record.fence,
                received: record.received,
                sent: record.sent,
                messages: record.messages.iter().cloned().collect(),
                data: record.data.clone(),
            })
        })
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        self.with(session, |record, now| {
            record.check(fence)?;
            if update.number <= record.updated {
                return Ok(());
            }
            if update.last_kept > record.updated || update.first > record.sent + 1 {
                return Err(StoreError::Invalid);
            }
            let known = (record.sent + 1).saturating_sub(update.first) as usize;
            let new = update.messages.iter().skip(known);
            let sent = record.sent + new.len() as u64;
            if update.acknowledged > sent {
                return Err(StoreError::Invalid);
            }
            record.updated = update.number;
            record.received = record.received.max(update.received);
            record.sent = sent;
            record.messages.extend(new.cloned());
            record.acknowledge(update.acknowledged)?;
            if let Some(data) = &update.data {
                record.data = data.clone();
            }
            if update.confirmed
                && let Some(next) = record.next.take()
            {
                record.secret = next;
            }
            record.expires = now.after(update.expires_in);
            Ok(())
        })
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        let now = (self.clock)();
        let mut kept = self.lock();
        let record = kept.sessions.get(&session);
        if let Some(record) = record.filter(|record| now < record.expires) {
            record.check(fence)?;
        }
        kept.sessions.remove(&session);
        Ok(())
    }
}

impl Record {
    fn check(&self, fence: u64) -> Result<(), StoreError> {
        if fence == self.fence {
            Ok(())
        } else {
            Err(StoreError::Fenced)
        }
    }

    /// Forgets the messages up to this number.
    fn acknowledge(&mut self, number: u64) -> Result<(), StoreError> {
        let kept = self.sent.checked_sub(number).ok_or(StoreError::Invalid)?;
        while self.messages.len() as u64 > kept {
            self.messages.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    const ID: SessionId = SessionId::from_bytes([1; 16]);
    const MINUTE: Duration = Duration::from_secs(60);
    /// Of the next update.
    static NUMBERS: AtomicU64 = AtomicU64::new(1);

    fn hash(byte: u8) -> SecretHash {
        SecretHash([byte; 32])
    }

    fn update(first: u64, messages: &[&'static [u8]]) -> Update {
        Update {
            number: NUMBERS.fetch_add(1, Relaxed),
            first,
            messages: messages.iter().copied().map(Bytes::from_static).collect(),
            expires_in: MINUTE,
            ..Update::default()
        }
    }

    /// A store with a session, and the milliseconds of its clock.
    fn store() -> (Memory, Arc<AtomicU64>) {
        let time = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&time);
        let store = Memory::with_clock(move || Instant::from_micros(1_000 * clock.load(Relaxed)));
        let opening = Opening {
            secret: hash(1),
            data: Bytes::from_static(b"data"),
            expires_in: MINUTE,
        };
        store.open(ID, &opening).unwrap();
        (store, time)
    }

    #[test]
    fn what_is_not_updated_expires() {
        let (store, time) = store();
        time.store(59_999, Relaxed);
        store.update(ID, 1, &update(1, &[])).unwrap();
        time.store(119_998, Relaxed);
        assert_eq!(store.len(), 1);
        time.store(119_999, Relaxed);
        assert!(store.is_empty());
        let error = store.update(ID, 1, &update(1, &[])).unwrap_err();
        assert!(matches!(error, StoreError::Unknown));
        assert!(store.lock().sessions.is_empty());
    }

    #[test]
    fn many_that_have_expired_are_dropped() {
        let (store, time) = store();
        for nth in 0..10_000_u32 {
            time.store(u64::from(nth) * 1_000, Relaxed);
            let mut id = [0; 16];
            id[..4].copy_from_slice(&nth.to_be_bytes());
            let opening = Opening {
                secret: hash(1),
                data: Bytes::new(),
                expires_in: MINUTE,
            };
            store.open(SessionId::from_bytes(id), &opening).unwrap();
            assert!(store.lock().sessions.len() <= SWEEP_FROM);
        }
        assert_eq!(store.len(), 60);
    }
}
