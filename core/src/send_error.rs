//! Why a message was not accepted.

use core::fmt;

/// Why a message was not accepted. The connection lives on, if it lived before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendError {
    /// The connection is closed or closing.
    Closed,
    /// Too much waits to be sent. `writable` is called when there is room.
    Full,
    /// The message is longer than the limit.
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// A datagram of no bytes would close the connection; use `close` to mean that.
    Empty,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Closed => f.write_str("the connection is closed"),
            SendError::Full => f.write_str("too much is queued; wait for `writable`"),
            SendError::TooLong { len, limit } => {
                write!(f, "a message of {len} bytes is over the limit of {limit}")
            }
            SendError::Empty => {
                f.write_str("an empty datagram would close the connection; call `close` for that")
            }
        }
    }
}

impl core::error::Error for SendError {}

#[cfg(feature = "std")]
impl From<SendError> for std::io::Error {
    fn from(error: SendError) -> Self {
        use std::io::ErrorKind::{InvalidInput, NotConnected, WouldBlock};
        let kind = match error {
            SendError::Closed => NotConnected,
            SendError::Full => WouldBlock,
            SendError::TooLong { .. } | SendError::Empty => InvalidInput,
        };
        std::io::Error::new(kind, error)
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn a_refused_message_is_an_error_of_input_and_output() {
        for (error, kind) in [
            (SendError::Closed, std::io::ErrorKind::NotConnected),
            (SendError::Full, std::io::ErrorKind::WouldBlock),
            (SendError::Empty, std::io::ErrorKind::InvalidInput),
        ] {
            assert_eq!(std::io::Error::from(error).kind(), kind);
        }
    }
}
