//! Addresses, as a user may write them.

use crate::error::Error;
use std::net::{IpAddr, SocketAddr};

/// An address as a simulation takes it: numbers, since there is no name server in here.
pub trait IntoAddress {
    /// The address; what was given, if it is none.
    fn into_address(self) -> Result<SocketAddr, String>;
}

impl IntoAddress for SocketAddr {
    fn into_address(self) -> Result<SocketAddr, String> {
        Ok(self)
    }
}

impl IntoAddress for (IpAddr, u16) {
    fn into_address(self) -> Result<SocketAddr, String> {
        Ok(self.into())
    }
}

impl IntoAddress for &str {
    fn into_address(self) -> Result<SocketAddr, String> {
        self.parse().map_err(|_| self.to_owned())
    }
}

/// The address, or an error that says what was given.
pub(crate) fn parse(address: impl IntoAddress) -> Result<SocketAddr, Error> {
    let address = address.into_address();
    address.map_err(|given| Error::Address { given })
}
