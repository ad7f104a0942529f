//! What can go wrong for the application, by operation.

use cubenet_core::{LimitError, Report, Transport};
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why a network could not be started, or an address not be listened on or connected to.
///
/// `Display` says what failed, and [`source`](std::error::Error::source) why. `Debug` says both in
/// one line, as [`Report`] does, since that is what is printed when `main` returns an error.
#[non_exhaustive]
pub enum Error {
    /// The limits do not fit each other.
    Limits(LimitError),
    /// The operating system gave no thread, no poll or no random bytes.
    Start {
        /// What the operating system said.
        source: io::Error,
    },
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
    /// The connect could not even begin. If one begins and fails, its handler gets
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
    /// There are as many handshakes of layers as [`max_handshakes`](cubenet_core::Limits) allows.
    TooManyHandshakes {
        /// The limit.
        limit: usize,
    },
    /// A connection of this transport cannot have a layer: only streams can.
    NoLayers {
        /// The transport.
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
            Error::Start { .. } => f.write_str("cannot start the network"),
            Error::Address { given, .. } => write!(f, "cannot use the address {given}"),
            Error::Listen {
                transport,
                address,
                source,
            } => {
                write!(f, "cannot listen on {transport} {address}")?;
                if source.kind() == io::ErrorKind::AddrInUse {
                    f.write_str(
                        ", which is in use: stop the process that holds it or choose another port",
                    )?;
                }
                Ok(())
            }
            Error::Connect {
                transport, address, ..
            } => write!(f, "cannot connect to {transport} {address}"),
            Error::TooManyConnections { limit } => {
                write!(
                    f,
                    "there are {limit} connections already; raise `max_connections`"
                )
            }
            Error::TooManyHandshakes { limit } => write!(
                f,
                "{limit} connections are in their handshake already; raise `max_handshakes`"
            ),
            Error::NoLayers { transport } => write!(
                f,
                "a layer needs a stream, and `{transport}` has none: use `Transport::Tcp`"
            ),
            Error::Unsupported { transport } => {
                write!(f, "this driver has no transport `{transport}`")
            }
            Error::Stopped => f.write_str("the network has been stopped"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Report::new(self), f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // What it says is what its limit error says.
            Error::Limits(error) => error.source(),
            Error::Start { source }
            | Error::Address { source, .. }
            | Error::Listen { source, .. }
            | Error::Connect { source, .. } => Some(source),
            Error::TooManyConnections { .. }
            | Error::TooManyHandshakes { .. }
            | Error::NoLayers { .. }
            | Error::Unsupported { .. }
            | Error::Stopped => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    fn in_use() -> Error {
        Error::Listen {
            transport: Transport::Tcp,
            address: ([127, 0, 0, 1], 7000).into(),
            source: io::Error::new(io::ErrorKind::AddrInUse, "the system's words"),
        }
    }

    #[test]
    fn an_error_does_not_repeat_its_source_and_a_report_says_both() {
        let error = in_use();
        let (says, source) = (error.to_string(), error.source().unwrap().to_string());
        assert!(
            says.starts_with("cannot listen on tcp 127.0.0.1:7000"),
            "{says}"
        );
        assert!(says.contains("another port"), "{says}");
        assert!(!says.contains(&source), "{says}");
        assert_eq!(
            format!("{}", Report::new(&error)),
            format!("{says}: {source}")
        );
    }

    #[test]
    fn what_main_prints_is_one_readable_line() {
        let error = in_use();
        assert_eq!(format!("{error:?}"), format!("{}", Report::new(&error)));
        let limits = Error::Limits(LimitError::new("max_message", "it is too much"));
        assert_eq!(format!("{limits:?}"), limits.to_string());
    }

    #[test]
    fn a_refused_send_can_be_passed_on_as_an_error_of_input_and_output() {
        fn send() -> io::Result<()> {
            Err(cubenet_core::SendError::Full)?;
            Ok(())
        }
        assert_eq!(send().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
