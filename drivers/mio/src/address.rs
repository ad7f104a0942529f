//! Addresses: one in 24 bytes instead of the 32 of a [`SocketAddr`], since every idle connection
//! has one; and an address as people write it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// An address without the flow label, which does not identify a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompactAddr {
    /// An IPv4 address is mapped into IPv6.
    ip: [u8; 16],
    scope: u32,
    port: u16,
    /// Whether it was an IPv4 address, and not one that was mapped already.
    is_ipv4: bool,
}

impl CompactAddr {
    pub(crate) const fn v4(ip: Ipv4Addr, port: u16) -> Self {
        CompactAddr {
            ip: ip.to_ipv6_mapped().octets(),
            scope: 0,
            port,
            is_ipv4: true,
        }
    }

    pub(crate) const fn v6(ip: Ipv6Addr, port: u16, scope: u32) -> Self {
        CompactAddr {
            ip: ip.octets(),
            scope,
            port,
            is_ipv4: false,
        }
    }

    /// It as an IPv6 address: that, the port and the scope.
    #[cfg(target_os = "linux")]
    pub(crate) fn to_v6(self) -> (Ipv6Addr, u16, u32) {
        (self.ip.into(), self.port, self.scope)
    }

    /// The IPv4 address, if it is one, and the port.
    #[inline]
    pub(crate) fn as_v4(&self) -> Option<(Ipv4Addr, u16)> {
        let ip = Ipv6Addr::from(self.ip).to_bits();
        self.is_ipv4
            .then(|| (Ipv4Addr::from_bits(ip as u32), self.port))
    }
}

/// In one word, if it is an IPv4 address: every datagram's is hashed.
impl Hash for CompactAddr {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let port = u64::from(self.port) << 32;
        if let Some((ip, _)) = self.as_v4() {
            return state.write_u64(port | u64::from(ip.to_bits()));
        }
        let ip = u128::from_ne_bytes(self.ip);
        state.write_u64(ip as u64);
        state.write_u64((ip >> 64) as u64);
        state.write_u64(port | u64::from(self.scope));
    }
}

impl fmt::Display for CompactAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl From<SocketAddr> for CompactAddr {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => CompactAddr::v4(*address.ip(), address.port()),
            SocketAddr::V6(address) => {
                CompactAddr::v6(*address.ip(), address.port(), address.scope_id())
            }
        }
    }
}

impl From<CompactAddr> for SocketAddr {
    fn from(address: CompactAddr) -> Self {
        match address.as_v4() {
            Some(v4) => SocketAddr::from(v4),
            None => SocketAddrV6::new(address.ip.into(), address.port, 0, address.scope).into(),
        }
    }
}

/// An IPv4 address that a dual-stack socket shows as IPv6, as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => {
            // The scope is part of a link-local address, the flow label of none.
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into()
        }
        _ => SocketAddr::new(address.ip().to_canonical(), address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    #[test]
    fn an_address_comes_back_as_it_was() {
        for text in [
            "127.0.0.1:7",
            "0.0.0.0:0",
            "[::1]:65535",
            "[::ffff:127.0.0.1]:7",
            "[fe80::1%3]:9",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let compact = CompactAddr::from(address);
            assert_eq!(SocketAddr::from(compact), address);
            assert_eq!(compact.to_string(), text);
        }
        assert_eq!(size_of::<Option<CompactAddr>>(), 24);
    }

    #[test]
    fn addresses_that_differ_are_not_the_same_peer() {
        let texts = [
            "127.0.0.1:7",
            "127.0.0.1:8",
            "127.0.0.2:7",
            "[::ffff:127.0.0.1]:7",
            "[fe80::1%3]:7",
            "[fe80::1%4]:7",
        ];
        let hash =
            |address: CompactAddr| BuildHasherDefault::<DefaultHasher>::default().hash_one(address);
        let compact = |text: &str| CompactAddr::from(text.parse::<SocketAddr>().unwrap());
        for (nth, one) in texts.iter().enumerate() {
            for (mth, other) in texts.iter().enumerate() {
                let (one, other) = (compact(one), compact(other));
                assert_eq!(one == other, nth == mth);
                assert_eq!(hash(one) == hash(other), nth == mth);
            }
        }
    }
}
