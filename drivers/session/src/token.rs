//! What a client presents to go on with its session.

use core::fmt;

/// The number of a session, random and never used again. It is no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; SessionId::LEN]);

impl SessionId {
    /// Its length in bytes.
    pub const LEN: usize = 16;

    /// The session with these bytes.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        SessionId(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for SessionId {
    /// In hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// What a client presents to go on with its session: the number of the session, and a secret that
/// changes with each resume. A server keeps only a hash of the secret.
///
/// Its `Debug` does not show the secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token {
    session: SessionId,
    secret: [u8; Token::SECRET_LEN],
}

impl Token {
    /// Its length in bytes.
    pub const LEN: usize = SessionId::LEN + Self::SECRET_LEN;
    /// The length of its secret in bytes: 128 bits cannot be guessed.
    pub const SECRET_LEN: usize = 16;

    /// A token of a session.
    pub const fn new(session: SessionId, secret: [u8; Self::SECRET_LEN]) -> Self {
        Token { session, secret }
    }

    /// The token with these bytes.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut token = Token::new(SessionId([0; SessionId::LEN]), [0; Self::SECRET_LEN]);
        let (session, secret) = bytes.split_at(SessionId::LEN);
        token.session.0.copy_from_slice(session);
        token.secret.copy_from_slice(secret);
        token
    }

    /// Its bytes, as they are sent.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..SessionId::LEN].copy_from_slice(&self.session.0);
        bytes[SessionId::LEN..].copy_from_slice(&self.secret);
        bytes
    }

    /// Its session.
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Its secret.
    pub const fn secret(&self) -> &[u8; Self::SECRET_LEN] {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, ...)", self.session)
    }
}
