//! What can go wrong for the application, by operation.

use cubenet_core::{LimitError, Transport};
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why a network could not be started, or an address not be listened on or called.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The limits do not fit each other.
    Limits(LimitError),
    /// The operating system gave no thread, no poll or no random bytes.
    Start(io::Error),
    /// The address could not be read or its host name not be resolved.
    Address {
        /// What was given, as far as it can be shown.
        given: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The address could not be listened on.
    Listen {
        /// On which transport.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The connect could not even begin. One that begins and fails is told to
    /// [`Handler::connect_failed`](cubenet_core::Handler::connect_failed).
    Connect {
        /// On which transport.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// There are as many connections as [`max_connections`](cubenet_core::Limits) allows.
    TooManyConnections {
        /// The limit.
        limit: usize,
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
            Error::Start(source) => write!(f, "cannot start the network: {source}"),
            Error::Address { given, source } => {
                write!(f, "cannot use the address {given}: {source}")
            }
            Error::Listen {
                transport,
                address,
                source,
            } => {
                write!(f, "cannot listen on {transport} {address}: ")?;
                // Not every system has words for it, or the same.
                if source.kind() == io::ErrorKind::AddrInUse {
                    f.write_str("it is in use; end who has it, or take another port: ")?;
                }
                source.fmt(f)
            }
            Error::Connect {
                transport,
                address,
                source,
            } => write!(f, "cannot connect to {transport} {address}: {source}"),
            Error::TooManyConnections { limit } => {
                write!(
                    f,
                    "there are {limit} connections already; raise `max_connections`"
                )
            }
            Error::Unsupported { transport } => {
                write!(f, "this driver has no transport `{transport}`")
            }
            Error::Stopped => f.write_str("the network has been stopped"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Limits(error) => Some(error),
            Error::Start(source)
            | Error::Address { source, .. }
            | Error::Listen { source, .. }
            | Error::Connect { source, .. } => Some(source),
            Error::TooManyConnections { .. } | Error::Unsupported { .. } | Error::Stopped => None,
        }
    }
}
