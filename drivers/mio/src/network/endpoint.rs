//! Where to listen or to connect: addresses, and the host name that stands for them.

use crate::error::Error;
use crate::worker::thread::is_network_thread;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};

/// Addresses to listen on or to connect to, and the host name they were found by.
///
/// A network takes anything that [becomes](ToEndpoint) one. Make one yourself to resolve a name
/// once, on a thread that may block, and to use the result many times.
///
/// ```
/// use cubenet_mio::Endpoint;
/// let endpoint = Endpoint::resolve("localhost:7000")?;
/// assert_eq!(endpoint.host(), Some("localhost"));
/// assert!(endpoint.addresses().iter().all(|address| address.port() == 7000));
/// # Ok::<(), cubenet_mio::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: Option<String>,
    addresses: Vec<SocketAddr>,
}

impl Endpoint {
    /// Reads `127.0.0.1:7000`, `[::1]:7000` or `example.com:7000`. Resolving a name blocks until
    /// the system's resolver has answered; an address in numbers does not.
    pub fn resolve(text: &str) -> Result<Self, Error> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let error = |source| Error::Address {
            given: text.to_owned(),
            source,
        };
        let Some((host, _port)) = text.rsplit_once(':') else {
            return Err(error(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it has no port: write it as in 127.0.0.1:7000 or example.com:7000",
            )));
        };
        // The rest is the standard library's to read: scopes of IPv6, and what is no port.
        let addresses: Vec<_> = text.to_socket_addrs().map_err(error)?.collect();
        if addresses.is_empty() {
            return Err(error(io::Error::other("the name has no address")));
        }
        let is_name = host.parse::<IpAddr>().is_err() && !host.starts_with('[');
        Ok(Endpoint {
            host: is_name.then(|| host.to_owned()),
            addresses,
        })
    }

    /// The addresses that a resolver of your own has found, in the order in which they are to be
    /// tried, and the host name, if there is one. An error if there is no address.
    pub fn new(host: Option<String>, addresses: Vec<SocketAddr>) -> Result<Self, Error> {
        if addresses.is_empty() {
            return Err(Error::Address {
                given: host.unwrap_or_default(),
                source: io::Error::new(io::ErrorKind::InvalidInput, "it has no address"),
            });
        }
        Ok(Endpoint { host, addresses })
    }

    /// The host name, if it was resolved from one.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The addresses, in the order in which they are tried; at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({:?} {:?})", self.host, self.addresses)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Endpoint {
            host: None,
            addresses: vec![address],
        }
    }
}

/// What [`Network::listen`](crate::Network::listen) and [`Network::connect`](crate::Network::connect)
/// take: addresses, texts such as `"0.0.0.0:7000"`, and [`Endpoint`]s.
///
/// A text with a host name is resolved, which blocks. On a thread of a network that would hold up
/// its connections, so there it is an error: resolve the name on another thread.
pub trait ToEndpoint: sealed::Sealed {
    /// The endpoint that is meant.
    fn to_endpoint(&self) -> Result<Endpoint, Error>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! addresses {
    ($($address:ty),*) => {$(
        impl sealed::Sealed for $address {}

        impl ToEndpoint for $address {
            fn to_endpoint(&self) -> Result<Endpoint, Error> {
                Ok(Endpoint::from(SocketAddr::from(*self)))
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

impl ToEndpoint for str {
    fn to_endpoint(&self) -> Result<Endpoint, Error> {
        if let Ok(address) = self.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        if is_network_thread() {
            return Err(Error::Address {
                given: self.to_owned(),
                source: io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "resolving a name would hold up the connections of this thread: do it on \
                     another, with `Endpoint::resolve`",
                ),
            });
        }
        Endpoint::resolve(self)
    }
}

impl sealed::Sealed for String {}

impl ToEndpoint for String {
    fn to_endpoint(&self) -> Result<Endpoint, Error> {
        self.as_str().to_endpoint()
    }
}

impl sealed::Sealed for Endpoint {}

impl ToEndpoint for Endpoint {
    fn to_endpoint(&self) -> Result<Endpoint, Error> {
        Ok(self.clone())
    }
}

impl<T: sealed::Sealed + ?Sized> sealed::Sealed for &T {}

impl<T: ToEndpoint + ?Sized> ToEndpoint for &T {
    fn to_endpoint(&self) -> Result<Endpoint, Error> {
        (**self).to_endpoint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::thread::enter_network_thread;

    #[test]
    fn addresses_and_texts_are_endpoints_and_names_are_kept() {
        let address: SocketAddr = "127.0.0.1:7".parse().unwrap();
        for endpoint in [
            "127.0.0.1:7".to_endpoint(),
            String::from("127.0.0.1:7").to_endpoint(),
            address.to_endpoint(),
            ([127, 0, 0, 1], 7).to_endpoint(),
            Endpoint::from(address).to_endpoint(),
        ] {
            let endpoint = endpoint.unwrap();
            assert_eq!(endpoint.addresses(), [address]);
            assert_eq!(endpoint.host(), None);
        }
        let named = "localhost:7".to_endpoint().unwrap();
        assert_eq!(named.host(), Some("localhost"));
        let scoped = "[::1]:7".to_endpoint().unwrap();
        assert_eq!(scoped.host(), None);
    }

    #[test]
    fn a_text_that_is_no_address_is_shown_with_what_is_wrong() {
        for (text, problem) in [("127.0.0.1", "no port"), ("127.0.0.1:70000", "port")] {
            let error = text.to_endpoint().unwrap_err();
            let Error::Address { given, source } = error else {
                panic!("{error}");
            };
            assert_eq!(given, text);
            assert!(source.to_string().contains(problem), "{source}");
        }
    }

    #[test]
    fn a_name_is_not_resolved_on_a_thread_that_must_not_block() {
        let refused = std::thread::spawn(|| {
            enter_network_thread();
            assert!("127.0.0.1:7".to_endpoint().is_ok());
            "localhost:7".to_endpoint().unwrap_err()
        });
        let error = refused.join().unwrap();
        assert!(matches!(error, Error::Address { .. }), "{error}");
    }
}
