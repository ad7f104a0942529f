//! Where sessions are kept, so that they outlive the process that serves them.
//!
//! A store has four operations, each of them atomic. Their calls may block; they are made on the threads of
//! the [`Environment`](crate::Environment), never on a network's.

mod memory;
#[cfg(feature = "redis")]
mod redis;

pub use memory::Memory;
#[cfg(feature = "redis")]
pub use redis::Redis;

use crate::token::SessionId;
use bytes::Bytes;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A hash of a token's secret: SHA-256. The secret is random, so it needs no salt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(...)")
    }
}

/// Keeps sessions. All nodes of a service share one.
///
/// A session is owned by the node that opened or resumed it last. Each time it changes hands its fence
/// becomes one larger; an operation of an owner before is refused.
pub trait Store: Send + Sync + 'static {
    /// Keeps a new session. Its fence is 1.
    ///
    /// # Errors
    ///
    /// [`StoreError::Away`].
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError>;

    /// Gives a session to the node that asks, if the token is right.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unknown`], [`StoreError::WrongToken`], [`StoreError::Invalid`] if the client has
    /// received more than was sent, [`StoreError::Overtaken`], [`StoreError::Away`].
    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError>;

    /// Keeps what has happened to a session since. May be called again with the same update, if it is
    /// not known whether it was kept.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`] if another node owns it by now, [`StoreError::Unknown`] if it has expired,
    /// [`StoreError::Invalid`] if the store has lost what it had kept, [`StoreError::Away`].
    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError>;

    /// Forgets a session. Of one that is not there any more it is no error.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], [`StoreError::Away`].
    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError>;
}

impl<S: Store> Store for Arc<S> {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        (**self).open(session, opening)
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        (**self).resume(session, resume)
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        (**self).update(session, fence, update)
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        (**self).end(session, fence)
    }
}

/// What a new session begins with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Of the secret of its first token.
    pub secret: SecretHash,
    /// The application's.
    pub data: Bytes,
    /// How long it is kept without an update.
    pub expires_in: Duration,
}

/// What a client presents, and what it is given.
#[derive(Clone, Debug)]
pub struct Resume {
    /// Of the secret that the client presents.
    pub presented: SecretHash,
    /// Of the secret that replaces it. The one that was presented is good as well, until an update
    /// [confirms](Update::confirmed) that the new one has arrived.
    pub next: SecretHash,
    /// Which of the client's resumes it is. One with a smaller number than another before, or the same,
    /// was overtaken, or is a replay.
    pub attempt: u64,
    /// The number of the last message that has arrived at the client.
    pub received: u64,
    /// How long the session is kept without an update.
    pub expires_in: Duration,
}

/// A session, as it was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of its new owner.
    pub fence: u64,
    /// The number of the last message that the application has received.
    pub received: u64,
    /// The number of the last message to the client.
    pub sent: u64,
    /// Messages to the client behind the last that has arrived there; the last has the number `sent`.
    pub messages: Vec<Bytes>,
    /// The application's.
    pub data: Bytes,
}

/// What has happened to a session. All of it is kept, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Which of its owner's updates it is, counted from 1. A store keeps nothing of one that is not behind
    /// the last that it has kept: a later one, with all of it, came first.
    pub number: u64,
    /// The number of the owner's last update that was kept, as far as it knows; 0 before the first.
    pub last_kept: u64,
    /// The number of the last message that the application has received.
    pub received: u64,
    /// The number of the last message that has arrived at the client: those before are forgotten.
    pub acknowledged: u64,
    /// The number of the first of `messages`.
    pub first: u64,
    /// New messages to the client. One whose number is kept already is the same message.
    pub messages: Vec<Bytes>,
    /// The application's, if that is another now.
    pub data: Option<Bytes>,
    /// The client has the newest token: the one before is good no more.
    pub confirmed: bool,
    /// How long the session is kept without another update.
    pub expires_in: Duration,
}

/// Why a store did not do what it was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such session, or it has expired.
    Unknown,
    /// The session has another token.
    WrongToken,
    /// That cannot be: messages are missing.
    Invalid,
    /// A later resume of the client's came first.
    Overtaken,
    /// Another node owns the session.
    Fenced,
    /// The store cannot be reached, or has failed. It is not known whether the operation was done.
    Away(Box<dyn Error + Send + Sync>),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreError::Unknown => "there is no such session, or it has expired",
            StoreError::WrongToken => "the session has another token",
            StoreError::Invalid => "messages are missing",
            StoreError::Overtaken => "a later resume of the client's came first",
            StoreError::Fenced => "another node owns the session",
            StoreError::Away(_) => "the store cannot be reached",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            StoreError::Away(source) => Some(&**source),
            _ => None,
        }
    }
}
