//! What can go wrong for the application, by operation.

use crate::conditions::FaultError;
use cubenet_core::{LimitError, Report, Transport};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Why a network could not be started, or an address not be listened on or connected to.
///
/// `Display` says what failed, and [`source`](std::error::Error::source) why. `Debug` says both in
/// one line, as [`Report`] does.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The limits do not fit each other.
    Limits(LimitError),
    /// A rate or another number of a fault makes no sense.
    Faults(FaultError),
    /// A network runs on this host already; stop it or let the host crash first.
    HostInUse {
        /// Its address.
        host: IpAddr,
    },
    /// The address could not be read. Names are not resolved here.
    Address {
        /// What was given.
        given: String,
    },
    /// The address could not be listened on.
    Listen {
        /// On which transport.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// What the virtual host said.
        refusal: Refusal,
    },
    /// The connect could not even begin.
    Connect {
        /// On which transport.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// What the virtual host said.
        refusal: Refusal,
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
    /// The range of ports for outgoing connections is empty, or begins at 0.
    NoPorts,
    /// No router that translates addresses is there; [`Simulation::nat`](crate::Simulation::nat)
    /// makes one.
    NoRouter {
        /// The address.
        address: IpAddr,
    },
    /// This driver does not have the transport.
    Unsupported {
        /// The transport.
        transport: Transport,
    },
    /// The network has been stopped, or its host has crashed.
    Stopped,
}

/// What a virtual host refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A socket is bound to it.
    InUse,
    /// The address is another host's.
    NotOurs,
    /// Every port is in use.
    NoPort,
    /// Every descriptor is in use.
    NoDescriptor,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::InUse => "the address is in use",
            Refusal::NotOurs => "the address is not this host's",
            Refusal::NoPort => "every port is in use",
            Refusal::NoDescriptor => "too many open sockets",
        })
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Limits(error) => error.fmt(f),
            Error::Faults(error) => error.fmt(f),
            Error::HostInUse { host } => write!(
                f,
                "a network already runs on {host}; stop it or crash the host first"
            ),
            Error::Address { given } => write!(
                f,
                "cannot use the address {given}: it must be numbers, as in 10.0.0.1:7000"
            ),
            Error::Listen {
                transport, address, ..
            } => write!(
                f,
                "cannot listen on {transport} {address}; choose another port or address"
            ),
            Error::Connect {
                transport, address, ..
            } => write!(f, "cannot connect to {transport} {address}"),
            Error::TooManyConnections { limit } => write!(
                f,
                "there are {limit} connections already; raise `max_connections`"
            ),
            Error::TooManyHandshakes { limit } => write!(
                f,
                "{limit} connections are in their handshake already; raise `max_handshakes`"
            ),
            Error::NoLayers { transport } => write!(
                f,
                "a layer needs a stream, and `{transport}` has none: use `Transport::Tcp`"
            ),
            Error::NoPorts => {
                f.write_str("`ephemeral_ports` must hold at least one port, and not port 0")
            }
            Error::NoRouter { address } => {
                write!(
                    f,
                    "there is no router at {address} (make one with `Simulation::nat`), or the new \
                     address belongs to another router"
                )
            }
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
            // What they say is what these say.
            Error::Limits(error) => error.source(),
            Error::Faults(error) => error.source(),
            Error::Listen { refusal, .. } | Error::Connect { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}
