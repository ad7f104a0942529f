//! The layer of a connect that goes to a server behind the protocol.

use crate::header::{LONGEST_FIELD, LONGEST_ID, checksum};
use cubenet_core::{Ends, Instant, Layer, LayerState, MakeLayer};
use proxy_header::{ProxiedAddress, ProxyHeader, Tlv};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// For a connect in the name of a client, to be given to `ConnectOptions::layer`: sends a header of the
/// PROXY protocol, and then what the application sends. The connection is open at once; nothing is
/// awaited.
#[derive(Clone, Debug)]
pub struct SendProxy {
    addresses: Option<ProxiedAddress>,
    fields: Vec<Tlv<'static>>,
    has_checksum: bool,
    is_version_1: bool,
}

impl SendProxy {
    /// The header of version 2, for the connection of this client to this server. If one address is
    /// IPv4 and the other is not, it is sent as IPv6.
    pub fn new(client: SocketAddr, server: SocketAddr) -> Self {
        let [source, destination] = match (client, server) {
            (SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_)) => {
                [client, server]
            }
            mixed => [mixed.0, mixed.1].map(mapped),
        };
        SendProxy {
            addresses: Some(ProxiedAddress::stream(source, destination)),
            ..SendProxy::local()
        }
    }

    /// The header of version 2 for a connection of this side's own, such as one that only sees whether
    /// the server is well.
    pub fn local() -> Self {
        SendProxy {
            addresses: None,
            fields: Vec::new(),
            has_checksum: false,
            is_version_1: false,
        }
    }

    /// Version 1 instead, which is text, and has nothing but the addresses: no field is sent.
    #[must_use]
    pub fn version_1(mut self) -> Self {
        self.is_version_1 = true;
        self
    }

    /// With the name of the server that the client asked for, up to 255 bytes.
    pub fn server_name(self, name: &str) -> Result<Self, FieldError> {
        self.field(Tlv::Authority(name.to_owned().into()), name.len())
    }

    /// With the application protocol that was agreed on, up to 255 bytes.
    pub fn alpn(self, alpn: &[u8]) -> Result<Self, FieldError> {
        self.field(Tlv::Alpn(alpn.to_vec().into()), alpn.len())
    }

    /// With what this side calls the connection by, up to 128 bytes.
    pub fn unique_id(self, id: &[u8]) -> Result<Self, FieldError> {
        let (len, limit) = (id.len(), LONGEST_ID);
        if len > limit {
            return Err(FieldError { len, limit });
        }
        self.field(Tlv::UniqueId(id.to_vec().into()), len)
    }

    /// With a checksum (CRC-32C) over the header.
    #[must_use]
    pub fn checksum(mut self) -> Self {
        self.has_checksum = true;
        self
    }

    fn field(mut self, field: Tlv<'static>, len: usize) -> Result<Self, FieldError> {
        let limit = LONGEST_FIELD;
        if len > limit {
            return Err(FieldError { len, limit });
        }
        let kind = field.kind();
        self.fields.retain(|other| other.kind() != kind);
        self.fields.push(field);
        Ok(self)
    }

    /// The header as it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.is_version_1 {
            let header = match &self.addresses {
                Some(addresses) => ProxyHeader::with_address(addresses.clone()),
                None => ProxyHeader::with_local(),
            };
            let encoded = header.encode_v1(&mut bytes);
            debug_assert_eq!(encoded, Ok(()), "both addresses are of one kind");
            return bytes;
        }
        let encode = |value: Option<u32>| {
            let fields = self.fields.iter().cloned();
            let fields = fields.chain(value.map(Tlv::Crc32c));
            let mut bytes = Vec::new();
            let header = ProxyHeader::with_tlvs(self.addresses.clone(), fields);
            let encoded = header.encode_v2(&mut bytes);
            debug_assert_eq!(encoded, Ok(()), "the fields are short");
            bytes
        };
        // The checksum's own field counts as zeros.
        let zeroed = encode(self.has_checksum.then_some(0));
        match checksum(&zeroed) {
            Some(sum) => encode(Some(sum)),
            None => zeroed,
        }
    }
}

/// An address as one of IPv6.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

impl MakeLayer for SendProxy {
    fn make_layer(&self, _ends: Ends) -> Box<dyn Layer> {
        Box::new(Sending {
            header: self.to_bytes(),
        })
    }
}

/// One connection.
struct Sending {
    /// What is to be sent first; empty once it was.
    header: Vec<u8>,
}

impl Layer for Sending {
    fn begin(&mut self, _now: Instant, wire: &mut Vec<u8>) {
        wire.append(&mut self.header);
        self.header = Vec::new();
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, _wire: &mut Vec<u8>) {
        stream.extend_from_slice(input);
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        for piece in stream {
            wire.extend_from_slice(piece);
        }
    }

    fn handle_close(&mut self, _wire: &mut Vec<u8>) {}

    fn has_end(&self) -> bool {
        false
    }

    fn is_established(&self) -> bool {
        true
    }

    fn state(&self) -> LayerState<'_> {
        LayerState::Open
    }
}

/// A field that is too long for a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldError {
    len: usize,
    limit: usize,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FieldError { len, limit } = self;
        write!(
            f,
            "the field of a PROXY header has {len} bytes, and may have {limit}"
        )
    }
}

impl std::error::Error for FieldError {}
