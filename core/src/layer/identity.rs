//! What a handshake has shown of a connection.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

/// What the layers of a connection know of it once their handshake is complete. Everything is absent
/// that no layer has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    client_addr: Option<SocketAddr>,
    server_addr: Option<SocketAddr>,
    server_name: Option<String>,
    alpn: Option<Vec<u8>>,
    protocol: Option<&'static str>,
    cipher: Option<String>,
    certificates: Vec<Vec<u8>>,
    is_resumed: bool,
    unique_id: Option<Vec<u8>>,
    checksum: Option<u32>,
}

/// A getter and a setter of an optional part.
macro_rules! part {
    ($(#[$doc:meta])* $get:ident, $set:ident, $type:ty, |$value:ident| $borrowed:expr, $returned:ty) => {
        $(#[$doc])*
        pub fn $get(&self) -> Option<$returned> {
            let $value = &self.$get;
            $borrowed
        }

        #[doc = concat!("For a layer: sets [`", stringify!($get), "`](Self::", stringify!($get), ").")]
        pub fn $set(&mut self, value: impl Into<Option<$type>>) {
            self.$get = value.into();
        }
    };
}

impl Identity {
    part!(
        /// The address of the client that connected to a proxy, as the proxy tells it. The peer of the
        /// connection itself is the proxy.
        client_addr, set_client_addr, SocketAddr, |value| *value, SocketAddr
    );

    part!(
        /// The address that the client connected to, as the proxy tells it.
        server_addr, set_server_addr, SocketAddr, |value| *value, SocketAddr
    );

    part!(
        /// The name of the server that the client asked for (SNI).
        server_name, set_server_name, String, |value| value.as_deref(), &str
    );

    part!(
        /// The application protocol that both agreed on (ALPN).
        alpn, set_alpn, Vec<u8>, |value| value.as_deref(), &[u8]
    );

    part!(
        /// The protocol of the layer and its version, such as `TLS 1.3`.
        protocol, set_protocol, &'static str, |value| *value, &'static str
    );

    part!(
        /// The cipher suite, by its name in the registry of IANA.
        cipher, set_cipher, String, |value| value.as_deref(), &str
    );

    part!(
        /// What the proxy calls the connection by (PROXY protocol, `PP2_TYPE_UNIQUE_ID`).
        unique_id, set_unique_id, Vec<u8>, |value| value.as_deref(), &[u8]
    );

    part!(
        /// The CRC-32C that the proxy's header came with (`PP2_TYPE_CRC32C`), which was right.
        checksum, set_checksum, u32, |value| *value, u32
    );

    /// The certificates that the peer has shown and that were verified, in DER, its own first. Empty
    /// if it has shown none.
    pub fn certificates(&self) -> &[Vec<u8>] {
        &self.certificates
    }

    /// Whether the handshake went on with a session of before, so that certificates were not shown
    /// again; [`certificates`](Self::certificates) has those of then.
    pub const fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// For a layer: sets [`is_resumed`](Self::is_resumed).
    pub fn set_resumed(&mut self, is_resumed: bool) {
        self.is_resumed = is_resumed;
    }

    /// For a layer: sets [`certificates`](Self::certificates).
    pub fn set_certificates(&mut self, certificates: Vec<Vec<u8>>) {
        self.certificates = certificates;
    }
}
