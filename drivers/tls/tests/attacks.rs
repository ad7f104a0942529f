//! What a peer over TLS may send that attacks, breaks the protocol or goes slowly.

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use cubenet_mio::{CloseReason, Limits, Network, Timeout};
use cubenet_tests::authority::{Authority, Issued};
use cubenet_tests::{
    RawClient, Reports, echo, eventually, framed, ignore, network, network_with, pattern,
};
use cubenet_tls::{CertificateFiles, Client, Server, client_config_with_ca, server_config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConnection, ConnectionTrafficSecrets};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

const NAME: &str = "game.example";

fn server(issued: &Issued) -> Server {
    Server::new(server_config(&issued.certificate, &issued.key).unwrap())
}

/// A client of rustls' own, over a socket of the test's, which sees what is on the wire.
struct Wire {
    tls: ClientConnection,
    raw: RawClient,
}

impl Wire {
    fn new(authority: &Authority, address: SocketAddr) -> Self {
        let config = client_config_with_ca(authority.ca()).unwrap();
        Wire {
            tls: ClientConnection::new(config, NAME.try_into().unwrap()).unwrap(),
            raw: RawClient::connect(address),
        }
    }

    /// One that has been through its handshake, and has had a message answered.
    fn open(authority: &Authority, address: SocketAddr) -> Self {
        let mut wire = Wire::new(authority, address);
        wire.round_trip(b"hello");
        wire
    }

    fn round_trip(&mut self, message: &[u8]) {
        let mut stream = rustls::Stream::new(&mut self.tls, &mut self.raw.stream);
        stream.write_all(&framed(message)).unwrap();
        let mut answer = vec![0; message.len() + 2];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, framed(message));
    }

    /// What is to be sent, as it would be on the wire.
    fn unsent(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// A record with this message, which is not sent.
    fn record(&mut self, message: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(&framed(message)).unwrap();
        self.unsent()
    }
}

/// An echo server with TLS.
fn echoing(network: &Network, authority: &Authority) -> (Reports, SocketAddr) {
    Reports::listen_layered(network, server(&authority.issue(NAME)), echo)
}

/// The next connection has opened, and its first message has come.
fn greeted(server: &Reports) {
    server.opened();
    assert_eq!(server.received(), b"hello");
}

#[test]
fn a_handshake_may_come_byte_by_byte_and_may_not_take_for_ever() {
    let authority = Authority::new();
    let limits = Limits::new().with_handshake_timeout(Duration::from_secs(2));
    let network = network_with(limits);
    let (server, address) = echoing(&network, &authority);
    let mut slow = Wire::new(&authority, address);
    let hello = slow.unsent();
    for byte in hello.chunks(1) {
        slow.raw.write(byte);
    }
    slow.round_trip(b"hello");
    greeted(&server);
    let began = Instant::now();
    let mut slower = Wire::new(&authority, address);
    let hello = slower.unsent();
    let mut sent = hello.chunks(1);
    let late = CloseReason::Timeout(Timeout::Handshake);
    while network.metrics().closed(late) == 0 {
        assert!(began.elapsed() < cubenet_tests::PATIENCE);
        // Once it is closed there, a write fails.
        let _ = sent.next().map(|byte| slower.raw.stream.write_all(byte));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() >= Duration::from_millis(1_990));
}

#[test]
fn ten_thousand_handshakes_that_stop_halfway_are_bounded_and_pass() {
    const TOGETHER: usize = 500;
    let authority = Authority::new();
    let limits = Limits::new()
        .with_handshake_timeout(Duration::from_millis(300))
        .with_max_handshakes(200);
    let network = network_with(limits);
    let (server, address) = echoing(&network, &authority);
    let hello = Wire::new(&authority, address).unsent();
    let half = &hello[..hello.len() / 2];
    for _ in 0..10_000 / TOGETHER {
        let mut together = Vec::new();
        for _ in 0..TOGETHER {
            let mut stream = TcpStream::connect(address).unwrap();
            // It may have been refused already.
            let _ = stream.write_all(half);
            together.push(stream);
        }
        let metrics = network.metrics();
        assert!(metrics.handshaking <= 200, "{}", metrics.handshaking);
        assert!(metrics.held_bytes <= 200 * 4 * hello.len() as u64);
    }
    eventually("all are done with", || {
        let metrics = network.metrics();
        let timed_out = metrics.closed(CloseReason::Timeout(Timeout::Handshake));
        let left = metrics.closed(CloseReason::Handshake) + metrics.closed(CloseReason::Reset);
        // The one that only made the hello, too.
        timed_out + left + metrics.refused_by_handshakes == 10_001
            && (metrics.open, metrics.handshaking, metrics.held_bytes) == (0, 0, 0)
    });
    let _good = Wire::open(&authority, address);
    greeted(&server);
}

#[test]
fn a_record_that_is_cut_anywhere_truncates() {
    let authority = Authority::new();
    let network = network();
    let (server, address) = echoing(&network, &authority);
    let len = Wire::open(&authority, address).record(b"cut").len();
    greeted(&server);
    server.closed();
    for cut in 0..=len {
        let mut wire = Wire::open(&authority, address);
        let record = wire.record(b"cut");
        wire.raw.write(&record[..cut]);
        wire.raw.stream.shutdown(Shutdown::Write).unwrap();
        greeted(&server);
        if cut == len {
            assert_eq!(server.received(), b"cut");
        }
        assert_eq!(server.closed(), CloseReason::Truncated, "at {cut} of {len}");
    }
}

#[test]
fn records_that_are_repeated_exchanged_or_too_long_close_the_connection() {
    let authority = Authority::new();
    let network = network();
    let (server, address) = echoing(&network, &authority);
    let mut tampered: Vec<(Wire, Vec<u8>, usize)> = Vec::new();
    let mut wire = Wire::open(&authority, address);
    let record = wire.record(b"again");
    tampered.push((wire, record.repeat(2), 1));
    let mut wire = Wire::open(&authority, address);
    let [first, second] = [wire.record(b"first"), wire.record(b"second")];
    tampered.push((wire, [second, first].concat(), 0));
    let wire = Wire::open(&authority, address);
    // Longer than a record may be.
    let mut long = vec![23, 3, 3, 0x48, 1];
    long.extend([0; 0x4801]);
    tampered.push((wire, long, 0));
    let wire = Wire::open(&authority, address);
    // An alert that is not encrypted, and a kind of record that there is not.
    tampered.push((wire, vec![21, 3, 3, 0, 2, 2, 40], 0));
    let wire = Wire::open(&authority, address);
    tampered.push((wire, vec![99, 3, 3, 0, 1, 0], 0));
    for _ in &tampered {
        greeted(&server);
    }
    for (mut wire, sent, delivered) in tampered {
        wire.raw.write(&sent);
        for _ in 0..delivered {
            assert_eq!(server.received(), b"again");
        }
        // An alert, and the end.
        wire.raw.rest();
        drop(wire);
        assert_eq!(server.closed(), CloseReason::Layer);
    }
}

#[test]
fn alerts_may_come_at_any_moment() {
    const FATAL: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
    let authority = Authority::new();
    let network = network_with(Limits::new().with_handshake_timeout(Duration::from_millis(500)));
    let (server, address) = echoing(&network, &authority);
    // First, in the middle of a hello, behind it, and behind the server's answer.
    let hello = Wire::new(&authority, address).unsent();
    for sent in [&[][..], &hello[..40], &hello] {
        let mut raw = RawClient::connect(address);
        raw.write(&[sent, &FATAL].concat());
        raw.rest();
    }
    let mut raw = RawClient::connect(address);
    raw.write(&hello);
    raw.some();
    raw.write(&FATAL);
    raw.rest();
    drop(raw);
    // In the middle of a hello it is part of that, whose rest never comes.
    eventually("each has failed", || {
        let metrics = network.metrics();
        let late = metrics.closed(CloseReason::Timeout(Timeout::Handshake));
        (metrics.closed(CloseReason::Handshake), late) == (4, 1)
    });
    // `close_notify` behind a message is an end in order.
    let mut wire = Wire::open(&authority, address);
    let mut last = wire.record(b"last");
    wire.tls.send_close_notify();
    last.extend(wire.unsent());
    wire.raw.write(&last);
    greeted(&server);
    assert_eq!(server.received(), b"last");
    assert_eq!(server.closed(), CloseReason::Peer);
    assert!(server.next_within(Duration::from_millis(20)).is_none());
}

#[test]
fn what_follows_our_own_end_does_not_matter() {
    let authority = Authority::new();
    let network = network();
    let (server, address) = echoing(&network, &authority);
    let mut wire = Wire::open(&authority, address);
    let connection = server.opened();
    assert_eq!(server.received(), b"hello");
    connection.close();
    // Its `close_notify` has come.
    wire.raw.some();
    wire.raw.write(&[23, 3, 3, 0, 30]);
    wire.raw.write(&[7; 30]);
    drop(wire);
    assert_eq!(server.closed(), CloseReason::Local);
    assert_eq!(network.metrics().panics, 0);
}

#[test]
fn keys_may_be_renewed_at_any_time() {
    let authority = Authority::new();
    let network = network();
    let (server, address) = echoing(&network, &authority);
    let mut wire = Wire::open(&authority, address);
    for _ in 0..20 {
        wire.tls.refresh_traffic_keys().unwrap();
        wire.round_trip(b"under new keys");
    }
    greeted(&server);
}

/// A chain that begins with this certificate and goes on with so many that say nothing.
fn long_chain(authority: &Authority, issued: &Issued, more: usize) -> Issued {
    let mut chain = std::fs::read_to_string(&issued.certificate).unwrap();
    let other = authority.issue("another.example");
    let other = std::fs::read_to_string(other.certificate).unwrap();
    for _ in 0..more {
        chain.push_str(&other);
    }
    let certificate = authority.folder().join("long.pem");
    std::fs::write(&certificate, chain).unwrap();
    Issued {
        certificate,
        key: issued.key.clone(),
    }
}

#[test]
fn a_chain_may_be_longer_than_a_record() {
    let authority = Authority::new();
    let network = network();
    // Some 40 KB: three records.
    let long = long_chain(&authority, &authority.issue(NAME), 100);
    let (server, address) = Reports::listen_layered(&network, server(&long), echo);
    let client = Client::new(client_config_with_ca(authority.ca()).unwrap(), NAME).unwrap();
    let (client, connection) = Reports::connect_layered(&network, address, client);
    client.opened();
    connection.send(pattern(1_000)).unwrap();
    assert_eq!(client.received(), pattern(1_000));
    server.opened();
}

#[test]
fn a_chain_of_100_kilobytes_is_refused_on_both_sides() {
    let authority = Authority::new();
    let network = network();
    let issued = authority.issue(NAME);
    let long = long_chain(&authority, &issued, 250);
    let length = |path: &Path| std::fs::read(path).unwrap().len() * 3 / 4;
    assert!(length(&long.certificate) > 100_000);
    let (_server, address) = Reports::listen_layered(&network, server(&long), ignore);
    let client = Client::new(client_config_with_ca(authority.ca()).unwrap(), NAME).unwrap();
    let (client, _) = Reports::connect_layered(&network, address, client);
    let (reason, report) = client.failed();
    assert_eq!(reason, CloseReason::Handshake, "{report}");
    // And of a client.
    let files = CertificateFiles::builder(&issued.certificate, &issued.key);
    let files = files.client_ca(authority.ca()).load().unwrap();
    let (server, address) = Reports::listen_layered(&network, Server::with_source(files), ignore);
    let config =
        cubenet_tls::client_config_with_certificate(authority.ca(), &long.certificate, &long.key);
    let client = Client::new(config.unwrap(), NAME).unwrap();
    let (client, _connection) = Reports::connect_layered(&network, address, client);
    assert!(server.next_within(Duration::from_millis(300)).is_none());
    drop(client);
    eventually("each side has failed", || {
        network.metrics().closed(CloseReason::Handshake) >= 3
    });
}

#[test]
fn a_server_name_of_300_bytes_is_refused() {
    let authority = Authority::new();
    let network = network();
    let (server, address) = echoing(&network, &authority);
    let mut raw = RawClient::connect(address);
    raw.write(&client_hello(&[b'x'; 300]));
    let (answer, _) = raw.rest();
    // An alert.
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    drop(raw);
    eventually("it has failed", || {
        network.metrics().closed(CloseReason::Handshake) == 1
    });
    assert!(server.next_within(Duration::from_millis(20)).is_none());
}

/// A hello that asks for the server of this name.
fn client_hello(name: &[u8]) -> Vec<u8> {
    let with_len = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_len(body)].concat();
    let names = [&[0][..], &with_len(name)].concat();
    let key = [&[0, 0x1d][..], &with_len(&[9; 32])].concat();
    let extensions = [
        extension(0, &with_len(&names)),
        // Groups, signatures, versions, key shares.
        extension(10, &with_len(&[0, 0x1d])),
        extension(13, &with_len(&[4, 3, 8, 7])),
        extension(43, &[2, 3, 4]),
        extension(51, &with_len(&key)),
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[5; 32],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &with_len(&extensions),
    ]
    .concat();
    let message = [&[1, 0][..], &with_len(&body)].concat();
    [&[22, 3, 1][..], &with_len(&message)].concat()
}

/// Records of TLS 1.3 as no implementation makes them: whatever they carry, under the keys of a
/// connection.
struct Forger {
    cipher: ChaCha20Poly1305,
    iv: [u8; 12],
    number: u64,
    raw: RawClient,
}

impl Forger {
    /// Takes over the sending side of a connection that is open.
    fn new(authority: &Authority, address: SocketAddr) -> Self {
        let suite = rustls::crypto::ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: vec![suite],
            ..rustls::crypto::ring::default_provider()
        };
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(authority.ca()).unwrap();
        roots.add(ca).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        let tls = ClientConnection::new(config.into(), NAME.try_into().unwrap()).unwrap();
        let raw = RawClient::connect(address);
        let mut wire = Wire { tls, raw };
        wire.round_trip(b"hello");
        let Wire { tls, raw } = wire;
        let (number, secrets) = tls.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else {
            panic!("the suite was agreed on");
        };
        Forger {
            cipher: ChaCha20Poly1305::new_from_slice(key.as_ref()).unwrap(),
            iv: iv.as_ref().try_into().unwrap(),
            number,
            raw,
        }
    }

    /// A record with this, and so many zeros behind it.
    fn record(&mut self, payload: &[u8], padding: usize) -> Vec<u8> {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= of_number;
        }
        self.number += 1;
        // What it carries, its kind, and the padding; and a tag of 16 bytes.
        let inner = [payload, &[23], &vec![0; padding]].concat();
        let len = (inner.len() + 16) as u16;
        let header = [&[23, 3, 3][..], &len.to_be_bytes()].concat();
        let sealed = Payload {
            msg: &inner,
            aad: &header,
        };
        let sealed = self.cipher.encrypt(&nonce.into(), sealed).unwrap();
        [header, sealed].concat()
    }
}

#[test]
fn records_may_be_empty_or_padded() {
    let authority = Authority::new();
    let network = network();
    let (server, address) = echoing(&network, &authority);
    let mut forger = Forger::new(&authority, address);
    greeted(&server);
    let mut sent = Vec::new();
    for byte in framed(b"in pieces") {
        sent.extend(forger.record(b"", 0));
        sent.extend(forger.record(&[byte], 100));
        sent.extend(forger.record(b"", 5_000));
    }
    forger.raw.write(&sent);
    assert_eq!(server.received(), b"in pieces");
    // So many in a row, the last of before included, and no more.
    for (row, passes) in [(31, true), (32, true), (33, false)] {
        let empty: Vec<_> = (0..row).flat_map(|_| forger.record(b"", 0)).collect();
        let behind = forger.record(&framed(b"behind"), 0);
        forger.raw.write(&[empty, behind].concat());
        if passes {
            assert_eq!(server.received(), b"behind");
        }
    }
    forger.raw.rest();
    drop(forger);
    assert_eq!(server.closed(), CloseReason::Layer);
}

#[test]
fn empty_records_keep_no_connection_alive() {
    let authority = Authority::new();
    let limits = Limits::new().with_stream_idle_timeout(Duration::from_millis(500));
    let network = network_with(limits);
    let (server, address) = echoing(&network, &authority);
    let mut forger = Forger::new(&authority, address);
    greeted(&server);
    let began = Instant::now();
    while network
        .metrics()
        .closed(CloseReason::Timeout(Timeout::Idle))
        == 0
    {
        assert!(began.elapsed() < cubenet_tests::PATIENCE);
        let empty = forger.record(b"", 0);
        let _ = forger.raw.stream.write_all(&empty);
        // Fewer than may come in a row, however late it is closed.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(server.closed(), CloseReason::Timeout(Timeout::Idle));
}
