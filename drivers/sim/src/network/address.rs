//! Addresses, as a user may write them.

use crate::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// What [`Network::listen`](crate::Network::listen) and [`Network::connect`](crate::Network::connect)
/// take: addresses, and texts such as `"10.0.0.1:7000"`. Names are not resolved: there is no name
/// server in a simulation.
pub trait ToAddress: sealed::Sealed {
    /// The address that is meant.
    fn to_address(&self) -> Result<SocketAddr, Error>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! addresses {
    ($($address:ty),*) => {$(
        impl sealed::Sealed for $address {}

        impl ToAddress for $address {
            fn to_address(&self) -> Result<SocketAddr, Error> {
                Ok(SocketAddr::from(*self))
            }
        }
    )*};
}

addresses!(
    SocketAddr,
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16),
    ([u8; 4], u16)
);

impl sealed::Sealed for str {}

impl ToAddress for str {
    fn to_address(&self) -> Result<SocketAddr, Error> {
        self.parse().map_err(|_| Error::Address {
            given: self.to_owned(),
        })
    }
}

impl sealed::Sealed for String {}

impl ToAddress for String {
    fn to_address(&self) -> Result<SocketAddr, Error> {
        self.as_str().to_address()
    }
}

impl<T: sealed::Sealed + ?Sized> sealed::Sealed for &T {}

impl<T: ToAddress + ?Sized> ToAddress for &T {
    fn to_address(&self) -> Result<SocketAddr, Error> {
        (**self).to_address()
    }
}
