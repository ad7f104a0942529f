//! What can go wrong for the application, by operation.

use core::fmt;
use core::net::SocketAddr;
use cubenet_core::{LimitError, Transport};

/// Why a network could not be made, or an address not be listened on or connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The limits do not fit each other, or not the memory.
    Limits(LimitError),
    /// The memory does not fit together.
    Memory {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The address cannot be listened on or connected to.
    Address {
        /// On which transport.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There are as many connections as [`max_connections`](cubenet_core::Limits) allows.
    TooManyConnections {
        /// The limit.
        limit: usize,
    },
    /// Every stream, port or place for a listener is in use.
    NoRoom {
        /// For which transport.
        transport: Transport,
    },
    /// This driver does not have the transport.
    Unsupported {
        /// The transport.
        transport: Transport,
    },
    /// The network has been stopped.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Limits(error) => error.fmt(f),
            Error::Memory { problem } => write!(f, "memory: {problem}"),
            Error::Address {
                transport,
                address,
                problem,
            } => write!(f, "{transport} {address}: {problem}"),
            Error::TooManyConnections { limit } => write!(
                f,
                "there are {limit} connections already; raise `max_connections`"
            ),
            Error::NoRoom {
                transport: Transport::Tcp,
            } => f.write_str("every stream is in use; give the network more `StreamMemory`"),
            Error::NoRoom { .. } => {
                f.write_str("every port is in use; add another with `add_port`")
            }
            Error::Unsupported { transport } => {
                write!(f, "this driver has no transport `{transport}`")
            }
            Error::Stopped => f.write_str("the network has been stopped"),
        }
    }
}

impl core::error::Error for Error {}

impl From<LimitError> for Error {
    fn from(error: LimitError) -> Self {
        Error::Limits(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_error_says_what_to_do() {
        let limits = LimitError::new("max_message", "too much");
        let address = ([10, 0, 0, 1], 7).into();
        let errors = [
            (Error::from(limits), "`max_message`: too much"),
            (
                Error::Memory {
                    problem: "no heads",
                },
                "memory: no heads",
            ),
            (
                Error::Address {
                    transport: Transport::Tcp,
                    address,
                    problem: "in use",
                },
                "tcp 10.0.0.1:7: in use",
            ),
            (
                Error::TooManyConnections { limit: 3 },
                "raise `max_connections`",
            ),
            (
                Error::NoRoom {
                    transport: Transport::Tcp,
                },
                "`StreamMemory`",
            ),
            (
                Error::NoRoom {
                    transport: Transport::Udp,
                },
                "`add_port`",
            ),
            (Error::Stopped, "stopped"),
        ];
        for (error, says) in errors {
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
