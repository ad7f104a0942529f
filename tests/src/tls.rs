//! TLS for tests: certificates of an authority that only they trust, and, for the simulator, a
//! provider of cryptography without chance.

use cubenet_tls::{Client, ClientConfig, CryptoProvider, Server, ServerConfig};
use rcgen::{
    Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::{ActiveKeyExchange, GetRandomFailed, SecureRandom, SharedSecret};
use rustls::crypto::{SupportedKxGroup, ring};
use rustls::pki_types::{PrivatePkcs8KeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{Connection, Error, NamedGroup, PeerMisbehaved};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use x25519_dalek::{PublicKey, StaticSecret};

/// The name that the certificate is for.
pub const NAME: &str = "game.test";

/// Both sides of TLS, which trust each other.
#[derive(Clone)]
pub struct Tls {
    /// For listeners.
    pub server: Server,
    /// For connects.
    pub client: Client,
    configs: (Arc<ServerConfig>, Arc<ClientConfig>),
    random: Option<&'static Seeded>,
}

impl Tls {
    /// As applications have it.
    pub fn new() -> Self {
        let provider = Arc::new(ring::default_provider());
        let time = Arc::new(rustls::time_provider::DefaultTimeProvider);
        Tls::with(provider, time, true)
    }

    /// Without chance: the same `seed`, the same bytes on the wire. Not secure.
    pub fn seeded(seed: u64) -> Self {
        Tls::without_chance(seed, true)
    }

    /// The same, with no sessions that go on: a handshake does not depend on those before it.
    pub fn forgetful(seed: u64) -> Self {
        Tls::without_chance(seed, false)
    }

    /// A server's side of one connection, of rustls itself.
    pub fn raw_server(&self) -> Connection {
        let side = rustls::ServerConnection::new(Arc::clone(&self.configs.0));
        side.expect("the configuration fits").into()
    }

    /// A client's side of one connection, of rustls itself.
    pub fn raw_client(&self) -> Connection {
        let name = NAME.try_into().expect("a name");
        let side = rustls::ClientConnection::new(Arc::clone(&self.configs.1), name);
        side.expect("the configuration fits").into()
    }

    /// From here on it is as if it were made with this seed.
    pub fn reseed(&self, seed: u64) {
        if let Some(Seeded(state)) = self.random {
            *state.lock().expect("no thread panicked with it") = seed;
        }
    }

    fn without_chance(seed: u64, remembers: bool) -> Self {
        // What the provider refers to has to live as long as the program. It is small.
        let random: &'static Seeded = Box::leak(Box::new(Seeded(Mutex::new(seed))));
        let group: &'static SeededGroup = Box::leak(Box::new(SeededGroup(random)));
        let provider = CryptoProvider {
            kx_groups: vec![group],
            secure_random: random,
            ..ring::default_provider()
        };
        Tls {
            random: Some(random),
            ..Tls::with(Arc::new(provider), Arc::new(OneMoment), remembers)
        }
    }

    fn with(provider: Arc<CryptoProvider>, time: Arc<dyn TimeProvider>, remembers: bool) -> Self {
        let (authority, certificate, key) = issue();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).expect("an authority");
        let versions = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&time))
            .with_safe_default_protocol_versions();
        let mut server = versions
            .expect("the provider has suites of both versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .expect("a certificate with its key");
        let versions = ClientConfig::builder_with_details(provider, time)
            .with_safe_default_protocol_versions();
        let mut client = versions
            .expect("the provider has suites of both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !remembers {
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
            client.resumption = Resumption::disabled();
        }
        let configs = (Arc::new(server), Arc::new(client));
        Tls {
            server: Server::new(Arc::clone(&configs.0)),
            client: Client::new(Arc::clone(&configs.1), NAME).expect("a name"),
            configs,
            random: None,
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Tls::new()
    }
}

/// An authority, and a certificate that it has issued with its key; always the same.
fn issue() -> (Certificate, Certificate, KeyPair) {
    let mut of_authority = CertificateParams::new(Vec::new()).expect("no name");
    of_authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    of_authority.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let name = "the authority of the tests";
    of_authority
        .distinguished_name
        .push(DnType::CommonName, name);
    let authority_key = key([1; 32]);
    let authority = of_authority.self_signed(&authority_key);
    let issuer = Issuer::new(of_authority, authority_key);
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
    let usages = &mut params.extended_key_usages;
    usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    let key = key([2; 32]);
    let certificate = params.signed_by(&key, &issuer);
    (
        authority.expect("it can be signed"),
        certificate.expect("it can be signed"),
        key,
    )
}

/// The certificate and its key, as other programs read them (PEM).
pub fn certificate_pem() -> String {
    let (_, certificate, key) = issue();
    certificate.pem() + &key.serialize_pem()
}

/// The Ed25519 key of this seed.
fn key(seed: [u8; 32]) -> KeyPair {
    /// What stands before the seed in PKCS #8 (RFC 8410).
    const PREFIX: [u8; 16] = [
        0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
    ];
    let der = PrivatePkcs8KeyDer::from([&PREFIX[..], &seed].concat());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).expect("a key")
}

/// Bytes from a seed, by `SplitMix64`.
#[derive(Debug)]
struct Seeded(Mutex<u64>);

impl SecureRandom for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        let mut state = self.0.lock().map_err(|_| GetRandomFailed)?;
        for chunk in bytes.chunks_mut(8) {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = *state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            chunk.copy_from_slice(&mixed.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// X25519 with secrets from the seed. That of `ring` draws them from the system.
#[derive(Debug)]
struct SeededGroup(&'static Seeded);

impl SupportedKxGroup for SeededGroup {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut secret = [0; 32];
        self.0.fill(&mut secret)?;
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret);
        Ok(Box::new(SeededExchange { secret, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct SeededExchange {
    secret: StaticSecret,
    public: PublicKey,
}

impl ActiveKeyExchange for SeededExchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer: [u8; 32] = peer
            .try_into()
            .map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        let shared = self.secret.diffie_hellman(&PublicKey::from(peer));
        Ok(shared.as_bytes().as_slice().into())
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

/// A clock that stands still.
#[derive(Debug)]
struct OneMoment;

impl TimeProvider for OneMoment {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_hours(500_000)))
    }
}
