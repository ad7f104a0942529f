//! The layer of a listener behind a proxy.

use crate::header::{
    LONGEST_FIELD, LONGEST_ID, LONGEST_VERSION_1, VERSION_1, checksum, may_begin_with,
};
use cubenet_core::address::Prefix;
use cubenet_core::{Ends, Identity, Instant, Layer, LayerError, LayerState, MakeLayer};
use proxy_header::{Error, ParseConfig, ProxyHeader, Tlv};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// For a listener whose connections come by way of proxies, to be given to `ListenOptions::layer`:
/// each must begin with a header of the PROXY protocol, version 1 or 2.
///
/// What it says is in the connection's [`Identity`]: [`client_addr`](Identity::client_addr),
/// [`server_addr`](Identity::server_addr), and from version 2 [`server_name`](Identity::server_name),
/// [`alpn`](Identity::alpn), [`unique_id`](Identity::unique_id) and [`checksum`](Identity::checksum).
/// IPv4 addresses that are sent as IPv6 are IPv4 here. A proxy that connects for itself, for instance to
/// see whether the server is well (`LOCAL`, `UNKNOWN`), and one whose client has no IP address, give no
/// `client_addr`. TLS behind it has the last word on the server's name and the protocol.
#[derive(Clone, Debug)]
pub struct AcceptProxy {
    trusted: Arc<[Prefix]>,
    timeout: Duration,
    untrusted: Arc<AtomicU64>,
}

impl AcceptProxy {
    /// Believes what comes from these prefixes, and from nowhere else. A header has to come within
    /// five seconds.
    pub fn new(trusted: impl IntoIterator<Item = Prefix>) -> Self {
        AcceptProxy {
            trusted: trusted.into_iter().collect(),
            timeout: Duration::from_secs(5),
            untrusted: Arc::default(),
        }
    }

    /// How long a header may take. It counts as part of the handshake, which
    /// [`Limits::handshake_timeout`](cubenet_core::Limits::handshake_timeout) bounds as a whole.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connections that were reset since their peers are in none of the prefixes, so far. Clones count
    /// together.
    pub fn untrusted(&self) -> u64 {
        self.untrusted.load(Relaxed)
    }
}

impl MakeLayer for AcceptProxy {
    fn make_layer(&self, ends: Ends) -> Box<dyn Layer> {
        let address = ends.peer_addr.ip();
        let trusts = self.trusted.iter().any(|prefix| prefix.contains(address));
        let error = (!trusts).then(|| {
            self.untrusted.fetch_add(1, Relaxed);
            LayerError::new(format!(
                "{address} is none of the proxies that are believed; name its prefix if it is one"
            ))
        });
        Box::new(Accepting {
            timeout: self.timeout,
            deadline: Instant::NEVER,
            held: Vec::new(),
            header: None,
            error,
        })
    }
}

/// One connection.
struct Accepting {
    timeout: Duration,
    deadline: Instant,
    /// What has arrived of the header.
    held: Vec<u8>,
    /// What it says.
    header: Option<Box<Header>>,
    error: Option<LayerError>,
}

impl Layer for Accepting {
    fn begin(&mut self, now: Instant, _wire: &mut Vec<u8>) {
        self.deadline = now.after(self.timeout);
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, _wire: &mut Vec<u8>) {
        if self.error.is_some() {
            return;
        }
        if self.header.is_some() {
            return stream.extend_from_slice(input);
        }
        self.held.extend_from_slice(input);
        match read(&self.held) {
            Ok(None) => {}
            Ok(Some((header, len))) => {
                stream.extend_from_slice(&self.held[len..]);
                self.held = Vec::new();
                self.header = Some(Box::new(header));
            }
            Err(problem) => {
                self.held = Vec::new();
                self.error = Some(LayerError::new(problem));
            }
        }
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
        self.header.is_some()
    }

    fn state(&self) -> LayerState<'_> {
        match &self.error {
            Some(error) => LayerState::Failed(error),
            None if self.header.is_some() => LayerState::Open,
            None => LayerState::Handshaking,
        }
    }

    fn held(&self) -> usize {
        self.held.capacity()
    }

    fn poll_timeout(&self) -> Instant {
        self.deadline
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.header.is_none() && now >= self.deadline {
            let problem = format!("no PROXY header came within {:?}", self.timeout);
            self.error.get_or_insert(LayerError::new(problem));
        }
    }

    fn identify(&self, identity: &mut Identity) {
        let Some(header) = &self.header else {
            return;
        };
        identity.set_client_addr(header.client_addr);
        identity.set_server_addr(header.server_addr);
        identity.set_server_name(header.server_name.clone());
        identity.set_alpn(header.alpn.clone());
        identity.set_unique_id(header.unique_id.clone());
        identity.set_checksum(header.checksum);
    }
}

/// What a header says.
#[derive(Default)]
struct Header {
    client_addr: Option<SocketAddr>,
    server_addr: Option<SocketAddr>,
    server_name: Option<String>,
    alpn: Option<Vec<u8>>,
    unique_id: Option<Vec<u8>>,
    checksum: Option<u32>,
}

/// An address as the rest of the library has it: IPv4, if it is that in the clothes of IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// That a field is no longer than it may be.
fn bounded<T: AsRef<[u8]>>(field: T, limit: usize) -> Result<T, String> {
    match field.as_ref().len() {
        len if len > limit => Err(format!(
            "a field of the PROXY header has {len} bytes, and may have {limit}"
        )),
        _ => Ok(field),
    }
}

/// Reads the header that these bytes begin with, and says how long it is. `None` if more of it is to
/// come.
fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, String> {
    if !may_begin_with(bytes) {
        let mut problem = "the peer begins with something else than a PROXY header: ".to_owned();
        for byte in bytes.iter().take(8) {
            let _ = write!(problem, "{}", byte.escape_ascii());
        }
        return Err(problem);
    }
    let is_version_1 = bytes.starts_with(VERSION_1);
    let parsed = ProxyHeader::parse(bytes, ParseConfig::default());
    let (header, len) = match parsed {
        Ok(parsed) => parsed,
        // Whether it is too short is only known once it is clear which version it is.
        Err(Error::BufferTooShort) => return Ok(None),
        Err(error) => return Err(format!("the PROXY header is malformed: {error}")),
    };
    if is_version_1 && len > LONGEST_VERSION_1 {
        return Err("the PROXY header is longer than version 1 allows".to_owned());
    }
    let mut said = Header::default();
    if let Some(addresses) = header.proxied_address() {
        said.client_addr = Some(canonical(addresses.source));
        said.server_addr = Some(canonical(addresses.destination));
    }
    for field in header.tlvs() {
        match field.map_err(|_| "a field of the PROXY header is malformed".to_owned())? {
            Tlv::Authority(name) => {
                bounded(name.as_bytes(), LONGEST_FIELD)?;
                said.server_name = Some(name.into_owned());
            }
            Tlv::Alpn(alpn) => said.alpn = Some(bounded(alpn.into_owned(), LONGEST_FIELD)?),
            Tlv::UniqueId(id) => said.unique_id = Some(bounded(id.into_owned(), LONGEST_ID)?),
            Tlv::Crc32c(sent) => {
                if checksum(&bytes[..len]) != Some(sent) {
                    return Err("the checksum of the PROXY header is wrong".to_owned());
                }
                said.checksum = Some(sent);
            }
            _ => {}
        }
    }
    Ok(Some((said, len)))
}
