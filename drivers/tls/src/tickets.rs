//! Session tickets under keys of the application's.

use crate::error::Error;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rustls::ServerConfig;
use rustls::server::ProducesTickets;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The nonce of a ticket, in bytes. So long that processes may draw them without talking to each
/// other.
const NONCE: usize = 24;
/// The most keys at once: each is tried for a ticket that is shown.
const MOST: usize = 8;
/// The longest that a ticket may live, by TLS 1.3 (RFC 8446, section 4.6.1).
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Keys that seal sessions into tickets (XChaCha20-Poly1305), for all processes that are given them.
/// Clones are the same. [`CertificateFilesBuilder::tickets`](crate::CertificateFilesBuilder::tickets)
/// takes them.
///
/// A session that goes on is not verified again: the client shows no certificate. So a ticket is only
/// good where the same certificates of clients are asked for; `CertificateFiles` sees to that, by the
/// content of its `client_ca`.
///
/// With a key the sessions can be read that were sealed with it, of TLS 1.2 all that was said, so it is to
/// be kept as a private key is, and replaced: [`rotate`](TicketKeys::rotate) to a new one every few
/// hours, with the ones before behind it for as long as tickets live. A client that comes back gets
/// another ticket, under the newest key, and with it keeps what was verified at first.
///
/// ```
/// use cubenet_tls::{CertificateFiles, TicketKeys};
/// # fn from_your_store() -> [[u8; 32]; 2] { [[1; 32], [2; 32]] }
/// let keys = TicketKeys::new(from_your_store())?;
/// let files = CertificateFiles::builder("server.pem", "server.key").tickets(keys.clone());
/// // Later, as often as a new key is there:
/// keys.rotate(from_your_store())?;
/// # Ok::<(), cubenet_tls::Error>(())
/// ```
#[derive(Clone)]
pub struct TicketKeys(Arc<Keys>);

struct Keys {
    /// The first seals, each opens.
    keys: RwLock<Vec<XChaCha20Poly1305>>,
    lifetime: Duration,
}

impl TicketKeys {
    /// The first key seals new tickets, each opens those that it has sealed. One to eight keys of 32
    /// bytes, which have to be random. Clients are told that a ticket lives 12 hours.
    pub fn new(keys: impl IntoIterator<Item = [u8; 32]>) -> Result<Self, Error> {
        TicketKeys::with_lifetime(keys, Duration::from_secs(12 * 60 * 60))
    }

    /// The same, with how long clients are told that a ticket lives, a week at most. How long one is
    /// good, the rotation of the keys decides.
    pub fn with_lifetime(
        keys: impl IntoIterator<Item = [u8; 32]>,
        lifetime: Duration,
    ) -> Result<Self, Error> {
        if lifetime > LONGEST {
            let problem = "a session ticket may live for a week at most".to_owned();
            return Err(Error::Config { problem });
        }
        let keys = RwLock::new(ciphers(keys)?);
        Ok(TicketKeys(Arc::new(Keys { keys, lifetime })))
    }

    /// Replaces all keys, the one that seals first. Tickets that were sealed with a key that is not
    /// among them are good no longer; their clients have a whole handshake.
    pub fn rotate(&self, keys: impl IntoIterator<Item = [u8; 32]>) -> Result<(), Error> {
        let keys = ciphers(keys)?;
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// Has this configuration seal its sessions so. Tickets are good at configurations that were given
    /// the same `scope`. It has to tell apart those that ask for different certificates of clients, or
    /// for none: otherwise a client brings a session from where it needed none.
    pub fn seal_sessions(&self, config: &mut ServerConfig, scope: impl Into<Vec<u8>>) {
        config.ticketer = Arc::new(Ticketer {
            keys: Arc::clone(&self.0),
            scope: scope.into(),
        });
    }
}

fn ciphers(keys: impl IntoIterator<Item = [u8; 32]>) -> Result<Vec<XChaCha20Poly1305>, Error> {
    let keys = keys.into_iter().take(MOST + 1);
    let keys: Vec<_> = keys
        .map(|key| XChaCha20Poly1305::new(&key.into()))
        .collect();
    if !(1..=MOST).contains(&keys.len()) {
        let problem = format!("there must be 1 to {MOST} keys for session tickets");
        return Err(Error::Config { problem });
    }
    Ok(keys)
}

/// The keys as one configuration uses them.
#[derive(Debug)]
struct Ticketer {
    keys: Arc<Keys>,
    /// Authenticated with each ticket.
    scope: Vec<u8>,
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.keys.lifetime.as_secs() as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut ticket = vec![0; NONCE];
        getrandom::fill(&mut ticket).ok()?;
        let keys = self.keys.keys.read();
        let keys = keys.unwrap_or_else(PoisonError::into_inner);
        let (msg, aad) = (plain, &self.scope[..]);
        let sealed = keys
            .first()?
            .encrypt(XNonce::from_slice(&ticket), Payload { msg, aad });
        ticket.extend(sealed.ok()?);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_at_checked(NONCE)?;
        let nonce = XNonce::from_slice(nonce);
        let keys = self.keys.keys.read();
        let keys = keys.unwrap_or_else(PoisonError::into_inner);
        let (msg, aad) = (sealed, &self.scope[..]);
        keys.iter()
            .find_map(|key| key.decrypt(nonce, Payload { msg, aad }).ok())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the keys.
        f.debug_struct("TicketKeys")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
