//! Addresses: one in 24 bytes instead of the 32 of a [`SocketAddr`], since every idle connection
//! has one; and an address as people write it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// An address without the flow label, which does not identify a peer.
#[derive(Clone, Copy)]
pub(crate) struct CompactAddr {
    /// An IPv4 address is mapped into IPv6.
    ip: [u8; 16],
    scope: u32,
    port: u16,
    /// Whether it was an IPv4 address, and not one that was mapped already.
    is_ipv4: bool,
}

impl From<SocketAddr> for CompactAddr {
    fn from(address: SocketAddr) -> Self {
        let (ip, scope) = match address {
            SocketAddr::V4(address) => (address.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(address) => (*address.ip(), address.scope_id()),
        };
        CompactAddr {
            ip: ip.octets(),
            scope,
            port: address.port(),
            is_ipv4: address.is_ipv4(),
        }
    }
}

impl From<CompactAddr> for SocketAddr {
    fn from(address: CompactAddr) -> Self {
        let ip = Ipv6Addr::from(address.ip);
        match ip.to_canonical() {
            IpAddr::V4(ip) if address.is_ipv4 => SocketAddr::from((ip, address.port)),
            _ => SocketAddrV6::new(ip, address.port, 0, address.scope).into(),
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
            assert_eq!(SocketAddr::from(CompactAddr::from(address)), address);
        }
        assert_eq!(size_of::<CompactAddr>(), 24);
    }
}
